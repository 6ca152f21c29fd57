//! Transport mode, between two members, and with strongSwan whose ESP is the kernel's (its user-space ESP has tunnels only).

use evergate_cluster_tests::capture::{Capture, now};
use evergate_cluster_tests::checker::Findings;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{BEHIND_NAT, Family, Family::V4, Family::V6, Lab};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::pings::Pings;
use evergate_cluster_tests::process::run;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::{Esp, StrongSwan};
use evergate_cluster_tests::{Result, millis, patience, secs, uninterrupted, until};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

/// The ends, with nothing established yet. The fields end in this order.
struct Ends<P> {
    peer: P,
    member: Member,
    capture: Capture,
    lab: Lab,
    outer: Family,
}

/// Where the peer is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Open,
    BehindNat,
}

/// With neighbours that everybody knows: for the kernel's policies between two IPv6 addresses, neighbour discovery between these is traffic, too.
fn know_each_other(lab: &Lab) -> Result<()> {
    let mac = |host: &str| -> Result<String> {
        let text = lab.exec(host, &["cat", "/sys/class/net/up0/address"])?;
        Ok(text.trim().to_owned())
    };
    let of = [("peer1", "gw", V6.outer(2)), ("gw", "peer1", V6.outer(1))];
    for (host, other, address) in of {
        let mac = mac(other)?;
        let line = format!("neigh replace {address} lladdr {mac} nud permanent dev up0");
        lab.ip(host, &line)?;
    }
    Ok(())
}

impl<P: Endpoint> Ends<P> {
    fn start(
        outer: Family,
        place: Place,
        change: impl Fn(&mut Connection),
        peer: impl Fn(&Lab, Connection) -> Result<P>,
    ) -> Result<Self> {
        let mut lab = Lab::new(1500)?;
        let mut connection = Connection::peer(1, outer);
        connection.host_to_host();
        change(&mut connection);
        let gateway = connection.mirrored();
        match place {
            Place::Open => {
                lab.add_peer(1)?;
                know_each_other(&lab)?;
            }
            Place::BehindNat => {
                lab.add_peer_behind_nat(1)?;
                connection.local = BEHIND_NAT.into();
            }
        }
        let capture = Capture::start(&lab)?;
        let member = Member::start(&lab, "gw", &[gateway], &[])?;
        let peer = peer(&lab, connection)?;
        Ok(Self {
            peer,
            member,
            capture,
            lab,
            outer,
        })
    }

    fn agree(&self) -> Result<Spis> {
        let mut agreed = Spis::default();
        until(secs(30), "both ends agree on their SAs", || {
            let (member, peer) = (self.member.sas()?, self.peer.sas()?);
            agreed = Spis::of(&member);
            if agreed == Spis::of(&peer).mirrored() && agreed.child.len() == 1 {
                return Ok(true);
            }
            anyhow::bail!("member: {member:?}\npeer: {peer:?}")
        })?;
        Ok(agreed)
    }

    /// How the member carries packets, as it says.
    fn mode(&self) -> Result<&'static str> {
        let sas = self.member.ctl(&["sas", "--json"])?;
        Ok(match sas.contains("\"mode\": \"transport\"") {
            true => "transport",
            false => "tunnel",
        })
    }

    /// A ping, datagrams and a TCP stream from the peer to the member's host, and all of it back.
    fn talk(&self) -> Result<()> {
        let to = self.outer.outer(2);
        self.lab.exec(
            "peer1",
            &["ping", "-n", "-c", "3", "-i", "0.2", "-W", "9", &to],
        )?;
        datagrams(&self.lab, &to)?;
        stream(&self.lab, &to)
    }

    /// Numbered datagrams both ways, as many as the machine can do beside all else.
    fn flow(&self) -> Result<Flow> {
        let (a, b) = (self.outer.outer(1), self.outer.outer(2));
        Flow::start(&self.lab, ("peer1", &a), ("gw", &b), millis(5), 200)
    }

    fn finish(self) -> Result<Findings> {
        let Self {
            peer,
            member,
            capture,
            mut lab,
            ..
        } = self;
        drop((peer, member));
        let findings = capture.check(&[])?;
        findings.verdict()?;
        lab.passed();
        Ok(findings)
    }
}

fn any_port(address: &str) -> Result<SocketAddr> {
    Ok((address.parse::<IpAddr>()?, 0).into())
}

