//! What the kernel tells by itself, and what is due.

use super::{
    Shared,
    child::Child,
    children::Children,
    flows::address,
    policies,
    states::{StateId, Told},
    trap,
};
use crate::{DropReason, PlaneEvent, Transport, counters::RateLimit, rtnl};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_xfrm::{
    UserMapping, XFRMNLGRP_ACQUIRE, XFRMNLGRP_AEVENTS, XFRMNLGRP_EXPIRE, XFRMNLGRP_MAPPING,
    XfrmAttrs, XfrmMessage,
};
use netlink_sys::{Socket, protocols::NETLINK_XFRM};
use std::{
    io, net,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Room for events, in bytes: those of many SAs that receive at once.
const BUFFER: i32 = 4 << 20;
/// So many are taken in before something else has its turn.
const AT_ONCE: usize = 1024;
/// How often it is looked for what is due.
const SWEEP: Duration = Duration::from_millis(100);

/// The thread that listens to the kernel.
pub(super) struct Monitor {
    shared: Arc<Shared>,
    socket: Socket,
    limit: RateLimit,
    /// The trap that is set, and whether it has told of something.
    armed: (u32, bool),
}

impl Monitor {
    /// Begins to listen, in the network namespace of the calling thread.
    pub(super) fn open(shared: Arc<Shared>) -> io::Result<Self> {
        let groups = [
            XFRMNLGRP_ACQUIRE,
            XFRMNLGRP_EXPIRE,
            XFRMNLGRP_AEVENTS,
            XFRMNLGRP_MAPPING,
        ];
        let socket = rtnl::listen(NETLINK_XFRM, &groups)?;
        // Without the privilege it is what the kernel gives.
        let _ = crate::sys::set_option(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            BUFFER,
        );
        Ok(Self {
            shared,
            socket,
            limit: RateLimit::new(Instant::now()),
            armed: (0, true),
        })
    }

    /// Runs until the plane stops.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let due = shared.children().next_due().unwrap_or(SWEEP).min(SWEEP);
            let Some(ready) = shared.stop.wait(&[&self.socket.as_fd()], Some(due)) else {
                return;
            };
            if ready != 0 {
                self.read();
            }
            let mut children = shared.children();
            self.arm_again(&mut children);
            children.look_at_gates(crate::boot_time());
            children.sweep(Instant::now());
            tell_needs(&shared, &mut children);
        }
    }

    /// What the trap has told of it can tell of again.
    fn arm_again(&mut self, children: &mut Children) {
        let number = trap::number(crate::boot_time());
        let (before, sprung) = self.armed;
        if !sprung || before == number {
            return;
        }
        match children.arm(number) {
            Ok(()) => self.armed = (number, false),
            Err(error) => tracing::warn!(%error, "packets without Child SAs are not told of"),
        }
    }

    fn read(&mut self) {
        for _ in 0..AT_ONCE {
            match self.socket.recv_from_full() {
                Ok((datagram, from)) if from.port_number() == 0 => self.datagram(&datagram),
                // Not from the kernel.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "lost what the kernel told; asking");
                    return self.look_at_all();
                }
            }
        }
    }

    fn datagram(&mut self, datagram: &[u8]) {
        let Ok(NetlinkMessage {
            payload: NetlinkPayload::InnerMessage(message),
            ..
        }) = NetlinkMessage::<XfrmMessage>::deserialize(datagram)
        else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        match message {
            XfrmMessage::NewAsyncEvent(event) => {
                let mut told = Told::default();
                told.read(&event.nlas);
                let id = StateId::of(&event.id.sa_id);
                received(&mut shared.children(), id, &told);
            }
            XfrmMessage::Expire(event) => {
                let told = Told::of(&event.expire.state, &mut []);
                let id = StateId::of_info(&event.expire.state);
                expired(&mut shared.children(), id, &told, event.expire.hard != 0);
            }
            XfrmMessage::Mapping(event) => self.moved(&event.map),
            XfrmMessage::Acquire(event) => {
                let ours = event.nlas.iter().any(|a| match a {
                    XfrmAttrs::Template(templates) => {
                        templates.iter().any(|t| trap::is_trap(t.reqid))
                    }
                    _ => false,
                });
                if ours {
                    self.armed.1 = true;
                    self.trapped(&event.acquire.selector);
                }
            }
            _ => {}
        }
    }

    /// A packet for which there is no Child SA.
    fn trapped(&mut self, selector: &netlink_packet_xfrm::Selector) {
        let (src, dst, protocol, ports) = policies::packet_of(selector);
        self.shared.traffic.dropped(DropReason::NoChild);
        if self.limit.admit((src, dst, protocol), Instant::now()) {
            // Advisory: the next packet tells again, once the kernel has forgotten this one.
            let _ = self.shared.events.tell(PlaneEvent::NoChild {
                src,
                dst,
                protocol,
                ports,
            });
        }
    }

    /// An authentic packet came in UDP from elsewhere.
    fn moved(&mut self, mapping: &UserMapping) {
        let new = address(&mapping.new_saddr, mapping.id.family);
        let remote = net::SocketAddr::new(new, mapping.new_sport);
        let spi_in = mapping.id.spi;
        let mut children = self.shared.children();
        let child = children.get_mut(spi_in);
        let is_it = |c: &&mut Child| StateId::inbound(&c.sa) == StateId::of(&mapping.id);
        let Some(child) = child.filter(is_it) else {
            return;
        };
        if remote == child.sa.outer.remote || child.seen.replace(remote) == Some(remote) {
            return;
        }
        drop(children);
        // Advisory: it is told again when the peer is seen elsewhere again.
        let _ = self.shared.events.tell(PlaneEvent::PeerMoved {
            spi_in,
            remote,
            transport: Transport::Udp,
        });
    }

    /// What was told was lost: the states know it, too.
    fn look_at_all(&mut self) {
        let mut children = self.shared.children();
        let all = match children.kernel.states() {
            Ok(all) => all,
            Err(error) => {
                tracing::error!(%error, "cannot ask the kernel for states");
                return;
            }
        };
        let mut there = std::collections::HashSet::new();
        for (id, told) in all {
            there.insert(id);
            match children.sender(id) {
                Some(_) => expired(&mut children, id, &told, false),
                None => received(&mut children, id, &told),
            }
        }
        let gone: Vec<u32> = children
            .iter()
            .filter(|(_, c)| c.outbound.is_there && !there.contains(&StateId::outbound(&c.sa)))
            .map(|(spi, _)| spi)
            .collect();
        for spi_in in gone {
            exhausted(&mut children, spi_in, &Told::default());
        }
    }
}

