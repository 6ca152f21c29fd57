//! Virtual addresses of peers: who has which. Nowhere else is this decided.

use crate::{
    command::Refusal,
    intervals::Intervals,
    limits::{MAX_EXPIRED_PER_ENTRY, MAX_FORMER, MAX_FORMER_IDENTITY, MAX_PENDING_LEASES},
};
use evergate_ike::{config::Pool, env::UnixMillis, identity::Identity, record::SaId};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// How long an SA keeps an address that its record does not have yet: IKE_AUTH ends well within.
pub const PENDING_LEASE: Duration = Duration::from_secs(60);

/// A leased address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    identity: Identity,
    holders: BTreeSet<SaId>,
    pending: Option<Pending>,
}

/// A lease that waits for its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    sa: SaId,
    until: UnixMillis,
}

impl Lease {
    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The SAs whose records have it: two while an IKE SA is being rekeyed, none while it is pending.
    pub fn holders(&self) -> impl Iterator<Item = SaId> {
        self.holders.iter().copied()
    }

    /// The SA that it waits for, and until when.
    pub fn pending(&self) -> Option<(SaId, UnixMillis)> {
        self.pending.map(|p| (p.sa, p.until))
    }

    fn is_free(&self) -> bool {
        self.holders.is_empty() && self.pending.is_none()
    }
}

/// An address that a record has.
#[derive(Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub(crate) sa: SaId,
    pub(crate) identity: &'a Identity,
    pub(crate) address: IpAddr,
}

/// What a peer asks for.
pub(crate) struct Wish<'a> {
    pub(crate) sa: SaId,
    pub(crate) identity: &'a Identity,
    /// The pools that exist, of those that it may use.
    pub(crate) pools: Vec<&'a Pool>,
    /// Names of those that it may use.
    pub(crate) names: &'a [String],
    pub(crate) v4: Option<IpAddr>,
    pub(crate) v6: Option<IpAddr>,
    /// It may have an address that other SAs of the identity hold.
    pub(crate) takes_over: bool,
}

/// What an identity had last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    /// When, as a count of leases.
    stamp: u64,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

/// All leases.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leases {
    by_address: BTreeMap<IpAddr, Lease>,
    former: BTreeMap<Identity, Former>,
    stamps: u64,
    #[serde(skip)]
    index: Index,
}

/// What follows from the rest and makes every question cheap.
#[derive(Clone, Default, PartialEq, Eq)]
struct Index {
    by_sa: BTreeMap<SaId, BTreeSet<IpAddr>>,
    expiries: BTreeSet<(UnixMillis, IpAddr)>,
    by_stamp: BTreeMap<u64, Identity>,
    used_v4: Intervals,
    used_v6: Intervals,
}

