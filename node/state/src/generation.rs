//! What a cluster hands on to its next generation.

use crate::{
    enrolment::Enrolments,
    state::{Body, Gateway, Second, State},
};
use std::sync::Arc;

impl State {
    /// What the next generation of the cluster begins with: the policy with its secrets, the virtual gateways, and which addresses identities had. No SA and nothing
    /// that belongs to one; no cookie secret; no member and no token, as only who is taken in again is one. Epochs go on: there is no key left that
    /// their numbers could meet again, and so nobody has to rely on that.
    #[must_use]
    pub fn heir(&self) -> Self {
        let gateway = |(id, gateway): (&_, &Gateway)| {
            let heir = Gateway {
                epoch: gateway.epoch,
                owner: None,
            };
            (*id, heir)
        };
        let mut leases = self.body.leases.clone();
        leases.vacate();
        Self {
            body: Body {
                clock: self.body.clock,
                gateways: self.body.gateways.iter().map(gateway).collect(),
                leases,
                policy: Arc::clone(&self.body.policy),
                policy_version: self.body.policy_version,
                level: self.body.level,
                ..Body::default()
            },
            second: Second::default(),
            enrolments: Enrolments::default(),
            ..Self::default()
        }
    }
}
