//! The outbound policy database (RFC 4301 §4.4.1): from an inner packet to the SA that protects it.

use crate::{OutboundSa, Selectors, packet::PacketSelectors};
use std::sync::Arc;

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
#[derive(Clone, Debug)]
pub struct Spd<S = OutboundSa> {
    todo: std::marker::PhantomData<S>,
}

impl<S> Default for Spd<S> {
    fn default() -> Self {
        todo!()
    }
}

impl<S> Spd<S> {
    /// Adds a policy; yields the one that had this id before. The work is proportional to the product of the
    /// numbers of selectors on both sides.
    pub fn insert(&mut self, entry: Entry<S>) -> Option<Entry<S>> {
        let _ = entry;
        todo!()
    }

    /// Removes a policy.
    pub fn remove(&mut self, id: PolicyId) -> Option<Entry<S>> {
        let _ = id;
        todo!()
    }

    /// The policy with this id.
    pub fn get(&self, id: PolicyId) -> Option<&Entry<S>> {
        let _ = id;
        todo!()
    }

    /// Changes the SAs of a policy in place: see [`Entry::add`], [`Entry::set_active`], [`Entry::remove`]. Only SAs: selectors and priority stay.
    pub fn sas_mut(&mut self, id: PolicyId) -> Option<&mut Entry<S>> {
        let _ = id;
        todo!()
    }

    /// The policy for a packet that we would send.
    pub fn lookup(&self, packet: &PacketSelectors) -> Option<&Entry<S>> {
        let _ = packet;
        todo!()
    }

    /// All policies, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<S>> {
        std::iter::empty()
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        todo!()
    }
}
