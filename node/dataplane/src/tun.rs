//! The TUN device.

use crate::{PlaneError, sys, virtio};
use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

/// A TUN device, which goes away with this. Packets pass it with a header that says what is left to be done ([`virtio`]), so that TCP
/// segments and UDP datagrams of one flow pass it together.
pub(crate) struct Tun {
    file: File,
    /// Whether the kernel takes and gives large packets of UDP (since Linux 6.2).
    large_udp: bool,
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
        let large_udp = sys::set_tun_offload(file.as_fd(), true).is_ok();
        if !large_udp {
            sys::set_tun_offload(file.as_fd(), false).map_err(failed)?;
        }
        Ok(Self { file, large_udp })
    }

    /// Whether large packets of UDP may be written.
    pub(crate) fn takes_large_udp(&self) -> bool {
        self.large_udp
    }

    /// The next packet that the kernel routed into the device, and what is left to do with it; `None` if there is none now.
    pub(crate) fn read(
        &self,
        header: &mut [u8; virtio::LEN],
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        loop {
            let mut parts = [IoSliceMut::new(header), IoSliceMut::new(buffer)];
            match (&self.file).read_vectored(&mut parts) {
                Ok(len) => return Ok(Some(len.saturating_sub(virtio::LEN))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Hands a packet to the kernel as received on the device.
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        let header = [0; virtio::LEN];
        self.write_parts(&[IoSlice::new(&header), IoSlice::new(packet)])
    }

    /// The same with a header, and in parts.
    pub(crate) fn write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(parts).map(|_| ())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
