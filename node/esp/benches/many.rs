//! What a packet costs when packets are spread over many SAs, and what it costs to install one among many.
//!
//! `cargo bench -p evergate-esp --bench many`. Loads alternate, medians are printed; only ratios mean anything on a machine that others use, too.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use evergate_esp::{
    AHEAD, Action, Encryption, Entry, HEADROOM, InboundSa, Key, OutboundSa, ReplayWindow, Sad,
    Selector, Selectors, Spd, TAILROOM, packet, protocol, spi_of,
};
use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

const SIZES: [u32; 4] = [1, 1000, 10_000, 100_000];
/// Packets of a run: so many that what sending has touched does not wait in the nearest cache when they are opened.
const PACKETS: usize = 8192;
const RUNS: usize = 101;
/// The length of an inner packet.
const LEN: usize = 64;

/// Both ends of a Child SA.
#[repr(C)]
struct Pair {
    inbound: InboundSa,
    outbound: OutboundSa,
}

struct Plane {
    sad: Sad<Pair>,
    spd: Spd<Pair>,
}

fn peer(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + n).into()
}

fn spi(n: u32) -> u32 {
    // As random as those that a gateway chooses.
    (n + 1).wrapping_mul(0x85eb_ca6b) | 0x100
}

impl Plane {
    fn new() -> Self {
        let (sad, spd) = (Sad::default(), Spd::default());
        Self { sad, spd }
    }

    fn install(&mut self, n: u32) {
        let key = || {
            Key::new(
                Encryption::AesGcm16 { key_bits: 256 }.into(),
                &[n.to_le_bytes()[0]; 36],
            )
        };
        let selectors = Arc::new(Selectors {
            local: vec![Selector::addresses(
                [0, 0, 0, 0].into(),
                [255, 255, 255, 255].into(),
            )],
            remote: vec![Selector::addresses(peer(n), peer(n))],
        });
        let window = ReplayWindow::new(1024);
        let pair = Arc::new(Pair {
            outbound: OutboundSa::new(spi(n), key().unwrap(), true),
            inbound: InboundSa::new(spi(n), key().unwrap(), true, Arc::clone(&selectors), window),
        });
        pair.outbound.extend(1..u64::MAX).unwrap();
        self.sad.insert(spi(n), Arc::clone(&pair));
        let mut entry = Entry::new(u64::MAX - u64::from(n), Action::Protect, 0, selectors);
        entry.add(pair, true);
        self.spd.insert(entry);
    }

    /// Sends a packet to each of these peers; `ahead`: in batches, after all their SAs were looked up.
    fn send(&self, peers: &[u32], packets: &mut [Packet], ahead: bool) {
        for (peers, packets) in peers.chunks(AHEAD).zip(packets.chunks_mut(AHEAD)) {
            if ahead {
                let of = |n: &u32| packet::parse(&inner_packet(*n)).unwrap().selectors;
                let mut selectors = [of(&0); AHEAD];
                for (selectors, n) in selectors.iter_mut().zip(peers) {
                    *selectors = of(n);
                }
                let policies = self.spd.policies();
                policies.look_ahead(
                    &selectors[..peers.len()],
                    |pair| pair.outbound.fetch(),
                    |pair| pair.outbound.warm(),
                );
            }
            self.send_batch(peers, packets);
        }
    }

    fn send_batch(&self, peers: &[u32], packets: &mut [Packet]) {
        for (n, packet) in peers.iter().zip(packets) {
            let inner = HEADROOM..HEADROOM + LEN;
            packet.buffer[inner.clone()].copy_from_slice(&inner_packet(*n));
            let selectors = packet::parse(&packet.buffer[inner.clone()])
                .unwrap()
                .selectors;
            let sa = self.spd.lookup(&selectors).unwrap().sa.unwrap();
            let number = sa.outbound.next_seq().unwrap();
            let buffer = black_box(&mut packet.buffer[..]);
            let sealed = sa.outbound.seal(number, protocol::IPV4, buffer, inner);
            packet.sealed = sealed.unwrap();
        }
    }

