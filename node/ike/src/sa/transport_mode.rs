//! Transport mode (RFC 7296 §1.3.1), and what NATs mean for it (§2.23.1).
//!
//! It is asked for and agreed to where the configuration has it and the Child SA is between the two ends themselves. In all other cases the Child SA is a
//! tunnel, as swanctl has it. Each end says selectors with the addresses that it has in its packets; who hears them puts those in their place that it has
//! itself, and keeps the others for the checksums.

use super::{
    Failure,
    turn::{Turn, find_notify, notify},
};
use crate::{
    config::{self, ChildConfig},
    record::{Child, ChildOffer, Mode, Path, Seen},
    selector::narrow,
    wire::{NotifyType, Payload, TrafficSelector},
};
use std::net::IpAddr;

/// What a Child SA carries: our side's traffic, and the peer's.
pub(super) type Sides = (Vec<TrafficSelector>, Vec<TrafficSelector>);

/// The notify that asks for transport mode, and agrees to it.
pub(super) fn payload() -> Payload {
    notify(NotifyType::USE_TRANSPORT_MODE, Vec::new())
}

/// Whether a message says so.
fn is_said(payloads: &[Payload]) -> bool {
    find_notify(payloads, NotifyType::USE_TRANSPORT_MODE).is_some()
}

impl Turn<'_, '_> {
    /// Whether to ask for transport mode: for a new Child SA if the configuration has it, for one in the place of another if that has it.
    pub(super) fn asks_for_transport(
        &self,
        config: &ChildConfig,
        old: Option<&Child>,
        (local, remote): (&[TrafficSelector], &[TrafficSelector]),
    ) -> bool {
        let wanted = match old {
            Some(old) => old.mode != Mode::Tunnel,
            None => config.mode == config::Mode::Transport,
        };
        wanted && between_hosts(&self.record.path, local, remote)
    }

    /// What to offer in place of a Child SA: what it carries. If that is between two hosts one of which has another address by now, it is between the
    /// new addresses.
    pub(super) fn offered_again(&mut self, config: &ChildConfig, old: &Child) -> Sides {
        let path = self.record.path;
        if old.mode != Mode::Tunnel && !between_hosts(&path, &old.local_ts, &old.remote_ts) {
            return self.allowed_selectors(config);
        }
        (old.local_ts.clone(), old.remote_ts.clone())
    }

    /// What the peer's answer to our offer says of the mode, and the selectors with our own addresses in them.
    pub(super) fn agreed_mode(
        &self,
        offer: &ChildOffer,
        payloads: &[Payload],
        (ours, theirs): (&[TrafficSelector], &[TrafficSelector]),
    ) -> Result<(Mode, Sides), Failure> {
        match (offer.transport, is_said(payloads)) {
            (_, false) => Ok((Mode::Tunnel, (ours.to_vec(), theirs.to_vec()))),
            (true, true) => substituted(&self.record.path, ours, theirs)
                .map(|(seen, sides)| (Mode::Transport(seen), sides))
                .ok_or(Failure::NoSelectors),
            (false, true) => Err(Failure::Invalid(
                "it has transport mode, which was not asked for",
            )),
        }
    }

    /// What becomes of the peer's request for transport mode on this configuration; `None` if it is a tunnel.
    pub(super) fn grants_transport(
        &mut self,
        config: &ChildConfig,
        payloads: &[Payload],
        (ours, theirs): (&[TrafficSelector], &[TrafficSelector]),
    ) -> Option<(Seen, Sides)> {
        if config.mode != config::Mode::Transport || !is_said(payloads) {
            return None;
        }
        let path = self.record.path;
        let (seen, (ours, theirs)) = substituted(&path, ours, theirs)?;
        let (local, remote) = self.allowed_selectors(config);
        let (local, remote) = (narrow(&ours, &local), narrow(&theirs, &remote));
        between_hosts(&path, &local, &remote).then_some((seen, (local, remote)))
    }
}

/// What the peer says of an SA in transport mode, with our own addresses in it; `None` if it is not between two hosts.
fn substituted(
    path: &Path,
    ours: &[TrafficSelector],
    theirs: &[TrafficSelector],
) -> Option<(Seen, Sides)> {
    let seen = Seen {
        local: only_address(ours)?,
        remote: only_address(theirs)?,
    };
    // Only a NAT is a reason: without one, an address that is not that of the IKE SA is somebody else's.
    let place = |all: &[TrafficSelector], nat: bool, address: IpAddr| {
        let mut all = all.to_vec();
        for ts in all.iter_mut().filter(|_| nat) {
            (ts.start, ts.end) = (address, address);
        }
        all
    };
    let ours = place(ours, path.nat_local, path.local.ip());
    let theirs = place(theirs, path.nat_remote, path.remote.ip());
    Some((seen, (ours, theirs)))
}

/// The one address that all these selectors have.
fn only_address(all: &[TrafficSelector]) -> Option<IpAddr> {
    let address = all.first()?.start;
    let same = |ts: &TrafficSelector| ts.start == address && ts.end == address;
    all.iter().all(same).then_some(address)
}

/// Whether this is traffic between the two ends of the IKE SA.
fn between_hosts(path: &Path, local: &[TrafficSelector], remote: &[TrafficSelector]) -> bool {
    only_address(local) == Some(path.local.ip()) && only_address(remote) == Some(path.remote.ip())
}
