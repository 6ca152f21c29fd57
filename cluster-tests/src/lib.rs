//! The harness of the drills: hosts in network namespaces, real gateways and
//! peers, numbered traffic, faults on the wire, and a checker over everything
//! that crossed the segment between them.
//!
//! A drill builds a [`lab::Lab`], starts a member ([`member::Member`]) and
//! peers ([`strongswan::StrongSwan`], or a second member), runs traffic
//! ([`flow::Flow`]) and ends with the verdict of the [`capture::Capture`] over
//! the wire. [`duo::Duo`] is the usual pair, put together.
//!
//! Nothing leaves the namespaces: there is no uplink and no default route, so
//! traffic between protected hosts can only arrive through a tunnel.

pub mod capture;
pub mod checker;
pub mod cluster;
pub mod connection;
pub mod crowd;
pub mod decrypt;
pub mod drops;
pub mod duo;
pub mod flow;
pub mod hook;
pub mod lab;
pub mod log;
pub mod member;
pub mod ocsp;
pub mod packet;
pub mod pings;
pub mod pki;
pub mod process;
pub mod raw;
pub mod sa;
pub mod streams;
pub mod strongswan;
pub mod wire;

use std::time::{Duration, Instant};

/// The result of every step of the harness.
pub type Result<T> = anyhow::Result<T>;

/// How many times longer everything may take here than on a machine that is none of the slowest: in `cluster-tests/guest` processors are emulated.
#[must_use]
pub fn patience() -> u32 {
    match std::path::Path::new("/run/guest/machine").exists() {
        true => 8,
        false => 1,
    }
}

/// Tries again when the wait was interrupted: where it has a time limit it may be, without any signal handler.
///
/// # Errors
/// Those of the call.
pub fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Polls `condition` until it holds, and fails with `what` after `timeout`, or [`patience`] times that.
pub fn until(
    timeout: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let timeout = timeout * patience();
    let end = Instant::now() + timeout;
    loop {
        let asked = Instant::now();
        let outcome = condition();
        if matches!(outcome, Ok(true)) {
            return Ok(());
        }
        if Instant::now() >= end {
            let text = format!("not within {timeout:?}: {what}");
            return Err(match outcome {
                Err(error) => error.context(text),
                Ok(_) => anyhow::anyhow!(text),
            });
        }
        // Asking takes time from who is asked: where it is slow, it is done less often.
        std::thread::sleep(millis(20).max(asked.elapsed() * 2));
    }
}

/// Seconds, for short.
#[must_use]
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Milliseconds, for short.
#[must_use]
pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
