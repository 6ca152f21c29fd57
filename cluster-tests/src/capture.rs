//! Everything that crosses the internet segment, captured on its bridge.

use crate::checker::{Checker, Findings};
use crate::lab::Lab;
use crate::packet::{Body, IkeHeader, Packet, Parser};
use crate::process::Process;
use crate::wire::{Exchange, Kind};
use crate::{Result, millis, secs, until};
use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

/// One captured frame: microseconds of Unix time, and its bytes.
pub type Frame = (u64, Vec<u8>);

impl Capture {
    /// Starts to capture; when it returns, nothing is missed.
    pub fn start(lab: &Lab) -> Result<Self> {
        let (file, log) = (lab.dir().join("wire.pcap"), lab.dir().join("tcpdump.log"));
        let namespace = lab.namespace("inet");
        let path = file.to_str().context("path")?;
        let mut command = vec!["ip", "netns", "exec", &namespace];
        // As root: tcpdump would otherwise drop to a user that cannot write here.
        command.extend(["tcpdump", "--immediate-mode", "-i", "br0", "-U", "-w", path]);
        // Slots of one whole frame, and enough of them for a busy machine.
        command.extend(["-s", "2048", "-B", "65536", "-Z", "root"]);
        let tcpdump = Process::start(&command, &[], &log)?;
        until(secs(10), "tcpdump listens", || {
            Ok(std::fs::read_to_string(&log)?.contains("listening on"))
        })?;
        Ok(Self { tcpdump, file })
    }

    /// The frames up to now, while the capture goes on.
    pub fn so_far(&self) -> Result<Vec<Frame>> {
        let (asked, end) = (now(), Instant::now() + secs(5));
        let mut known = None;
        loop {
            std::thread::sleep(millis(200));
            let frames = read(&self.file)?;
            // tcpdump may be behind. All up to now is there when something later is, or when nothing more comes.
            let later = frames.last().is_some_and(|(at, _)| *at > asked);
            if later || known == Some(frames.len()) || Instant::now() >= end {
                return Ok(frames);
            }
            known = Some(frames.len());
        }
    }

    /// Waits until `from` sends such a message after the call.
    pub fn wait_for(&self, from: &str, exchange: Exchange, kind: Kind) -> Result<()> {
        self.wait_since(now(), from, exchange, kind)
    }

    /// Waits until `from` has sent such a message since then (microseconds of Unix time): one that answers something may be there before it is waited for.
    pub fn wait_since(&self, start: u64, from: &str, exchange: Exchange, kind: Kind) -> Result<()> {
        let from: IpAddr = from.parse()?;
        let wanted = |packet: &Packet| match &packet.body {
            Body::Ike(message) if packet.src == from && packet.at >= start => {
                IkeHeader::parse(message).is_some_and(|header| {
                    header.exchange == exchange as u8 && header.response == (kind == Kind::Response)
                })
            }
            _ => false,
        };
        until(
            secs(20),
            &format!("{from} sends {exchange:?} {kind:?}"),
            || Ok(packets(&read(&self.file)?).iter().any(wanted)),
        )
    }

    /// Ends the capture and returns all frames.
    ///
    /// # Errors
    /// When the kernel dropped a frame: a checker that did not see everything
    /// has nothing to say.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        // What tcpdump has not read when it is told to end, it leaves. Where the wire is not quiet, this takes its time.
        let mut size = 0;
        let quiet = until(secs(3), "the capture grows no more", || {
            std::thread::sleep(millis(200));
            let before = size;
            size = std::fs::metadata(&self.file)?.len();
            Ok(size == before)
        });
        quiet.ok();
        self.tcpdump.stop(Signal::SIGINT)?;
        let log = std::fs::read_to_string(self.tcpdump.log_path())?;
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "the capture is incomplete: {log}"
        );
        read(&self.file)
    }

    /// A copy of the capture up to now, without an unfinished record at its end.
    pub fn copy(&self) -> Result<PathBuf> {
        let frames = self.so_far()?;
        let mut bytes = std::fs::read(&self.file)?;
        bytes.truncate(
            24 + frames
                .iter()
                .map(|(_, frame)| 16 + frame.len())
                .sum::<usize>(),
        );
        let path = self.file.with_file_name("copy.pcap");
        std::fs::write(&path, bytes)?;
        Ok(path)
    }

    /// Ends the capture and runs the checker over it.
    pub fn check(self, hostile: &[IpAddr]) -> Result<Findings> {
        let mut checker = Checker::new(hostile.iter().copied());
        for (at, frame) in self.stop()? {
            checker.frame(at, &frame);
        }
        Ok(checker.finish())
    }
}

/// The datagrams in a capture.
#[must_use]
pub fn packets(frames: &[Frame]) -> Vec<Packet> {
    let mut parser = Parser::default();
    frames
        .iter()
        .filter_map(|(at, frame)| parser.frame(*at, frame))
        .collect()
}

/// Now, in the clock of the capture.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Reads a pcap file of Ethernet frames; an unfinished record at its end is
/// left out.
pub fn read(path: &Path) -> Result<Vec<Frame>> {
    let bytes = std::fs::read(path)?;
    let word = |at: usize| {
        let field = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(field.try_into().ok()?))
    };
    ensure!(
        word(0) == Some(0xa1b2_c3d4) && word(20) == Some(1),
        "not a little-endian pcap file of Ethernet frames"
    );
    let (mut at, mut frames) = (24, Vec::new());
    let header = |at: usize| Some((word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?));
    while let Some((seconds, micros, length, original)) = header(at) {
        if original != length {
            bail!("a frame was cut off");
        }
        let length = usize::try_from(length)?;
        let Some(frame) = bytes.get(at + 16..at + 16 + length) else {
            break;
        };
        frames.push((
            u64::from(seconds) * 1_000_000 + u64::from(micros),
            frame.to_vec(),
        ));
        at += 16 + length;
    }
    Ok(frames)
}
