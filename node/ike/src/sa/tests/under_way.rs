//! Several requests of ours under way at once (RFC 7296 §2.3).

use super::bench::{End, Packet, Pair, TestRng};
use crate::{
    config::Connection,
    env::Entropy,
    record::{Fate, MAX_UNDER_WAY, Phase},
    sa::{Command, Event, pursue::OVERLAP},
    wire::ExchangeType,
};
use std::time::Duration;

/// A rekey of a Child SA with two key exchanges, one after the other.
const HYBRID: &str = "aes256gcm16-x25519-ke1_ecp256";

/// Two ends that let each other have four requests under way, with so many Child SAs.
fn wide(children: usize, change: impl Fn(&mut Connection)) -> Pair {
    let both = |c: &mut Connection| {
        c.window_size = 4;
        change(c);
    };
    with_children(Pair::with(both, both), children)
}

fn with_children(mut pair: Pair, children: usize) -> Pair {
    pair.connect();
    for _ in 1..children {
        pair.command(false, Command::CreateChild("net".into()));
        pair.settle();
    }
    assert_eq!(pair.a.children().len(), children);
    pair.sent.clear();
    pair
}

fn spis(end: &End) -> Vec<u32> {
    end.children().iter().map(|c| c.spi_in).collect()
}

/// An end begins to rekey these Child SAs; what it sends is not delivered.
fn rekey(pair: &mut Pair, b: bool, spis: &[u32]) -> Vec<Packet> {
    let before = pair.wire.len();
    for spi in spis {
        pair.command(b, Command::RekeyChild(*spi));
    }
    pair.wire.drain(before..).collect()
}

fn pending(end: &End) -> Vec<u32> {
    let pending = &end.established().outbound.pending;
    pending.iter().map(|p| p.id).collect()
}

/// Everything is delivered from now on, and comes to rest with so many Child SAs, none of which are those of before.
fn finish(pair: &mut Pair, before: &[u32]) {
    pair.settle();
    pair.pass(Duration::from_secs(60));
    pair.check_agreement();
    let now = spis(&pair.a);
    assert_eq!(now.len(), before.len(), "{:?}", pair.a.events);
    assert!(now.iter().all(|spi| !before.contains(spi)));
    let all = || pair.a.children().iter().chain(pair.b.children());
    assert!(all().all(|c| c.fate == Fate::Live));
    assert!(pending(&pair.a).is_empty() && pending(&pair.b).is_empty());
}

#[test]
fn child_sas_are_rekeyed_side_by_side_with_the_answers_in_any_order() {
    let mut pair = wide(4, |_| {});
    let before = spis(&pair.a);
    let requests = rekey(&mut pair, false, &before);
    assert_eq!(requests.len(), 4);
    for request in requests.iter().rev() {
        pair.deliver(request);
    }
    let mut answers: Vec<Packet> = pair.wire.drain(..).collect();
    assert!(answers.iter().all(|p| p.is_response() && !p.to_b));
    answers.swap(0, 2);
    for (answer, left) in answers.iter().zip([3, 2, 1, 0]) {
        pair.deliver(answer);
        let rekeys = |p: &&crate::record::PendingRequest| p.task.makes_child();
        let under_way = &pair.a.established().outbound.pending;
        assert_eq!(under_way.iter().filter(rekeys).count(), left);
    }
    finish(&mut pair, &before);
}

#[test]
fn no_more_are_under_way_than_the_peer_allows() {
    let mut pair = wide(6, |_| {});
    let before = spis(&pair.a);
    let requests = rekey(&mut pair, false, &before);
    assert_eq!(requests.len(), 4);
    // What is answered out of order makes no room: the peer keeps its answers for as long as the first may be repeated.
    pair.deliver(&requests[2]);
    pair.settle();
    assert_eq!(pending(&pair.a).len(), 3);
    pair.deliver(&requests[0]);
    let answer = pair.wire.pop_front().unwrap();
    pair.deliver(&answer);
    assert_eq!(pending(&pair.a).len(), 3, "one more, and only one");
    finish(&mut pair, &before);

    let generous = |c: &mut Connection| c.window_size = 200;
    let pair = with_children(Pair::with(|_| {}, generous), 1);
    assert_eq!(pair.a.established().outbound.size, MAX_UNDER_WAY);
    assert_eq!(pair.b.established().outbound.size, 1);
}

