//! What every data plane does: the contract.
//!
//! All methods return quickly: none waits for the network, a peer or the log. They may be called from any thread. A Child SA is named
//! by its inbound SPI, which is unique in the cluster.

use crate::{
    Capture, Cipher, Encryption, Ends, Gate, HeaderPolicy, Hold, Marks, Offload, Packet, Selector,
    Subjects,
};
use ipnet::IpNet;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime},
};
use zeroize::Zeroizing;

/// What carries packets between the protected networks and the peers.
///
/// Fail closed (DESIGN, invariant 8): a packet to a protected prefix for which there is no sending Child SA, or no sequence number left, is
/// dropped and counted. What [`DataPlane::protect`] set up outlives the process, so that a killed one lets nothing out either.
pub trait DataPlane: Send + Sync {
    /// What it can do. Proposals use only what every member's plane can do.
    fn capabilities(&self) -> Capabilities;

    /// Starts to receive on a Child SA, and to send if `outbound_active`.
    ///
    /// Of several sending Child SAs that match a packet the one that was last installed or activated sends it.
    ///
    /// # Errors
    /// [`PlaneError::SpiInUse`] if the SPI is installed (also if in grace), [`PlaneError::SpiReserved`] below 256, [`PlaneError::Key`] if a key does not fit the cipher,
    /// [`PlaneError::Reservation`] for an impossible range, [`PlaneError::Limit`] if there are too many.
    fn install(&self, child: ChildSa) -> Result<(), PlaneError>;

    /// A Child SA with this SPI is asked for: packets that come before it is installed wait for it, for a while and within bounds.
    fn expect(&self, spi_in: u32) {
        let _ = spi_in;
    }

    /// Lets a Child SA send, or stops it from sending. It receives either way.
    ///
    /// # Errors
    /// [`PlaneError::NoSuchChild`].
    fn set_outbound(&self, spi_in: u32, active: bool) -> Result<(), PlaneError>;

    /// Changes outer addresses and encapsulation (MOBIKE, a moved NAT mapping). What was learnt of the path is forgotten.
    ///
    /// # Errors
    /// [`PlaneError::NoSuchChild`].
    fn move_child(&self, spi_in: u32, outer: Outer) -> Result<(), PlaneError>;

    /// Stops sending at once, and receiving after `grace`.
    ///
    /// # Errors
    /// [`PlaneError::NoSuchChild`].
    fn remove(&self, spi_in: u32, grace: Duration) -> Result<(), PlaneError>;

    /// Gives a Child SA more outbound sequence numbers, besides what it has.
    ///
    /// # Errors
    /// [`PlaneError::NoSuchChild`]; [`PlaneError::Reservation`] if the range is empty, does not lie above all that it had before, or
    /// ends above 2^32 without ESN. Nothing changes then.
    fn extend(&self, spi_in: u32, range: Range<u64>) -> Result<(), PlaneError>;

    /// What a Child SA did. `None` if there is none.
    fn stats(&self, spi_in: u32) -> Option<ChildStats>;

    /// The right edges of the replay windows of all Child SAs that have received anything, by inbound SPI: what a successor should
    /// know.
    fn replay_edges(&self) -> Vec<(u32, u64)>;

    /// What the plane did since it started.
    fn totals(&self) -> Totals;

    /// Sets which destinations are protected by policy, in place of what was set before, also by a former process.
    ///
    /// The plane routes them into itself, and blackholes them with a worse metric, so that they stay closed without it.
    ///
    /// # Errors
    /// [`PlaneError::Netlink`] when the kernel refuses a route. Protection that could be set up stays.
    fn protect(&self, prefixes: Vec<Protected>) -> Result<(), PlaneError>;

    /// Protects nothing any more and leaves nothing of protection in the kernel, for a process that ends: what was protected takes the
    /// routes that others have set.
    ///
    /// # Errors
    /// [`PlaneError::Netlink`] when the kernel refuses.
    fn open_up(&self) -> Result<(), PlaneError> {
        self.protect(Vec::new())
    }

    /// Says something of a few more prefixes, in place of what was said of them before. The work does not depend on how many there are
    /// already, unless a change before failed: that is tried again with all.
    ///
    /// # Errors
    /// As [`DataPlane::protect`].
    fn protect_more(&self, prefixes: &[Protected]) -> Result<(), PlaneError>;

