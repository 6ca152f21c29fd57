//! The outbound policy database (RFC 4301 §4.4.1): from an inner packet to the SA that protects it.

use crate::{AHEAD, OutboundSa, Selector, Selectors, packet::PacketSelectors, table::Table};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, HashMap, btree_map},
    fmt,
    hash::{BuildHasher, RandomState},
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

/// Policies by selectors: the side of whoever changes them.
///
/// They are found by the narrowest prefixes that contain a range of remote and one of local addresses: a look-up takes one step for each
/// pair of lengths of such prefixes that there is, however many policies there are.
#[derive(Debug)]
pub struct Spd<S = OutboundSa> {
    entries: HashMap<PolicyId, Entry<S>>,
    rules: Arc<Policies<S>>,
    /// Which lengths of prefixes there are together, and how many rules of each.
    v4: Lengths,
    v6: Lengths,
}

/// How many rules there are of each pair of lengths, remote and local; only of those that there are.
type Lengths = BTreeMap<(u32, u32), usize>;

/// Policies by selectors: the side of those who look them up. They take no lock, and see each change whole as far as one pair of selectors
/// goes.
pub struct Policies<S = OutboundSa> {
    /// By prefixes; what goes first comes first, so that of equal selectors the newest policy joins most cheaply.
    rules: Table<Rule<S>>,
    lengths: ArcSwap<KnownLengths>,
    /// Peers have a say in selectors, and must not choose what meets in one place.
    hasher: RandomState,
}

/// Pairs of lengths of prefixes, remote and local.
#[derive(Debug, Default)]
struct KnownLengths {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u32, u32)>,
}

/// The policy that a packet falls under.
#[derive(Clone, Debug)]
pub struct Found<S = OutboundSa> {
    /// Its name.
    pub id: PolicyId,
    /// What happens to its packets.
    pub action: Action,
    /// The SA to send with, see [`Entry::active`].
    pub sa: Option<Arc<S>>,
}

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

/// One pair of selectors of a policy, with all that a packet needs to know of that.
#[derive(Debug)]
struct Rule<S> {
    remote: Selector,
    local: Selector,
    action: Action,
    priority: u32,
    id: PolicyId,
    sa: Option<Arc<S>>,
}

impl<S> Clone for Rule<S> {
    fn clone(&self) -> Self {
        Self {
            sa: self.sa.clone(),
            ..*self
        }
    }
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

impl<S> Rule<S> {
    fn new(entry: &Entry<S>, local: Selector, remote: Selector) -> Self {
        Self {
            remote,
            local,
            action: entry.action,
            priority: entry.priority,
            id: entry.id,
            sa: entry.active().cloned(),
        }
    }

    fn is(&self, id: PolicyId, local: &Selector, remote: &Selector) -> bool {
        self.id == id && self.local == *local && self.remote == *remote
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

    fn found(&self) -> Found<S> {
        Found {
            id: self.id,
            action: self.action,
            sa: self.sa.clone(),
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

impl<S> Default for Policies<S> {
    fn default() -> Self {
        Self {
            rules: Table::default(),
            lengths: ArcSwap::default(),
            hasher: RandomState::new(),
        }
    }
}

impl<S> Policies<S> {
    /// The policy for a packet that we would send.
    pub fn lookup(&self, packet: &PacketSelectors) -> Option<Found<S>> {
        let lengths = self.lengths.load();
        let lengths = match packet.destination {
            IpAddr::V4(_) => &lengths.v4,
            IpAddr::V6(_) => &lengths.v6,
        };
        let mut best: Option<(Rank, Found<S>)> = None;
        for &(remote, local) in lengths {
            let pair = Pair {
                remote: Prefix::new(packet.destination, remote),
                local: Prefix::new(packet.source, local),
            };
            let found = self.rules.find(self.hash(&pair), |rule| {
                let goes_first = rule.matches(packet).then(|| rule.rank())?;
                Some((goes_first, rule.found()))
            });
            match (&best, found) {
                (Some((rank, _)), Some(found)) if found.0 >= *rank => {}
                (_, found @ Some(_)) => best = found,
                _ => {}
            }
        }
        best.map(|(_, found)| found)
    }

    /// Has what is needed to look up the policies of these packets fetched into the cache, for all at once; `fetch` is to do the same for their SAs' own
    /// memory, and `warm` for what those point to. Where policies of several kinds may match, those are looked at that have the longest prefixes. At most
    /// [`AHEAD`] packets are looked at.
    pub fn look_ahead(&self, packets: &[PacketSelectors], fetch: impl Fn(&S), warm: impl Fn(&S)) {
        let lengths = self.lengths.load();
        let mut hashes = [0; AHEAD];
        let mut count = 0;
        for packet in packets.iter().take(AHEAD) {
            let lengths = match packet.destination {
                IpAddr::V4(_) => &lengths.v4,
                IpAddr::V6(_) => &lengths.v6,
            };
            // They are in order.
            if let Some(&(remote, local)) = lengths.last() {
                hashes[count] = self.hash(&Pair {
                    remote: Prefix::new(packet.destination, remote),
                    local: Prefix::new(packet.source, local),
                });
                count += 1;
            }
        }
        let sa = |rule: &Rule<S>, look: &dyn Fn(&S)| rule.sa.as_deref().map(look);
        self.rules.look_ahead(
            &hashes[..count],
            |rule| _ = sa(rule, &fetch),
            |rule| _ = sa(rule, &warm),
        );
    }

    fn hash(&self, pair: &Pair) -> u32 {
        let Pair { remote, local } = pair;
        let lens = remote.len << 16 | local.len;
        let hash = match (remote.address, local.address) {
            (IpAddr::V4(r), IpAddr::V4(l)) => {
                self.hasher.hash_one((lens, u32::from(r), u32::from(l)))
            }
            (r, l) => self.hasher.hash_one((lens, number(r), number(l))),
        };
        (hash >> 32) as u32
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.len() == 0
    }
}

impl<S> fmt::Debug for Policies<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").finish_non_exhaustive()
    }
}

impl<S> Default for Spd<S> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            rules: Arc::default(),
            v4: Lengths::new(),
            v6: Lengths::new(),
        }
    }
}

