//! What a gateway says about its SAs, the same for every implementation.

use std::collections::BTreeSet;

/// One IKE SA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeSa {
    /// The connection's name.
    pub name: String,
    /// SPIs of initiator and responder.
    pub spis: (u64, u64),
    /// Established, and neither rekeyed nor being deleted.
    pub established: bool,
    /// Its Child SAs.
    pub children: Vec<ChildSa>,
}

/// One Child SA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildSa {
    /// The child's name in the configuration.
    pub name: String,
    /// The SPI of what this gateway receives.
    pub spi_in: u32,
    /// The SPI of what it sends.
    pub spi_out: u32,
    /// Installed, and neither rekeyed nor being deleted.
    pub installed: bool,
    /// The local traffic selectors as text.
    pub local_ts: Vec<String>,
    /// The remote traffic selectors as text.
    pub remote_ts: Vec<String>,
}

/// A gateway that a drill can drive.
pub trait Endpoint {
    /// All IKE SAs.
    fn sas(&self) -> crate::Result<Vec<IkeSa>>;
    /// Starts a child and waits for it.
    fn initiate(&self, connection: &str, child: &str) -> crate::Result<()>;
    /// Rekeys the Child SA of that name.
    fn rekey_child(&self, child: &str) -> crate::Result<()>;
    /// Rekeys the IKE SA of that connection.
    fn rekey_ike(&self, connection: &str) -> crate::Result<()>;
    /// Deletes the IKE SA of that connection.
    fn terminate(&self, connection: &str) -> crate::Result<()>;
    /// Deletes the Child SA of that name.
    fn terminate_child(&self, child: &str) -> crate::Result<()>;
}

/// SPIs as a set, from the view of the gateway that listed them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spis {
    /// (initiator, responder) of the established IKE SAs.
    pub ike: BTreeSet<(u64, u64)>,
    /// (in, out) of the installed Child SAs.
    pub child: BTreeSet<(u32, u32)>,
}

impl Spis {
    /// The live SPIs of a listing.
    #[must_use]
    pub fn of(sas: &[IkeSa]) -> Self {
        let live = || sas.iter().filter(|sa| sa.established);
        Self {
            ike: live().map(|sa| sa.spis).collect(),
            child: live()
                .flat_map(|sa| &sa.children)
                .filter(|child| child.installed)
                .map(|child| (child.spi_in, child.spi_out))
                .collect(),
        }
    }

    /// The same SPIs from the view of the other side.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self {
            ike: self.ike.clone(),
            child: self.child.iter().map(|&(a, b)| (b, a)).collect(),
        }
    }
}
