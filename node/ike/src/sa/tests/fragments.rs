//! Messages that are too long for one datagram (RFC 7383).

use super::bench::{Packet, Pair};
use crate::{
    config::{Connection, Fragmentation},
    sa::{Command, Event},
    wire::{ExchangeType, Header, Message, PayloadType},
};
use std::{collections::BTreeMap, time::Duration};

/// The size of fragments here, and what is left of it for a message over IPv4.
const SIZE: u16 = 576;
const ROOM: usize = 576 - 20 - 8;

/// Makes IKE_AUTH and CREATE_CHILD_SA longer than a datagram may be.
fn long(c: &mut Connection) {
    c.fragment_size = SIZE;
    let n = if c.local_id == Some("a.test".parse().unwrap()) {
        [1, 2]
    } else {
        [2, 1]
    };
    let many = |n: u8| {
        let each = |i| format!("10.{n}.{i}.0/24").parse().unwrap();
        (0..60).map(each).collect::<Vec<_>>()
    };
    let child = &mut c.children[0];
    (child.local_ts, child.remote_ts) = (many(n[0]), many(n[1]));
}

fn long_pair() -> Pair {
    Pair::with(long, long)
}

/// Number and total, of a fragment.
fn place(packet: &Packet) -> Option<(u16, u16)> {
    Message::parse(&packet.bytes)
        .unwrap()
        .protected
        .and_then(|p| p.fragment)
}

fn header(packet: &Packet) -> Header {
    Header::parse(&packet.bytes).unwrap()
}

fn fragments(
    pair: &Pair,
    exchange: ExchangeType,
    is_response: bool,
) -> impl Iterator<Item = &Packet> {
    pair.sent.iter().filter(move |p| {
        p.exchange() == exchange && p.is_response() == is_response && place(p).is_some()
    })
}

#[test]
fn long_messages_go_in_fragments_both_ways() {
    let mut pair = long_pair();
    pair.connect();
    let spi = pair.b.children()[0].spi_in;
    pair.command(true, Command::RekeyChild(spi));
    pair.settle();
    pair.check_agreement();
    for exchange in [ExchangeType::IKE_AUTH, ExchangeType::CREATE_CHILD_SA] {
        for is_response in [false, true] {
            let places: Vec<_> = fragments(&pair, exchange, is_response).map(place).collect();
            assert!(places.len() > 3, "{exchange} {places:?}");
            let total = u16::try_from(places.len()).unwrap();
            let expected: Vec<_> = (1..=total).map(|n| Some((n, total))).collect();
            assert_eq!(places, expected);
        }
    }
    assert!(pair.sent.iter().all(|p| p.bytes.len() <= ROOM));
    // Only the first says what the payloads begin with (RFC 7383 §2.5).
    for packet in pair.sent.iter().filter(|p| place(p).is_some()) {
        let first = Message::parse(&packet.bytes)
            .unwrap()
            .protected
            .unwrap()
            .first;
        let is_first = place(packet).is_some_and(|(number, _)| number == 1);
        assert_eq!(first != PayloadType::NONE, is_first);
    }
}

#[test]
fn what_fits_goes_in_one_piece() {
    let mut pair = Pair::new();
    pair.connect();
    assert!(pair.sent.iter().all(|p| place(p).is_none()));
}

#[test]
fn nobody_fragments_unless_both_ends_want_it() {
    for (a, b) in [
        (Fragmentation::No, Fragmentation::Yes),
        (Fragmentation::Yes, Fragmentation::No),
        (Fragmentation::Accept, Fragmentation::Accept),
    ] {
        let change = |f| {
            move |c: &mut Connection| {
                long(c);
                c.fragmentation = f;
            }
        };
        let mut pair = Pair::with(change(a), change(b));
        pair.connect();
        assert!(pair.sent.iter().all(|p| place(p).is_none()), "{a:?} {b:?}");
    }
}

#[test]
fn who_only_accepts_them_gets_fragments_and_sends_none() {
    let mut pair = Pair::with(long, |c| {
        long(c);
        c.fragmentation = Fragmentation::Accept;
    });
    pair.connect();
    let auth = ExchangeType::IKE_AUTH;
    assert!(fragments(&pair, auth, false).count() > 3);
    assert_eq!(fragments(&pair, auth, true).count(), 0);
}

