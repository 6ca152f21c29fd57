//! Proposals: strongSwan's keyword syntax, offering, and choosing (RFC 7296 §2.7, §3.3).

mod keywords;
mod negotiation;
#[cfg(test)]
mod tests;

use crate::crypto::{Encryption, Group, Prf};
use serde::{Deserialize, Serialize};

pub use negotiation::{
    Chosen, accepted_esp, accepted_ike, answer_esp, answer_ike, choose_esp, choose_ike, offer_esp,
    offer_ike,
};

/// What we offer or accept for an IKE SA: alternatives in order of preference, as in
/// `aes256gcm16-chacha20poly1305-prfsha384-x25519-ecp256`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeProposal {
    /// Ciphers.
    pub encryption: Vec<Encryption>,
    /// Pseudo-random functions.
    pub prf: Vec<Prf>,
    /// Key exchange methods.
    pub groups: Vec<Group>,
}

/// What we offer or accept for a Child SA, as in `aes256gcm16-x25519-esn-noesn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EspProposal {
    /// Ciphers.
    pub encryption: Vec<Encryption>,
    /// Key exchange methods; none means no perfect forward secrecy.
    pub groups: Vec<Group>,
    /// Extended sequence numbers, in order of preference; never empty. Default: only `false`, as in strongSwan.
    pub esn: Vec<bool>,
}

/// Why a text is not a proposal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// A keyword is unknown.
    #[error("unknown algorithm {0:?}")]
    Unknown(String),
    /// A kind of algorithm is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A keyword has no place in this kind of proposal.
    #[error("{0:?} has no place in this kind of proposal")]
    Misplaced(String),
}

/// The ciphers that we support, best first: AES-256 has hardware almost everywhere, ChaCha20 is fast
/// without.
const CIPHERS: [Encryption; 3] = [
    Encryption::AesGcm16 { key_bits: 256 },
    Encryption::ChaCha20Poly1305,
    Encryption::AesGcm16 { key_bits: 128 },
];

/// What we accept where the configuration names nothing.
pub fn default_ike() -> Vec<IkeProposal> {
    vec![IkeProposal {
        encryption: CIPHERS.to_vec(),
        prf: vec![Prf::HmacSha384, Prf::HmacSha256, Prf::HmacSha512],
        groups: vec![Group::Curve25519, Group::Ecp256, Group::Modp2048],
    }]
}

/// What we accept for Child SAs where the configuration names nothing. Extended sequence numbers come
/// first (RFC 4303 §2.2.1 makes them the default).
pub fn default_esp() -> Vec<EspProposal> {
    vec![EspProposal {
        encryption: CIPHERS.to_vec(),
        groups: vec![],
        esn: vec![true, false],
    }]
}
