//! IKE and ESP in TCP (RFC 9329), between two members: strongSwan has no TCP.

use anyhow::ensure;
use evergate_cluster_tests::capture::Capture;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::decrypt::{decode, dissect};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{Family, Family::V4, Family::V6, Lab, PROTECTED, inside};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::streams::as_datagrams;
use evergate_cluster_tests::{Result, millis, secs, uninterrupted, until};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Two members on one wire. The fields end in this order.
struct Two {
    initiator: Member,
    gateway: Member,
    capture: Capture,
    lab: Lab,
}

/// Drops everything outside but TCP.
const ONLY_TCP: &str = "table inet onlytcp { \
    chain out { type filter hook output priority 0; oifname up0 meta l4proto { udp, esp } drop; }; \
    chain in { type filter hook input priority 0; iifname up0 meta l4proto { udp, esp } drop; }; }";

/// Segments no longer than the wire: the capture has room for those.
pub(crate) fn no_offload(lab: &Lab, host: &str) -> Result<()> {
    lab.ip(host, "link set up0 gso_max_segs 1")
}

pub(crate) fn only_tcp(lab: &Lab, host: &str) -> Result<()> {
    lab.exec(host, &["nft", ONLY_TCP]).map(drop)
}

/// What lets a connection fall back soon.
pub(crate) fn falls_back(c: &mut Connection) {
    c.enable_tcp = "fallback";
    c.retransmit = "timeout = \"300ms\"\nbase = 1.5\ntries = 8".into();
}

impl Two {
    fn start(outer: Family, change: impl Fn(&mut Connection)) -> Result<Self> {
        let mut lab = Lab::new(1500)?;
        lab.add_peer(1)?;
        no_offload(&lab, "peer1")?;
        no_offload(&lab, "gw")?;
        let mut peer = Connection::peer(1, outer);
        change(&mut peer);
        let capture = Capture::start(&lab)?;
        let gateway = Member::start(&lab, "gw", &[peer.mirrored()], &[])?;
        let initiator = Member::start(&lab, "peer1", &[peer], &[])?;
        Ok(Self {
            initiator,
            gateway,
            capture,
            lab,
        })
    }

    fn agree(&self) -> Result<Spis> {
        let mut agreed = Spis::default();
        until(secs(30), "both ends agree on their SAs", || {
            agreed = Spis::of(&self.gateway.sas()?);
            let other = Spis::of(&self.initiator.sas()?);
            Ok(agreed == other.mirrored() && agreed.child.len() == 1 && agreed.ike.len() == 1)
        })?;
        Ok(agreed)
    }

    fn flow(&self, family: Family) -> Result<Flow> {
        let index = usize::from(family == V6);
        let addresses = inside(1);
        let ends = (("peer1", &*addresses[index]), ("host", PROTECTED[index]));
        Flow::start(&self.lab, ends.0, ends.1, millis(4), 200)
    }

    /// Whether the only IKE SA is carried by TCP, at both ends.
    fn by_tcp(&self) -> Result<bool> {
        let of = |member: &Member| -> Result<bool> {
            Ok(member.ctl(&["sas", "--json"])?.contains("\"tcp\": true"))
        };
        Ok(of(&self.gateway)? && of(&self.initiator)?)
    }

    fn drops(&self, reason: &str) -> Result<u64> {
        let status = self.gateway.status()?;
        Ok(status["data_plane"]["drops"][reason].as_u64().unwrap_or(0))
    }

    fn connections(&self) -> Result<u64> {
        let status = self.gateway.status()?;
        Ok(status["data_plane"]["tcp_connections"]
            .as_u64()
            .unwrap_or(0))
    }

    /// Wireshark decrypts all of it, and finds nothing wrong.
    fn wireshark_agrees(&self) -> Result<()> {
        let datagrams = self.lab.dir().join("datagrams.pcap");
        let keys = self.gateway.dir().join("keys");
        // The capture may be a while behind.
        until(secs(30), "the capture has all of it", || {
            let count = as_datagrams(&self.capture.so_far()?, &datagrams)?;
            let decoded = decode(&datagrams, &keys)?;
            let enough = decoded.ike >= 4 && decoded.esp >= 100;
            ensure!(
                enough && decoded.ike_failed + decoded.esp_failed == 0,
                "of {count}: {decoded:?}"
            );
            Ok(true)
        })?;
        let wrong = dissect(&datagrams, &keys)?;
        ensure!(wrong.is_empty(), "{wrong:?}");
        Ok(())
    }

    fn finish(self, streams: bool) -> Result<()> {
        let Self {
            initiator,
            gateway,
            capture,
            mut lab,
        } = self;
        drop((initiator, gateway));
        let mut findings = capture.check(&[])?;
        ensure!(findings.in_tcp > 0, "nothing in TCP: {findings:?}");
        if !streams {
            findings.malformed = 0;
        }
        findings.verdict()?;
        lab.passed();
        Ok(())
    }
}

