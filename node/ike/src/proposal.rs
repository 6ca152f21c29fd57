//! Proposals: strongSwan's keyword syntax, offering, and choosing (RFC 7296 §2.7, §3.3).

mod keywords;
mod negotiation;
#[cfg(test)]
mod tests;

use crate::crypto::{ADDITIONAL, Encryption, Group, Integrity, Prf};
use serde::{Deserialize, Serialize};

pub use negotiation::{
    Chosen, accepted_esp, accepted_ike, answer_esp, answer_ike, choose_esp, choose_ike, offer_esp,
    offer_ike,
};

/// What we offer or accept for an IKE SA: alternatives in order of preference, as in
/// `aes256gcm16-chacha20poly1305-prfsha384-x25519-ecp256`. All ciphers are AEADs, or none is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeProposal {
    /// Ciphers.
    pub encryption: Vec<Encryption>,
    /// Integrity algorithms; none if the ciphers are AEADs.
    pub integrity: Vec<Integrity>,
    /// Pseudo-random functions.
    pub prf: Vec<Prf>,
    /// Key exchange methods.
    pub groups: Vec<Group>,
    /// Additional key exchange methods.
    pub additional: Menus,
}

/// What we offer or accept for a Child SA, as in `aes256gcm16-x25519-esn-noesn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EspProposal {
    /// Ciphers.
    pub encryption: Vec<Encryption>,
    /// Integrity algorithms; none if the ciphers are AEADs.
    pub integrity: Vec<Integrity>,
    /// Key exchange methods; none means no perfect forward secrecy.
    pub groups: Vec<Group>,
    /// Additional key exchange methods.
    pub additional: Menus,
    /// Extended sequence numbers, in order of preference; never empty. Default: only `false`, as in strongSwan.
    pub esn: Vec<bool>,
}

/// The methods for each additional key exchange (RFC 9370), in order of preference; none where there is to be no such exchange. `None` among them:
/// it may be left out.
pub type Menus = [Vec<Option<Group>>; ADDITIONAL];

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
    /// Ciphers that authenticate stand beside ciphers that do not.
    #[error(
        "ciphers with and without integrity algorithm cannot be in one proposal: write two proposals"
    )]
    Mixed,
}

/// The AEADs that we support by default, best first: AES-256 has hardware almost everywhere, ChaCha20 is fast
/// without.
const AEADS: [Encryption; 3] = [
    Encryption::AesGcm16 { key_bits: 256 },
    Encryption::ChaCha20Poly1305,
    Encryption::AesGcm16 { key_bits: 128 },
];

/// For peers that have no AEAD.
const CBC: [Encryption; 2] = [
    Encryption::AesCbc { key_bits: 256 },
    Encryption::AesCbc { key_bits: 128 },
];

const HMACS: [Integrity; 3] = [
    Integrity::HmacSha256,
    Integrity::HmacSha384,
    Integrity::HmacSha512,
];

/// What we accept where the configuration names nothing, best first: against recordings that a quantum computer may open one day, a classical key
/// exchange and ML-KEM together where the peer has it; nothing that RFC 8247 or RFC 8221 call obsolete.
pub fn default_ike() -> Vec<IkeProposal> {
    let aead = IkeProposal {
        encryption: AEADS.to_vec(),
        integrity: vec![],
        prf: vec![Prf::HmacSha384, Prf::HmacSha256, Prf::HmacSha512],
        groups: vec![
            Group::Curve25519,
            Group::Ecp256,
            Group::Ecp384,
            Group::Modp3072,
            Group::Modp2048,
        ],
        additional: Menus::default(),
    };
    let cbc = IkeProposal {
        encryption: CBC.to_vec(),
        integrity: HMACS.to_vec(),
        ..aead.clone()
    };
    let mut hybrid = aead.clone();
    hybrid.additional[0] = vec![Some(Group::MlKem768)];
    vec![hybrid, aead, cbc]
}

/// What we accept for Child SAs where the configuration names nothing. Extended sequence numbers come
/// first (RFC 4303 §2.2.1 makes them the default).
pub fn default_esp() -> Vec<EspProposal> {
    let aead = EspProposal {
        encryption: AEADS.to_vec(),
        integrity: vec![],
        groups: vec![],
        additional: Menus::default(),
        esn: vec![true, false],
    };
    let cbc = EspProposal {
        encryption: CBC.to_vec(),
        integrity: HMACS.to_vec(),
        ..aead.clone()
    };
    vec![aead, cbc]
}

/// A proposal in text, or what `default` stands for.
///
/// # Errors
/// See [`ProposalError`].
pub fn parse_ike(text: &str) -> Result<Vec<IkeProposal>, ProposalError> {
    match text {
        "default" => Ok(default_ike()),
        _ => Ok(vec![text.parse()?]),
    }
}

/// A proposal for Child SAs in text, or what `default` stands for.
///
/// # Errors
/// See [`ProposalError`].
pub fn parse_esp(text: &str) -> Result<Vec<EspProposal>, ProposalError> {
    match text {
        "default" => Ok(default_esp()),
        _ => Ok(vec![text.parse()?]),
    }
}
