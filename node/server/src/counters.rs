//! Counters of what the server itself drops.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! ike_drops {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why an IKE message was dropped before it reached an SA, or was not sent.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum IkeDrop { $($(#[$doc])* $name,)* }

        impl IkeDrop {
            const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name for metrics and logs.
            pub(crate) fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

ike_drops! {
    /// Not an IKE message.
    Malformed = "malformed",
    /// Another major version of IKE.
    Version = "version",
    /// No SA has the SPI.
    UnknownSpi = "unknown_spi",
    /// The queue of a worker was full.
    WorkerBusy = "worker_busy",
    /// Too much waited for one SA's commit.
    SaBusy = "sa_busy",
    /// There were too many half-open SAs.
    HalfOpenLimit = "half_open_limit",
    /// A repeated first message of an SA that is past it.
    LateInit = "late_init",
    /// A first message that is not worth an answer.
    BadInit = "bad_init",
    /// The SA ignored it: not authentic, out of the window, or out of place.
    Ignored = "ignored",
    /// For an address of a virtual gateway that this process does not serve.
    NotServed = "not_served",
    /// A message of ours that was not sent, because the lease of the virtual gateway is over.
    NoLease = "no_lease",
    /// A message of ours that the kernel did not take.
    SendFailed = "send_failed",
}

/// How often each happened.
#[derive(Debug)]
pub(crate) struct IkeDrops([AtomicU64; IkeDrop::ALL.len()]);

impl Default for IkeDrops {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl IkeDrops {
    /// Counts one.
    pub(crate) fn count(&self, reason: IkeDrop) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What happened at all, and how often.
    pub(crate) fn nonzero(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        IkeDrop::ALL
            .iter()
            .map(|r| (r.label(), self.0[*r as usize].load(Ordering::Relaxed)))
            .filter(|(_, n)| *n != 0)
    }
}
