//! Which policies the kernel finds by a hash, and which it searches for.
//!
//! Linux hashes a policy if its prefixes are at least as long as two thresholds of the network namespace: one for our side, one for that of peers. At
//! first they are those of single addresses. Where one side is a prefix, as behind every concentrator, each policy that is set is
//! compared with all the others then (`xfrm_policy_insert_inexact_list`, Linux before 6.12), so many cost with the square of their number.
//! With a threshold of nothing for our side those of single peers are hashed. What a packet meets is the same either way.

use super::kernel::Kernel;
use netlink_packet_xfrm::policy::{SpdHThresh, SpdInfoAttrs};
use std::io;

/// The thresholds of one IP version, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    /// Of the source where packets are sent, of the destination where they are received.
    pub(super) local: u8,
    /// Of the other side.
    pub(super) remote: u8,
}

/// Those of IPv4 and of IPv6.
pub(super) type OfVersions = (Thresholds, Thresholds);

/// What a namespace begins with.
const INITIAL: OfVersions = (Thresholds::both(32), Thresholds::both(128));
/// What serves many peers.
const MANY_PEERS: OfVersions = (
    Thresholds {
        local: 0,
        remote: 32,
    },
    Thresholds {
        local: 0,
        remote: 128,
    },
);

impl Thresholds {
    const fn both(bits: u8) -> Self {
        Self {
            local: bits,
            remote: bits,
        }
    }
}

/// Has policies of single peers hashed, unless somebody has chosen thresholds already: those belong to all who set policies here.
pub(super) fn choose(kernel: &mut Kernel) -> io::Result<()> {
    match kernel.thresholds()? {
        Some(INITIAL) => kernel.set_thresholds(MANY_PEERS),
        // The kernel has none, or a former process has set them.
        None | Some(MANY_PEERS) => Ok(()),
        Some(found) => {
            tracing::info!(
                ?found,
                "somebody has chosen which policies the kernel hashes"
            );
            Ok(())
        }
    }
}

/// What the kernel says of them.
pub(super) fn told(attributes: &[SpdInfoAttrs]) -> Option<OfVersions> {
    let of = |t: &SpdHThresh| Thresholds {
        local: t.lbits,
        remote: t.rbits,
    };
    let ipv4 = attributes.iter().find_map(|a| match a {
        SpdInfoAttrs::SpdIpv4HThresh(t) => Some(of(t)),
        _ => None,
    });
    let ipv6 = attributes.iter().find_map(|a| match a {
        SpdInfoAttrs::SpdIpv6HThresh(t) => Some(of(t)),
        _ => None,
    });
    ipv4.zip(ipv6)
}

/// What the kernel is told.
pub(super) fn telling((ipv4, ipv6): OfVersions) -> Vec<SpdInfoAttrs> {
    let of = |t: Thresholds| SpdHThresh {
        lbits: t.local,
        rbits: t.remote,
    };
    vec![
        SpdInfoAttrs::SpdIpv4HThresh(of(ipv4)),
        SpdInfoAttrs::SpdIpv6HThresh(of(ipv6)),
    ]
}
