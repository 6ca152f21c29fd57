//! The dead-man switch: the kernel itself stops what speaks from the addresses of a virtual gateway when the process that has the
//! lease does not say in time that it still has it.
//!
//! A check of the lease before a packet is sent is no fence: a process that is stopped between the two sends when it is continued, and its
//! kernel goes on to answer ARP meanwhile. So from a *guarded* address nothing leaves (IKE, ESP, ARP, neighbour advertisements, or anything
//! else) unless the address is also in a set of *live* ones, whose elements end by themselves. The rules outlive the process on
//! purpose: a killed one leaves addresses behind, and nobody else there to fall silent. Only a process that ends in good order, with none
//! of the addresses left on any interface, takes them along ([`DeadMan::remove_after`]).
//!
//! There are three tables, made and refreshed in one transaction each: `inet` and `arp` see what leaves through IP and ARP on any
//! interface, raw sockets included; `netdev` sees at the `egress` hook of the named interfaces also what packet sockets send
//! (our own announcements). Needs Linux 5.16 for the last; without it the others work.
//!
//! A refresh is one message of about 200 bytes for each address and table, spoken directly to the kernel: it takes tens of
//! microseconds, where a start of `nft` takes milliseconds.

use crate::{
    Addresses, PlaneError,
    netlink::refused,
    nftables::{Base, Expression, Family, Key, Nftables, Transaction},
};
use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

/// What the switch is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadManConfig {
    /// The name of its tables. Each process of a network namespace has its own; a former process of the same member had the same.
    pub table: String,
    /// Interfaces on which guarded addresses are announced.
    pub devices: Vec<String>,
}

/// The switch of one process, in the network namespace in which it was made.
pub struct DeadMan {
    nftables: Nftables,
    config: DeadManConfig,
    families: Vec<Family>,
    guarded: BTreeSet<IpAddr>,
}

const CHAIN: &str = "out";
const GUARDED: [&str; 2] = ["guarded4", "guarded6"];
const LIVE: [&str; 2] = ["live4", "live6"];

/// Where an IPv4 header has the source address; where an ARP packet for Ethernet and IPv4 has that of the sender; the same of an IPv6
/// header; where a neighbour advertisement has its target.
const V4_SOURCE: u32 = 12;
const ARP_SENDER: u32 = 14;
const V6_SOURCE: u32 = 8;
const ND_TARGET: u32 = 8;

impl DeadMan {
    /// Makes the tables anew: all these addresses are guarded, and none is live.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, the process lacks the right to (`CAP_NET_ADMIN`), or an interface is not there.
    pub fn install(config: DeadManConfig, guarded: &[IpAddr]) -> Result<Self, PlaneError> {
        for name in &config.devices {
            // Some kernels take the names of interfaces that may come.
            nix::net::if_::if_nametoindex(name.as_str())
                .map_err(|e| refused(&format!("find interface {name}"), e.into()))?;
        }
        let nftables = Nftables::open().map_err(|e| refused("open nf_tables socket", e))?;
        let mut switch = Self {
            nftables,
            config,
            families: vec![Family::Inet, Family::Arp, Family::Netdev],
            guarded: guarded.iter().copied().collect(),
        };
        if switch.config.devices.is_empty() {
            switch.families.pop();
        }
        match switch.make(guarded) {
            Err(e) if is_unsupported(&e) && switch.families.len() == 3 => {
                switch.families.pop();
                switch.make(guarded)
            }
            other => other,
        }
        .map_err(|e| refused("make the dead-man switch", e))?;
        Ok(switch)
    }

    /// Whether packets of packet sockets are held back too. If not, announcements are only as safe as the look at the clock before them.
    pub fn guards_packet_sockets(&self) -> bool {
        self.families.contains(&Family::Netdev)
    }

    /// Lets each of these addresses speak for so long from now on, in one transaction; what it had left before does not count.
    /// A time of zero ends it.
    ///
    /// # Errors
    /// If the kernel refuses: then all is as before, and ends when it was to end.
    pub fn refresh(&mut self, live: &[(IpAddr, Duration)]) -> Result<(), PlaneError> {
        let mut transaction = Transaction::default();
        for (address, lease) in live {
            let bytes = octets(*address);
            let set = LIVE[kind(*address)];
            // The kernel counts in jiffies and rounds down; less than a millisecond is nothing.
            let timeout = Some(*lease).filter(|l| l.as_millis() > 0);
            for &family in families_of(&self.families, *address) {
                let table = &self.config.table;
                transaction.remove_element(family, table, set, &bytes);
                if timeout.is_some() {
                    transaction.add_element(family, table, set, &bytes, timeout);
                }
            }
        }
        self.nftables
            .commit(transaction)
            .map_err(|e| refused("refresh the dead-man switch", e))
    }

    /// Silences addresses at once.
    ///
    /// # Errors
    /// If the kernel refuses: then they fall silent when their time is over.
    pub fn silence(&mut self, addresses: &[IpAddr]) -> Result<(), PlaneError> {
        let ended: Vec<_> = addresses.iter().map(|a| (*a, Duration::ZERO)).collect();
        self.refresh(&ended)
    }

