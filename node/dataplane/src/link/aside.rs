//! Takes away from IP what packet sockets have received.
//!
//! They get copies: the packets themselves go on to IP, which would spend as much on them as ever, and hand them to the raw sockets a second time.
//!
//! So the first of IP's hooks drops them. With a bridge that is too early: where the kernel has IP's rules see what passes bridges (`br_netfilter`), this hook comes
//! before the bridge itself has the packet, and not again behind it. There the packet is given a priority, and the next hook drops what has it. It cannot do without
//! the first: fragments are put together between them.

use super::Device;
use crate::nftables::{Base, Expression, Family, Nftables, Transaction};
use evergate_esp::protocol;
use std::io;

const CHAIN: &str = "in";
const PREROUTING: u32 = 0;
/// What came by a bridge.
const BEHIND: &str = "behind";
const INPUT: u32 = 1;
/// What nobody else gives a packet that is for this host.
const SEEN: u32 = 0xe5b0_0032;
/// Before fragments are put together (`NF_IP_PRI_CONNTRACK_DEFRAG` is -400): those are IP's.
const FIRST: i32 = -450;

/// Rules that drop it, for as long as this lives; and no longer than the process, however that ends.
pub(super) struct Aside {
    _nftables: Nftables,
}

impl Aside {
    /// Makes the rules, in the network namespace of the calling thread.
    pub(super) fn make(table: &str, devices: &[Device]) -> io::Result<Self> {
        let mut nftables = Nftables::open()?;
        let mut transaction = Transaction::default();
        transaction.add_own_table(Family::Inet, table);
        transaction.add_chain(Family::Inet, table, CHAIN, (PREROUTING, FIRST), &[]);
        if devices.iter().any(|device| device.is_bridge) {
            transaction.add_chain(Family::Inet, table, BEHIND, (INPUT, FIRST), &[]);
        }
        for device in devices {
            let from = Expression::From(device.index);
            let then = match device.is_bridge {
                true => Expression::SetPriority(SEEN),
                false => Expression::Drop,
            };
            for rule in [&V4[..], &V6[..]] {
                let start = [from, Expression::ForHost];
                let rule = [&start[..], rule, &[Expression::Local, then]].concat();
                transaction.add_rule(Family::Inet, table, CHAIN, &rule);
            }
            if device.is_bridge {
                let rule = [from, Expression::Priority(SEEN), Expression::Drop];
                transaction.add_rule(Family::Inet, table, BEHIND, &rule);
            }
        }
        nftables.commit(transaction)?;
        Ok(Self {
            _nftables: nftables,
        })
    }
}

/// What [`super::filter`] lets through.
const V4: [Expression<'static>; 4] = [
    Expression::NfProto(2),
    Expression::Byte(Base::Network, 0, 0x45),
    Expression::Byte(Base::Network, 9, protocol::ESP),
    Expression::NoBits(Base::Network, 6, 0x3fff),
];
const V6: [Expression<'static>; 2] = [
    Expression::NfProto(10),
    Expression::Byte(Base::Network, 6, protocol::ESP),
];
