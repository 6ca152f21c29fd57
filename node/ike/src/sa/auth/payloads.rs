//! CERTREQ payloads (RFC 7296 §3.7).

use crate::{
    certificate::{KEY_HASH_LEN, encoding},
    config::{Connection, Policy, RemoteAuth},
    wire::Payload,
};

/// Authorities that we ask for in one message: IKE_SA_INIT has to fit into one datagram.
const MAX_AUTHORITIES: usize = 32;
/// Authorities that are looked at of what a peer asks for.
const MAX_REQUESTED: usize = 256;

/// The request for certificates that some authority of these connections' peers has issued; none if no peer signs.
pub(in crate::sa) fn certificate_request<'a>(
    policy: &Policy,
    connections: impl Iterator<Item = &'a Connection>,
) -> Option<Payload> {
    let mut names: Vec<[u8; KEY_HASH_LEN]> = Vec::new();
    let mut any = false;
    for connection in connections {
        let auth = &connection.auth;
        if !auth.send_certreq || auth.remote == RemoteAuth::Psk {
            continue;
        }
        any = true;
        for authority in auth.remote.anchors(policy) {
            if names.len() < MAX_AUTHORITIES && !names.contains(&authority.key_hash) {
                names.push(authority.key_hash);
            }
        }
    }
    any.then(|| Payload::CertReq {
        encoding: encoding::X509,
        data: names.concat(),
    })
}

/// The authorities that a peer asks for; `None` if it asks for no X.509 certificate at all.
pub(in crate::sa) fn requested_authorities(
    payloads: &[Payload],
) -> Option<Vec<[u8; KEY_HASH_LEN]>> {
    let mut asked = None;
    for payload in payloads {
        let Payload::CertReq { encoding, data } = payload else {
            continue;
        };
        if *encoding == encoding::X509 {
            let names = data.chunks_exact(KEY_HASH_LEN);
            let names = names.filter_map(|n| <[u8; KEY_HASH_LEN]>::try_from(n).ok());
            asked
                .get_or_insert_with(Vec::new)
                .extend(names.take(MAX_REQUESTED));
        }
    }
    asked
}
