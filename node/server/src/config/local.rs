//! What is not replicated: the member, its data plane, its limits.

use super::{
    document::{Dataplane, Document, Limits, Member, PlaneKind},
    validate::Check,
};
use std::{ops::RangeInclusive, time::Duration};
use toml::Spanned;

/// What the MTU of the TUN device may be: IPv6 needs 1280 (RFC 8200 §5).
const MTU: RangeInclusive<u16> = 1280..=65_000;
/// How long a half-open IKE SA may wait for IKE_AUTH.
const HALF_OPEN_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);
/// Longest name of a network device, in bytes (IFNAMSIZ without its end).
const MAX_DEVICE_NAME: usize = 15;
/// Each has two sockets for each worker.
const MAX_LINK_DEVICES: usize = 16;
/// Most workers that can be asked for.
const MAX_WORKERS: usize = 256;

impl Check<'_> {
    /// The parts that are not replicated.
    pub(super) fn local(&mut self, document: &Document) {
        if let Some(member) = &document.member {
            self.member(member);
        }
        if let Some(dataplane) = &document.dataplane {
            let member = document.member.as_ref().map(Spanned::get_ref);
            self.dataplane(dataplane, member);
        }
        if let Some(limits) = &document.limits {
            self.limits(limits);
        }
    }

    fn member(&mut self, member: &Spanned<Member>) {
        let (span, m) = (member.span(), member.get_ref());
        self.name(&Spanned::new(span.clone(), m.name.clone()), "member");
        if m.ike_port == m.nat_port {
            self.error(
                span.clone(),
                "ike_port and nat_port are the same, expected two ports",
            );
        }
        if m.workers.is_some_and(|w| !(1..=MAX_WORKERS).contains(&w)) {
            let what = format!("workers is out of range, expected 1 to {MAX_WORKERS}");
            self.error(span, what);
        }
    }

    fn dataplane(&mut self, dataplane: &Spanned<Dataplane>, member: Option<&Member>) {
        let (span, d) = (dataplane.span(), dataplane.get_ref());
        if d.mark.0.value == 0 {
            let what = "mark must not be zero: that is the mark of all other packets";
            self.error(span.clone(), what);
        }
        if d.kind == PlaneKind::Xfrm && member.is_some_and(|m| m.listen_tcp) {
            let what = "kind is xfrm, but listen_tcp is set: the kernel's data plane has no TCP";
            self.error(span.clone(), what);
        }
        if d.kind == PlaneKind::Xfrm && !d.link_devices.is_empty() {
            let what = "kind is xfrm, but link_devices is set: the kernel's data plane has no packet sockets";
            self.error(span.clone(), what);
        }
        if d.link_devices.len() > MAX_LINK_DEVICES {
            let what = format!("link_devices has too many, expected up to {MAX_LINK_DEVICES}");
            self.error(span.clone(), what);
        }
        for name in d.link_devices.iter().filter(|name| !is_device(name)) {
            let what = format!(
                "link_devices: {name:?} is not the name of a device, expected up to {MAX_DEVICE_NAME} characters"
            );
            self.error(span.clone(), what);
        }
        if !is_device(&d.tun) {
            let what = format!(
                "tun is not the name of a device, expected up to {MAX_DEVICE_NAME} characters"
            );
            self.error(span.clone(), what);
        }
        if !MTU.contains(&d.mtu) {
            let (low, high) = (MTU.start(), MTU.end());
            let what = format!("mtu is out of range, expected {low} to {high}");
            self.error(span.clone(), what);
        }
        if !(1..=evergate_dataplane::MAX_WORKERS).contains(&d.workers) {
            let most = evergate_dataplane::MAX_WORKERS;
            let what = format!("workers is out of range, expected 1 to {most}");
            self.error(span, what);
        }
    }

    fn limits(&mut self, limits: &Spanned<Limits>) {
        if !HALF_OPEN_TIMEOUT.contains(&limits.get_ref().half_open_timeout.0) {
            let (low, high) = (HALF_OPEN_TIMEOUT.start(), HALF_OPEN_TIMEOUT.end());
            let what = format!("half_open_timeout is out of range, expected {low:?} to {high:?}");
            self.error(limits.span(), what);
        }
        if limits.get_ref().half_open == 0 {
            let what = "half_open is zero, expected how many half-open IKE SAs there may be";
            self.error(limits.span(), what);
        }
    }
}

/// Whether the kernel takes a name for a device (`dev_valid_name`).
fn is_device(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    !name.is_empty() && name.len() <= MAX_DEVICE_NAME && name.chars().all(fits)
}
