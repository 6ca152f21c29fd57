//! Sequences of events, read from bytes: the target `sa`.

use super::{
    Pair,
    end::{Crash, Packet},
};
use crate::configuration::policy;
use arbitrary::{Result, Unstructured};
use evergate_ike::{
    config::Policy,
    record::Transport,
    sa::{Command, Displaced, Input, Ways},
    wire::PayloadType,
};
use std::{net::SocketAddr, path::Path, sync::OnceLock, time::Duration};

/// What the two ends are configured with: keys of the connection, keys of its child, and the keys of a second child if there is one.
pub(crate) const SETUPS: [(&str, &str); 6] = [
    ("", ""),
    (
        "message_id_sync = true\ndpd_delay = '8s'",
        "rekey_time = '0'",
    ),
    (
        "proposals = ['aes128gcm16-prfsha256-x25519-ke1_mlkem512']\ndpd_delay = '10s'",
        "esp_proposals = ['aes128gcm16-x25519-ke1_mlkem512']",
    ),
    (
        "rekey_time = '40s'\nover_time = '20s'\nrand_time = '5s'",
        "rekey_time = '25s'\nlife_time = '60s'\nrand_time = '5s'",
    ),
    (
        "mobike = false\nchildless = 'prefer'\nfragment_size = 576",
        "esp_proposals = ['aes256gcm16-x25519']",
    ),
    (
        "dpd_delay = '5s'\nfragment_size = 576\nreturn_routability = false\nvips = ['0.0.0.0']\npools = ['v4']",
        "esp_proposals = ['aes256gcm16-esn-noesn']",
    ),
];

/// What bytes mean.
pub(crate) mod op {
    pub(crate) const DELIVER: u8 = 0;
    pub(crate) const SETTLE: u8 = 1;
    pub(crate) const DROP: u8 = 2;
    pub(crate) const DUPLICATE: u8 = 3;
    pub(crate) const MUTATE: u8 = 4;
    pub(crate) const TRUNCATE: u8 = 5;
    pub(crate) const REFLECT: u8 = 6;
    pub(crate) const FORGE: u8 = 7;
    pub(crate) const SAY: u8 = 8;
    pub(crate) const PASS: u8 = 9;
    pub(crate) const WAIT: u8 = 10;
    pub(crate) const COMMAND: u8 = 11;
    pub(crate) const TAKE_OVER: u8 = 12;
    pub(crate) const CRASH: u8 = 13;
    pub(crate) const INITIATE: u8 = 14;
    pub(crate) const ROAM: u8 = 15;
    pub(crate) const NAT: u8 = 16;
    pub(crate) const ESP_FROM: u8 = 17;
    pub(crate) const ALL: u8 = 18;
}

/// More than any input needs: each may cost a key exchange.
const MAX_OPS: usize = 80;

/// The first byte chooses the setup, and whether there is a tunnel already; then come events.
///
/// # Panics
/// If an invariant does not hold.
pub fn sa(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let Ok(choice) = input.arbitrary::<u8>() else {
        return;
    };
    let mut pair = start(choice);
    for _ in 0..MAX_OPS {
        if input.is_empty() || event(&mut pair, &mut input).is_err() {
            break;
        }
        pair.check();
    }
    // From now on the network works, and nobody dies; a minute is longer than any peer waits in these setups.
    (pair.a.crash, pair.b.crash) = (None, None);
    pair.settle();
    pair.pass(Duration::from_secs(60), true);
    pair.settle();
    pair.check();
    if !pair.foul {
        pair.check_agreement();
    }
}

fn start(choice: u8) -> Pair {
    static CONNECTED: OnceLock<Vec<Pair>> = OnceLock::new();
    let setup = usize::from(choice) % SETUPS.len();
    if choice & 0x80 == 0 {
        return Pair::new(&policies()[setup]);
    }
    let connected = CONNECTED.get_or_init(|| policies().iter().map(connected).collect());
    connected[setup].like()
}