/// Datagrams of many sizes, each of which comes back. The kernel makes fragments of the longest ones, before ESP.
fn datagrams(lab: &Lab, to: &str) -> Result<()> {
    let at = any_port(to)?;
    let server = lab.on("gw", move || Ok(UdpSocket::bind(at)?))?;
    let address = server.local_addr()?;
    let client = lab.on("peer1", move || {
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        Ok(socket)
    })?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(secs(20) * patience()))?;
    }
    for size in [0, 1, 2, 3, 100, 1199, 1200, 1500, 5000, 20_000] {
        let (sent, mut buffer) = (vec![0xa5; size], [0; 20_000]);
        client.send(&sent)?;
        let (len, from) = uninterrupted(|| server.recv_from(&mut buffer))?;
        server.send_to(&buffer[..len], from)?;
        let len = uninterrupted(|| client.recv(&mut buffer))?;
        assert_eq!(&buffer[..len], sent);
    }
    Ok(())
}

/// A TCP stream whose bytes all come back.
fn stream(lab: &Lab, to: &str) -> Result<()> {
    let at = any_port(to)?;
    let listener = lab.on("gw", move || Ok(TcpListener::bind(at)?))?;
    let address = listener.local_addr()?;
    let sent: Vec<u8> = (0..1_000_000 / patience())
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let server = std::thread::spawn(move || -> Result<()> {
        let (stream, _) = listener.accept()?;
        std::io::copy(&mut &stream, &mut &stream)?;
        Ok(stream.shutdown(Shutdown::Write)?)
    });
    let timeout = secs(20) * patience();
    let client = lab.on("peer1", move || {
        Ok(TcpStream::connect_timeout(&address, timeout)?)
    })?;
    client.set_read_timeout(Some(timeout))?;
    let writing = (client.try_clone()?, sent.clone());
    let writer = std::thread::spawn(move || -> Result<()> {
        let (mut stream, bytes) = writing;
        stream.write_all(&bytes)?;
        Ok(stream.shutdown(Shutdown::Write)?)
    });
    let mut back = Vec::new();
    (&client).read_to_end(&mut back)?;
    assert!(back == sent, "{} bytes came back", back.len());
    let ended = |_| anyhow::anyhow!("a thread panicked");
    writer.join().map_err(ended)??;
    server.join().map_err(ended)?
}

/// Set up by either end, used, rekeyed by both under traffic, killed and started again.
fn all_of_it<P: Endpoint>(mut ends: Ends<P>, by_member: bool, encap: bool) -> Result<()> {
    match by_member {
        true => ends.member.initiate(C1, C1)?,
        false => ends.peer.initiate(C1, C1)?,
    }
    let (mut spis, established) = (ends.agree()?, now());
    assert_eq!(ends.mode()?, "transport");
    ends.talk()?;
    let flow = ends.flow()?;
    flow.runs(50, secs(10))?;
    for member_first in [true, false] {
        match member_first {
            true => ends.member.rekey_child(C1)?,
            false => ends.peer.rekey_child(C1)?,
        }
        until(secs(60), "other SPIs", || {
            Ok(Spis::of(&ends.member.sas()?) != spis)
        })?;
        spis = ends.agree()?;
        flow.runs(20, secs(10))?;
    }
    flow.stop().is_lossless()?;
    assert_eq!(ends.mode()?, "transport");
    let pings = Pings::start(&ends.lab, "peer1", &ends.outer.outer(2), "0.05")?;
    pings.run(10, secs(20))?;
    ends.member.kill9()?;
    ends.member.start_again(&[])?;
    pings.run(30, secs(20))?;
    drop(pings);
    assert_eq!(ends.agree()?, spis, "other SAs after a restart");
    ends.talk()?;
    ends.peer.rekey_child(C1)?;
    until(secs(60), "other SPIs", || {
        Ok(Spis::of(&ends.member.sas()?) != spis)
    })?;
    ends.agree()?;
    ends.talk()?;
    let found = ends.finish()?;
    assert_eq!((found.esp_in_udp > 0, found.esp_plain > 0), (encap, !encap));
    assert_eq!(found.authentications_after(established), 0);
    Ok(())
}

fn member(lab: &Lab, connection: Connection) -> Result<Member> {
    Member::start(lab, "peer1", &[connection], &[])
}

fn kernel(lab: &Lab, connection: Connection) -> Result<StrongSwan> {
    StrongSwan::start(lab, "peer1", Esp::Kernel, &[connection])
}

