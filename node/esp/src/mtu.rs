//! What fits into one ESP packet.

use crate::{Cipher, ESP_HEADER_LEN, alignment};

/// The family of the outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4, without options.
    V4,
    /// IPv6, without extension headers.
    V6,
}

impl Family {
    /// Length of the outer IP header in bytes.
    pub fn header_len(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// The largest inner packet that fits into `path_mtu` bytes, with the outer IP header and, if `udp`, RFC 3948 encapsulation.
/// 0 if nothing fits.
pub fn max_inner(path_mtu: usize, cipher: Cipher, outer: Family, udp: bool) -> usize {
    let fixed = outer.header_len()
        + if udp { 8 } else { 0 }
        + ESP_HEADER_LEN
        + cipher.iv_len()
        + cipher.icv_len();
    let room = path_mtu.saturating_sub(fixed);
    // Payload, padding, Pad Length and Next Header fill whole words or blocks (RFC 4303 §2.4).
    (room - room % alignment(cipher.block())).saturating_sub(2)
}

/// Length of the ESP packet that [`OutboundSa::seal`](crate::OutboundSa::seal) makes of an inner packet, from SPI to ICV.
pub fn esp_len(inner_len: usize, cipher: Cipher) -> usize {
    let text_len = (inner_len + 2).next_multiple_of(alignment(cipher.block()));
    ESP_HEADER_LEN + cipher.iv_len() + text_len + cipher.icv_len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encryption, Integrity};

    const CBC: Cipher = Cipher {
        encryption: Encryption::AesCbc { key_bits: 128 },
        integrity: Some(Integrity::HmacSha256),
    };

    #[test]
    fn what_fits_fits_exactly() {
        for cipher in [
            Encryption::AesGcm16 { key_bits: 256 }.into(),
            Encryption::AesGcm8 { key_bits: 256 }.into(),
            Encryption::ChaCha20Poly1305Iiv.into(),
            CBC,
        ] {
            for outer in [Family::V4, Family::V6] {
                for udp in [false, true] {
                    let on_wire = |inner| {
                        outer.header_len() + if udp { 8 } else { 0 } + esp_len(inner, cipher)
                    };
                    for path_mtu in on_wire(0).max(100)..2000 {
                        let inner = max_inner(path_mtu, cipher, outer, udp);
                        assert!(on_wire(inner) <= path_mtu);
                        assert!(on_wire(inner + 1) > path_mtu);
                    }
                }
            }
        }
    }

    #[test]
    fn known_values() {
        let gcm = Encryption::AesGcm16 { key_bits: 128 }.into();
        assert_eq!(max_inner(1500, gcm, Family::V4, false), 1446);
        assert_eq!(max_inner(1500, gcm, Family::V4, true), 1438);
        assert_eq!(max_inner(1500, gcm, Family::V6, false), 1426);
        let iiv = Encryption::AesGcm16Iiv { key_bits: 128 }.into();
        assert_eq!(max_inner(1500, iiv, Family::V4, false), 1454);
        assert_eq!(max_inner(1500, CBC, Family::V4, false), 1438);
        assert_eq!(max_inner(50, gcm, Family::V6, true), 0);
    }
}
