//! Garbage, and real messages truncated at every length, from a stranger and
//! from the peer's own address: silence, and the tunnel goes on.

use evergate_cluster_tests::capture::packets;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::packet::{Body, IkeHeader};
use evergate_cluster_tests::raw::{Random, socket};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, secs};
use std::net::UdpSocket;
use std::time::Duration;

const MARKER: [u8; 4] = [0; 4];

/// So that the receiver's socket buffer holds, and the flow beside gets its turn.
fn send(socket: &UdpSocket, data: &[u8], port: u16) -> Result<()> {
    socket.send_to(data, (V4.outer(2).as_str(), port))?;
    std::thread::sleep(Duration::from_micros(150));
    Ok(())
}

/// `message` cut off at every length, and with its length field put right.
fn truncated(socket: &UdpSocket, message: &[u8]) -> Result<()> {
    for length in 0..message.len() {
        let mut cut = message[..length].to_vec();
        send(socket, &cut, 500)?;
        send(socket, &[&MARKER[..], &cut].concat(), 4500)?;
        if length >= 28 {
            cut[24..28].copy_from_slice(&u32::try_from(length)?.to_be_bytes());
            send(socket, &cut, 500)?;
            send(socket, &[&MARKER[..], &cut].concat(), 4500)?;
        }
    }
    Ok(())
}

/// `message` with each byte changed in turn, except the length.
fn changed(socket: &UdpSocket, message: &[u8]) -> Result<()> {
    for at in (0..message.len()).filter(|at| !(24..28).contains(at)) {
        let mut bad = message.to_vec();
        bad[at] ^= 1 << (at % 8);
        send(socket, &[&MARKER[..], &bad].concat(), 4500)?;
    }
    Ok(())
}

fn garbage(socket: &UdpSocket, random: &mut Random) -> Result<()> {
    for length in 0..=2000 {
        let mut data = random.bytes(length);
        send(socket, &data, 500)?;
        send(socket, &data, 4500)?;
        // A plausible header, so that more than the first check is reached.
        if length >= 28 {
            data[8..16].fill(0);
            data[16..20].copy_from_slice(&[33, 0x20, 34, 0x08]);
            data[20..24].fill(0);
            data[24..28].copy_from_slice(&u32::try_from(length)?.to_be_bytes());
            send(socket, &data, 500)?;
        }
    }
    Ok(())
}

#[test]
fn of_every_length_change_nothing() -> Result<()> {
    let setup = Setup::new(V4);
    let mut duo = Duo::start(&setup)?;
    let stranger = duo.lab.add_peer(9)?;
    duo.peer.initiate(C1, C1)?;
    duo.peer.rekey_child(C1)?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(5))?;
    let spis = duo.agree(1)?;
    let real = packets(&duo.capture.so_far()?);
    let sent_by_peer = |exchange: u8| {
        real.iter().find_map(|packet| match &packet.body {
            Body::Ike(m) if packet.src.to_string() == V4.outer(1) => IkeHeader::parse(m)
                .filter(|h| h.exchange == exchange)
                .map(|_| m.clone()),
            _ => None,
        })
    };
    let messages: Vec<Vec<u8>> = [34, 35, 36].into_iter().filter_map(sent_by_peer).collect();
    assert_eq!(messages.len(), 3, "no messages to begin with");
    let esp = real.iter().rev().find_map(|packet| match &packet.body {
        Body::Esp { bytes, .. } if packet.src.to_string() == V4.outer(1) => Some(bytes.clone()),
        _ => None,
    });
    let resident = duo.member.process()?.resident_kib()?;
    let logged = duo.member.log()?.len();
    let mut random = Random(7);
    let bind = format!("{}:0", V4.outer(1));
    let sockets = [
        socket(&duo.lab, &stranger, "0.0.0.0:0")?,
        socket(&duo.lab, "peer1", &bind)?,
    ];
    for socket in &sockets {
        garbage(socket, &mut random)?;
        for message in &messages {
            truncated(socket, message)?;
            changed(socket, message)?;
        }
        let esp = esp.as_deref().unwrap_or_default();
        for length in 0..=esp.len() {
            send(socket, &esp[..length], 4500)?;
        }
    }
    assert_eq!(duo.agree(1)?, spis);
    flow.runs(50, secs(5))?;
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