    /// Guards more addresses.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn guard(&mut self, addresses: &[IpAddr]) -> Result<(), PlaneError> {
        let mut transaction = Transaction::default();
        self.add_guarded(&mut transaction, addresses);
        self.nftables
            .commit(transaction)
            .map_err(|e| refused("guard addresses", e))?;
        self.guarded.extend(addresses);
        Ok(())
    }

    /// Guards addresses no more, because they are those of no virtual gateway any more.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn release(&mut self, addresses: &[IpAddr]) -> Result<(), PlaneError> {
        let mut transaction = Transaction::default();
        for address in addresses {
            for &family in families_of(&self.families, *address) {
                let (set, table) = (GUARDED[kind(*address)], &self.config.table);
                transaction.remove_element(family, table, set, &octets(*address));
            }
        }
        self.nftables
            .commit(transaction)
            .map_err(|e| refused("release addresses", e))?;
        self.guarded.retain(|guarded| !addresses.contains(guarded));
        Ok(())
    }

    /// Removes the tables, unless a guarded address is still on an interface, whoever put it there: then they stay, it stays silent, and the
    /// result names it. For a process that will send nothing any more.
    ///
    /// # Errors
    /// If addresses cannot be listed, or the kernel refuses; then they stay, too.
    pub fn remove_after(self, addresses: &mut Addresses) -> Result<Vec<IpAddr>, PlaneError> {
        let guarded: Vec<IpAddr> = self.guarded.iter().copied().collect();
        let left = addresses.found(&guarded)?;
        if left.is_empty() {
            self.remove()?;
        }
        Ok(left)
    }

    /// Removes the tables. Only for a process that has taken all its addresses away.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(mut self) -> Result<(), PlaneError> {
        let mut transaction = Transaction::default();
        for &family in &self.families {
            transaction.remove_table(family, &self.config.table);
        }
        self.nftables
            .commit(transaction)
            .map_err(|e| refused("remove the dead-man switch", e))
    }

    fn make(&mut self, guarded: &[IpAddr]) -> io::Result<()> {
        let table = &self.config.table;
        let mut transaction = Transaction::default();
        for &family in &self.families {
            transaction.remove_table(family, table);
            transaction.add_table(family, table);
            let (hook, devices) = match family {
                Family::Inet => (3, &[][..]),
                Family::Arp => (1, &[][..]),
                Family::Netdev => (1, &self.config.devices[..]),
            };
            transaction.add_chain(family, table, CHAIN, (hook, 0), devices);
            for (i, key) in [Key::V4, Key::V6].into_iter().enumerate() {
                if family != Family::Arp || key == Key::V4 {
                    transaction.add_set(family, table, GUARDED[i], key, false);
                    transaction.add_set(family, table, LIVE[i], key, true);
                }
            }
            for rule in rules(family) {
                transaction.add_rule(family, table, CHAIN, &rule);
            }
        }
        self.add_guarded(&mut transaction, guarded);
        self.nftables.commit(transaction)
    }

    fn add_guarded(&self, transaction: &mut Transaction, addresses: &[IpAddr]) {
        for address in addresses {
            for &family in families_of(&self.families, *address) {
                let (set, table) = (GUARDED[kind(*address)], &self.config.table);
                transaction.add_element(family, table, set, &octets(*address), None);
            }
        }
    }
}

impl std::fmt::Debug for DeadMan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadMan")
            .field("config", &self.config)
            .field("families", &self.families)
            .finish_non_exhaustive()
    }
}

/// What a chain drops.
fn rules(family: Family) -> Vec<Vec<Expression<'static>>> {
    let v4 = |base, offset| silent(Key::V4, base, offset);
    let v6 = |base, offset| silent(Key::V6, base, offset);
    let advertisement = [
        Expression::L4Proto(58),
        Expression::Byte(Base::Transport, 0, 136),
    ];
    let with = |first: &[Expression<'static>], rest: Vec<Expression<'static>>| {
        [first.to_vec(), rest].concat()
    };
    let is_v6 = match family {
        Family::Inet => Expression::NfProto(10),
        Family::Arp | Family::Netdev => Expression::EtherType(0x86dd),
    };
    let ip = |is_v4: Expression<'static>| {
        vec![
            with(&[is_v4], v4(Base::Network, V4_SOURCE)),
            with(&[is_v6], v6(Base::Network, V6_SOURCE)),
            with(
                &[&[is_v6], &advertisement[..]].concat(),
                v6(Base::Transport, ND_TARGET),
            ),
        ]
    };
    match family {
        Family::Inet => ip(Expression::NfProto(2)),
        Family::Arp => vec![v4(Base::Network, ARP_SENDER)],
        Family::Netdev => {
            let mut rules = ip(Expression::EtherType(0x0800));
            let arp = Expression::EtherType(0x0806);
            rules.push(with(&[arp], v4(Base::Network, ARP_SENDER)));
            rules
        }
    }
}

/// An address that is guarded and not live: drop.
fn silent(key: Key, base: Base, offset: u32) -> Vec<Expression<'static>> {
    let i = usize::from(key == Key::V6);
    let member = |set, inverted| Expression::In {
        base,
        offset,
        key,
        set,
        inverted,
    };
    vec![
        member(GUARDED[i], false),
        member(LIVE[i], true),
        Expression::Count,
        Expression::Drop,
    ]
}

fn kind(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The tables that have sets for an address: no ARP for IPv6.
fn families_of(families: &[Family], address: IpAddr) -> impl Iterator<Item = &Family> {
    let arp = address.is_ipv4();
    families.iter().filter(move |f| arp || **f != Family::Arp)
}

/// A kernel without the `egress` hook has no such hook number.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EAFNOSUPPORT | libc::EINVAL)
    )
}
