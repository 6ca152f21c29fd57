//! Failure points of the drills; they are not there without the feature `drills`.

use evergate_ike::wire::{ExchangeType, Header};

/// The exchange that a message belongs to.
pub(crate) fn exchange_of(message: &[u8]) -> Option<ExchangeType> {
    Header::parse(message).ok().map(|h| h.exchange)
}

/// Passes the failure point `POINT:EXCHANGE`.
#[cfg(feature = "drills")]
pub(crate) fn pass(point: &str, exchange: Option<ExchangeType>) {
    let name = match exchange {
        Some(ExchangeType::IKE_SA_INIT) => "IKE_SA_INIT",
        Some(ExchangeType::IKE_AUTH) => "IKE_AUTH",
        Some(ExchangeType::CREATE_CHILD_SA) => "CREATE_CHILD_SA",
        Some(ExchangeType::INFORMATIONAL) => "INFORMATIONAL",
        Some(ExchangeType::IKE_INTERMEDIATE) => "IKE_INTERMEDIATE",
        Some(ExchangeType::IKE_FOLLOWUP_KE) => "IKE_FOLLOWUP_KE",
        _ => return,
    };
    evergate_cluster::failpoint::hit(&format!("{point}:{name}"));
}

/// There are no failure points.
#[cfg(not(feature = "drills"))]
pub(crate) fn pass(_point: &str, _exchange: Option<ExchangeType>) {}
