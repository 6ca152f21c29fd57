//! DSCP, ECN and DF across the tunnel (RFC 6040, RFC 2983, RFC 4301 §5.1.2).

use crate::packet::{self, Inner};

/// The ECN field (RFC 3168 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ecn {
    /// Not ECN-capable.
    NotEct = 0,
    /// ECN-capable transport, codepoint 1.
    Ect1 = 1,
    /// ECN-capable transport, codepoint 0.
    Ect0 = 2,
    /// Congestion experienced.
    Ce = 3,
}

/// What the DSCP of the outer header becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OuterDscp {
    /// That of the inner header.
    #[default]
    Copy,
    /// Always this.
    Fixed(u8),
}

/// What the DF bit of an outer IPv4 header becomes (RFC 4301 §8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OuterDf {
    /// That of the inner header; set for IPv6 inside.
    #[default]
    Copy,
    /// Always set.
    Set,
    /// Always clear.
    Clear,
}

/// Why a decapsulated packet must be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecapsulateError {
    /// Congestion was marked outside on a packet whose transport would not understand it (RFC 6040 §4.2).
    #[error("congestion was marked on a packet that is not ECN-capable")]
    CongestionLost,
}

impl Ecn {
    /// The ECN field of a traffic class.
    pub fn of(traffic_class: u8) -> Self {
        match traffic_class & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }
}

/// The traffic class of the outer header, in RFC 6040's normal mode: ECN is copied.
pub fn outer_traffic_class(inner: u8, dscp: OuterDscp) -> u8 {
    let dscp = match dscp {
        OuterDscp::Copy => inner >> 2,
        OuterDscp::Fixed(dscp) => dscp,
    };
    dscp << 2 | Ecn::of(inner) as u8
}

/// The ECN field of the packet that goes on; `None` if it must be dropped (RFC 6040 §4.2).
pub fn combine_ecn(inner: Ecn, outer: Ecn) -> Option<Ecn> {
    match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => None,
        (Ecn::NotEct, _) => Some(Ecn::NotEct),
        (Ecn::Ce, _) | (_, Ecn::Ce) => Some(Ecn::Ce),
        (Ecn::Ect0, Ecn::Ect1) => Some(Ecn::Ect1),
        (inner, _) => Some(inner),
    }
}

/// Brings the ECN marks of the outer header into the inner packet. The inner DSCP stays as it is unless
/// `copy_dscp` (RFC 2983: pipe and uniform model).
///
/// # Errors
/// If the packet must be dropped.
pub fn decapsulate(
    packet: &mut [u8],
    outer_traffic_class: u8,
    copy_dscp: bool,
) -> Result<(), DecapsulateError> {
    let Some(inner) = traffic_class(packet) else {
        return Ok(());
    };
    let ecn = combine_ecn(Ecn::of(inner), Ecn::of(outer_traffic_class))
        .ok_or(DecapsulateError::CongestionLost)?;
    let dscp = if copy_dscp {
        outer_traffic_class
    } else {
        inner
    } & !3;
    let combined = dscp | ecn as u8;
    if combined != inner {
        packet::set_traffic_class(packet, combined);
    }
    Ok(())
}

/// Whether the outer IPv4 header has DF.
pub fn outer_df(inner: &Inner, policy: OuterDf) -> bool {
    match policy {
        OuterDf::Copy => inner.dont_fragment,
        OuterDf::Set => true,
        OuterDf::Clear => false,
    }
}

fn traffic_class(packet: &[u8]) -> Option<u8> {
    match *packet {
        [first, second, ..] if first >> 4 == 4 => Some(second),
        [first, second, ..] if first >> 4 == 6 => Some(first << 4 | second >> 4),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
