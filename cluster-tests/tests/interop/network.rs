//! What is between the two.

use crate::scenario::{By, Scenario};
use anyhow::ensure;
use evergate_cluster_tests::capture::{Capture, packets};
use evergate_cluster_tests::connection::{Auth, Connection};
use evergate_cluster_tests::duo::{Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::lab::{BEHIND_NAT, Family, Lab};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::packet::{Body, Packet};
use evergate_cluster_tests::pki::{Key, Pki};
use evergate_cluster_tests::sa::Spis;
use evergate_cluster_tests::wire::drop_ip_fragments;
use evergate_cluster_tests::{Result, millis, secs, until};
use std::net::IpAddr;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let initiator_moves = "The initiator decides about addresses (RFC 4555 §3.5).";
    let nobody_reaches = "Nobody reaches a peer behind a NAT first.";
    let behind = |name, what| {
        Scenario::new(name, what)
            .with(|s| s.peer.local = BEHIND_NAT.into())
            .start(behind_nat)
            .not_by(By::Member, nobody_reaches)
    };
    let reboots = |name, what, mobike| {
        behind(name, what)
            .both(|c| (c.mobike, c.dpd) = (mobike, 2))
            .with(|s| s.gateway.remote = "%any".into())
            .look(nat_reboots)
    };
    vec![
        Scenario::new("ipv6", "IPv6 outside").with(|s| *s = Setup::new(Family::V6)),
        Scenario::new("encap", "UDP encapsulation that the member forces")
            .with(|s| s.gateway.encap = true),
        Scenario::new(
            "fragmentation",
            "Certificate chains of 9 KB on both sides, over a path of 1280 bytes that loses fragments of IP packets",
        )
        .with(|s| s.mtu = 1280)
        .start(with_long_chains)
        .look(fragments),
        Scenario::new(
            "transport_mode",
            "Transport mode between the two ends themselves",
        )
        .not_here(
            "strongSwan's ESP in user space has tunnels only. With that of the kernel this is played in `cluster-tests/guest`, with either side as initiator: \
             `cluster-tests/run transport::`.",
        ),
        Scenario::new(
            "transport_mode_declined",
            "The member wants transport mode between the two ends themselves, and strongSwan's ESP has tunnels only: a tunnel",
        )
        .both(Connection::host_to_host)
        .with(|s| {
            s.peer.mode = "tunnel";
            // What is outside has to be told from what is inside.
            let mark = "plugins { socket-default { fwmark = 0x42 } kernel-netlink { fwmark = !0x42 } }";
            s.charon = vec![mark.into()];
        })
        .traffic(between_the_ends)
        .look(is_tunnel),
        behind("nat", "A NAT in front of the peer that changes ports"),
        reboots("nat_reboots", "A NAT that reboots, twice, under traffic, with MOBIKE", true),
        reboots("nat_reboots_without_mobike", "The same without MOBIKE", false),
        Scenario::new("mobike_of_strongswan", "MOBIKE: strongSwan moves to another address and back, under traffic")
            .both(|c| c.mobike = true)
            .with(|s| {
                s.peer.local = "%any".into();
                s.gateway.remote = "%any".into();
            })
            .look(strongswan_moves)
        .opaque()
            .not_by(By::Member, initiator_moves),
        Scenario::new("mobike_of_the_member", "MOBIKE: the member moves to another address and back, under traffic")
            .both(|c| c.mobike = true)
            .with(|s| {
                s.peer.remote = "%any".into();
                s.gateway.local = "%any".into();
            })
            .look(member_moves)
        .opaque()
            .not_by(By::Peer, initiator_moves),
    ]
}

/// Datagrams both ways between the outer addresses: none is lost.
fn between_the_ends(duo: &Duo) -> Result<()> {
    let (peer, gateway) = (V4.outer(1), V4.outer(2));
    let (from, to) = (("peer1", peer.as_str()), ("gw", gateway.as_str()));
    let flow = Flow::start(&duo.lab, from, to, millis(5), 200)?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()
}

fn is_tunnel(duo: &Duo, _: By) -> Result<()> {
    let sas = duo.member.ctl(&["sas", "--json"])?;
    ensure!(sas.contains("\"mode\": \"tunnel\""), "{sas}");
    Ok(())
}

fn behind_nat(setup: &Setup) -> Result<Duo> {
    let mut lab = Lab::new(setup.mtu)?;
    lab.add_peer_behind_nat(1)?;
    let capture = Capture::start(&lab)?;
    let gateway = std::slice::from_ref(&setup.gateway);
    let member = Member::start(&lab, "gw", gateway, &setup.pools)?;
    Duo::with(lab, capture, member, setup)
}

/// How much of a chain is one certificate's alternative names. strongSwan takes messages of up to 10,000 bytes.
const NAMES: usize = 145;