/// A receiving state has received something.
fn received(children: &mut Children, id: StateId, told: &Told) {
    let spi_in = id.spi;
    let child = children.get_mut(spi_in);
    let Some(child) = child.filter(|c| StateId::inbound(&c.sa) == id) else {
        return;
    };
    child.edge = child.edge.max(told.edge);
    if !note_inbound(child, told.packets) {
        return;
    }
    if let Err(error) = children.bring_forward(spi_in) {
        tracing::warn!(spi_in = format_args!("{spi_in:08x}"), %error, "cannot change who sends");
    }
}

/// Notes when a Child SA has last received something, by how much it has; whether that is more than before.
pub(super) fn note_inbound(child: &mut Child, packets: u64) -> bool {
    let more = packets > child.packets_then;
    if more {
        child.packets_then = packets;
        child.last_inbound = Some(SystemTime::now());
    }
    more
}

/// A sending state has reached a limit.
fn expired(children: &mut Children, id: StateId, told: &Told, hard: bool) {
    let Some(spi_in) = children.sender(id) else {
        return;
    };
    if hard {
        return exhausted(children, spi_in, told);
    }
    let Some(child) = children.get_mut(spi_in) else {
        return;
    };
    child.last_outbound = Some(SystemTime::now());
    child.numbers.measure(told.packets, Instant::now());
    let soft = child.numbers.limits().map_or(0, |l| l.soft);
    if told.packets >= soft {
        children.need(spi_in);
    }
}

fn exhausted(children: &mut Children, spi_in: u32, told: &Told) {
    if let Err(error) = children.exhausted(spi_in, told) {
        tracing::warn!(spi_in = format_args!("{spi_in:08x}"), %error, "cannot change who sends");
    }
}

/// Asks for numbers. What the queue has no room for is asked for again.
fn tell_needs(shared: &Shared, children: &mut Children) {
    children.tell_needs(|spi_in, remaining, rate| {
        shared.events.tell(PlaneEvent::LowReservation {
            spi_in,
            remaining,
            rate,
        })
    });
}
