//! Notices when a way may have changed.

use crate::{rtnl, userspace::Shared};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use std::{io, sync::Arc, thread, time::Duration};

/// Multicast groups of rtnetlink: links and neighbours; addresses, routes and rules of both families.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];
/// So much is read before it is acted upon...
const AT_ONCE: usize = 1024;
/// ... and so long nothing is read then: where there are many neighbours, some change all the time.
const SETTLE: Duration = Duration::from_millis(10);

/// Listens to the kernel, on a thread of its own.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    socket: Socket,
}

impl Watch {
    /// Begins to listen, in the network namespace of the calling thread.
    pub(crate) fn open(shared: Arc<Shared>) -> io::Result<Self> {
        let socket = rtnl::listen(NETLINK_ROUTE, &GROUPS)?;
        Ok(Self { shared, socket })
    }

    /// Runs until the plane stops.
    pub(crate) fn run(self) {
        while self.shared.wait(&[&self.socket], None).is_some() {
            // What it is does not matter: whoever needs a way asks for it again.
            let told = (0..AT_ONCE).map(|_| self.socket.recv_from_full());
            let told = told.take_while(|t| !is_all(t));
            if told.count() > 0
                && let Some(links) = &self.shared.links
            {
                links.changed();
                thread::sleep(SETTLE);
            }
        }
    }
}

/// Whether there is nothing more. Another error is that more was told than the socket holds.
fn is_all<T>(told: &io::Result<T>) -> bool {
    told.as_ref()
        .is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}
