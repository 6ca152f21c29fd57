//! Many half-open IKE SAs: from the threshold on a cookie is demanded, and who
//! returns it gets in (RFC 7296 §2.6).

use anyhow::Context;
use evergate_cluster_tests::capture::{Capture, packets};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::packet::{Body, IkeHeader};
use evergate_cluster_tests::raw::{Random, socket};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::wire::{Exchange, Kind, different, sent, sent_just};
use evergate_cluster_tests::{Result, millis, secs, uninterrupted, until};

/// The first IKE_SA_INIT request that was sent, to send it again.
pub(crate) fn first_message(capture: &Capture) -> Result<Vec<u8>> {
    let mut first = None;
    until(secs(20), "an IKE_SA_INIT is captured", || {
        let mut frames = packets(&capture.so_far()?).into_iter();
        first = frames.find_map(|packet| match packet.body {
            Body::Ike(m)
                if IkeHeader::parse(&m).is_some_and(|h| h.exchange == 34 && !h.response) =>
            {
                Some(m)
            }
            _ => None,
        });
        Ok(first.is_some())
    })?;
    first.context("no IKE_SA_INIT")
}

/// A lab in which peer 1 was up once, a stranger in it, and the first message of the peer.
fn recorded() -> Result<(Duo, String, Vec<u8>)> {
    let mut setup = Setup::new(V4);
    setup.gateway.remote = "192.0.2.0/24".into();
    let mut duo = Duo::start(&setup)?;
    let stranger = duo.lab.add_peer(9)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    duo.peer.terminate(C1)?;
    let message = first_message(&duo.capture)?;
    Ok((duo, stranger, message))
}

/// Whether a response is nothing but a notify: a cookie.
fn is_cookie(response: &[u8]) -> bool {
    response.len() < 100
        && response.get(16) == Some(&41)
        && response.get(34..36) == Some(&[0x40, 6])
}

/// An address that begins one IKE SA after the other has to return cookies; nobody else has to.
#[test]
fn a_flood_from_one_address_costs_nobody_else_a_round_trip() -> Result<()> {
    let (duo, stranger, mut message) = recorded()?;
    let address = "192.0.2.100";
    duo.lab
        .ip(&stranger, &format!("addr add {address}/24 dev up0"))?;
    let socket = socket(&duo.lab, &stranger, &format!("{address}:0"))?;
    socket.set_read_timeout(Some(secs(20)))?;
    let (mut random, mut buffer) = (Random(9), [0; 2048]);
    let mut cookies = Vec::new();
    for _ in 0..12 {
        message[..8].copy_from_slice(&random.bytes(8));
        socket.send_to(&message, (V4.outer(2).as_str(), 500))?;
        let length = uninterrupted(|| socket.recv(&mut buffer))?;
        cookies.push(is_cookie(&buffer[..length]));
    }
    assert_eq!(cookies, [vec![false; 3], vec![true; 9]].concat());
    let before = count(&duo)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    first_messages(&duo, before + 1).context("the peer had to return a cookie")?;
    let Duo {
        peer,
        member,
        capture,
        mut lab,
        ..
    } = duo;
    drop((peer, member));
    capture.check(&[address.parse()?])?.verdict()?;
    lab.passed();
    Ok(())
}

#[test]
fn a_flood_of_first_messages_costs_the_peer_one_round_trip() -> Result<()> {
    let (duo, stranger, mut message) = recorded()?;
    let mut random = Random(8);
    // Each address stays below what one address may have.
    let mut hostile = Vec::new();
    for n in 100..110_u8 {
        let address = format!("192.0.2.{n}");
        duo.lab
            .ip(&stranger, &format!("addr add {address}/24 dev up0"))?;
        hostile.push(address.parse()?);
        let socket = socket(&duo.lab, &stranger, &format!("{address}:0"))?;
        for _ in 0..8 {
            message[..8].copy_from_slice(&random.bytes(8));
            socket.send_to(&message, (V4.outer(2).as_str(), 500))?;
            std::thread::sleep(millis(1));
        }
    }
    // Of each address three are taken without a cookie: just as many as there may be in all.
    until(secs(20), "the member is flooded", || {
        let status = duo.member.status()?;
        anyhow::ensure!(status["ike_half_open"].as_u64() >= Some(30), "{status}");
        Ok(true)
    })?;
    let before = count(&duo)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    first_messages(&duo, before + 2).context("a cookie was not demanded, or more than once")?;
    let Duo {
        peer,
        member,
        capture,
        mut lab,
        ..
    } = duo;
    drop((peer, member));
    capture.check(&hostile)?.verdict()?;
    lab.passed();
    Ok(())
}

/// How many different IKE_SA_INIT requests the peer has sent.
fn count(duo: &Duo) -> Result<usize> {
    let peer = V4.outer(1);
    let all = sent(&duo.capture, &peer, Exchange::SaInit, Kind::Request)?;
    Ok(different(&all))
}

/// There are so many of them.
fn first_messages(duo: &Duo, count: usize) -> Result<()> {
    let peer = V4.outer(1);
    sent_just(&duo.capture, &peer, Exchange::SaInit, Kind::Request, count)
}
