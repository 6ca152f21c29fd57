//! IKE fragmentation (RFC 7383): messages that are too long for one datagram are sent in parts, each protected by itself.
//!
//! What is sent is part of the record, all fragments of it, so that every repetition is the same. What is being put together is not: a
//! message counts when it is whole, and a successor gets it again, because the peer repeats what was not answered.

use super::{
    Failure,
    turn::{Turn, header},
};
use crate::{
    config::Fragmentation,
    crypto::{self, OpenError},
    env::UnixMillis,
    record::{Datagrams, Role},
    wire::{self, ExchangeType, Message, ParseError, Payload, PayloadType, Protected},
};
use std::{collections::BTreeMap, net::IpAddr};
use zeroize::Zeroizing;

/// Fragments of one message: with the smallest datagrams that peers are configured for, they make the longest message.
const MAX_FRAGMENTS: u16 = 64;

/// Bytes of the payloads of all messages that one SA puts together at a time: above any chain of certificates that peers have, and what a peer
/// that has not authenticated yet can make us keep.
const MAX_REASSEMBLED: usize = 1 << 15;

/// Messages that one SA puts together at a time: as many as there are with a full window in each direction.
const MAX_PARTIAL: usize = 16;

/// Length of a UDP header, and of the non-ESP marker (RFC 3948 §2.2).
const UDP_AND_MARKER: usize = 8 + 4;

/// Which message a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    is_response: bool,
    message_id: u32,
    exchange: ExchangeType,
}

impl Name {
    fn of(message: &Message<'_>) -> Self {
        Self {
            is_response: message.header.is_response,
            message_id: message.header.message_id,
            exchange: message.header.exchange,
        }
    }
}

/// A message of which not all fragments are here.
#[derive(Debug)]
struct Partial {
    total: u16,
    first: PayloadType,
    parts: BTreeMap<u16, Zeroizing<Vec<u8>>>,
    expires_at: UnixMillis,
}

impl Partial {
    fn len(&self) -> usize {
        self.parts.values().map(|p| p.len()).sum()
    }
}

/// The payloads of a message that is whole: the type of the first, and the bytes of all.
pub(super) type Whole = (PayloadType, Zeroizing<Vec<u8>>);

/// What an SA has of messages that came in fragments. Only authentic ones get in here.
#[derive(Debug, Default)]
pub(super) struct Reassembly(BTreeMap<Name, Partial>);

impl Reassembly {
    /// Whether a fragment is one that is missing: not there yet, and not of a set that a smaller one has replaced (RFC 7383 §2.6).
    fn misses(&self, name: Name, number: u16, total: u16) -> bool {
        total <= MAX_FRAGMENTS
            && self.0.get(&name).is_none_or(|p| {
                total > p.total || (total == p.total && !p.parts.contains_key(&number))
            })
    }

    /// Takes a fragment that is missing; returns the message if it was the last one.
    fn add(
        &mut self,
        name: Name,
        (number, total): (u16, u16),
        first: PayloadType,
        content: Zeroizing<Vec<u8>>,
        expires_at: UnixMillis,
    ) -> Result<Option<Whole>, Failure> {
        // A larger number of fragments is a new attempt with smaller ones: what is here of the former is void.
        self.0.retain(|n, p| *n != name || p.total >= total);
        let held: usize = self.0.values().map(Partial::len).sum();
        if held + content.len() > MAX_REASSEMBLED {
            self.0.remove(&name);
            return Err(Failure::Invalid("its fragments make too long a message"));
        }
        if self.0.len() >= MAX_PARTIAL && !self.0.contains_key(&name) {
            return Err(Failure::Invalid("too many of its messages are incomplete"));
        }
        let partial = self.0.entry(name).or_insert_with(|| Partial {
            total,
            first: PayloadType::NONE,
            parts: BTreeMap::new(),
            expires_at,
        });
        if number == 1 {
            partial.first = first;
        }
        partial.parts.insert(number, content);
        if partial.parts.len() < usize::from(total) {
            return Ok(None);
        }
        let whole = self.0.remove(&name).map(|p| {
            let mut content = Zeroizing::new(Vec::with_capacity(p.len()));
            p.parts.values().for_each(|part| content.extend(&**part));
            (p.first, content)
        });
        Ok(whole)
    }

    /// When the first of what is incomplete is given up.
    pub(super) fn expires_at(&self) -> Option<UnixMillis> {
        self.0.values().map(|p| p.expires_at).min()
    }

    /// Gives up what is incomplete for too long.
    pub(super) fn expire(&mut self, now: UnixMillis) {
        self.0.retain(|_, p| p.expires_at > now);
    }
}

impl Turn<'_, '_> {
    /// Opens the protected part of a message. What cannot be verified is reported and ignored; of a message in fragments only the last one to come
    /// yields something.
    pub(super) fn open(
        &mut self,
        message: &Message<'_>,
    ) -> Option<Result<Vec<Payload>, ParseError>> {
        let (first, content) = self.open_whole(message)?;
        Some(crypto::parse_content(first, &content))
    }

    /// The same, with the payloads as bytes.
    pub(super) fn open_whole(&mut self, message: &Message<'_>) -> Option<Whole> {
        let Some(protected) = &message.protected else {
            self.ignore(Failure::Invalid("the message is not protected"));
            return None;
        };
        match protected.fragment {
            None => Some((protected.first, self.open_content(protected)?)),
            Some(place) => self.open_fragment(message, protected, place),
        }
    }

