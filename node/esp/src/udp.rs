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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_told_apart() {
        assert_eq!(classify(&[0xff]), Datagram::Keepalive);
        assert_eq!(classify(&[0, 0, 0, 0, 7, 8]), Datagram::Ike(&[7, 8]));
        let esp = [0, 0, 1, 0, 0, 0, 0, 1, 9];
        assert_eq!(classify(&esp), Datagram::Esp(&esp));
        for unknown in [&[][..], &[0], &[0xff, 0xff], &esp[..8]] {
            assert_eq!(classify(unknown), Datagram::Unknown);
        }
    }
}
