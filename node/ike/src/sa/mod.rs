//! The state machine of one IKE SA.
//!
//! [`IkeSa::step`] takes an input and says what should change and what should happen. It does not send, and it
//! does not change the record: the caller commits the change, gives it back with [`IkeSa::adopt`], and only then
//! carries out the effects (commit before reply). If the change is refused, effects are dropped.

mod auth;
mod auth_client;
mod child;
mod child_client;
mod configuration;
mod exchange;
mod follow_up;
mod fragments;
mod ike_rekey;
mod informational;
mod init;
mod init_client;
mod intermediate;
mod mobike;
mod nat;
mod next_address;
mod pursue;
mod reauthentication;
mod session;
mod sync;
mod tcp;
#[cfg(test)]
mod tests;
mod transport_mode;
mod turn;
mod window;

#[cfg(test)]
pub(crate) use tests::testing_policy;

pub use init::{CookieSecrets, InitAnswer, answer_init, answer_stray};
pub use init_client::initiate;
pub use mobike::{Ways, knows_our_addresses};
pub use session::{IkeSa, IvCounter};

use crate::{
    certificate::{CertificateError, Verification, Verified},
    config::Policy,
    env::{Entropy, UnixMillis},
    identity::Identity,
    record::{Child, CloseReason, GatewayId, Path, Record, SaId, Transport},
    signature::{Scheme, SignatureError},
};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// What a step may look at besides its SA.
pub struct Env<'a> {
    /// The present.
    pub now: UnixMillis,
    /// IVs of the epoch under which everything is done.
    pub ivs: &'a IvCounter,
    /// The configuration.
    pub policy: &'a Policy,
    /// Randomness.
    pub rng: &'a mut dyn Entropy,
    /// Fresh SPIs.
    pub spis: &'a mut dyn SpiSource,
    /// Port of ours for IKE and ESP in UDP (4500 unless configured otherwise).
    pub nat_port: u16,
    /// Outer addresses that we have now: what a peer may be told of (RFC 4555 §3.4).
    pub addresses: &'a [IpAddr],
}

/// Chooses SPIs that nobody in the cluster uses.
pub trait SpiSource {
    /// An SPI for an IKE SA; it never was zero.
    fn ike(&mut self, rng: &mut dyn Entropy) -> SaId;
    /// An SPI for packets to us, above 255 (RFC 4303 §2.1).
    fn child(&mut self, rng: &mut dyn Entropy) -> u32;
}

/// What happens to an IKE SA.
#[derive(Debug)]
pub enum Input<'a> {
    /// A datagram came for it (without non-ESP marker).
    Datagram {
        /// The bytes.
        bytes: &'a [u8],
        /// Where it arrived.
        local: SocketAddr,
        /// Where it came from.
        remote: SocketAddr,
        /// By what it came.
        transport: Transport,
    },
    /// The time that [`IkeSa::next_timeout`] named has come.
    Timeout,
    /// The change was refused because the peer has another IKE SA, which is to be kept ([`Unique::Keep`](crate::config::Unique)).
    NotUnique,
    /// The answer to [`Question::Addresses`].
    Addresses(Result<Vec<IpAddr>, NoAddress>),
    /// The answer to [`Question::Verify`].
    Verified(Result<Box<Verified>, CertificateError>),
    /// The answer to [`Question::Sign`]: the signature, of ECDSA in ASN.1 form; `None` if there is none.
    Signed(Option<Vec<u8>>),
    /// The answer to [`Question::Exists`].
    Exists(bool),
    /// An operator or the configuration wants something.
    Command(Command),
    /// Our addresses or routes may have changed, or [`Effect::FindWays`] is answered.
    Roam(Ways),
    /// The peer's newest authentic ESP packet came from there.
    EspFrom(SocketAddr, Transport),
    /// A TCP connection of ours between these addresses is there (again): what waits for an answer goes out (RFC 9329 §6.2).
    Connected {
        /// Our address and port, as the record has them.
        local: SocketAddr,
        /// The peer's.
        remote: SocketAddr,
    },
}

/// No virtual address could be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAddress;

