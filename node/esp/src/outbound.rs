//! Outbound SAs: sealing (RFC 4303 §3.3).

use crate::{
    ESP_HEADER_LEN, Exhausted, Key, RangeError, SequenceNumber, SequenceNumbers, alignment,
    sequence::Allocator,
};
use evergate_crypto::{Associated, prefetch_some};
use std::{mem::offset_of, ops::Range};

/// Why a packet could not be sealed: the caller's buffer is the reason, never the packet's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The buffer lacks [`HEADROOM`](crate::HEADROOM) or [`TAILROOM`](crate::TAILROOM), or the range of the inner packet is not inside it.
    #[error("the buffer has no room for the ESP header or trailer")]
    NoRoom,
}

/// An SA that we send with. Cheap to make: no key schedule before the first packet.
#[derive(Debug)]
#[repr(C)] // what each packet needs lies together
pub struct OutboundSa {
    spi: u32,
    esn: bool,
    key: Key,
    sequence: Allocator,
}

impl OutboundSa {
    /// An SA without any reservation: it sends nothing before [`Self::extend`].
    pub fn new(spi: u32, key: Key, esn: bool) -> Self {
        let sequence = Allocator::new(esn);
        Self {
            spi,
            key,
            esn,
            sequence,
        }
    }

    /// Has the memory of this fetched, as far as each packet needs it.
    pub fn fetch(&self) {
        prefetch_some(self, offset_of!(Self, sequence) + Allocator::HOT_LEN);
    }

    /// Has all else fetched that sealing a packet needs, as [`InboundSa::warm`](crate::InboundSa::warm).
    pub fn warm(&self) {
        self.key.warm();
    }

    /// The peer's SPI.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether sequence numbers have 64 bits.
    pub fn esn(&self) -> bool {
        self.esn
    }

    /// Takes the next reserved sequence number. Lock-free while a range lasts.
    ///
    /// # Errors
    /// If nothing is reserved: the packet must be dropped and counted.
    pub fn next_seq(&self) -> Result<SequenceNumber, Exhausted> {
        self.sequence.take()
    }

    /// Takes up to `most` reserved sequence numbers at once, and at least one: fewer where a reserved range ends.
    ///
    /// # Errors
    /// If nothing is reserved: the packets must be dropped and counted.
    pub fn next_seqs(&self, most: usize) -> Result<SequenceNumbers, Exhausted> {
        self.sequence.take_some(most as u64)
    }

    /// Bytes of an ESP packet of this SA before the inner packet: header and IV.
    pub fn head_len(&self) -> usize {
        ESP_HEADER_LEN + self.key.shape().iv_len
    }

    /// Adds a reserved range, `start` included and `end` not, for use after what is already there. It may begin
    /// beyond the end of the last one (a jump), never before.
    ///
    /// # Errors
    /// If it overlaps what was ever reserved here, contains 0, passes the 32-bit space without ESN, or too many
    /// disjoint ranges wait.
    pub fn extend(&self, range: Range<u64>) -> Result<(), RangeError> {
        self.sequence.extend(range)
    }

    /// Drops all that is reserved and not used; nothing is sent until [`Self::extend`]. A number that another
    /// thread takes at this moment may still go out.
    pub fn revoke(&self) {
        self.sequence.revoke();
    }

    /// How many reserved numbers are left.
    pub fn remaining(&self) -> u64 {
        self.sequence.remaining()
    }

    /// The number that would be taken next; where a new range may begin if nothing is left.
    pub fn peek_seq(&self) -> u64 {
        self.sequence.next()
    }

