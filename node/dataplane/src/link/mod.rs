//! Plain ESP by packet sockets, on interfaces that are named for it.
//!
//! A raw socket takes each packet through all of IP: rules and routes, netfilter, the neighbour; and on the other side again. In both directions that costs more than all
//! else that is done with a packet. A packet socket hands it to the interface, and is handed what the interface received. What IP would have done has then to be done
//! here ([`header`], [`hop`]), and some of it is not: firewall rules of IP do not see these packets. So it is done where the operator asks for it.
//!
//! Ways are the kernel's: it is asked for route and neighbour of each path, and tells when any of them changes ([`watch`]). Where it has no plain answer (there is no neighbour yet, the route
//! leads elsewhere, the packet may be fragmented) a packet goes by the raw socket as ever. The `egress` hook of the [`DeadMan`](crate::DeadMan) sees what leaves here, too.

mod aside;
mod header;
mod hop;
mod watch;

use crate::{PlaneConfig, PlaneError, netlink::refused, path::Path};
use arc_swap::{ArcSwap, ArcSwapOption};
use aside::Aside;
use evergate_esp::protocol;
pub(crate) use header::{Header, V4, V6, parse};
use hop::Asker;
pub(crate) use hop::Hop;
use socket2::SockFilter;
use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
pub(crate) use watch::Watch;

/// The kernel is asked for the way of a path again after so long, in milliseconds, whether or not it told of a change...
const LIFETIME: u64 = 5_000;
/// ... and not sooner than after this, however much changes.
const AT_MOST_EVERY: u64 = 100;

/// An interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) index: u32,
    /// As it was when the plane started: longer packets come, too, but cost more.
    pub(crate) mtu: u32,
    is_bridge: bool,
}

/// The interfaces on which plain ESP goes by packet sockets, and what is known of ways by them.
pub(crate) struct Links {
    devices: Vec<Device>,
    /// Grows whenever a way may have changed.
    round: AtomicU64,
    /// Our addresses.
    locals: ArcSwap<HashSet<IpAddr>>,
    asker: Mutex<Asker>,
    /// When all paths were last looked at again, in milliseconds since the plane started.
    looked: AtomicU64,
    /// For as long as there are packet sockets.
    _aside: Aside,
}

/// What is known of the way of a path.
#[derive(Debug, Default)]
pub(crate) struct Way(ArcSwapOption<Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    hop: Option<Hop>,
    round: u64,
    /// When it was asked for, in milliseconds since the plane started.
    asked: u64,
}

impl Links {
    /// Looks the interfaces up, in the network namespace of the calling thread. `None` if there are none to look up.
    pub(crate) fn open(config: &PlaneConfig) -> Result<Option<Self>, PlaneError> {
        if config.link_devices.is_empty() {
            return Ok(None);
        }
        let mut asker = Asker::open(config.mark).map_err(|e| refused("open netlink socket", e))?;
        let mut devices = Vec::new();
        for name in &config.link_devices {
            let index = nix::net::if_::if_nametoindex(name.as_str()).map_err(io::Error::from);
            let what = format!("send and receive on interface {name}");
            let device = index.and_then(|index| asker.ethernet(index));
            devices.push(device.map_err(|e| refused(&what, e))?);
        }
        let aside = Aside::make(&format!("{}-link", config.tun_name), &devices);
        let aside = aside.map_err(|e| refused("take plain ESP away from IP", e))?;
        let links = Self {
            devices,
            looked: AtomicU64::new(0),
            _aside: aside,
            round: AtomicU64::new(0),
            locals: ArcSwap::default(),
            asker: Mutex::new(asker),
        };
        links.changed();
        let names = &config.link_devices;
        tracing::info!(
            ?names,
            "plain ESP goes by packet sockets on these interfaces"
        );
        Ok(Some(links))
    }