    fn open_fragment(
        &mut self,
        message: &Message<'_>,
        protected: &Protected<'_>,
        (number, total): (u16, u16),
    ) -> Option<Whole> {
        if !self.record.fragmentation {
            self.ignore(Failure::Invalid("fragments were not agreed on"));
            return None;
        }
        let name = Name::of(message);
        if !self.session.reassembly.misses(name, number, total) {
            self.ignore(Failure::Invalid("a fragment of no use"));
            return None;
        }
        let content = self.open_content(protected)?;
        // A peer that is silent for so long has given the exchange up (RFC 7383 §2.6).
        let patience = self.env.policy.retransmit.total();
        let added = self.session.reassembly.add(
            name,
            (number, total),
            protected.first,
            content,
            self.env.now + patience,
        );
        match added {
            Ok(whole) => whole,
            Err(failure) => {
                self.ignore(failure);
                None
            }
        }
    }

    /// Whether the message, or this fragment of it, was sealed by the peer. Keeps nothing.
    pub(super) fn is_authentic(&mut self, protected: &Protected<'_>) -> bool {
        self.open_content(protected).is_some()
    }

    fn open_content(&mut self, protected: &Protected<'_>) -> Option<Zeroizing<Vec<u8>>> {
        let (suite, keys) = self.protection()?;
        match crypto::open_content(suite.cipher(), self.opening_key(keys), protected) {
            Ok(content) => Some(content),
            Err(OpenError::Integrity) => {
                self.ignore(Failure::Integrity);
                None
            }
            Err(OpenError::Content(error)) => {
                self.ignore(Failure::Malformed(error));
                None
            }
        }
    }

    /// Seals a message of ours in as many datagrams as it takes. `None` if there are no keys, or no IVs left: then nothing may be sent.
    pub(super) fn seal(
        &mut self,
        exchange: ExchangeType,
        is_response: bool,
        message_id: u32,
        payloads: &[Payload],
    ) -> Option<Datagrams> {
        let whole = self.seal_whole(exchange, is_response, message_id, payloads)?;
        let Some(room) = self.room(is_response).filter(|room| whole.len() > *room) else {
            return Some(vec![whole]);
        };
        let (first, content) = wire::emit_chain(payloads);
        let content = Zeroizing::new(content);
        let header = header(&self.record, exchange, is_response, message_id);
        let (suite, keys) = self.protection()?;
        let cipher = suite.cipher();
        let key = match self.record.role {
            Role::Initiator => &keys.ei,
            Role::Responder => &keys.er,
        };
        let parts: Vec<&[u8]> = content
            .chunks(crypto::fragment_capacity(cipher, room).max(1))
            .collect();
        // More than the peer could count: it has to take the message as it is.
        let Ok(total) = u16::try_from(parts.len()) else {
            return Some(vec![whole]);
        };
        (1..=total)
            .zip(parts)
            .map(|(number, part)| {
                let iv = self.env.ivs.next()?;
                let place = (number, total);
                Some(crypto::seal_fragment(
                    cipher, key, iv, &header, first, place, part,
                ))
            })
            .collect()
    }

    /// How long a message of ours may be; `None` if it may have any length.
    fn room(&self, is_response: bool) -> Option<usize> {
        let connection = self.env.policy.connection(&self.record.connection)?;
        if !self.record.fragmentation || connection.fragmentation != Fragmentation::Yes {
            return None;
        }
        // A response goes the way of its request. TCP cuts by itself (RFC 9329 §7.5).
        let transport = if is_response {
            self.transport
        } else {
            self.record.path.transport
        };
        if transport.is_tcp() {
            return None;
        }
        let ip = match self.record.path.remote.ip() {
            IpAddr::V4(_) => 20,
            IpAddr::V6(_) => 40,
        };
        Some(usize::from(connection.fragment_size).saturating_sub(ip + UDP_AND_MARKER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = Name {
        is_response: false,
        message_id: 1,
        exchange: ExchangeType::IKE_AUTH,
    };

    fn add(
        r: &mut Reassembly,
        name: Name,
        place: (u16, u16),
        len: usize,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let content = Zeroizing::new(vec![u8::try_from(place.0).unwrap(); len]);
        let whole = r.add(name, place, PayloadType::ID_I, content, UnixMillis(10))?;
        Ok(whole.map(|(_, content)| content.to_vec()))
    }

    #[test]
    fn a_set_of_more_fragments_replaces_one_of_fewer() {
        let mut r = Reassembly::default();
        assert_eq!(add(&mut r, NAME, (1, 2), 1), Ok(None));
        assert!(!r.misses(NAME, 1, 2) && r.misses(NAME, 2, 2) && r.misses(NAME, 1, 3));
        assert_eq!(add(&mut r, NAME, (3, 3), 1), Ok(None));
        assert!(!r.misses(NAME, 2, 2), "the former set is void");
        assert_eq!(add(&mut r, NAME, (2, 3), 1), Ok(None));
        assert_eq!(add(&mut r, NAME, (1, 3), 1), Ok(Some(vec![1, 2, 3])));
        assert_eq!(r.expires_at(), None);
    }

    #[test]
    fn fragments_bytes_and_messages_are_bounded() {
        let mut r = Reassembly::default();
        assert!(r.misses(NAME, 1, MAX_FRAGMENTS) && !r.misses(NAME, 1, MAX_FRAGMENTS + 1));
        let of = |message_id| Name { message_id, ..NAME };
        for id in 0..16 {
            assert_eq!(add(&mut r, of(id), (1, 9), MAX_REASSEMBLED / 16), Ok(None));
        }
        assert!(add(&mut r, of(17), (1, 9), 0).is_err(), "too many messages");
        assert!(add(&mut r, of(0), (2, 9), 1).is_err(), "too many bytes");
        // What became too long is gone, and there is room again.
        assert_eq!(add(&mut r, of(17), (1, 9), 1), Ok(None));
        r.expire(UnixMillis(10));
        assert_eq!(r.expires_at(), None);
    }
}
