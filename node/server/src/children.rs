//! Child SAs on their way from records to the data plane.

use crate::shared::Shared;
use evergate_cluster::Plant;
use evergate_dataplane::{
    ChildSa, Ends, HeaderPolicy, Mark, Marks, Mode, Offload, Outer, PlaneError, Selector,
    local_address_within,
};
use evergate_ike::{
    config::{self, HeaderCopy, HwOffload},
    record::{self, Child, Fate, Path},
    wire::TrafficSelector,
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use zeroize::Zeroizing;

/// The anti-replay window of a Child SA that the policy does not know any more, in packets.
const DEFAULT_WINDOW: u32 = 1024;

/// How long a Child SA that the peer asked for leaves the sending to an older one for the same traffic: until the peer uses it, or deletes the other, there is
/// no telling whether it has it (make before break).
const GIVES_WAY: Duration = Duration::from_secs(10);

/// No sequence numbers at all.
const NOTHING: std::ops::Range<u64> = 1..1;

/// Makes the data plane's pair of SAs what the record says.
///
/// # Errors
/// What the plane refuses.
pub(crate) fn install(
    shared: &Shared,
    child: &Child,
    path: &Path,
    connection: &str,
) -> Result<(), PlaneError> {
    let outbound_active = child.fate == Fate::Live;
    if shared.plane.stats(child.spi_in).is_some() {
        return shared.plane.set_outbound(child.spi_in, outbound_active);
    }
    // Only numbers of our own epoch: another process that has the gateway by now uses others.
    let reservation = shared.read(|state| state.reservation_in(child.spi_in, shared.epoch));
    let first = Plant::Reservation.is_there().then_some(1..1 << 16);
    let reservation = first.or(reservation);
    let policy = shared.policy.load();
    let config = policy
        .connection(connection)
        .and_then(|c| c.child(&child.name));
    // What not all planes can do is left out of the policy that is negotiated by, but an SA that there is must not lose it without a word.
    let (marks, offload) = shared.read(|state| {
        let connection = state.policy().connection(connection);
        let wanted = connection.and_then(|c| c.child(&child.name));
        wanted.map_or_else(Default::default, |c| {
            (marks(c.marks), offload(c.hw_offload))
        })
    });
    let local_ts = selectors(&child.local_ts);
    shared
        .protection
        .hold(&shared.plane, child.spi_in, &child.remote_ts);
    #[cfg(feature = "drills")]
    crate::keylog::child(child, path);
    if Plant::Log.is_there() {
        tracing::info!("child {:02x?}", child.key_out.expose());
    }
    shared.plane.install(ChildSa {
        spi_in: child.spi_in,
        spi_out: child.spi_out,
        cipher: child.suite.cipher(),
        key_in: Zeroizing::new(child.key_in.expose().to_vec()),
        key_out: Zeroizing::new(child.key_out.expose().to_vec()),
        esn: child.suite.esn,
        replay_window: config.map_or(DEFAULT_WINDOW, |c| c.replay_window),
        replay_edge: shared.read(|state| state.received(child.spi_in)),
        mode: mode(child),
        outer: outer(path),
        source_hint: source_hint(&local_ts),
        local_ts,
        remote_ts: selectors(&child.remote_ts),
        outbound_active,
        gives_way: gives_way(shared, child),
        reservation: reservation.unwrap_or(NOTHING),
        headers: config.map_or_else(HeaderPolicy::default, |c| headers(c.headers)),
        marks,
        offload,
        gate: Arc::clone(&shared.gate),
    })
}

/// What crosses between headers, as the plane wants it.
fn headers(copied: HeaderCopy) -> HeaderPolicy {
    let HeaderCopy {
        dscp_out,
        dscp_in,
        ecn,
        df,
    } = copied;
    HeaderPolicy {
        dscp_out,
        dscp_in,
        ecn,
        df,
    }
}

/// Firewall marks, as the plane wants them.
fn marks(wanted: config::Marks) -> Marks {
    let mark = |m: config::Mark| Mark {
        value: m.value,
        mask: m.mask,
    };
    Marks {
        inbound: mark(wanted.mark_in),
        outbound: mark(wanted.mark_out),
        set_inbound: mark(wanted.set_mark_in),
        set_outbound: mark(wanted.set_mark_out),
    }
}

fn offload(wanted: HwOffload) -> Offload {
    match wanted {
        HwOffload::No => Offload::No,
        HwOffload::Auto => Offload::Auto,
        HwOffload::Crypto => Offload::Crypto,
    }
}

/// How a Child SA carries packets, as the plane wants it. In transport mode the selectors have the addresses of the ends.
fn mode(child: &Child) -> Mode {
    match (child.mode, &child.local_ts[..], &child.remote_ts[..]) {
        (record::Mode::Transport(seen), [local, ..], [remote, ..]) => Mode::Transport(Ends {
            local: local.start,
            remote: remote.start,
            local_there: seen.local,
            remote_there: seen.remote,
        }),
        _ => Mode::Tunnel,
    }
}

/// How long a Child SA still leaves the sending to others.
fn gives_way(shared: &Shared, child: &Child) -> Duration {
    match child.initiated {
        true => Duration::ZERO,
        false => GIVES_WAY.saturating_sub(shared.clock.now().since(child.created)),
    }
}

/// Takes a Child SA out of the data plane.
///
/// # Errors
/// If it is not there.
pub(crate) fn remove(shared: &Shared, spi_in: u32, grace: Duration) -> Result<(), PlaneError> {
    let removed = shared.plane.remove(spi_in, grace);
    shared.protection.release(&shared.plane, spi_in);
    removed
}

/// Outer addresses as the plane wants them.
pub(crate) fn outer(path: &Path) -> Outer {
    Outer {
        local: path.local,
        remote: path.remote,
        encapsulation: crate::transport::encapsulation(path),
    }
}

fn selectors(ts: &[TrafficSelector]) -> Vec<Selector> {
    let convert = |t: &TrafficSelector| Selector {
        protocol: t.protocol,
        start_port: t.start_port,
        end_port: t.end_port,
        start: t.start,
        end: t.end,
    };
    ts.iter().map(convert).collect()
}

/// The address of this host that its own packets into the tunnel have, if one lies within our side's selectors.
fn source_hint(local_ts: &[Selector]) -> Option<IpAddr> {
    local_address_within(local_ts, false).or_else(|| local_address_within(local_ts, true))
}