macro_rules! rows {
    ($peer:ident: $($(#[$attribute:meta])* $name:ident: $outer:expr, $encap:literal, $esp:literal, $by_member:literal;)*) => {
        $(#[test]
        $(#[$attribute])*
        fn $name() -> Result<()> {
            let change = |c: &mut Connection| (c.encap, c.esp) = ($encap, vec![$esp.into()]);
            all_of_it(Ends::start($outer, Place::Open, change, $peer)?, $by_member, $encap)
        })*
    };
}

rows! { member:
    plain_esp_by_the_member: V4, false, "aes256gcm16", true;
    plain_esp_of_ipv6_by_the_peer: V6, false, "aes128-sha256", false;
    in_udp_by_the_peer: V4, true, "aes128gcm16", false;
    in_udp_of_ipv6_by_the_member: V6, true, "chacha20poly1305", true;
}

rows! { kernel:
    #[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
    plain_esp_to_the_kernel_by_the_member: V4, false, "aes256gcm16", true;
    #[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
    plain_esp_of_ipv6_by_the_kernel: V6, false, "aes128-sha256", false;
    #[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
    in_udp_by_the_kernel: V4, true, "aes128gcm16", false;
}

/// The peer is behind a NAT: checksums of TCP and UDP are made with other addresses than those that they are checked with.
fn through_a_nat<P: Endpoint>(ends: Ends<P>) -> Result<()> {
    ends.peer.initiate(C1, C1)?;
    let mut spis = ends.agree()?;
    assert_eq!(ends.mode()?, "transport");
    ends.talk()?;
    for by_member in [true, false] {
        match by_member {
            true => ends.member.rekey_child(C1)?,
            false => ends.peer.rekey_child(C1)?,
        }
        until(secs(60), "other SPIs", || {
            Ok(Spis::of(&ends.member.sas()?) != spis)
        })?;
        spis = ends.agree()?;
        ends.talk()?;
        assert_eq!(ends.mode()?, "transport");
    }
    assert_eq!(ends.finish()?.esp_plain, 0);
    Ok(())
}

#[test]
fn two_members_and_a_nat_between_them() -> Result<()> {
    through_a_nat(Ends::start(V4, Place::BehindNat, |_| {}, member)?)
}

#[test]
#[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
fn the_kernel_and_a_nat_in_front_of_it() -> Result<()> {
    through_a_nat(Ends::start(V4, Place::BehindNat, |_| {}, kernel)?)
}

/// strongSwan in user space has tunnels only: it declines, and the tunnel that there is instead is as good as any.
#[test]
fn a_peer_that_declines_gets_a_tunnel() -> Result<()> {
    let mut setup = Setup::new(V4).both(Connection::host_to_host);
    setup.peer.mode = "tunnel";
    // As with any tunnel to the other end's own address, what is outside has to be told from what is inside.
    let mark = "plugins { socket-default { fwmark = 0x42 } kernel-netlink { fwmark = !0x42 } }";
    setup.charon = vec![mark.into()];
    let duo = Duo::start(&setup)?;
    duo.member.initiate(C1, C1)?;
    duo.agree(1)?;
    let sas = duo.member.ctl(&["sas", "--json"])?;
    assert!(sas.contains("\"mode\": \"tunnel\""), "{sas}");
    let ends = (V4.outer(1), V4.outer(2));
    let flow = Flow::start(
        &duo.lab,
        ("peer1", &ends.0),
        ("gw", &ends.1),
        millis(5),
        200,
    )?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    duo.finish()?;
    Ok(())
}

/// Packets that transport mode cannot carry are counted, and not let out as they are.
#[test]
fn what_cannot_be_carried_stays_in() -> Result<()> {
    let ends = Ends::start(V4, Place::Open, |_| {}, member)?;
    ends.peer.initiate(C1, C1)?;
    ends.agree()?;
    let namespace = ends.lab.namespace("gw");
    let to = V4.outer(1);
    // The record of a route is an IPv4 option, for routers.
    let ping = [
        "ip", "netns", "exec", &namespace, "ping", "-n", "-R", "-c", "2", "-W", "1", &to,
    ];
    assert!(run(&ping).is_err(), "an option was covered");
    until(secs(10), "both are counted", || {
        let status = ends.member.status()?;
        let counted = status["data_plane"]["drops"]["not_transportable"].as_u64();
        anyhow::ensure!(counted >= Some(2), "{status}");
        Ok(true)
    })?;
    ends.talk()?;
    ends.finish()?;
    Ok(())
}
