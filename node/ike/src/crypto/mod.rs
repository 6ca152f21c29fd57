//! Algorithms, key schedule, and the protection of IKE messages.
//!
//! Keys come and go as [`Secret`]; nothing here keeps state or draws randomness of its own.

mod group;
mod keys;
mod mlkem;
mod modp;
mod prf;
mod protect;
#[cfg(test)]
mod tests;

pub use evergate_crypto::{Associated, Cipher, Encryption, Integrity, Key};
pub use group::*;
pub use keys::*;
pub use prf::*;
pub use protect::*;

use serde::{Deserialize, Serialize};

/// What an IKE SA was negotiated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeSuite {
    /// Encrypts messages.
    pub encryption: Encryption,
    /// Authenticates messages, if `encryption` does not.
    pub integrity: Option<Integrity>,
    /// Derives keys.
    pub prf: Prf,
    /// The key exchange of IKE_SA_INIT, or of the last IKE rekey.
    pub group: Group,
    /// The key exchanges after it.
    pub additional: Additional,
}

/// What a Child SA was negotiated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EspSuite {
    /// Encrypts packets.
    pub encryption: Encryption,
    /// Authenticates packets, if `encryption` does not.
    pub integrity: Option<Integrity>,
    /// A key exchange of its own (perfect forward secrecy), if agreed.
    pub group: Option<Group>,
    /// The key exchanges after it.
    pub additional: Additional,
    /// Extended (64-bit) sequence numbers (RFC 4303 §2.2.1).
    pub esn: bool,
}

/// How many additional key exchanges there are at most (RFC 9370 §2.2.1).
pub const ADDITIONAL: usize = 7;

/// The additional key exchanges that were agreed on (RFC 9370): one of each kind, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Additional(pub [Option<Group>; ADDITIONAL]);

impl Additional {
    /// The methods in the order in which they are carried out.
    pub fn methods(self) -> impl Iterator<Item = Group> {
        self.0.into_iter().flatten()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.methods().next().is_none()
    }
}

impl IkeSuite {
    /// What protects messages.
    pub fn cipher(self) -> Cipher {
        Cipher {
            encryption: self.encryption,
            integrity: self.integrity,
        }
    }
}

impl EspSuite {
    /// What protects packets.
    pub fn cipher(self) -> Cipher {
        Cipher {
            encryption: self.encryption,
            integrity: self.integrity,
        }
    }
}
