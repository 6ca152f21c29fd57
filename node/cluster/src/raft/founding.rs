//! How a later generation of a cluster begins: with one member, on a disk that no process uses.
//!
//! It begins with a snapshot in the place of the log, in which this member is the only one, as a node that never was. So nothing that members of the former
//! generation say is meant for it, and nobody can lack what came before. What is written is ordered so that a crash in between leaves a disk that
//! a member does not start from, and from which the same can be done once more.

use super::{
    JoinError,
    forming::new_node,
    log::decode,
    machine::{Machine, Own},
    meta::log_id,
    types::{Entry, LogId, Node, NodeId},
    window::Window,
};
use crate::{
    Config, Generation, KeyRing,
    replica::Shared,
    seal::Sealer,
    store::{Meta, Opened, Storage, Store, StoreError},
};
use evergate_ike::env::UnixMillis;
use evergate_state::State;
use futures::stream;
use openraft::{Membership, StoredMembership, storage::RaftStateMachine};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// What is on the disk of a member that does not run.
pub struct Estate {
    opened: Opened,
    machine: Machine,
    shared: Arc<Shared>,
    last: Option<LogId>,
}

/// What the later generation begins with.
pub struct Heir {
    /// Which one it is.
    pub generation: Generation,
    /// Its state: [`State::heir`].
    pub state: State,
    /// Its only member.
    pub member: Node,
}

impl Estate {
    /// Reads everything: what was applied, and all that follows in the log, whether or not it is known to be committed. Nobody else can say so any more, and
    /// it may have been acknowledged.
    ///
    /// # Errors
    /// If a process uses it, it is damaged, or it is sealed with another key.
    pub async fn open(storage: &Storage, ring: &KeyRing) -> Result<Self, JoinError> {
        let mut opened = storage.open()?;
        let entries = std::mem::take(&mut opened.entries);
        let purged = opened.store.meta().purged.map(log_id);
        let shared = Arc::new(Shared::new(&Config::new(ring.clone(), || UnixMillis(0))));
        let sealer = || Sealer::new(ring.clone());
        let nobody = Own {
            member: 0,
            incarnation: 0,
            window: Arc::new(Window::default()),
        };
        let (mut machine, _) = Machine::open(
            Arc::clone(&opened.snapshots),
            Arc::clone(&shared),
            (sealer()?, sealer()?),
            nobody,
            purged.map(|id| id.index),
            u64::MAX,
        )?;
        let last = replay(&mut machine, entries, storage).await?;
        Ok(Self {
            opened,
            machine,
            shared,
            last: last.max(purged),
        })
    }

    fn meta(&self) -> Meta {
        self.opened.store.meta()
    }

    /// Whether there is nothing: no member ever had this disk.
    pub fn is_empty(&self) -> bool {
        let meta = self.meta();
        self.last.is_none() && meta.vote.is_none() && meta.node == 0
    }

    /// Of which generation it is.
    pub fn generation(&self) -> Generation {
        self.meta().generation
    }

    /// A later generation that its member was told of, or that was to begin here.
    pub fn superseded(&self) -> Option<Generation> {
        self.meta().superseded
    }

    /// Term and index of the last entry of its log. Of two members of a generation the one for which this is greater has more.
    pub fn end(&self) -> Option<(u64, u64)> {
        self.last.map(|id| (id.leader_id.term, id.index))
    }

    /// Which node its member was.
    pub fn node(&self) -> u64 {
        self.meta().node
    }

    /// The members of its cluster, and whether they vote.
    pub fn members(&self) -> Vec<(Node, bool)> {
        let membership = self.machine.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let all = membership.nodes();
        all.map(|(id, node)| (node.clone(), voters.contains(id)))
            .collect()
    }

    /// Looks at the state.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        self.shared.read(read)
    }

    /// Begins the generation of an heir on this disk. What was there is gone.
    ///
    /// # Errors
    /// If it cannot be written. Then it can be tried again, and no member starts from it meanwhile.
    pub fn found(self, heir: &Heir) -> Result<(), JoinError> {
        let prepared = self.prepare(heir)?;
        let Prepared {
            mut store,
            node,
            at,
        } = prepared;
        store.purge(at)?;
        let purged = store.meta();
        store.set_meta(Meta {
            node,
            vote: Some((at.0, node, false)),
            generation: heir.generation,
            superseded: None,
            ..purged
        })?;
        Ok(())
    }

    /// Writes the snapshot that the generation of an heir begins with. From here on no member starts from what was there.
    pub(super) fn prepare(mut self, heir: &Heir) -> Result<Prepared, JoinError> {
        let meta = self.meta();
        let (last_term, last_index) = self.end().unzip();
        let voted = meta.vote.map(|(term, ..)| term);
        let at = (
            voted.max(last_term).unwrap_or(0) + 1,
            last_index.map_or(0, |index| index + 1),
        );
        let node = new_node()?;
        let nodes = BTreeMap::from([(node, heir.member.clone())]);
        let members = Membership::new(vec![[node].into()], nodes)
            .map_err(|e| JoinError::Config(e.to_string()))?;
        let members = StoredMembership::new(Some(log_id(at)), members);
        let snapshot = self
            .machine
            .first_snapshot(log_id(at), members, &heir.state)
            .map_err(|e| JoinError::System("snapshot", e))?;
        self.opened.store.set_meta(Meta {
            superseded: Some(heir.generation),
            ..meta
        })?;
        self.opened.snapshots.write(at.1 + 1, &snapshot)?;
        let store = self.opened.store;
        Ok(Prepared { store, node, at })
    }
}

/// A disk that has the first snapshot of a generation, and does not say so yet.
pub(super) struct Prepared {
    store: Box<dyn Store>,
    /// The node that its member will be.
    node: NodeId,
    /// Term and index of the last entry that counts as being in the snapshot.
    at: (u64, u64),
}

/// Applies what is in the log. Returns where it ends.
async fn replay(
    machine: &mut Machine,
    entries: Vec<(u64, Vec<u8>)>,
    storage: &Storage,
) -> Result<Option<LogId>, JoinError> {
    let failed = |e: std::io::Error| JoinError::Log(e.to_string().into());
    let (applied, _) = machine.applied_state().await.map_err(failed)?;
    let mut all: Vec<Entry> = Vec::new();
    for (index, bytes) in entries {
        let entry = decode(index, &bytes).ok_or_else(|| StoreError::Damaged {
            path: PathBuf::from(storage.to_string()),
            what: format!("entry {index} cannot be understood"),
        })?;
        if Some(entry.log_id) > applied {
            all.push(entry);
        }
    }
    let last = all.last().map(|entry| entry.log_id).max(applied);
    let entries = all.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(stream::iter(entries)).await.map_err(failed)?;
    Ok(last)
}
