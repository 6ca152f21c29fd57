//! Proposals as text: strongSwan's keywords, joined by dashes, in any order of kinds.

use super::{EspProposal, IkeProposal, Menus, ProposalError};
use crate::crypto::{ADDITIONAL, Encryption, Group, Integrity, Prf};
use std::{fmt, str::FromStr};

/// What a keyword stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Encryption(Encryption),
    Integrity(Integrity),
    Prf(Prf),
    Group(Group),
    /// Which of the additional key exchanges, from zero, and how; `None`: not at all.
    Additional(usize, Option<Group>),
    Esn(bool),
}

const INTEGRITIES: [(&str, Integrity); 6] = [
    ("sha1", Integrity::HmacSha1),
    ("sha256", Integrity::HmacSha256),
    ("sha384", Integrity::HmacSha384),
    ("sha512", Integrity::HmacSha512),
    ("aesxcbc", Integrity::AesXcbc),
    ("aescmac", Integrity::AesCmac),
];

const PRFS: [(&str, Prf); 6] = [
    ("prfsha1", Prf::HmacSha1),
    ("prfsha256", Prf::HmacSha256),
    ("prfsha384", Prf::HmacSha384),
    ("prfsha512", Prf::HmacSha512),
    ("prfaesxcbc", Prf::AesXcbc),
    ("prfaescmac", Prf::AesCmac),
];

const GROUPS: [(&str, Group); 13] = [
    ("modp2048", Group::Modp2048),
    ("modp3072", Group::Modp3072),
    ("modp4096", Group::Modp4096),
    ("modp6144", Group::Modp6144),
    ("modp8192", Group::Modp8192),
    ("ecp256", Group::Ecp256),
    ("ecp384", Group::Ecp384),
    ("ecp521", Group::Ecp521),
    ("x25519", Group::Curve25519),
    ("x448", Group::Curve448),
    ("mlkem512", Group::MlKem512),
    ("mlkem768", Group::MlKem768),
    ("mlkem1024", Group::MlKem1024),
];

/// Other names of the same things.
const ALIASES: [(&str, &str); 6] = [
    ("sha", "sha1"),
    ("sha2_256", "sha256"),
    ("sha2_384", "sha384"),
    ("sha2_512", "sha512"),
    ("curve25519", "x25519"),
    ("curve448", "x448"),
];

/// "Not at all" in the place of an additional key exchange.
const NONE: &str = "none";

