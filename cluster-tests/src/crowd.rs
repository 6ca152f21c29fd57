//! Three members around one virtual gateway, and any number of peers, which are simulated by one `evergate bench` on `peer1`.
//!
//! The network is that of [`cluster`](crate::cluster), without a capture: what peers see of IVs, the bench says.

use crate::cluster::{self, Gateway, MEMBERS, Pace, Plan, configure, host, wire};
use crate::connection::{Connection, SECRET};
use crate::lab::{Family, GATEWAY, Lab, PROTECTED};
use crate::member::{Member, binary};
use crate::{Result, secs, until};
use anyhow::{Context, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Where the peers' inner addresses are.
const CLIENT_NET: &str = "10.128.0.0/9";

/// How many packets were dropped, by where and why.
pub type Drops = BTreeMap<String, u64>;

/// The members.
#[derive(Debug)]
pub struct Crowd {
    /// A killed one stays in its place.
    pub members: Vec<Member>,
    /// The hosts.
    pub lab: Lab,
    /// The gateway's name.
    pub gateway: String,
}

impl Crowd {
    /// Starts the members, and waits until one serves the gateway. `change` is for the connection of the peers, from their view.
    ///
    /// # Errors
    /// If they do not start.
    pub fn start(pace: Pace, change: impl Fn(&mut Connection)) -> Result<Self> {
        let mut lab = Lab::new(1500)?;
        lab.add_peer(1)?;
        wire(&mut lab, MEMBERS)?;
        let mut peers = Connection {
            name: "many".into(),
            local_id: "*.test".into(),
            proposals: vec!["aes256gcm16-prfsha256-x25519".into()],
            local_ts: vec![CLIENT_NET.into()],
            remote_ts: vec!["10.10.2.0/24".into()],
            encap: true,
            unique: "never",
            // All come from one address.
            limits: "cookie_threshold = 0\ncookie_threshold_ip = 0\nblock_threshold = 0\nhalf_open = 100000".into(),
            ..Connection::peer(1, Family::V4)
        };
        change(&mut peers);
        let plan = Plan {
            hosts: MEMBERS,
            forming: MEMBERS,
            pace,
        };
        let gateway = Gateway::usual();
        let gateways = std::slice::from_ref(&gateway);
        let mut members = configure(&lab, plan, gateways, &peers.mirrored(), |_| None)?;
        for member in &mut members {
            member.spawn(&[])?;
        }
        let mut crowd = Self {
            members,
            lab,
            gateway: gateway.name,
        };
        crowd.active()?;
        Ok(crowd)
    }

    /// See [`cluster::active`].
    pub fn active(&mut self) -> Result<usize> {
        cluster::active(&mut self.members, &self.gateway)
    }

    /// See [`cluster::leader`].
    pub fn leader(&mut self) -> Result<usize> {
        cluster::leader(&mut self.members)
    }

    /// See [`cluster::place`].
    pub fn place(&mut self, on_leader: bool) -> Result<usize> {
        cluster::place(&mut self.members, &self.gateway, on_leader)
    }

    /// Starts a member that was killed, and waits until it has all that the others have.
    pub fn start_again(&mut self, n: usize) -> Result<()> {
        self.members[n].start_again(&[])?;
        let name = format!("m{}", n + 1);
        until(secs(60), "the member has caught up", || {
            let leader = self.leader()?;
            let text = self.members[leader].ctl(&["members", "--json"])?;
            let all: Vec<Value> = serde_json::from_str(&text)?;
            let this = all.iter().find(|m| m["name"] == *name);
            let this = this.context("it is no member")?;
            let lag = this["lag"].as_u64().unwrap_or(u64::MAX);
            let silence = this["acknowledged_ms"].as_u64().unwrap_or(u64::MAX);
            Ok(leader == n || (lag <= 2 && silence < 1000))
        })
    }

    /// Starts `evergate bench WHAT` with peers of this gateway.
    ///
    /// # Errors
    /// If it does not start.
    pub fn bench(&self, what: &str, arguments: &[&str]) -> Result<Bench> {
        let namespace = self.lab.namespace("peer1");
        let gateway = Family::V4.outer(GATEWAY);
        let program = std::env::var("BENCH_BIN").or_else(|_| binary())?;
        let log = self.lab.dir().join("bench.log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.args(["ip", "netns", "exec", &namespace, &program, "bench", what]);
        command.args(["--against", &gateway, "--local-net", CLIENT_NET]);
        command.args(["--remote-ts", "10.10.2.0/24", "--sockets", "8"]);
        command.args(arguments).env("EVERGATE_BENCH_PSK", SECRET);
        Bench::start(command.stderr(File::create(log)?))
    }

    /// The same with traffic to the host behind the gateway, and how many SAs came up: all, or it is an error.
    pub fn traffic(&self, sas: usize, arguments: &[&str]) -> Result<Bench> {
        let count = sas.to_string();
        let basic = ["--to", PROTECTED[0], "--count", &count, "--timeout", "600"];
        let mut bench = self.bench("traffic", &[&basic, arguments].concat())?;
        let up = bench.line(secs(700))?;
        ensure!(up["sas"] == sas, "not all SAs came up: {up}");
        Ok(bench)
    }

    /// What the kernel dropped on its way to the peers' sockets, because they were full.
    pub fn dropped_at_peers(&self) -> Result<u64> {
        self.dropped_by_sockets("peer1")
    }

    fn dropped_by_sockets(&self, host: &str) -> Result<u64> {
        let text = self.lab.exec(host, &["cat", "/proc/net/snmp"])?;
        let mut udp = text.lines().filter_map(|l| l.strip_prefix("Udp: "));
        let (names, values) = udp.next().zip(udp.next()).context("no counters of UDP")?;
        let mut both = names.split(' ').zip(values.split(' '));
        let found = both.find(|(name, _)| *name == "RcvbufErrors");
        Ok(found.context("RcvbufErrors")?.1.parse()?)
    }

    /// What was dropped up to now, by member and reason: by the members themselves that run, and by their kernels.
    pub fn drops(&self) -> Result<Drops> {
        let mut all = Drops::new();
        for (n, member) in self.members.iter().enumerate() {
            let (name, host) = (format!("m{}", n + 1), host(n));
            let mut add = |what: &str, count: u64| all.insert(format!("{name} {what}"), count);
            add("full socket", self.dropped_by_sockets(&host)?);
            // The device of the data plane is there while the member runs.
            let devices = "cd /sys/class/net; grep . */statistics/[rt]x_dropped 2>/dev/null; true";
            for line in self.lab.exec(&host, &["sh", "-c", devices])?.lines() {
                if let Some((device, count)) = line.split_once("/statistics/") {
                    let (what, count) = count.split_once(':').context("counters")?;
                    add(&format!("{device} {what}"), count.parse()?);
                }
            }
            let Ok(status) = member.status() else {
                continue;
            };
            for drops in [&status["data_plane"]["drops"], &status["ike_drops"]] {
                for (reason, count) in drops.as_object().into_iter().flatten() {
                    add(reason, count.as_u64().unwrap_or(0));
                }
            }
        }
        Ok(all)
    }

    /// How many IKE SAs and Child SAs a member knows as established.
    pub fn sas(&self, n: usize) -> Result<(u64, u64)> {
        let status = self.members[n].status()?;
        let number = |key: &str| status[key].as_u64().context("ctl status");
        Ok((number("ike_established")?, number("children")?))
    }

    /// Logs of the members but one, from these offsets on.
    pub fn logs_but(&self, n: usize, offsets: &[usize]) -> Result<String> {
        let mut text = String::new();
        for (i, member) in self.members.iter().enumerate().filter(|(i, _)| *i != n) {
            let log = member.log()?;
            text += log.get(offsets[i]..).unwrap_or_default();
        }
        Ok(text)
    }

    /// How long the members' logs are.
    pub fn log_offsets(&self) -> Result<Vec<usize>> {
        let length = |m: &Member| Ok(usize::try_from(m.log_path().metadata()?.len())?);
        self.members.iter().map(length).collect()
    }

    /// The process of a member.
    pub fn pid(&mut self, n: usize) -> Result<u32> {
        Ok(self.members[n].process()?.pid())
    }

    /// The host of a member.
    #[must_use]
    pub fn host(&self, n: usize) -> String {
        host(n)
    }
}

/// A running `evergate bench`. Dropping it ends it.
#[derive(Debug)]
pub struct Bench {
    child: Child,
    commands: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Bench {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the bench")?;
        let output = child.stdout.take().context("no output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let output = BufReader::new(output).lines();
            for line in output.map_while(std::result::Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            commands: child.stdin.take(),
            child,
            lines,
        })
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it a command.
    pub fn say(&mut self, command: &str) -> Result<()> {
        let commands = self.commands.as_mut().context("it was told to end")?;
        writeln!(commands, "{command}").context("the bench has ended")
    }

    /// Its next line.
    pub fn line(&mut self, patience: Duration) -> Result<Value> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => serde_json::from_str(&line).context(line),
            Err(RecvTimeoutError::Timeout) => bail!("the bench said nothing for {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the bench has ended"),
        }
    }

    /// Gives it a command, and returns what it answers.
    pub fn ask(&mut self, command: &str) -> Result<Value> {
        self.say(command)?;
        self.line(secs(120))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
