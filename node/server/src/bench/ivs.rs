//! What peers see of the law that no IV is used twice: the IVs of the messages and packets that they receive.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// IVs of IKE messages that are remembered: a hundred takeovers of a thousand SAs several times over, and some 100 MB. Further ones are only counted.
const MOST: usize = 2_000_000;

/// First byte behind the header, and the payload types that it may name: Encrypted, and Encrypted Fragment (RFC 7296 §3.2, RFC 7383 §2.5).
const HEADER: usize = 28;
const SK: u8 = 46;
const SKF: u8 = 53;
/// What precedes the IV in them.
const BEFORE_IV: usize = 4;
const BEFORE_FRAGMENT_IV: usize = 8;

/// The IVs of IKE messages, with what they stood over.
#[derive(Debug, Default)]
pub(super) struct IkeIvs {
    /// By both SPIs and the IV: a hash of the message.
    seen: HashMap<([u8; 16], [u8; 8]), u64>,
    /// How many stood over different messages.
    pub(super) twice: u64,
    /// How many could not be remembered.
    pub(super) unchecked: u64,
}

impl IkeIvs {
    /// Takes a message of the gateway's. One that comes again byte for byte is a retransmission.
    pub(super) fn see(&mut self, message: &[u8]) {
        let Some((spis, iv)) = iv_of(message) else {
            return;
        };
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        let hash = hasher.finish();
        if self.seen.len() >= MOST && !self.seen.contains_key(&(spis, iv)) {
            self.unchecked += 1;
            return;
        }
        if *self.seen.entry((spis, iv)).or_insert(hash) != hash {
            self.twice += 1;
        }
    }
}

fn iv_of(message: &[u8]) -> Option<([u8; 16], [u8; 8])> {
    let at = match *message.get(16)? {
        SK => HEADER + BEFORE_IV,
        SKF => HEADER + BEFORE_FRAGMENT_IV,
        _ => return None,
    };
    let iv = message.get(at..at + 8)?.try_into().ok()?;
    Some((message.get(..16)?.try_into().ok()?, iv))
}

/// The sequence numbers of one Child SA that came: they are its IVs.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// First and last of what came without a hole between, ascending.
    runs: Vec<(u64, u64)>,
}

impl Numbers {
    /// A number came; false if it had come before.
    pub(super) fn see(&mut self, number: u64) -> bool {
        // Most follow the last one.
        if let Some((_, last)) = self.runs.last_mut()
            && *last + 1 == number
        {
            *last = number;
            return true;
        }
        let at = self.runs.partition_point(|(first, _)| *first <= number);
        if at > 0 && self.runs[at - 1].1 >= number {
            return false;
        }
        let joins_left = at > 0 && self.runs[at - 1].1 + 1 == number;
        let joins_right = self.runs.get(at).is_some_and(|(f, _)| *f == number + 1);
        match (joins_left, joins_right) {
            (true, true) => self.runs[at - 1].1 = self.runs.remove(at).1,
            (true, false) => self.runs[at - 1].1 = number,
            (false, true) => self.runs[at].0 = number,
            (false, false) => self.runs.insert(at, (number, number)),
        }
        true
    }

    /// Whether this number had come, of which the lower half is known.
    pub(super) fn has(&self, low: u32) -> bool {
        let top = self.runs.last().map_or(0, |(_, last)| *last >> 32);
        let number = top << 32 | u64::from(low);
        let at = self.runs.partition_point(|(first, _)| *first <= number);
        at > 0 && self.runs[at - 1].1 >= number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iv_over_two_messages_is_found_and_a_retransmission_is_none() {
        let mut message = vec![7; 60];
        message[16] = SK;
        let mut ivs = IkeIvs::default();
        ivs.see(&message);
        ivs.see(&message);
        assert_eq!(ivs.twice, 0);
        let mut other_sa = message.clone();
        other_sa[0] = 8;
        ivs.see(&other_sa);
        assert_eq!(ivs.twice, 0);
        message[50] = 8;
        ivs.see(&message);
        assert_eq!(ivs.twice, 1);
        message[16] = 33;
        ivs.see(&message);
        ivs.see(&message[..30]);
        assert_eq!((ivs.twice, ivs.unchecked), (1, 0));
    }

    #[test]
    fn a_number_is_new_once_in_whatever_order_they_come() {
        let mut numbers = Numbers::default();
        let order = [5, 6, 9, 7, 100, 8, 1, 99, 3, 2];
        assert!(order.iter().all(|n| numbers.see(*n)));
        assert!(!order.iter().any(|n| numbers.see(*n)));
        assert_eq!(numbers.runs, [(1, 3), (5, 9), (99, 100)]);
        assert!(numbers.has(99) && !numbers.has(4) && !numbers.has(98) && !numbers.has(0));
        assert!(numbers.see((1 << 32) + 4) && numbers.has(4) && !numbers.has(5));
    }
}
