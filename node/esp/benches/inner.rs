//! What sealing and opening a packet costs beside what the cryptographic library alone needs for the same bytes.
//!
//! `cargo bench -p evergate-esp`. Runs alternate, medians are printed; only ratios mean anything on a machine that others use, too.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use aws_lc_rs::aead::{
    AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use evergate_esp::{
    Encryption, HEADROOM, InboundSa, Key, OutboundSa, ReplayWindow, Selectors, TAILROOM, protocol,
};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

const SPI: u32 = 0x1234_5678;
/// Packets of a run: they fit the cache, as batches do.
const PACKETS: usize = 64;
const RUNS: usize = 2001;

/// One packet in its buffer.
struct Packet {
    buffer: Vec<u8>,
    sealed: std::ops::Range<usize>,
}

fn main() {
    println!(
        "{:<18} {:>6} {:<5} {:>9} {:>9} {:>6}",
        "cipher", "bytes", "", "bare ns", "ESP ns", "ratio"
    );
    for (name, encryption, algorithm) in [
        (
            "AES-256-GCM",
            Encryption::AesGcm16 { key_bits: 256 },
            &AES_256_GCM,
        ),
        (
            "ChaCha20-Poly1305",
            Encryption::ChaCha20Poly1305,
            &CHACHA20_POLY1305,
        ),
    ] {
        for len in [64, 256, 1400] {
            let (seal, open) = measure(encryption, algorithm, len);
            for (what, (bare, esp)) in [("seal", seal), ("open", open)] {
                println!(
                    "{name:<18} {len:>6} {what:<5} {bare:>9.0} {esp:>9.0} {:>6.2}",
                    esp / bare
                );
            }
        }
    }
}

/// Nanoseconds a packet, bare and as ESP: sealing, and opening.
fn measure(
    encryption: Encryption,
    algorithm: &'static Algorithm,
    len: usize,
) -> ((f64, f64), (f64, f64)) {
    let material = [7; 36];
    let key = || Key::new(encryption.into(), &material).unwrap();
    let bare = LessSafeKey::new(UnboundKey::new(algorithm, &material[..32]).unwrap());
    let outbound = OutboundSa::new(SPI, key(), true);
    outbound.extend(1..u64::MAX).unwrap();
    let window = ReplayWindow::new(1024);
    let inbound = InboundSa::new(SPI, key(), true, Selectors::default(), window);
    // The payload with its trailer, as the cipher sees it.
    let text_len = (len + 2).next_multiple_of(4);
    let mut packets: Vec<Packet> = (0..PACKETS)
        .map(|i| Packet {
            buffer: vec![u8::try_from(i).unwrap(); HEADROOM + len + TAILROOM],
            sealed: 0..0,
        })
        .collect();
    let mut texts = vec![vec![5; text_len + 16]; PACKETS];
    let (mut seal_bare, mut seal_esp) = (Vec::new(), Vec::new());
    let (mut open_bare, mut open_esp) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        seal_bare.push(timed(|| {
            for (i, text) in texts.iter_mut().enumerate() {
                let (text, tag) = text.split_at_mut(text_len);
                let made = bare
                    .seal_in_place_separate_tag(nonce(i), aad(i), text)
                    .unwrap();
                tag.copy_from_slice(made.as_ref());
            }
        }));
        seal_esp.push(timed(|| {
            let mut numbers = outbound.next_seqs(PACKETS).unwrap();
            for packet in &mut packets {
                let number = numbers.next().unwrap();
                let inner = HEADROOM..HEADROOM + len;
                let sealed =
                    outbound.seal(number, protocol::IPV4, black_box(&mut packet.buffer), inner);
                packet.sealed = sealed.unwrap();
            }
        }));
        open_bare.push(timed(|| {
            for (i, text) in texts.iter_mut().enumerate() {
                black_box(bare.open_in_place(nonce(i), aad(i), text).unwrap());
            }
        }));
        open_esp.push(timed(|| {
            for packet in &mut packets {
                let sealed = &mut packet.buffer[packet.sealed.clone()];
                black_box(inbound.open(black_box(sealed)).unwrap());
            }
        }));
    }
    let ns = |mut runs: Vec<Duration>| {
        runs.sort_unstable();
        runs[RUNS / 2].as_secs_f64() * 1e9 / PACKETS as f64
    };
    ((ns(seal_bare), ns(seal_esp)), (ns(open_bare), ns(open_esp)))
}

fn nonce(i: usize) -> Nonce {
    let mut nonce = [9; 12];
    nonce[4..].copy_from_slice(&(i as u64).to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// As long as that of ESP with extended sequence numbers.
fn aad(i: usize) -> Aad<[u8; 12]> {
    let mut aad = [3; 12];
    aad[4..].copy_from_slice(&(i as u64).to_be_bytes());
    Aad::from(aad)
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}
