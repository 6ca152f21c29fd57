//! As much of the kernel's nf_tables protocol as is needed here: tables, base chains, sets with time-outs, a few expressions, and
//! transactions.

use crate::rtnl;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use std::{io, time::Duration};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const EXCLUSIVE: u16 = 0x200;
const NESTED: u16 = 0x8000;

const ERROR: u16 = 2;
const SET_TIMEOUT: u32 = 0x10;
/// The table goes with the socket that made it.
const TABLE_OWNER: u32 = 2;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const REGISTER: u32 = 1;
const META_PRIORITY: u32 = 2;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    Arp = 3,
    /// What passes one interface.
    Netdev = 5,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    V4,
    V6,
}

/// Where something is in a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    Network = 1,
    Transport = 2,
}

/// One expression of a rule.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expression<'a> {
    /// The packet is of this family (inet tables): 2 or 10.
    NfProto(u8),
    /// The Ethernet type is this.
    EtherType(u16),
    /// The protocol after the IP header is this.
    L4Proto(u8),
    /// A byte of the packet is this.
    Byte(Base, u32, u8),
    /// None of these bits of two bytes of the packet is set.
    NoBits(Base, u32, u16),
    /// It came by this interface.
    From(u32),
    /// Its frame was for this host.
    ForHost,
    /// Its destination is an address of this host.
    Local,
    /// It has this priority, as the kernel notes it beside the packet.
    Priority(u32),
    /// It is given this priority.
    SetPriority(u32),
    /// Bytes of the packet are in a set, or are not.
    In {
        base: Base,
        offset: u32,
        key: Key,
        set: &'a str,
        inverted: bool,
    },
    Count,
    Drop,
}

impl Key {
    fn type_number(self) -> u32 {
        match self {
            Self::V4 => 7,
            Self::V6 => 8,
        }
    }

    fn len(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }
}

/// A socket to nf_tables of the network namespace in which it was made.
pub(crate) struct Nftables {
    socket: Socket,
    sequence: u32,
}

