//! Proposals: strongSwan's keyword syntax, offering, and choosing (RFC 7296 §2.7, §3.3).

use crate::{
    crypto::{Encryption, EspSuite, Group, IkeSuite, Prf},
    wire::{self, Protocol},
};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

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

impl FromStr for IkeProposal {
    type Err = ProposalError;
    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let _ = text;
        todo!()
    }
}

impl FromStr for EspProposal {
    type Err = ProposalError;
    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let _ = text;
        todo!()
    }
}

/// What we accept where the configuration names nothing.
pub fn default_ike() -> Vec<IkeProposal> {
    todo!()
}

/// What we accept for Child SAs where the configuration names nothing.
pub fn default_esp() -> Vec<EspProposal> {
    todo!()
}

/// The proposals as an SA payload offers them, numbered from 1. `spi` is empty in IKE_SA_INIT, eight
/// bytes in an IKE rekey. `first_group` (the group of our KE payload) is moved to the front where it occurs.
pub fn offer_ike(proposals: &[IkeProposal], spi: &[u8], first_group: Option<Group>) -> Vec<wire::Proposal> {
    let _ = (proposals, spi, first_group);
    todo!()
}

/// The proposals for a Child SA as an SA payload offers them. Without `with_groups` (IKE_AUTH, RFC 7296 §1.2)
/// no key exchange method is named.
pub fn offer_esp(proposals: &[EspProposal], spi: u32, with_groups: bool) -> Vec<wire::Proposal> {
    let _ = (proposals, spi, with_groups);
    todo!()
}

/// A responder's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<S> {
    /// The suite.
    pub suite: S,
    /// The peer's SPI in the proposal (empty in IKE_SA_INIT).
    pub peer_spi: Vec<u8>,
    /// The number of the proposal.
    pub number: u8,
}

/// Chooses from what a peer offers for an IKE SA: our order of proposals counts first, then our order of
/// algorithms; among groups the one of the peer's KE payload (`ke_group`) wins if it is acceptable in the chosen
/// proposal (it spares a round trip).
pub fn choose_ike(ours: &[IkeProposal], offered: &[wire::Proposal], ke_group: u16) -> Option<Chosen<IkeSuite>> {
    let _ = (ours, offered, ke_group);
    todo!()
}

/// Chooses from what a peer offers for a Child SA. `ke_group` is the group of the peer's KE payload. Without
/// `with_groups` (IKE_AUTH) key exchange methods are ignored on both sides. With it, a group is chosen if our
/// proposal has any; a peer without any (or with NONE) is acceptable only if ours has none either.
pub fn choose_esp(ours: &[EspProposal], offered: &[wire::Proposal], ke_group: Option<u16>, with_groups: bool) -> Option<Chosen<EspSuite>> {
    let _ = (ours, offered, ke_group, with_groups);
    todo!()
}

/// The answer to an offer: exactly one proposal with one transform of each kind, carrying our SPI.
pub fn answer_ike(chosen: &Chosen<IkeSuite>, spi: &[u8]) -> wire::Proposal {
    let _ = (chosen, spi);
    todo!()
}

/// The answer to an offer for a Child SA.
pub fn answer_esp(chosen: &Chosen<EspSuite>, spi: u32) -> wire::Proposal {
    let _ = (chosen, spi);
    todo!()
}

/// Reads a responder's answer to our offer: it must be one proposal that we offered, one transform of each kind.
pub fn accepted_ike(ours: &[IkeProposal], answer: &[wire::Proposal]) -> Option<Chosen<IkeSuite>> {
    let _ = (ours, answer);
    todo!()
}

/// Reads a responder's answer to our offer for a Child SA.
pub fn accepted_esp(ours: &[EspProposal], answer: &[wire::Proposal], with_groups: bool) -> Option<Chosen<EspSuite>> {
    let _ = (ours, answer, with_groups);
    let _ = Protocol::ESP;
    todo!()
}
