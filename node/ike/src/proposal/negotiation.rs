//! Offering, choosing, answering, and checking the answer (RFC 7296 §2.7, §3.3).
//!
//! Every cipher that we know is an AEAD, so no integrity algorithm is ever offered, and a proposal
//! that asks for one is not acceptable (RFC 5282 §8, RFC 7296 §3.3).

use super::{EspProposal, IkeProposal};
use crate::{
    crypto::{Encryption, EspSuite, Group, IkeSuite, Prf},
    wire::{self, Protocol, Transform, TransformType, encr, prf},
};

/// Transform ID of "no integrity algorithm" and of "no key exchange".
const NONE: u16 = 0;

/// The proposals as an SA payload offers them, numbered from 1. `spi` is empty in IKE_SA_INIT, eight
/// bytes in an IKE rekey. `first_group` (the group of our KE payload) is moved to the front where it occurs.
pub fn offer_ike(
    proposals: &[IkeProposal],
    spi: &[u8],
    first_group: Option<Group>,
) -> Vec<wire::Proposal> {
    let offer = |(number, ours): (u8, &IkeProposal)| {
        let mut groups = ours.groups.clone();
        groups.sort_by_key(|g| Some(*g) != first_group);
        wire::Proposal {
            number,
            protocol: Protocol::IKE,
            spi: spi.to_vec(),
            transforms: (ours.encryption.iter().map(|e| encryption_transform(*e)))
                .chain(ours.prf.iter().map(|p| prf_transform(*p)))
                .chain(groups.into_iter().map(group_transform))
                .collect(),
        }
    };
    (1..=u8::MAX).zip(proposals).map(offer).collect()
}