/// What an operator may ask of an SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Set up a Child SA.
    CreateChild(String),
    /// Rekey a Child SA, by our inbound SPI.
    RekeyChild(u32),
    /// Rekey the IKE SA.
    RekeyIke,
    /// Authenticate again, with a new IKE SA in the place of this one; where the peer began it, ask the peer to.
    Reauthenticate,
    /// That new IKE SA is complete: this one goes.
    Retire,
    /// Delete a Child SA, by our inbound SPI.
    DeleteChild(u32),
    /// Delete the IKE SA.
    Delete,
    /// The peer has authenticated anew, on another IKE SA: this one goes.
    Displace(Displaced),
}

/// How an IKE SA goes whose peer has authenticated anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Displaced {
    /// The peer said that it does not know of this one any more: there is nobody to tell.
    Forgotten,
    /// It is told at once.
    Told,
    /// It is told after a while: it seems to be the same peer at the same address, which authenticates again and deletes this one itself once it uses the
    /// other.
    Later,
}

/// What a step wants.
#[derive(Debug, Default)]
pub struct Step {
    /// What should be replicated.
    pub change: Change,
    /// What should happen once the change is committed, in this order.
    pub effects: Vec<Effect>,
}

/// What should be replicated.
#[derive(Debug, Default)]
pub enum Change {
    /// Nothing.
    #[default]
    None,
    /// The SA's new record, to be adopted at once and replicated soon: harmless exchanges and half-open SAs.
    Lazy(Box<Record>),
    /// New records, all or none, before any effect. The first is the SA's own; others are SAs that it created.
    Barrier(Vec<Record>),
}

/// What should happen.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Send a message. The non-ESP marker is added by who sends, according to transport and local port.
    Send {
        /// The message.
        datagram: Vec<u8>,
        /// Our address and port.
        local: SocketAddr,
        /// The peer's address and port.
        remote: SocketAddr,
        /// By what.
        transport: Transport,
    },
    /// Send a NAT keepalive (RFC 3948 §2.3).
    Keepalive {
        /// Our address and port.
        local: SocketAddr,
        /// The peer's address and port.
        remote: SocketAddr,
    },
    /// Make the data plane's pair of SAs what this says: its fate decides whether it sends.
    InstallChild {
        /// The SA's IKE SA.
        ike: SaId,
        /// The Child SA.
        child: Box<Child>,
        /// The outer addresses.
        path: Path,
        /// Virtual gateway.
        gateway: GatewayId,
        /// Name of the connection.
        connection: String,
        /// Virtual addresses that the peer has from us, if any: what routes may need.
        peer_vips: Vec<IpAddr>,
    },
    /// Take a Child SA out of the data plane; packets still under way to us are accepted for `grace`.
    RemoveChild {
        /// Our inbound SPI.
        spi_in: u32,
        /// How long to go on receiving.
        grace: Duration,
    },
    /// The outer addresses of the Child SAs changed.
    MoveChildren {
        /// Our inbound SPIs.
        spis_in: Vec<u32>,
        /// The new addresses.
        path: Path,
    },
    /// The peer gave us virtual addresses and DNS servers.
    AssignAddresses {
        /// Addresses.
        addresses: Vec<IpAddr>,
        /// DNS servers.
        dns: Vec<IpAddr>,
    },
    /// Our virtual addresses are no longer ours.
    ReleaseAddresses {
        /// Addresses.
        addresses: Vec<IpAddr>,
    },
    /// Something to be answered from outside with an input.
    Ask(Question),
    /// The way to the peer seems to be broken: [`Input::Roam`] should name others.
    FindWays,
    /// Another IKE SA of ours gets a command: one whose place this one takes, or one that takes the place of this.
    Tell {
        /// Which.
        sa: SaId,
        /// What.
        command: Command,
    },
    /// Forget this SA entirely (its record as well, lazily).
    Forget,
    /// Something an operator wants to know.
    Report(Event),
}

