//! Both ends at the same time (RFC 7296 §2.8.1, §2.8.2, §2.25).

use super::bench::Pair;
use crate::{
    record::Fate,
    sa::{Command, Event, Failure},
};
use std::time::Duration;

fn both(pair: &mut Pair, command: impl Fn(&mut Pair, bool) -> Command) {
    for b in [false, true] {
        let command = command(pair, b);
        pair.command(b, command);
    }
}

fn finish(mut pair: Pair, what: &str) {
    pair.settle();
    pair.pass(Duration::from_secs(30));
    pair.check_agreement();
    assert_eq!(pair.a.children().len(), 1, "{what}: {:?}", pair.a.events);
    assert!(
        pair.a
            .children()
            .iter()
            .chain(pair.b.children())
            .all(|c| c.fate == Fate::Live),
        "{what}"
    );
    pair.pass(Duration::from_secs(900));
    assert_eq!((pair.a.sas.len(), pair.b.sas.len()), (1, 1), "{what}");
}

#[test]
fn both_rekey_the_same_child() {
    for seed in 0..16 {
        let mut pair = Pair::new();
        pair.now.0 += seed;
        pair.connect();
        for _ in 0..seed {
            pair.command(false, Command::RekeyIke); // moves the random numbers on, so that either end's nonce is the lowest
            pair.settle();
        }
        both(&mut pair, |p, b| {
            Command::RekeyChild(p.end(b).children()[0].spi_in)
        });
        finish(pair, "child");
    }
}

#[test]
fn both_rekey_the_ike_sa() {
    for seed in 0..16 {
        let mut pair = Pair::new();
        pair.connect();
        for _ in 0..seed {
            pair.command(true, Command::RekeyIke);
            pair.settle();
        }
        both(&mut pair, |_, _| Command::RekeyIke);
        finish(pair, "ike");
    }
}

#[test]
fn one_rekeys_the_child_and_the_other_the_ike_sa() {
    let mut pair = Pair::new();
    pair.connect();
    both(&mut pair, |p, b| {
        if b {
            Command::RekeyIke
        } else {
            Command::RekeyChild(p.a.children()[0].spi_in)
        }
    });
    finish(pair, "both");
}

#[test]
fn one_rekeys_what_the_other_deletes() {
    let mut pair = Pair::new();
    pair.connect();
    both(&mut pair, |p, b| {
        let spi = p.end(b).children()[0].spi_in;
        if b {
            Command::DeleteChild(spi)
        } else {
            Command::RekeyChild(spi)
        }
    });
    pair.settle();
    pair.pass(Duration::from_secs(30));
    pair.check_agreement();
    assert!(pair.a.children().is_empty());
}

#[test]
fn both_delete_the_same_child() {
    let mut pair = Pair::new();
    pair.connect();
    both(&mut pair, |p, b| {
        Command::DeleteChild(p.end(b).children()[0].spi_in)
    });
    pair.settle();
    pair.check_agreement();
    assert!(pair.a.children().is_empty());
}

#[test]
fn both_delete_the_ike_sa() {
    let mut pair = Pair::new();
    pair.connect();
    both(&mut pair, |_, _| Command::Delete);
    pair.settle();
    pair.pass(Duration::from_secs(900));
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
}

/// Each message of a double rekey may be lost, once.
#[test]
fn collisions_with_loss() {
    for ike in [false, true] {
        for lost in 0..12 {
            let mut pair = Pair::new();
            pair.connect();
            both(&mut pair, |p, b| {
                if ike {
                    Command::RekeyIke
                } else {
                    Command::RekeyChild(p.end(b).children()[0].spi_in)
                }
            });
            let mut n = 0;
            pair.settle_if(|_| {
                n += 1;
                n - 1 != lost
            });
            finish(pair, &format!("ike {ike}, lost {lost}"));
        }
    }
}

/// What one end does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    CreateChild,
    RekeyChild,
    DeleteChild,
    RekeyIke,
    DeleteIke,
}

const ACTS: [Act; 5] = [
    Act::CreateChild,
    Act::RekeyChild,
    Act::DeleteChild,
    Act::RekeyIke,
    Act::DeleteIke,
];

impl Act {
    fn at(self, pair: &mut Pair, b: bool) {
        let spi = pair.end(b).children()[0].spi_in;
        let command = match self {
            Self::CreateChild => Command::CreateChild("net".into()),
            Self::RekeyChild => Command::RekeyChild(spi),
            Self::DeleteChild => Command::DeleteChild(spi),
            Self::RekeyIke => Command::RekeyIke,
            Self::DeleteIke => Command::Delete,
        };
        pair.command(b, command);
    }
}

/// How many Child SAs may be left when both ends have acted at the same time; `None` if the IKE SA is gone.
fn left(a: Act, b: Act) -> Option<&'static [usize]> {
    use Act::{CreateChild, DeleteChild, DeleteIke, RekeyChild, RekeyIke};
    match (a.min(b), a.max(b)) {
        (_, DeleteIke) => None,
        (CreateChild, CreateChild) => Some(&[3]),
        (CreateChild, RekeyChild) => Some(&[2]),
        (CreateChild, DeleteChild) => Some(&[1]),
        // A Child SA that comes while the IKE SA is being replaced is refused (RFC 7296 §2.25.2); whoever wanted it asks again, on the new one.
        (CreateChild, RekeyIke) => Some(&[2]),
        (RekeyChild, RekeyChild | RekeyIke) | (RekeyIke, RekeyIke) => Some(&[1]),
        (RekeyChild | DeleteChild, _) => Some(&[0]),
        (a, b) => unreachable!("{a:?} {b:?}"),
    }
}