impl Leases {
    /// All leased addresses, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, &Lease)> {
        self.by_address.iter().map(|(a, l)| (*a, l))
    }

    /// Gives addresses to an SA: per family the one that it has, that its identity had, that it asks for, or the lowest one that is free.
    ///
    /// # Errors
    /// If there is no address at all for it, or too many SAs are between asking and having.
    pub(crate) fn lease(
        &mut self,
        wish: &Wish<'_>,
        now: UnixMillis,
    ) -> Result<Vec<IpAddr>, Refusal> {
        if self.index.expiries.len() >= MAX_PENDING_LEASES {
            return Err(Refusal::Limit("leases that wait for their IKE SA"));
        }
        let chosen: Vec<IpAddr> = [wish.v4, wish.v6]
            .into_iter()
            .flatten()
            .filter_map(|wanted| self.choose(wish, wanted))
            .collect();
        if chosen.is_empty() {
            return Err(Refusal::NoAddress(wish.names.to_vec()));
        }
        for &address in &chosen {
            self.make_pending(wish, address, now + PENDING_LEASE);
            self.remember(wish.identity, address);
        }
        Ok(chosen)
    }

    /// Whether these records may have these addresses, given that `batch` are the SAs that are written together: an address comes
    /// from a lease of the same SA, or from an SA of the same peer in the batch (an IKE rekey hands it on).
    pub(crate) fn check(
        &self,
        claims: &[Claim<'_>],
        batch: &BTreeSet<SaId>,
    ) -> Result<(), Refusal> {
        let mut claimed: BTreeMap<IpAddr, &Identity> = BTreeMap::new();
        for claim in claims {
            let among_themselves = claimed
                .insert(claim.address, claim.identity)
                .is_none_or(|i| i == claim.identity);
            if !among_themselves || !self.may_hold(claim, batch) {
                return Err(Refusal::AddressInUse(claim.address));
            }
        }
        Ok(())
    }

    fn may_hold(&self, claim: &Claim<'_>, batch: &BTreeSet<SaId>) -> bool {
        let Some(lease) = self.by_address.get(&claim.address) else {
            return true;
        };
        let own =
            lease.holders.contains(&claim.sa) || lease.pending.is_some_and(|p| p.sa == claim.sa);
        own || (lease.identity == *claim.identity
            && lease.holders.iter().any(|h| batch.contains(h)))
    }

    /// A record has an address now.
    pub(crate) fn hold(&mut self, claim: &Claim<'_>) {
        let lease = self
            .by_address
            .entry(claim.address)
            .or_insert_with(|| Lease {
                identity: claim.identity.clone(),
                holders: BTreeSet::new(),
                pending: None,
            });
        lease.holders.insert(claim.sa);
        if let Some(p) = lease.pending.take_if(|p| p.sa == claim.sa) {
            self.index.expiries.remove(&(p.until, claim.address));
        }
        self.index.mark(claim.sa, claim.address);
        self.remember(claim.identity, claim.address);
    }

    /// A record no longer has an address.
    pub(crate) fn release(&mut self, sa: SaId, address: IpAddr) {
        let Some(lease) = self.by_address.get_mut(&address) else {
            return;
        };
        lease.holders.remove(&sa);
        if let Some(p) = lease.pending.take_if(|p| p.sa == sa) {
            self.index.expiries.remove(&(p.until, address));
        }
        self.index.unmark_sa(sa, address);
        if lease.is_free() {
            self.by_address.remove(&address);
            self.index.used(address).remove(number(address));
        }
    }

    /// An SA is gone: all that it holds or waits for.
    pub(crate) fn release_all(&mut self, sa: SaId) {
        for address in self.index.by_sa.get(&sa).cloned().unwrap_or_default() {
            self.release(sa, address);
        }
    }

    /// All SAs are gone. What identities had last is remembered.
    pub(crate) fn vacate(&mut self) {
        self.by_address.clear();
        self.reindex();
    }

    /// Frees what no record took in time, at most [`MAX_EXPIRED_PER_ENTRY`] at once; the rest comes with later entries.
    pub(crate) fn expire(&mut self, now: UnixMillis) {
        for _ in 0..MAX_EXPIRED_PER_ENTRY {
            let Some(&(until, address)) = self
                .index
                .expiries
                .first()
                .filter(|(until, _)| *until <= now)
            else {
                return;
            };
            self.index.expiries.remove(&(until, address));
            let pending = self.by_address.get(&address).and_then(Lease::pending);
            if let Some((sa, _)) = pending {
                self.release(sa, address);
            }
        }
    }

    /// Makes anew what is not in a snapshot.
    pub(crate) fn reindex(&mut self) {
        self.index = Index::default();
        for (&address, lease) in &self.by_address {
            for sa in lease.holders().chain(lease.pending.map(|p| p.sa)) {
                self.index.mark(sa, address);
            }
            if let Some(p) = lease.pending {
                self.index.expiries.insert((p.until, address));
            }
        }
        self.index.by_stamp = self
            .former
            .iter()
            .map(|(id, f)| (f.stamp, id.clone()))
            .collect();
    }

    /// How many identities' former addresses are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.former.len()
    }

    /// The address of `wanted`'s family that the SA gets.
    fn choose(&self, wish: &Wish<'_>, wanted: IpAddr) -> Option<IpAddr> {
        let family = |a: &IpAddr| a.is_ipv4() == wanted.is_ipv4();
        if let Some(has) = self
            .index
            .by_sa
            .get(&wish.sa)
            .and_then(|all| all.iter().find(|a| family(a)))
        {
            return Some(*has);
        }
        let pools = || {
            wish.pools
                .iter()
                .filter(|p| family(&p.first) && family(&p.last))
        };
        // An SA that displaces others of its peer gets what they had: to the peer it is the same tunnel. So it is if the peer names what it has already:
        // it authenticates again, and deletes the other SA once it has this one.
        let free = |a: &IpAddr| match self.by_address.get(a) {
            None => true,
            Some(lease) => lease.identity == *wish.identity && (wish.takes_over || *a == wanted),
        };
        let usable = |a: &IpAddr| pools().any(|p| p.first <= *a && *a <= p.last) && free(a);
        let former = self.former.get(wish.identity).and_then(|f| match wanted {
            IpAddr::V4(_) => f.v4.map(IpAddr::V4),
            IpAddr::V6(_) => f.v6.map(IpAddr::V6),
        });
        let named = Some(wanted).filter(|a| self.by_address.contains_key(a));
        named
            .filter(usable)
            .or_else(|| former.filter(usable))
            .or_else(|| Some(wanted).filter(usable))
            .or_else(|| {
                let used = if wanted.is_ipv4() {
                    &self.index.used_v4
                } else {
                    &self.index.used_v6
                };
                pools().find_map(|p| {
                    used.lowest_absent(number(p.first), number(p.last))
                        .map(|n| address(n, wanted.is_ipv4()))
                })
            })
    }

    /// The SA that asked has the address for a while, unless its record has it anyway.
    fn make_pending(&mut self, wish: &Wish<'_>, address: IpAddr, until: UnixMillis) {
        let lease = self.by_address.entry(address).or_insert_with(|| Lease {
            identity: wish.identity.clone(),
            holders: BTreeSet::new(),
            pending: None,
        });
        if lease.holders.contains(&wish.sa) {
            return;
        }
        if let Some(before) = lease.pending.replace(Pending { sa: wish.sa, until }) {
            self.index.expiries.remove(&(before.until, address));
        }
        self.index.expiries.insert((until, address));
        self.index.mark(wish.sa, address);
    }

    /// Keeps in mind what an identity has, to give it again.
    fn remember(&mut self, identity: &Identity, address: IpAddr) {
        if length(identity) > MAX_FORMER_IDENTITY {
            return;
        }
        self.stamps += 1;
        let stamp = self.stamps;
        let former = self.former.entry(identity.clone()).or_insert(Former {
            stamp,
            v4: None,
            v6: None,
        });
        self.index.by_stamp.remove(&former.stamp);
        former.stamp = stamp;
        match address {
            IpAddr::V4(a) => former.v4 = Some(a),
            IpAddr::V6(a) => former.v6 = Some(a),
        }
        self.index.by_stamp.insert(stamp, identity.clone());
        if self.former.len() > MAX_FORMER
            && let Some((_, oldest)) = self.index.by_stamp.pop_first()
        {
            self.former.remove(&oldest);
        }
    }
}

impl Index {
    fn used(&mut self, address: IpAddr) -> &mut Intervals {
        if address.is_ipv4() {
            &mut self.used_v4
        } else {
            &mut self.used_v6
        }
    }

    fn mark(&mut self, sa: SaId, address: IpAddr) {
        self.by_sa.entry(sa).or_default().insert(address);
        self.used(address).insert(number(address));
    }

    fn unmark_sa(&mut self, sa: SaId, address: IpAddr) {
        if let Some(all) = self.by_sa.get_mut(&sa) {
            all.remove(&address);
            if all.is_empty() {
                self.by_sa.remove(&sa);
            }
        }
    }
}

/// An address as a number, to count with.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The address of a number that came from one of the same family.
fn address(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(n) if v4 => Ipv4Addr::from(n).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

/// Length in bytes of what an identity holds.
fn length(identity: &Identity) -> usize {
    match identity {
        Identity::Address(_) => 16,
        Identity::Fqdn(s) | Identity::Email(s) => s.len(),
        Identity::Dn(d) | Identity::KeyId(d) | Identity::Other { data: d, .. } => d.len(),
    }
}
