//! CERTREQ payloads (RFC 7296 §3.7).

use crate::{
    certificate::{KEY_HASH_LEN, encoding},
    config::{Connection, Credential, Policy, Shown},
    wire::Payload,
};

/// Authorities that we ask for in one message: IKE_SA_INIT has to fit into one datagram.
const MAX_AUTHORITIES: usize = 32;
/// Authorities that are looked at of what a peer asks for.
const MAX_REQUESTED: usize = 256;

/// The requests for certificates that some authority of these connections' peers has issued, and for raw public keys (RFC 7670 §3); none if no
/// peer signs.
pub(in crate::sa) fn certificate_requests<'a>(
    policy: &Policy,
    connections: impl Iterator<Item = &'a Connection>,
) -> impl Iterator<Item = Payload> {
    let mut names: Vec<[u8; KEY_HASH_LEN]> = Vec::new();
    let (mut certificates, mut raw_keys) = (false, false);
    let asking = connections.filter(|c| c.auth.send_certreq);
    for remote in asking.flat_map(Connection::remote_auths) {
        certificates |= remote.takes_certificates(policy);
        raw_keys |= remote.takes_raw_keys();
        for authority in remote.anchors(policy) {
            if names.len() < MAX_AUTHORITIES && !names.contains(&authority.key_hash) {
                names.push(authority.key_hash);
            }
        }
    }
    let request = |encoding, data| Payload::CertReq { encoding, data };
    let certificates = certificates.then(|| request(encoding::X509, names.concat()));
    let raw_keys = raw_keys.then(|| request(encoding::RAW_KEY, Vec::new()));
    certificates.into_iter().chain(raw_keys)
}

/// What a peer's CERTREQ payloads ask for.
#[derive(Debug, Default)]
pub(in crate::sa) struct Requested {
    /// The authorities of X.509 certificates; `None` if it asks for no such certificate at all.
    authorities: Option<Vec<[u8; KEY_HASH_LEN]>>,
    /// A raw public key.
    raw_key: bool,
}

impl Requested {
    pub(in crate::sa) fn of(payloads: &[Payload]) -> Self {
        let mut requested = Self::default();
        for payload in payloads {
            let Payload::CertReq { encoding, data } = payload else {
                continue;
            };
            match *encoding {
                encoding::X509 => {
                    let names = data.chunks_exact(KEY_HASH_LEN);
                    let names = names.filter_map(|n| <[u8; KEY_HASH_LEN]>::try_from(n).ok());
                    let authorities = requested.authorities.get_or_insert_with(Vec::new);
                    authorities.extend(names.take(MAX_REQUESTED));
                }
                encoding::RAW_KEY => requested.raw_key = true,
                _ => {}
            }
        }
        requested
    }

    /// Whether this credential is one of those that it asks for most of all.
    pub(super) fn names(&self, credential: &Credential) -> bool {
        match (&credential.shown, &self.authorities) {
            (Shown::RawKey(_), _) => self.raw_key,
            (Shown::Chain(_), Some(asked)) => credential.issuers.iter().any(|i| asked.contains(i)),
            (Shown::Chain(_), None) => false,
        }
    }

    /// Whether it asks for credentials of this kind.
    pub(super) fn wants(&self, credential: &Credential) -> bool {
        match credential.shown {
            Shown::RawKey(_) => self.raw_key,
            Shown::Chain(_) => self.authorities.is_some(),
        }
    }
}
