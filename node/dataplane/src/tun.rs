//! The TUN device.

use crate::{
    PlaneError,
    sys::{self, Queue},
    virtio,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
};

/// A TUN device, which goes away with this. Packets pass it with a header that says what is left to be done ([`virtio`]), so that TCP
/// segments and UDP datagrams of one flow pass it together.
///
/// It may have several queues: the kernel chooses by flow which of them a packet takes. It would let a flow follow the queue that packets
/// of the opposite direction were last written to, and on the way from one to the other packets would overtake each other. So all are written to a
/// queue of their own that none are read from.
pub(crate) struct Tun {
    queues: Vec<File>,
    /// If there are several.
    writing: Option<File>,
    /// Whether the kernel takes and gives large packets of UDP (since Linux 6.2).
    large_udp: bool,
}

impl Tun {
    /// Makes a device in the network namespace of the calling thread, with so many queues to read from.
    pub(crate) fn create(name: &str, queues: usize) -> Result<Self, PlaneError> {
        let failed = |source| PlaneError::Io {
            what: format!("create TUN device {name}"),
            source,
        };
        let first = match queues {
            ..=1 => attach(name, Queue::Only).map_err(failed)?,
            _ => attach(name, Queue::First).map_err(failed)?,
        };
        let large_udp = sys::set_tun_offload(first.as_fd(), true).is_ok();
        if !large_udp {
            sys::set_tun_offload(first.as_fd(), false).map_err(failed)?;
        }
        let mut all = vec![first];
        while all.len() < queues {
            all.push(attach(name, Queue::Another).map_err(failed)?);
        }
        let writing = match queues {
            ..=1 => None,
            _ => {
                let writing = attach(name, Queue::Another).map_err(failed)?;
                sys::detach_tun_queue(writing.as_fd()).map_err(failed)?;
                Some(writing)
            }
        };
        Ok(Self {
            queues: all,
            writing,
            large_udp,
        })
    }

    /// Whether large packets of UDP may be written.
    pub(crate) fn takes_large_udp(&self) -> bool {
        self.large_udp
    }

    /// A queue, to wait for packets.
    pub(crate) fn queue(&self, queue: usize) -> &dyn AsFd {
        &self.queues[queue]
    }

    /// The next packet that the kernel routed into this queue of the device, and what is left to do with it; `None` if there is none now.
    pub(crate) fn read(
        &self,
        queue: usize,
        header: &mut [u8; virtio::LEN],
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        loop {
            let mut parts = [IoSliceMut::new(header), IoSliceMut::new(buffer)];
            match (&self.queues[queue]).read_vectored(&mut parts) {
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
        let mut file = self.writing.as_ref().unwrap_or(&self.queues[0]);
        file.write_vectored(parts).map(|_| ())
    }
}

fn attach(name: &str, queue: Queue) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    sys::attach_tun(file.as_fd(), name, queue)?;
    Ok(file)
}