/// What only the outside can decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Virtual addresses for a peer; answered by [`Input::Addresses`].
    Addresses {
        /// Names of the pools, in order.
        pools: Vec<String>,
        /// Who asks: it gets the same address again where possible.
        identity: Identity,
        /// Whether an IPv4 address is wanted, and which.
        v4: Option<IpAddr>,
        /// Whether an IPv6 address is wanted, and which.
        v6: Option<IpAddr>,
        /// The SA will displace those that the peer has, so it may have their addresses.
        takes_over: bool,
    },
    /// Whether there is such an IKE SA, and it is not closed; answered by [`Input::Exists`].
    Exists(SaId),
    /// Whether a peer is who it says; answered by [`Input::Verified`].
    Verify(Box<Verification>),
    /// A signature of ours; answered by [`Input::Signed`].
    Sign {
        /// The name of the private key.
        key: String,
        /// The algorithm.
        scheme: Scheme,
        /// What is signed.
        octets: Vec<u8>,
    },
}

/// What an operator may want to know. Each is one log line and one metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An IKE SA was established.
    IkeEstablished {
        /// The connection.
        connection: String,
        /// Who the peer is.
        remote_id: Identity,
    },
    /// A Child SA was established.
    ChildEstablished {
        /// Its name.
        name: String,
        /// Our SPI.
        spi_in: u32,
        /// The peer's SPI.
        spi_out: u32,
        /// The SA that it replaces.
        replaces: Option<u32>,
    },
    /// A Child SA ended.
    ChildClosed {
        /// Its name.
        name: String,
        /// Our SPI.
        spi_in: u32,
        /// Why.
        reason: CloseReason,
    },
    /// An IKE SA was replaced by another.
    IkeRekeyed {
        /// The new one.
        by: SaId,
    },
    /// We authenticate again.
    Reauthenticating {
        /// The new IKE SA.
        by: SaId,
    },
    /// We ask the peer, who began the IKE SA, to authenticate again.
    AskedToReauthenticate,
    /// An IKE SA ended.
    IkeClosed {
        /// Why.
        reason: CloseReason,
    },
    /// The peer has authenticated anew, and this IKE SA goes.
    Displaced,
    /// The peer's address changed.
    PeerMoved {
        /// The new one.
        to: SocketAddr,
    },
    /// An address of the peer is given up for another while setting up an IKE SA.
    NextAddress {
        /// The one that failed.
        from: IpAddr,
        /// The next one.
        to: IpAddr,
        /// Why it failed.
        why: Failure,
    },
    /// The peer does not answer by UDP: another IKE SA is set up by TCP instead (RFC 9329 §5.1).
    OverTcp {
        /// That one.
        by: SaId,
    },
    /// We use other addresses from now on.
    Moved {
        /// Ours.
        local: SocketAddr,
        /// The peer's.
        remote: SocketAddr,
        /// By what.
        transport: Transport,
    },
    /// Something came that anyone could have sent, and was ignored. Who logs it limits the rate.
    Ignored {
        /// What it was.
        what: Failure,
    },
    /// Something was refused or failed; `what` says so in a line.
    Failed {
        /// What failed and why.
        what: Failure,
    },
}

