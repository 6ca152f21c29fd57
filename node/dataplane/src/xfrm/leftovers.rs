//! What a former process left in the kernel.
//!
//! A killed process leaves its states and policies, and the kernel goes on with them. The next one begins by removing them: what they may use is of an
//! epoch that is over. How far they have received is better known to them than to any report, and so it is remembered for their successors.

use super::{
    Tag,
    kernel::{Kernel, Witness},
    states::StateId,
};
use crate::ChildSa;
use std::{collections::HashMap, io};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// How far states of a former process had received, by SPI. With their keys, by which it is certain that they were of the same Child SA.
#[derive(Default)]
pub(super) struct Leftovers(HashMap<StateId, (u64, Zeroizing<Vec<u8>>)>);

impl Leftovers {
    /// Removes all that is ours from the kernel.
    pub(super) fn clear(kernel: &mut Kernel, tag: Tag) -> io::Result<Self> {
        let policies = kernel.remove_policies()?;
        let mut edges = HashMap::new();
        let mut states = 0;
        let witness = Witness::open();
        for (id, _) in kernel.states()? {
            if id.spi == 0 {
                continue;
            }
            states += 1;
            if let Some(last) = kernel.end_state_before(&witness, id)?
                && last.edge > 0
            {
                edges.insert(id, (last.edge, last.key));
            }
        }
        if policies + states > 0 {
            tracing::info!(
                if_id = tag.if_id,
                policies,
                states,
                "removed what a former process had left in the kernel"
            );
        }
        Ok(Self(edges))
    }

    /// How far a Child SA had received. Asked once.
    pub(super) fn edge(&mut self, sa: &ChildSa) -> Option<u64> {
        let (edge, key) = self.0.remove(&StateId::inbound(sa))?;
        bool::from(key.ct_eq(&sa.key_in)).then_some(edge)
    }
}
