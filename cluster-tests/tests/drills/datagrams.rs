//! Garbage, and real messages truncated at every length, from a stranger and
//! from the peer's own address: silence, and the tunnel goes on.

use evergate_cluster_tests::capture::packets;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::{Family::V4, Lab};
use evergate_cluster_tests::packet::{Body, IkeHeader};
use evergate_cluster_tests::raw::{Random, socket};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, secs, until};
use std::cell::Cell;
use std::net::UdpSocket;
use std::time::Duration;

const MARKER: [u8; 4] = [0; 4];

/// Who sends all this. The receiver's socket buffers have to hold, also while the machine stalls, and the flow beside is to get its turn.
struct Sender<'a> {
    socket: UdpSocket,
    lab: &'a Lab,
    sent: Cell<usize>,
}

impl Sender<'_> {
    fn send(&self, data: &[u8], port: u16) -> Result<()> {
        self.socket.send_to(data, (V4.outer(2).as_str(), port))?;
        std::thread::sleep(Duration::from_micros(150));
        self.sent.set(self.sent.get() + 1);
        if !self.sent.get().is_multiple_of(64) {
            return Ok(());
        }
        until(secs(60), "the gateway reads what it gets", || {
            Ok(unread(self.lab)? < 256 * 1024)
        })
    }
}

/// How many bytes wait in the gateway's UDP sockets.
fn unread(lab: &Lab) -> Result<u64> {
    let tables = lab.on("gw", || {
        let table = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        Ok([table("udp")?, table("udp6")?])
    })?;
    // The fifth word of a line: what waits to be sent, a colon, and what waits to be read.
    let waiting = |line: &str| {
        let (_, read) = line.split_whitespace().nth(4)?.split_once(':')?;
        u64::from_str_radix(read, 16).ok()
    };
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    Ok(lines.filter_map(waiting).sum())
}

/// `message` cut off at every length, and with its length field put right.
fn truncated(to: &Sender<'_>, message: &[u8]) -> Result<()> {
    for length in 0..message.len() {
        let mut cut = message[..length].to_vec();
        to.send(&cut, 500)?;
        to.send(&[&MARKER[..], &cut].concat(), 4500)?;
        if length >= 28 {
            cut[24..28].copy_from_slice(&u32::try_from(length)?.to_be_bytes());
            to.send(&cut, 500)?;
            to.send(&[&MARKER[..], &cut].concat(), 4500)?;
        }
    }
    Ok(())
}

/// `message` with each byte changed in turn, except the length.
fn changed(to: &Sender<'_>, message: &[u8]) -> Result<()> {
    for at in (0..message.len()).filter(|at| !(24..28).contains(at)) {
        let mut bad = message.to_vec();
        bad[at] ^= 1 << (at % 8);
        to.send(&[&MARKER[..], &bad].concat(), 4500)?;
    }
    Ok(())
}

fn garbage(to: &Sender<'_>, random: &mut Random) -> Result<()> {
    for length in 0..=2000 {
        let mut data = random.bytes(length);
        to.send(&data, 500)?;
        to.send(&data, 4500)?;
        // A plausible header, so that more than the first check is reached.
        if length >= 28 {
            data[8..16].fill(0);
            data[16..20].copy_from_slice(&[33, 0x20, 34, 0x08]);
            data[20..24].fill(0);
            data[24..28].copy_from_slice(&u32::try_from(length)?.to_be_bytes());
            to.send(&data, 500)?;
        }
    }
    Ok(())
}

/// What the peer has sent: a message of each exchange, and an ESP packet.
fn recorded(duo: &Duo) -> Result<(Vec<Vec<u8>>, Vec<u8>)> {
    let (mut messages, mut last) = (Vec::new(), None);
    until(secs(20), "something to begin with", || {
        let mut real = packets(&duo.capture.so_far()?);
        real.retain(|packet| packet.src.to_string() == V4.outer(1));
        let of_exchange = |exchange: u8| {
            real.iter().find_map(|packet| match &packet.body {
                Body::Ike(m) => IkeHeader::parse(m)
                    .filter(|h| h.exchange == exchange)
                    .map(|_| m.clone()),
                _ => None,
            })
        };
        messages = [34, 35, 36].into_iter().filter_map(of_exchange).collect();
        last = real.iter().rev().find_map(|packet| match &packet.body {
            Body::Esp { bytes, .. } => Some(bytes.clone()),
            _ => None,
        });
        Ok(messages.len() == 3 && last.is_some())
    })?;
    Ok((messages, last.unwrap_or_default()))
}

#[test]
fn of_every_length_change_nothing() -> Result<()> {
    let setup = Setup::new(V4);
    let mut duo = Duo::start(&setup)?;
    let stranger = duo.lab.add_peer(9)?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    duo.peer.rekey_child(C1)?;
    let spis = duo.agree_on(1, |now| now.child.is_disjoint(&first.child))?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    let (messages, esp) = recorded(&duo)?;
    let resident = duo.member.process()?.resident_kib()?;
    let logged = duo.member.log()?.len();
    let mut random = Random(7);
    let bind = format!("{}:0", V4.outer(1));
    let sockets = [
        socket(&duo.lab, &stranger, "0.0.0.0:0")?,
        socket(&duo.lab, "peer1", &bind)?,
    ];
    for socket in sockets {
        let to = Sender {
            socket,
            lab: &duo.lab,
            sent: Cell::new(0),
        };
        garbage(&to, &mut random)?;
        for message in &messages {
            truncated(&to, message)?;
            changed(&to, message)?;
        }
        for length in 0..=esp.len() {
            to.send(&esp[..length], 4500)?;
        }
    }
    assert_eq!(duo.agree(1)?, spis);
    flow.runs(50, secs(20))?;
    flow.stop().is_lossless()?;
    let grown = duo
        .member
        .process()?
        .resident_kib()?
        .saturating_sub(resident);
    assert!(grown < 64 * 1024, "{grown} KiB more for strangers");
    let logged = duo.member.log()?.len() - logged;
    assert!(logged < 256 * 1024, "{logged} bytes logged for strangers");
    // Others are still served, and the attacked SA still works.
    duo.member.rekey_child(C1)?;
    duo.agree(1)?;
    let Duo {
        peer,
        member,
        capture,
        mut lab,
        ..
    } = duo;
    drop((peer, member));
    // The peer's address sent forged messages too: only the member is judged.
    let hostile = [V4.outer(9).parse()?, V4.outer(1).parse()?];
    capture.check(&hostile)?.verdict()?;
    lab.passed();
    Ok(())
}
