//! The harness against itself: strongSwan on both sides, so that a drill that
//! fails with a member is the member's failure.

use evergate_cluster_tests::capture::Capture;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::{Family, Lab};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::{Esp, StrongSwan};
use evergate_cluster_tests::wire::{Exchange, Kind, Loss, lose};
use evergate_cluster_tests::{Result, secs};

fn start(setup: &Setup) -> Result<Duo<StrongSwan>> {
    let mut lab = Lab::new(1500)?;
    lab.add_peer(1)?;
    let capture = Capture::start(&lab)?;
    let gateway = StrongSwan::start(&lab, "gw", setup.esp, std::slice::from_ref(&setup.gateway))?;
    Duo::with(lab, capture, gateway, setup)
}

fn traffic_passes_only_through_the_tunnel(esp: Esp, outer: Family) -> Result<()> {
    let mut setup = Setup::new(outer);
    setup.esp = esp;
    let duo = start(&setup)?;
    let before = duo.traffic(Family::V4, 20)?;
    std::thread::sleep(secs(1));
    assert_eq!(
        before.stop().forth.received,
        0,
        "there is a way without a tunnel"
    );
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    for inner in [Family::V4, Family::V6] {
        let flow = duo.traffic(inner, 5)?;
        flow.runs(100, secs(10))?;
        flow.stop().is_lossless()?;
    }
    let (gateway, peer) = (outer.outer(2), outer.outer(1));
    let found = duo.finish()?;
    assert!(
        found.esp_from(&gateway) >= 200 && found.esp_from(&peer) >= 200,
        "{found:?}"
    );
    let (plain, in_udp) = (found.esp_plain > 0, found.esp_in_udp > 0);
    assert_eq!((plain, in_udp), (esp == Esp::Plain, esp == Esp::InUdp));
    Ok(())
}

#[test]
fn strongswan_with_itself_in_udp() -> Result<()> {
    traffic_passes_only_through_the_tunnel(Esp::InUdp, Family::V4)
}

#[test]
fn strongswan_with_itself_in_plain_esp() -> Result<()> {
    traffic_passes_only_through_the_tunnel(Esp::Plain, Family::V6)
}

#[test]
fn lost_messages_are_sent_again_byte_for_byte() -> Result<()> {
    let duo = start(&Setup::new(Family::V4))?;
    let (peer, gateway) = (Family::V4.outer(1), Family::V4.outer(2));
    let lost = |from, exchange, kind| Loss {
        from,
        exchange,
        kind,
        count: 1,
    };
    lose(
        &duo.lab,
        &[
            lost(&gateway, Exchange::Auth, Kind::Response),
            lost(&peer, Exchange::CreateChild, Kind::Request),
        ],
    )?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    duo.peer.rekey_ike(C1)?;
    std::thread::sleep(secs(3));
    duo.agree(1)?;
    let found = duo.finish()?;
    assert_eq!(found.count(&peer, Exchange::Auth, Kind::Request), 2);
    assert_eq!(found.count(&gateway, Exchange::Auth, Kind::Response), 2);
    assert_eq!(found.count(&peer, Exchange::CreateChild, Kind::Request), 2);
    assert_eq!(
        found.count(&gateway, Exchange::CreateChild, Kind::Response),
        1
    );
    assert_eq!(found.retransmissions, 3);
    Ok(())
}

#[test]
fn strongswan_with_itself_loses_nothing_when_it_rekeys() -> Result<()> {
    let duo = start(&Setup::new(Family::V4))?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let flow = duo.traffic(Family::V4, 4)?;
    duo.peer.rekey_child(C1)?;
    std::thread::sleep(secs(1));
    duo.member.rekey_ike(C1)?;
    std::thread::sleep(secs(1));
    duo.agree(1)?;
    flow.stop().is_lossless()?;
    duo.finish()?;
    Ok(())
}