/// Delivers everything, at each step to the end that the next bit of `order` names, if there is something for it.
fn deliver_in(pair: &mut Pair, mut order: u32) {
    while !pair.wire.is_empty() {
        let to_b = order & 1 == 1;
        order >>= 1;
        let at = pair.wire.iter().position(|p| p.to_b == to_b).unwrap_or(0);
        let packet = pair.wire.remove(at).unwrap();
        pair.deliver(&packet);
    }
}

/// Whatever both ends do at the same time, and in whatever order their messages arrive, they end up with the same (RFC 7296 §2.25).
#[test]
fn any_two_acts_in_any_order() {
    for a in ACTS {
        for b in ACTS {
            for order in 0..64 {
                let mut pair = Pair::new();
                pair.connect();
                a.at(&mut pair, false);
                b.at(&mut pair, true);
                deliver_in(&mut pair, order);
                pair.pass(Duration::from_secs(120));
                let what = format!("{a:?} {b:?} in order {order:06b}");
                let Some(children) = left(a, b) else {
                    pair.pass(Duration::from_secs(900));
                    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty(), "{what}");
                    continue;
                };
                pair.check_agreement();
                let found = pair.a.children();
                assert!(children.contains(&found.len()), "{what}: {}", found.len());
                assert!(found.iter().all(|c| c.fate == Fate::Live), "{what}");
            }
        }
    }
}

/// `a` makes a second child, and the response does not arrive before the peer's next request.
fn response_is_late(command: impl Fn(u32) -> Command, take_over: bool, expected: usize) {
    let mut pair = Pair::new();
    pair.connect();
    let first = pair.b.children()[0].spi_in;
    pair.command(false, Command::CreateChild("net".into()));
    let request = pair.wire.pop_front().unwrap();
    pair.deliver(&request);
    let response = pair.wire.pop_front().unwrap();
    let second = pair.b.children().iter().find(|c| c.spi_in != first);
    let second = second.expect("the second child").spi_in;
    pair.command(true, command(second));
    pair.settle();
    if take_over {
        let now = pair.now;
        pair.a.take_over(now);
    }
    pair.deliver(&response);
    pair.settle();
    pair.pass(Duration::from_secs(60));
    pair.check_agreement();
    assert_eq!(pair.a.children().len(), expected, "{:?}", pair.a.events);
}

#[test]
fn the_peer_rekeys_a_child_that_we_do_not_know_yet() {
    for take_over in [false, true] {
        response_is_late(Command::RekeyChild, take_over, 2);
    }
}

#[test]
fn the_peer_deletes_a_child_that_we_do_not_know_yet() {
    for take_over in [false, true] {
        response_is_late(Command::DeleteChild, take_over, 1);
    }
}

/// `a` wants something that `b` cannot do while it does something of its own that has not reached `a` yet.
fn refused_for_now(own: Command, wanted: impl Fn(u32) -> Command) -> Pair {
    let mut pair = Pair::new();
    pair.connect();
    let spi = pair.a.children()[0].spi_in;
    pair.command(true, own);
    let request = pair.wire.pop_front().unwrap();
    pair.command(false, wanted(spi));
    pair.settle();
    assert_eq!((pair.a.children().len(), pair.b.children().len()), (1, 1));
    assert_eq!(pair.a.children()[0].spi_in, spi);
    pair.deliver(&request);
    pair.settle();
    pair.pass(Duration::from_secs(10));
    pair.check_agreement();
    pair
}

#[test]
fn what_is_refused_for_now_is_asked_for_again() {
    let pair = refused_for_now(Command::RekeyIke, |_| Command::CreateChild("net".into()));
    assert_eq!(pair.a.children().len(), 2);

    let rekeyed = |e: &Event| {
        matches!(
            e,
            Event::ChildEstablished {
                replaces: Some(_),
                ..
            }
        )
    };
    let pair = refused_for_now(Command::RekeyIke, Command::RekeyChild);
    assert!(pair.a.events.iter().any(rekeyed), "{:?}", pair.a.events);

    let pair = refused_for_now(Command::CreateChild("net".into()), |_| Command::RekeyIke);
    let done = |e: &Event| matches!(e, Event::IkeRekeyed { .. });
    assert!(pair.a.events.iter().any(done), "{:?}", pair.a.events);
}

#[test]
fn what_is_refused_for_now_and_gone_then_is_given_up_with_a_word() {
    let mut pair = Pair::new();
    pair.connect();
    let spis = [&pair.a, &pair.b].map(|end| end.children()[0].spi_in);
    both(&mut pair, |_, b| match b {
        true => Command::DeleteChild(spis[1]),
        false => Command::RekeyChild(spis[0]),
    });
    pair.settle();
    pair.pass(Duration::from_secs(10));
    let told = |e: &Event| {
        matches!(
            e,
            Event::Failed {
                what: Failure::Command(_)
            }
        )
    };
    assert!(pair.a.events.iter().any(told), "{:?}", pair.a.events);
}

#[test]
fn what_the_peer_is_replacing_is_not_replaced_by_us_too() {
    let mut pair = Pair::new();
    pair.connect();
    let spis = [&pair.a, &pair.b].map(|end| end.children()[0].spi_in);
    pair.command(true, Command::RekeyChild(spis[1]));
    let request = pair.wire.pop_front().unwrap();
    pair.deliver(&request);
    pair.command(false, Command::RekeyChild(spis[0]));
    let told = |e: &Event| {
        matches!(
            e,
            Event::Failed {
                what: Failure::Command(_)
            }
        )
    };
    assert!(pair.a.events.iter().any(told), "{:?}", pair.a.events);
    finish(pair, "one rekey");
}
