//! From Child SAs to the policies that the kernel is told.

use super::{
    children::Children,
    flows::{Direction, Flow},
    policies::{PolicyId, Rule},
};
use crate::{PlaneError, netlink::refused};

impl Children {
    /// Sets a trap with this number for what no Child SA sends.
    pub(super) fn arm(&mut self, number: u32) -> Result<(), PlaneError> {
        self.trap = number;
        self.spd
            .refresh(&[Flow::everything(true), Flow::everything(false)]);
        self.settle()
    }

    /// Brings the policies in line with the Child SAs. What the kernel refused is tried again with the next change.
    pub(super) fn settle(&mut self) -> Result<(), PlaneError> {
        let mut result = Ok(());
        for id in self.spd.take_dirty() {
            let rule = self.rule(&id);
            if let Err(e) = self.kernel.set_policy(id, rule.as_ref()) {
                self.spd.try_again(id);
                result = result.and(Err(refused("set a policy", e)));
            }
        }
        result
    }

    /// What a policy should be.
    fn rule(&self, id: &PolicyId) -> Option<Rule> {
        match id.direction {
            Direction::Out => {
                // One that has no state would only be waited for, though another could send.
                let mut senders = self
                    .spd
                    .senders(&id.flow)
                    .filter_map(|spi| self.all.get(&spi));
                let Some(child) = senders.find(|c| c.outbound.is_there || c.held || c.closed)
                else {
                    let everything = [Flow::everything(true), Flow::everything(false)];
                    return everything
                        .contains(&id.flow)
                        .then_some(Rule::Trap(self.trap));
                };
                if child.held || child.closed || !self.gates.is_open(&child.sa.gate) {
                    return Some(Rule::Closed);
                }
                Some(Rule::Send {
                    outer: child.sa.outer,
                    spi: child.sa.spi_out,
                    reqid: child.reqid,
                })
            }
            Direction::In | Direction::Forward => {
                let receivers = self.spd.receivers(&id.flow);
                (!receivers.is_empty()).then_some(Rule::Receive(receivers))
            }
        }
    }
}