fn named<T: Copy>(table: &[(&'static str, T)], text: &str) -> Option<T> {
    let found = table.iter().find(|(name, _)| *name == text);
    found.map(|(_, item)| *item)
}

fn name_of<T: PartialEq>(table: &[(&'static str, T)], item: &T) -> &'static str {
    let found = table.iter().find(|(_, known)| known == item);
    found.map_or("?", |(name, _)| name)
}

/// `aes`, the key length, and the mode with the length of its ICV in bytes or bits.
fn encryption(text: &str) -> Option<Encryption> {
    match text {
        "chacha20poly1305" => return Some(Encryption::ChaCha20Poly1305),
        "chacha20poly1305iiv" => return Some(Encryption::ChaCha20Poly1305Iiv),
        _ => {}
    }
    let rest = text.strip_prefix("aes")?;
    let (key_bits, mode) = match rest.split_at_checked(3) {
        Some(("128", mode)) => (128, mode),
        Some(("192", mode)) => (192, mode),
        Some(("256", mode)) => (256, mode),
        _ if rest.is_empty() => (128, rest),
        _ => return None,
    };
    Some(match mode {
        "" => Encryption::AesCbc { key_bits },
        "ctr" => Encryption::AesCtr { key_bits },
        "gcm8" | "gcm64" => Encryption::AesGcm8 { key_bits },
        "gcm12" | "gcm96" => Encryption::AesGcm12 { key_bits },
        "gcm16" | "gcm128" => Encryption::AesGcm16 { key_bits },
        "ccm8" | "ccm64" => Encryption::AesCcm8 { key_bits },
        "ccm12" | "ccm96" => Encryption::AesCcm12 { key_bits },
        "ccm16" | "ccm128" => Encryption::AesCcm16 { key_bits },
        "gcm16iiv" => Encryption::AesGcm16Iiv { key_bits },
        "ccm8iiv" => Encryption::AesCcm8Iiv { key_bits },
        _ => return None,
    })
}

/// `ke1_mlkem768`, `ke2_none`.
fn additional(text: &str) -> Option<Word> {
    let (number, method) = text.strip_prefix("ke")?.split_once('_')?;
    let at = number.parse::<usize>().ok()?.checked_sub(1)?;
    let method = match method {
        NONE => None,
        _ => Some(named(&GROUPS, unaliased(method))?),
    };
    (at < ADDITIONAL && number.len() == 1).then_some(Word::Additional(at, method))
}

fn unaliased(text: &str) -> &str {
    named(&ALIASES, text).unwrap_or(text)
}

impl Word {
    fn parse(keyword: &str) -> Result<Self, ProposalError> {
        let text = unaliased(keyword);
        (encryption(text).map(Self::Encryption))
            .or_else(|| named(&INTEGRITIES, text).map(Self::Integrity))
            .or_else(|| named(&PRFS, text).map(Self::Prf))
            .or_else(|| named(&GROUPS, text).map(Self::Group))
            .or_else(|| named(&[("esn", true), ("noesn", false)], text).map(Self::Esn))
            .or_else(|| additional(text))
            .ok_or_else(|| ProposalError::Unknown(keyword.to_owned()))
    }
}

/// Appends what is not there yet: a keyword that is named twice counts where it stands first.
fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

fn required<T>(list: &[T], what: &'static str) -> Result<(), ProposalError> {
    if list.is_empty() {
        Err(ProposalError::Missing(what))
    } else {
        Ok(())
    }
}

/// Ciphers need integrity algorithms, or have none: then those that are named are left out, as strongSwan does.
fn settle(encryption: &[Encryption], integrity: &mut Vec<Integrity>) -> Result<(), ProposalError> {
    required(encryption, "an encryption algorithm")?;
    let aeads = encryption.iter().filter(|e| e.is_aead()).count();
    if aeads == encryption.len() {
        integrity.clear();
        return Ok(());
    }
    if aeads > 0 {
        return Err(ProposalError::Mixed);
    }
    required(integrity, "an integrity algorithm (such as sha256)")
}

/// The pseudo-random function that goes with an integrity algorithm where none is named.
fn prf_of(integrity: Integrity) -> Prf {
    match integrity {
        Integrity::HmacSha1 => Prf::HmacSha1,
        Integrity::HmacSha256 => Prf::HmacSha256,
        Integrity::HmacSha384 => Prf::HmacSha384,
        Integrity::HmacSha512 => Prf::HmacSha512,
        Integrity::AesXcbc => Prf::AesXcbc,
        Integrity::AesCmac => Prf::AesCmac,
    }
}

impl FromStr for IkeProposal {
    type Err = ProposalError;
    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let mut out = Self {
            encryption: vec![],
            integrity: vec![],
            prf: vec![],
            groups: vec![],
            additional: Menus::default(),
        };
        for keyword in text.split('-') {
            match Word::parse(keyword)? {
                Word::Encryption(e) if !e.implicit_iv() => add(&mut out.encryption, e),
                Word::Integrity(i) => add(&mut out.integrity, i),
                Word::Prf(p) => add(&mut out.prf, p),
                Word::Group(g) => add(&mut out.groups, g),
                Word::Additional(at, g) => add(&mut out.additional[at], g),
                Word::Encryption(_) | Word::Esn(_) => {
                    return Err(ProposalError::Misplaced(keyword.to_owned()));
                }
            }
        }
        if out.prf.is_empty() {
            let derived = out.integrity.iter().map(|i| prf_of(*i));
            out.prf = derived.collect();
        }
        settle(&out.encryption, &mut out.integrity)?;
        required(&out.prf, "a pseudo-random function (such as prfsha384)")?;
        required(&out.groups, "a key exchange method (such as x25519)")?;
        Ok(out)
    }
}

impl FromStr for EspProposal {
    type Err = ProposalError;
    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let mut out = Self {
            encryption: vec![],
            integrity: vec![],
            groups: vec![],
            additional: Menus::default(),
            esn: vec![],
        };
        for keyword in text.split('-') {
            match Word::parse(keyword)? {
                Word::Encryption(e) => add(&mut out.encryption, e),
                Word::Integrity(i) => add(&mut out.integrity, i),
                Word::Group(g) => add(&mut out.groups, g),
                Word::Additional(at, g) => add(&mut out.additional[at], g),
                Word::Esn(e) => add(&mut out.esn, e),
                Word::Prf(_) => return Err(ProposalError::Misplaced(keyword.to_owned())),
            }
        }
        settle(&out.encryption, &mut out.integrity)?;
        if out.additional.iter().any(|menu| !menu.is_empty()) {
            required(
                &out.groups,
                "a key exchange method (such as x25519) before the additional ones",
            )?;
        }
        if out.esn.is_empty() {
            out.esn.push(false);
        }
        Ok(out)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encryption(encryption) => write_encryption(f, *encryption),
            Self::Integrity(integrity) => f.write_str(name_of(&INTEGRITIES, integrity)),
            Self::Prf(prf) => f.write_str(name_of(&PRFS, prf)),
            Self::Group(group) => f.write_str(name_of(&GROUPS, group)),
            Self::Additional(at, None) => write!(f, "ke{}_{NONE}", at + 1),
            Self::Additional(at, Some(group)) => {
                write!(f, "ke{}_{}", at + 1, name_of(&GROUPS, group))
            }
            Self::Esn(true) => f.write_str("esn"),
            Self::Esn(false) => f.write_str("noesn"),
        }
    }
}

fn write_encryption(f: &mut fmt::Formatter<'_>, encryption: Encryption) -> fmt::Result {
    let mode = match encryption {
        Encryption::ChaCha20Poly1305 => return f.write_str("chacha20poly1305"),
        Encryption::ChaCha20Poly1305Iiv => return f.write_str("chacha20poly1305iiv"),
        Encryption::AesCbc { .. } => "",
        Encryption::AesCtr { .. } => "ctr",
        Encryption::AesGcm16 { .. } => "gcm16",
        Encryption::AesGcm12 { .. } => "gcm12",
        Encryption::AesGcm8 { .. } => "gcm8",
        Encryption::AesCcm16 { .. } => "ccm16",
        Encryption::AesCcm12 { .. } => "ccm12",
        Encryption::AesCcm8 { .. } => "ccm8",
        Encryption::AesGcm16Iiv { .. } => "gcm16iiv",
        Encryption::AesCcm8Iiv { .. } => "ccm8iiv",
    };
    write!(f, "aes{}{mode}", encryption.key_bits())
}

fn join(f: &mut fmt::Formatter<'_>, words: impl Iterator<Item = Word>) -> fmt::Result {
    for (i, word) in words.enumerate() {
        let dash = if i == 0 { "" } else { "-" };
        write!(f, "{dash}{word}")?;
    }
    Ok(())
}

fn additional_words(menus: &Menus) -> impl Iterator<Item = Word> {
    let of = |(at, menu): (usize, &Vec<Option<Group>>)| {
        let words = menu.iter().map(move |g| Word::Additional(at, *g));
        words.collect::<Vec<_>>()
    };
    menus.iter().enumerate().flat_map(of)
}

impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encryption = self.encryption.iter().copied().map(Word::Encryption);
        let integrity = self.integrity.iter().copied().map(Word::Integrity);
        let prf = self.prf.iter().copied().map(Word::Prf);
        let groups = self.groups.iter().copied().map(Word::Group);
        let all = encryption.chain(integrity).chain(prf).chain(groups);
        join(f, all.chain(additional_words(&self.additional)))
    }
}

impl fmt::Display for EspProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encryption = self.encryption.iter().copied().map(Word::Encryption);
        let integrity = self.integrity.iter().copied().map(Word::Integrity);
        let groups = self.groups.iter().copied().map(Word::Group);
        let esn = self.esn.iter().copied().map(Word::Esn);
        let all = encryption.chain(integrity).chain(groups);
        join(f, all.chain(additional_words(&self.additional)).chain(esn))
    }
}
