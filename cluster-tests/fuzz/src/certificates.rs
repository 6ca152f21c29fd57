//! Certificates, signatures and lists of revoked certificates, as a peer or a server sends them.

use crate::configuration::policy;
use arbitrary::Unstructured;
use evergate_ike::{
    certificate::{Certificate, Crl, Evidence, Known, Verification},
    config::Policy,
    env::UnixMillis,
    identity::Identity,
    signature::Signed,
    wire::AuthMethod,
};
use std::{path::Path, sync::OnceLock};

/// What AUTH is over.
pub(crate) const OCTETS: &[u8] = b"octets of RFC 7296, section 2.15";

/// Who the peer says it is.
pub(crate) const NAME: &str = "peer.test";

/// The present: 2027.
pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// What a part of the input is.
pub(crate) mod part {
    pub(crate) const CERTIFICATE: u8 = 0;
    pub(crate) const CRL: u8 = 1;
    pub(crate) const AUTH: u8 = 2;
}

/// Parts, each a byte that says what it is, one that is the encoding of a CERT payload or an authentication method, two that are
/// its length, and the rest.
///
/// # Panics
/// If a peer is accepted that has not the certificate of the corpus.
pub fn certificates(input: &[u8]) {
    let mut rest = Unstructured::new(input);
    let (mut sent, mut crls, mut signed) = (Vec::new(), Vec::new(), None);
    while let Some((kind, detail, bytes)) = next(&mut rest) {
        match kind % 3 {
            part::CERTIFICATE => {
                if let Ok(certificate) = Certificate::parse(bytes) {
                    look(&certificate);
                }
                sent.push((detail, bytes));
            }
            part::CRL => crls.extend(Crl::parse(bytes)),
            _ => signed = Signed::parse(AuthMethod(detail), bytes).ok().or(signed),
        }
    }
    let Ok(evidence) = Evidence::collect(sent.into_iter()) else {
        return;
    };
    let Some(signed) = signed else { return };
    let crls: Vec<&Crl> = crls.iter().take(16).collect();
    for connection in ["strict", "ifuri", "relaxed"] {
        let question = Verification {
            id: NAME.parse::<Identity>().expect("a name"),
            evidence: evidence.clone(),
            signed: signed.clone(),
            octets: OCTETS.to_vec(),
            candidates: vec![connection.to_owned()],
            round: 0,
        };
        let known = Known {
            crls: &crls,
            answers: &[],
        };
        for known in [None, Some(known)] {
            if let Ok(verified) = question.run(trust(), NOW, known) {
                assert_eq!(verified.connection, connection);
                let certificate = verified.certificate.as_ref();
                assert!(certificate.is_some_and(|c| c.not_after >= NOW));
                let _ = question.sources(&verified, trust());
            }
        }
    }
}

fn next<'a>(rest: &mut Unstructured<'a>) -> Option<(u8, u8, &'a [u8])> {
    if rest.is_empty() {
        return None;
    }
    let (kind, detail, high, low) = rest.arbitrary::<(u8, u8, u8, u8)>().ok()?;
    let len = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
    Some((kind, detail, rest.bytes(len).ok()?))
}

/// What is done with a certificate besides verifying it.
fn look(certificate: &Certificate) {
    let _ = (certificate.key_hash(), certificate.is_self_issued());
    for id in certificate
        .names
        .iter()
        .cloned()
        .chain(certificate.subject_id())
    {
        let text = id.to_string();
        let _ = text.parse::<Identity>();
    }
}

fn trust() -> &'static Policy {
    static TRUST: OnceLock<Policy> = OnceLock::new();
    TRUST.get_or_init(|| {
        let connection = |revocation| {
            format!("[connections.{revocation}]\nremote = {{ auth = 'pubkey', revocation = '{revocation}' }}\n")
        };
        let text = ["strict", "ifuri", "relaxed"].map(connection).concat();
        let text = format!("{text}[authorities.root]\ncacert = 'root.der'\n");
        policy(&text, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/trust")))
    })
}
