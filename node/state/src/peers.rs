//! How many IKE SAs a peer has, and which of them go when it authenticates anew. Decided here, in the one order that all members see, so that no two
//! workers or members can decide differently.

use crate::{
    apply::Batch,
    command::{Outcome, Refusal},
    state::State,
};
use evergate_ike::{
    config::Unique,
    identity::Identity,
    record::{Phase, Record, Role, SaId},
    sa::Displaced,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

/// The established SAs by a digest of their two identities. It only narrows the search: what is found has to be looked at. Two identities for
/// each of a hundred thousand SAs would be most of what the state needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peers(BTreeSet<(u64, SaId)>);

/// The same for the same identities, as long as the process lives.
fn digest(local: &Identity, remote: &Identity) -> u64 {
    let mut hasher = DefaultHasher::new();
    (local, remote).hash(&mut hasher);
    hasher.finish()
}

impl Peers {
    /// The SAs that may be between two identities, in the order of their names.
    fn candidates(&self, local: &Identity, remote: &Identity) -> impl Iterator<Item = SaId> {
        let digest = digest(local, remote);
        let range = (digest, SaId(0))..=(digest, SaId(u64::MAX));
        self.0.range(range).map(|(_, id)| *id)
    }

    pub(crate) fn add(&mut self, record: &Record) {
        if let Some((local, remote)) = record.identities() {
            self.0.insert((digest(local, remote), record.id));
        }
    }

    pub(crate) fn remove(&mut self, record: &Record) {
        if let Some((local, remote)) = record.identities() {
            self.0.remove(&(digest(local, remote), record.id));
        }
    }

    /// A record takes the place of another version of itself.
    pub(crate) fn replace(&mut self, before: Option<&Record>, after: &Record) {
        if before.and_then(Record::identities) == after.identities() {
            return;
        }
        if let Some(before) = before {
            self.remove(before);
        }
        self.add(after);
    }
}

/// Whether the peer of `old` seems to authenticate again: nobody else has its address and port. Two hosts behind one NAT have different ports.
fn again_from_there(old: &Record, new: &Record) -> bool {
    new.role == Role::Responder && old.path.remote == new.path.remote
}

impl State {
    /// The established SAs between these identities, ours first, of any gateway, in the order of their names.
    pub fn between(&self, local: &Identity, remote: &Identity) -> impl Iterator<Item = SaId> {
        let found = self.peers.candidates(local, remote);
        found.filter(move |id| {
            self.sa(*id)
                .is_some_and(|r| r.identities() == Some((local, remote)))
        })
    }

    /// The SAs that a batch displaces, and how.
    pub(crate) fn check_unique(
        &self,
        batch: &Batch<'_>,
    ) -> Result<BTreeMap<SaId, Displaced>, Refusal> {
        let mut displaced = BTreeMap::new();
        for record in batch.values() {
            if self.authenticates(record) {
                displaced.extend(self.displaced_by(record, batch)?);
            }
            // A rekey does not save an SA that is to go.
            if let (Some(&how), Some(new)) =
                (self.body.displaced.get(&record.id), record.replaced_by())
            {
                displaced.insert(new, how);
            }
        }
        Ok(displaced)
    }

    /// Whether with this record both ends have just authenticated. What a rekey makes is no new authentication.
    fn authenticates(&self, record: &Record) -> bool {
        let before = self.sa(record.id).map(|r| &r.phase);
        matches!(before, Some(Phase::HalfOpen(_) | Phase::AuthSent(_)))
            && matches!(record.phase, Phase::Established(_))
    }

    fn displaced_by(
        &self,
        record: &Record,
        batch: &Batch<'_>,
    ) -> Result<Vec<(SaId, Displaced)>, Refusal> {
        let (Some((local, remote)), Phase::Established(e)) = (record.identities(), &record.phase)
        else {
            return Ok(Vec::new());
        };
        let unique = self
            .body
            .policy
            .connection(&record.connection)
            .map_or(Unique::Never, |c| c.unique);
        // What we put in its place ourselves is told by it, once it is complete.
        let succeeds = record.succeeds.as_ref().map(|s| s.old);
        let others: Vec<&Record> = self
            .between(local, remote)
            .filter(|id| !batch.contains_key(id) && Some(*id) != succeeds)
            .filter_map(|id| self.sa(id).map(AsRef::as_ref))
            .filter(|r| r.gateway == record.gateway)
            .collect();
        let forgotten = e.initial_contact;
        let displaced = match unique {
            Unique::Never => Vec::new(),
            Unique::No if !forgotten => Vec::new(),
            Unique::Keep if !forgotten => {
                let kept = |r: &&&Record| {
                    !self.body.displaced.contains_key(&r.id) && !again_from_there(r, record)
                };
                if let (Some(kept), Role::Responder) = (others.iter().find(kept), record.role) {
                    return Err(Refusal::NotUnique(kept.id));
                }
                let again = others.iter().filter(|r| again_from_there(r, record));
                again.map(|r| (r.id, Displaced::Later)).collect()
            }
            _ => {
                let how = |r: &Record| match forgotten {
                    true => Displaced::Forgotten,
                    false if r.path.remote.ip() == record.path.remote.ip() => Displaced::Later,
                    false => Displaced::Told,
                };
                others.iter().map(|r| (r.id, how(r))).collect()
            }
        };
        Ok(displaced)
    }

    /// Marks SAs as displaced, those that still exist; they stay so until they are closed.
    pub(crate) fn displace(&mut self, displaced: BTreeMap<SaId, Displaced>) -> Outcome {
        let open = |state: &Self, id: &SaId| {
            state
                .sa(*id)
                .is_some_and(|r| !matches!(r.phase, Phase::Closed(_)))
        };
        let displaced: BTreeMap<SaId, Displaced> = displaced
            .into_iter()
            .filter(|(id, _)| open(self, id))
            .collect();
        let ids: Vec<SaId> = displaced.keys().copied().collect();
        self.body.displaced.extend(displaced);
        if ids.is_empty() {
            Outcome::Applied
        } else {
            Outcome::Displaced(ids)
        }
    }
}
