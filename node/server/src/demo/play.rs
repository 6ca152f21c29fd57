//! The course of events.

#[cfg(feature = "drills")]
use super::rollback::Rollback;
use super::{
    Args,
    capture::Capture,
    gateway::{self, Gateway},
    network::{NetNs, Network},
    peer::{self, Peer},
    picture::Picture,
    progress::{Progress, Scene},
    report::{Facts, Kill, Report, Restart},
    topology::{Agreement, CLUSTER_DIR, OFFICE, Topology},
    traffic::{Host, Traffic},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use evergate_cluster::pki;
use evergate_dataplane::{DeadMan, DeadManConfig};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long anything may take: processes that start, SAs that come up, traffic that flows again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked whether something has come about.
const GLANCE: Duration = Duration::from_millis(5);
/// How often members are asked what they do.
const QUESTION: Duration = Duration::from_millis(100);
/// So many packets in each direction are taken for traffic that flows.
const FLOWING: usize = 100;
/// Undisturbed traffic before each kill and after the last.
const CALM: Duration = Duration::from_secs(1);
/// The time that packets under way may need to arrive.
const DRAIN: Duration = Duration::from_millis(300);
/// The longest gap that a cluster may need for a takeover, unless another one is given.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// Everything that runs. The fields end in this order: processes before the network.
struct Stage {
    members: Vec<Gateway>,
    peers: Vec<Peer>,
    /// The program that they are, with its version.
    peer: String,
    traffic: Option<Traffic>,
    capture: Capture,
    network: Network,
    progress: Progress,
    kills: (usize, usize),
    /// The gap of the last kill.
    gap: Option<Duration>,
    active: Option<Active>,
    asked: Option<Instant>,
    #[cfg(feature = "drills")]
    rollback: Option<Rollback>,
}

/// Who serves the virtual gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Active {
    /// Which member.
    index: usize,
    /// In which epoch.
    epoch: u32,
}

/// Plays it, with all files in `root`.
pub(super) async fn play(args: &Args, root: &Path) -> Result<Report> {
    let began = Instant::now();
    let topology = Topology::new(args.members, args.peers);
    let mut stage = Stage::set(args, &topology, root)?;
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
    let mut rekeyed = 0;
    if trouble.is_none() {
        let exchanged = stage.exchange(&mut rekeyed).await;
        trouble = exchanged
            .context("the SAs are there, but cannot be rekeyed")
            .err();
    }
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
    let given = args.max_gap.map(|ms| Duration::from_millis(ms.into()));
    Ok(Report::new(Facts {
        members: stage.members.len(),
        peers: stage.peers.len(),
        peer: stage.peer,
        kills,
        gap_limit: given.or(topology.is_cluster().then_some(LONGEST_GAP)),
        trouble: trouble.map(|error| format!("{error:#}")),
        totals,
        same_spis: before.same_spis(&after),
        reauthentications: begun_anew,
        before: before.summary(),
        after: after.summary(),
        rekeyed,
        wire,
        frames_missed,
        took: began.elapsed(),
    }))
}