#[test]
fn a_peer_that_says_nothing_gets_one_request_at_a_time() {
    let mut pair = with_children(Pair::with(|c| c.window_size = 4, |_| {}), 3);
    let before = spis(&pair.a);
    assert_eq!(rekey(&mut pair, false, &before).len(), 1);
    finish(&mut pair, &before);
}

#[test]
fn liveness_is_checked_beside_a_rekey() {
    let mut pair = wide(2, |c| c.dpd_delay = Duration::from_secs(10));
    let before = spis(&pair.a);
    let lost = rekey(&mut pair, false, &before[..1]);
    pair.now.0 += 10_000;
    let now = pair.now;
    pair.wake(now);
    let is_check = |p: &&Packet| p.to_b && p.exchange() == ExchangeType::INFORMATIONAL;
    let check = pair.wire.iter().find(is_check).expect("no check").clone();
    assert_eq!(check.message_id(), lost[0].message_id() + 1);
    pair.deliver(&check);
    pair.settle();
    assert!(pending(&pair.a).is_empty());
}

#[test]
fn replacing_the_ike_sa_waits_until_all_else_is_done_and_holds_back_the_rest() {
    let mut pair = wide(3, |_| {});
    let before = spis(&pair.a);
    let requests = rekey(&mut pair, false, &before[..2]);
    pair.command(false, Command::RekeyIke);
    pair.command(false, Command::RekeyChild(before[2]));
    assert!(pair.wire.is_empty(), "it is for itself");
    pair.deliver(&requests[1]);
    pair.settle();
    assert_eq!(pending(&pair.a), [requests[0].message_id()]);
    pair.deliver(&requests[0]);
    pair.settle();
    pair.pass(Duration::from_secs(60));
    let rekeyed = |e: &&Event| matches!(e, Event::IkeRekeyed { .. });
    assert_eq!(pair.a.events.iter().filter(rekeyed).count(), 1);
    pair.check_agreement();
    assert_eq!(pair.a.children().len(), 3);
}

#[test]
fn two_exchanges_do_not_meet_at_one_child_sa() {
    let mut pair = wide(2, |_| {});
    let before = spis(&pair.a);
    let requests = rekey(&mut pair, false, &before[..1]);
    pair.command(false, Command::DeleteChild(before[0]));
    assert!(pair.wire.is_empty(), "it is being replaced");
    pair.deliver(&requests[0]);
    pair.settle();
    pair.pass(Duration::from_secs(60));
    pair.check_agreement();
    assert_eq!(pair.a.children().len(), 2);
}

// ---- takeovers ----

/// The later of two requests was answered, and that was committed or not; then a successor goes on.
#[test]
fn a_successor_repeats_what_is_not_answered() {
    for committed in [true, false] {
        let mut pair = wide(3, |_| {});
        let before = spis(&pair.a);
        let requests = rekey(&mut pair, false, &before[..2]);
        pair.deliver(&requests[1]);
        let answer = pair.wire.pop_back().unwrap();
        if committed {
            pair.deliver(&answer);
            pair.now = pair.now + OVERLAP;
            pair.wake(pair.now);
            let is_delete = |p: &&Packet| p.exchange() == ExchangeType::INFORMATIONAL;
            assert!(pair.wire.iter().any(|p| is_delete(&p)));
            pair.wire.clear(); // the Delete of the replaced one is lost as well
        }
        let before_takeover = pair.sent.len();
        let now = pair.now;
        pair.a.take_over(now);
        pair.wake(now);
        let sent: Vec<Packet> = pair.sent[before_takeover..].to_vec();
        let again = |request: &Packet| sent.iter().any(|p| p.bytes == request.bytes);
        assert!(again(&requests[0]), "the same bytes");
        assert_eq!(again(&requests[1]), !committed);
        pair.settle();
        pair.pass(Duration::from_secs(60));
        pair.check_agreement();
        let now = spis(&pair.a);
        assert_eq!(now.len(), 3);
        assert!(!now.contains(&before[0]) && !now.contains(&before[1]));
        rekey_all(&mut pair);
    }
}

