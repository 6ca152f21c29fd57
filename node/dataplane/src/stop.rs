//! How threads of a plane wait, and are stopped.

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use smallvec::SmallVec;
use std::{io, os::fd::AsFd, time::Duration};

/// What a plane's threads wait on besides their own.
pub(crate) struct Stop(EventFd);

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self(event?))
    }

    /// Stops all who wait, now and later.
    pub(crate) fn stop(&self) -> io::Result<()> {
        self.0.write(1).map(|_| ()).map_err(io::Error::from)
    }

    /// Waits until one of at most 63 descriptors has something to read; which of them, as bits. `None` once the plane stops.
    pub(crate) fn wait(&self, fds: &[&dyn AsFd], timeout: Option<Duration>) -> Option<u64> {
        let poll_in = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut all: SmallVec<[PollFd<'_>; 64]> =
            fds.iter().map(|fd| poll_in(fd.as_fd())).collect();
        all.push(poll_in(self.0.as_fd()));
        let timeout = timeout.map_or(PollTimeout::NONE, |t| {
            PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut all, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for packets: this direction stops");
                return None;
            }
        }
        let mut ready = 0;
        for (i, fd) in all.iter().enumerate() {
            if fd.any().unwrap_or(true) {
                ready |= 1 << i;
            }
        }
        (ready & (1 << fds.len()) == 0).then_some(ready)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
