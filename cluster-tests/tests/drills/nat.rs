//! A peer behind a NAT: other ports, UDP encapsulation, and a kill.

use crate::establish::both_families;
use evergate_cluster_tests::capture::{Capture, now};
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::{BEHIND_NAT, Family::V4, Lab};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, millis, secs};

#[test]
fn a_peer_behind_a_nat_keeps_its_tunnel_through_a_kill() -> Result<()> {
    // strongSwan 6.1 would send plain ESP, were it not for the NAT.
    let mut setup = Setup::new(V4);
    setup.esp = Esp::Plain;
    setup.gateway = Connection::peer(1, V4).mirrored();
    setup.peer.local = BEHIND_NAT.into();
    let mut lab = Lab::new(1500)?;
    lab.add_peer_behind_nat(1)?;
    let capture = Capture::start(&lab)?;
    let member = Member::start(&lab, "gw", std::slice::from_ref(&setup.gateway), &[])?;
    let mut duo = Duo::with(lab, capture, member, &setup)?;
    duo.peer.initiate(C1, C1)?;
    let (spis, established) = (duo.agree(1)?, now());
    both_families(&duo)?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(20, secs(20))?;
    duo.member.kill9()?;
    std::thread::sleep(millis(300));
    duo.member.start_again(&[])?;
    flow.runs(50, secs(20))?;
    assert_eq!(duo.agree(1)?, spis);
    flow.stop().has_no_duplicate()?;
    // Both roles in exchanges through the mapping.
    duo.member.rekey_child(C1)?;
    duo.agree(1)?;
    duo.peer.rekey_ike(C1)?;
    duo.agree_on(1, |now| now.ike.is_disjoint(&spis.ike))?;
    both_families(&duo)?;
    let found = duo.finish()?;
    assert_eq!(found.esp_plain, 0, "plain ESP does not pass a NAT");
    assert_eq!(found.authentications_after(established), 0);
    Ok(())
}
