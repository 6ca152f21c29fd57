//! The window of our requests (RFC 7296 §2.2, §2.3), and what may be under way side by side.

use super::{Goal, PendingRequest, Task};
use serde::{Deserialize, Serialize};

/// However many requests the peer lets us have under way, so many we have: each is in the record, whole.
pub const MAX_UNDER_WAY: u8 = 8;

/// Message IDs of our requests, and those requests that are not answered yet.
///
/// Answers come in any order. All requests but empty ones are committed before they are sent, and so is the use that was made of an answer: a request that is
/// in `pending` is repeated by whoever serves the SA, and one below `next` that is not is done with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundWindow {
    /// The Message ID of our next request.
    pub next: u32,
    /// How many requests the peer lets us have under way; at least one, and at most [`MAX_UNDER_WAY`].
    pub size: u8,
    /// The requests that are not answered yet, in the order of their Message IDs.
    pub pending: Vec<PendingRequest>,
}

impl Default for OutboundWindow {
    fn default() -> Self {
        Self {
            next: 0,
            size: 1,
            pending: Vec::new(),
        }
    }
}

impl OutboundWindow {
    /// A request that is under way, by its Message ID.
    pub fn get(&self, id: u32) -> Option<&PendingRequest> {
        self.pending.iter().find(|p| p.id == id)
    }

    /// What is under way is for.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.pending.iter().map(|p| &p.task)
    }

    /// Our inbound SPIs of the Child SAs that are being deleted.
    pub fn deleting(&self) -> Vec<u32> {
        let spis = self.tasks().filter_map(|task| match task {
            Task::DeleteChildren(spis) => Some(spis),
            _ => None,
        });
        spis.flatten().copied().collect()
    }

    /// The Message ID of the last request. While an IKE SA is set up there is one at a time.
    pub(crate) fn last_id(&self) -> u32 {
        self.next.wrapping_sub(1)
    }

    /// The next request has this Message ID, and none is under way any more.
    pub(crate) fn restart(&mut self, next: u32) {
        self.next = next;
        self.pending.clear();
    }

    /// A request is about to be sent: it has the Message ID [`Self::next`].
    pub(crate) fn push(&mut self, request: PendingRequest) {
        self.next = request.id.wrapping_add(1);
        self.pending.push(request);
    }

    /// A request was answered.
    pub(crate) fn take(&mut self, id: u32) -> Option<PendingRequest> {
        let at = self.pending.iter().position(|p| p.id == id)?;
        Some(self.pending.remove(at))
    }

    /// Whether the peer has answered any request, as far as the one who asks knows.
    pub(crate) fn has_answers(&self) -> bool {
        u32::try_from(self.pending.len()).is_ok_and(|pending| pending < self.next)
    }

    /// The peer lets us have so many requests under way. It cannot take that back (RFC 7296 §2.3).
    pub(crate) fn widen(&mut self, size: u32) {
        let size = u8::try_from(size).unwrap_or(u8::MAX).min(MAX_UNDER_WAY);
        self.size = self.size.max(size);
    }

    /// Whether one more request fits into the window, once this one is answered if one is named. It is the oldest that counts: what was answered out of order
    /// makes no room.
    pub(crate) fn has_room_without(&self, answered: Option<u32>) -> bool {
        let oldest = self.pending.iter().map(|p| p.id);
        let oldest = oldest.filter(|id| Some(*id) != answered).min();
        let oldest = oldest.unwrap_or(self.next);
        self.next.wrapping_sub(oldest) < u32::from(self.size)
    }

    /// Whether a request with this scope may be sent now.
    pub fn admits(&self, scope: &Scope) -> bool {
        self.has_room_without(None) && self.is_apart(scope)
    }

    /// Whether nothing that is under way has a part of this scope for itself.
    pub(crate) fn is_apart(&self, scope: &Scope) -> bool {
        let mut tasks = self.tasks();
        tasks.all(|task| Scope::of(task).is_apart_from(scope))
    }

    /// Requests below this Message ID are done with, or can be repeated by whoever has this record: only an empty one, which changes nothing, may have been
    /// answered since without this being committed.
    pub fn accounted(&self) -> u32 {
        let mut empty = self.pending.iter().filter(|p| p.task == Task::Liveness);
        empty.next().map_or(self.next, |p| p.id)
    }

    /// Empty requests below this were answered, as somebody says who has served the SA.
    pub fn skip_to(&mut self, accounted: u32) {
        self.next = self.next.max(accounted);
        self.pending
            .retain(|p| p.task != Task::Liveness || p.id >= accounted);
    }
}

/// What a request of ours has for itself while it is under way. This decides what may run side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything: the IKE SA is set up, replaced, deleted, or its addresses change. In whatever order the peer took it, what was under way beside it would mean
    /// something else then.
    IkeSa,
    /// Child SAs.
    Children {
        /// Those that there are, by our inbound SPIs: they are replaced or deleted.
        spis: Vec<u32>,
        /// The name in the configuration of one that is asked for.
        new: Option<String>,
    },
    /// Nothing: the request is empty. Still there is only one at a time, so that a successor is uncertain of one Message ID at most.
    Empty,
}

