//! The usual drill: one member as gateway, one strongSwan peer, everything on
//! the wire captured.

use crate::capture::Capture;
use crate::checker::Findings;
use crate::connection::{Auth, Connection};
use crate::flow::{End, Flow};
use crate::lab::{Family, Lab, PROTECTED, inside};
use crate::member::{Member, Pool};
use crate::pki::{Certificate, Key, Pki};
use crate::sa::{Endpoint, Spis};
use crate::strongswan::{Esp, StrongSwan};
use crate::{Result, millis, secs, until};

/// What a drill wants.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The connection from the peer's view.
    pub peer: Connection,
    /// The connection from the gateway's view.
    pub gateway: Connection,
    /// Which strongSwan.
    pub esp: Esp,
    /// Pools of the member.
    pub pools: Vec<Pool>,
    /// The MTU of the internet segment.
    pub mtu: u32,
    /// Lines for charon's own section of strongswan.conf.
    pub charon: Vec<String>,
}

impl Setup {
    /// Peer 1 over `family`, with nothing special.
    #[must_use]
    pub fn new(family: Family) -> Self {
        let peer = Connection::peer(1, family);
        Self {
            gateway: peer.mirrored(),
            peer,
            esp: Esp::InUdp,
            pools: Vec::new(),
            mtu: 1500,
            charon: Vec::new(),
        }
    }

    /// Changes both sides in the same way.
    #[must_use]
    pub fn both(mut self, change: impl Fn(&mut Connection)) -> Self {
        change(&mut self.peer);
        change(&mut self.gateway);
        self
    }

    /// Both sides have certificates of these authorities, with keys of this kind; the way to sign is `auth`, named as in swanctl.conf.
    pub fn certify(&mut self, pki: &Pki, key: Key, auth: &str) -> Result<()> {
        let signs = |certificate: Certificate| Auth::Certificate {
            auth: auth.to_owned(),
            certificate,
        };
        self.peer.local_auth = signs(pki.issue("peer1.test", key)?);
        self.peer.remote_auth = signs(pki.issue("gw.test", key)?);
        self.gateway = self.peer.mirrored();
        Ok(())
    }

    /// Both sides have keys of this kind, which each knows of the other; there are no certificates.
    pub fn exchange_keys(&mut self, pki: &Pki, key: Key) -> Result<()> {
        self.peer.local_auth = Auth::RawKey(pki.issue("peer1.test", key)?);
        self.peer.remote_auth = Auth::RawKey(pki.issue("gw.test", key)?);
        self.gateway = self.peer.mirrored();
        Ok(())
    }
}

/// A member and a peer, with nothing established yet.
///
/// The fields end in this order: processes, then the namespaces.
#[derive(Debug)]
pub struct Duo<G = Member> {
    /// strongSwan on `peer1`.
    pub peer: StrongSwan,
    /// The gateway on `gw`.
    pub member: G,
    /// Everything on the wire.
    pub capture: Capture,
    /// The hosts.
    pub lab: Lab,
    /// The connection from the peer's view.
    pub connection: Connection,
}

/// The name of the connection and child of peer 1.
pub const C1: &str = "c1";

impl Duo {
    /// Starts both.
    pub fn start(setup: &Setup) -> Result<Self> {
        Self::start_with(setup, &[])
    }

    /// Starts both, the member with these environment variables.
    pub fn start_with(setup: &Setup, env: &[(&str, &str)]) -> Result<Self> {
        let mut lab = Lab::new(setup.mtu)?;
        lab.add_peer(1)?;
        let capture = Capture::start(&lab)?;
        let gateway = std::slice::from_ref(&setup.gateway);
        let member = Member::start_with(&lab, "gw", gateway, &setup.pools, env)?;
        Self::with(lab, capture, member, setup)
    }
}

impl<G: Endpoint> Duo<G> {
    /// Starts the peer beside a gateway that runs.
    pub fn with(lab: Lab, capture: Capture, member: G, setup: &Setup) -> Result<Self> {
        let connections = std::slice::from_ref(&setup.peer);
        let peer = StrongSwan::start_with(&lab, "peer1", setup.esp, connections, &setup.charon)?;
        Ok(Self {
            peer,
            member,
            capture,
            lab,
            connection: setup.peer.clone(),
        })
    }

    /// Traffic between the networks every `interval`, in this inner family.
    pub fn traffic(&self, family: Family, interval: u64) -> Result<Flow> {
        let index = usize::from(family == Family::V6);
        let addresses = inside(1);
        let (a, b): (End<'_>, End<'_>) = (("peer1", &addresses[index]), ("host", PROTECTED[index]));
        Flow::start(&self.lab, a, b, millis(interval), 200)
    }

    /// The SPIs that the member has.
    pub fn spis(&self) -> Result<Spis> {
        Ok(Spis::of(&self.member.sas()?))
    }

    /// Waits until both sides name the same live SAs, `children` Child SAs
    /// among them, and returns them from the member's view.
    pub fn agree(&self, children: usize) -> Result<Spis> {
        let mut agreed = Spis::default();
        until(secs(30), "both sides agree on their SAs", || {
            let (member, peer) = (self.member.sas()?, self.peer.sas()?);
            agreed = Spis::of(&member);
            if agreed == Spis::of(&peer).mirrored() && agreed.child.len() == children {
                return Ok(true);
            }
            anyhow::bail!("member: {member:?}\npeer: {peer:?}")
        })?;
        Ok(agreed)
    }

    /// The same once the member's SAs are so. strongSwan only begins a rekey that it is asked for, and one that has met an exchange of the member it begins
    /// again after up to half a minute.
    pub fn agree_on(&self, children: usize, so: impl Fn(&Spis) -> bool) -> Result<Spis> {
        until(secs(60), "the SAs are others", || Ok(so(&self.spis()?)))?;
        self.agree(children)
    }

    /// Ends both sides and judges the wire.
    pub fn finish(self) -> Result<Findings> {
        let Self {
            peer,
            member,
            capture,
            mut lab,
            ..
        } = self;
        drop((member, peer));
        let findings = capture.check(&[])?;
        findings.verdict()?;
        lab.passed();
        Ok(findings)
    }
}
