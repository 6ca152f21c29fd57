//! Streams: packets that pass the devices together, and apart on the wire.

use crate::{
    gateways::{Case, Gateway, Pair, eventually},
    hosts::{PATIENCE, privileged},
};
use evergate_dataplane::{ChildSa, DataPlane, DropReason, PlaneConfig};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    thread,
};

/// Bytes of one stream.
const LENGTH: usize = 3 << 20;

/// Enough sequence numbers for a stream.
fn ample(pair: &Pair, spi: u32, case: Case) {
    for (gateway, n) in [(&pair.a, 1), (&pair.b, 2)] {
        let end = case.end(n, spi);
        let first = end.reservation.start;
        let reservation = first..first + 1_000_000;
        gateway
            .plane
            .install(ChildSa { reservation, ..end })
            .unwrap();
    }
}

/// The bytes of a stream: no two stretches are the same.
fn bytes() -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(LENGTH).collect()
}

/// A connection through the tunnel.
fn connect(from: &Gateway, to: &Gateway, from_ip: &str, to_ip: &str) -> (TcpStream, TcpStream) {
    let at = SocketAddr::new(to_ip.parse().unwrap(), 0);
    let listener = to.host.run(move || TcpListener::bind(at).unwrap());
    let to = listener.local_addr().unwrap();
    let from_ip = SocketAddr::new(from_ip.parse().unwrap(), 0);
    let client = from.host.run(move || {
        let domain = socket2::Domain::for_address(to);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        socket.bind(&from_ip.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        TcpStream::from(socket)
    });
    let (server, _) = listener.accept().unwrap();
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (client, server)
}

/// Sends a stream and checks what comes.
fn stream(mut from: &TcpStream, mut to: &TcpStream) {
    let bytes = bytes();
    thread::scope(|scope| {
        let sent = scope.spawn(|| from.write_all(&bytes).unwrap());
        let mut received = vec![0; LENGTH];
        to.read_exact(&mut received).unwrap();
        sent.join().unwrap();
        assert!(received == bytes, "the stream is another");
    });
}

#[test]
fn streams_arrive_whole_in_few_large_packets() {
    privileged("streams::streams_arrive_whole_in_few_large_packets", || {
        for (case, outer_v6) in [Case::PLAIN, Case::IN_UDP]
            .into_iter()
            .flat_map(|case| [(case, false), (case, true)])
        {
            let case = Case { outer_v6, ..case };
            let pair = Pair::new();
            ample(&pair, 0x1000, case);
            for (a, b) in [("10.1.0.1", "10.2.0.1"), ("fd01::1", "fd02::1")] {
                let (client, server) = connect(&pair.a, &pair.b, a, b);
                stream(&client, &server);
                stream(&server, &client);
                let inside = pair.b.host.capture("evergate0");
                let is_large = |p: &Vec<u8>| p.len() > 5000;
                // Read meanwhile: the socket has room for the beginning of the stream only.
                let last = thread::scope(|scope| {
                    let seen = scope.spawn(|| inside.until(|all| all.last().is_some_and(is_large)));
                    stream(&client, &server);
                    seen.join().unwrap().pop()
                });
                assert!(last.is_some_and(|p| is_large(&p)), "{case:?}");
            }
            for (gateway, spi) in [(&pair.a, 0x1000), (&pair.b, 0x1001)] {
                let drops = gateway.stats(spi).drops;
                assert_eq!(drops.total(), 0, "{case:?}: {drops:?}");
            }
            // Each segment was a packet with a number of its own.
            let sent = pair.a.stats(0x1000);
            assert!(sent.packets_out >= 4 * LENGTH as u64 / 1400, "{sent:?}");
            eventually("all is counted", || {
                let (sent, received) = (pair.a.stats(0x1000), pair.b.stats(0x1001));
                let all = (received.packets_in, received.bytes_in, received.replay_edge);
                all == (sent.packets_out, sent.bytes_out, sent.packets_out)
                    && sent.next_sequence == Some(1 + sent.packets_out)
            });
        }
    });
}

#[test]
fn several_streams_at_a_time_stay_apart() {
    privileged("streams::several_streams_at_a_time_stay_apart", || {
        let pair = Pair::new();
        ample(&pair, 0x1000, Case::IN_UDP);
        let connections: Vec<_> = (0..6)
            .map(|_| connect(&pair.a, &pair.b, "10.1.0.1", "10.2.0.1"))
            .collect();
        thread::scope(|scope| {
            for (client, server) in &connections {
                scope.spawn(|| stream(client, server));
            }
        });
        assert_eq!(pair.b.stats(0x1001).drops.total(), 0);
    });
}

#[test]
fn datagrams_that_leave_together_arrive_one_by_one() {
    privileged(
        "streams::datagrams_that_leave_together_arrive_one_by_one",
        || {
            for case in [Case::PLAIN, Case::IN_UDP] {
                let pair = Pair::new();
                ample(&pair, 0x1000, case);
                for (a, b) in [("10.1.0.1:0", "10.2.0.1:0"), ("[fd01::1]:0", "[fd02::1]:0")] {
                    let (from, to) = (pair.a.host.udp(a), pair.b.host.udp(b));
                    let size = nix::sys::socket::sockopt::UdpGsoSegment;
                    nix::sys::socket::setsockopt(&from.as_fd(), size, &1000).unwrap();
                    let bytes: Vec<u8> = bytes().into_iter().take(9500).collect();
                    for _ in 0..20 {
                        from.send_to(&bytes, to.local_addr().unwrap()).unwrap();
                        for part in bytes.chunks(1000) {
                            let mut buffer = [0; 2000];
                            let len =
                                crate::gateways::uninterrupted(|| to.recv(&mut buffer)).unwrap();
                            assert!(buffer[..len] == *part, "{case:?}");
                        }
                    }
                }
                // They arrive before who sent them has counted them.
                eventually("all is counted", || {
                    pair.b.stats(0x1001).packets_in == 400
                        && pair.a.stats(0x1000).packets_out == 400
                });
            }
        },
    );
}

/// The device is wider than the path: senders are told, and streams go on with smaller segments.
#[test]
fn streams_find_a_narrow_path() {
    privileged("streams::streams_find_a_narrow_path", || {
        for case in [Case::PLAIN, Case::IN_UDP] {
            let pair = Pair::routed(1340);
            ample(&pair, 0x1000, case);
            let (client, server) = connect(&pair.a, &pair.b, "10.1.0.1", "10.2.0.1");
            stream(&client, &server);
            stream(&server, &client);
            let stats = pair.a.stats(0x1000);
            let other = stats.drops.total() - stats.drops.get(DropReason::TooBig);
            assert_eq!(other, 0, "{:?}", stats.drops);
        }
    });
}

#[test]
fn a_reservation_that_ends_within_a_large_packet_is_used_up_and_no_more() {
    privileged(
        "streams::a_reservation_that_ends_within_a_large_packet_is_used_up_and_no_more",
        || {
            let pair = Pair::with(PlaneConfig::default());
            pair.a
                .plane
                .install(ChildSa {
                    reservation: 1..100,
                    ..Case::IN_UDP.end(1, 0x1000)
                })
                .unwrap();
            pair.b.plane.install(Case::IN_UDP.end(2, 0x1000)).unwrap();
            let (client, server) = connect(&pair.a, &pair.b, "10.1.0.1", "10.2.0.1");
            let sender = thread::spawn(move || (&client).write_all(&bytes()).is_ok());
            let receiver = thread::spawn(move || {
                let mut received = vec![0; LENGTH];
                (&server).read_exact(&mut received).unwrap();
                received
            });
            eventually("all are used", || {
                let stats = pair.a.stats(0x1000);
                stats.remaining == 0 && stats.drops.get(DropReason::Exhausted) > 0
            });
            // What has its number may still be on its way.
            eventually("all that has a number has arrived", || {
                pair.a.stats(0x1000).packets_out == 99 && pair.b.stats(0x1001).replay_edge == 99
            });
            // A jump, and it goes on.
            pair.a.plane.extend(0x1000, 5000..1_000_000).unwrap();
            assert!(receiver.join().unwrap() == bytes() && sender.join().unwrap());
            eventually("numbers go on behind the jump", || {
                let stats = pair.a.stats(0x1000);
                stats.next_sequence == Some(5000 + stats.packets_out - 99)
            });
        },
    );
}