    /// Takes a few prefixes out: for their addresses counts what was said of a prefix around them, if anything. Ones that are not there are
    /// no error. The work is as with [`DataPlane::protect_more`].
    ///
    /// # Errors
    /// As [`DataPlane::protect`]; they stay protected then.
    fn unprotect(&self, prefixes: &[IpNet]) -> Result<(), PlaneError>;

    /// Takes an inner (virtual) address as our own. Taking it again is no error.
    ///
    /// # Errors
    /// [`PlaneError::Netlink`].
    fn assign_address(&self, address: IpAddr) -> Result<(), PlaneError>;

    /// Gives an inner address up. One that is not there is no error.
    ///
    /// # Errors
    /// [`PlaneError::Netlink`].
    fn release_address(&self, address: IpAddr) -> Result<(), PlaneError>;

    /// Sends an IKE message. `local` is the source; with UDP its port must be the IKE port or the NAT port, and on the latter the non-ESP marker
    /// (RFC 3948 §2.2) is put in front. An unspecified local address lets the kernel choose. May be fragmented on the way.
    ///
    /// With TCP it goes by the connection between these ends. If there is none, and it is ours to make, it will be there soon, which
    /// [`PlaneEvent::Connected`] tells; this message is lost.
    ///
    /// # Errors
    /// [`PlaneError::Io`] with what the kernel said; retransmission is the caller's.
    fn send_ike(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
        message: &[u8],
    ) -> Result<(), PlaneError>;

    /// An IKE SA, named by a number of its own, uses the TCP connection between these ends from now on, and none that it has claimed before. It is made if it is
    /// ours to make, and made again when it breaks. A connection that nobody claims is closed after a while.
    fn claim(&self, owner: u64, local: SocketAddr, remote: SocketAddr, end: TcpEnd);

    /// An IKE SA uses no TCP connection any more.
    fn disclaim(&self, owner: u64);

    /// Sends a NAT keepalive (RFC 3948 §2.3). `local` has the NAT port.
    ///
    /// # Errors
    /// [`PlaneError::Io`].
    fn keepalive(&self, local: SocketAddr, remote: SocketAddr) -> Result<(), PlaneError>;

    /// A queue for packets that are held back, see [`DataPlane::hold`].
    fn queue(&self) -> Arc<Hold>;

    /// Ends the TCP connections of these outer addresses of ours on our side, so that their originators make others, and holds back whatever comes for them, in place of what was done with it before: ESP and IKE that was sent to them, and
    /// packets out of the device for Child SAs that have one of them. When this returns, the plane does nothing more with any such packet: what it has
    /// sealed is with the kernel, and [`DataPlane::replay_edges`] covers all that it has delivered. Waits for packets that are being worked on.
    fn hold(&self, addresses: &[IpAddr], hold: &Arc<Hold>);

    /// Ends that, for the addresses for which this hold is in force. What waits in it stays there.
    fn unhold(&self, addresses: &[IpAddr], hold: &Arc<Hold>);

    /// Ends that, and lets what waits through the plane, before anything that comes later.
    fn resume(&self, addresses: &[IpAddr], hold: &Arc<Hold>);

    /// Lets packets through the plane as if they had just come by its device and its sockets. Bounded with what is held back.
    fn feed(&self, packets: Vec<Packet>);

    /// Counts packets that were held back elsewhere for this member, and came to nothing.
    fn lost_in_handover(&self, packets: usize);

    /// The source address of outer packets to a peer, as the kernel routes them now; with `from`, whether they may come from there. `None` if there is no
    /// way.
    fn source_to(&self, from: Option<IpAddr>, to: IpAddr) -> Option<IpAddr>;

    /// Begins to copy the packets of some SAs, of each at most so many bytes. What is not read in time is missing and counted; traffic does not wait.
    ///
    /// # Errors
    /// [`PlaneError::Unsupported`] if the plane never sees packets; [`PlaneError::Limit`] if there are [`crate::MAX_CAPTURES`] already.
    fn capture(&self, subjects: Subjects, snaplen: usize) -> Result<Capture, PlaneError> {
        let _ = (subjects, snaplen);
        Err(PlaneError::Unsupported(
            "packets pass in the kernel, where this plane does not see them: capture on the XFRM interface and on the outer interface",
        ))
    }

