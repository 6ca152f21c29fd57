//! MACs made of AES-128: XCBC (RFC 3566) and CMAC (RFC 4493). They differ in their keys only: both are a CBC-MAC whose
//! last block is masked with one of two subkeys.

use aes::{
    Aes128,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use cmac::{Cmac, Mac as _};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of a block of AES, and of the key.
const BLOCK: usize = 16;

/// A MAC with its key, ready for use.
pub(crate) enum Prepared {
    Xcbc(Box<Xcbc>),
    Cmac(Box<Cmac<Aes128>>),
}

impl Prepared {
    /// AES-XCBC-MAC with a key of 16 bytes.
    pub(crate) fn xcbc(key: &[u8]) -> Self {
        Self::Xcbc(Box::new(Xcbc::new(&block_of(key))))
    }

    /// AES-CMAC with a key of 16 bytes.
    pub(crate) fn cmac(key: &[u8]) -> Self {
        Self::Cmac(Box::new(Cmac::new(&(*block_of(key)).into())))
    }

    /// The whole MAC of all parts.
    pub(crate) fn compute(&self, parts: &[&[u8]]) -> [u8; BLOCK] {
        match self {
            Self::Xcbc(key) => key.compute(parts),
            Self::Cmac(key) => {
                let mut mac = (**key).clone();
                parts.iter().for_each(|part| mac.update(part));
                mac.finalize().into_bytes().into()
            }
        }
    }
}

/// AES-XCBC-MAC with all 128 bits of output, of all parts: the PRF of RFC 4434, with its rules for keys of other lengths than 16
/// bytes (§2).
pub fn xcbc(key: &[u8], parts: &[&[u8]]) -> [u8; BLOCK] {
    let key = match key.len() {
        ..=BLOCK => block_of(key),
        _ => Zeroizing::new(Xcbc::new(&[0; BLOCK]).compute(&[key])),
    };
    Xcbc::new(&key).compute(parts)
}

/// AES-CMAC with all 128 bits of output, of all parts: the PRF of RFC 4615, with its rule for keys of other lengths than 16 bytes
/// (§3).
pub fn cmac(key: &[u8], parts: &[&[u8]]) -> [u8; BLOCK] {
    let key = match key.len() {
        BLOCK => block_of(key),
        _ => Zeroizing::new(Prepared::cmac(&[0; BLOCK]).compute(&[key])),
    };
    Prepared::cmac(&*key).compute(parts)
}

/// `bytes` with zeros behind them; what is beyond a block is cut off.
fn block_of(bytes: &[u8]) -> Zeroizing<[u8; BLOCK]> {
    let mut block = Zeroizing::new([0; BLOCK]);
    let len = bytes.len().min(BLOCK);
    block[..len].copy_from_slice(&bytes[..len]);
    block
}

/// The three keys of AES-XCBC-MAC (RFC 3566 §4).
#[derive(ZeroizeOnDrop)]
pub(crate) struct Xcbc {
    cipher: Aes128,
    /// Masks a last block that is whole.
    whole: [u8; BLOCK],
    /// Masks a last block that was padded.
    padded: [u8; BLOCK],
}

impl Xcbc {
    fn new(key: &[u8; BLOCK]) -> Self {
        let base = Aes128::new(key.into());
        let subkey = |value: u8| {
            let mut block = [value; BLOCK];
            encrypt(&base, &mut block);
            block
        };
        let mut first = subkey(1);
        let cipher = Aes128::new(&first.into());
        first.zeroize();
        Self {
            cipher,
            whole: subkey(2),
            padded: subkey(3),
        }
    }

    fn compute(&self, parts: &[&[u8]]) -> [u8; BLOCK] {
        let mut state = [0; BLOCK];
        let mut filled = 0;
        for byte in parts.iter().copied().flatten() {
            // A full block is encrypted only when it is certain that it is not the last.
            if filled == BLOCK {
                encrypt(&self.cipher, &mut state);
                filled = 0;
            }
            state[filled] ^= byte;
            filled += 1;
        }
        let mask = if filled == BLOCK {
            &self.whole
        } else {
            state[filled] ^= 0x80;
            &self.padded
        };
        state.iter_mut().zip(mask).for_each(|(s, m)| *s ^= m);
        encrypt(&self.cipher, &mut state);
        state
    }
}

fn encrypt(cipher: &Aes128, block: &mut [u8; BLOCK]) {
    cipher.encrypt_block(block.into());
}
