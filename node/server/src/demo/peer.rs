//! A peer of the cluster: our own initiator, or strongSwan.

use super::{
    charon::{Charon, Programs},
    gateway::{Gateway, Sa, make_key},
    network::{NetNs, Network},
    topology::{Agreement, Site, Topology},
};
use anyhow::Result;
use std::path::Path;

/// Which program the peers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Our own initiator
    Evergate,
    /// The installed strongSwan (charon-systemd and swanctl) with ESP in user space, which it always encapsulates in UDP
    Strongswan,
}

/// A peer. It initiates.
pub(super) enum Peer {
    /// Our own initiator.
    Evergate(Gateway),
    /// strongSwan.
    Strongswan(Charon),
}

impl Peer {
    /// Starts its process.
    pub(super) fn start(&mut self) -> Result<()> {
        match self {
            Self::Evergate(gateway) => gateway.start(),
            Self::Strongswan(charon) => charon.start(),
        }
    }

    /// Has it initiate, once it was started.
    pub(super) async fn initiate(&mut self) -> Result<()> {
        match self {
            // By its configuration.
            Self::Evergate(_) => Ok(()),
            Self::Strongswan(charon) => charon.load().await,
        }
    }

    /// Whether it was started.
    pub(super) fn is_started(&self) -> bool {
        match self {
            Self::Evergate(gateway) => gateway.is_started(),
            Self::Strongswan(charon) => charon.is_started(),
        }
    }

    /// Looks whether it still runs, if it was started.
    ///
    /// # Errors
    /// If it ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        match self {
            Self::Evergate(gateway) => gateway.check(),
            Self::Strongswan(charon) => charon.check(),
        }
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        match self {
            Self::Evergate(gateway) => gateway.log(),
            Self::Strongswan(charon) => charon.log(),
        }
    }

    /// Its established SAs.
    pub(super) async fn sas(&self) -> Result<Vec<Sa>> {
        match self {
            Self::Evergate(gateway) => gateway.sas().await,
            Self::Strongswan(charon) => charon.sas().await,
        }
    }

    /// Rekeys all of its Child SAs, and says how many.
    ///
    /// # Errors
    /// If the cluster does not answer, or refuses.
    pub(super) async fn rekey(&self) -> Result<u64> {
        match self {
            Self::Evergate(gateway) => gateway.rekey().await,
            Self::Strongswan(charon) => charon.rekey().await,
        }
    }
}

/// The peers, which do not run yet, and what they are.
pub(super) fn make(
    kind: Kind,
    topology: &Topology,
    network: &Network,
    agreement: &Agreement,
    root: &Path,
) -> Result<(Vec<Peer>, String)> {
    let sites = topology.peers.iter().zip(&network.peers).enumerate();
    if kind == Kind::Evergate {
        let make = |(index, (site, ns)): (usize, (&Site, &NetNs))| {
            let config = topology.peer_config(index, agreement, root);
            make_key(&root.join(&site.name))?;
            let gateway = Gateway::new(&site.name, ns, root, &config)?;
            Ok(Peer::Evergate(gateway))
        };
        let version = concat!("evergate ", env!("CARGO_PKG_VERSION"));
        return Ok((sites.map(make).collect::<Result<_>>()?, version.to_owned()));
    }
    let programs = Programs::find()?.copy(&root.join("strongswan"))?;
    let make = |(index, (site, ns)): (usize, (&Site, &NetNs))| {
        let config = topology.swanctl_config(index, agreement);
        let charon = Charon::new(&site.name, ns, root, &config, &programs)?;
        Ok(Peer::Strongswan(charon))
    };
    Ok((sites.map(make).collect::<Result<_>>()?, programs.version()))
}
