//! A thread that gives every frame of the internet segment to the checker.

use super::{
    checker::{Checker, Findings},
    network::NetNs,
    topology::INNER,
};
use anyhow::{Context, Result, anyhow};
use ipnet::Ipv4Net;
use nix::{
    errno::Errno,
    sys::socket::{
        ControlMessageOwned, MsgFlags, recvmsg, setsockopt,
        sockopt::{RcvBufForce, RxqOvfl},
    },
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::{
    io::IoSliceMut,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 0x0003;
/// `PACKET_OUTGOING`.
const OUTGOING: u32 = 4;
/// Longest frame that can be looked at.
const FRAME_LEN: usize = 9216;
/// Bytes of frames that may wait to be looked at.
const BUFFER: usize = 16 << 20;
/// How often the thread looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(50);

/// A running capture.
pub(super) struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Shared {
    checker: Mutex<Checker>,
    missed: AtomicU32,
    stop: AtomicBool,
}

impl Capture {
    /// Captures whatever comes in on any device of a namespace.
    pub(super) fn start(ns: &NetNs) -> Result<Self> {
        let socket = ns.run(open)?;
        let inner = Ipv4Net::new(INNER.0, INNER.1)?;
        let shared = Arc::new(Shared {
            checker: Mutex::new(Checker::new(inner)),
            missed: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || capture(&socket, &theirs))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What was found until now.
    pub(super) fn findings(&self) -> Findings {
        let checker = self.shared.checker.lock();
        checker.unwrap_or_else(PoisonError::into_inner).findings()
    }

    /// Ends the capture. Gives what was found, and how many frames were not looked at because the machine is too busy.
    ///
    /// # Errors
    /// If the capture itself failed.
    pub(super) fn finish(mut self) -> Result<(Findings, u32)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            result.unwrap_or_else(|_| Err(anyhow!("the capture panicked")))?;
        }
        Ok((self.findings(), self.shared.missed.load(Ordering::Relaxed)))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn open() -> Result<Socket> {
    let every = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(every))
        .context("the kernel makes no packet socket (module af_packet)")?;
    // Each frame once: not when it leaves the bridge again.
    socket.attach_filter(&[
        // Load the packet type, SKF_AD_OFF + SKF_AD_PKTTYPE.
        SockFilter::new(0x28, 0, 0, 0xffff_f004),
        SockFilter::new(0x15, 0, 1, OUTGOING),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ])?;
    // Only root of the machine gets more than its limit says.
    if setsockopt(&socket, RcvBufForce, &BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    setsockopt(&socket, RxqOvfl, &1)?;
    Ok(socket)
}

fn capture(socket: &Socket, shared: &Shared) -> Result<()> {
    let mut frame = vec![0; FRAME_LEN];
    let mut control = nix::cmsg_space!(u32);
    loop {
        let mut parts = [IoSliceMut::new(&mut frame)];
        let received = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        );
        let (length, truncated) = match received {
            Ok(message) => {
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::RxqOvfl(missed) = control {
                        shared.missed.store(missed, Ordering::Relaxed);
                    }
                }
                (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC))
            }
            // What waits in the socket is looked at before the end.
            Err(Errno::EAGAIN) if shared.stop.load(Ordering::Relaxed) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => continue,
            Err(error) => return Err(error).context("the capture failed"),
        };
        let mut checker = shared
            .checker
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if truncated {
            checker.truncated();
        } else {
            checker.frame(&frame[..length]);
        }
    }
}