/// Everything still works.
fn rekey_all(pair: &mut Pair) {
    for b in [false, true] {
        let before = spis(&pair.a);
        let ours = spis(pair.end(b));
        for spi in ours {
            pair.command(b, Command::RekeyChild(spi));
        }
        finish(pair, &before);
    }
}

/// An empty request that nobody knows of was answered beside one that is known.
#[test]
fn a_successor_finds_the_message_id_of_a_check_that_nobody_knows_of() {
    for answered in [false, true] {
        for hybrid in [false, true] {
            let check = |c: &mut Connection| c.dpd_delay = Duration::from_secs(10);
            let mut pair = match hybrid {
                false => wide(2, check),
                true => hybrid_pair(2, check),
            };
            pair.pass(Duration::from_secs(60));
            pair.a.lazy = false;
            let before = spis(&pair.a);
            let lost = rekey(&mut pair, false, &before[..1]);
            let id = lost[0].message_id();
            let at = pair.now + Duration::from_secs(12);
            pair.now = at;
            pair.wake(at);
            let checks = pair.wire.iter().filter(|p| p.message_id() == id + 1);
            let checks: Vec<Packet> = checks.cloned().collect();
            assert!(!checks.is_empty(), "no check beside the rekey");
            pair.wire.clear();
            if answered {
                pair.deliver(&checks[0]);
                pair.settle();
            }
            pair.a.take_over(at);
            // The answer to what its predecessor sent is the first that the successor sees.
            pair.deliver(&lost[0]);
            pair.a.lazy = true;
            finish_some(&mut pair, &before[..1]);
            rekey_all(&mut pair);
        }
    }
}

fn finish_some(pair: &mut Pair, gone: &[u32]) {
    pair.settle();
    pair.pass(Duration::from_secs(60));
    pair.check_agreement();
    let now = spis(&pair.a);
    assert!(
        now.iter().all(|spi| !gone.contains(spi)),
        "{:?}",
        pair.a.events
    );
}

/// The same with two key exchanges in each rekey.
fn hybrid_pair(children: usize, change: impl Fn(&mut Connection)) -> Pair {
    let both = |c: &mut Connection| {
        c.window_size = 4;
        c.children[0].esp_proposals = vec![HYBRID.parse().unwrap()];
        change(c);
    };
    with_children(Pair::with(both, both), children)
}

/// What an answer leads to needs room in the window; until then it is as if it had not come.
#[test]
fn an_answer_that_leads_to_another_exchange_waits_for_room() {
    for killed in [false, true] {
        let mut pair = hybrid_pair(4, |_| {});
        let before = spis(&pair.a);
        let requests = rekey(&mut pair, false, &before);
        for request in &requests[1..] {
            pair.deliver(request);
        }
        pair.settle();
        assert_eq!(pending(&pair.a).len(), 4, "none of them goes on");
        if killed {
            let now = pair.now;
            pair.a.take_over(now);
            pair.wake(now);
        } else {
            pair.deliver(&requests[0]);
        }
        finish(&mut pair, &before);
        rekey_all(&mut pair);
    }
}

#[test]
fn a_responder_keeps_no_more_unfinished_exchanges_than_the_window_has() {
    let mut pair = hybrid_pair(4, |_| {});
    let before = spis(&pair.a);
    let requests = rekey(&mut pair, false, &before);
    for request in &requests {
        pair.deliver(request);
    }
    let waiting = |pair: &Pair| match &pair.b.established().phase {
        Phase::Established(e) => e.follow_ups.len(),
        _ => unreachable!(),
    };
    assert_eq!(waiting(&pair), 4);
    finish(&mut pair, &before);
    assert_eq!(waiting(&pair), 0);
}

// ---- collisions, loss ----

