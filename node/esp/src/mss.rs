//! Clamping of the TCP maximum segment size.

/// Lowers the MSS option of a TCP SYN (first fragment or whole, IPv4 or IPv6) so that segments fit into inner packets of `mtu`
/// bytes, and corrects the TCP checksum. Yields whether anything was changed. Other packets stay as they are.
pub fn clamp(packet: &mut [u8], mtu: usize) -> bool {
    let _ = (packet, mtu);
    todo!()
}
