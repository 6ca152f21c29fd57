//! The invariants.

use evergate_ike::{
    record::{Phase, Record},
    wire::{ExchangeType, Header, Message},
};
use std::collections::{BTreeMap, BTreeSet};

/// Of so many records one is looked at that closely, or this would be a third of all work. Which ones follows from the records, so a finding comes again.
const ONE_OF: u64 = 8;

/// A record is what is replicated: it must come back as it was.
///
/// # Panics
/// If it does not.
pub(super) fn survives_serialisation(record: &Record) {
    if !record
        .id
        .0
        .wrapping_add(record.revision)
        .is_multiple_of(ONE_OF)
    {
        return;
    }
    let bytes = postcard::to_stdvec(record).expect("plain values");
    let again: Record = postcard::from_bytes(&bytes).expect("we read what we write");
    assert!(
        &again == record,
        "a record is another after it was serialised"
    );
}

/// The data plane has the Child SAs of the records, and no other.
///
/// # Panics
/// If it has others.
pub(super) fn plane_agrees<'a>(plane: &BTreeSet<u32>, records: impl Iterator<Item = &'a Record>) {
    let recorded: BTreeSet<u32> = records
        .flat_map(|record| record.children().iter().map(|child| child.spi_in))
        .collect();
    assert_eq!(
        plane, &recorded,
        "the data plane has other Child SAs than the records"
    );
}

/// Which key, and what it is unique for.
type Sealed = (u64, u64, bool, [u8; 8]);
/// Which message of which SA: the SPIs, the sender, whether it is a response, exchange, Message ID, and the fragment.
type Said = (u64, u64, bool, bool, u8, u32, u16);

/// Everything that was ever sent.
#[derive(Clone, Default)]
pub(super) struct Log {
    sealed: BTreeMap<Sealed, Vec<u8>>,
    said: BTreeMap<Said, Vec<u8>>,
    /// All messages, by receiver.
    genuine: BTreeSet<(bool, Vec<u8>)>,
}

impl Log {
    /// Notes a message that an end sends.
    ///
    /// # Panics
    /// If it does not parse, if an IV was used before for other bytes, or if the same message was said before in other words.
    pub(super) fn sent(&mut self, to_b: bool, bytes: &[u8]) {
        let message = Message::parse(bytes).expect("we send what parses");
        let h: Header = message.header;
        if let Some(protected) = &message.protected {
            let iv = *protected.body.first_chunk().expect("an IV");
            let key = (h.initiator_spi, h.responder_spi, h.from_initiator, iv);
            let before = self.sealed.insert(key, bytes.to_vec());
            assert!(before.is_none_or(|b| b == bytes), "an IV was used twice");
            // Empty messages, and answers to a return routability check, may come with another IV from a successor.
            if h.exchange != ExchangeType::INFORMATIONAL {
                let fragment = protected.fragment.map_or(0, |(number, _)| number);
                let key = (
                    h.initiator_spi,
                    h.responder_spi,
                    h.from_initiator,
                    h.is_response,
                    h.exchange.0,
                    h.message_id,
                    fragment,
                );
                let before = self.said.insert(key, bytes.to_vec());
                assert!(
                    before.is_none_or(|b| b == bytes),
                    "the same message in other words"
                );
            }
        }
        self.genuine.insert((to_b, bytes.to_vec()));
    }

    /// Whether an end with the keys has sent these bytes to this end.
    pub(super) fn is_genuine(&self, to_b: bool, bytes: &[u8]) -> bool {
        self.genuine.contains(&(to_b, bytes.to_vec()))
    }

    /// A peer with the keys says this, whatever it is.
    pub(super) fn vouch(&mut self, to_b: bool, bytes: &[u8]) {
        self.genuine.insert((to_b, bytes.to_vec()));
    }
}

/// Established SAs that both ends have, have the same Child SAs with the same keys.
///
/// # Panics
/// If they have others.
pub(super) fn ends_agree<'a>(
    ours: impl Iterator<Item = &'a Record>,
    theirs: impl Iterator<Item = &'a Record> + Clone,
) {
    for a in ours {
        let is_same = |b: &&Record| (a.id.0, a.remote_spi) == (b.remote_spi, b.id.0);
        let Some(b) = theirs.clone().find(is_same) else {
            continue;
        };
        let (Phase::Established(x), Phase::Established(y)) = (&a.phase, &b.phase) else {
            continue;
        };
        if x.replaced_by.is_some() || y.replaced_by.is_some() {
            continue;
        }
        let of_a: BTreeSet<_> = x.children.iter().map(|c| (c.spi_in, c.spi_out)).collect();
        let of_b: BTreeSet<_> = y.children.iter().map(|c| (c.spi_out, c.spi_in)).collect();
        assert_eq!(of_a, of_b, "the ends have other Child SAs");
        for child in &x.children {
            let other = y.children.iter().find(|c| c.spi_out == child.spi_in);
            let other = other.expect("just compared");
            assert!(
                child.key_in == other.key_out && child.key_out == other.key_in,
                "other keys"
            );
            assert_eq!(
                (&child.local_ts, &child.remote_ts),
                (&other.remote_ts, &other.local_ts)
            );
        }
    }
}
