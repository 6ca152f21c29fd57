//! Proposals as text: strongSwan's keywords, joined by dashes, in any order of kinds.

use super::{EspProposal, IkeProposal, ProposalError};
use crate::crypto::{Encryption, Group, Prf};
use std::{fmt, str::FromStr};

/// What a keyword stands for.
#[derive(Clone, Copy)]
enum Word {
    Encryption(Encryption),
    Prf(Prf),
    Group(Group),
    Esn(bool),
}

impl Word {
    fn parse(text: &str) -> Result<Self, ProposalError> {
        Ok(match text {
            "aes128gcm16" | "aes128gcm128" => {
                Self::Encryption(Encryption::AesGcm16 { key_bits: 128 })
            }
            "aes256gcm16" | "aes256gcm128" => {
                Self::Encryption(Encryption::AesGcm16 { key_bits: 256 })
            }
            "chacha20poly1305" => Self::Encryption(Encryption::ChaCha20Poly1305),
            "prfsha256" => Self::Prf(Prf::HmacSha256),
            "prfsha384" => Self::Prf(Prf::HmacSha384),
            "prfsha512" => Self::Prf(Prf::HmacSha512),
            "x25519" | "curve25519" => Self::Group(Group::Curve25519),
            "ecp256" => Self::Group(Group::Ecp256),
            "modp2048" => Self::Group(Group::Modp2048),
            "esn" => Self::Esn(true),
            "noesn" => Self::Esn(false),
            _ => return Err(ProposalError::Unknown(text.to_owned())),
        })
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

impl FromStr for IkeProposal {
    type Err = ProposalError;
    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let mut out = Self {
            encryption: vec![],
            prf: vec![],
            groups: vec![],
        };
        for keyword in text.split('-') {
            match Word::parse(keyword)? {
                Word::Encryption(e) => add(&mut out.encryption, e),
                Word::Prf(p) => add(&mut out.prf, p),
                Word::Group(g) => add(&mut out.groups, g),
                Word::Esn(_) => return Err(ProposalError::Misplaced(keyword.to_owned())),
            }
        }
        required(&out.encryption, "an encryption algorithm")?;
        required(&out.prf, "a pseudo-random function")?;
        required(&out.groups, "a key exchange method")?;
        Ok(out)
    }
}

impl FromStr for EspProposal {
    type Err = ProposalError;
    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let mut out = Self {
            encryption: vec![],
            groups: vec![],
            esn: vec![],
        };
        for keyword in text.split('-') {
            match Word::parse(keyword)? {
                Word::Encryption(e) => add(&mut out.encryption, e),
                Word::Group(g) => add(&mut out.groups, g),
                Word::Esn(e) => add(&mut out.esn, e),
                Word::Prf(_) => return Err(ProposalError::Misplaced(keyword.to_owned())),
            }
        }
        required(&out.encryption, "an encryption algorithm")?;
        if out.esn.is_empty() {
            out.esn.push(false);
        }
        Ok(out)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encryption(Encryption::AesGcm16 { key_bits }) => write!(f, "aes{key_bits}gcm16"),
            Self::Encryption(Encryption::ChaCha20Poly1305) => f.write_str("chacha20poly1305"),
            Self::Prf(Prf::HmacSha256) => f.write_str("prfsha256"),
            Self::Prf(Prf::HmacSha384) => f.write_str("prfsha384"),
            Self::Prf(Prf::HmacSha512) => f.write_str("prfsha512"),
            Self::Group(Group::Curve25519) => f.write_str("x25519"),
            Self::Group(Group::Ecp256) => f.write_str("ecp256"),
            Self::Group(Group::Modp2048) => f.write_str("modp2048"),
            Self::Esn(true) => f.write_str("esn"),
            Self::Esn(false) => f.write_str("noesn"),
        }
    }
}

fn join(f: &mut fmt::Formatter<'_>, words: impl Iterator<Item = Word>) -> fmt::Result {
    for (i, word) in words.enumerate() {
        let dash = if i == 0 { "" } else { "-" };
        write!(f, "{dash}{word}")?;
    }
    Ok(())
}

impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encryption = self.encryption.iter().copied().map(Word::Encryption);
        let prf = self.prf.iter().copied().map(Word::Prf);
        let groups = self.groups.iter().copied().map(Word::Group);
        join(f, encryption.chain(prf).chain(groups))
    }
}

impl fmt::Display for EspProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encryption = self.encryption.iter().copied().map(Word::Encryption);
        let groups = self.groups.iter().copied().map(Word::Group);
        let esn = self.esn.iter().copied().map(Word::Esn);
        join(f, encryption.chain(groups).chain(esn))
    }
}
