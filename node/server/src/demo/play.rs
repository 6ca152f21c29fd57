//! The course of events.

use super::{
    Args,
    capture::Capture,
    gateway::{Gateway, Sa},
    network::Network,
    progress::{Progress, Scene},
    report::{Facts, Kill, Report, Sas},
    topology::{Agreement, OFFICE, Topology},
    traffic::{Host, Traffic},
};
use anyhow::{Context, Error, Result, anyhow, bail};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long anything may take: processes that start, SAs that come up, traffic that flows again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked whether something has come about.
const GLANCE: Duration = Duration::from_millis(5);
/// So many packets in each direction are taken for traffic that flows.
const FLOWING: usize = 100;
/// Undisturbed traffic before each kill and after the last.
const CALM: Duration = Duration::from_secs(1);
/// The time that packets under way may need to arrive.
const DRAIN: Duration = Duration::from_millis(300);

/// Everything that runs. The fields end in this order: processes before the network.
struct Stage {
    members: Vec<Gateway>,
    peers: Vec<Gateway>,
    traffic: Option<Traffic>,
    capture: Capture,
    network: Network,
    progress: Progress,
    kills: (usize, usize),
}

/// What all gateways say about their SAs.
#[derive(Debug, Default)]
struct Picture {
    members: Vec<Sa>,
    peers: Vec<Sa>,
}

/// Plays it, with all files in `dir`.
pub(super) async fn play(args: &Args, dir: &Path) -> Result<Report> {
    let began = Instant::now();
    let topology = Topology::new(args.peers);
    let mut stage = Stage::set(args, &topology, dir)?;
    let (before, handshakes) = match stage.establish(&topology).await {
        Ok(seen) => seen,
        Err(error) => {
            stage.show_logs();
            return Err(error);
        }
    };
    let mut kills = Vec::new();
    // What goes wrong from here on is a result, too.
    let mut trouble = stage.kill_again_and_again(&mut kills).await.err();
    let after = match stage.picture().await {
        Ok(after) => after,
        Err(error) => {
            trouble.get_or_insert(error);
            Picture::default()
        }
    };
    if trouble.is_some() {
        stage.show_logs();
    }
    stage.progress.clear();
    let mut traffic = stage.traffic.take().context("there was no traffic")?;
    traffic.stop_sending()?;
    tokio::time::sleep(DRAIN).await;
    let totals = traffic.finish()?;
    let (wire, frames_missed) = stage.capture.finish()?;
    let begun_anew = (wire.handshakes - handshakes).max(before.authenticated_again(&after));
    Ok(Report::new(Facts {
        members: stage.members.len(),
        peers: stage.peers.len(),
        kills,
        trouble: trouble.map(|error| format!("{error:#}")),
        totals,
        same_spis: before.same_spis(&after),
        reauthentications: begun_anew,
        before: before.summary(),
        after: after.summary(),
        wire,
        frames_missed,
        took: began.elapsed(),
    }))
}

impl Stage {
    /// Namespaces, links and files; nothing runs yet but the capture.
    fn set(args: &Args, topology: &Topology, dir: &Path) -> Result<Self> {
        let mut progress = Progress::new();
        let agreement = Agreement {
            encap: args.encap,
            secrets: topology
                .peers
                .iter()
                .map(|_| secret())
                .collect::<Result<_>>()?,
        };
        let network = Network::new(topology)?;
        let capture = Capture::start(&network.internet)?;
        let mut members = Vec::new();
        for (member, ns) in topology.members.iter().zip(&network.members) {
            let dir = dir.join(&member.name);
            let config = topology.member_config(member, &agreement, &dir);
            members.push(Gateway::new(&member.name, ns, &dir, &config)?);
        }
        let mut peers = Vec::new();
        for (index, (peer, ns)) in topology.peers.iter().zip(&network.peers).enumerate() {
            let dir = dir.join(&peer.name);
            let config = topology.peer_config(index, &agreement, &dir);
            peers.push(Gateway::new(&peer.name, ns, &dir, &config)?);
        }
        progress.event(&format!(
            "namespaces made for {} member(s), {} peer(s) and the hosts behind them",
            members.len(),
            peers.len()
        ));
        Ok(Self {
            members,
            peers,
            traffic: None,
            capture,
            network,
            progress,
            kills: (0, usize::from(args.kills)),
        })
    }