impl Scope {
    /// What a task has for itself.
    pub fn of(task: &Task) -> Self {
        match task {
            Task::Connect
            | Task::RekeyIke(_)
            | Task::DeleteIke
            | Task::Mobike(_)
            | Task::AskToReauthenticate => Self::IkeSa,
            Task::Liveness => Self::Empty,
            Task::CreateChild(offer) => Self::child(&offer.name, offer.replaces),
            Task::FollowUp(follow_up, _) => match &follow_up.goal {
                Goal::Ike(_) => Self::IkeSa,
                Goal::Child(goal) => Self::child(&goal.name, goal.replaces),
            },
            Task::DeleteChildren(spis) => Self::children(spis.clone()),
        }
    }

    /// A Child SA that is asked for, in the place of another or for itself.
    pub fn child(name: &str, replaces: Option<u32>) -> Self {
        match replaces {
            Some(spi) => Self::children(vec![spi]),
            None => Self::Children {
                spis: Vec::new(),
                new: Some(name.to_owned()),
            },
        }
    }

    /// Child SAs that there are.
    pub fn children(spis: Vec<u32>) -> Self {
        Self::Children { spis, new: None }
    }

    fn is_apart_from(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::IkeSa, _) | (_, Self::IkeSa) | (Self::Empty, Self::Empty) => false,
            (Self::Empty, Self::Children { .. }) | (Self::Children { .. }, Self::Empty) => true,
            (
                Self::Children { spis, new },
                Self::Children {
                    spis: others,
                    new: another,
                },
            ) => (new.is_none() || new != another) && spis.iter().all(|spi| !others.contains(spi)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u32, task: Task) -> PendingRequest {
        PendingRequest {
            id,
            datagrams: vec![vec![1]],
            task,
            deleted: Vec::new(),
        }
    }

    fn window(size: u8, tasks: Vec<Task>) -> OutboundWindow {
        let mut window = OutboundWindow {
            next: 5,
            size,
            pending: Vec::new(),
        };
        for task in tasks {
            window.push(request(window.next, task));
        }
        window
    }

    fn delete(spi: u32) -> Task {
        Task::DeleteChildren(vec![spi])
    }

    #[test]
    fn what_was_answered_out_of_order_makes_no_room() {
        let mut w = window(3, vec![delete(1), delete(2), delete(3)]);
        assert!(!w.has_room_without(None));
        assert!(!w.has_room_without(Some(6)) && w.has_room_without(Some(5)));
        assert!(w.take(6).is_some() && w.take(6).is_none());
        assert!(
            !w.admits(&Scope::Empty),
            "request 8 waits for the answer to 5"
        );
        w.take(5);
        assert!(w.admits(&Scope::Empty));
        w.push(request(8, delete(4)));
        w.push(request(9, delete(5)));
        assert!(!w.has_room_without(None), "7 is not answered");
    }

    #[test]
    fn a_peer_that_says_nothing_is_asked_one_thing_at_a_time() {
        let w = window(1, vec![delete(1)]);
        assert!(!w.admits(&Scope::Empty) && !w.admits(&Scope::children(vec![2])));
        assert!(window(1, vec![]).admits(&Scope::IkeSa));
    }

    #[test]
    fn a_window_only_grows_and_has_our_bound() {
        let mut w = window(1, vec![]);
        for (said, size) in [(4, 4), (0, 4), (2, 4), (5, 5), (1 << 20, MAX_UNDER_WAY)] {
            w.widen(said);
            assert_eq!(w.size, size);
        }
    }

    #[test]
    fn the_ike_sa_is_for_one_and_each_child_sa_too() {
        let several = window(8, vec![delete(1), Task::Liveness]);
        assert!(
            !several.admits(&Scope::IkeSa),
            "it waits until all are done"
        );
        assert!(!several.admits(&Scope::Empty), "there is one already");
        assert!(several.admits(&Scope::children(vec![2])));
        assert!(!several.admits(&Scope::children(vec![2, 1])));
        assert!(several.admits(&Scope::child("net", None)));
        assert!(several.admits(&Scope::child("net", Some(2))));
        assert!(!several.admits(&Scope::child("net", Some(1))));
        let alone = window(8, vec![Task::DeleteIke]);
        assert!(!alone.admits(&Scope::Empty) && !alone.admits(&Scope::children(vec![2])));
        let net = Scope::child("net", None);
        assert!(!net.is_apart_from(&net) && net.is_apart_from(&Scope::child("other", None)));
    }

    #[test]
    fn only_empty_requests_are_answered_unseen() {
        let mut w = window(4, vec![delete(1), Task::Liveness, delete(2)]);
        assert_eq!(w.accounted(), 6);
        w.skip_to(6);
        assert_eq!((w.next, w.pending.len()), (8, 3));
        w.skip_to(8);
        let left: Vec<u32> = w.pending.iter().map(|p| p.id).collect();
        assert_eq!((w.next, left), (8, vec![5, 7]));
        w.skip_to(9);
        assert_eq!((w.next, w.accounted()), (9, 9));
    }
}
