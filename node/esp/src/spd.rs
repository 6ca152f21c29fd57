//! The outbound policy database (RFC 4301 §4.4.1): from an inner packet to the SA that protects it.

use crate::{OutboundSa, Selector, Selectors, packet::PacketSelectors};
use std::{collections::HashMap, net::IpAddr, sync::Arc};

/// Names a policy. Chosen by the caller; one per Child SA configuration and peer.
pub type PolicyId = u64;

/// What happens to packets of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// They leave through an SA, or not at all.
    Protect,
    /// They leave as they are.
    Bypass,
    /// They are dropped.
    Discard,
}

/// A policy with its SAs. `S` is what the data plane keeps for an outbound SA.
#[derive(Clone, Debug)]
pub struct Entry<S = OutboundSa> {
    /// Its name.
    pub id: PolicyId,
    /// What happens to its packets.
    pub action: Action,
    /// Lower goes first, as in the kernel; among equals the narrower selectors, then the lower id.
    pub priority: u32,
    /// What packets it is for.
    pub selectors: Selectors,
    sas: Vec<Installed<S>>,
}

#[derive(Debug)]
struct Installed<S> {
    sa: Arc<S>,
    active: bool,
}

impl<S> Clone for Installed<S> {
    fn clone(&self) -> Self {
        Self {
            sa: Arc::clone(&self.sa),
            active: self.active,
        }
    }
}

impl<S> Entry<S> {
    /// A policy without SAs.
    pub fn new(id: PolicyId, action: Action, priority: u32, selectors: Selectors) -> Self {
        Self {
            id,
            action,
            priority,
            selectors,
            sas: Vec::new(),
        }
    }

    /// The SA to send with: the newest that is active. Without one, packets of a `Protect` policy are dropped.
    pub fn active(&self) -> Option<&Arc<S>> {
        self.sas
            .iter()
            .rev()
            .find(|installed| installed.active)
            .map(|installed| &installed.sa)
    }

    /// Adds an SA, newer than all there are. During a rekey the responder adds it inactive until the initiator
    /// is known to have it (RFC 7296 §2.8).
    pub fn add(&mut self, sa: Arc<S>, active: bool) {
        self.sas.push(Installed { sa, active });
    }

    /// Makes an SA eligible for sending, or no longer so; `false` if it is not here.
    pub fn set_active(&mut self, sa: &Arc<S>, active: bool) -> bool {
        let found = self
            .sas
            .iter_mut()
            .find(|installed| Arc::ptr_eq(&installed.sa, sa));
        found.map(|installed| installed.active = active).is_some()
    }

    /// Removes an SA; `false` if it is not here.
    pub fn remove(&mut self, sa: &Arc<S>) -> bool {
        let before = self.sas.len();
        self.sas.retain(|installed| !Arc::ptr_eq(&installed.sa, sa));
        self.sas.len() != before
    }

    /// All its SAs, oldest first, and whether they are active.
    pub fn sas(&self) -> impl Iterator<Item = (&Arc<S>, bool)> {
        self.sas
            .iter()
            .map(|installed| (&installed.sa, installed.active))
    }
}

/// Policies by selectors.
///
/// Policies for one remote address (the virtual address of a peer) are found by that address; all others are
/// scanned, in order.
#[derive(Clone, Debug)]
pub struct Spd<S = OutboundSa> {
    entries: HashMap<PolicyId, Entry<S>>,
    by_address: HashMap<IpAddr, Vec<Rule>>,
    ranges: Vec<Rule>,
}

/// One pair of selectors of a policy. Lists of rules are sorted by rank.
#[derive(Clone, Debug)]
struct Rule {
    rank: Rank,
    local: Selector,
    remote: Selector,
}

/// What goes first when several rules match: priority, then the narrower selectors, then the id, so that the
/// order in which policies came does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: u32,
    remote_addresses: u128,
    local_addresses: u128,
    any_protocol: bool,
    ports: u32,
    id: PolicyId,
}

impl Rule {
    fn new<S>(entry: &Entry<S>, local: Selector, remote: Selector) -> Self {
        let rank = Rank {
            priority: entry.priority,
            remote_addresses: address_span(&remote),
            local_addresses: address_span(&local),
            any_protocol: local.protocol == 0 && remote.protocol == 0,
            ports: port_span(&local) + port_span(&remote),
            id: entry.id,
        };
        Self {
            rank,
            local,
            remote,
        }
    }

