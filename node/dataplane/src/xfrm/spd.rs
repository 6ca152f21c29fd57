//! Who sends and who receives what: from Child SAs to the policies that there should be. Pure.

use super::{
    flows::{Direction, Flow},
    policies::PolicyId,
};
use std::collections::{BTreeMap, BTreeSet};

/// The policies of all Child SAs. Only the kernel knows what else there is.
#[derive(Debug, Default)]
pub(super) struct Spd {
    entries: BTreeMap<Flow, Entry>,
    /// What may differ from what the kernel has.
    dirty: BTreeSet<PolicyId>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Child SAs that may send, by our SPIs; the last does.
    senders: Vec<u32>,
    /// Kinds of Child SAs that receive, each with their number.
    receivers: Vec<(u32, usize)>,
}

impl Spd {
    /// A Child SA receives these flows.
    pub(super) fn receive(&mut self, flows: &[Flow], reqid: u32) {
        for flow in flows {
            let receivers = &mut self.entries.entry(*flow).or_default().receivers;
            match receivers.iter_mut().find(|(r, _)| *r == reqid) {
                Some((_, count)) => *count += 1,
                None => {
                    receivers.push((reqid, 1));
                    self.touch(*flow, &[Direction::In, Direction::Forward]);
                }
            }
        }
    }

    /// It does so no more.
    pub(super) fn receive_no_more(&mut self, flows: &[Flow], reqid: u32) {
        for flow in flows {
            let Some(entry) = self.entries.get_mut(flow) else {
                continue;
            };
            let Some(at) = entry.receivers.iter().position(|(r, _)| *r == reqid) else {
                continue;
            };
            entry.receivers[at].1 -= 1;
            if entry.receivers[at].1 == 0 {
                entry.receivers.remove(at);
                self.touch(*flow, &[Direction::In, Direction::Forward]);
            }
        }
    }

    /// A Child SA sends these flows: before all others, or once there is no other.
    pub(super) fn send(&mut self, flows: &[Flow], spi_in: u32, before_others: bool) {
        for flow in flows {
            let senders = &mut self.entries.entry(*flow).or_default().senders;
            senders.retain(|spi| *spi != spi_in);
            let at = if before_others { senders.len() } else { 0 };
            senders.insert(at, spi_in);
            self.touch(*flow, &[Direction::Out]);
        }
    }

    /// It does so no more.
    pub(super) fn send_no_more(&mut self, flows: &[Flow], spi_in: u32) {
        for flow in flows {
            if let Some(entry) = self.entries.get_mut(flow) {
                entry.senders.retain(|spi| *spi != spi_in);
                self.touch(*flow, &[Direction::Out]);
            }
        }
    }

    /// Something about who sends these flows has changed.
    pub(super) fn refresh(&mut self, flows: &[Flow]) {
        for flow in flows {
            self.touch(*flow, &[Direction::Out]);
        }
    }

    /// Whether others may send one of these flows.
    pub(super) fn is_sent(&self, flows: &[Flow]) -> bool {
        flows.iter().any(|flow| {
            self.entries
                .get(flow)
                .is_some_and(|e| !e.senders.is_empty())
        })
    }

    /// Child SAs that may send a flow; the first does, if it can.
    pub(super) fn senders(&self, flow: &Flow) -> impl Iterator<Item = u32> + '_ {
        let entry = self.entries.get(flow);
        entry
            .into_iter()
            .flat_map(|e| e.senders.iter().rev().copied())
    }

    /// Kinds of Child SAs that receive a flow.
    pub(super) fn receivers(&self, flow: &Flow) -> Vec<u32> {
        let entry = self.entries.get(flow);
        let receivers = entry.into_iter().flat_map(|e| &e.receivers);
        receivers.map(|(reqid, _)| *reqid).collect()
    }

    fn touch(&mut self, flow: Flow, directions: &[Direction]) {
        for &direction in directions {
            self.dirty.insert(PolicyId { flow, direction });
        }
    }

    /// The policies that are to be looked at again: those of receiving first, so that what is sent is answered.
    pub(super) fn take_dirty(&mut self) -> Vec<PolicyId> {
        let mut dirty: Vec<_> = std::mem::take(&mut self.dirty).into_iter().collect();
        dirty.sort_by_key(|id| id.direction == Direction::Out);
        for id in &dirty {
            let unused = |e: &Entry| e.senders.is_empty() && e.receivers.is_empty();
            if self.entries.get(&id.flow).is_some_and(unused) {
                self.entries.remove(&id.flow);
            }
        }
        dirty
    }

    /// It was looked at in vain: it is to be looked at again.
    pub(super) fn try_again(&mut self, id: PolicyId) {
        self.dirty.insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Flow; 0] = [];

    fn flow(remote: &str) -> Flow {
        Flow {
            remote: remote.parse().unwrap(),
            ..Flow::everything(true)
        }
    }

    fn directions(spd: &mut Spd) -> Vec<Direction> {
        spd.take_dirty().iter().map(|id| id.direction).collect()
    }

    #[test]
    fn a_rekey_changes_who_sends_and_not_who_may_receive() {
        use Direction::{Forward, In, Out};
        let mut spd = Spd::default();
        let flows = [flow("10.2.0.0/16")];
        spd.receive(&flows, 7);
        spd.send(&flows, 1, true);
        assert_eq!(directions(&mut spd), [In, Forward, Out]);
        spd.receive(&flows, 7);
        spd.send(&flows, 2, true);
        assert_eq!(directions(&mut spd), [Out]);
        assert_eq!(spd.senders(&flows[0]).collect::<Vec<_>>(), [2, 1]);
        spd.send_no_more(&flows, 1);
        spd.receive_no_more(&flows, 7);
        assert_eq!(directions(&mut spd), [Out]);
        assert_eq!(spd.receivers(&flows[0]), [7]);
        spd.send_no_more(&flows, 2);
        spd.receive_no_more(&flows, 7);
        assert_eq!(directions(&mut spd), [In, Forward, Out]);
        assert!(spd.entries.is_empty(), "nothing is kept");
    }

    #[test]
    fn who_gives_way_sends_once_there_is_no_other() {
        let mut spd = Spd::default();
        let flows = [flow("10.2.0.0/16")];
        spd.send(&flows, 1, true);
        spd.send(&flows, 2, false);
        assert_eq!(spd.senders(&flows[0]).next(), Some(1));
        spd.send(&flows, 2, true);
        assert_eq!(spd.senders(&flows[0]).next(), Some(2));
        spd.send_no_more(&flows, 2);
        assert_eq!(spd.senders(&flows[0]).next(), Some(1));
        assert!(spd.is_sent(&flows));
        assert!(!spd.is_sent(&ALL));
    }

    #[test]
    fn kinds_that_share_a_flow_both_receive_it() {
        let mut spd = Spd::default();
        let shared = flow("10.2.0.0/16");
        spd.receive(&[shared], 7);
        spd.receive(&[shared, flow("10.3.0.0/16")], 8);
        assert_eq!(spd.receivers(&shared), [7, 8]);
        spd.receive_no_more(&[shared], 7);
        assert_eq!(spd.receivers(&shared), [8]);
    }
}
