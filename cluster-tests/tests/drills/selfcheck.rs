//! The harness against itself: strongSwan on both sides, so that a drill that
//! fails with a member is the member's failure.

use evergate_cluster_tests::capture::Capture;
use evergate_cluster_tests::decrypt::decode;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::{Family, Lab};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::{Esp, StrongSwan};
use evergate_cluster_tests::wire::{Exchange, Kind, Loss, lose, sent_just};
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
    let first = duo.agree(1)?;
    duo.peer.rekey_ike(C1)?;
    duo.agree_on(1, |now| now.ike.is_disjoint(&first.ike))?;
    let rows = [
        (&peer, Exchange::Auth, Kind::Request, 2),
        (&gateway, Exchange::Auth, Kind::Response, 2),
        (&peer, Exchange::CreateChild, Kind::Request, 2),
        (&gateway, Exchange::CreateChild, Kind::Response, 1),
    ];
    for (from, exchange, kind, _) in rows {
        sent_just(&duo.capture, from, exchange, kind, 1)?;
    }
    let found = duo.finish()?;
    // On a machine that stalls there are more.
    let mut again = 0;
    for (from, exchange, kind, least) in rows {
        let count = found.count(from, exchange, kind);
        assert!(count >= least, "{count}: {exchange:?} {kind:?}");
        again += count - 1;
    }
    assert!(found.retransmissions >= again, "{again}: {found:?}");
    Ok(())
}

#[test]
fn strongswan_with_itself_loses_nothing_when_it_rekeys() -> Result<()> {
    let duo = start(&Setup::new(Family::V4))?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    let flow = duo.traffic(Family::V4, 4)?;
    duo.peer.rekey_child(C1)?;
    duo.agree_on(1, |now| now.child.is_disjoint(&first.child))?;
    std::thread::sleep(secs(1));
    duo.member.rekey_ike(C1)?;
    duo.agree_on(1, |now| now.ike.is_disjoint(&first.ike))?;
    std::thread::sleep(secs(1));
    flow.stop().is_lossless()?;
    duo.finish()?;
    Ok(())
}

/// An ESP packet and a protected IKE message, each right and with a wrong tag,
/// sealed by another implementation under the keys of [`PROFILE`].
const SEALED: [&str; 4] = [
    "0000000000000000000000000800450000600001000040320000c0000201c0000202c0ffee01000000010000\
     00000000000195ed8240bd25f7791ded5dd91a7e370255b1d1c56f4c0e5ec519ccc0258e991ae40403ee7ed5\
     bb9e2d25b70af3d8838654034ff5ec26897bdb27d1f5",
    "0000000000000000000000000800450000600001000040320000c0000201c0000202c0ffee01000000040000\
     0000000000040b958533895619cad0edae42941432593b19e57b96bd354ba42a0e20afd7dc9fb35874777ddb\
     069a0a2ffc8a8e94a2ca77d15e4d39592823ced0c8e0",
    "0000000000000000000000000800450000610001000040110000c0000201c000020211941194004d00000000\
     0000000000000000000100000000000000022e202508000000010000004129000025000000000000000214d1\
     71d2420708d25083943459d0bcef1a6fb2363b9ce0ba69",
    "00000000000000000000000008004500005d0001000040110000c0000201c000020201f401f4004900000000\
     00000000000100000000000000022e202508000000030000004129000025000000000000000450c1584ded45\
     89bd0f38c7893ac3be221c19b43b1fe943a516",
];

/// The tables of Wireshark for [`SEALED`].
const PROFILE: [(&str, &str); 2] = [
    (
        "esp_sa",
        "\"IPv4\",\"*\",\"*\",\"0xc0ffee01\",\"AES-GCM with 16 octet ICV [RFC4106]\",\
         \"0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f53414c54\",\"NULL\",\"\"\n",
    ),
    (
        "ikev2_decryption_table",
        "0000000000000001,0000000000000002,6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f8081828384858687,\
         6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f8081828384858687,\
         \"AES-GCM-256 with 16 octet ICV [RFC5282]\",,,\"NONE [RFC4306]\"\n",
    ),
];

#[test]
fn a_wrong_tag_is_found_by_wireshark() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, table) in PROFILE {
        std::fs::write(dir.path().join(name), table)?;
    }
    let words = |list: &[u32]| -> Vec<u8> { list.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let mut pcap = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1]);
    for hex in SEALED {
        let octet = |at| u8::from_str_radix(&hex[at..at + 2], 16);
        let frame = (0..hex.len())
            .step_by(2)
            .map(octet)
            .collect::<std::result::Result<Vec<u8>, _>>()?;
        let length = u32::try_from(frame.len())?;
        pcap.extend(words(&[0, 0, length, length]));
        pcap.extend(frame);
    }
    let file = dir.path().join("sealed.pcap");
    std::fs::write(&file, pcap)?;
    let decoded = decode(&file, dir.path())?;
    assert_eq!((decoded.esp, decoded.esp_failed), (1, 1));
    assert_eq!((decoded.ike, decoded.ike_failed), (1, 1));
    Ok(())
}
