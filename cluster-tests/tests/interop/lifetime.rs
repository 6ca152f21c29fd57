//! What happens as time goes by.

use crate::scenario::{By, Scenario};
use anyhow::ensure;
use evergate_cluster_tests::capture::packets;
use evergate_cluster_tests::duo::{C1, Duo};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::packet::{Body, IkeHeader, Packet};
use evergate_cluster_tests::sa::Spis;
use evergate_cluster_tests::wire::Exchange;
use evergate_cluster_tests::{Result, secs, until};
use std::net::IpAddr;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("two_children", "A Child SA for IPv4 and one for IPv6")
            .both(|c| c.split = true)
            .children(&[C1, "c1-v6"]),
        Scenario::new(
            "rekeys_cross",
            "Both sides rekey by the same clock under traffic, each IKE SA after 5 s and each Child SA after 3 s",
        )
        .rekeys_every(5, 3)
        .look(several_rekeys),
        Scenario::new(
            "reauthentication",
            "The initiator authenticates again every 4 s under traffic, because strongSwan is configured so, and the member is told by it (RFC 4478)",
        )
        .with(|s| (s.peer.reauth, s.gateway.reauth) = (4, 34))
        .authenticates_again()
        .look(several_authentications),
        Scenario::new(
            "reauthentication_by_volume",
            "The member authenticates again after 300 packets under traffic, or has strongSwan do it (RFC 4478)",
        )
        .with(|s| s.gateway.together_packets = (0, 300))
        .authenticates_again()
        .look(several_authentications),
        Scenario::new("dpd_of_the_member", "Liveness checks of the member")
            .with(|s| s.gateway.dpd = 1)
            .look(|duo, _| asks(duo, &duo.connection.remote)),
        Scenario::new("dpd_of_strongswan", "Liveness checks of strongSwan")
            .with(|s| s.peer.dpd = 1)
            .look(|duo, _| asks(duo, &duo.connection.local)),
    ]
}

/// Traffic goes on without loss until both SAs were replaced twice.
fn several_rekeys(duo: &Duo, _: By) -> Result<()> {
    let flow = duo.traffic(V4, 4)?;
    for _ in 0..2 {
        let before = duo.spis()?;
        until(secs(60), "all SAs are others", || {
            let now = duo.spis()?;
            Ok(now.ike.is_disjoint(&before.ike)
                && now.child.is_disjoint(&before.child)
                && now != Spis::default())
        })?;
    }
    flow.stop().is_lossless()
}

/// Traffic goes on without loss until there were several new IKE SAs.
fn several_authentications(duo: &Duo, _: By) -> Result<()> {
    let flow = duo.traffic(V4, 4)?;
    let mut seen = duo.spis()?.ike;
    until(secs(120), "new IKE SAs", || {
        seen.extend(duo.spis()?.ike);
        Ok(seen.len() > 3)
    })?;
    flow.stop().is_lossless()
}

/// A side asks whether the other lives when there is no traffic, and both stay.
fn asks(duo: &Duo, address: &str) -> Result<()> {
    let (before, address) = (duo.spis()?, address.parse::<IpAddr>()?);
    let asked = |packet: &Packet| {
        packet.src == address
            && matches!(&packet.body, Body::Ike(message)
                if IkeHeader::parse(message).is_some_and(|h| !h.response && h.exchange == Exchange::Informational as u8))
    };
    until(secs(30), &format!("{address} asks"), || {
        Ok(packets(&duo.capture.so_far()?).iter().any(asked))
    })?;
    ensure!(duo.spis()? == before, "other SAs after liveness checks");
    Ok(())
}