/// The proposals for a Child SA as an SA payload offers them. Without `with_groups` (IKE_AUTH, RFC 7296 §1.2)
/// no key exchange method is named.
pub fn offer_esp(proposals: &[EspProposal], spi: u32, with_groups: bool) -> Vec<wire::Proposal> {
    let offer = |(number, ours): (u8, &EspProposal)| {
        let groups = if with_groups { &ours.groups[..] } else { &[] };
        wire::Proposal {
            number,
            protocol: Protocol::ESP,
            spi: spi.to_be_bytes().to_vec(),
            transforms: (ours.encryption.iter().map(|e| encryption_transform(*e)))
                .chain(groups.iter().map(|g| group_transform(*g)))
                .chain(ours.esn.iter().map(|e| esn_transform(*e)))
                .collect(),
        }
    };
    (1..=u8::MAX).zip(proposals).map(offer).collect()
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
pub fn choose_ike(
    ours: &[IkeProposal],
    offered: &[wire::Proposal],
    ke_group: u16,
) -> Option<Chosen<IkeSuite>> {
    let menus = menus(offered, Protocol::IKE);
    let pairs = ours.iter().flat_map(|o| menus.iter().map(move |m| (o, m)));
    pairs.into_iter().find_map(|(ours, menu)| {
        let suite = IkeSuite {
            encryption: first_in(&ours.encryption, &menu.encryption)?,
            prf: first_in(&ours.prf, &menu.prf)?,
            group: choose_group(&ours.groups, menu, Some(ke_group))?,
        };
        Some(menu.chosen(suite))
    })
}

/// Chooses from what a peer offers for a Child SA. `ke_group` is the group of the peer's KE payload. Without
/// `with_groups` (IKE_AUTH) key exchange methods are ignored on both sides. With it, a group is chosen if our
/// proposal has any; a peer without any (or with NONE) is acceptable only if ours has none either.
pub fn choose_esp(
    ours: &[EspProposal],
    offered: &[wire::Proposal],
    ke_group: Option<u16>,
    with_groups: bool,
) -> Option<Chosen<EspSuite>> {
    let menus = menus(offered, Protocol::ESP);
    let pairs = ours.iter().flat_map(|o| menus.iter().map(move |m| (o, m)));
    pairs.into_iter().find_map(|(ours, menu)| {
        let suite = EspSuite {
            encryption: first_in(&ours.encryption, &menu.encryption)?,
            group: if with_groups {
                choose_optional_group(&ours.groups, menu, ke_group)?
            } else {
                None
            },
            esn: first_in(&ours.esn, &menu.esn)?,
        };
        Some(menu.chosen(suite))
    })
}

/// The answer to an offer: exactly one proposal with one transform of each kind, carrying our SPI.
pub fn answer_ike(chosen: &Chosen<IkeSuite>, spi: &[u8]) -> wire::Proposal {
    wire::Proposal {
        number: chosen.number,
        protocol: Protocol::IKE,
        spi: spi.to_vec(),
        transforms: vec![
            encryption_transform(chosen.suite.encryption),
            prf_transform(chosen.suite.prf),
            group_transform(chosen.suite.group),
        ],
    }
}

/// The answer to an offer for a Child SA.
pub fn answer_esp(chosen: &Chosen<EspSuite>, spi: u32) -> wire::Proposal {
    wire::Proposal {
        number: chosen.number,
        protocol: Protocol::ESP,
        spi: spi.to_be_bytes().to_vec(),
        transforms: [encryption_transform(chosen.suite.encryption)]
            .into_iter()
            .chain(chosen.suite.group.map(group_transform))
            .chain([esn_transform(chosen.suite.esn)])
            .collect(),
    }
}

/// Reads a responder's answer to our offer: it must be one proposal that we offered, one transform of each kind.
pub fn accepted_ike(ours: &[IkeProposal], answer: &[wire::Proposal]) -> Option<Chosen<IkeSuite>> {
    let (menu, ours) = accepted(ours, answer, Protocol::IKE)?;
    let suite = IkeSuite {
        encryption: first_in(&ours.encryption, &menu.encryption)?,
        prf: first_in(&ours.prf, &menu.prf)?,
        group: choose_group(&ours.groups, &menu, None)?,
    };
    Some(menu.chosen(suite))
}

/// Reads a responder's answer to our offer for a Child SA. A KE transform of NONE means as much as
/// none at all.
pub fn accepted_esp(
    ours: &[EspProposal],
    answer: &[wire::Proposal],
    with_groups: bool,
) -> Option<Chosen<EspSuite>> {
    let (menu, ours) = accepted(ours, answer, Protocol::ESP)?;
    let groups = if with_groups { &ours.groups[..] } else { &[] };
    let suite = EspSuite {
        encryption: first_in(&ours.encryption, &menu.encryption)?,
        group: choose_optional_group(groups, &menu, None)?,
        esn: first_in(&ours.esn, &menu.esn)?,
    };
    Some(menu.chosen(suite))
}

/// A peer's proposal, with all that is acceptable in principle sorted by kind.
struct Menu {
    number: u8,
    spi: Vec<u8>,
    encryption: Vec<Encryption>,
    prf: Vec<Prf>,
    /// Key exchange methods, NONE and unknown ones among them.
    groups: Vec<u16>,
    /// Whether there was a transform for key exchange, acceptable or not.
    wants_group: bool,
    esn: Vec<bool>,
}

impl Menu {
    /// Reads a proposal for `protocol`. There is none if it is for another protocol, cannot have the SPI
    /// that it has, or holds a kind of transform that the protocol has not (RFC 7296 §3.3.3, §3.3.6).
    fn read(proposal: &wire::Proposal, protocol: Protocol) -> Option<Self> {
        if proposal.protocol != protocol || !spi_is_possible(&proposal.spi, protocol) {
            return None;
        }
        let mut menu = Self {
            number: proposal.number,
            spi: proposal.spi.clone(),
            encryption: vec![],
            prf: vec![],
            groups: vec![],
            wants_group: false,
            esn: vec![],
        };
        for transform in &proposal.transforms {
            menu.add(transform, protocol)?;
        }
        Some(menu)
    }

    /// Adds a transform. One that is not acceptable is passed over; nothing comes back if that makes
    /// the proposal as a whole unacceptable.
    fn add(&mut self, transform: &Transform, protocol: Protocol) -> Option<()> {
        let plain = transform.key_bits.is_none() && !transform.unknown_attribute;
        match transform.kind {
            TransformType::ENCR => self.encryption.extend(encryption(transform)),
            TransformType::PRF if protocol == Protocol::IKE => {
                self.prf.extend(prf_of(transform.id).filter(|_| plain));
            }
            TransformType::INTEG if transform.id == NONE && plain => {}
            TransformType::KE => {
                self.wants_group = true;
                self.groups.extend(Some(transform.id).filter(|_| plain));
            }
            TransformType::ESN if protocol == Protocol::ESP => {
                let esn = match transform.id {
                    0 => Some(false),
                    1 => Some(true),
                    _ => None,
                };
                self.esn.extend(esn.filter(|_| plain));
            }
            _ => return None,
        }
        Some(())
    }

    fn chosen<S>(&self, suite: S) -> Chosen<S> {
        Chosen {
            suite,
            peer_spi: self.spi.clone(),
            number: self.number,
        }
    }
}

fn menus(offered: &[wire::Proposal], protocol: Protocol) -> Vec<Menu> {
    (offered.iter())
        .filter_map(|proposal| Menu::read(proposal, protocol))
        .collect()
}

/// Whether an SA of `protocol` can have this SPI: the right length, and not zero, which stands for none.
fn spi_is_possible(spi: &[u8], protocol: Protocol) -> bool {
    match (protocol, spi.len()) {
        (Protocol::IKE, 0) => true,
        (Protocol::IKE, 8) | (Protocol::ESP, 4) => spi.iter().any(|b| *b != 0),
        _ => false,
    }
}

/// An answer as a menu without alternatives, and the proposal of ours that it answers by its number.
fn accepted<'a, P>(
    ours: &'a [P],
    answer: &[wire::Proposal],
    protocol: Protocol,
) -> Option<(Menu, &'a P)> {
    let [proposal] = answer else {
        return None;
    };
    let mut kinds: Vec<_> = proposal.transforms.iter().map(|t| t.kind).collect();
    kinds.sort_unstable();
    if kinds.windows(2).any(|pair| pair[0] == pair[1]) {
        return None;
    }
    let ours = ours.get(usize::from(proposal.number).checked_sub(1)?)?;
    Some((Menu::read(proposal, protocol)?, ours))
}

