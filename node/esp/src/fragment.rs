//! Fragmentation of inner IPv4 packets before encryption (RFC 791 §3.2, RFC 4301 §8).

/// Why a packet was not fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// It is not IPv4, or its header is malformed.
    #[error("the packet is not a valid IPv4 packet")]
    NotIpv4,
    /// It has DF set: an ICMP message is due.
    #[error("the packet must not be fragmented")]
    DontFragment,
    /// `mtu` is too small for even eight bytes of payload.
    #[error("the MTU is too small")]
    MtuTooSmall,
}

/// Cuts an IPv4 packet into fragments of at most `mtu` bytes; a packet that fits stays whole.
///
/// # Errors
/// See [`FragmentError`].
pub fn ipv4(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, FragmentError> {
    let _ = (packet, mtu);
    todo!()
}