/// What can go wrong between us and a peer, one variant each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing that the peer offers is acceptable for the IKE SA.
    #[error("no acceptable IKE proposal")]
    NoIkeProposal,
    /// Nothing that the peer offers is acceptable for the Child SA.
    #[error("no acceptable ESP proposal")]
    NoChildProposal,
    /// No connection is configured for this pair of addresses.
    #[error("no connection is configured between {local} and {remote}")]
    NoConnection {
        /// Our address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
    },
    /// No connection fits the identity of the peer.
    #[error("no connection of {remote} is for a peer that calls itself {id}")]
    UnknownIdentity {
        /// The peer's address.
        remote: IpAddr,
        /// What it calls itself.
        id: Identity,
    },
    /// There is no pre-shared key for the pair of identities.
    #[error("no pre-shared key for {local} and {remote}")]
    NoSecret {
        /// What we call ourselves.
        local: Identity,
        /// What the peer calls itself.
        remote: Identity,
    },
    /// The peer's AUTH payload is wrong.
    #[error("{0} did not authenticate: its AUTH payload does not verify")]
    BadAuth(Identity),
    /// The peer uses a method that the connection does not accept.
    #[error("{0} authenticates with a method that is not accepted")]
    BadAuthMethod(Identity),
    /// The peer's AUTH payload is no signature that can be verified.
    #[error("{id} did not authenticate: {error}")]
    BadSignature {
        /// What the peer calls itself.
        id: Identity,
        /// What is wrong.
        error: SignatureError,
    },
    /// The peer's certificate is not accepted.
    #[error("the certificate of {id} is not accepted: {error}")]
    Certificate {
        /// What the peer calls itself.
        id: Identity,
        /// Why.
        error: Box<CertificateError>,
    },
    /// None of our keys can sign in a way that both the peer and the connection accept.
    #[error(
        "no certificate of ours can be used: the peer and the connection leave no signature algorithm for it"
    )]
    NoScheme,
    /// A post-quantum pre-shared key is required, and there is none that both ends know.
    #[error(
        "a post-quantum pre-shared key is missing: it is required, or the peer named one that is not known"
    )]
    UnknownPpk,
    /// The peer authenticates in fewer or more rounds than the connection wants (RFC 4739).
    #[error("the peer authenticates in fewer or more rounds than the connection wants")]
    Rounds,
    /// Our private key did not sign.
    #[error("our private key cannot be used to sign")]
    Signing,
    /// No traffic selectors are acceptable.
    #[error("no acceptable traffic selectors")]
    NoSelectors,
    /// The peer has an IKE SA already, and may have one only.
    #[error("the peer has an IKE SA already, which is kept")]
    NotUnique,
    /// The peer takes no IKE_AUTH without a Child SA, which the connection asks for.
    #[error("the peer does not support IKE SAs without a Child SA, which the connection asks for")]
    NoChildless,
    /// No virtual address is left, or none is configured.
    #[error("no virtual address for {0}")]
    NoAddress(Identity),
    /// The peer refused; the notify says why.
    #[error("the peer answered {0}")]
    PeerRefused(crate::wire::NotifyType),
    /// The peer sent something malformed or out of place.
    #[error("the peer's message is invalid: {0}")]
    Invalid(&'static str),
    /// The peer sent something that cannot be parsed.
    #[error("the peer's message is malformed: {0}")]
    Malformed(#[from] crate::wire::ParseError),
    /// The peer's public value is not acceptable.
    #[error("{0}")]
    BadPublicValue(#[from] crate::crypto::BadPublicValue),
    /// It was not sealed with the SA's keys, or was changed on its way.
    #[error("the integrity check failed")]
    Integrity,
    /// The Message ID is outside the window.
    #[error("Message ID {given} where {expected} was expected")]
    MessageId {
        /// What came.
        given: u32,
        /// What should have come.
        expected: u32,
    },
    /// The peer wants to use addresses that the connection does not allow.
    #[error("the peer moved to {remote} and {local}, which the connection does not allow")]
    UnacceptableAddresses {
        /// Our address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
    },
    /// The peer allows no NAT, and there is one.
    #[error("a NAT changed the addresses of a message whose sender allows none")]
    UnexpectedNat,
    /// What should prove that the peer receives at its address does not.
    #[error("the peer returned another COOKIE2 than it was sent")]
    Cookie2,
    /// A new authentication came to nothing; the IKE SA goes on as long as it may.
    #[error("authenticating again failed")]
    NotReauthenticated,
    /// The peer does not answer.
    #[error("the peer does not answer")]
    Silent,
    /// The configuration that the SA came from is gone.
    #[error("connection {0:?} is no longer configured")]
    Unconfigured(String),
    /// The command makes no sense for this SA now.
    #[error("{0}")]
    Command(&'static str),
}

/// Why an SA wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A request of ours was not answered.
    Retransmit,
    /// The peer was silent.
    Liveness,
    /// A NAT mapping must be kept open.
    Keepalive,
    /// The IKE SA is due for a rekey.
    RekeyIke,
    /// The IKE SA is due for a new authentication, or one is under way.
    Reauthenticate,
    /// A Child SA is due for a rekey.
    RekeyChild,
    /// A Child SA, the IKE SA, a half-open SA or a tombstone ends.
    Expire,
    /// Something that had to wait is tried again.
    Retry,
}
