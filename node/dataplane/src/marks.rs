//! Firewall marks of single Child SAs, and what network cards may do for them. Only a plane whose packets are the kernel's can.

use crate::PlaneError;

/// Some bits of a packet's mark, and what they are. Without bits it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// The marks of a Child SA's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Marks {
    /// What received packets must have once they are decrypted, and changed by `set_inbound`.
    pub inbound: Mark,
    /// What packets must have to be sent by it.
    pub outbound: Mark,
    /// What received packets get.
    pub set_inbound: Mark,
    /// What outer packets get, besides the plane's own.
    pub set_outbound: Mark,
}

impl Marks {
    /// That a plane can do it which has this mark on all outer packets, and marks of Child SAs beside it; without one it has none.
    ///
    /// # Errors
    /// [`PlaneError::Unsupported`].
    pub(crate) fn within(self, ours: Option<Mark>) -> Result<(), PlaneError> {
        if self != Self::default() && ours.is_none() {
            return Err(PlaneError::Unsupported(
                "packets of this plane have no marks of their Child SAs (mark_in, mark_out, set_mark_in, set_mark_out)",
            ));
        }
        if ours.is_some_and(|ours| self.set_outbound.mask & ours.mask != 0) {
            return Err(PlaneError::Unsupported(
                "set_mark_out has bits of the mark that [dataplane] puts on all outer packets",
            ));
        }
        Ok(())
    }
}

impl Offload {
    /// That a plane can do it.
    ///
    /// # Errors
    /// [`PlaneError::Unsupported`].
    pub(crate) fn within(self, can: bool) -> Result<(), PlaneError> {
        match self {
            Self::Crypto if !can => Err(PlaneError::Unsupported(
                "this plane has no help of network cards (hw_offload = \"crypto\")",
            )),
            _ => Ok(()),
        }
    }
}

/// Whether the network card encrypts and decrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Offload {
    /// It does not.
    #[default]
    No,
    /// If it can.
    Auto,
    /// It must.
    Crypto,
}