    /// Seals the packet at `inner` in `buf` in place: [`HEADROOM`](crate::HEADROOM) bytes before it and up to
    /// [`TAILROOM`](crate::TAILROOM) behind it are overwritten. Yields where the ESP packet is. `next_header` is
    /// [`protocol::IPV4`](crate::protocol::IPV4), [`protocol::IPV6`](crate::protocol::IPV6) or
    /// [`protocol::NO_NEXT_HEADER`](crate::protocol::NO_NEXT_HEADER).
    ///
    /// # Errors
    /// If the buffer is too small. Then the sequence number is lost, which only makes a gap.
    pub fn seal(
        &self,
        seq: SequenceNumber,
        next_header: u8,
        buf: &mut [u8],
        inner: Range<usize>,
    ) -> Result<Range<usize>, SealError> {
        // The IV is a function of key and sequence number, and each number is taken once (RFC 4106 §3.1).
        self.seal_numbered(seq.get(), seq.get(), next_header, buf, inner)
    }

    /// Seals under the sequence number `seq` with the IV that belongs to `number`.
    fn seal_numbered(
        &self,
        seq: u64,
        number: u64,
        next_header: u8,
        buf: &mut [u8],
        inner: Range<usize>,
    ) -> Result<Range<usize>, SealError> {
        let shape = self.key.shape();
        let head_len = self.head_len();
        let start = inner.start.checked_sub(head_len).ok_or(SealError::NoRoom)?;
        let inner_len = inner
            .end
            .checked_sub(inner.start)
            .ok_or(SealError::NoRoom)?;
        // As `next_multiple_of`, without a division.
        let mask = alignment(shape.block) - 1;
        let text_len = (inner_len + 2 + mask) & !mask;
        let end = inner.start + text_len + shape.icv_len;
        let packet = buf.get_mut(start..end).ok_or(SealError::NoRoom)?;

        let (header, rest) = packet.split_at_mut(ESP_HEADER_LEN);
        let (iv, rest) = rest.split_at_mut(shape.iv_len);
        let (text, icv) = rest.split_at_mut(text_len);
        header[..4].copy_from_slice(&self.spi.to_be_bytes());
        header[4..].copy_from_slice(&seq.to_be_bytes()[4..]);
        write_trailer(&mut text[inner_len..], next_header);
        let aad = Aad::new(self.spi, seq, self.esn);
        self.key
            .seal(number, &aad.associated(header), iv, text, icv);
        Ok(start..end)
    }
}

/// Padding 1, 2, 3, …, its length, and what was padded (RFC 4303 §2.4 to §2.6).
fn write_trailer(trailer: &mut [u8], next_header: u8) {
    let pad_len = trailer.len() - 2;
    for (value, byte) in (1..).zip(&mut trailer[..pad_len]) {
        *byte = value;
    }
    trailer[pad_len] = u8::try_from(pad_len).expect("less than a block fills a block");
    trailer[pad_len + 1] = next_header;
}

/// What is authenticated besides the ciphertext: SPI and the whole sequence number (RFC 4106 §5, RFC 7634 §2.1). With an integrity
/// algorithm it is the header, and the high half of an extended sequence number behind the ciphertext (RFC 4303 §2.8, §3.3.2.1).
pub(crate) struct Aad {
    bytes: [u8; 12],
    len: usize,
    high: [u8; 4],
}

impl Aad {
    pub(crate) fn new(spi: u32, seq: u64, esn: bool) -> Self {
        let mut bytes = [0; 12];
        let mut high = [0; 4];
        bytes[..4].copy_from_slice(&spi.to_be_bytes());
        let number = seq.to_be_bytes();
        high.copy_from_slice(&number[..4]);
        let len = if esn {
            bytes[4..].copy_from_slice(&number);
            12
        } else {
            bytes[4..8].copy_from_slice(&number[4..]);
            8
        };
        Self { bytes, len, high }
    }

    /// `header` is the ESP header as it is on the wire.
    pub(crate) fn associated<'a>(&'a self, header: &'a [u8]) -> Associated<'a> {
        let esn = self.len == self.bytes.len();
        Associated {
            aead: &self.bytes[..self.len],
            before: header,
            after: if esn { &self.high } else { &[] },
        }
    }
}

#[cfg(test)]
mod tests;
