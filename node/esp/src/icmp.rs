//! "Too big" messages for inner packets that do not fit (RFC 1191 §4, RFC 4443 §3.2).

use std::net::IpAddr;

/// The message for the sender of `packet`, which is larger than `mtu` bytes: a whole IP packet from `source`.
///
/// `None` where none may be sent: about ICMP errors, packets to or from groups, fragments but the first (RFC 1122 §3.2.2,
/// RFC 4443 §2.4), about IPv4 packets that may be fragmented, and if `source` is of another family.
pub fn too_big(packet: &[u8], mtu: usize, source: IpAddr) -> Option<Vec<u8>> {
    let _ = (packet, mtu, source);
    todo!()
}
