//! NAT detection (RFC 7296 §2.23).

use super::turn::{find_notify, notify};
use crate::{
    env::Entropy,
    wire::{Header, Notify, NotifyType, Payload},
};
use aws_lc_rs::digest;
use std::net::{IpAddr, SocketAddr};

/// SHA-1 over SPIs, address and port, as the RFC fixes it; nothing rests on its strength.
fn hash(spi_i: u64, spi_r: u64, address: SocketAddr) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(&spi_i.to_be_bytes());
    context.update(&spi_r.to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => context.update(&ip.octets()),
        IpAddr::V6(ip) => context.update(&ip.octets()),
    }
    context.update(&address.port().to_be_bytes());
    context.finish().as_ref().to_vec()
}

/// The two notifies of our message with this header. With `pretend`, the source is made not to match, so that the peer sees a NAT.
pub(super) fn notifies(
    header: &Header,
    local: SocketAddr,
    remote: SocketAddr,
    pretend: bool,
    rng: &mut dyn Entropy,
) -> [Payload; 2] {
    let mut source = hash(header.initiator_spi, header.responder_spi, local);
    if pretend {
        rng.fill(&mut source);
    }
    let destination = hash(header.initiator_spi, header.responder_spi, remote);
    [
        notify(NotifyType::NAT_DETECTION_SOURCE_IP, source),
        notify(NotifyType::NAT_DETECTION_DESTINATION_IP, destination),
    ]
}

/// Whether the peer looks for NATs at all.
pub(super) fn supported(payloads: &[Payload]) -> bool {
    find_notify(payloads, NotifyType::NAT_DETECTION_DESTINATION_IP).is_some()
}

/// What the peer's message says of NATs: in front of us, and in front of the peer.
pub(super) fn detect(
    header: &Header,
    payloads: &[Payload],
    local: SocketAddr,
    remote: SocketAddr,
) -> (bool, bool) {
    let sources: Vec<&Notify> = payloads
        .iter()
        .filter_map(|p| match p {
            Payload::Notify(n) if n.kind == NotifyType::NAT_DETECTION_SOURCE_IP => Some(n),
            _ => None,
        })
        .collect();
    let ours = hash(header.initiator_spi, header.responder_spi, local);
    let theirs = hash(header.initiator_spi, header.responder_spi, remote);
    let nat_local = find_notify(payloads, NotifyType::NAT_DETECTION_DESTINATION_IP)
        .is_some_and(|n| n.data != ours);
    // A peer with several addresses may send several: one that matches is enough.
    let nat_remote = !sources.is_empty() && sources.iter().all(|n| n.data != theirs);
    (nat_local, nat_remote)
}
