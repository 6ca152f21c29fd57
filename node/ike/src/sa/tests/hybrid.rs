//! Additional key exchanges: IKE_INTERMEDIATE before IKE_AUTH, IKE_FOLLOWUP_KE after CREATE_CHILD_SA (RFC 9242, RFC 9370).

use super::{
    bench::{Packet, Pair},
    suites::{pair, rekey_everything},
    takeover::kill_everywhere_in,
};
use crate::{
    crypto::Group,
    record::Phase,
    sa::{Command, Event, Failure},
    wire::{ExchangeType, Header, NotifyType},
};
use std::{collections::BTreeSet, time::Duration};

const IKE: &str = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke3_x448";
const ESP: &str = "aes256gcm16-x25519-ke1_mlkem768-ke2_ecp256";

fn hybrid() -> Pair {
    pair(IKE, ESP)
}

/// How many messages there were, whether in one piece or in fragments.
fn count(pair: &Pair, exchange: ExchangeType) -> usize {
    let of = |p: &Packet| {
        let h = Header::parse(&p.bytes).unwrap();
        (h.initiator_spi, h.message_id, h.is_response, p.to_b)
    };
    let sent = pair.sent.iter().filter(|p| p.exchange() == exchange);
    sent.map(of).collect::<BTreeSet<_>>().len()
}

#[test]
fn additional_exchanges_come_before_authentication() {
    let mut pair = hybrid();
    pair.connect();
    assert_eq!(count(&pair, ExchangeType::IKE_INTERMEDIATE), 4);
    let mut ids: Vec<_> = pair
        .sent
        .iter()
        .filter(|p| p.to_b)
        .map(|p| Header::parse(&p.bytes).unwrap())
        .map(|h| (h.exchange, h.message_id))
        .collect();
    ids.dedup();
    assert_eq!(
        ids,
        [
            (ExchangeType::IKE_SA_INIT, 0),
            (ExchangeType::IKE_INTERMEDIATE, 1),
            (ExchangeType::IKE_INTERMEDIATE, 2),
            (ExchangeType::IKE_AUTH, 3),
        ]
    );
    let Phase::Established(e) = &pair.b.established().phase else {
        panic!("not established")
    };
    let methods: Vec<_> = e.suite.additional.methods().collect();
    assert_eq!(methods, [Group::MlKem768, Group::Curve448]);
}

#[test]
fn rekeys_have_them_too() {
    let mut pair = hybrid();
    pair.connect();
    rekey_everything(&mut pair);
    // Two for each rekey of both kinds from both sides, requests and responses.
    assert_eq!(count(&pair, ExchangeType::IKE_FOLLOWUP_KE), 2 * 2 * 2 * 2);
    pair.command(true, Command::CreateChild("net".into()));
    pair.settle();
    assert_eq!(pair.a.children().len(), 2);
    pair.check_agreement();
}

#[test]
fn ml_kem_may_stand_alone() {
    let mut pair = pair("aes256gcm16-prfsha384-mlkem768", "aes256gcm16-mlkem512");
    pair.connect();
    rekey_everything(&mut pair);
    assert_eq!(count(&pair, ExchangeType::IKE_INTERMEDIATE), 0);
    assert_eq!(count(&pair, ExchangeType::IKE_FOLLOWUP_KE), 0);
}

#[test]
fn what_is_optional_is_left_out_with_a_peer_that_has_none() {
    for (ours, theirs) in [
        ("x25519-ke1_mlkem768-ke1_none", "x25519"),
        ("x25519", "x25519-ke1_mlkem768-ke1_none"),
    ] {
        let proposal = |rest: &str| format!("aes256gcm16-prfsha384-{rest}").parse().unwrap();
        let mut pair = Pair::with(
            |a| a.proposals = vec![proposal(ours)],
            |b| b.proposals = vec![proposal(theirs)],
        );
        pair.connect();
        assert_eq!(count(&pair, ExchangeType::IKE_INTERMEDIATE), 0);
    }
}

#[test]
fn what_is_demanded_is_not_done_without() {
    for (ours, theirs) in [
        ("x25519-ke1_mlkem768", "x25519"),
        ("x25519", "x25519-ke1_mlkem768"),
        ("x25519-ke1_mlkem768", "x25519-ke1_mlkem1024"),
        // No method twice.
        ("x25519-ke1_x25519", "x25519-ke1_x25519"),
    ] {
        let proposal = |rest: &str| format!("aes256gcm16-prfsha384-{rest}").parse().unwrap();
        let mut pair = Pair::with(
            |a| a.proposals = vec![proposal(ours)],
            |b| b.proposals = vec![proposal(theirs)],
        );
        pair.start();
        pair.settle();
        assert!(pair.a.events.contains(&Event::Failed {
            what: Failure::PeerRefused(NotifyType::NO_PROPOSAL_CHOSEN)
        }));
    }
}

