//! Several requests of the peer under way at once (RFC 7296 §2.3).

use super::bench::{End, Packet, Pair};
use crate::sa::Command;

/// `a` makes a request of its own, which is not delivered, and makes the next one without waiting for its answer.
fn request(pair: &mut Pair) -> Packet {
    pair.command(false, Command::CreateChild("net".into()));
    let packet = pair.wire.pop_back().unwrap();
    forget_request(&mut pair.a);
    packet
}

/// An end makes its next request without waiting for the answer to this one.
pub(super) fn forget_request(end: &mut End) {
    let id = end.established().id;
    let sa = end.sas.get_mut(&id).unwrap();
    let mut record = sa.record().clone();
    assert!(!record.outbound.pending.is_empty());
    record.outbound.pending.clear();
    record.revision += 1;
    sa.adopt(record);
}

/// Delivers a request and yields the response.
fn response(pair: &mut Pair, request: &Packet) -> Option<Vec<u8>> {
    pair.deliver(request);
    pair.wire.pop_back().map(|p| p.bytes)
}

#[test]
fn requests_are_served_in_any_order_and_repeated_after_a_takeover() {
    let mut pair = Pair::with(|_| {}, |b| b.window_size = 4);
    pair.connect();
    let requests: Vec<Packet> = (0..4).map(|_| request(&mut pair)).collect();
    let third = response(&mut pair, &requests[2]).unwrap();
    let first = response(&mut pair, &requests[0]).unwrap();
    assert_eq!(pair.b.children().len(), 3);
    let now = pair.now;
    pair.b.take_over(now);
    // Byte for byte the same, and nothing happens twice.
    assert_eq!(response(&mut pair, &requests[2]), Some(third.clone()));
    assert_eq!(response(&mut pair, &requests[0]), Some(first.clone()));
    assert_eq!(pair.b.children().len(), 3);
    // The hole is still open.
    let second = response(&mut pair, &requests[1]).unwrap();
    let fourth = response(&mut pair, &requests[3]).unwrap();
    assert_eq!(pair.b.children().len(), 5);
    for (request, said) in requests.iter().zip([first, second, third, fourth]) {
        assert_eq!(response(&mut pair, request), Some(said));
    }
    assert_eq!(pair.b.children().len(), 5);
}

#[test]
fn without_a_wider_window_a_request_out_of_order_is_not_served() {
    let mut pair = Pair::new();
    pair.connect();
    let requests: Vec<Packet> = (0..2).map(|_| request(&mut pair)).collect();
    assert_eq!(response(&mut pair, &requests[1]), None);
    assert!(response(&mut pair, &requests[0]).is_some());
    assert!(response(&mut pair, &requests[1]).is_some());
    assert_eq!(pair.b.children().len(), 3);
}

#[test]
fn no_more_than_the_window_may_be_under_way() {
    let mut pair = Pair::with(|_| {}, |b| b.window_size = 2);
    pair.connect();
    let requests: Vec<Packet> = (0..4).map(|_| request(&mut pair)).collect();
    assert_eq!(response(&mut pair, &requests[2]), None);
    assert!(response(&mut pair, &requests[1]).is_some());
    // With this one the peer says that it has the answer to the one two before.
    assert!(response(&mut pair, &requests[3]).is_some());
    assert!(response(&mut pair, &requests[2]).is_some());
    assert_eq!(response(&mut pair, &requests[0]), None);
}

#[test]
fn a_rekeyed_ike_sa_begins_with_a_window_of_one() {
    let wide = |c: &mut crate::config::Connection| c.window_size = 4;
    let mut pair = Pair::with(wide, wide);
    pair.connect();
    assert_eq!(pair.b.established().inbound.size, 4);
    pair.command(true, Command::RekeyIke);
    pair.settle();
    assert_eq!(pair.b.established().inbound.size, 1);
    pair.check_agreement();
}
