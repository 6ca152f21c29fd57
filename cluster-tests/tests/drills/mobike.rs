//! Outer addresses change under traffic (RFC 4555): the same SAs go on, nobody authenticates again.
//!
//! strongSwan's user-space ESP cannot change the addresses of a Child SA, so strongSwan rekeys it right after it moved. Between two members
//! the Child SAs keep their SPIs, too.

use anyhow::Context;
use evergate_cluster_tests::capture::{Capture, now};
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::{Flow, Report};
use evergate_cluster_tests::lab::{BEHIND_NAT, Family::V4, Lab, PROTECTED, inside};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::wire::{Exchange, Kind, sent};
use evergate_cluster_tests::{Result, millis, secs, until};
use std::time::Duration;

/// Both sides may be anywhere.
fn setup(esp: Esp) -> Setup {
    let mut setup = Setup::new(V4).both(|c| c.mobike = true);
    setup.esp = esp;
    setup.peer.local = "%any".into();
    setup.gateway.local = "%any".into();
    setup.gateway.remote = "%any".into();
    setup
}

/// Where a member thinks that its peer is.
fn remote_of(member: &Member) -> Result<String> {
    let listing: serde_json::Value = serde_json::from_str(&member.ctl(&["sas", "--json"])?)?;
    let first = listing.as_array().and_then(|l| l.first());
    let remote = first.and_then(|sa| sa["remote"].as_str());
    Ok(remote.unwrap_or_default().to_owned())
}

/// Waits until a member has its peer there.
pub(crate) fn at(member: &Member, address: &str) -> Result<()> {
    until(secs(30), "the peer is at its new address", || {
        let remote = remote_of(member)?;
        anyhow::ensure!(remote.contains(address), "it is at {remote}");
        Ok(true)
    })
}

/// A host goes from one address to another, as into another network.
pub(crate) fn relocate(lab: &Lab, host: &str, old: u8, new: u8) -> Result<()> {
    // Without it the kernel takes all addresses of the network away with the first.
    lab.exec(
        host,
        &["sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1"],
    )?;
    lab.ip(host, &format!("addr add 192.0.2.{new}/24 dev up0"))?;
    lab.ip(host, &format!("addr del 192.0.2.{old}/24 dev up0"))
}

/// The longest time without traffic.
fn gap(report: &Report) -> Duration {
    report.forth.longest_gap.max(report.back.longest_gap)
}

/// The same IKE SA, and traffic both ways.
fn goes_on(duo: &Duo, flow: &Flow, spis: &Spis) -> Result<()> {
    flow.runs(50, secs(20))
        .with_context(|| duo.lab.kernel("peer1") + &duo.lab.kernel("gw"))?;
    assert_eq!(duo.agree(1)?.ike, spis.ike);
    Ok(())
}

