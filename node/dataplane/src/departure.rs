//! Sealed packets leave: by as few system calls as there are.

use crate::{
    DropReason, TcpEnd, Transport,
    exit::Exit,
    link::{self, Header},
    sockets::{OuterSocket, Role},
    sys::{BATCH, Outgoing, To},
    tap::{MaybeTapped, Tapped},
    tcp::Ends,
    train::{MAX_PACKETS, Run, Train},
    userspace::Shared,
};
use smallvec::SmallVec;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
};

/// Packets of a run that leave as one message.
struct Message<'t> {
    run: &'t Run,
    packets: Range<usize>,
    /// The IP header, if IP does not make it.
    header: Option<Header>,
}

/// Everything that has to be known here.
struct Departure<'t> {
    shared: &'t Shared,
    train: &'t Train,
    tapped: &'t Option<Tapped>,
    unix_ms: u64,
}

/// Sends all packets of a train by this worker's sockets. The order within an SA stays: it uses one socket.
pub(crate) fn depart(
    shared: &Shared,
    worker: usize,
    train: &Train,
    tapped: &Option<Tapped>,
    unix_ms: u64,
) {
    if train.runs().is_empty() {
        return;
    }
    let departure = Departure {
        shared,
        train,
        tapped,
        unix_ms,
    };
    // Sealing took a while. A lease may have ended.
    let boot = crate::boot_time();
    let allowed = |run: &Run| {
        let open = train.gate(run).is_open(boot);
        if !open {
            departure.dropped(run, 0..run.count, DropReason::NoLease);
        }
        open
    };
    let runs = train.runs().iter().filter(|run| allowed(run));
    let runs: SmallVec<[&Run; MAX_PACKETS]> = runs.collect();
    let sockets = shared.sockets.of(worker);
    for (index, socket) in sockets.all().iter().enumerate() {
        departure.by_socket(socket, |run| run.to.exit == Exit::Socket(index), &runs);
    }
    for run in runs {
        if let Exit::Tcp(ends, end) = run.to.exit {
            departure.by_tcp(ends, end, run);
        }
    }
}

