//! Bugs for the checkers of the simulation to find: a checker that finds none is none.
//!
//! Without the feature `drills` there are none. With it, the environment variable `EVERGATE_PLANT` names the one that is there.

/// What is wrong with this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// Responses leave before what they tell is committed.
    EarlyReply,
    /// Requests leave before they are committed.
    EarlyRequest,
    /// Child SAs are installed with the first sequence numbers, whatever is reserved.
    Reservation,
    /// IVs of IKE messages begin anew in each epoch.
    Iv,
    /// Leases never end.
    Lease,
    /// Whoever takes a gateway over knows nothing of its SAs.
    Amnesia,
    /// What is applied depends on who applies it.
    Apply,
    /// A repeated request is answered anew, with other bytes.
    Answer,
    /// Pools do not look who has an address.
    Address,
    /// A process goes on sending after its lease, and only the dead-man switch stops it.
    Gate,
    /// What should be sealed is not encrypted.
    Seal,
    /// A key is in a line of the log.
    Log,
}

impl Plant {
    /// Whether it is planted.
    #[cfg(not(feature = "drills"))]
    #[inline(always)]
    pub fn is_there(self) -> bool {
        false
    }

    /// Whether it is planted.
    #[cfg(feature = "drills")]
    pub fn is_there(self) -> bool {
        static PLANTED: std::sync::OnceLock<Option<Plant>> = std::sync::OnceLock::new();
        let planted = PLANTED.get_or_init(|| {
            let name = std::env::var("EVERGATE_PLANT").ok()?;
            Some(match name.as_str() {
                "early-reply" => Self::EarlyReply,
                "early-request" => Self::EarlyRequest,
                "reservation" => Self::Reservation,
                "iv" => Self::Iv,
                "lease" => Self::Lease,
                "amnesia" => Self::Amnesia,
                "apply" => Self::Apply,
                "answer" => Self::Answer,
                "address" => Self::Address,
                "gate" => Self::Gate,
                "seal" => Self::Seal,
                "log" => Self::Log,
                _ => panic!("EVERGATE_PLANT: there is no {name}"),
            })
        });
        *planted == Some(self)
    }
}
