//! Which SAs there are, as members and peers say.

use super::{
    gateway::{Gateway, Sa},
    peer::Peer,
    report::Sas,
};
use anyhow::Result;

/// What all gateways say about their SAs.
#[derive(Debug, Default)]
pub(super) struct Picture {
    /// What any member says. An SA of which all members say the same is here once; if one says something else, that is here, too.
    members: Vec<Sa>,
    /// What the peers say.
    peers: Vec<Sa>,
}

impl Picture {
    /// Asks everyone who runs.
    ///
    /// # Errors
    /// If somebody does not answer.
    pub(super) async fn take(members: &[Gateway], peers: &[Peer]) -> Result<Self> {
        let mut picture = Self::default();
        for member in members.iter().filter(|m| m.is_started()) {
            picture.members.extend(member.sas().await?);
        }
        picture.members.sort();
        picture.members.dedup();
        for peer in peers.iter().filter(|p| p.is_started()) {
            picture.peers.extend(peer.sas().await?);
        }
        picture.peers.sort();
        Ok(picture)
    }

    /// Whether each peer has a tunnel, and both ends agree on it.
    pub(super) fn complete(&self, peers: usize) -> bool {
        self.members.len() == peers
            && self.members.iter().all(|sa| !sa.children.is_empty())
            && self
                .members
                .iter()
                .map(Sa::spis)
                .eq(self.peers.iter().map(Sa::spis))
    }

    /// Whether both ends have what both had.
    pub(super) fn same_spis(&self, after: &Self) -> bool {
        let spis = |sas: &'_ [Sa]| -> Vec<_> {
            sas.iter().map(|sa| (sa.ike, sa.children.clone())).collect()
        };
        let all = [&self.members, &self.peers, &after.members, &after.peers];
        all.windows(2).all(|pair| spis(pair[0]) == spis(pair[1]))
    }

    /// How many IKE SAs were authenticated that were not before.
    pub(super) fn authenticated_again(&self, after: &Self) -> u64 {
        let known = |sas: &[Sa], sa: &Sa| {
            sas.iter()
                .any(|s| (s.ike, s.authenticated_ms) == (sa.ike, sa.authenticated_ms))
        };
        let new = |before: &[Sa], after: &[Sa]| {
            after.iter().filter(|sa| !known(before, sa)).count() as u64
        };
        new(&self.members, &after.members).max(new(&self.peers, &after.peers))
    }

    pub(super) fn summary(&self) -> Sas {
        Sas {
            count: self.members.iter().map(|sa| 1 + sa.children.len()).sum(),
            spis: self.members.iter().map(Sa::describe).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let sa = |n: u64| Sa {
            ike: (n, n + 1),
            authenticated_ms: Some(n),
            children: vec![(7, 8)],
        };
        Picture {
            members: vec![sa(1), sa(3)],
            peers: vec![sa(1), sa(3)],
        }
    }

    #[test]
    fn a_picture_is_complete_when_both_ends_agree() {
        assert!(picture().complete(2) && !picture().complete(1));
        let mut other = picture();
        other.peers[0].children = vec![(7, 9)];
        assert!(!other.complete(2));
        for sa in &mut other.members {
            sa.children.clear();
        }
        other.peers = other.members.clone();
        assert!(!other.complete(2));
    }

    #[test]
    fn changes_at_either_end_are_noticed() {
        let before = picture();
        assert!(before.same_spis(&picture()));
        assert_eq!(before.authenticated_again(&picture()), 0);
        let mut gone = picture();
        gone.peers.pop();
        assert!(!before.same_spis(&gone));
        let mut rekeyed = picture();
        rekeyed.members[1].children = vec![(9, 10)];
        rekeyed.peers[1].children = vec![(9, 10)];
        assert!(!before.same_spis(&rekeyed));
        assert_eq!(before.authenticated_again(&rekeyed), 0);
        let mut again = picture();
        again.peers[1].authenticated_ms = Some(99);
        assert_eq!(before.authenticated_again(&again), 1);
        assert_eq!(before.summary().count, 4);
    }
}
