//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// The checksum of `bytes`, where `initial` is the sum of what comes before (a pseudo-header), not folded.
pub(crate) fn checksum(bytes: &[u8], initial: u64) -> u16 {
    !fold(initial + u64::from(sum(bytes)))
}

/// The one's complement sum of the 16-bit words of `bytes`; a last odd byte is the high half of one.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    // Words may be added as they lie in memory, and several at a time: the sum only comes out with its bytes in the same order
    // (RFC 1071 §2 (B), (C)). Halves of 64 bits cannot overflow for any length that a packet has, and this is a loop that
    // compilers make vectors of.
    let (wide, rest) = bytes.as_chunks::<32>();
    let mut sums = [0_u64; 8];
    for chunk in wide {
        let (words, _) = chunk.as_chunks::<4>();
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    let mut total: u64 = sums.iter().sum();
    total += pairs
        .iter()
        .map(|pair| u64::from(u16::from_ne_bytes(*pair)))
        .sum::<u64>();
    if let [last] = odd {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u16::from_be(fold(total))
}

/// The checksum after a word that it covers changed from `old` to `new` (RFC 1624 §3, equation 3).
pub(crate) fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

/// The checksum after words that it covers changed from `old` to `new`, as many or not.
pub(crate) fn update_words(
    checksum: u16,
    old: impl Iterator<Item = u16>,
    new: impl Iterator<Item = u16>,
) -> u16 {
    let old: u64 = old.map(|word| u64::from(!word)).sum();
    let new: u64 = new.map(u64::from).sum();
    !fold(u64::from(!checksum) + old + new)
}

/// Changes the 16-bit word at `at` and the checksum at `checksum_at` that covers it from offset `base` on.
///
/// # Panics
/// If any of them is outside `packet`: callers have parsed it.
pub(crate) fn replace_word(
    packet: &mut [u8],
    base: usize,
    at: usize,
    new: u16,
    checksum_at: usize,
) {
    let old = u16::from_be_bytes([packet[at], packet[at + 1]]);
    let check = u16::from_be_bytes([packet[checksum_at], packet[checksum_at + 1]]);
    // A word at an odd offset counts with its bytes swapped (RFC 1071 §2 (B)).
    let check = if (at - base).is_multiple_of(2) {
        update(check, old, new)
    } else {
        update(check, old.swap_bytes(), new.swap_bytes())
    };
    packet[at..at + 2].copy_from_slice(&new.to_be_bytes());
    packet[checksum_at..checksum_at + 2].copy_from_slice(&check.to_be_bytes());
}

#[expect(clippy::cast_possible_truncation, reason = "the loop leaves 16 bits")]
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc1071_example() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0),
            !0xddf2
        );
        assert_eq!(checksum(&[0x12], 0), !0x1200);
    }

    #[test]
    fn rfc1624_example() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    /// As RFC 1071 §1 says it, word by word.
    fn word_by_word(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| match *pair {
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            [high] => u64::from(high) << 8,
            _ => 0,
        });
        fold(words.sum())
    }

    proptest! {
        #[test]
        fn many_words_at_a_time_are_the_same_sum(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(sum(&bytes), word_by_word(&bytes));
        }

        #[test]
        fn update_equals_computing_anew(
            mut bytes in proptest::collection::vec(any::<u8>(), 8..60),
            at in 4..60usize,
            new: u16,
        ) {
            let at = at.min(bytes.len() - 2);
            bytes[2..4].fill(0);
            bytes[0] |= 1; // not all zero, where both zeros of one's complement would be right
            let check = checksum(&bytes, 0);
            bytes[2..4].copy_from_slice(&check.to_be_bytes());
            replace_word(&mut bytes, 0, at, new, 2);
            prop_assert_eq!(checksum(&bytes, 0), 0);
        }
    }
}
