//! Inner packets: what policy looks at (RFC 4301 §4.4.1.1).

use std::net::IpAddr;

/// What policy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketSelectors {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The upper-layer protocol; for a non-first IPv6 fragment, what its fragment header names.
    pub protocol: u8,
    /// Source and destination port; `None` if the protocol has none, or they are not in this fragment. For ICMP
    /// both are type and code as one number.
    pub ports: Option<(u16, u16)>,
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    No,
    /// It is the first of several.
    First,
    /// It is one of the others.
    Later,
}

/// An inner packet, parsed as far as we need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// What policy looks at.
    pub selectors: PacketSelectors,
    /// Length as the IP header says, in bytes; what is behind it in the buffer is no part of the packet.
    pub total_len: usize,
    /// Offset of the upper-layer header (after options and extension headers), in bytes.
    pub upper_offset: usize,
    /// The traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// Whether routers must not fragment it: DF, and always in IPv6.
    pub dont_fragment: bool,
    /// Whether it is a fragment.
    pub fragment: Fragment,
}

/// Why bytes are no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// It ends before its header or its length says.
    #[error("the packet is truncated")]
    Truncated,
    /// It is neither IPv4 nor IPv6.
    #[error("IP version {0} is unknown")]
    Version(u8),
    /// A length or offset contradicts the rest.
    #[error("the header is invalid")]
    Invalid,
    /// There are more extension headers than we walk.
    #[error("there are too many extension headers")]
    TooManyHeaders,
}

/// Parses an inner packet. The IPv4 header checksum is not verified: the kernel does that where packets come in.
///
/// # Errors
/// See [`PacketError`].
pub fn parse(packet: &[u8]) -> Result<Inner, PacketError> {
    let _ = packet;
    todo!()
}

/// The ESP Next Header for an inner packet ([`protocol::IPV4`](crate::protocol::IPV4) or
/// [`protocol::IPV6`](crate::protocol::IPV6)), if it is one at all.
pub fn next_header(packet: &[u8]) -> Option<u8> {
    let _ = packet;
    todo!()
}

/// Writes the traffic class into an IPv4 or IPv6 header and keeps the IPv4 header checksum right. Bytes that are no IP header stay as they are.
pub fn set_traffic_class(packet: &mut [u8], traffic_class: u8) {
    let _ = (packet, traffic_class);
    todo!()
}
