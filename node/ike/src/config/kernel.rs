//! What a Child SA wants of the kernel: firewall marks, and the help of the network card.

use super::Policy;
use serde::{Deserialize, Serialize};

/// A firewall mark: some bits of a packet's, and what they are. Without bits it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What the bits are; zero elsewhere.
    pub value: u32,
    /// Which bits.
    pub mask: u32,
}

impl Mark {
    /// Whether it says nothing.
    pub const fn is_none(self) -> bool {
        self.mask == 0
    }
}

/// The marks of a Child SA's packets, as swanctl.conf says them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// `mark_in`: what packets from the peer must have when they come out of the tunnel.
    pub mark_in: Mark,
    /// `mark_out`: what packets must have to go into the tunnel.
    pub mark_out: Mark,
    /// `set_mark_in`: what packets from the peer get when they are decrypted.
    pub set_mark_in: Mark,
    /// `set_mark_out`: what packets get when they are encrypted.
    pub set_mark_out: Mark,
}

impl Marks {
    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl HwOffload {
    /// Whether nothing is asked for.
    pub fn is_no(&self) -> bool {
        *self == Self::No
    }
}

impl Policy {
    /// Whether a child has marks, or is to have the help of the network card.
    pub fn asks_the_kernel(&self) -> bool {
        let mut children = self.connections.iter().flat_map(|c| &c.children);
        children.any(|c| !c.marks.is_none() || !c.hw_offload.is_no())
    }
}

/// Whether the network card is to encrypt and decrypt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HwOffload {
    /// It is not.
    #[default]
    No,
    /// If it can.
    Auto,
    /// It is; without it there is no Child SA.
    Crypto,
}
