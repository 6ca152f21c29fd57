//! Offering, choosing, answering, and checking the answer (RFC 7296 §2.7, §3.3).
//!
//! An AEAD goes with no integrity algorithm, any other cipher with one (RFC 5282 §8, RFC 7296 §3.3).

use super::{EspProposal, IkeProposal, Menus};
use crate::{
    crypto::{ADDITIONAL, Additional, Encryption, EspSuite, Group, IkeSuite, Integrity, Prf},
    wire::{self, Protocol, Transform, TransformType, encr, integ, prf},
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
                .chain(ours.integrity.iter().map(|i| integrity_transform(*i)))
                .chain(ours.prf.iter().map(|p| prf_transform(*p)))
                .chain(groups.into_iter().map(group_transform))
                .chain(additional_transforms(&ours.additional))
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
                .chain(ours.integrity.iter().map(|i| integrity_transform(*i)))
                .chain(groups.iter().map(|g| group_transform(*g)))
                .chain(additional_transforms(&ours.additional).filter(|_| with_groups))
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
/// proposal (it spares a round trip). Additional key exchanges are chosen only if there are exchanges for them (`with_additional`).
pub fn choose_ike(
    ours: &[IkeProposal],
    offered: &[wire::Proposal],
    ke_group: u16,
    with_additional: bool,
) -> Option<Chosen<IkeSuite>> {
    let menus = menus(offered, Protocol::IKE);
    let pairs = ours.iter().flat_map(|o| menus.iter().map(move |m| (o, m)));
    pairs.into_iter().find_map(|(ours, menu)| {
        let suite = menu.ike(ours, Some(ke_group))?;
        (with_additional || suite.additional.is_empty()).then(|| menu.chosen(suite))
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
        let suite = menu.esp(ours, ke_group, with_groups)?;
        Some(menu.chosen(suite))
    })
}

/// The answer to an offer: exactly one proposal with one transform of each kind, carrying our SPI.
pub fn answer_ike(chosen: &Chosen<IkeSuite>, spi: &[u8]) -> wire::Proposal {
    wire::Proposal {
        number: chosen.number,
        protocol: Protocol::IKE,
        spi: spi.to_vec(),
        transforms: [encryption_transform(chosen.suite.encryption)]
            .into_iter()
            .chain(chosen.suite.integrity.map(integrity_transform))
            .chain([prf_transform(chosen.suite.prf)])
            .chain([group_transform(chosen.suite.group)])
            .chain(answered_additional(chosen.suite.additional))
            .collect(),
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
            .chain(chosen.suite.integrity.map(integrity_transform))
            .chain(chosen.suite.group.map(group_transform))
            .chain(answered_additional(chosen.suite.additional))
            .chain([esn_transform(chosen.suite.esn)])
            .collect(),
    }
}

/// Reads a responder's answer to our offer: it must be one proposal that we offered, one transform of each kind.
pub fn accepted_ike(ours: &[IkeProposal], answer: &[wire::Proposal]) -> Option<Chosen<IkeSuite>> {
    let (menu, ours) = accepted(ours, answer, Protocol::IKE)?;
    let suite = menu.ike(ours, None)?;
    (!menu.answers_unasked(&ours.additional)).then(|| menu.chosen(suite))
}

/// Reads a responder's answer to our offer for a Child SA. A KE transform of NONE means as much as
/// none at all.
pub fn accepted_esp(
    ours: &[EspProposal],
    answer: &[wire::Proposal],
    with_groups: bool,
) -> Option<Chosen<EspSuite>> {
    let (menu, ours) = accepted(ours, answer, Protocol::ESP)?;
    // A responder may name NONE in IKE_AUTH, too.
    let suite = menu.esp(ours, None, with_groups)?;
    let groupless = !menu.wants_group || menu.groups.contains(&NONE);
    let asked = if with_groups {
        &ours.additional
    } else {
        &Menus::default()
    };
    if !(with_groups || groupless) || menu.answers_unasked(asked) {
        return None;
    }
    Some(menu.chosen(suite))
}

/// A peer's proposal, with all that is acceptable in principle sorted by kind.
struct Menu {
    number: u8,
    spi: Vec<u8>,
    encryption: Vec<Encryption>,
    integrity: Vec<Integrity>,
    /// Whether there was a transform for integrity other than NONE, acceptable or not.
    wants_integrity: bool,
    prf: Vec<Prf>,
    /// Key exchange methods, NONE and unknown ones among them.
    groups: Vec<u16>,
    /// Whether there was a transform for key exchange, acceptable or not.
    wants_group: bool,
    /// As `groups` and `wants_group`.
    additional: [Vec<u16>; ADDITIONAL],
    wants_additional: [bool; ADDITIONAL],
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
            integrity: vec![],
            wants_integrity: false,
            prf: vec![],
            groups: vec![],
            wants_group: false,
            additional: Default::default(),
            wants_additional: [false; ADDITIONAL],
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
            TransformType::INTEG => {
                self.wants_integrity = true;
                self.integrity
                    .extend(integrity_of(transform.id).filter(|_| plain));
            }
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
            kind => {
                let at = usize::from(kind.0.checked_sub(TransformType::ADDKE1.0)?);
                *self.wants_additional.get_mut(at)? = true;
                self.additional[at].extend(Some(transform.id).filter(|_| plain));
            }
        }
        Some(())
    }

    /// What of ours it offers.
    fn ike(&self, ours: &IkeProposal, ke_group: Option<u16>) -> Option<IkeSuite> {
        let (encryption, integrity) = self.cipher(&ours.encryption, &ours.integrity)?;
        let group = choose_group(&ours.groups, self, ke_group)?;
        Some(IkeSuite {
            encryption,
            integrity,
            prf: first_in(&ours.prf, &self.prf)?,
            group,
            additional: self.additional(&ours.additional, Some(group))?,
        })
    }

    /// What of ours it offers for a Child SA.
    fn esp(
        &self,
        ours: &EspProposal,
        ke_group: Option<u16>,
        with_groups: bool,
    ) -> Option<EspSuite> {
        let (encryption, integrity) = self.cipher(&ours.encryption, &ours.integrity)?;
        let (group, additional) = if with_groups {
            let group = choose_optional_group(&ours.groups, self, ke_group)?;
            (group, self.additional(&ours.additional, group)?)
        } else {
            (None, Additional::default())
        };
        Some(EspSuite {
            encryption,
            integrity,
            group,
            additional,
            esn: first_in(&ours.esn, &self.esn)?,
        })
    }

    fn cipher(
        &self,
        encryption: &[Encryption],
        integrity: &[Integrity],
    ) -> Option<(Encryption, Option<Integrity>)> {
        let common = encryption.iter().filter(|e| self.encryption.contains(e));
        common.copied().find_map(|e| {
            if e.is_aead() {
                return (!self.wants_integrity).then_some((e, None));
            }
            Some((e, Some(first_in(integrity, &self.integrity)?)))
        })
    }

    /// Our first choice for each additional key exchange. No method comes twice in all (RFC 9370 §2.2.1).
    fn additional(&self, ours: &Menus, group: Option<Group>) -> Option<Additional> {
        let mut chosen = Additional::default();
        for (at, menu) in ours.iter().enumerate() {
            let offered = &self.additional[at];
            let may_be_none = !self.wants_additional[at] || offered.contains(&NONE);
            if menu.is_empty() && !may_be_none {
                return None;
            }
            let used = |g| group == Some(g) || chosen.methods().any(|c| c == g);
            let fits = |method: &&Option<Group>| match method {
                Some(g) => offered.contains(&g.id()) && !used(*g),
                None => may_be_none,
            };
            if !menu.is_empty() {
                chosen.0[at] = *menu.iter().find(fits)?;
            }
        }
        Some(chosen)
    }

    /// Whether an answer names an additional key exchange where we offered none.
    fn answers_unasked(&self, ours: &Menus) -> bool {
        let mut pairs = ours.iter().zip(self.wants_additional);
        pairs.any(|(menu, named)| named && menu.is_empty())
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

/// Makes a cipher with a key length in bits, if it has different ones.
type OfKeyBits = fn(u16) -> Encryption;

/// Ciphers by their numbers.
const ENCRYPTIONS: [(u16, OfKeyBits); 12] = [
    (encr::AES_GCM_16, |key_bits| Encryption::AesGcm16 {
        key_bits,
    }),
    (encr::AES_GCM_12, |key_bits| Encryption::AesGcm12 {
        key_bits,
    }),
    (encr::AES_GCM_8, |key_bits| Encryption::AesGcm8 { key_bits }),
    (encr::AES_CCM_16, |key_bits| Encryption::AesCcm16 {
        key_bits,
    }),
    (encr::AES_CCM_12, |key_bits| Encryption::AesCcm12 {
        key_bits,
    }),
    (encr::AES_CCM_8, |key_bits| Encryption::AesCcm8 { key_bits }),
    (encr::AES_CBC, |key_bits| Encryption::AesCbc { key_bits }),
    (encr::AES_CTR, |key_bits| Encryption::AesCtr { key_bits }),
    (encr::AES_GCM_16_IIV, |key_bits| Encryption::AesGcm16Iiv {
        key_bits,
    }),
    (encr::AES_CCM_8_IIV, |key_bits| Encryption::AesCcm8Iiv {
        key_bits,
    }),
    (encr::CHACHA20_POLY1305, |_| Encryption::ChaCha20Poly1305),
    (encr::CHACHA20_POLY1305_IIV, |_| {
        Encryption::ChaCha20Poly1305Iiv
    }),
];

const PRFS: [(u16, Prf); 6] = [
    (prf::HMAC_SHA1, Prf::HmacSha1),
    (prf::AES128_XCBC, Prf::AesXcbc),
    (prf::HMAC_SHA2_256, Prf::HmacSha256),
    (prf::HMAC_SHA2_384, Prf::HmacSha384),
    (prf::HMAC_SHA2_512, Prf::HmacSha512),
    (prf::AES128_CMAC, Prf::AesCmac),
];

const INTEGRITIES: [(u16, Integrity); 6] = [
    (integ::HMAC_SHA1_96, Integrity::HmacSha1),
    (integ::AES_XCBC_96, Integrity::AesXcbc),
    (integ::AES_CMAC_96, Integrity::AesCmac),
    (integ::HMAC_SHA2_256_128, Integrity::HmacSha256),
    (integ::HMAC_SHA2_384_192, Integrity::HmacSha384),
    (integ::HMAC_SHA2_512_256, Integrity::HmacSha512),
];

fn by_id<T: Copy>(table: &[(u16, T)], id: u16) -> Option<T> {
    table
        .iter()
        .find(|(known, _)| *known == id)
        .map(|(_, item)| *item)
}

fn id_of<T: PartialEq>(table: &[(u16, T)], item: &T) -> u16 {
    let found = table.iter().find(|(_, known)| known == item);
    found.map_or(NONE, |(id, _)| *id)
}

/// Whether transforms of a cipher say the key length: AES must, ChaCha20 must not (RFC 5282 §7.2, RFC 7296 §3.3.5, RFC 7634 §2).
fn says_key_length(encryption: Encryption) -> bool {
    !matches!(
        encryption,
        Encryption::ChaCha20Poly1305 | Encryption::ChaCha20Poly1305Iiv
    )
}

/// The cipher that a transform names.
fn encryption(transform: &Transform) -> Option<Encryption> {
    let make = by_id(&ENCRYPTIONS, transform.id)?;
    let encryption = make(transform.key_bits.unwrap_or_default());
    let fits = says_key_length(encryption) == transform.key_bits.is_some();
    (fits && !transform.unknown_attribute).then_some(encryption)
}

fn prf_of(id: u16) -> Option<Prf> {
    by_id(&PRFS, id)
}

fn integrity_of(id: u16) -> Option<Integrity> {
    by_id(&INTEGRITIES, id)
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
    let key_bits = encryption.key_bits();
    let known = ENCRYPTIONS
        .iter()
        .find(|(_, make)| make(key_bits) == encryption);
    let id = known.map_or(NONE, |(id, _)| *id);
    let key_bits = says_key_length(encryption).then_some(key_bits);
    transform(TransformType::ENCR, id, key_bits)
}

fn prf_transform(function: Prf) -> Transform {
    transform(TransformType::PRF, id_of(&PRFS, &function), None)
}

fn integrity_transform(integrity: Integrity) -> Transform {
    transform(TransformType::INTEG, id_of(&INTEGRITIES, &integrity), None)
}

/// The transform type of an additional key exchange, by its place from zero.
fn additional_kind(at: usize) -> TransformType {
    let at = u8::try_from(at).expect("there are seven");
    TransformType(TransformType::ADDKE1.0 + at)
}

/// All that we offer for additional key exchanges.
fn additional_transforms(menus: &Menus) -> impl Iterator<Item = Transform> {
    let of = |(at, menu): (usize, &Vec<Option<Group>>)| {
        let ids = menu.iter().map(|g| g.map_or(NONE, Group::id));
        ids.map(|id| transform(additional_kind(at), id, None))
            .collect::<Vec<_>>()
    };
    menus.iter().enumerate().flat_map(of)
}

/// What we answer of additional key exchanges: those that are carried out.
fn answered_additional(additional: Additional) -> impl Iterator<Item = Transform> {
    let of = |(at, group): (usize, Option<Group>)| {
        group.map(|g| transform(additional_kind(at), g.id(), None))
    };
    additional.0.into_iter().enumerate().filter_map(of)
}

fn group_transform(group: Group) -> Transform {
    transform(TransformType::KE, group.id(), None)
}

fn esn_transform(esn: bool) -> Transform {
    transform(TransformType::ESN, u16::from(esn), None)
}