/// The first of ours that is among theirs.
fn first_in<T: Copy + PartialEq>(ours: &[T], theirs: &[T]) -> Option<T> {
    ours.iter().copied().find(|item| theirs.contains(item))
}

fn choose_group(ours: &[Group], menu: &Menu, preferred: Option<u16>) -> Option<Group> {
    let common = |group: &&Group| menu.groups.contains(&group.id());
    (ours.iter().filter(common))
        .find(|group| Some(group.id()) == preferred)
        .or_else(|| ours.iter().find(common))
        .copied()
}

/// As [`choose_group`], where a group is optional. No transform at all means the same as NONE
/// (RFC 7296 §3.3.3).
fn choose_optional_group(
    ours: &[Group],
    menu: &Menu,
    preferred: Option<u16>,
) -> Option<Option<Group>> {
    if !ours.is_empty() {
        return choose_group(ours, menu, preferred).map(Some);
    }
    (!menu.wants_group || menu.groups.contains(&NONE)).then_some(None)
}

/// The cipher that a transform names. AES-GCM must say its key length; ChaCha20 must not
/// (RFC 5282 §7.2, RFC 7634 §2).
fn encryption(transform: &Transform) -> Option<Encryption> {
    match (transform.id, transform.key_bits) {
        _ if transform.unknown_attribute => None,
        (encr::AES_GCM_16, Some(key_bits)) => Some(Encryption::AesGcm16 { key_bits }),
        (encr::CHACHA20_POLY1305, None) => Some(Encryption::ChaCha20Poly1305),
        _ => None,
    }
}

fn prf_of(id: u16) -> Option<Prf> {
    match id {
        prf::HMAC_SHA2_256 => Some(Prf::HmacSha256),
        prf::HMAC_SHA2_384 => Some(Prf::HmacSha384),
        prf::HMAC_SHA2_512 => Some(Prf::HmacSha512),
        _ => None,
    }
}

fn transform(kind: TransformType, id: u16, key_bits: Option<u16>) -> Transform {
    Transform {
        kind,
        id,
        key_bits,
        unknown_attribute: false,
    }
}

fn encryption_transform(encryption: Encryption) -> Transform {
    let (id, key_bits) = match encryption {
        Encryption::AesGcm16 { key_bits } => (encr::AES_GCM_16, Some(key_bits)),
        Encryption::ChaCha20Poly1305 => (encr::CHACHA20_POLY1305, None),
    };
    transform(TransformType::ENCR, id, key_bits)
}

fn prf_transform(function: Prf) -> Transform {
    let id = match function {
        Prf::HmacSha256 => prf::HMAC_SHA2_256,
        Prf::HmacSha384 => prf::HMAC_SHA2_384,
        Prf::HmacSha512 => prf::HMAC_SHA2_512,
    };
    transform(TransformType::PRF, id, None)
}

fn group_transform(group: Group) -> Transform {
    transform(TransformType::KE, group.id(), None)
}

fn esn_transform(esn: bool) -> Transform {
    transform(TransformType::ESN, u16::from(esn), None)
}
