//! What a responder says of a certificate (RFC 6960): the answer comes over plain HTTP, so from anybody.

use crate::certificates::NOW;
use evergate_ike::certificate::{
    Certificate,
    ocsp::{Inquiry, NONCE_LEN},
};
use std::sync::OnceLock;

const NONCE: [u8; NONCE_LEN] = [7; NONCE_LEN];

/// All that the issuer and its responder ever signed. The keys are gone; `openssl ocsp` made them.
const SIGNED: [&[u8]; 5] = [
    include_bytes!("../trust/ocsp/good-ca.der"),
    include_bytes!("../trust/ocsp/good-ca-key.der"),
    include_bytes!("../trust/ocsp/good-responder.der"),
    include_bytes!("../trust/ocsp/revoked-ca.der"),
    include_bytes!("../trust/ocsp/revoked-responder.der"),
];

struct Known {
    inquiry: Inquiry,
    /// Whether it was revoked, and until when that counts.
    said: Vec<(bool, u64)>,
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let parse = |der: &[u8]| Certificate::parse(der).expect("a certificate");
        let peer = parse(include_bytes!("../trust/ocsp/peer.der"));
        let issuer = parse(include_bytes!("../trust/ocsp/issuer.der"));
        let inquiry = Inquiry::new(&peer, &issuer, vec![]).expect("they have keys");
        let said = SIGNED.map(|bytes| {
            let answer = inquiry.read(bytes, &NONCE, NOW);
            let answer = answer.expect("it is signed, and for now");
            (answer.revoked, answer.until.0)
        });
        assert_eq!(
            said.map(|(revoked, _)| revoked),
            [false, false, false, true, true]
        );
        Known {
            inquiry,
            said: said.to_vec(),
        }
    })
}

/// An answer.
///
/// # Panics
/// If one is relied on that nobody who may has signed.
pub fn ocsp(input: &[u8]) {
    let known = known();
    if let Ok(answer) = known.inquiry.read(input, &NONCE, NOW) {
        let said = (answer.revoked, answer.until.0);
        assert!(
            known.said.contains(&said),
            "an answer that nobody has signed"
        );
        assert_eq!(answer.id, known.inquiry.id);
    }
}
