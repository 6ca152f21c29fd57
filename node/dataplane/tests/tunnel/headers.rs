//! What crosses between inner and outer headers, where it is chosen.

use crate::{
    gateways::{Case, Pair, uninterrupted},
    hosts::privileged,
};
use evergate_dataplane::{ChildSa, DataPlane, HeaderPolicy};
use std::time::Duration;

/// Installs both ends of a Child SA with this policy of headers.
fn connect(pair: &Pair, case: Case, headers: HeaderPolicy) {
    for (gateway, n) in [(&pair.a, 1), (&pair.b, 2)] {
        let end = ChildSa {
            headers,
            ..case.end(n, 0x1000)
        };
        gateway.plane.install(end).unwrap();
    }
}

#[test]
fn ecn_stays_inside_and_dscp_comes_inwards() {
    privileged("headers::ecn_stays_inside_and_dscp_comes_inwards", || {
        let pair = Pair::new();
        let headers = HeaderPolicy {
            dscp_in: true,
            ecn: false,
            ..HeaderPolicy::default()
        };
        connect(&pair, Case::PLAIN, headers);
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        socket2::SockRef::from(&from).set_tos_v4(0xba).unwrap();
        let wire = pair.a.host.capture("wire");
        from.send_to(b"mark", to.local_addr().unwrap()).unwrap();
        let mut packet = wire.first(|p| p[9] == 50 && p[12..16] == [192, 0, 2, 1]);
        assert_eq!(packet[1], 0xb8, "DSCP EF, and not capable of ECN");
        uninterrupted(|| to.recv(&mut [0; 100])).unwrap();

        // A router has another opinion of its class, and marks congestion.
        packet[1] = 0x28 | 3;
        pair.b.plane.remove(0x1001, Duration::ZERO).unwrap();
        let end = ChildSa {
            headers,
            ..Case::PLAIN.end(2, 0x1000)
        };
        pair.b.plane.install(end).unwrap();
        let inside = pair.b.host.capture("evergate0");
        pair.a.host.inject(&packet);
        let inner = inside.first(|p| p[12..16] == [10, 1, 0, 1]);
        assert_eq!(
            inner[1],
            0x28 | 2,
            "the class of the router, ECN of the sender"
        );
    });
}

#[test]
fn without_df_outside_the_first_packet_arrives_whole() {
    let name = "headers::without_df_outside_the_first_packet_arrives_whole";
    privileged(name, || {
        let headers = HeaderPolicy {
            df: false,
            ..HeaderPolicy::default()
        };
        for case in [Case::IN_UDP, Case::PLAIN] {
            let pair = Pair::routed(1300);
            connect(&pair, case, headers);
            let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            // None of them fits, and nobody has to learn that.
            for len in [1340, 1372, 100, 1300] {
                let sent = from.send_to(&vec![6; len], to.local_addr().unwrap());
                assert_eq!(sent.unwrap(), len);
                let mut buffer = vec![0; 2000];
                let received = uninterrupted(|| to.recv(&mut buffer));
                assert_eq!(received.expect("it arrives"), len, "{case:?}");
            }
            let drops = pair.a.stats(0x1000).drops;
            assert_eq!(drops.total(), 0, "{drops:?}");
        }
    });
}
