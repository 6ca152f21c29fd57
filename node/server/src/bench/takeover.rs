//! `evergate bench takeover`: many peers with traffic on every SA, and how long each is without after the member that serves them is killed.
//!
//! The peers are those of [`load`](super::load). Each sends echo requests (RFC 792) through its Child SA to an address behind the gateway. A process of this machine is
//! killed, and from then on all are asked again, in turn, until each has had an answer to a request that it sent after the kill. How fast requests can be sent bounds what
//! can be seen; so the same is measured before the kill, too.

use super::{handshake, load::Load};
use anyhow::{Context, ensure};
use evergate_esp::{InboundSa, Key, OutboundSa, ReplayWindow, Selectors, protocol, spi_of};
use evergate_ike::record::Child;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;
use std::{
    collections::{HashMap, VecDeque},
    io::Write,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

/// Requests of a turn at most: answers must not wait for long.
const BURST: usize = 64;
/// More than is ever asked.
const RESERVATION: u64 = 1 << 31;
/// A peer that had no answer is asked again no sooner than this.
const AGAIN: Duration = Duration::from_millis(100);
const WINDOW: usize = 64;
/// IPv4 header and ICMP header: there is no payload.
const LEN: usize = 28;
const TOTAL_LEN: [u8; 2] = [0, 28];

/// Arguments of `evergate bench takeover`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    peers: handshake::Options,
    /// An address behind the gateway that answers echo requests
    #[arg(long, value_name = "ADDR")]
    to: Ipv4Addr,
    /// Echo requests of all peers together in a second
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// The process to kill; without one, only what is without a takeover is measured
    #[arg(long, value_name = "PID")]
    kill: Option<i32>,
    /// Wait so long for the last peer
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

/// A Child SA of a peer.
struct Peer {
    link: usize,
    outbound: OutboundSa,
    inbound: InboundSa,
    address: Ipv4Addr,
    /// The round in which it had an answer.
    answered: u16,
    asked: Option<Instant>,
}

/// When peers had their answers, from the beginning of a round, in milliseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Times {
    answered: usize,
    missing: usize,
    median_ms: f64,
    p99_ms: f64,
    last_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    sas: usize,
    setup_seconds: f64,
    rate: u32,
    before: Times,
    after: Option<Times>,
}

impl Times {
    fn of(mut times: Vec<Duration>, peers: usize) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1000.0)
        };
        Self {
            answered: times.len(),
            missing: peers - times.len(),
            median_ms: at(50),
            p99_ms: at(99),
            last_ms: at(100),
        }
    }
}

