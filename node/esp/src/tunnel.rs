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

/// What crosses between the inner and the outer header of a tunnel (RFC 4301 §5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderPolicy {
    /// The inner DSCP goes to the outer header; otherwise that has zero (RFC 2983 §3).
    pub dscp_out: bool,
    /// The outer DSCP comes to the inner header (RFC 2983 §4.2).
    pub dscp_in: bool,
    /// ECN goes outwards and comes inwards (RFC 6040 §4); otherwise the outer header says that it is not ECN-capable, and congestion that is marked there all the same is not
    /// looked at.
    pub ecn: bool,
    /// The outer packet has DF where the inner one has, and a packet that does not fit is cut before it is sealed or its sender is told. Otherwise outer packets may be
    /// cut on their way (RFC 4301 §8.1).
    pub df: bool,
}

impl Default for HeaderPolicy {
    fn default() -> Self {
        Self {
            dscp_out: true,
            dscp_in: false,
            ecn: true,
            df: true,
        }
    }
}

impl HeaderPolicy {
    /// The traffic class of the outer header.
    pub fn outwards(self, inner: u8) -> u8 {
        let dscp = match self.dscp_out {
            true => OuterDscp::Copy,
            false => OuterDscp::Fixed(0),
        };
        let class = outer_traffic_class(inner, dscp);
        if self.ecn { class } else { class & !ECN }
    }

    /// Brings what it should have of the outer header into the inner packet.
    ///
    /// # Errors
    /// As [`decapsulate`].
    pub fn inwards(
        self,
        packet: &mut [u8],
        outer_traffic_class: u8,
    ) -> Result<(), DecapsulateError> {
        let outer = match self.ecn {
            true => outer_traffic_class,
            false => outer_traffic_class & !ECN,
        };
        decapsulate(packet, outer, self.dscp_in)
    }
}

/// The bits of a traffic class that are ECN.
const ECN: u8 = 3;

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
