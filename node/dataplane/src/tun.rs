//! The TUN device.

use crate::{PlaneError, sys};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

/// A TUN device, which goes away with this.
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Makes a device in the network namespace of the calling thread.
    pub(crate) fn create(name: &str) -> Result<Self, PlaneError> {
        let failed = |source| PlaneError::Io {
            what: format!("create TUN device {name}"),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(failed)?;
        sys::attach_tun(file.as_fd(), name).map_err(failed)?;
        Ok(Self { file })
    }

    /// The next packet that the kernel routed into the device; `None` if there is none now.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Hands a packet to the kernel as received on the device.
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(|_| ())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