    /// Stops all threads and waits for them. What [`DataPlane::protect`] set up stays closed: to undo it, protect nothing before.
    /// Methods that are called afterwards fail or do nothing.
    fn shutdown(&self);
}

/// What a plane can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Name of the implementation, as in the configuration.
    pub name: &'static str,
    /// Encryption algorithms, each with every key length and integrity algorithm.
    pub encryption: &'static [Encryption],
    /// Extended sequence numbers (RFC 4303 §2.2.1).
    pub esn: bool,
    /// Largest anti-replay window, in packets.
    pub max_replay_window: u32,
    /// ESP in UDP (RFC 3948).
    pub udp_encapsulation: bool,
    /// ESP right on IP.
    pub plain_esp: bool,
    /// [`Mode::Transport`].
    pub transport_mode: bool,
    /// IKE and ESP in TCP (RFC 9329).
    pub tcp: bool,
    /// [`ChildSa::marks`].
    pub marks: bool,
    /// [`Offload::Crypto`]. What may be left out every plane can.
    pub offload: bool,
}

/// A Child SA: a pair of ESP SAs.
#[derive(Clone)]
pub struct ChildSa {
    /// Our SPI: of packets to us. The name of the pair.
    pub spi_in: u32,
    /// The peer's SPI: of packets to the peer.
    pub spi_out: u32,
    /// The cipher of both directions.
    pub cipher: Cipher,
    /// Key and salt of packets to us, as IKE derives them (RFC 4106 §8.1, RFC 7634 §4).
    pub key_in: Zeroizing<Vec<u8>>,
    /// Key and salt of packets to the peer.
    pub key_out: Zeroizing<Vec<u8>>,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Size of the anti-replay window, in packets. At least 1 and at most [`Capabilities::max_replay_window`]: clamped.
    pub replay_window: u32,
    /// After a takeover or restart: the highest sequence number known to be received. It and all below are refused.
    pub replay_edge: Option<u64>,
    /// How it carries packets.
    pub mode: Mode,
    /// Outer addresses.
    pub outer: Outer,
    /// Our side's traffic.
    pub local_ts: Vec<Selector>,
    /// The peer's side's traffic.
    pub remote_ts: Vec<Selector>,
    /// Whether it sends already.
    pub outbound_active: bool,
    /// For so long it leaves packets to another sending Child SA with the same selectors, if there is one: unless its peer sends on it before, which shows
    /// that it has it.
    pub gives_way: Duration,
    /// The sequence numbers that may be sent. May be empty. Number 0 is never used (RFC 4303 §3.3.3).
    pub reservation: Range<u64>,
    /// What crosses between inner and outer headers. In transport mode there is one header, and this does not count.
    pub headers: HeaderPolicy,
    /// Firewall marks of its packets. One that the plane cannot do is refused ([`PlaneError::Unsupported`]): marks say which packets may pass.
    pub marks: Marks,
    /// Whether the network card encrypts and decrypts.
    pub offload: Offload,
    /// The address of this host that its own packets into the tunnel should have, see [`crate::local_address_within`]: becomes the
    /// preferred source of routes to protected prefixes that `remote_ts` overlaps and that name none.
    pub source_hint: Option<IpAddr>,
    /// Nothing is sent while it is closed.
    pub gate: Arc<Gate>,
}

impl fmt::Debug for ChildSa {
    /// Without keys (DESIGN, invariant 7).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSa")
            .field("spi_in", &format_args!("{:08x}", self.spi_in))
            .field("spi_out", &format_args!("{:08x}", self.spi_out))
            .field("cipher", &self.cipher)
            .field("esn", &self.esn)
            .field("replay_window", &self.replay_window)
            .field("replay_edge", &self.replay_edge)
            .field("mode", &self.mode)
            .field("outer", &self.outer)
            .field("outbound_active", &self.outbound_active)
            .field("reservation", &self.reservation)
            .finish_non_exhaustive()
    }
}

/// How a Child SA carries packets (RFC 4303 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Whole.
    Tunnel,
    /// Without their IP header: those between this host, at the outer address, and the peer itself.
    Transport(Ends),
}