#[test]
fn fragments_may_come_in_any_order_and_twice() {
    let mut pair = long_pair();
    pair.start();
    while let Some(packet) = pair.wire.pop_front() {
        if place(&packet).is_none() {
            pair.deliver(&packet);
            continue;
        }
        let mut all = vec![packet];
        all.extend(pair.wire.drain(..));
        for packet in all.iter().rev().chain(&all) {
            pair.deliver(packet);
        }
        // The whole message was answered once, and once more for its repeated first fragment (RFC 7383 §2.6.1).
        let is_request = !all[0].is_response();
        let responses = pair
            .wire
            .iter()
            .filter(|p| place(p).is_some_and(|p| p.0 == 1));
        assert_eq!(responses.count(), if is_request { 2 } else { 0 });
    }
    pair.check_agreement();
    assert_eq!(pair.a.children().len(), 1);
}

/// Each datagram after IKE_SA_INIT may be lost once: everything is sent again, the same bytes.
#[test]
fn every_fragment_may_be_lost_once() {
    for lost in 2..16 {
        let mut pair = long_pair();
        pair.start();
        let mut n = 0;
        pair.settle_if(|_| {
            n += 1;
            n - 1 != lost
        });
        pair.pass(Duration::from_secs(20));
        pair.check_agreement();
        let mut seen: BTreeMap<_, &Packet> = BTreeMap::new();
        for packet in &pair.sent {
            let h = header(packet);
            let number = place(packet).map(|p| p.0);
            let key = (h.from_initiator, h.is_response, h.message_id, number);
            let first = seen.entry(key).or_insert(packet);
            assert_eq!(first.bytes, packet.bytes, "lost {lost}: {h:?} changed");
        }
    }
}

/// The end that answers, or asks, dies after each of its fragments; what its successor sends makes the message whole.
#[test]
fn a_successor_sends_the_same_fragments() {
    for (by_b, victim_is_b) in [(false, false), (false, true), (true, false), (true, true)] {
        for after in 0..8 {
            let mut pair = long_pair();
            pair.connect();
            let spi = pair.end(by_b).children()[0].spi_in;
            pair.command(by_b, Command::RekeyChild(spi));
            let mut n = 0;
            while let Some(packet) = pair.wire.pop_front() {
                if packet.to_b != victim_is_b {
                    n += 1;
                    if n > after {
                        pair.wire.retain(|p| p.to_b == victim_is_b);
                        let now = pair.now;
                        pair.end(victim_is_b).take_over(now);
                        break;
                    }
                }
                pair.deliver(&packet);
            }
            pair.settle();
            pair.pass(Duration::from_secs(60));
            pair.check_agreement();
            assert_eq!(pair.a.children().len(), 1);
            assert_ne!(pair.end(by_b).children()[0].spi_in, spi);
            let ups = |e: &&Event| matches!(e, Event::IkeEstablished { .. });
            assert_eq!(pair.a.events.iter().filter(ups).count(), 1);
        }
    }
}

#[test]
fn what_is_not_authentic_is_not_kept() {
    let mut pair = long_pair();
    pair.start();
    let init = pair.wire.pop_front().unwrap();
    pair.deliver(&init);
    let response = pair.wire.pop_front().unwrap();
    pair.deliver(&response);
    let fragments: Vec<Packet> = pair.wire.drain(..).collect();
    for packet in &fragments {
        let mut forged = packet.clone();
        *forged.bytes.last_mut().unwrap() ^= 1;
        pair.deliver(&forged);
        pair.deliver(packet);
    }
    pair.settle();
    pair.check_agreement();
}

#[test]
fn an_incomplete_message_is_given_up() {
    let mut pair = long_pair();
    pair.connect();
    let spi = pair.a.children()[0].spi_in;
    pair.command(false, Command::RekeyChild(spi));
    let first = pair.wire.pop_front().unwrap();
    pair.wire.clear();
    pair.deliver(&first);
    pair.a.dead = true;
    pair.pass(Duration::from_secs(600));
    let ignored = |p: &Pair| p.b.events.len();
    let before = ignored(&pair);
    // Its first fragment is new again: it is not taken for one that is there.
    pair.deliver(&first);
    assert_eq!(ignored(&pair), before);
    pair.deliver(&first);
    assert_eq!(ignored(&pair), before + 1);
}
