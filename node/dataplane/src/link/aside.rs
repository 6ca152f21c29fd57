//! Takes away from IP what packet sockets have received.
//!
//! They get copies: the packets themselves go on to IP, which would spend as much on them as ever, and hand them to the raw sockets a second time.

use super::Device;
use crate::nftables::{Base, Expression, Family, Nftables, Transaction};
use evergate_esp::protocol;
use std::io;

const CHAIN: &str = "in";
const PREROUTING: u32 = 0;
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
        for device in devices {
            for rule in [&V4[..], &V6[..]] {
                let start = [Expression::From(device.index), Expression::ForHost];
                let end = [Expression::Local, Expression::Drop];
                let rule = [&start[..], rule, &end[..]].concat();
                transaction.add_rule(Family::Inet, table, CHAIN, &rule);
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
