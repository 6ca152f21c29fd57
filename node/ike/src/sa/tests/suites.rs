//! Every kind of cipher, pseudo-random function and key exchange, in every exchange.

use super::bench::Pair;
use crate::{
    record::Phase,
    sa::{Command, Event},
};
use std::time::Duration;

/// Both ends with these proposals.
pub(super) fn pair(ike: &str, esp: &str) -> Pair {
    let mut pair = Pair::with(
        |a| a.proposals = vec![ike.parse().unwrap()],
        |b| b.proposals = vec![ike.parse().unwrap()],
    );
    for end in [&mut pair.a, &mut pair.b] {
        end.policy.connections[0].children[0].esp_proposals = vec![esp.parse().unwrap()];
    }
    pair
}

/// Rekeys everything from both sides.
pub(super) fn rekey_everything(pair: &mut Pair) {
    for b in [false, true] {
        let spi = pair.end(b).children()[0].spi_in;
        pair.command(b, Command::RekeyChild(spi));
        pair.settle();
        pair.check_agreement();
        pair.command(b, Command::RekeyIke);
        pair.settle();
        pair.pass(Duration::from_secs(1));
        pair.check_agreement();
    }
    for end in [&pair.a, &pair.b] {
        let failed = |e: &&Event| matches!(e, Event::Failed { .. } | Event::Ignored { .. });
        assert_eq!(end.events.iter().find(failed), None);
        let rekeyed = |e: &&Event| matches!(e, Event::IkeRekeyed { .. });
        assert_eq!(end.events.iter().filter(rekeyed).count(), 2);
    }
}

#[test]
fn every_suite_can_do_everything() {
    for (ike, esp) in [
        ("aes128gcm8-prfsha256-ecp384", "aes128gcm8-ecp384"),
        ("aes192gcm12-prfsha512-ecp521", "aes192gcm12-ecp521"),
        ("aes256ccm16-prfsha384-x448", "aes256ccm16-x448"),
        ("aes128ccm8-prfaesxcbc-modp3072", "aes128ccm8-modp3072"),
        ("aes192ccm12-prfaescmac-x25519", "aes192ccm12"),
        ("aes128-sha256-x25519", "aes128-sha256-x25519-esn"),
        ("aes192-sha384-ecp256", "aes192-sha384"),
        ("aes256-sha512-x25519", "aes256-sha512"),
        ("aes256-sha1-x25519", "aes256-sha1"),
        ("aes256ctr-sha256-x25519", "aes128ctr-sha256"),
        ("aes128ctr-aesxcbc-x25519", "aes256ctr-aesxcbc"),
        ("aes128-aescmac-x25519", "aes128-aescmac"),
        (
            "chacha20poly1305-prfsha256-x25519",
            "chacha20poly1305iiv-esn",
        ),
        ("aes256gcm16-prfsha256-x25519", "aes256gcm16iiv"),
        ("aes256gcm16-prfsha256-x25519", "aes256ccm8iiv"),
        ("aes256gcm16-prfsha256-mlkem512", "aes256gcm16-mlkem1024"),
    ] {
        let mut pair = pair(ike, esp);
        pair.connect();
        rekey_everything(&mut pair);
        let Phase::Established(e) = &pair.a.established().phase else {
            panic!("not established")
        };
        let cipher = e.suite.cipher();
        assert_eq!(e.keys.ei.len(), cipher.material_len(), "{ike}");
        let child = &e.children[0];
        assert_eq!(child.key_in.len(), child.suite.cipher().material_len());
    }
}

/// The largest groups by themselves, because they take long.
#[test]
fn the_largest_modp_groups() {
    for group in ["modp4096", "modp6144", "modp8192"] {
        let mut pair = pair(&format!("aes256-sha256-{group}"), "aes256-sha256");
        pair.connect();
    }
}

/// Empty messages come out the same from whoever serves the SA, also where the IV is random (RFC 7296 §3.14).
#[test]
fn a_successor_repeats_empty_messages_byte_for_byte() {
    for suite in [
        "aes128-sha256-x25519",
        "aes256ctr-sha256-x25519",
        "aes256ccm8-prfsha256-x25519",
    ] {
        let mut pair = pair(suite, "aes256gcm16");
        pair.a.policy.connections[0].dpd_delay = Duration::from_secs(10);
        pair.connect();
        pair.b.lazy = false;
        pair.pass(Duration::from_secs(11));
        let mut sent = pair.sent.iter().rev();
        let answer = sent.next().cloned().unwrap();
        let request = sent.next().cloned().unwrap();
        assert!(answer.is_response() && request.to_b);
        let now = pair.now;
        pair.b.take_over(now);
        pair.deliver(&request);
        assert_eq!(pair.sent.last().unwrap().bytes, answer.bytes, "{suite}");
    }
}