impl<'t> Departure<'t> {
    fn by_socket(&self, socket: &OuterSocket, is_meant: impl Fn(&Run) -> bool, runs: &[&'t Run]) {
        let together = socket.role == Role::Nat && socket.cuts();
        let mut messages = SmallVec::<[Message<'_>; MAX_PACKETS]>::new();
        for &run in runs.iter().filter(|run| is_meant(run)) {
            if together && !run.to.fragmentable {
                messages.push(self.message(run, 0..run.count));
            } else {
                messages.extend((0..run.count).map(|i| self.message(run, i..i + 1)));
            }
        }
        // Those that may be fragmented, which is rare, go one by one.
        for group in messages.chunk_by(|a, b| a.run.to.fragmentable == b.run.to.fragmentable) {
            self.send(socket, group);
        }
    }

    fn send(&self, socket: &OuterSocket, group: &[Message<'t>]) {
        let mut next = 0;
        while next < group.len() {
            let sent = if group[next].run.to.fragmentable {
                let outgoing = self.outgoing(&group[next]);
                socket.send_fragmentable(outgoing).map(|()| 1)
            } else {
                let some = group[next..].iter().take(BATCH);
                let outgoing: SmallVec<[_; BATCH]> = some.map(|m| self.outgoing(m)).collect();
                socket.send(&outgoing)
            };
            match sent {
                Ok(count) => {
                    for message in &group[next..next + count] {
                        self.sent(message.run, message.packets.clone());
                        if self.tapped.is_some() {
                            self.show(message.run, message.packets.clone(), socket.role);
                        }
                    }
                    // A count of zero does not occur; if it did, nothing would go on.
                    next += count.max(1);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.failed(socket, &group[next], &e);
                    next += 1;
                }
            }
        }
    }

    /// The first of them did not leave.
    fn failed(&self, socket: &OuterSocket, message: &Message<'t>, error: &io::Error) {
        let Message { run, packets, .. } = message;
        if packets.len() == 1 {
            return self.lost(run, packets.start, error);
        }
        // Kernels say in several ways that they cannot cut it like this, or that a packet is too long for the path. Alone each gets
        // an answer of its own.
        socket.could_not_cut(error);
        let alone = packets.clone().map(|i| self.message(run, i..i + 1));
        self.send(socket, &alone.collect::<SmallVec<[_; MAX_PACKETS]>>());
    }

    fn outgoing<'m>(&self, message: &'m Message<'t>) -> Outgoing<'m> {
        let Message {
            run,
            packets,
            header,
        } = message;
        let (to, from) = match run.to.hop.filter(|_| header.is_some()) {
            // A packet socket refuses it: nothing leaves without a header.
            None => (To::Host(run.to.remote), run.to.local),
            // The source is in the header.
            Some(hop) => {
                let ethertype = link::ethertype(run.to.local.is_ipv4());
                let to = To::Neighbour(ethertype, hop.device, hop.mac);
                (to, Ipv4Addr::UNSPECIFIED.into())
            }
        };
        Outgoing {
            data: self.train.bytes(run, packets.clone()),
            prefix: header.as_ref().map_or(&[], Header::bytes),
            to,
            from,
            traffic_class: Some(run.to.traffic_class),
            segment: (packets.len() > 1).then_some(run.segment),
        }
    }

    /// A message of these packets of a run.
    fn message(&self, run: &'t Run, packets: Range<usize>) -> Message<'t> {
        let header = run.to.hop.and_then(|_| {
            let len = self.train.bytes(run, packets.clone()).len();
            let to = &run.to;
            Header::new(to.local, to.remote.ip(), to.traffic_class, len)
        });
        Message {
            run,
            packets,
            header,
        }
    }

    /// Sends by a connection what it takes.
    fn by_tcp(&self, ends: Ends, end: TcpEnd, run: &Run) {
        let packets = (0..run.count).map(|i| self.train.bytes(run, i..i + 1));
        let taken = self.shared.tcp.send_esp(ends, end, packets);
        let sent = taken.unwrap_or(0);
        if sent > 0 {
            self.sent(run, 0..sent);
            if self.tapped.is_some() {
                self.show(run, 0..sent, Role::Nat);
            }
        }
        let reason = match taken {
            Some(_) => DropReason::TcpFull,
            None => DropReason::NotConnected,
        };
        self.dropped(run, sent..run.count, reason);
    }

    fn sent(&self, run: &Run, packets: Range<usize>) {
        for (child, packets) in self.train.children(run, packets.clone()) {
            let (count, bytes) = (packets.len(), self.train.inner_bytes(run, packets));
            child.traffic.sent(count, bytes);
            child.last_outbound.set(self.unix_ms);
        }
        let (count, bytes) = (packets.len(), self.train.inner_bytes(run, packets));
        self.shared.traffic.sent(count, bytes);
    }

    fn dropped(&self, run: &Run, packets: Range<usize>, reason: DropReason) {
        for (child, packets) in self.train.children(run, packets) {
            child.dropped_many(reason, packets.len(), &self.shared.traffic);
        }
    }

    /// Captures what was sent, by a socket with this role or by TCP.
    fn show(&self, run: &Run, packets: Range<usize>, role: Role) {
        let (local, by) = match run.to.exit {
            Exit::Tcp(ends, end) => (ends.local, Some(Transport::Tcp(end))),
            Exit::Socket(_) => {
                let local = SocketAddr::new(run.to.local, self.shared.config.nat_port);
                (local, (role == Role::Nat).then_some(Transport::Udp))
            }
        };
        let (ends, class) = ((local, run.to.remote), run.to.traffic_class);
        for (child, packets) in self.train.children(run, packets) {
            for packet in packets.map(|i| self.train.bytes(run, i..i + 1)) {
                self.tapped.sent(child.spi_in, ends, class, by, packet);
            }
        }
    }

    /// A packet did not leave.
    fn lost(&self, run: &Run, packet: usize, error: &io::Error) {
        let reason = if error.raw_os_error() == Some(libc::EMSGSIZE) {
            // A router reported a smaller MTU since we asked. The packet is encrypted in its place, so it is lost; its sender
            // learns of the limit with the next one.
            for (child, _) in self.train.children(run, packet..packet + 1) {
                self.shared.paths.forget(&child.path.load());
            }
            DropReason::TooBig
        } else {
            tracing::debug!(to = %run.to.remote, %error, "cannot send ESP");
            if run.to.hop.is_some() {
                // The interface is down, or gone.
                for (child, _) in self.train.children(run, packet..packet + 1) {
                    child.path.load().way.forget();
                }
            }
            DropReason::SendFailed
        };
        self.dropped(run, packet..packet + 1, reason);
    }
}
