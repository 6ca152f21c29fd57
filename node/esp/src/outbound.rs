//! Outbound SAs: sealing (RFC 4303 §3.3).

use crate::{Exhausted, Key, RangeError, SequenceNumber};
use std::{ops::Range, sync::atomic::AtomicU64};

/// Why a packet could not be sealed: the caller's buffer is the reason, never the packet's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The buffer lacks [`HEADROOM`](crate::HEADROOM) or [`TAILROOM`](crate::TAILROOM), or the range of the inner packet is not inside it.
    #[error("the buffer has no room for the ESP header or trailer")]
    NoRoom,
}

/// An SA that we send with. Cheap to make: no key schedule before the first packet.
#[derive(Debug)]
pub struct OutboundSa {
    spi: u32,
    key: Key,
    esn: bool,
    sequence: crate::sequence::Allocator,
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl OutboundSa {
    /// An SA without any reservation: it sends nothing before [`Self::extend`].
    pub fn new(spi: u32, key: Key, esn: bool) -> Self {
        let _ = (spi, key, esn);
        todo!()
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

    /// Packets and bytes of inner packets sealed so far.
    pub fn sent(&self) -> (u64, u64) {
        todo!()
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
        let _ = (seq, next_header, buf, inner);
        todo!()
    }
}