#[test]
fn every_message_may_be_lost_once() {
    let mut clean = hybrid();
    clean.connect();
    let spi = clean.a.children()[0].spi_in;
    clean.command(false, Command::RekeyChild(spi));
    clean.settle();
    for lost in 0..clean.sent.len() {
        let mut pair = hybrid();
        let mut n = 0;
        let mut pass = |_: &Packet| {
            n += 1;
            n - 1 != lost
        };
        pair.start();
        pair.settle_if(&mut pass);
        pair.pass(Duration::from_secs(5));
        let spi = pair.a.children()[0].spi_in;
        pair.command(false, Command::RekeyChild(spi));
        pair.settle_if(&mut pass);
        pair.pass(Duration::from_secs(5));
        pair.check_agreement();
        assert_eq!(pair.a.children().len(), 1, "lost {lost}");
    }
}

/// Either end is killed after each of its messages of the initial exchanges, whether it left or not, and another goes on.
#[test]
fn a_successor_goes_on_between_the_exchanges() {
    for victim_is_b in [false, true] {
        for after in 0..4 {
            for sent in [false, true] {
                let mut pair = hybrid();
                pair.start();
                let mut n = 0;
                while let Some(packet) = pair.wire.pop_front() {
                    if packet.to_b != victim_is_b {
                        n += 1;
                        if n > after {
                            if sent {
                                pair.deliver(&packet);
                            }
                            let now = pair.now;
                            pair.end(victim_is_b).take_over(now);
                            break;
                        }
                    }
                    pair.deliver(&packet);
                }
                pair.settle();
                pair.pass(Duration::from_secs(20));
                pair.check_agreement();
                let asked = pair
                    .sent
                    .iter()
                    .filter(|p| p.to_b && p.exchange() == ExchangeType::IKE_SA_INIT)
                    .map(|p| Header::parse(&p.bytes).unwrap().initiator_spi)
                    .collect::<BTreeSet<_>>();
                assert_eq!(asked.len(), 1, "nobody began anew");
            }
        }
    }
}

#[test]
fn a_successor_goes_on_in_the_middle_of_rekeys() {
    for b in [false, true] {
        kill_everywhere_in(
            hybrid,
            |p| {
                let spi = p.end(b).children()[0].spi_in;
                p.command(b, Command::RekeyChild(spi));
            },
            1,
        );
        kill_everywhere_in(hybrid, |p| p.command(b, Command::RekeyIke), 1);
    }
}

#[test]
fn both_ends_rekey_at_once() {
    for ike in [false, true] {
        let mut pair = hybrid();
        pair.connect();
        for b in [false, true] {
            let spi = pair.end(b).children()[0].spi_in;
            let command = if ike {
                Command::RekeyIke
            } else {
                Command::RekeyChild(spi)
            };
            pair.command(b, command);
        }
        pair.settle();
        pair.pass(Duration::from_secs(120));
        pair.check_agreement();
        assert_eq!(pair.a.children().len(), 1);
    }
}

#[test]
fn a_request_that_changes_on_its_way_is_nobodys() {
    let mut pair = hybrid();
    pair.start();
    for _ in 0..2 {
        let packet = pair.wire.pop_front().unwrap();
        pair.deliver(&packet);
    }
    let mut packet = pair.wire.pop_front().unwrap();
    assert_eq!(packet.exchange(), ExchangeType::IKE_INTERMEDIATE);
    let good = packet.clone();
    *packet.bytes.last_mut().unwrap() ^= 1;
    pair.deliver(&packet);
    assert!(pair.b.events.contains(&Event::Ignored {
        what: Failure::Integrity
    }));
    pair.deliver(&good);
    pair.settle();
    pair.check_agreement();
}

#[test]
fn a_link_that_nobody_knows_is_refused() {
    let mut pair = hybrid();
    pair.connect();
    let spi = pair.a.children()[0].spi_in;
    pair.command(false, Command::RekeyChild(spi));
    while let Some(packet) = pair.wire.pop_front() {
        if packet.exchange() == ExchangeType::IKE_FOLLOWUP_KE {
            // By now the responder has forgotten.
            pair.now = pair.now + Duration::from_secs(200);
        }
        pair.deliver(&packet);
    }
    assert!(pair.a.events.contains(&Event::Failed {
        what: Failure::PeerRefused(NotifyType::STATE_NOT_FOUND)
    }));
    assert_eq!(
        pair.a.children()[0].spi_in,
        spi,
        "the old one is still there"
    );
    pair.pass(Duration::from_secs(20));
    pair.command(false, Command::RekeyChild(spi));
    pair.settle();
    pair.check_agreement();
    assert_ne!(pair.a.children()[0].spi_in, spi);
}
