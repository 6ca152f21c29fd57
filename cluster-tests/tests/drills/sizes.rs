//! Packets that hardly fit, or do not.

use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{
    Family::{self, V4, V6},
    PROTECTED, inside,
};
use evergate_cluster_tests::raw::Random;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, millis, secs};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// Datagrams of this family that do not fit into the tunnel.
fn get_through_in_pieces(family: Family) -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.mtu = 1300;
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let index = usize::from(family == V6);
    let address = &inside(1)[index];
    let ends = (("peer1", address.as_str()), ("host", PROTECTED[index]));
    let flow = Flow::start(&duo.lab, ends.0, ends.1, millis(20), 1460)?;
    flow.runs(50, secs(20))?;
    let begun = flow.elapsed();
    flow.runs(50, secs(20))?;
    let report = flow.stop();
    report.has_no_duplicate()?;
    for way in [&report.forth, &report.back] {
        // The first ones teach the senders the path MTU (RFC 8201, RFC 1191), which takes longer where the machine stalls. Then all get through.
        let later = way.lost_at.iter().filter(|at| **at > begun).count();
        assert!(
            way.lost <= 100 && later as u64 <= way.dropped_at_ends,
            "{report:?}"
        );
    }
    duo.finish()?;
    Ok(())
}

#[test]
fn datagrams_larger_than_the_tunnel_get_through_in_pieces() -> Result<()> {
    get_through_in_pieces(V4)
}

/// An IPv6 packet may have 1280 bytes on every path (RFC 8200 §5), also where an ESP packet around it does not fit.
#[test]
fn ipv6_datagrams_larger_than_the_tunnel_get_through_in_pieces() -> Result<()> {
    get_through_in_pieces(V6)
}

#[test]
fn tcp_through_a_narrow_path_is_clamped_and_complete() -> Result<()> {
    const SIZE: usize = 2_000_000;
    let mut setup = Setup::new(V6);
    setup.mtu = 1280;
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    for index in [0, 1] {
        let listener = duo
            .lab
            .on("host", || Ok(TcpListener::bind((PROTECTED[index], 9000))?))?;
        let (sent, received) = std::thread::scope(|scope| -> Result<_> {
            let server = scope.spawn(move || -> Result<Vec<u8>> {
                let (mut stream, _) = listener.accept()?;
                stream.set_read_timeout(Some(secs(20)))?;
                let mut got = vec![0; SIZE];
                stream.read_exact(&mut got)?;
                stream.write_all(&got)?;
                Ok(got)
            });
            let mut client = duo.lab.on("peer1", || {
                Ok(TcpStream::connect((PROTECTED[index], 9000))?)
            })?;
            client.set_read_timeout(Some(secs(20)))?;
            client.set_write_timeout(Some(secs(20)))?;
            let data = Random(3).bytes(SIZE);
            client.write_all(&data)?;
            let mut echoed = vec![0; SIZE];
            client.read_exact(&mut echoed)?;
            let got = server.join().map_err(|_| anyhow::anyhow!("server"))??;
            assert_eq!(data, echoed);
            Ok((data, got))
        })?;
        assert!(sent == received);
    }
    duo.finish()?;
    Ok(())
}