/// Two ends with a tunnel.
///
/// # Panics
/// If there is none.
fn connected(policies: &'static [Policy; 2]) -> Pair {
    let mut pair = Pair::new(policies);
    pair.initiate(false, 0);
    pair.settle();
    pair.pass(Duration::from_secs(1), true);
    for b in [false, true] {
        let sa = pair.sa_of(b).expect("an SA");
        assert_eq!(sa.record().children().len(), 1, "a tunnel");
    }
    pair
}

/// The policies of both ends, for each setup.
pub(crate) fn policies() -> &'static [[Policy; 2]] {
    static POLICIES: OnceLock<Vec<[Policy; 2]>> = OnceLock::new();
    POLICIES.get_or_init(|| {
        SETUPS
            .iter()
            .map(|setup| {
                [document(*setup, 1), document(*setup, 2)]
                    .map(|text| policy(&text, Path::new("/nonexistent")))
            })
            .collect()
    })
}

/// The configuration of one end: 1 or 2.
pub(crate) fn document((connection, child): (&str, &str), own: u8) -> String {
    let other = 3 - own;
    // Only one end can give addresses, and only the other can ask for them.
    let lacks = if own == 1 { "pools" } else { "vips" };
    let connection: String = connection
        .lines()
        .filter(|l| !l.starts_with(lacks))
        .map(|l| format!("{l}\n"))
        .collect();
    let suite = |text: &str, key: &str, usual: &str| {
        if text.contains(key) {
            String::new()
        } else {
            format!("{key} = ['{usual}']\n")
        }
    };
    format!(
        "[connections.c]\n\
         local_addrs = ['192.0.2.{own}', '192.0.2.{}']\n\
         remote_addrs = ['192.0.2.{other}', '192.0.2.{}', '198.51.100.1']\n\
         {connection}{}\
         local = {{ id = 'e{own}.test' }}\nremote = {{ id = 'e{other}.test' }}\n\
         [connections.c.children.net]\nlocal_ts = ['10.{own}.0.0/16']\nremote_ts = ['10.{other}.0.0/16']\n{child}\n{}\
         [connections.c.children.other]\nlocal_ts = ['10.{own}.0.0/16[udp/53]']\nremote_ts = ['10.{other}.0.0/16[udp]']\nesp_proposals = ['aes128gcm16']\n\
         [secrets.s]\nsecret = 'a secret of both'\n\
         [pools.v4]\naddrs = '10.99.0.0/24'\n\
         [retransmit]\ntimeout = '1s'\nbase = 1.5\ntries = 4\n",
        own + 2,
        other + 2,
        suite(&connection, "proposals", "aes128gcm16-prfsha256-x25519"),
        suite(child, "esp_proposals", "aes128gcm16"),
    )
}

fn event(pair: &mut Pair, input: &mut Unstructured<'_>) -> Result<()> {
    let what = input.arbitrary::<u8>()? % op::ALL;
    trace!("event {what}");
    match what {
        op::SETTLE => pair.settle(),
        op::DELIVER..=op::FORGE => on_the_wire(pair, what, input)?,
        op::SAY => {
            let (to_b, exchange, id, first, len) = input.arbitrary::<(bool, u8, u8, u8, u8)>()?;
            let content = input.bytes(usize::from(len).min(input.len()))?;
            pair.say(to_b, exchange, id, PayloadType(first), content);
        }
        op::PASS => pair.pass(
            Duration::from_millis(u64::from(input.arbitrary::<u16>()?)),
            true,
        ),
        op::WAIT => pair.pass(
            Duration::from_millis(u64::from(input.arbitrary::<u16>()?)),
            false,
        ),
        op::COMMAND => command(pair, input)?,
        op::TAKE_OVER => {
            let now = pair.now;
            let b = input.arbitrary()?;
            pair.end(b).take_over(now);
        }
        op::CRASH => {
            let (b, committed) = input.arbitrary::<(bool, bool)>()?;
            pair.end(b).crash = Some(if committed {
                Crash::BeforeEffects
            } else {
                Crash::BeforeCommit
            });
        }
        op::INITIATE => {
            let (b, first) = input.arbitrary()?;
            pair.initiate(b, first);
        }
        _ => network(pair, what, input)?,
    }
    Ok(())
}

