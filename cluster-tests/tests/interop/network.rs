//! What is between the two.

use crate::scenario::{By, Scenario};
use evergate_cluster_tests::Result;
use evergate_cluster_tests::capture::Capture;
use evergate_cluster_tests::duo::{Duo, Setup};
use evergate_cluster_tests::lab::{BEHIND_NAT, Family, Lab};
use evergate_cluster_tests::member::Member;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("ipv6", "IPv6 outside").with(|s| *s = Setup::new(Family::V6)),
        Scenario::new("encap", "UDP encapsulation that the member forces")
            .with(|s| s.gateway.encap = true),
        Scenario::new("nat", "A NAT in front of the peer that changes ports")
            .with(|s| s.peer.local = BEHIND_NAT.into())
            .start(behind_nat)
            .not_by(By::Member, "Nobody reaches a peer behind a NAT first."),
    ]
}

fn behind_nat(setup: &Setup) -> Result<Duo> {
    let mut lab = Lab::new(setup.mtu)?;
    lab.add_peer_behind_nat(1)?;
    let capture = Capture::start(&lab)?;
    let gateway = std::slice::from_ref(&setup.gateway);
    let member = Member::start(&lab, "gw", gateway, &setup.pools)?;
    Duo::with(lab, capture, member, setup)
}