    /// The interfaces.
    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Something in the host's network has changed.
    fn changed(&self) {
        match self.asker().locals() {
            Ok(locals) => self.locals.store(Arc::new(locals)),
            Err(error) => tracing::warn!(%error, "which addresses are ours is as before"),
        }
        self.round.fetch_add(1, Ordering::Release);
    }

    /// Whether an address is one of this host's.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        self.locals.load().contains(&address)
    }

    /// Whether it was long enough ago that all paths were looked at again; if so, that is now.
    pub(crate) fn may_look_again(&self, now: u64) -> bool {
        let before = self.looked.load(Ordering::Relaxed);
        let since = now.saturating_sub(before);
        since >= AT_MOST_EVERY
            && self
                .looked
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// The next hop of a path at `now` milliseconds since the plane started, if it is by one of the interfaces.
    pub(crate) fn hop(&self, path: &Path, now: u64) -> Option<Hop> {
        let round = self.round.load(Ordering::Acquire);
        let known = path.way.0.load();
        if let Some(known) = known.as_deref().filter(|k| k.holds(round, now)) {
            return known.hop;
        }
        let (from, to) = (path.outer.local.ip(), path.outer.remote.ip());
        let hop = self.asker().hop(from, to).unwrap_or_else(|error| {
            tracing::debug!(%to, %error, "the next hop is not known");
            None
        });
        let hop = hop.filter(|hop| self.devices.iter().any(|d| d.index == hop.device));
        let asked = now;
        path.way
            .0
            .store(Some(Arc::new(Known { hop, round, asked })));
        hop
    }

    /// Every operation leaves it whole.
    fn asker(&self) -> MutexGuard<'_, Asker> {
        self.asker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Way {
    /// It did not work: the kernel is asked for another, after a while.
    pub(crate) fn forget(&self) {
        if let Some(known) = self.0.load().as_deref() {
            let known = Known {
                hop: None,
                ..*known
            };
            self.0.store(Some(Arc::new(known)));
        }
    }
}

impl Known {
    /// Whether it is believed at this time.
    fn holds(self, round: u64, now: u64) -> bool {
        let age = now.saturating_sub(self.asked);
        age < AT_MOST_EVERY || self.round == round && age < LIFETIME
    }
}

/// The Ethernet type of an IP version.
pub(crate) fn ethertype(ipv4: bool) -> u16 {
    if ipv4 { 0x0800 } else { 0x86dd }
}

/// What a packet socket lets through: packets for this host that [`parse`] takes.
pub(crate) fn filter(ipv4: bool) -> Vec<SockFilter> {
    let op = |code: u32, yes, no, k| SockFilter::new(u16::try_from(code).unwrap_or(0), yes, no, k);
    let network = |at: u32| libc::SKF_NET_OFF.cast_unsigned() + at;
    let byte = |at| op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
    // Or it goes no further.
    let is = |value| {
        [
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, value),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ]
    };
    let kind = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    let mut program = vec![byte(kind)];
    program.extend(is(u32::from(libc::PACKET_HOST)));
    let esp = u32::from(protocol::ESP);
    if ipv4 {
        program.push(byte(network(0)));
        program.extend(is(0x45));
        program.push(byte(network(9)));
        program.extend(is(esp));
        program.push(op(
            libc::BPF_LD | libc::BPF_H | libc::BPF_ABS,
            0,
            0,
            network(6),
        ));
        program.push(op(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            0,
            0,
            0x3fff,
        ));
        program.extend(is(0));
    } else {
        program.push(byte(network(6)));
        program.extend(is(esp));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_asked_for_again_when_something_changes_and_now_and_then_but_not_all_the_time() {
        let known = Known {
            hop: None,
            round: 7,
            asked: 10_000,
        };
        assert!(known.holds(7, 10_000 + LIFETIME - 1));
        assert!(!known.holds(7, 10_000 + LIFETIME));
        assert!(known.holds(8, 10_000 + AT_MOST_EVERY - 1));
        assert!(!known.holds(8, 10_000 + AT_MOST_EVERY));
    }
}
