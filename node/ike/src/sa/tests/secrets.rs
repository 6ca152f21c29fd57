//! Whatever happens to an SA, its keys are wiped before their memory is given back.

use super::bench::{End, Pair};
use crate::{
    config::Connection,
    crypto::IkeKeys,
    memory::leaks,
    record::{Phase, Record},
    sa::Command,
};
use std::time::Duration;

fn keys_of(record: &Record) -> Vec<&IkeKeys> {
    match &record.phase {
        Phase::InitSent(_) => vec![],
        Phase::HalfOpen(h) => vec![&h.negotiated.keys],
        Phase::Intermediate(i) => vec![&i.negotiated.keys],
        Phase::AuthSent(a) => vec![&a.negotiated.keys],
        Phase::Established(e) => vec![&e.keys],
        Phase::Closed(c) => c.protection.iter().map(|(_, keys)| keys).collect(),
    }
}

/// All keys that an end has.
fn secrets(end: &End) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for record in end.sas.values().map(|sa| sa.record()) {
        for keys in keys_of(record) {
            let each = [&keys.d, &keys.ei, &keys.er, &keys.pi, &keys.pr];
            all.extend(each.map(|secret| secret.expose().to_vec()));
        }
        for child in record.children() {
            all.extend([&child.key_in, &child.key_out].map(|secret| secret.expose().to_vec()));
        }
    }
    all
}

/// A tunnel comes up, both ends rekey and are taken over, and it ends; `look` is called between.
fn course(change: impl Fn(&mut Connection) + Copy, mut look: impl FnMut(&Pair)) {
    let mut pair = Pair::with(change, change);
    pair.start();
    while let Some(packet) = pair.wire.pop_front() {
        pair.deliver(&packet);
        look(&pair);
    }
    for b in [false, true, false, true] {
        let child = pair.end(b).children()[0].spi_in;
        for command in [Command::RekeyChild(child), Command::RekeyIke] {
            pair.command(b, command);
            while let Some(packet) = pair.wire.pop_front() {
                pair.deliver(&packet);
                look(&pair);
            }
        }
        let now = pair.now;
        pair.end(b).take_over(now);
        pair.pass(Duration::from_secs(30));
        look(&pair);
    }
    pair.command(false, Command::Delete);
    pair.settle();
    pair.pass(Duration::from_secs(300));
}

fn wiped(change: impl Fn(&mut Connection) + Copy) {
    let mut known: Vec<Vec<u8>> = Vec::new();
    course(change, |pair| {
        known.extend(secrets(&pair.a));
        known.extend(secrets(&pair.b));
    });
    known.sort();
    known.dedup();
    assert!(known.len() >= 20, "few keys: {}", known.len());
    // Everything is a function of its inputs: the same keys again.
    let mut seen = 0;
    let left = leaks(&known, || {
        course(change, |pair| {
            seen += usize::from(!pair.a.sas.is_empty());
        });
    });
    assert!(seen > 0);
    assert_eq!(left, 0, "blocks with keys in them were given back");
}

#[test]
fn with_an_aead() {
    wiped(|_| {});
}

#[test]
fn with_cbc_and_a_hybrid_key_exchange_in_fragments() {
    wiped(|c| {
        c.proposals = vec!["aes256-sha384-x25519-ke1_mlkem768".parse().unwrap()];
        c.children[0].esp_proposals = vec!["aes256-sha256-x25519-ke1_mlkem768".parse().unwrap()];
        c.fragment_size = 576;
    });
}

#[test]
fn with_functions_made_of_aes() {
    wiped(|c| {
        c.proposals = vec!["aes128ctr-aesxcbc-prfaesxcbc-ecp256".parse().unwrap()];
        c.children[0].esp_proposals = vec!["aes128-aescmac".parse().unwrap()];
    });
}