impl<S> Spd<S> {
    /// Where packets are looked up.
    pub fn policies(&self) -> &Arc<Policies<S>> {
        &self.rules
    }

    /// Adds a policy; yields the one that had this id before, which goes first: packets may find neither for a moment. The work is
    /// proportional to the product of the numbers of selectors on both sides.
    pub fn insert(&mut self, entry: Entry<S>) -> Option<Entry<S>> {
        let before = self.remove(entry.id);
        for (remote, local) in pairs(&entry.selectors) {
            let Some(pair) = Pair::covering(&remote, &local) else {
                continue;
            };
            let (rules, hash) = (&self.rules.rules, self.rules.hash(&pair));
            let is_there = |r: &Rule<S>| r.is(entry.id, &local, &remote).then_some(());
            if rules.find(hash, is_there).is_some() {
                continue;
            }
            let rule = Rule::new(&entry, local, remote);
            let rank = rule.rank();
            rules.insert_before(hash, rule, |other| other.rank() > rank);
            let lengths = self.lengths(&pair);
            *lengths.entry(pair.lens()).or_default() += 1;
            if lengths[&pair.lens()] == 1 {
                self.tell_lengths();
            }
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
            let (rules, hash) = (&self.rules.rules, self.rules.hash(&pair));
            let removed = rules.remove(hash, |rule| rule.is(id, &local, &remote));
            let lengths = self.lengths(&pair);
            if removed.is_some()
                && let btree_map::Entry::Occupied(mut count) = lengths.entry(pair.lens())
            {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                    self.tell_lengths();
                }
            }
        }
        Some(entry)
    }

    fn tell_lengths(&self) {
        let all = |lengths: &Lengths| lengths.keys().copied().collect();
        self.rules.lengths.store(Arc::new(KnownLengths {
            v4: all(&self.v4),
            v6: all(&self.v6),
        }));
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

    /// Changes the SAs of a policy, and lets packets know; `false` if there is no such policy, or if `change` says so.
    fn change(&mut self, id: PolicyId, change: impl FnOnce(&mut Entry<S>) -> bool) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        let before = entry.active().cloned();
        let changed = change(entry);
        if before.as_ref().map(Arc::as_ptr) != entry.active().map(Arc::as_ptr) {
            for (remote, local) in pairs(&entry.selectors) {
                if let Some(pair) = Pair::covering(&remote, &local) {
                    let rule = Rule::new(entry, local, remote);
                    let is = |other: &Rule<S>| other.is(id, &local, &remote);
                    self.rules.rules.replace(self.rules.hash(&pair), rule, is);
                }
            }
        }
        changed
    }

    /// Adds an SA to a policy, newer than all that it has; `false` if there is no such policy. During a rekey the
    /// responder adds it inactive until the initiator is known to have it (RFC 7296 §2.8).
    pub fn add_sa(&mut self, id: PolicyId, sa: Arc<S>, active: bool) -> bool {
        self.change(id, |entry| {
            entry.add(sa, active);
            true
        })
    }

    /// Adds an active SA to a policy as its oldest; `false` if there is no such policy.
    pub fn add_behind(&mut self, id: PolicyId, sa: Arc<S>) -> bool {
        self.change(id, |entry| {
            entry.add_behind(sa);
            true
        })
    }

    /// The policy that goes first of those with just these selectors.
    pub fn same(&self, selectors: &Selectors) -> Option<PolicyId> {
        let pair = pairs(selectors).find_map(|(remote, local)| Pair::covering(&remote, &local))?;
        self.rules.rules.find(self.rules.hash(&pair), |rule| {
            let entry = self.entries.get(&rule.id)?;
            (*entry.selectors == *selectors).then_some(rule.id)
        })
    }

    /// Makes an SA of a policy eligible for sending, or no longer so; `false` if it is not there.
    pub fn set_active(&mut self, id: PolicyId, sa: &Arc<S>, active: bool) -> bool {
        self.change(id, |entry| entry.set_active(sa, active))
    }

    /// Removes an SA of a policy; `false` if it is not there. The policy stays: its packets are dropped, not sent
    /// in the clear.
    pub fn remove_sa(&mut self, id: PolicyId, sa: &Arc<S>) -> bool {
        self.change(id, |entry| entry.remove(sa))
    }

    /// The policy for a packet that we would send.
    pub fn lookup(&self, packet: &PacketSelectors) -> Option<Found<S>> {
        self.rules.lookup(packet)
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