impl Nftables {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: rtnl::open(NETLINK_NETFILTER)?,
            sequence: 0,
        })
    }

    /// Carries a transaction out: all of it or nothing.
    pub(crate) fn commit(&mut self, transaction: Transaction) -> io::Result<()> {
        let Transaction { messages } = transaction;
        let Some(last) = messages.len().checked_sub(1) else {
            return Ok(());
        };
        let mut batch = Vec::with_capacity(messages.len() * 128);
        let first = self.sequence.wrapping_add(1);
        self.put(&mut batch, BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, &[]);
        for (i, message) in messages.iter().enumerate() {
            let flags = message.flags | REQUEST | if i == last { ACK } else { 0 };
            let kind = SUBSYSTEM << 8 | message.kind;
            self.put(&mut batch, kind, flags, message.family, 0, &message.body);
        }
        let acknowledged = self.sequence;
        self.put(&mut batch, BATCH_END, REQUEST, 0, SUBSYSTEM, &[]);
        self.socket.send(&batch, 0)?;
        self.result(first, acknowledged)
    }

    fn put(
        &mut self,
        out: &mut Vec<u8>,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        body: &[u8],
    ) {
        self.sequence = self.sequence.wrapping_add(1);
        let len = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
        out.extend(len.to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(self.sequence.to_ne_bytes());
        out.extend([0; 4]);
        out.extend([family, 0]);
        out.extend(resource.to_be_bytes());
        out.extend(body);
    }

    /// Reads answers until the last message is acknowledged. Its acknowledgement may come although an earlier one failed, and a
    /// failure of the whole is reported for the beginning.
    fn result(&self, first: u32, acknowledged: u32) -> io::Result<()> {
        let mut failed: Option<io::Error> = None;
        loop {
            if let Err(e) = rtnl::wait_readable(&self.socket) {
                return Err(failed.unwrap_or(e));
            }
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while let Some(answer) = Answer::parse(&mut rest) {
                let age = answer.sequence.wrapping_sub(first);
                if answer.kind != ERROR || age > acknowledged.wrapping_sub(first) {
                    continue;
                }
                if answer.code != 0 && failed.is_none() {
                    failed = Some(io::Error::from_raw_os_error(answer.code.wrapping_neg()));
                }
                if answer.sequence == acknowledged || (age == 0 && failed.is_some()) {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }
}

struct Answer {
    kind: u16,
    sequence: u32,
    code: i32,
}

impl Answer {
    fn parse(rest: &mut &[u8]) -> Option<Self> {
        let len = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(rest.get(8..12)?.try_into().ok()?);
        let code = rest.get(16..20).and_then(|c| c.try_into().ok());
        *rest = rest.get(len.max(16).next_multiple_of(4)..).unwrap_or(&[]);
        Some(Self {
            kind,
            sequence,
            code: code.map_or(0, i32::from_ne_bytes),
        })
    }
}

/// What is to be done at once.
#[derive(Default)]
pub(crate) struct Transaction {
    messages: Vec<Message>,
}

struct Message {
    family: u8,
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Transaction {
    fn push(&mut self, family: Family, kind: u16, flags: u16, body: Attributes) {
        self.messages.push(Message {
            family: family as u8,
            kind,
            flags,
            body: body.0,
        });
    }

    /// Removes a table, whether it is there or not.
    pub(crate) fn remove_table(&mut self, family: Family, table: &str) {
        let named = || Attributes::default().string(1, table);
        self.push(family, NEW_TABLE, CREATE, named());
        self.push(family, DELETE_TABLE, 0, named());
    }

    pub(crate) fn add_table(&mut self, family: Family, table: &str) {
        let body = Attributes::default().string(1, table);
        self.push(family, NEW_TABLE, CREATE, body);
    }

    /// One that nobody has yet, and that is gone when the socket is closed that makes it (since Linux 5.12).
    pub(crate) fn add_own_table(&mut self, family: Family, table: &str) {
        let body = Attributes::default()
            .string(1, table)
            .number(2, TABLE_OWNER);
        self.push(family, NEW_TABLE, CREATE | EXCLUSIVE, body);
    }

    /// A base chain. Hook numbers depend on the family; a chain of a netdev table names its interfaces. Of several at a hook the one with the lowest priority
    /// comes first.
    pub(crate) fn add_chain(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        (hook, priority): (u32, i32),
        devices: &[String],
    ) {
        let mut at = Attributes::default()
            .number(1, hook)
            .number(2, priority.cast_unsigned());
        if !devices.is_empty() {
            let names = devices.iter();
            let names = names.fold(Attributes::default(), |a, name| a.string(1, name));
            at = at.nested(4, names);
        }
        let body = Attributes::default()
            .string(1, table)
            .string(3, chain)
            .nested(4, at)
            .number(5, ACCEPT)
            .string(7, "filter");
        self.push(family, NEW_CHAIN, CREATE, body);
    }

    /// A set of addresses, whose elements may have time-outs.
    pub(crate) fn add_set(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: Key,
        timeouts: bool,
    ) {
        let id = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let body = Attributes::default()
            .string(1, table)
            .string(2, set)
            .number(3, if timeouts { SET_TIMEOUT } else { 0 })
            .number(4, key.type_number())
            .number(5, key.len())
            .number(10, id);
        self.push(family, NEW_SET, CREATE, body);
    }

    pub(crate) fn add_rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        rule: &[Expression<'_>],
    ) {
        let expressions = rule.iter().fold(Attributes::default(), encode);
        let body = Attributes::default()
            .string(1, table)
            .string(2, chain)
            .nested(4, expressions);
        self.push(family, NEW_RULE, CREATE | APPEND, body);
    }

    /// An element that is not there yet, or (without a time-out) may be.
    pub(crate) fn add_element(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: &[u8],
        timeout: Option<Duration>,
    ) {
        let body = element(table, set, key, timeout);
        self.push(family, NEW_ELEMENT, CREATE, body);
    }

    /// Removes an element, whether it is there or not.
    pub(crate) fn remove_element(&mut self, family: Family, table: &str, set: &str, key: &[u8]) {
        self.push(family, NEW_ELEMENT, CREATE, element(table, set, key, None));
        self.push(family, DELETE_ELEMENT, 0, element(table, set, key, None));
    }
}

fn element(table: &str, set: &str, key: &[u8], timeout: Option<Duration>) -> Attributes {
    let value = Attributes::default().bytes(1, key);
    let mut element = Attributes::default().nested(1, value);
    if let Some(timeout) = timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        element = element.bytes(4, &millis.to_be_bytes());
    }
    let list = Attributes::default().nested(1, element);
    Attributes::default()
        .string(1, table)
        .string(2, set)
        .nested(3, list)
}

/// Adds an expression, and the comparison that belongs to it.
fn encode(list: Attributes, expression: &Expression<'_>) -> Attributes {
    let meta = |list: Attributes, key: u32| {
        let data = Attributes::default().number(1, REGISTER).number(2, key);
        list.expression("meta", data)
    };
    let payload = |list: Attributes, base: Base, offset: u32, len: u32| {
        let data = Attributes::default()
            .number(1, REGISTER)
            .number(2, base as u32)
            .number(3, offset)
            .number(4, len);
        list.expression("payload", data)
    };
    let equals = |list: Attributes, value: &[u8]| {
        let data = Attributes::default()
            .number(1, REGISTER)
            .number(2, 0)
            .nested(3, Attributes::default().bytes(1, value));
        list.expression("cmp", data)
    };
    match *expression {
        Expression::EtherType(value) => equals(meta(list, 1), &value.to_be_bytes()),
        Expression::NfProto(value) => equals(meta(list, 15), &[value]),
        Expression::L4Proto(value) => equals(meta(list, 16), &[value]),
        Expression::Byte(base, offset, value) => equals(payload(list, base, offset, 1), &[value]),
        Expression::In {
            base,
            offset,
            key,
            set,
            inverted,
        } => {
            let data = Attributes::default()
                .string(1, set)
                .number(2, REGISTER)
                .number(5, u32::from(inverted));
            payload(list, base, offset, key.len()).expression("lookup", data)
        }
        Expression::NoBits(base, offset, bits) => {
            let data = |value: [u8; 2]| Attributes::default().bytes(1, &value);
            let masked = Attributes::default()
                .number(1, REGISTER)
                .number(2, REGISTER)
                .number(3, 2)
                .nested(4, data(bits.to_be_bytes()))
                .nested(5, data([0; 2]));
            let list = payload(list, base, offset, 2).expression("bitwise", masked);
            equals(list, &[0; 2])
        }
        Expression::From(device) => equals(meta(list, 4), &device.to_ne_bytes()),
        Expression::ForHost => equals(meta(list, 19), &[libc::PACKET_HOST]),
        Expression::Local => {
            let data = Attributes::default()
                .number(1, REGISTER)
                .number(2, FIB_ADDRESS_TYPE)
                .number(3, FIB_DESTINATION);
            equals(
                list.expression("fib", data),
                &u32::from(libc::RTN_LOCAL).to_ne_bytes(),
            )
        }
        Expression::Priority(value) => equals(meta(list, META_PRIORITY), &value.to_ne_bytes()),
        Expression::SetPriority(value) => {
            let value = Attributes::default().bytes(1, &value.to_ne_bytes());
            let load = Attributes::default().number(1, REGISTER).nested(2, value);
            let store = Attributes::default()
                .number(2, META_PRIORITY)
                .number(3, REGISTER);
            list.expression("immediate", load).expression("meta", store)
        }
        Expression::Count => list.expression("counter", Attributes::default()),
        Expression::Drop => {
            let verdict = Attributes::default().number(1, DROP);
            let data = Attributes::default()
                .number(1, 0)
                .nested(2, Attributes::default().nested(2, verdict));
            list.expression("immediate", data)
        }
    }
}

/// Netlink attributes, one after the other.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    fn expression(self, name: &str, data: Self) -> Self {
        let expression = Self::default().string(1, name).nested(2, data);
        self.nested(1, expression)
    }
}