    fn matches(&self, packet: &PacketSelectors) -> bool {
        let (source_port, destination_port) = packet.ports.unzip();
        self.local
            .matches(packet.source, packet.protocol, source_port)
            && self
                .remote
                .matches(packet.destination, packet.protocol, destination_port)
    }
}

impl<S> Default for Spd<S> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            by_address: HashMap::new(),
            ranges: Vec::new(),
        }
    }
}

impl<S> Spd<S> {
    /// Adds a policy; yields the one that had this id before. The work is proportional to the product of the
    /// numbers of selectors on both sides.
    pub fn insert(&mut self, entry: Entry<S>) -> Option<Entry<S>> {
        let before = self.remove(entry.id);
        for &remote in &entry.selectors.remote {
            let rules = match single_address(&remote) {
                Some(address) => self.by_address.entry(address).or_default(),
                None => &mut self.ranges,
            };
            for &local in &entry.selectors.local {
                let rule = Rule::new(&entry, local, remote);
                let at = rules.partition_point(|other| other.rank <= rule.rank);
                rules.insert(at, rule);
            }
        }
        self.entries.insert(entry.id, entry);
        before
    }

    /// Removes a policy.
    pub fn remove(&mut self, id: PolicyId) -> Option<Entry<S>> {
        let entry = self.entries.remove(&id)?;
        for remote in &entry.selectors.remote {
            let Some(address) = single_address(remote) else {
                continue;
            };
            if let Some(rules) = self.by_address.get_mut(&address) {
                rules.retain(|rule| rule.rank.id != id);
                if rules.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        if entry
            .selectors
            .remote
            .iter()
            .any(|remote| single_address(remote).is_none())
        {
            self.ranges.retain(|rule| rule.rank.id != id);
        }
        Some(entry)
    }

    /// The policy with this id.
    pub fn get(&self, id: PolicyId) -> Option<&Entry<S>> {
        self.entries.get(&id)
    }

    /// Adds an SA to a policy, newer than all that it has; `false` if there is no such policy. During a rekey the
    /// responder adds it inactive until the initiator is known to have it (RFC 7296 §2.8).
    pub fn add_sa(&mut self, id: PolicyId, sa: Arc<S>, active: bool) -> bool {
        self.entries
            .get_mut(&id)
            .map(|entry| entry.add(sa, active))
            .is_some()
    }

    /// Makes an SA of a policy eligible for sending, or no longer so; `false` if it is not there.
    pub fn set_active(&mut self, id: PolicyId, sa: &Arc<S>, active: bool) -> bool {
        self.entries
            .get_mut(&id)
            .is_some_and(|entry| entry.set_active(sa, active))
    }

    /// Removes an SA of a policy; `false` if it is not there. The policy stays: its packets are dropped, not sent
    /// in the clear.
    pub fn remove_sa(&mut self, id: PolicyId, sa: &Arc<S>) -> bool {
        self.entries
            .get_mut(&id)
            .is_some_and(|entry| entry.remove(sa))
    }

    /// The policy for a packet that we would send.
    pub fn lookup(&self, packet: &PacketSelectors) -> Option<&Entry<S>> {
        let first = |rules: &'_ [Rule]| {
            rules
                .iter()
                .find(|rule| rule.matches(packet))
                .map(|rule| rule.rank)
        };
        let single = self
            .by_address
            .get(&packet.destination)
            .and_then(|rules| first(rules));
        let best = single.into_iter().chain(first(&self.ranges)).min()?;
        self.entries.get(&best.id)
    }

    /// All policies, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<S>> {
        self.entries.values()
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn single_address(selector: &Selector) -> Option<IpAddr> {
    (selector.start == selector.end).then_some(selector.start)
}

/// How many addresses more than one there are.
fn address_span(selector: &Selector) -> u128 {
    number(selector.end).saturating_sub(number(selector.start))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// How many ports more than one there are; opaque counts as one.
fn port_span(selector: &Selector) -> u32 {
    u32::from(selector.end_port.saturating_sub(selector.start_port))
}

#[cfg(test)]
mod tests;
