//! The outbound policy database (RFC 4301 §4.4.1): from an inner packet to the SA that protects it.

use crate::{OutboundSa, Selector, Selectors, packet::PacketSelectors};
use std::{
    collections::{BTreeMap, HashMap, btree_map},
    net::IpAddr,
    sync::Arc,
};

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
    pub selectors: Arc<Selectors>,
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
    pub fn new(
        id: PolicyId,
        action: Action,
        priority: u32,
        selectors: impl Into<Arc<Selectors>>,
    ) -> Self {
        Self {
            id,
            action,
            priority,
            selectors: selectors.into(),
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
        // Most policies have one SA, for long.
        if self.sas.is_empty() {
            self.sas.reserve_exact(1);
        }
        self.sas.push(Installed { sa, active });
    }

    /// Adds an active SA as the oldest: it sends once there is no other.
    pub fn add_behind(&mut self, sa: Arc<S>) {
        self.sas.insert(0, Installed { sa, active: true });
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
/// They are found by the narrowest prefixes that contain a range of remote and one of local addresses: a look-up takes one step for each
/// pair of lengths of such prefixes that there is, however many policies there are.
#[derive(Clone, Debug)]
pub struct Spd<S = OutboundSa> {
    entries: HashMap<PolicyId, Entry<S>>,
    /// What goes first comes last: of equal selectors the newest policy goes first, and joins the list most cheaply.
    rules: HashMap<Pair, Vec<Rule>>,
    /// Which lengths of prefixes there are together, and how many of each.
    v4: Lengths,
    v6: Lengths,
}

/// How many pairs of prefixes there are of each pair of lengths, remote and local; only of those that there are.
type Lengths = BTreeMap<(u32, u32), usize>;

/// An address without the bits behind the first `len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prefix {
    address: IpAddr,
    len: u32,
}

impl Prefix {
    fn new(address: IpAddr, len: u32) -> Self {
        let address = match address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - len.min(32)).unwrap_or(0);
                IpAddr::V4((u32::from(a) & mask).into())
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - len.min(128)).unwrap_or(0);
                IpAddr::V6((u128::from(a) & mask).into())
            }
        };
        Self { address, len }
    }

    /// The narrowest that contains a selector's addresses; `None` if they are of different families, and none can match.
    fn covering(selector: &Selector) -> Option<Self> {
        let len = match (selector.start, selector.end) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
            _ => return None,
        };
        Some(Self::new(selector.start, len))
    }
}

/// The prefixes around a pair of selectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pair {
    remote: Prefix,
    local: Prefix,
}

impl Pair {
    /// `None` if no packet can match both.
    fn covering(remote: &Selector, local: &Selector) -> Option<Self> {
        let (remote, local) = (Prefix::covering(remote)?, Prefix::covering(local)?);
        Some(Self { remote, local })
    }

    fn lens(&self) -> (u32, u32) {
        (self.remote.len, self.local.len)
    }
}

/// All pairs of selectors, remote first.
fn pairs(selectors: &Selectors) -> impl Iterator<Item = (Selector, Selector)> {
    let all = selectors.remote.iter();
    all.flat_map(|remote| selectors.local.iter().map(|local| (*remote, *local)))
}

/// One pair of selectors of a policy.
#[derive(Clone, Debug)]
struct Rule {
    priority: u32,
    id: PolicyId,
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
        Self {
            priority: entry.priority,
            id: entry.id,
            local,
            remote,
        }
    }

    /// Made when it is needed: there is a rule for each Child SA, and this is as big as all of it.
    fn rank(&self) -> Rank {
        let (local, remote) = (&self.local, &self.remote);
        Rank {
            priority: self.priority,
            remote_addresses: address_span(remote),
            local_addresses: address_span(local),
            any_protocol: local.protocol == 0 && remote.protocol == 0,
            ports: port_span(local) + port_span(remote),
            id: self.id,
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
            rules: HashMap::new(),
            v4: Lengths::new(),
            v6: Lengths::new(),
        }
    }
}

impl<S> Spd<S> {
    /// Adds a policy; yields the one that had this id before. The work is proportional to the product of the
    /// numbers of selectors on both sides.
    pub fn insert(&mut self, entry: Entry<S>) -> Option<Entry<S>> {
        let before = self.remove(entry.id);
        for (remote, local) in pairs(&entry.selectors) {
            let Some(pair) = Pair::covering(&remote, &local) else {
                continue;
            };
            if !self.rules.contains_key(&pair) {
                *self.lengths(&pair).entry(pair.lens()).or_default() += 1;
            }
            let rules = self.rules.entry(pair).or_default();
            // Most pairs have the rule of one policy, for long.
            rules.reserve_exact(usize::from(rules.is_empty()));
            let rule = Rule::new(&entry, local, remote);
            let at = rules.partition_point(|other| other.rank() > rule.rank());
            rules.insert(at, rule);
        }
        self.entries.insert(entry.id, entry);
        before
    }

    /// Removes a policy.
    pub fn remove(&mut self, id: PolicyId) -> Option<Entry<S>> {
        let entry = self.entries.remove(&id)?;
        for (remote, local) in pairs(&entry.selectors) {
            let Some(pair) = Pair::covering(&remote, &local) else {
                continue;
            };
            let Some(rules) = self.rules.get_mut(&pair) else {
                continue;
            };
            rules.retain(|rule| rule.id != id);
            if !rules.is_empty() {
                continue;
            }
            self.rules.remove(&pair);
            if let btree_map::Entry::Occupied(mut count) = self.lengths(&pair).entry(pair.lens()) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        Some(entry)
    }

    fn lengths(&mut self, pair: &Pair) -> &mut Lengths {
        match pair.remote.address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
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

    /// Adds an active SA to a policy as its oldest; `false` if there is no such policy.
    pub fn add_behind(&mut self, id: PolicyId, sa: Arc<S>) -> bool {
        let entry = self.entries.get_mut(&id);
        entry.map(|entry| entry.add_behind(sa)).is_some()
    }

    /// The policy that goes first of those with just these selectors.
    pub fn same(&self, selectors: &Selectors) -> Option<PolicyId> {
        let pair = pairs(selectors).find_map(|(remote, local)| Pair::covering(&remote, &local))?;
        let rules = self.rules.get(&pair)?;
        let ids = rules.iter().rev().map(|rule| rule.id);
        ids.into_iter().find(|id| {
            self.entries
                .get(id)
                .is_some_and(|e| *e.selectors == *selectors)
        })
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
        let lengths = match packet.destination {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        let around = lengths.keys().filter_map(|&(remote, local)| {
            self.rules.get(&Pair {
                remote: Prefix::new(packet.destination, remote),
                local: Prefix::new(packet.source, local),
            })
        });
        let best = around
            .filter_map(|rules| rules.iter().rev().find(|rule| rule.matches(packet)))
            .map(Rule::rank)
            .min()?;
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