#[test]
fn where_udp_is_dropped_everything_goes_by_tcp() -> Result<()> {
    let mut two = Two::start(V4, falls_back)?;
    only_tcp(&two.lab, "peer1")?;
    two.initiator.initiate(C1, C1)?;
    let first = two.agree()?;
    ensure!(two.by_tcp()?, "not by TCP");
    let flows = [two.flow(V4)?, two.flow(V6)?];
    for flow in &flows {
        flow.runs(100, secs(10))?;
    }
    // Both ends rekey, the Child SA and the IKE SA, under traffic.
    for member in [&two.initiator, &two.gateway] {
        member.rekey_child(C1)?;
        member.rekey_ike(C1)?;
        let before = first.clone();
        until(secs(30), "a rekey", || {
            let now = Spis::of(&member.sas()?);
            Ok(now.ike.len() == 1 && now.ike.is_disjoint(&before.ike))
        })?;
        two.agree()?;
    }
    ensure!(two.by_tcp()?, "a rekey left TCP");
    for flow in flows {
        flow.runs(50, secs(20))?;
        flow.stop().is_lossless()?;
    }
    // The gateway is killed and started again: the connection dies with it, and nothing else.
    let spis = two.agree()?;
    let flow = two.flow(V4)?;
    flow.runs(50, secs(20))?;
    two.gateway.kill9()?;
    two.gateway.start_again(&[])?;
    flow.runs(100, secs(20))?;
    assert_eq!(two.agree()?, spis, "other SAs after a restart");
    // And so is the initiator, which makes another connection unasked.
    two.initiator.kill9()?;
    two.initiator.start_again(&[])?;
    flow.runs(100, secs(20))?;
    assert_eq!(
        two.agree()?,
        spis,
        "other SAs after a restart of the initiator"
    );
    flow.stop().has_no_duplicate()?;
    until(secs(15), "one connection is left", || {
        Ok(two.connections()? == 1)
    })?;
    two.initiator.terminate(C1)?;
    until(secs(15), "the connection is closed with its SA", || {
        Ok(two.connections()? == 0)
    })?;
    two.finish(true)
}

#[test]
fn with_udp_there_is_no_tcp_unless_it_is_wanted_only() -> Result<()> {
    let two = Two::start(V4, falls_back)?;
    two.initiator.initiate(C1, C1)?;
    two.agree()?;
    ensure!(
        !two.by_tcp()? && two.connections()? == 0,
        "TCP without need"
    );
    drop(two);
    let two = Two::start(V4, |c| c.enable_tcp = "yes")?;
    two.initiator.initiate(C1, C1)?;
    two.agree()?;
    ensure!(two.by_tcp()?, "not by TCP");
    ensure!(
        two.connections()? == 1,
        "the initiator has made more than one"
    );
    let flow = two.flow(V4)?;
    flow.runs(50, secs(20))?;
    flow.stop().is_lossless()?;
    two.initiator.rekey_child(C1)?;
    two.wireshark_agrees()?;
    two.finish(true)
}

/// What the gateway does with this stream: whether it ended within the time.
fn ends(mut stream: TcpStream, within: Duration) -> Result<bool> {
    stream.set_read_timeout(Some(within))?;
    let mut buffer = [0; 64];
    loop {
        match uninterrupted(|| stream.read(&mut buffer)) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(e) => return Err(e.into()),
        }
    }
}

#[test]
fn malformed_streams_end_and_hurt_nobody() -> Result<()> {
    let two = Two::start(V6, |c| c.enable_tcp = "yes")?;
    two.initiator.initiate(C1, C1)?;
    two.agree()?;
    ensure!(
        two.connections()? == 1,
        "the initiator has made more than one"
    );
    let flow = two.flow(V4)?;
    let open = || {
        two.lab
            .on("peer1", || Ok(TcpStream::connect("192.0.2.2:4500")?))
    };
    let with = |bytes: &[u8]| -> Result<TcpStream> {
        let mut stream = open()?;
        stream.write_all(bytes)?;
        Ok(stream)
    };
    // Who does not even say that it is IKE gets five seconds, and who says nothing that makes sense gets thirty.
    let soon = secs(4);
    ensure!(
        ends(with(b"GET / HTTP/1.1\r\n\r\n")?, soon)?,
        "another protocol"
    );
    ensure!(ends(with(b"IKETCP\0\0")?, soon)?, "length 0");
    ensure!(ends(with(b"IKETCP\0\x03\xff\0\x01")?, soon)?, "length 1");
    // ESP of SAs that there are not, on and on.
    let stranger = [
        &b"IKETCP"[..],
        &b"\0\x1e\0\0\x12\x34aaaaaaaaaaaaaaaaaaaaaaaa".repeat(40),
    ]
    .concat();
    ensure!(ends(with(&stranger)?, soon)?, "nothing but strange ESP");
    // A keepalive, an empty message, IKE that cannot be parsed, half a message: no reason to end at once.
    let odd = b"IKETCP\0\x03\xff\0\x02\0\x26\0\0\0\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\xff\xffhalf";
    ensure!(!ends(with(odd)?, millis(500))?, "ended for nothing");
    ensure!(ends(open()?, secs(20))?, "said nothing");
    until(secs(10), "they are counted", || {
        Ok(two.drops("tcp_corrupt")? >= 5)
    })?;
    // More of one address than are allowed are refused; those that are there stay.
    let mut many = Vec::new();
    for _ in 0..70 {
        // Who is refused notices now or later.
        let mut stream = open()?;
        let _ = stream.write_all(b"IKETCP");
        many.push(stream);
    }
    until(secs(20), "some are refused", || {
        Ok(two.drops("tcp_refused")? > 0)
    })?;
    let there = two.connections()?;
    ensure!(
        there <= 65,
        "{there} connections: more than 64, and that of the tunnel"
    );
    drop(many);
    flow.runs(50, secs(20))?;
    flow.stop().is_lossless()?;
    two.finish(false)
}