/// Outer addresses of a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Ours. The port is that of IKE and counts only if encapsulated: in UDP packets leave from the NAT port.
    pub local: SocketAddr,
    /// The peer's. The port counts only if encapsulated.
    pub remote: SocketAddr,
    /// What is between the outer IP header and ESP.
    pub encapsulation: Encapsulation,
}

/// What is between the outer IP header and ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// Nothing.
    None,
    /// UDP (RFC 3948).
    Udp,
    /// TCP (RFC 9329), of which we are this end.
    Tcp(TcpEnd),
}

/// What carries IKE messages, and encapsulates ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP (RFC 9329), of which we are this end.
    Tcp(TcpEnd),
}

/// An end of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpEnd {
    /// It makes the connection. Its port names the connection; it leaves from there if that is possible.
    Originator,
    /// It waits for connections.
    Responder,
}

/// A destination prefix, and what policy says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protected {
    /// The prefix.
    pub prefix: IpNet,
    /// Preferred source address of this host's own packets to it.
    pub source: Option<IpAddr>,
    /// The opposite: the prefix is *not* protected though a shorter one that contains it is. Needed for our own side's networks where the
    /// peer's side is everything (`0.0.0.0/0`), else packets to them would be led back into the tunnel.
    pub bypass: bool,
}

/// What a Child SA did. Bytes are those of inner packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChildStats {
    /// Inner packets received and delivered.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Inner packets sent.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// When the last authentic packet arrived: proof that the peer lives.
    pub last_inbound: Option<SystemTime>,
    /// When the last packet was sent.
    pub last_outbound: Option<SystemTime>,
    /// The sequence number that the next outbound packet takes; `None` if none is left.
    pub next_sequence: Option<u64>,
    /// How many outbound sequence numbers are left.
    pub remaining: u64,
    /// The right edge of the anti-replay window: the highest sequence number received.
    pub replay_edge: u64,
    /// Path MTU for outer packets, if learnt.
    pub path_mtu: Option<u32>,
    /// Whether it sends.
    pub outbound_active: bool,
    /// Where the last authentic packet came from, if it came in UDP or TCP.
    pub seen_remote: Option<SocketAddr>,
    /// Dropped packets that could be attributed to it.
    pub drops: Drops,
}

/// What a plane did since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Inner packets received and delivered.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Inner packets sent.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// IKE messages received and handed on.
    pub ike_in: u64,
    /// IKE messages sent.
    pub ike_out: u64,
    /// NAT keepalives received.
    pub keepalives_in: u64,
    /// NAT keepalives sent.
    pub keepalives_out: u64,
    /// TCP connections that there are now.
    pub tcp_connections: usize,
    /// Packets that were dropped.
    pub drops: Drops,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name for metrics.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

drop_reasons! {
    /// Outbound: no sending Child SA matches.
    NoChild = "no_child",
    /// Outbound: the lease of the virtual gateway is over.
    NoLease = "no_lease",
    /// Outbound: the reservation is used up.
    Exhausted = "exhausted",
    /// Outbound: larger than the path allows, and must not be fragmented.
    TooBig = "too_big",
    /// Outbound: not a whole IPv4 or IPv6 packet.
    MalformedInner = "malformed_inner",
    /// Outbound: transport mode cannot carry it, because it has options or extension headers for routers, or is a fragment of a packet that did not become whole (RFC 4303 §3.1.1).
    NotTransportable = "not_transportable",
    /// Outbound: the kernel did not take the packet.
    SendFailed = "send_failed",
    /// Outbound: there is no TCP connection to the peer now.
    NotConnected = "not_connected",
    /// Outbound: the TCP connection takes no more, because the path or the peer is slower than what is to be sent.
    TcpFull = "tcp_full",
    /// Inbound: the kernel had no room for it, because packets come faster than they are taken.
    Overrun = "overrun",
    /// Inbound: no SA has the SPI.
    UnknownSpi = "unknown_spi",
    /// Inbound: shorter than ESP can be.
    MalformedOuter = "malformed_outer",
    /// Inbound: received before, or left of the window.
    Replay = "replay",
    /// Inbound: integrity check failed.
    NotAuthentic = "not_authentic",
    /// Inbound: authentic, but what it contains is not a whole IP packet.
    MalformedPayload = "malformed_payload",
    /// Inbound: not within the selectors of its SA.
    SelectorMismatch = "selector_mismatch",
    /// Inbound: congestion experienced outside, but inside not capable of ECN (RFC 6040 §4.2).
    Ecn = "ecn",
    /// Inbound: a dummy packet (RFC 4303 §2.6), dropped as it should be.
    Dummy = "dummy",
    /// Inbound: the TUN device did not take the packet.
    TunFailed = "tun_failed",
    /// Held back during a handover: there was no room for it.
    HoldFull = "hold_full",
    /// Held back during a handover that failed, or that was over already.
    HandoverFailed = "handover_failed",
    /// A TCP connection that was closed at once: there are as many as there may be, in all or from that address.
    TcpRefused = "tcp_refused",
    /// A TCP connection that was closed because its stream is not of IKE and ESP, or nothing in it means anything.
    TcpCorrupt = "tcp_corrupt",
    /// An IKE message for which the queue had no room.
    IkeQueueFull = "ike_queue_full",
    /// An IKE message or datagram that cannot be one, by its length.
    IkeMalformed = "ike_malformed",
}