/// Runs it and prints the report, one line of JSON.
///
/// # Errors
/// If peers cannot be set up, or the process cannot be killed.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let (plan, shared) = handshake::one_thread(&options.peers)?;
    let mut load = Load::new(&plan, &shared)?;
    let began = Instant::now();
    load.connect_all(began + options.peers.timeout())?;
    let setup = began.elapsed();
    let mut echo = Echo::new(&load, options)?;
    ensure!(!echo.peers.is_empty(), "not one handshake succeeded");
    let before = echo.round(&mut load)?;
    let after = match options.kill {
        None => None,
        Some(pid) => {
            kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill the process")?;
            Some(echo.round(&mut load)?)
        }
    };
    let report = Report {
        sas: echo.peers.len(),
        setup_seconds: setup.as_secs_f64(),
        rate: options.rate,
        before,
        after,
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

/// Requests and answers of all peers.
struct Echo {
    peers: Vec<Peer>,
    /// Which peer receives with an SPI.
    by_spi: HashMap<u32, usize>,
    to: Ipv4Addr,
    rate: f64,
    patience: Duration,
    round: u16,
}

impl Echo {
    fn new(load: &Load<'_>, options: &Options) -> anyhow::Result<Self> {
        let mut peers = Vec::new();
        let mut by_spi = HashMap::new();
        for (link, child) in load.children() {
            by_spi.insert(child.spi_in, peers.len());
            peers.push(Peer::new(link, child)?);
        }
        Ok(Self {
            peers,
            by_spi,
            to: options.to,
            rate: f64::from(options.rate),
            patience: Duration::from_secs(options.patience),
            round: 0,
        })
    }

    /// Asks all in turn until each has had an answer, or nobody waits any longer.
    fn round(&mut self, load: &mut Load<'_>) -> anyhow::Result<Times> {
        self.round += 1;
        let (began, mut sent, mut times) = (Instant::now(), 0.0, Vec::new());
        let mut waiting: VecDeque<usize> = (0..self.peers.len()).collect();
        while times.len() < self.peers.len() && began.elapsed() < self.patience {
            for _ in 0..BURST {
                let now = Instant::now();
                // What could not be sent in time is not made up for.
                sent = f64::max(sent, (now - began).as_secs_f64() * self.rate - BURST as f64);
                if sent >= (now - began).as_secs_f64() * self.rate {
                    break;
                }
                let Some(i) = waiting.pop_front() else { break };
                if self.peers[i].answered == self.round {
                    continue;
                }
                waiting.push_back(i);
                if self.peers[i].asked.is_some_and(|asked| now - asked < AGAIN) {
                    break;
                }
                self.peers[i].asked = Some(now);
                sent += 1.0;
                let packet = self.request(i)?;
                load.send_esp(self.peers[i].link, &packet);
            }
            load.serve(&mut |packet| {
                if self.is_answer(packet) {
                    times.push(began.elapsed());
                }
            })?;
        }
        Ok(Times::of(times, self.peers.len()))
    }

    fn request(&self, i: usize) -> anyhow::Result<Vec<u8>> {
        let peer = &self.peers[i];
        let mut buffer = vec![0; evergate_esp::HEADROOM + LEN + evergate_esp::TAILROOM];
        let inner = evergate_esp::HEADROOM..evergate_esp::HEADROOM + LEN;
        buffer[inner.clone()].copy_from_slice(&request(peer.address, self.to, self.round));
        let number = peer.outbound.next_seq()?;
        let sealed = peer
            .outbound
            .seal(number, protocol::IPV4, &mut buffer, inner)?;
        Ok(buffer[sealed].to_vec())
    }

    /// Whether this is the first answer that a peer has in this round.
    fn is_answer(&mut self, packet: &mut [u8]) -> bool {
        let peer = spi_of(packet).and_then(|spi| self.by_spi.get(&spi));
        let Some(peer) = peer.and_then(|i| self.peers.get_mut(*i)) else {
            return false;
        };
        let Ok(opened) = peer.inbound.open(packet) else {
            return false;
        };
        let is_new =
            answers(&packet[opened.payload]) == Some(self.round) && peer.answered != self.round;
        if is_new {
            peer.answered = self.round;
        }
        is_new
    }
}

impl Peer {
    fn new(link: usize, child: &Child) -> anyhow::Result<Self> {
        let key = |secret: &[u8]| Key::new(child.suite.cipher(), secret);
        let esn = child.suite.esn;
        let address = match child.local_ts.first().map(|ts| ts.start) {
            Some(IpAddr::V4(address)) => address,
            _ => anyhow::bail!("the peers need addresses of IPv4 (--local-net)"),
        };
        let outbound = OutboundSa::new(child.spi_out, key(child.key_out.expose())?, esn);
        outbound.extend(1..RESERVATION)?;
        let (selectors, window) = (Selectors::default(), ReplayWindow::new(WINDOW));
        let key = key(child.key_in.expose())?;
        Ok(Self {
            link,
            outbound,
            inbound: InboundSa::new(child.spi_in, key, esn, selectors, window),
            address,
            answered: 0,
            asked: None,
        })
    }
}

/// An echo request whose sequence number is the round.
fn request(from: Ipv4Addr, to: Ipv4Addr, round: u16) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&TOTAL_LEN);
    packet[8] = 64;
    packet[9] = 1;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20] = 8;
    packet[26..28].copy_from_slice(&round.to_be_bytes());
    let (header, message) = packet.split_at_mut(20);
    let sum = checksum(header);
    header[10..12].copy_from_slice(&sum);
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum);
    packet
}

/// The round of an echo reply.
fn answers(packet: &[u8]) -> Option<u16> {
    let packet: &[u8; LEN] = packet.first_chunk()?;
    let is_reply = packet[0] == 0x45 && packet[9] == 1 && packet[20] == 0;
    is_reply.then(|| u16::from_be_bytes([packet[26], packet[27]]))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks_exact(2)
        .map(|w| u16::from_be_bytes([w[0], w[1]]));
    let sum = words.fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    });
    (!sum).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_packet_and_its_answer_is_known() {
        let (from, to) = (Ipv4Addr::new(10, 128, 0, 1), Ipv4Addr::new(10, 10, 2, 1));
        let mut packet = request(from, to, 7);
        let inner = evergate_esp::packet::parse(&packet).unwrap();
        assert_eq!(
            (inner.total_len, inner.selectors.destination),
            (LEN, to.into())
        );
        assert_eq!(checksum(&packet[..20]), [0, 0]);
        assert_eq!(checksum(&packet[20..]), [0, 0]);
        assert_eq!(answers(&packet), None, "it is a request");
        packet[20] = 0;
        assert_eq!(answers(&packet), Some(7));
        assert_eq!(answers(&packet[..27]), None);
    }

    #[test]
    fn times_are_those_of_who_was_answered() {
        let ms = |n| Duration::from_millis(n);
        let times = Times::of((1..=100).rev().map(ms).collect(), 103);
        let expected = Times {
            answered: 100,
            missing: 3,
            median_ms: 50.0,
            p99_ms: 99.0,
            last_ms: 100.0,
        };
        assert_eq!(times, expected);
        assert_eq!(Times::of(vec![], 2).missing, 2);
    }
}