    /// From the start of the processes to traffic that flows. Gives the SAs and the number of handshakes until then.
    async fn establish(&mut self, topology: &Topology) -> Result<(Picture, u64)> {
        self.start_all().await?;
        self.traffic = Some(Traffic::start(&self.pairs(topology))?);
        let flows = self.wait_for_traffic(0).await;
        flows.context("no traffic through the new tunnels")?;
        let before = self.picture().await?;
        Ok((before, self.capture.findings().handshakes))
    }

    async fn kill_again_and_again(&mut self, kills: &mut Vec<Kill>) -> Result<()> {
        for _ in 0..self.kills.1 {
            self.calm().await?;
            let active = self.active().context("no member is active")?;
            kills.push(self.kill(active).await?);
        }
        self.calm().await
    }

    /// Members first, then the peers, which initiate.
    async fn start_all(&mut self) -> Result<()> {
        for index in 0..self.members.len() {
            self.members[index].start()?;
            let end = Instant::now() + PATIENCE;
            while !self.members[index].serves().await {
                self.glance(end, "a member serves").await?;
            }
        }
        for peer in &mut self.peers {
            peer.start()?;
        }
        let end = Instant::now() + PATIENCE;
        while !self
            .picture()
            .await
            .is_ok_and(|p| p.complete(self.peers.len()))
        {
            self.glance(end, "the tunnels are up").await?;
        }
        let text = format!(
            "{} tunnel(s) up; a packet each way every millisecond",
            self.peers.len()
        );
        self.progress.event(&text);
        Ok(())
    }

    /// Kills a member and starts it again.
    async fn kill(&mut self, index: usize) -> Result<Kill> {
        let killed = self.now()?;
        self.members[index].kill()?;
        self.kills.0 += 1;
        let restarted = self.now()?;
        self.members[index].start()?;
        let name = self.members[index].name().to_owned();
        self.wait_for_traffic(restarted)
            .await
            .with_context(|| format!("no traffic after kill {} of {name}", self.kills.0))?;
        let traffic = self.traffic.as_ref().context("no traffic")?;
        let first = traffic.first_packets(restarted).context("no packet")?;
        let kill = Kill {
            gap: traffic.longest_gap(killed),
            restart_to_first_packet: Duration::from_nanos(first.saturating_sub(restarted)),
        };
        self.progress.event(&format!(
            "kill {} of {}: {name} killed with SIGKILL and started again: a gap of {} ms",
            self.kills.0,
            self.kills.1,
            kill.gap.as_millis()
        ));
        Ok(kill)
    }

    /// Waits until packets that were sent after `since` arrive everywhere.
    async fn wait_for_traffic(&mut self, since: u64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !self
            .traffic
            .as_ref()
            .is_some_and(|t| t.flows(since, FLOWING))
        {
            self.glance(end, "packets arrive in both directions")
                .await?;
        }
        Ok(())
    }

    /// Lets it run.
    async fn calm(&mut self) -> Result<()> {
        let until = Instant::now() + CALM;
        while Instant::now() < until {
            self.glance(until + PATIENCE, "time goes by").await?;
        }
        Ok(())
    }

    /// Shows what is going on, and sleeps for a moment.
    async fn glance(&mut self, end: Instant, what: &str) -> Result<()> {
        if Instant::now() > end {
            bail!("not within {} seconds: {what}", PATIENCE.as_secs());
        }
        for gateway in self.members.iter_mut().chain(&mut self.peers) {
            gateway.runs()?;
        }
        let active = self.active();
        let scene = Scene {
            active: active.map(|index| self.members[index].name()),
            kills: self.kills,
            traffic: self.traffic.as_ref(),
        };
        self.progress.tick(&scene);
        tokio::time::sleep(GLANCE).await;
        Ok(())
    }

    /// Which member has the virtual gateway: with a single one, that one.
    fn active(&mut self) -> Option<usize> {
        self.members
            .iter_mut()
            .position(|m| m.runs().is_ok_and(|runs| runs))
    }

