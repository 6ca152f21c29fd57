//! Bugs for the checkers to find: a checker that finds none is none. The member is an end here, so its bugs are those of an end.
//! `run` plants each with the environment variable `EVERGATE_FUZZ_PLANT`, and expects the finding.

use std::sync::OnceLock;

/// What is wrong with both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    /// A process goes on in the epoch of the one before.
    Epoch,
    /// Messages leave before what they tell is committed.
    Early,
    /// A process does not know the last response of the one before, and makes another.
    Forgetful,
    /// The data plane keeps Child SAs that are gone.
    Plane,
}

impl Plant {
    /// Whether it is planted.
    pub(super) fn is_there(self) -> bool {
        static PLANTED: OnceLock<Option<Plant>> = OnceLock::new();
        let planted = PLANTED.get_or_init(|| {
            let name = std::env::var("EVERGATE_FUZZ_PLANT").ok()?;
            Some(match name.as_str() {
                "epoch" => Self::Epoch,
                "early" => Self::Early,
                "forgetful" => Self::Forgetful,
                "plane" => Self::Plane,
                _ => panic!("EVERGATE_FUZZ_PLANT: there is no {name}"),
            })
        });
        *planted == Some(self)
    }
}
