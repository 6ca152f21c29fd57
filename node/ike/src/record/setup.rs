//! IKE SAs that are not authenticated yet.

use super::ChildOffer;
use crate::{
    crypto::{IkeKeys, IkeSuite, KeyPair},
    env::UnixMillis,
    identity::Identity,
    secret::Secret,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// We sent IKE_SA_INIT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitSent {
    /// The child to set up with the SA, by name.
    pub child: String,
    /// Where else the peer may be, if it does not answer: from which address of ours to which of its own.
    pub others: Vec<(IpAddr, IpAddr)>,
    /// Where it did not answer: there it is tried by TCP, if the connection is for that (RFC 9329 §5.1).
    pub silent: Vec<(IpAddr, IpAddr)>,
    /// Our key pair.
    pub key: KeyPair,
    /// Our nonce.
    pub nonce: Vec<u8>,
    /// We have no other IKE SA with this peer, and will say so (RFC 7296 §2.4).
    pub initial_contact: bool,
    /// The cookie that the responder asked us to return.
    pub cookie: Option<Vec<u8>>,
    /// How often the request was made anew (cookie or other group); bounded.
    pub restarts: u8,
}

/// What IKE_SA_INIT yielded, until both ends are authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// The suite.
    pub suite: IkeSuite,
    /// The keys.
    pub keys: IkeKeys,
    /// The initiator's nonce.
    pub nonce_i: Vec<u8>,
    /// The responder's nonce.
    pub nonce_r: Vec<u8>,
    /// The IKE_SA_INIT request, whole: AUTH covers it.
    pub init_request: Vec<u8>,
    /// The IKE_SA_INIT response, whole: AUTH covers it.
    pub init_response: Vec<u8>,
    /// The additional key exchanges so far.
    pub intermediates: Intermediates,
}

/// The IKE_INTERMEDIATE exchanges so far, one for each additional key exchange (RFC 9242, RFC 9370).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intermediates {
    /// How many are done.
    pub done: u32,
    /// What AUTH will cover of the initiator's messages (IntAuth_i, RFC 9242 §3.3.2).
    pub auth_i: Secret,
    /// What AUTH will cover of the responder's messages (IntAuth_r).
    pub auth_r: Secret,
    /// The keys before the last one: its request is protected with them when it is repeated.
    pub previous: Option<IkeKeys>,
}

/// We sent IKE_INTERMEDIATE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intermediate {
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// What IKE_AUTH will ask for.
    pub intent: Intent,
    /// Our key pair.
    pub key: KeyPair,
}

/// What IKE_AUTH will ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The child to set up with the SA, by name.
    pub child: String,
    /// Whether to say that this is our only IKE SA with the peer (INITIAL_CONTACT).
    pub alone: bool,
    /// Whether to do without a Child SA (RFC 6023).
    pub childless: bool,
}

/// We answered IKE_SA_INIT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfOpen {
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// What the peer has shown so far, and we.
    pub rounds: Rounds,
    /// When to forget it.
    pub expires_at: UnixMillis,
}

/// How far authentication is that has several rounds (RFC 4739): one for each IKE_AUTH, in which each end authenticates that has not finished.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rounds {
    /// Exchanges that are done.
    pub done: u32,
    /// Whether we have said that we authenticate again.
    pub ours_follow: bool,
    /// Whether the peer has said so.
    pub theirs_follow: bool,
    /// What the peer called itself last; none before the first exchange.
    pub remote_id: Option<Identity>,
    /// At a responder: what the first request asks for, which is granted after the last; type of the first payload, and the chain.
    pub request: (u8, Vec<u8>),
}

/// We sent IKE_AUTH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthSent {
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// What we called ourselves.
    pub local_id: Identity,
    /// What we have shown so far, and the peer.
    pub rounds: Rounds,
    /// We have no other IKE SA with this peer, and say so.
    pub initial_contact: bool,
    /// The child is asked for once the IKE SA is there (RFC 6023), not with it.
    pub childless: bool,
    /// The child that we asked for with it.
    pub child: ChildOffer,
}
