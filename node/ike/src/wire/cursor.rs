//! Reading and writing big-endian fields, with offsets for errors and lengths filled in later.

use super::ParseError;

/// A position in bytes of which nothing is read twice and nothing beyond the end.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// Reads `bytes`, which stand at `offset` in the message.
    pub(super) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self {
            rest: bytes,
            offset,
        }
    }

    /// Offset of the next byte from the start of the message.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// How many bytes are left.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], ParseError> {
        let Some((head, tail)) = self.rest.split_at_checked(len) else {
            return Err(ParseError::Truncated {
                what,
                offset: self.offset,
            });
        };
        self.rest = tail;
        self.offset += len;
        Ok(head)
    }

    /// The next `len` bytes as a cursor of their own.
    pub(super) fn sub(&mut self, len: usize, what: &'static str) -> Result<Self, ParseError> {
        let offset = self.offset;
        Ok(Self::new(self.take(len, what)?, offset))
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], ParseError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        self.offset += self.rest.len();
        std::mem::take(&mut self.rest)
    }

    /// The next byte.
    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, ParseError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// The next two bytes.
    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, ParseError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// The next four bytes.
    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, ParseError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// The next eight bytes.
    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, ParseError> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// Nothing may be left.
    pub(super) fn finish(&self, what: &'static str) -> Result<(), ParseError> {
        if self.is_empty() {
            return Ok(());
        }
        Err(ParseError::Invalid {
            what,
            offset: self.offset,
        })
    }
}

/// Writes a structure that begins with `head`, whose 16-bit length field is at `length_at` from
/// its start, and whose rest `body` writes.
///
/// # Panics
/// If the structure is longer than 65,535 bytes. What was parsed never is.
pub(super) fn with_length(
    out: &mut Vec<u8>,
    head: &[u8],
    length_at: usize,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(head);
    body(out);
    let length = u16::try_from(out.len() - start).expect("a structure is shorter than 64 KiB");
    out[start + length_at..start + length_at + 2].copy_from_slice(&length.to_be_bytes());
}

/// A count as the byte that it is on the wire.
///
/// # Panics
/// If it is above 255. What was parsed never is.
pub(super) fn count_u8(count: usize) -> u8 {
    u8::try_from(count).expect("a list is shorter than 256")
}
