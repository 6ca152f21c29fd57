//! The receive ring of a packet socket (`PACKET_RX_RING`, the second version of its format): memory in which the kernel puts what comes, and takes note
//! of what has been read, without a system call.

use super::{option_bytes, set_option, set_option_bytes};
use std::{
    io,
    mem::{offset_of, size_of},
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, Ordering},
};

/// Bytes of a ring: some milliseconds of traffic at full speed, and little enough to stay in the cache of a processor.
const SIZE: usize = 2 << 20;
/// Packets of a ring where they are so large that fewer would fit.
const MIN_SLOTS: usize = 64;
/// Bytes of a slot, at least.
const MIN_SLOT: usize = 2048;
/// What the kernel allocates in one piece, at least.
const MIN_BLOCK: usize = 64 << 10;
/// What the kernel puts in front of a packet, at most: its header, the address of the link, and 16 bytes that it leaves free, each aligned.
const FRONT: usize = 128;
/// Packets that are taken at a time, at most: as many as leave together (`delivery.rs`), and some of another flow.
const AT_ONCE: usize = 96;

/// A ring.
pub(crate) struct Ring {
    memory: NonNull<u8>,
    slot: usize,
    slots: usize,
    /// The slot that the kernel fills next, or has filled.
    next: usize,
}

// SAFETY: the memory is not bound to a thread, and whoever has the ring is the only one here who uses it.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives a packet socket that is not bound yet a ring, for packets of up to `longest` bytes. A longer one gets into the socket's queue.
    ///
    /// # Errors
    /// What the kernel says: above all that it has no memory.
    pub(crate) fn new(socket: BorrowedFd<'_>, longest: usize) -> io::Result<Self> {
        let option = |name, value| set_option(socket, libc::SOL_PACKET, name, value);
        option(
            libc::PACKET_VERSION,
            libc::tpacket_versions::TPACKET_V2 as i32,
        )?;
        // Any other number than none.
        option(libc::PACKET_COPY_THRESH, 1)?;
        let slot = (FRONT + longest).next_power_of_two().max(MIN_SLOT);
        let len = SIZE.max(slot * MIN_SLOTS);
        let block = slot.max(MIN_BLOCK);
        let numbers = [block, len / block, slot, len / slot];
        let mut request = Vec::with_capacity(size_of::<libc::tpacket_req>());
        for number in numbers {
            let number = u32::try_from(number).map_err(io::Error::other)?;
            request.extend(number.to_ne_bytes());
        }
        set_option_bytes(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: it is for the kernel to choose where, so nothing that is there is replaced.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            memory,
            slot,
            slots: len / slot,
            next: 0,
        })
    }

    /// What has come, as far as one turn goes.
    pub(crate) fn take(&mut self) -> Frames<'_> {
        let most = self.slots.min(AT_ONCE);
        // What the kernel wrote before it gave the slot away is seen behind this.
        let is_ours =
            |i: &usize| self.status(*i).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0;
        let count = (0..most).take_while(is_ours).count();
        Frames { ring: self, count }
    }

    /// The slot that is so many behind the next.
    fn at(&self, i: usize) -> NonNull<u8> {
        let slot = (self.next + i) % self.slots;
        // SAFETY: the memory consists of so many slots of this size.
        unsafe { self.memory.add(slot * self.slot) }
    }

    /// Whose a slot is.
    fn status(&self, i: usize) -> &AtomicU32 {
        let status = offset_of!(libc::tpacket2_hdr, tp_status);
        // SAFETY: every slot begins with such a header, aligned as a page is and more than large enough for it; and nobody here uses the status
        // otherwise.
        unsafe { AtomicU32::from_ptr(self.at(i).add(status).cast().as_ptr()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and who borrowed from it is gone. An error would be that it is not mapped.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.slot * self.slots) };
    }
}

/// Packets in a ring. Their slots are the kernel's again once this is gone.
pub(crate) struct Frames<'r> {
    ring: &'r mut Ring,
    count: usize,
}

