//! Packets that are too large for the path.

use crate::{
    gateways::{Case, Pair, uninterrupted},
    hosts::{PATIENCE, privileged},
};
use evergate_dataplane::DropReason;
use std::{
    io,
    net::UdpSocket,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

/// 1300, less IP, UDP, ESP header, IV and ICV, rounded down for padding and trailer.
const INNER_V4: usize = 1238;

/// Sets DF on everything that an IPv4 socket sends, or on nothing.
#[allow(unsafe_code)]
pub(crate) fn discover(socket: &UdpSocket, on: bool) {
    let value = if on {
        libc::IP_PMTUDISC_DO
    } else {
        libc::IP_PMTUDISC_DONT
    };
    let len = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
    // SAFETY: the pointer is to a live c_int, and the length is its size.
    let result = unsafe {
        let value = std::ptr::from_ref(&value).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            value,
            len,
        )
    };
    assert_eq!(result, 0);
}

/// Sends until the kernel refuses the size, and yields how often it did not. Each time it waits longer for what is said of the packet: a slow machine is
/// no reason for many.
pub(crate) fn send_until_refused(from: &UdpSocket, to: &UdpSocket, len: usize) -> usize {
    let (end, mut pause) = (Instant::now() + PATIENCE, Duration::from_millis(20));
    for sent in 0.. {
        assert!(Instant::now() < end, "the sender is never told");
        match from.send_to(&vec![5; len], to.local_addr().unwrap()) {
            Ok(_) => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => return sent,
            Err(e) => panic!("{e}"),
        }
    }
    unreachable!()
}

/// Sends a datagram and waits for it; what was sent before to find the path MTU may come late and is passed over.
pub(crate) fn arrives(from: &UdpSocket, to: &UdpSocket, len: usize) -> io::Result<()> {
    uninterrupted(|| from.send_to(&vec![6; len], to.local_addr()?))?;
    let mut buffer = vec![0; 65_536];
    loop {
        let received = uninterrupted(|| to.recv(&mut buffer))?;
        if buffer[0] == 6 {
            assert_eq!(received, len);
            assert!(buffer[..len].iter().all(|b| *b == 6));
            return Ok(());
        }
    }
}

#[test]
fn the_sender_learns_the_path_mtu_from_us() {
    privileged("sizes::the_sender_learns_the_path_mtu_from_us", || {
        let pair = Pair::routed(1300);
        pair.connect(0x1000, Case::IN_UDP);
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        discover(&from, true);
        // Lost on the way, then refused by the outer socket, then answered.
        let sent = send_until_refused(&from, &to, 1340);
        assert!((2..10).contains(&sent), "{sent}");
        let stats = pair.a.stats(0x1000);
        assert_eq!(stats.path_mtu, Some(1300));
        assert!(
            stats.drops.get(DropReason::TooBig) >= 2,
            "{:?}",
            stats.drops
        );
        from.connect(to.local_addr().unwrap()).unwrap();
        arrives(&from, &to, INNER_V4 - 28).unwrap();
        let refused = arrives(&from, &to, INNER_V4 - 27).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
    });
}

#[test]
fn what_may_be_fragmented_arrives_whole() {
    privileged("sizes::what_may_be_fragmented_arrives_whole", || {
        for case in [Case::IN_UDP, Case::PLAIN] {
            let pair = Pair::routed(1300);
            pair.connect(0x1000, case);
            let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            discover(&from, true);
            send_until_refused(&from, &to, 1340);
            discover(&from, false);
            for len in [1000, 1300, 1372, 5000, 20_000] {
                arrives(&from, &to, len).unwrap();
            }
        }
    });
}

#[test]
fn ipv6_inside_has_its_1280_bytes_on_any_path() {
    privileged("sizes::ipv6_inside_has_its_1280_bytes_on_any_path", || {
        let outers = [
            Case::IN_UDP,
            Case::PLAIN,
            Case {
                outer_v6: true,
                ..Case::IN_UDP
            },
            Case {
                outer_v6: true,
                ..Case::PLAIN
            },
        ];
        for case in outers {
            let pair = Pair::routed(1300);
            pair.connect(0x1000, case);
            let (from, to) = (
                pair.a.host.udp("[fd01::1]:0"),
                pair.b.host.udp("[fd02::1]:0"),
            );
            // The kernel fragments for us once it is told; until then it is lost.
            let end = Instant::now() + PATIENCE;
            while pair.a.stats(0x1000).path_mtu != Some(1300) {
                assert!(
                    Instant::now() < end,
                    "{case:?}: the path MTU is never learnt"
                );
                from.send_to(&[5; 1340], to.local_addr().unwrap()).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            // One more is answered by a "packet too big" of 1280, which the next heeds.
            from.send_to(&[5; 1340], to.local_addr().unwrap()).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            for len in [1000, 1280 - 48, 1340, 5000] {
                arrives(&from, &to, len).unwrap_or_else(|e| panic!("{case:?} {len}: {e}"));
            }
        }
    });
}
