//! What the kernel calls ciphers, and how it wants their keys.

use crate::{Cipher, Encryption, Integrity, PlaneError};
use netlink_packet_xfrm::{Alg, AlgAead, AlgAuth, XfrmAttrs};
use zeroize::Zeroize;

/// What the kernel can do: all but what needs an IV that is not on the wire (RFC 8750).
pub(super) static ENCRYPTION: &[Encryption] = &[
    Encryption::AesGcm16 { key_bits: 256 },
    Encryption::AesGcm12 { key_bits: 256 },
    Encryption::AesGcm8 { key_bits: 256 },
    Encryption::AesCcm16 { key_bits: 256 },
    Encryption::AesCcm12 { key_bits: 256 },
    Encryption::AesCcm8 { key_bits: 256 },
    Encryption::ChaCha20Poly1305,
    Encryption::AesCtr { key_bits: 256 },
    Encryption::AesCbc { key_bits: 256 },
];

/// The algorithms of a state with this key material: key, salt and integrity key, in this order. They hold keys: see [`wipe`].
pub(super) fn attributes(cipher: Cipher, material: &[u8]) -> Result<Vec<XfrmAttrs>, PlaneError> {
    if !cipher.is_whole() || material.len() != cipher.material_len() {
        return Err(PlaneError::Key);
    }
    let name = encryption_name(cipher.encryption).ok_or(PlaneError::Key)?;
    let Some(integrity) = cipher.integrity else {
        return Ok(vec![XfrmAttrs::EncryptionAlgAead(AlgAead {
            alg_name: padded(name),
            alg_key_len: bits(material.len()),
            alg_icv_len: bits(cipher.icv_len()),
            alg_key: material.to_vec(),
        })]);
    };
    let (encryption, authentication) =
        material.split_at(material.len() - cipher.integrity_key_len());
    Ok(vec![
        XfrmAttrs::EncryptionAlg(Alg {
            alg_name: padded(name),
            alg_key_len: bits(encryption.len()),
            alg_key: encryption.to_vec(),
        }),
        XfrmAttrs::AuthenticationAlgTrunc(AlgAuth {
            alg_name: padded(integrity_name(integrity)),
            alg_key_len: bits(authentication.len()),
            alg_trunc_len: bits(integrity.icv_len()),
            alg_key: authentication.to_vec(),
        }),
    ])
}

/// The key material in what the kernel tells of a state; empty if it does not tell.
pub(super) fn material(attributes: &[XfrmAttrs]) -> Vec<u8> {
    let mut parts: [&[u8]; 2] = [&[]; 2];
    for attribute in attributes {
        match attribute {
            XfrmAttrs::EncryptionAlgAead(a) => parts[0] = &a.alg_key,
            XfrmAttrs::EncryptionAlg(a) => parts[0] = &a.alg_key,
            XfrmAttrs::AuthenticationAlgTrunc(a) => parts[1] = &a.alg_key,
            _ => {}
        }
    }
    parts.concat()
}

/// Overwrites all keys.
pub(super) fn wipe(attributes: &mut [XfrmAttrs]) {
    for attribute in attributes {
        match attribute {
            XfrmAttrs::EncryptionAlgAead(a) => a.alg_key.zeroize(),
            XfrmAttrs::EncryptionAlg(a) | XfrmAttrs::AuthenticationAlg(a) => a.alg_key.zeroize(),
            XfrmAttrs::AuthenticationAlgTrunc(a) => a.alg_key.zeroize(),
            _ => {}
        }
    }
}

fn encryption_name(encryption: Encryption) -> Option<&'static str> {
    Some(match encryption {
        Encryption::AesGcm16 { .. } | Encryption::AesGcm12 { .. } | Encryption::AesGcm8 { .. } => {
            "rfc4106(gcm(aes))"
        }
        Encryption::AesCcm16 { .. } | Encryption::AesCcm12 { .. } | Encryption::AesCcm8 { .. } => {
            "rfc4309(ccm(aes))"
        }
        Encryption::ChaCha20Poly1305 => "rfc7539esp(chacha20,poly1305)",
        Encryption::AesCtr { .. } => "rfc3686(ctr(aes))",
        Encryption::AesCbc { .. } => "cbc(aes)",
        Encryption::AesGcm16Iiv { .. }
        | Encryption::AesCcm8Iiv { .. }
        | Encryption::ChaCha20Poly1305Iiv => return None,
    })
}

fn integrity_name(integrity: Integrity) -> &'static str {
    match integrity {
        Integrity::HmacSha1 => "hmac(sha1)",
        Integrity::HmacSha256 => "hmac(sha256)",
        Integrity::HmacSha384 => "hmac(sha384)",
        Integrity::HmacSha512 => "hmac(sha512)",
        Integrity::AesXcbc => "xcbc(aes)",
        Integrity::AesCmac => "cmac(aes)",
    }
}

fn padded(name: &str) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn bits(bytes: usize) -> u32 {
    u32::try_from(bytes * 8).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aead_has_its_salt_behind_the_key() {
        let cipher = Cipher::from(Encryption::AesGcm8 { key_bits: 128 });
        let key: Vec<u8> = (0..20).collect();
        let all = attributes(cipher, &key).unwrap();
        let [XfrmAttrs::EncryptionAlgAead(aead)] = &all[..] else {
            panic!("not one AEAD");
        };
        assert!(aead.alg_name.starts_with(b"rfc4106(gcm(aes))\0"));
        assert_eq!((aead.alg_key_len, aead.alg_icv_len), (160, 64));
        assert_eq!(material(&all), key);
    }

    #[test]
    fn a_cipher_with_integrity_has_two_keys() {
        let cipher = Cipher {
            encryption: Encryption::AesCbc { key_bits: 256 },
            integrity: Some(Integrity::HmacSha384),
        };
        let key: Vec<u8> = (0..80).collect();
        let mut all = attributes(cipher, &key).unwrap();
        let [
            XfrmAttrs::EncryptionAlg(encryption),
            XfrmAttrs::AuthenticationAlgTrunc(integrity),
        ] = &all[..]
        else {
            panic!("not two algorithms");
        };
        assert_eq!(
            (&encryption.alg_key[..], &integrity.alg_key[..]),
            (&key[..32], &key[32..])
        );
        assert_eq!(integrity.alg_trunc_len, 192);
        wipe(&mut all);
        assert!(material(&all).is_empty());
    }

    #[test]
    fn what_the_kernel_lacks_or_does_not_fit_is_refused() {
        let implicit = Cipher::from(Encryption::ChaCha20Poly1305Iiv);
        assert!(matches!(
            attributes(implicit, &[0; 36]),
            Err(PlaneError::Key)
        ));
        let short = Cipher::from(Encryption::ChaCha20Poly1305);
        assert!(matches!(attributes(short, &[0; 32]), Err(PlaneError::Key)));
        for encryption in ENCRYPTION.iter().filter(|e| e.is_aead()) {
            let cipher = Cipher::from(*encryption);
            assert!(attributes(cipher, &vec![0; cipher.material_len()]).is_ok());
        }
    }
}