impl Frames<'_> {
    /// The packets, each from its network header on.
    pub(crate) fn packets(&mut self) -> impl Iterator<Item = &mut [u8]> {
        (0..self.count).filter_map(|i| {
            let (start, len) = self.place(i)?;
            // SAFETY: `place` says what lies within the slot. The kernel does not touch it before it gets it back, each slot is yielded once, and
            // nobody else has access while this is borrowed.
            Some(unsafe { slice::from_raw_parts_mut(self.ring.at(i).add(start).as_ptr(), len) })
        })
    }

    /// The same, to be looked at.
    pub(crate) fn peek(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count).filter_map(|i| {
            let (start, len) = self.place(i)?;
            // SAFETY: as with `packets`.
            Some(unsafe { slice::from_raw_parts(self.ring.at(i).add(start).as_ptr(), len) })
        })
    }

    /// How many packets there was no slot for, since that was asked for the last time. It is the socket's ring.
    pub(crate) fn lost(&self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        let says = |i| self.ring.status(i).load(Ordering::Relaxed) & libc::TP_STATUS_LOSING != 0;
        if !(0..self.count).any(says) {
            return Ok(0);
        }
        let statistics: [u8; size_of::<libc::tpacket_stats>()] =
            option_bytes(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
        let at = offset_of!(libc::tpacket_stats, tp_drops);
        let drops = statistics[at..].first_chunk();
        Ok(drops.map_or(0, |d| u32::from_ne_bytes(*d)))
    }

    /// How many slots are filled.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Whether there may be packets in the socket's queue: there were some that did not fit; or none, and still something was to be read.
    pub(crate) fn may_be_queued(&self) -> bool {
        self.count == 0 || (0..self.count).any(|i| self.is_queued(i))
    }

    fn is_queued(&self, i: usize) -> bool {
        self.ring.status(i).load(Ordering::Relaxed) & libc::TP_STATUS_COPY != 0
    }

    /// Where the packet is in its slot, and its length.
    fn place(&self, i: usize) -> Option<(usize, usize)> {
        // SAFETY: every slot begins with a header that the kernel has filled.
        let header = unsafe { self.ring.at(i).cast::<libc::tpacket2_hdr>().read() };
        let (start, len) = (usize::from(header.tp_net), header.tp_snaplen as usize);
        let whole = header.tp_snaplen == header.tp_len && start + len <= self.ring.slot;
        (whole && !self.is_queued(i)).then_some((start, len))
    }
}

impl Drop for Frames<'_> {
    fn drop(&mut self) {
        for i in 0..self.count {
            let status = self.ring.status(i);
            // What was done with the packet was before.
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
        self.ring.next = (self.ring.next + self.count) % self.ring.slots;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::bind_link, *};
    use crate::namespace::in_namespace;
    use socket2::{Domain, Socket, Type};
    use std::{
        net::UdpSocket,
        os::fd::AsFd,
        process::Command,
        time::{Duration, Instant},
    };

    const LOOPBACK: u32 = 1;
    const IPV4: u16 = 0x0800;

    #[test]
    fn what_finds_no_slot_is_told() {
        in_namespace(overrun_and_count);
    }

    /// Whether the kernel has put nothing in this slot yet.
    fn is_free(ring: &Ring, slot: usize) -> bool {
        ring.status(slot).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0
    }

    fn overrun_and_count() {
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.expect("iproute2 is installed").success());
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None).unwrap();
        let mut ring = Ring::new(socket.as_fd(), 1500).unwrap();
        bind_link(socket.as_fd(), IPV4, LOOPBACK).unwrap();
        // Nobody reads it, but that it is there keeps ICMP errors away.
        let unread = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sent: usize = 0;
        let mut send = || {
            sender.send_to(b"?", unread.local_addr().unwrap()).unwrap();
            sent += 1;
            sent
        };
        let end = Instant::now() + Duration::from_secs(30);
        for i in 0..ring.slots + 500 {
            send();
            // Not faster than they arrive: what the kernel drops on the way there (`netdev_max_backlog`) is not lost by the ring.
            while i < ring.slots && i % 100 == 99 && is_free(&ring, i) {
                assert!(Instant::now() < end, "packet {i} does not arrive");
                std::thread::yield_now();
            }
        }
        let (mut taken, mut lost, mut sent) = (0, 0, usize::MAX);
        while taken + lost != sent || lost == 0 {
            assert!(
                Instant::now() < end,
                "{taken} and {lost} lost of {sent} sent"
            );
            let frames = ring.take();
            taken += frames.count();
            lost += frames.lost(socket.as_fd()).unwrap() as usize;
            if frames.count() == 0 {
                sent = send();
            }
        }
        assert!(lost <= 500, "{lost}");
    }
}