fn with_long_chains(setup: &Setup) -> Result<Duo> {
    let pki = Pki::new("long", Key::P256)?;
    let issue = |name: &str| {
        pki.issue_with(name, Key::P256, |params| {
            for n in 0..NAMES {
                let name = format!("{n:03}.a-name-that-makes-the-certificate-longer.{name}");
                params.subject_alt_names.extend(Pki::dns(&name));
            }
        })
    };
    let mut setup = setup.clone();
    let own = Auth::pubkey(issue(&setup.peer.local_id)?);
    let other = Auth::pubkey(issue(&setup.gateway.local_id)?);
    (setup.peer.local_auth, setup.peer.remote_auth) = (own.clone(), other.clone());
    (setup.gateway.local_auth, setup.gateway.remote_auth) = (other, own);
    let duo = Duo::start(&setup)?;
    drop_ip_fragments(&duo.lab)?;
    Ok(duo)
}

/// Both sides sent IKE_AUTH in fragments: so many that there was a chain of 9 KB.
fn fragments(duo: &Duo, _: By) -> Result<()> {
    const SKF: u8 = 53;
    let all = packets(&duo.capture.so_far()?);
    for address in [&duo.connection.local, &duo.connection.remote] {
        let address: IpAddr = address.parse()?;
        let of = |packet: &&Packet| {
            packet.src == address
                && matches!(&packet.body, Body::Ike(message) if message.get(16) == Some(&SKF))
        };
        let bytes: usize = (all.iter().filter(of))
            .map(|packet| match &packet.body {
                Body::Ike(message) => message.len(),
                _ => 0,
            })
            .sum();
        ensure!(bytes > 9000, "{address} sent {bytes} bytes in fragments");
    }
    Ok(())
}

/// Where the member thinks that its peer is.
fn remote(duo: &Duo) -> Result<String> {
    let listing: serde_json::Value = serde_json::from_str(&duo.member.ctl(&["sas", "--json"])?)?;
    let first = listing.as_array().and_then(|list| list.first());
    let remote = first.and_then(|sa| sa["remote"].as_str());
    Ok(remote.unwrap_or_default().to_owned())
}

/// Traffic goes on over the same IKE SA.
fn goes_on(duo: &Duo, flow: &Flow, before: &Spis) -> Result<()> {
    flow.runs(50, secs(20))?;
    let now = duo.agree(1)?;
    ensure!(now.ike == before.ike, "another IKE SA");
    Ok(())
}

fn nat_reboots(duo: &Duo, _: By) -> Result<()> {
    let before = duo.agree(1)?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    let nft = |rule: &str| duo.lab.exec("nat1", &["nft", rule]);
    nft("add chain ip nat raw { type filter hook prerouting priority -300 ; }")?;
    for (zone, range) in [(1, "31000-31999"), (2, "32000-32999")] {
        // In another zone of connection tracking nothing is known of what was before.
        nft(&format!(
            "flush chain ip nat post ; flush chain ip nat raw ; \
             add rule ip nat post oifname up0 udp sport {{ 500, 4500 }} masquerade to :{range} ; \
             add rule ip nat raw ct zone set {zone}"
        ))?;
        until(secs(20), "the new mapping is followed", || {
            Ok(remote(duo)?.contains(&format!(":{}", &range[..2])))
        })?;
        goes_on(duo, &flow, &before)?;
    }
    flow.stop().has_no_duplicate()
}

/// A host gets another address before it loses the old one.
fn relocate(duo: &Duo, host: &str, old: u8, new: u8) -> Result<()> {
    let promote = "net.ipv4.conf.all.promote_secondaries=1";
    duo.lab.exec(host, &["sysctl", "-qw", promote])?;
    duo.lab
        .ip(host, &format!("addr add 192.0.2.{new}/24 dev up0"))?;
    duo.lab
        .ip(host, &format!("addr del 192.0.2.{old}/24 dev up0"))
}

fn strongswan_moves(duo: &Duo, _: By) -> Result<()> {
    // Otherwise it may prefer IPv6.
    duo.lab.ip("peer1", "addr del 2001:db8::1/64 dev up0")?;
    let before = duo.agree(1)?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    for (old, new) in [(1, 101), (101, 1)] {
        relocate(duo, "peer1", old, new)?;
        until(secs(30), "strongSwan is at its new address", || {
            Ok(remote(duo)?.starts_with(&format!("192.0.2.{new}:")))
        })?;
        goes_on(duo, &flow, &before)?;
    }
    flow.stop().has_no_duplicate()
}

fn member_moves(duo: &Duo, _: By) -> Result<()> {
    let before = duo.agree(1)?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    for (old, new) in [(2, 102), (102, 2)] {
        let address: IpAddr = format!("192.0.2.{new}").parse()?;
        let seen = packets(&duo.capture.so_far()?).len();
        relocate(duo, "gw", old, new)?;
        until(secs(30), "the member speaks from its new address", || {
            let all = packets(&duo.capture.so_far()?);
            let from = |p: &Packet| p.src == address && matches!(p.body, Body::Ike(_));
            Ok(all.iter().skip(seen).any(from))
        })?;
        goes_on(duo, &flow, &before)?;
    }
    flow.stop().has_no_duplicate()
}
