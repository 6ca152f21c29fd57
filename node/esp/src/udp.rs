//! What a datagram at port 4500 is (RFC 3948 §2).

/// The content of a datagram at port 4500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// A NAT keepalive: one byte 0xff.
    Keepalive,
    /// An IKE message, without the non-ESP marker.
    Ike(&'a [u8]),
    /// An ESP packet.
    Esp(&'a [u8]),
    /// Nothing that we know.
    Unknown,
}

/// Tells what a datagram at port 4500 is.
pub fn classify(datagram: &[u8]) -> Datagram<'_> {
    match datagram {
        [0xff] => Datagram::Keepalive,
        [0, 0, 0, 0, message @ ..] => Datagram::Ike(message),
        esp if esp.len() > 8 => Datagram::Esp(esp),
        _ => Datagram::Unknown,
    }
}
