//! Up to which level this process understands the replicated format.

use evergate_state::Level;

/// The latest that there is.
#[cfg(not(feature = "drills"))]
pub(crate) fn understood() -> Level {
    Level::LATEST
}

/// The latest that there is, unless the environment variable `EVERGATE_LEVEL` names an earlier one: then this process behaves as an older version of the
/// program, for drills of upgrades.
#[cfg(feature = "drills")]
pub(crate) fn understood() -> Level {
    let played = std::env::var("EVERGATE_LEVEL").ok();
    let played = played.and_then(|text| text.parse().ok()).map(Level);
    played.map_or(Level::LATEST, |level| level.min(Level::LATEST))
}
