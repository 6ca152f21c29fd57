//! Notices when addresses, links or routes of this host change.

use crate::rtnl;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{io, os::fd::AsFd, time::Duration};

/// Multicast groups of rtnetlink: links, addresses and routes of both families. A link that goes down takes IPv4 routes with it without a word.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

/// Of `netlink` messages: header, and where a route's protocol and an address's or link's device stand behind it.
const HEADER: usize = 16;
const ROUTE_PROTOCOL: usize = HEADER + 5;
const DEVICE: usize = HEADER + 4;

/// So much is read before somebody else has their turn; more is read with the next call.
const AT_ONCE: usize = 1024;

/// A socket that tells of changes, in the network namespace of the thread that opened it.
pub struct NetworkWatch {
    socket: Socket,
    /// The device of the tunnels: what happens there is ours.
    device: Option<u32>,
}

impl NetworkWatch {
    /// Begins to watch. What concerns the TUN device, and routes of our own, does not count.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(tun: &str) -> io::Result<Self> {
        Ok(Self {
            socket: rtnl::listen(NETLINK_ROUTE, &GROUPS)?,
            device: nix::net::if_::if_nametoindex(tun).ok(),
        })
    }

    /// Waits until something may have changed, but not longer than `timeout`; whether it has.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(false),
            Ok(_) => Ok(self.changed()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether something has changed since the last call that outer packets may depend on.
    fn changed(&self) -> bool {
        let mut changed = false;
        for _ in 0..AT_ONCE {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => changed |= self.counts(&datagram),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // There was more than the socket could hold: who knows what.
                Err(_) => changed = true,
            }
        }
        changed
    }

    fn counts(&self, datagram: &[u8]) -> bool {
        let mut rest = datagram;
        while let Some(header) = rest.get(..HEADER) {
            let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let Some(message) = rest.get(..len.max(HEADER)) else {
                return false;
            };
            if self.message_counts(message) {
                return true;
            }
            rest = rest
                .get(len.max(HEADER).next_multiple_of(4)..)
                .unwrap_or(&[]);
        }
        false
    }

    fn message_counts(&self, message: &[u8]) -> bool {
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        match kind {
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => message
                .get(ROUTE_PROTOCOL)
                .is_some_and(|p| *p != crate::config::ROUTE_PROTOCOL),
            libc::RTM_NEWADDR | libc::RTM_DELADDR | libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                let device = message.get(DEVICE..DEVICE + 4);
                let device = device.map(|d| u32::from_ne_bytes([d[0], d[1], d[2], d[3]]));
                device != self.device
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, at: usize, value: u32) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[..4].copy_from_slice(&32_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    #[test]
    fn what_the_data_plane_does_itself_does_not_count() {
        let watch = NetworkWatch {
            socket: Socket::new(NETLINK_ROUTE).unwrap(),
            device: Some(7),
        };
        let own = u32::from(crate::config::ROUTE_PROTOCOL);
        let route = |protocol: u32| message(libc::RTM_NEWROUTE, ROUTE_PROTOCOL, protocol.to_le());
        assert!(!watch.counts(&route(own)));
        assert!(watch.counts(&route(2)));
        assert!(!watch.counts(&message(libc::RTM_NEWADDR, DEVICE, 7)));
        assert!(watch.counts(&message(libc::RTM_DELADDR, DEVICE, 2)));
        // One of several in a datagram suffices, and what is cut off is passed over.
        let both = [route(own), message(libc::RTM_DELLINK, DEVICE, 2)].concat();
        assert!(watch.counts(&both));
        assert!(!watch.counts(&both[..40]));
        assert!(!watch.counts(&[0; 16]) && !watch.counts(&[]));
    }
}