#[test]
fn both_ends_rekey_everything_at_once() {
    for (seed, window_b) in (0..12).zip([4, 1].into_iter().cycle()) {
        let a = |c: &mut Connection| c.window_size = 4;
        let mut pair = Pair::with(a, |c| c.window_size = window_b);
        pair.now.0 += seed;
        let mut pair = with_children(pair, 3);
        for _ in 0..seed {
            pair.command(false, Command::RekeyIke);
            pair.settle();
        }
        let before = spis(&pair.a);
        for b in [false, true] {
            for spi in spis(pair.end(b)) {
                pair.command(b, Command::RekeyChild(spi));
            }
        }
        finish(&mut pair, &before);
    }
}

#[test]
fn the_peer_cannot_replace_the_ike_sa_under_several_requests() {
    let mut pair = wide(3, |_| {});
    let before = spis(&pair.a);
    let requests = rekey(&mut pair, false, &before);
    pair.command(true, Command::RekeyIke);
    pair.settle();
    let rekeyed = |e: &Event| matches!(e, Event::IkeRekeyed { .. });
    assert!(!pair.b.events.iter().any(rekeyed), "it is refused for now");
    for request in &requests {
        pair.deliver(request);
    }
    finish(&mut pair, &before);
}

/// An IKE SA that came of a rekey begins with a window of one; with the first exchange about a Child SA both ends say what they take.
#[test]
fn after_a_rekey_of_the_ike_sa_the_windows_open_again() {
    let mut pair = wide(3, |_| {});
    pair.command(true, Command::RekeyIke);
    pair.settle();
    let sizes = |pair: &Pair| {
        let of = |end: &End| {
            let record = end.established();
            (record.inbound.size, record.outbound.size)
        };
        (of(&pair.a), of(&pair.b))
    };
    assert_eq!(sizes(&pair), ((1, 1), (1, 1)));
    let before = spis(&pair.a);
    assert_eq!(rekey(&mut pair, false, &before[..1]).len(), 1);
    pair.pass(Duration::from_secs(10));
    assert_eq!(sizes(&pair), ((4, 4), (4, 4)));
    let before = spis(&pair.a);
    assert_eq!(rekey(&mut pair, false, &before).len(), 3);
    finish(&mut pair, &before);
}

/// Whatever happens in whatever order to either end: in the end both agree, with as many Child SAs as there were.
#[test]
fn anything_in_any_order() {
    for (seed, window) in (1..=150_u64).zip([1, 2, 4].into_iter().cycle()) {
        let both = |c: &mut Connection| {
            c.window_size = window;
            match seed / 3 % 2 {
                0 => c.children[0].esp_proposals = vec![HYBRID.parse().unwrap()],
                _ => c.dpd_delay = Duration::from_secs(seed % 4 * 5),
            }
        };
        let mut pair = with_children(Pair::with(both, both), 3);
        let mut rng = TestRng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..60 {
            at_random(&mut pair, &mut rng);
        }
        pair.settle();
        pair.pass(Duration::from_secs(300));
        pair.check_agreement();
        let (a, b) = (&pair.a, &pair.b);
        let context = format!("seed {seed}: {:?}\n{:?}", a.events, b.events);
        assert_eq!(a.children().len(), 3, "{context}");
        assert!(pending(a).is_empty() && pending(b).is_empty(), "{context}");
    }
}

fn at_random(pair: &mut Pair, rng: &mut TestRng) {
    let b = rng.next_u32() % 2 == 1;
    let n = usize::try_from(rng.next_u32() % 1000).unwrap();
    match rng.next_u32() % 16 {
        0..=3 => {
            let ours = spis(pair.end(b));
            pair.command(b, Command::RekeyChild(ours[n % ours.len()]));
        }
        4 => pair.command(b, Command::RekeyIke),
        5 if n < 300 => {
            let now = pair.now;
            pair.end(b).take_over(now);
        }
        6 => {
            pair.wire.remove(n % pair.wire.len().max(1));
        }
        7 => {
            pair.now.0 += 700;
            let now = pair.now;
            pair.wake(now);
        }
        _ => {
            if let Some(packet) = pair.wire.remove(n % pair.wire.len().max(1)) {
                pair.deliver(&packet);
                if n % 7 == 0 {
                    pair.wire.push_back(packet); // it comes twice
                }
            }
        }
    }
}