/// Something happens to one of the messages on the wire.
fn on_the_wire(pair: &mut Pair, what: u8, input: &mut Unstructured<'_>) -> Result<()> {
    let which = usize::from(input.arbitrary::<u8>()?);
    if pair.wire.is_empty() {
        return Ok(());
    }
    let index = which % pair.wire.len();
    let mut packet: Packet = pair.wire[index].clone();
    match what {
        op::DELIVER => drop(pair.wire.remove(index)),
        op::DROP => {
            pair.wire.remove(index);
            return Ok(());
        }
        op::DUPLICATE => {}
        op::MUTATE => {
            let (at, change) = input.arbitrary::<(u16, u8)>()?;
            let at = usize::from(at) % packet.bytes.len();
            packet.bytes[at] ^= change;
        }
        op::TRUNCATE => {
            let len = usize::from(input.arbitrary::<u16>()?) % packet.bytes.len();
            packet.bytes.truncate(len);
            if let Some(length) = packet.bytes.get_mut(24..28) {
                length.copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
            }
        }
        op::REFLECT => {
            packet.to_b = !packet.to_b;
            (packet.from, packet.to) = (packet.to, packet.from);
        }
        _ => {
            // The header stays, and the rest is anything.
            let len = usize::from(input.arbitrary::<u8>()?).min(input.len());
            packet.bytes.truncate(28);
            packet.bytes.extend(input.bytes(len)?);
            let len = u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX);
            packet.bytes[24..28].copy_from_slice(&len.to_be_bytes());
        }
    }
    pair.deliver(&packet);
    Ok(())
}

fn command(pair: &mut Pair, input: &mut Unstructured<'_>) -> Result<()> {
    let (b, what, which) = input.arbitrary::<(bool, u8, u8)>()?;
    let children = pair
        .sa_of(b)
        .map(|sa| sa.record().children())
        .unwrap_or_default();
    let child = children
        .get(usize::from(which) % children.len().max(1))
        .map_or(0, |c| c.spi_in);
    let command = match what % 9 {
        _ if what == u8::MAX => Command::Reauthenticate,
        0 => Command::RekeyIke,
        1 => Command::RekeyChild(child),
        2 => Command::DeleteChild(child),
        3 => Command::CreateChild("net".to_owned()),
        4 => Command::CreateChild("other".to_owned()),
        5 => Command::Delete,
        6 => Command::Displace(Displaced::Told),
        7 => Command::Displace(Displaced::Forgotten),
        _ => Command::CreateChild("unknown".to_owned()),
    };
    pair.command(b, command);
    Ok(())
}

/// Addresses change.
fn network(pair: &mut Pair, what: u8, input: &mut Unstructured<'_>) -> Result<()> {
    let (b, which) = input.arbitrary::<(bool, u8)>()?;
    match what {
        op::ROAM => {
            let other = pair.end(!b).addresses.clone();
            let end = pair.end(b);
            let mut own = end.addresses.clone();
            let len = own.len();
            own.rotate_left(usize::from(which) % len);
            if which & 4 != 0 {
                own.truncate(1);
            }
            if which & 8 != 0 {
                own.clear();
            }
            let mut pairs: Vec<_> = own
                .iter()
                .flat_map(|x| other.iter().map(|y| (*x, *y)))
                .collect();
            let len = pairs.len().max(1);
            pairs.rotate_left(usize::from(which >> 4) % len);
            pair.input(b, Input::Roam(Ways { own, pairs }));
        }
        op::NAT => {
            // A NAT in front of this end, or another mapping of it, or none any more.
            let port = 1024 + u16::from(which);
            let nat = SocketAddr::from(([198, 51, 100, 1], port));
            pair.end(b).nat = (which != 0).then_some(nat);
        }
        _ => {
            let port = 1024 + u16::from(which);
            let from = if which == 0 {
                pair.end(!b).address
            } else {
                SocketAddr::from(([198, 51, 100, 1], port))
            };
            pair.input(b, Input::EspFrom(from, Transport::Udp));
        }
    }
    Ok(())
}
