//! The window of the peer's requests (RFC 7296 §2.2, §2.3).

use super::Datagrams;
use serde::{Deserialize, Serialize};

/// A request of the peer that was answered, and the response, whole, which may be asked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Its Message ID.
    pub id: u32,
    /// The response.
    pub response: Datagrams,
}

/// Message IDs of the peer's requests, and the responses that may be asked for again.
///
/// The peer may have as many requests under way as we said, and they may come in any order. Those that came before one that is missing are `answered`, and the
/// hole stays open. A harmless exchange of a former epoch may be missing from `answered` though it took place: then its request, if it is repeated, is
/// answered again, with the same meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundWindow {
    /// The lowest Message ID of a request that has not come.
    pub next: u32,
    /// How many requests the peer may have under way; at least one.
    pub size: u8,
    /// The requests that may be repeated, in their order: one less than `size` before the highest, and that.
    pub answered: Vec<Answered>,
}

impl Default for InboundWindow {
    fn default() -> Self {
        Self {
            next: 0,
            size: 1,
            answered: Vec::new(),
        }
    }
}

impl InboundWindow {
    /// What there is after the first request with its response.
    pub fn after_first(response: Datagrams) -> Self {
        let mut window = Self::default();
        window.answer(0, response);
        window
    }

    /// The window of an SA whose Message IDs were synchronised.
    pub fn restart(&mut self, next: u32) {
        self.next = next;
        self.answered.clear();
    }

    /// The response to a request that was answered, if it is known.
    pub fn response(&self, id: u32) -> Option<&Datagrams> {
        let found = self.answered.iter().find(|a| a.id == id);
        found.map(|a| &a.response)
    }

    /// Whether a request is a repeated one: answered, and not so long ago that the peer cannot repeat it.
    pub fn is_repeated(&self, id: u32) -> bool {
        let end = self.end();
        self.response(id).is_some()
            || (id < self.next && id.saturating_add(self.size.into()) >= end)
    }

    /// How far a request is beyond what the peer may send, if all that it has sent has come; `None` if it is older than what it may repeat.
    pub fn ahead(&self, id: u32) -> Option<u32> {
        let last = self.end().saturating_add(u32::from(self.size) - 1);
        (id >= self.next).then(|| id.saturating_sub(last))
    }

    /// The Message ID after the highest that was answered.
    pub fn end(&self) -> u32 {
        let highest = self.answered.last().map_or(0, |a| a.id.saturating_add(1));
        highest.max(self.next)
    }

    /// A request was answered. What the peer cannot repeat any more, as it has got the answers, is forgotten; and so are holes that it cannot fill.
    pub fn answer(&mut self, id: u32, response: Datagrams) {
        self.answered.retain(|a| a.id != id);
        let at = self.answered.partition_point(|a| a.id < id);
        self.answered.insert(at, Answered { id, response });
        let oldest = self.end().saturating_sub(u32::from(self.size));
        self.answered.retain(|a| a.id >= oldest);
        self.next = self.next.max(oldest);
        self.pass_answered();
    }

    /// What comes next is what has not come. Message IDs end (RFC 7296 §2.2), and so does this.
    fn pass_answered(&mut self) {
        while self.next < u32::MAX && self.response(self.next).is_some() {
            self.next += 1;
        }
    }

    /// Requests below this were answered, by somebody whose responses are not known.
    pub fn skip_to(&mut self, next: u32) {
        if next > self.next {
            self.next = next;
            let oldest = self.end().saturating_sub(u32::from(self.size));
            self.answered.retain(|a| a.id >= oldest);
            self.pass_answered();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(size: u8) -> InboundWindow {
        InboundWindow {
            size,
            ..InboundWindow::default()
        }
    }

    fn answer(window: &mut InboundWindow, id: u32) {
        let byte = u8::try_from(id % 256).unwrap();
        window.answer(id, vec![vec![byte]]);
    }

    fn known(window: &InboundWindow) -> Vec<u32> {
        window.answered.iter().map(|a| a.id).collect()
    }

    #[test]
    fn a_window_of_one_knows_the_last_response() {
        let mut w = window(1);
        for id in 0..5 {
            assert_eq!(w.ahead(id), Some(0));
            answer(&mut w, id);
            assert_eq!((w.next, known(&w)), (id + 1, vec![id]));
            assert!(w.is_repeated(id) && !w.is_repeated(id + 1));
            assert!(id == 0 || !w.is_repeated(id - 1));
        }
        assert_eq!(w.ahead(6), Some(1), "one is left out");
        answer(&mut w, 7);
        assert_eq!((w.next, known(&w)), (8, vec![7]));
    }

    #[test]
    fn requests_come_in_any_order_and_holes_stay_open() {
        let mut w = window(4);
        for id in [2, 0, 3] {
            assert_eq!(w.ahead(id), Some(0), "{id}");
            answer(&mut w, id);
        }
        assert_eq!((w.next, known(&w)), (1, vec![0, 2, 3]));
        assert!(w.is_repeated(0) && w.is_repeated(2) && !w.is_repeated(1));
        assert_eq!(w.response(2), Some(&vec![vec![2]]));
        answer(&mut w, 1);
        assert_eq!((w.next, known(&w)), (4, vec![0, 1, 2, 3]));
        // With the next one the first cannot be repeated any more.
        answer(&mut w, 4);
        assert_eq!(known(&w), [1, 2, 3, 4]);
        assert!(!w.is_repeated(0) && w.is_repeated(1));
    }

    #[test]
    fn a_hole_that_cannot_be_filled_is_closed() {
        let mut w = window(4);
        for id in [0, 2, 3, 4] {
            answer(&mut w, id);
        }
        assert_eq!(w.next, 1, "it may still come");
        answer(&mut w, 5);
        assert_eq!(
            w.next, 6,
            "the peer has its answer, or it could not have sent 5"
        );
        assert_eq!(w.ahead(1), None);
    }

    #[test]
    fn what_was_answered_unseen_is_skipped() {
        let mut w = window(4);
        for id in [0, 3] {
            answer(&mut w, id);
        }
        w.skip_to(3);
        assert_eq!((w.next, known(&w)), (4, vec![0, 3]));
        w.skip_to(2);
        assert_eq!(w.next, 4);
    }

    #[test]
    fn the_last_message_ids_do_not_wrap() {
        let mut w = InboundWindow {
            next: u32::MAX - 1,
            size: 16,
            answered: vec![],
        };
        answer(&mut w, u32::MAX - 1);
        assert_eq!(w.ahead(u32::MAX), Some(0));
        answer(&mut w, u32::MAX);
        assert_eq!(w.next, u32::MAX);
        assert!(w.is_repeated(u32::MAX));
    }
}
