//! Several addresses of a peer are tried in turn.

use super::bench::Pair;
use crate::{
    record::Phase,
    sa::{Event, Failure},
};
use std::{net::IpAddr, time::Duration};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tried(pair: &Pair) -> Vec<(IpAddr, Failure)> {
    let of = |e: &Event| match e {
        Event::NextAddress { to, why, .. } => Some((*to, why.clone())),
        _ => None,
    };
    pair.a.events.iter().filter_map(of).collect()
}

#[test]
fn the_next_address_is_tried_when_one_is_silent() {
    let mut pair = Pair::new();
    let ours = ip("192.0.2.1");
    let dead = ["192.0.2.66", "192.0.2.67"].map(|a| (ours, ip(a)));
    pair.start_with(&[dead[0], dead[1], (ours, ip("192.0.2.2"))]);
    pair.settle();
    pair.pass(Duration::from_secs(40));
    pair.check_agreement();
    let expected = [ip("192.0.2.67"), ip("192.0.2.2")].map(|a| (a, Failure::Silent));
    assert_eq!(tried(&pair), expected);
    assert_eq!(pair.a.established().path.remote.ip(), ip("192.0.2.2"));
}

#[test]
fn the_last_address_is_asked_as_often_as_any() {
    let mut pair = Pair::new();
    let ours = ip("192.0.2.1");
    pair.start_with(&[(ours, ip("192.0.2.66")), (ours, ip("192.0.2.67"))]);
    pair.wire.clear();
    pair.sent.clear();
    pair.pass(Duration::from_secs(600));
    // Three times at the first, and the whole sequence at the second.
    let tries = pair.a.policy.retransmit.tries as usize;
    let counts = [66, 67].map(|n| pair.sent_to(IpAddr::from([192, 0, 2, n])));
    assert_eq!(counts, [3, 1 + tries]);
    let silent = Event::Failed {
        what: Failure::Silent,
    };
    assert!(pair.a.events.contains(&silent));
    assert!(pair.a.sas.is_empty(), "it is forgotten");
}

#[test]
fn a_successor_goes_on_with_the_addresses_that_are_left() {
    let mut pair = Pair::new();
    let ours = ip("192.0.2.1");
    let dead = ["192.0.2.66", "192.0.2.67"].map(|a| (ours, ip(a)));
    pair.start_with(&[dead[0], dead[1], (ours, ip("192.0.2.2"))]);
    pair.settle();
    pair.pass(Duration::from_secs(13));
    let now = pair.now;
    pair.a.take_over(now);
    let others = pair.a.sas.values().next().map(|sa| &sa.record().phase);
    assert!(matches!(others, Some(Phase::InitSent(i)) if i.others.len() == 1));
    pair.pass(Duration::from_secs(40));
    pair.check_agreement();
}

#[test]
fn a_refusal_leads_to_the_next_address_too() {
    let mut pair = Pair::with(
        |_| {},
        |b| b.local_addrs = vec!["192.0.2.2/32".parse().unwrap()],
    );
    let ours = ip("192.0.2.1");
    // At its other address the same peer has no connection for us.
    pair.b.addresses = vec![ip("192.0.2.22")];
    pair.start_with(&[(ours, ip("192.0.2.22")), (ours, ip("192.0.2.2"))]);
    pair.settle();
    pair.pass(Duration::from_secs(10));
    pair.check_agreement();
    assert!(matches!(tried(&pair)[..], [(_, Failure::PeerRefused(_))]));
}