    fn pairs(&self, topology: &Topology) -> Vec<(Host, Host)> {
        let office = Host {
            ns: self.network.office.clone(),
            address: OFFICE,
        };
        let behind = topology.peers.iter().zip(&self.network.peer_hosts);
        let pair = behind.map(|(peer, ns)| Host {
            ns: ns.clone(),
            address: peer.host,
        });
        pair.map(|host| (office.clone(), host)).collect()
    }

    fn now(&self) -> Result<u64> {
        self.traffic
            .as_ref()
            .map(Traffic::now)
            .context("no traffic")
    }

    async fn picture(&self) -> Result<Picture> {
        let all = async |gateways: &[Gateway]| {
            let mut sas = Vec::new();
            for gateway in gateways {
                sas.extend(gateway.sas().await?);
            }
            sas.sort();
            Ok::<_, Error>(sas)
        };
        Ok(Picture {
            members: all(&self.members).await?,
            peers: all(&self.peers).await?,
        })
    }

    /// Shows what the first member and the first peer have to say.
    fn show_logs(&mut self) {
        let logs = [&self.members, &self.peers].map(|all| all.first().map(Gateway::log));
        for log in logs.into_iter().flatten() {
            self.progress.event(&log);
        }
    }
}

impl Picture {
    /// Whether each peer has a tunnel, and both ends agree on it.
    fn complete(&self, peers: usize) -> bool {
        self.members.len() == peers
            && self.members.iter().all(|sa| !sa.children.is_empty())
            && self
                .members
                .iter()
                .map(Sa::spis)
                .eq(self.peers.iter().map(Sa::spis))
    }

    /// Whether both ends have what both had.
    fn same_spis(&self, after: &Self) -> bool {
        let spis = |sas: &'_ [Sa]| -> Vec<_> {
            sas.iter().map(|sa| (sa.ike, sa.children.clone())).collect()
        };
        let all = [&self.members, &self.peers, &after.members, &after.peers];
        all.windows(2).all(|pair| spis(pair[0]) == spis(pair[1]))
    }

    /// How many IKE SAs were authenticated that were not before.
    fn authenticated_again(&self, after: &Self) -> u64 {
        let known = |sas: &[Sa], sa: &Sa| {
            sas.iter()
                .any(|s| (s.ike, s.authenticated_ms) == (sa.ike, sa.authenticated_ms))
        };
        let new = |before: &[Sa], after: &[Sa]| {
            after.iter().filter(|sa| !known(before, sa)).count() as u64
        };
        new(&self.members, &after.members).max(new(&self.peers, &after.peers))
    }

    fn summary(&self) -> Sas {
        Sas {
            count: self.members.iter().map(|sa| 1 + sa.children.len()).sum(),
            spis: self.members.iter().map(Sa::describe).collect(),
        }
    }
}

/// A new pre-shared key, as hexadecimal digits.
fn secret() -> Result<String> {
    let mut bytes = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("no randomness"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let sa = |n: u64| Sa {
            ike: (n, n + 1),
            authenticated_ms: Some(n),
            children: vec![(7, 8)],
        };
        Picture {
            members: vec![sa(1), sa(3)],
            peers: vec![sa(1), sa(3)],
        }
    }

    #[test]
    fn a_picture_is_complete_when_both_ends_agree() {
        assert!(picture().complete(2) && !picture().complete(1));
        let mut other = picture();
        other.peers[0].children = vec![(7, 9)];
        assert!(!other.complete(2));
        for sa in &mut other.members {
            sa.children.clear();
        }
        other.peers = other.members.clone();
        assert!(!other.complete(2));
    }

    #[test]
    fn changes_at_either_end_are_noticed() {
        let before = picture();
        assert!(before.same_spis(&picture()));
        assert_eq!(before.authenticated_again(&picture()), 0);
        let mut gone = picture();
        gone.peers.pop();
        assert!(!before.same_spis(&gone));
        let mut rekeyed = picture();
        rekeyed.members[1].children = vec![(9, 10)];
        rekeyed.peers[1].children = vec![(9, 10)];
        assert!(!before.same_spis(&rekeyed));
        assert_eq!(before.authenticated_again(&rekeyed), 0);
        let mut again = picture();
        again.peers[1].authenticated_ms = Some(99);
        assert_eq!(before.authenticated_again(&again), 1);
        assert_eq!(before.summary().count, 4);
    }
}