    /// Opens packets as they come in batches; `ahead`: after all their SAs were looked up.
    fn receive(&self, packets: &mut [Packet], ahead: bool) {
        for batch in packets.chunks_mut(AHEAD) {
            if ahead {
                let mut spis = [0; AHEAD];
                for (spi, packet) in spis.iter_mut().zip(&*batch) {
                    *spi = spi_of(&packet.buffer[packet.sealed.clone()]).unwrap();
                }
                self.sad.look_ahead(
                    &spis,
                    |pair| pair.inbound.fetch(),
                    |pair| pair.inbound.warm(),
                );
            }
            self.receive_batch(batch);
        }
    }

    fn receive_batch(&self, packets: &mut [Packet]) {
        for packet in packets {
            let sealed = black_box(&mut packet.buffer[packet.sealed.clone()]);
            let sa = self.sad.get(spi_of(sealed).unwrap()).unwrap();
            let opened = sa.inbound.open(sealed).unwrap();
            let inner = packet::parse(&sealed[opened.payload]).unwrap();
            // It is our own: it has the addresses the other way round.
            assert!(!sa.inbound.admits(&inner.selectors));
        }
    }
}

struct Packet {
    buffer: Vec<u8>,
    sealed: std::ops::Range<usize>,
}

fn inner_packet(n: u32) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[0] = 0x45;
    packet[3] = u8::try_from(LEN).unwrap();
    packet[8] = 64;
    packet[9] = protocol::UDP;
    packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
    packet[16..20].copy_from_slice(&(0x0a00_0000 + n).to_be_bytes());
    packet
}

fn main() {
    let mut planes = Vec::new();
    println!("{:>8} {:>14}", "SAs", "install, ns");
    for size in SIZES {
        let mut plane = Plane::new();
        let mut last = Vec::new();
        for n in 0..size {
            let began = Instant::now();
            plane.install(n);
            last.push(began.elapsed());
        }
        // Of the last tenth, since making room is paid for by those before.
        let all: Duration = last.iter().sum();
        let mut last = last.split_off(last.len() - last.len().div_ceil(10));
        last.sort_unstable();
        let (median, mean) = (last[last.len() / 2], all / size);
        let slowest = last[last.len() - 1];
        println!(
            "{size:>8} {:>14} mean {} slowest {}",
            median.as_nanos(),
            mean.as_nanos(),
            slowest.as_nanos()
        );
        planes.push((plane, size));
    }
    let empty = || Packet {
        buffer: vec![0; HEADROOM + LEN + TAILROOM],
        sealed: 0..0,
    };
    let mut packets: Vec<Packet> = (0..PACKETS).map(|_| empty()).collect();
    let mut times = vec![<[Vec<Duration>; 4]>::default(); planes.len()];
    let mut random = 1_u64;
    for _ in 0..RUNS {
        for ((plane, size), [sent, received, sent_ahead, received_ahead]) in
            planes.iter().zip(&mut times)
        {
            let mut next = || {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                u32::try_from((random >> 33) % u64::from(*size)).unwrap()
            };
            let peers: Vec<u32> = (0..PACKETS).map(|_| next()).collect();
            sent.push(timed(|| plane.send(&peers, &mut packets, false)));
            received.push(timed(|| plane.receive(&mut packets, false)));
            sent_ahead.push(timed(|| plane.send(&peers, &mut packets, true)));
            received_ahead.push(timed(|| plane.receive(&mut packets, true)));
        }
    }
    println!(
        "{:>8} {:>16} {:>16} {:>16} {:>16}",
        "SAs", "send", "open", "send, ahead", "open, ahead"
    );
    let mut first = [0.0; 4];
    for ((_, size), runs) in planes.iter().zip(times) {
        print!("{size:>8}");
        for (runs, first) in runs.into_iter().zip(&mut first) {
            let ns = median(runs);
            if *size == 1 {
                *first = ns;
            }
            print!(" {ns:>8.0} ns x{:<5.2}", ns / *first);
        }
        println!();
    }
}

/// Of the nanoseconds for a packet.
fn median(mut runs: Vec<Duration>) -> f64 {
    runs.sort_unstable();
    runs[RUNS / 2].as_secs_f64() * 1e9 / PACKETS as f64
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}