fn roams(esp: Esp) -> Result<()> {
    let duo = Duo::start(&setup(esp))?;
    // Otherwise it may prefer IPv6.
    duo.lab.ip("peer1", "addr del 2001:db8::1/64 dev up0")?;
    duo.peer.initiate(C1, C1)?;
    let (spis, established) = (duo.agree(1)?, now());
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    // The next address is there before the first goes, as with a new network.
    for (old, new) in [(1, 101), (101, 102), (102, 1)] {
        relocate(&duo.lab, "peer1", old, new)?;
        at(&duo.member, &format!("192.0.2.{new}:4500"))?;
        goes_on(&duo, &flow, &spis)?;
    }
    let report = flow.stop();
    report.has_no_duplicate()?;
    eprintln!("longest gap {:?}", gap(&report));
    // Both can still do everything.
    duo.member.rekey_child(C1)?;
    duo.agree(1)?;
    duo.peer.rekey_ike(C1)?;
    let last = duo.agree_on(1, |now| now.ike.is_disjoint(&spis.ike))?;
    assert!(last.child.is_disjoint(&spis.child));
    assert_eq!(duo.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn strongswan_5_9_roams() -> Result<()> {
    roams(Esp::InUdp)
}

#[test]
fn strongswan_6_1_roams() -> Result<()> {
    roams(Esp::Plain)
}

#[test]
fn strongswan_moves_from_ipv4_to_ipv6() -> Result<()> {
    let duo = Duo::start(&setup(Esp::Plain))?;
    duo.peer.initiate(C1, C1)?;
    let (spis, established) = (duo.agree(1)?, now());
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    // With the last IPv4 address of an interface its IPv4 routes go, and with them that of the policy if the peer's ESP is its kernel's.
    duo.lab.ip("peer1", "addr add 169.254.1.1/32 dev up0")?;
    duo.lab.ip("peer1", "addr del 192.0.2.1/24 dev up0")?;
    at(&duo.member, "[2001:db8::1]:4500")?;
    goes_on(&duo, &flow, &spis)?;
    flow.stop().has_no_duplicate()?;
    assert_eq!(duo.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn the_peer_roams_while_the_member_is_killed() -> Result<()> {
    let mut duo = Duo::start(&setup(Esp::InUdp))?;
    // Otherwise the peer may find out first that the member is back at IPv6.
    duo.lab.ip("peer1", "addr del 2001:db8::1/64 dev up0")?;
    duo.peer.initiate(C1, C1)?;
    let (spis, established) = (duo.agree(1)?, now());
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    duo.member.kill9()?;
    relocate(&duo.lab, "peer1", 1, 101)?;
    std::thread::sleep(millis(300));
    duo.member.start_again(&[])?;
    at(&duo.member, "192.0.2.101:4500")?;
    goes_on(&duo, &flow, &spis)?;
    flow.stop().has_no_duplicate()?;
    assert_eq!(duo.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn addresses_that_the_connection_is_not_for_are_refused() -> Result<()> {
    let mut setup = setup(Esp::InUdp);
    setup.gateway.remote = "192.0.2.0/26".into();
    let duo = Duo::start(&setup)?;
    // Otherwise it may try IPv6 first.
    duo.lab.ip("peer1", "addr del 2001:db8::1/64 dev up0")?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    relocate(&duo.lab, "peer1", 1, 101)?;
    until(secs(20), "the update is refused", || {
        Ok(duo.member.log()?.contains(
            "the peer moved to 192.0.2.101 and 192.0.2.2, which the connection does not allow",
        ))
    })?;
    assert!(remote_of(&duo.member)?.starts_with("192.0.2.1:"));
    duo.finish()?;
    Ok(())
}

/// A peer behind a NAT that forgets its mappings and gives other ports.
fn nat_reboots(mobike: bool) -> Result<()> {
    let mut setup = Setup::new(V4).both(|c| (c.mobike, c.dpd) = (mobike, 2));
    setup.esp = Esp::Plain;
    setup.gateway = Connection {
        remote: "%any".into(),
        ..Connection::peer(1, V4).mirrored()
    };
    setup.gateway.mobike = mobike;
    setup.peer.local = BEHIND_NAT.into();
    let mut lab = Lab::new(1500)?;
    lab.add_peer_behind_nat(1)?;
    let capture = Capture::start(&lab)?;
    let member = Member::start(&lab, "gw", std::slice::from_ref(&setup.gateway), &[])?;
    let duo = Duo::with(lab, capture, member, &setup)?;
    duo.peer.initiate(C1, C1)?;
    let (spis, established) = (duo.agree(1)?, now());
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    let nft = |rule: &str| duo.lab.exec("nat1", &["nft", rule]);
    nft("add chain ip nat raw { type filter hook prerouting priority -300 ; }")?;
    for (zone, range) in [(1, "31000-31999"), (2, "32000-32999")] {
        let before = remote_of(&duo.member)?;
        // In another zone of connection tracking nothing is known of what was before. All at once: nothing passes as it is.
        nft(&format!(
            "flush chain ip nat post ; flush chain ip nat raw ; \
             add rule ip nat post oifname up0 udp sport {{ 500, 4500 }} masquerade to :{range} ; \
             add rule ip nat raw ct zone set {zone}"
        ))?;
        until(secs(20), "the new mapping is followed", || {
            let remote = remote_of(&duo.member)?;
            Ok(remote != before && remote.contains(&format!(":{}", &range[..2])))
        })?;
        goes_on(&duo, &flow, &spis)?;
    }
    flow.stop().has_no_duplicate()?;
    duo.member.rekey_child(C1)?;
    duo.agree(1)?;
    assert_eq!(duo.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn a_nat_reboots_with_mobike() -> Result<()> {
    nat_reboots(true)
}

#[test]
fn a_nat_reboots_without_mobike() -> Result<()> {
    nat_reboots(false)
}

#[test]
fn our_initiator_roams_with_strongswan_as_responder() -> Result<()> {
    let mut setup = Setup::new(V4).both(|c| c.mobike = true);
    setup.peer.remote = "%any".into();
    setup.gateway.local = "%any".into();
    let duo = Duo::start(&setup)?;
    duo.member.initiate(C1, C1)?;
    let (spis, established) = (duo.agree(1)?, now());
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    for (old, new) in [(2, 102), (102, 103)] {
        relocate(&duo.lab, "gw", old, new)?;
        // It may have said so already.
        let address = format!("192.0.2.{new}");
        until(secs(30), "the member says where it is", || {
            let all = sent(
                &duo.capture,
                &address,
                Exchange::Informational,
                Kind::Request,
            )?;
            Ok(!all.is_empty())
        })?;
        goes_on(&duo, &flow, &spis)?;
    }
    flow.stop().has_no_duplicate()?;
    duo.member.rekey_ike(C1)?;
    let last = duo.agree(1)?;
    duo.peer.rekey_child(C1)?;
    duo.agree_on(1, |now| now.child.is_disjoint(&last.child))?;
    assert_eq!(duo.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn two_members_one_roams_and_both_are_killed() -> Result<()> {
    let mut lab = Lab::new(1500)?;
    lab.add_peer(1)?;
    let capture = Capture::start(&lab)?;
    let mut connection = Connection::peer(1, V4);
    (connection.mobike, connection.dpd) = (true, 2);
    connection.local = "%any".into();
    let mut mirrored = connection.mirrored();
    mirrored.remote = "%any".into();
    let mut member = Member::start(&lab, "gw", &[mirrored], &[])?;
    let mut peer = Member::start(&lab, "peer1", &[connection], &[])?;
    peer.initiate(C1, C1)?;
    let (spis, established) = (Spis::of(&member.sas()?), now());
    let addresses = inside(1);
    let flow = Flow::start(
        &lab,
        ("peer1", &addresses[0]),
        ("host", PROTECTED[0]),
        millis(5),
        200,
    )?;
    flow.runs(50, secs(20))?;
    relocate(&lab, "peer1", 1, 101)?;
    at(&member, "192.0.2.101:4500")?;
    flow.runs(50, secs(20))?;
    // The one that moves is killed before it could say so, and the other one at the same time.
    peer.kill9()?;
    member.kill9()?;
    relocate(&lab, "peer1", 101, 102)?;
    member.start_again(&[])?;
    peer.start_again(&[])?;
    at(&member, "192.0.2.102:4500")?;
    flow.runs(50, secs(20))?;
    assert_eq!(Spis::of(&member.sas()?), spis);
    assert_eq!(Spis::of(&peer.sas()?).mirrored(), spis);
    flow.stop().has_no_duplicate()?;
    drop((member, peer));
    let found = capture.check(&[])?;
    found.verdict()?;
    assert_eq!(found.authentications_after(established), 0);
    lab.passed();
    Ok(())
}
