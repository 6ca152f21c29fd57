//! What must hold at any time: one check for each invariant of the architecture that shows at the edge of a process.

use crate::{
    conductor::{self, Pid},
    network::HostId,
    plane::Esp,
    trace,
};
use evergate_ike::{
    record::{Datagrams, Record, SaId},
    wire::{ExchangeType, Header},
};
use evergate_state::State;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    ops::Range,
};

/// Length of an encrypted message without payloads under AES-GCM with a whole ICV: header, payload header, IV, length of the padding, ICV.
const EMPTY: usize = 28 + 4 + 8 + 1 + 16;

/// Payload types (RFC 7296 §3.2, RFC 7383 §2.5).
const ENCRYPTED: u8 = 46;
const FRAGMENT: u8 = 53;

/// Says what is wrong, and ends the simulation.
pub(crate) fn violated(invariant: &str, what: &str) -> ! {
    trace::fatal(&format!("violated: {invariant}: {what}"))
}

/// One direction of one IKE SA, and an IV.
type IkeIv = (u64, u64, bool, [u8; 8]);

/// One message of an IKE SA: its SPIs, who began it, response or not, Message ID, exchange.
type MessageName = (u64, u64, bool, bool, u32, u8);

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Checks {
    ike_ivs: HashMap<IkeIv, u64>,
    esp_ivs: HashMap<(u64, u64), u64>,
    reserved: HashMap<u64, Vec<(Range<u64>, HostId)>>,
    messages: HashMap<MessageName, Vec<u8>>,
    first_answers: HashMap<(IpAddr, u64), HashSet<u64>>,
    /// Responses that were seen to be committed.
    committed: HashSet<u64>,
    /// Until when which host may speak from which address.
    open: BTreeMap<(IpAddr, HostId), u64>,
    /// How much was looked at.
    pub(crate) ike: u64,
    pub(crate) esp: u64,
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Whether a message is encrypted, and where its IV begins.
fn iv_at(message: &[u8]) -> Option<usize> {
    match *message.get(16)? {
        ENCRYPTED => Some(32),
        FRAGMENT => Some(36),
        _ => None,
    }
}

/// An exchange that changes nothing, by its shape.
fn is_harmless(header: &Header, message: &[u8]) -> bool {
    header.exchange == ExchangeType::INFORMATIONAL && message.len() <= EMPTY
}

/// The one that RFC 6311 has: Message ID 0, once more.
fn is_sync(header: &Header) -> bool {
    header.exchange == ExchangeType::INFORMATIONAL && header.message_id == 0
}

fn has(datagrams: &Datagrams, message: &[u8]) -> bool {
    datagrams.iter().any(|d| d == message)
}

impl Checks {
    /// Invariants 1 and 5, of an IKE message that leaves.
    pub(crate) fn ike(&mut self, message: &[u8], remote: IpAddr) {
        self.ike += 1;
        let Ok(header) = Header::parse(message) else {
            violated("well-formed messages", "no IKE header");
        };
        let (i, r) = (header.initiator_spi, header.responder_spi);
        if let Some(at) = iv_at(message) {
            let iv: [u8; 8] = message[at..at + 8].try_into().unwrap_or_default();
            let name = (i, r, header.from_initiator, iv);
            let digest = digest(message);
            if *self.ike_ivs.entry(name).or_insert(digest) != digest {
                violated("1, no IV twice", &format!("IKE SA {i:016x}, IV {iv:02x?}"));
            }
        }
        let stateless = header.exchange == ExchangeType::IKE_SA_INIT && r == 0;
        if is_harmless(&header, message)
            || is_sync(&header)
            || stateless
            || iv_at(message).is_none()
        {
            return self.first_answer(&header, message, remote);
        }
        let exchange = header.exchange.0;
        let name = (
            i,
            r,
            header.from_initiator,
            header.is_response,
            header.message_id,
            exchange,
        );
        // Fragments of one message differ.
        if message[16] == FRAGMENT {
            return;
        }
        let before = self
            .messages
            .entry(name)
            .or_insert_with(|| message.to_vec());
        if before != message {
            let kind = if header.is_response {
                "response to"
            } else {
                "request"
            };
            violated(
                "5, the same answer from anyone",
                &format!(
                    "{kind} {} of IKE SA {i:016x}: {header:?}",
                    header.message_id
                ),
            );
        }
    }

    /// A repeated first message gets the same answer, as long as its SA is there.
    fn first_answer(&mut self, header: &Header, message: &[u8], remote: IpAddr) {
        let answers = header.exchange == ExchangeType::IKE_SA_INIT && header.is_response;
        if answers && header.responder_spi != 0 {
            let digests = self.first_answers.entry((remote, header.responder_spi));
            let digests = digests.or_default();
            digests.insert(digest(message));
            if digests.len() > 1 {
                violated(
                    "5, the same answer from anyone",
                    &format!("two answers to the first message of {remote}"),
                );
            }
        }
    }

    /// Invariant 1, of an ESP packet that leaves.
    pub(crate) fn esp(&mut self, packet: &Esp, host: HostId) {
        self.esp += 1;
        let name = (packet.key, packet.sequence);
        if self.esp_ivs.insert(name, packet.id).is_some() {
            violated(
                "1, no IV twice",
                &format!(
                    "SPI {:08x}, sequence number {}",
                    packet.spi, packet.sequence
                ),
            );
        }
        let reserved = self.reserved.get(&packet.key);
        let within = reserved.is_some_and(|all| {
            all.iter()
                .any(|(range, by)| *by == host && range.contains(&packet.sequence))
        });
        if !within {
            violated(
                "1, only reserved sequence numbers",
                &format!(
                    "SPI {:08x}, sequence number {}",
                    packet.spi, packet.sequence
                ),
            );
        }
    }

    /// Invariant 1: what is given to a data plane was given to none before.
    pub(crate) fn reserved(&mut self, host: HostId, key: u64, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let all = self.reserved.entry(key).or_default();
        let meets = |(r, _): &&(Range<u64>, HostId)| r.start < range.end && range.start < r.end;
        if let Some((other, by)) = all.iter().find(meets) {
            violated(
                "1, disjoint reservations",
                &format!("{range:?} of host {host} meets {other:?} of host {by}"),
            );
        }
        all.push((range.clone(), host));
    }

    /// Invariant 2: a host may speak from an address until a time, in the place of what was said before.
    pub(crate) fn opened(&mut self, address: IpAddr, host: HostId, until: u64) {
        let now = conductor::now();
        let other = self
            .open
            .range((address, 0)..=(address, HostId::MAX))
            .find(|((_, h), t)| *h != host && **t > now);
        if until > now
            && let Some(((_, other), left)) = other
        {
            violated(
                "2, one active member",
                &format!(
                    "host {host} may speak from {address}, and host {other} for {} us more",
                    (left - now) / conductor::MICRO
                ),
            );
        }
        self.open.insert((address, host), until);
    }

    /// Whether a host may speak from an address.
    pub(crate) fn is_open(&self, address: IpAddr, host: HostId) -> bool {
        let until = self.open.get(&(address, host)).copied();
        until.is_some_and(|until| until > conductor::now())
    }

    /// Invariant 8: a process does not even try to send without a lease. A thread that had looked at the gate before its process was stopped may do so when it goes on;
    /// that is what the switch is for.
    pub(crate) fn silenced(&self, process: Pid, from: IpAddr) {
        const LATE: u64 = 5 * conductor::MILLI;
        if conductor::since_pause(process).is_none_or(|since| since > LATE) {
            let what = format!("process {process} sends from {from}, and has no lease");
            violated("8, fail closed", &what);
        }
    }

    /// Whether a response was seen to be committed before. It may be repeated after the record has forgotten it, because the peer has it.
    pub(crate) fn was_committed(&self, message: &[u8]) -> bool {
        self.committed.contains(&digest(message))
    }

    /// A response is committed.
    pub(crate) fn is_committed(&mut self, message: &[u8]) {
        if Header::parse(message).is_ok_and(|h| h.is_response) {
            self.committed.insert(digest(message));
        }
    }

    /// A machine is switched off, and its kernel says nothing any more.
    pub(crate) fn off(&mut self, host: HostId) {
        self.open.retain(|(_, h), _| *h != host);
    }
}

/// Invariants 3 and 4: what a message tells is committed, as far as its sender sees.
pub(crate) fn committed(state: &State, message: &[u8], process: Pid) {
    let Ok(header) = Header::parse(message) else {
        return;
    };
    if is_harmless(&header, message) {
        return;
    }
    let own = match header.from_initiator {
        true => header.initiator_spi,
        false => header.responder_spi,
    };
    let record: Option<&Record> = state.sa(SaId(own)).map(|r| &**r);
    let Some(record) = record else {
        // Without an SA there are answers of no consequence: cookies, refusals.
        let refusal = iv_at(message).is_none() && header.is_response;
        if !refusal {
            let what = format!("process {process} sends {header:?}, but no SA is committed");
            violated("3, commit before reply", &what);
        }
        return;
    };
    if is_sync(&header) {
        return;
    }
    if header.is_response {
        let response = record.inbound.response(header.message_id);
        if !response.is_some_and(|r| has(r, message)) {
            let what =
                format!("process {process} sends {header:?}, which is not what is committed");
            violated("3, commit before reply", &what);
        }
    } else {
        let pending = record.outbound.get(header.message_id);
        if !pending.is_some_and(|p| has(&p.datagrams, message)) {
            let what =
                format!("process {process} sends {header:?}, which is not what is committed");
            violated("4, write ahead", &what);
        }
    }
}

/// Invariant 6: no virtual address belongs to SAs of two peers.
pub(crate) fn addresses(state: &State) {
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    for record in state.sas() {
        let evergate_ike::record::Phase::Established(established) = &record.phase else {
            continue;
        };
        for address in &established.peer_vips {
            let who = established.remote_id.to_string();
            let owner = owners.entry(*address).or_insert_with(|| who.clone());
            if *owner != who {
                violated(
                    "6, no inner address twice",
                    &format!("{address}: {owner}, {who}"),
                );
            }
        }
    }
}