/// How many packets were dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// How many for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|r| (*r, self.get(*r)))
    }

    /// The sum over all reasons.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// These, for these reasons.
    pub(crate) fn of(counts: &[(DropReason, u64)]) -> Self {
        let mut drops = Self::default();
        for (reason, count) in counts {
            drops.0[*reason as usize] += count;
        }
        drops
    }

    /// With others.
    pub(crate) fn plus(mut self, others: [u64; DropReason::ALL.len()]) -> Self {
        for (count, other) in self.0.iter_mut().zip(others) {
            *count += other;
        }
        self
    }

    /// These and those.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    pub(crate) fn from_counts(counts: [u64; DropReason::ALL.len()]) -> Self {
        Self(counts)
    }
}

/// What the plane tells. Comes by a bounded queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaneEvent {
    /// An IKE message, without the non-ESP marker. Dropped and counted if the queue is full.
    Ike {
        /// Where it was sent to.
        local: SocketAddr,
        /// Where it came from.
        remote: SocketAddr,
        /// By what it came.
        transport: Transport,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A Child SA will soon be out of sequence numbers. Comes once until [`DataPlane::extend`].
    LowReservation {
        /// Which.
        spi_in: u32,
        /// How many are left.
        remaining: u64,
        /// Peak rate so far, in packets per second.
        rate: u64,
    },
    /// An authentic ESP packet came by UDP or TCP from another address than the Child SA's. Once per new address. Advisory: nothing was changed.
    PeerMoved {
        /// Which.
        spi_in: u32,
        /// The address that it came from.
        remote: SocketAddr,
        /// By what it came.
        transport: Transport,
    },
    /// A TCP connection of our own was made, or made again.
    Connected {
        /// Our end, as it is called.
        local: SocketAddr,
        /// The peer's.
        remote: SocketAddr,
    },
    /// ESP with an SPI that no SA has. Limited in rate.
    UnknownSpi {
        /// The SPI.
        spi: u32,
        /// Where it was sent to; port 0 if plain.
        local: SocketAddr,
        /// Where it came from; port 0 if plain.
        remote: SocketAddr,
    },
    /// A protected packet had no sending Child SA. Limited in rate.
    NoChild {
        /// Inner source.
        src: IpAddr,
        /// Inner destination.
        dst: IpAddr,
        /// IP protocol.
        protocol: u8,
        /// Source and destination port, where they are known.
        ports: Option<(u16, u16)>,
    },
}

/// Why the plane refused.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// No Child SA has this inbound SPI.
    #[error("no Child SA has the SPI {0:08x}")]
    NoSuchChild(u32),
    /// The inbound SPI is taken.
    #[error("SPI {0:08x} is in use")]
    SpiInUse(u32),
    /// The SPI is reserved (RFC 4303 §2.1).
    #[error("SPI {0:08x} is reserved")]
    SpiReserved(u32),
    /// A key does not fit the cipher.
    #[error("key does not fit the cipher")]
    Key,
    /// The range of sequence numbers is impossible.
    #[error("range {}..{} of sequence numbers cannot be used", .0.start, .0.end)]
    Reservation(Range<u64>),
    /// This plane cannot do it.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A bound is reached.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// The kernel refused a change of addresses, routes or rules.
    #[error("{what}: {source}")]
    Netlink {
        /// What was asked.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A socket or device failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}