impl Stage {
    /// Namespaces, links and files; nothing runs yet but the capture.
    fn set(args: &Args, topology: &Topology, root: &Path) -> Result<Self> {
        let mut progress = Progress::new();
        let secrets = topology.peers.iter().map(|_| secret());
        let agreement = Agreement {
            encap: args.encap,
            secrets: secrets.collect::<Result<_>>()?,
        };
        if topology.is_cluster() {
            check_nftables()?;
        }
        let network = Network::new(topology)?;
        let capture = Capture::start(&network.internet)?;
        make_cluster(topology, &root.join(CLUSTER_DIR))?;
        let mut members = Vec::new();
        for (member, ns) in topology.members.iter().zip(&network.members) {
            let config = topology.member_config(member, &agreement, root);
            members.push(Gateway::new(&member.name, ns, root, &config)?);
        }
        let (peers, peer) = peer::make(args.peer, topology, &network, &agreement, root)?;
        progress.event(&format!(
            "namespaces made for {} member(s), {} peer(s) ({peer}) and the hosts behind them",
            members.len(),
            peers.len()
        ));
        Ok(Self {
            members,
            peers,
            peer,
            traffic: None,
            capture,
            network,
            progress,
            kills: (0, usize::from(args.kills)),
            gap: None,
            active: None,
            asked: None,
            #[cfg(feature = "drills")]
            rollback: args
                .roll_back
                .then(|| Rollback::new(&root.join(&topology.members[0].name))),
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
            self.measure(kills)?;
            let active = self.wait_for_active().await?;
            let kill = self.kill(active).await?;
            self.gap = Some(kill.gap);
            kills.push(kill);
        }
        self.calm().await?;
        self.measure(kills)
    }

    /// After all that, both ends still understand each other's requests: first the peers rekey their Child SAs, then the active member does.
    async fn exchange(&mut self, rekeyed: &mut u64) -> Result<()> {
        for index in 0..self.peers.len() {
            *rekeyed += self.peers[index].rekey().await?;
        }
        self.wait_for_agreement().await?;
        let active = self.wait_for_active().await?;
        *rekeyed += self.members[active.index].rekey().await?;
        self.wait_for_agreement().await?;
        let since = self.now()?;
        self.wait_for_traffic(since).await
    }

    /// What happened until now belongs to the last kill: also when the killed member came back, nothing must stand still.
    fn measure(&mut self, kills: &mut [Kill]) -> Result<()> {
        if let Some(last) = kills.last_mut() {
            last.gap = self.gap(last.at)?;
            self.gap = Some(last.gap);
        }
        Ok(())
    }

    /// Members first, all at once, then the peers, which initiate.
    async fn start_all(&mut self) -> Result<()> {
        for member in &mut self.members {
            member.start()?;
        }
        for index in 0..self.members.len() {
            self.wait_for_member(index).await?;
        }
        let active = self.wait_for_active().await?;
        if self.members.len() > 1 {
            let text = format!(
                "{} members form a cluster; {} is active",
                self.members.len(),
                self.members[active.index].name()
            );
            self.progress.event(&text);
        }
        for peer in &mut self.peers {
            peer.start()?;
        }
        for peer in &mut self.peers {
            peer.initiate().await?;
        }
        self.wait_for_agreement().await?;
        let text = format!(
            "{} tunnel(s) up; a packet each way every millisecond",
            self.peers.len()
        );
        self.progress.event(&text);
        Ok(())
    }

    /// Kills the active member. Alone, it is started again at once; in a cluster another must go on first.
    async fn kill(&mut self, active: Active) -> Result<Kill> {
        let alone = self.members.len() == 1;
        let led = !alone && self.members[active.index].leads().await?;
        let at = self.now()?;
        self.members[active.index].kill()?;
        self.active = None;
        self.kills.0 += 1;
        if alone {
            self.restarted(active, at).await
        } else {
            self.taken_over(active, led, at).await
        }
    }

    /// A member that is alone comes back.
    async fn restarted(&mut self, active: Active, at: u64) -> Result<Kill> {
        #[cfg(feature = "drills")]
        if let Some(rollback) = &self.rollback {
            rollback.play()?;
        }
        let begun = self.now()?;
        self.members[active.index].start()?;
        self.wait_for_traffic_again(begun).await?;
        let traffic = self.traffic.as_ref().context("no traffic")?;
        let first = traffic.first_packets(begun).context("no packet")?;
        let kill = Kill {
            at,
            member: self.members[active.index].name().to_owned(),
            gap: self.gap(at)?,
            restart: Restart::Alone {
                first_packet: Duration::from_nanos(first.saturating_sub(begun)),
            },
        };
        self.progress.event(&format!(
            "kill {} of {}: {} killed with SIGKILL and started again: a gap of {} ms",
            self.kills.0,
            self.kills.1,
            kill.member,
            kill.gap.as_millis()
        ));
        Ok(kill)
    }

    /// Another member goes on; then the killed one is started again, and joins.
    async fn taken_over(&mut self, active: Active, led: bool, at: u64) -> Result<Kill> {
        self.wait_for_traffic_again(at).await?;
        let now = self.wait_for_active().await?;
        ensure!(
            now.epoch > active.epoch,
            "the epoch did not grow: {} after {}",
            now.epoch,
            active.epoch
        );
        let member = self.members[active.index].name().to_owned();
        let successor = self.members[now.index].name().to_owned();
        let gap = self.gap(at)?;
        self.progress.event(&format!(
            "kill {} of {}: {member}{} killed with SIGKILL; {successor} took over, epoch {}: a gap of {} ms",
            self.kills.0,
            self.kills.1,
            if led { ", the leader," } else { "" },
            now.epoch,
            gap.as_millis()
        ));
        let begun = Instant::now();
        self.members[active.index].start()?;
        self.wait_for_member(active.index).await?;
        let rejoined = begun.elapsed();
        self.progress.event(&format!(
            "{member} is a member again after {} ms",
            rejoined.as_millis()
        ));
        Ok(Kill {
            at,
            member,
            gap,
            restart: Restart::Cluster {
                led,
                successor,
                epoch: now.epoch,
                rejoined,
            },
        })
    }

    /// Waits until a member serves its administration API: it does once it has joined.
    async fn wait_for_member(&mut self, index: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let what = format!("{} is part of the cluster", self.members[index].name());
        while !self.members[index].serves().await {
            self.glance(end, &what).await?;
        }
        Ok(())
    }

    /// Waits until both ends have the same SAs.
    async fn wait_for_agreement(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !self
            .picture()
            .await
            .is_ok_and(|p| p.complete(self.peers.len()))
        {
            self.glance(end, "both ends have the same SAs").await?;
        }
        Ok(())
    }

    async fn wait_for_active(&mut self) -> Result<Active> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.asked = None;
            self.glance(end, "a member is active").await?;
            if let Some(active) = self.active {
                return Ok(active);
            }
        }
    }

    async fn wait_for_traffic_again(&mut self, since: u64) -> Result<()> {
        let flows = self.wait_for_traffic(since).await;
        flows.with_context(|| format!("no traffic after kill {}", self.kills.0))
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
        for member in &mut self.members {
            member.check()?;
        }
        for peer in &mut self.peers {
            peer.check()?;
        }
        if self.asked.is_none_or(|at| at.elapsed() >= QUESTION) {
            self.active = self.ask().await;
            self.asked = Some(Instant::now());
        }
        let scene = Scene {
            active: self.active.map(|a| (self.members[a.index].name(), a.epoch)),
            kills: self.kills,
            gap: self.gap,
            traffic: self.traffic.as_ref(),
        };
        self.progress.tick(&scene);
        tokio::time::sleep(GLANCE).await;
        Ok(())
    }

    /// Which member says that it is active. If several do, the one with the highest epoch is.
    async fn ask(&self) -> Option<Active> {
        let mut active: Option<Active> = None;
        for (index, member) in self.members.iter().enumerate() {
            let Some(epoch) = member.active_in().await else {
                continue;
            };
            if active.is_none_or(|a| a.epoch < epoch) {
                active = Some(Active { index, epoch });
            }
        }
        active
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

    /// The longest gap since then, also if it still lasts.
    fn gap(&self, since: u64) -> Result<Duration> {
        let traffic = self.traffic.as_ref().context("no traffic")?;
        Ok(traffic.longest_gap(since).max(traffic.silence()))
    }

    async fn picture(&self) -> Result<Picture> {
        Picture::take(&self.members, &self.peers).await
    }

    /// Shows what the members and the first peer have to say.
    fn show_logs(&mut self) {
        let members = self.members.iter().map(Gateway::log);
        for log in members.chain(self.peers.first().map(Peer::log)) {
            self.progress.event(&log);
        }
    }
}

/// What all members have: the cluster key, and certificates if there are several.
fn make_cluster(topology: &Topology, dir: &Path) -> Result<()> {
    gateway::make_key(dir)?;
    if topology.is_cluster() {
        pki::init(dir)?;
        for member in &topology.members {
            pki::issue_in(dir, &member.name)?;
        }
    }
    Ok(())
}

/// Members that share addresses have a switch in nftables. What the kernel says about it is said here, where it is understood.
fn check_nftables() -> Result<()> {
    let config = DeadManConfig {
        table: "evergate".to_owned(),
        devices: vec!["lo".to_owned()],
    };
    let made = NetNs::new()?.run(|| Ok(DeadMan::install(config, &[])?));
    made.map(drop).context(
        "members of a cluster need nftables, which keeps a dead member silent: load the kernel module (modprobe nf_tables), \
         or see a single member that is started again (evergate demo --members 1)",
    )
}

/// A new pre-shared key, as hexadecimal digits.
fn secret() -> Result<String> {
    let mut bytes = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("no randomness"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
