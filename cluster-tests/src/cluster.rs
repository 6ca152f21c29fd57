//! Three members around one or more virtual gateways, and a strongSwan peer.
//!
//! ```text
//! peer1 192.0.2.1 ── bridge ── peer11, peer12, peer13 (members m1, m2, m3)
//!                              │ 10.10.2.11 ...: inside   │ 10.77.0.11 ...: Raft
//! host 10.10.2.10 ─────────────┴── "gw", which is only two switches here
//! ```
//! The virtual gateway has 192.0.2.2 outside and 10.10.2.1 inside, as the one
//! gateway of other drills has.

use crate::capture::Capture;
use crate::checker::Findings;
use crate::connection::{Connection, Plane};
use crate::duo::C1;
use crate::flow::{Flow, Report};
use crate::lab::{Family, Lab, PROTECTED, inside};
use crate::member::{Member, binary};
use crate::process::run;
use crate::sa::{Endpoint, Spis};
use crate::strongswan::{Esp, StrongSwan};
use crate::{Result, millis, patience, secs, until};
use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// How many members there are.
pub const MEMBERS: usize = 3;

/// The host of member number `n`, from 0.
#[must_use]
pub fn host(n: usize) -> String {
    format!("peer{}", 11 + n)
}

/// A virtual gateway: its name, and its addresses outside and inside.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Its name.
    pub name: String,
    /// Outer addresses with prefixes.
    pub outer: Vec<String>,
    /// Inner addresses with prefixes.
    pub inner: Vec<String>,
}

impl Gateway {
    /// The one that all connections of the drills go to.
    #[must_use]
    pub fn usual() -> Self {
        let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Self {
            name: "g1".to_owned(),
            outer: text(&["192.0.2.2/24", "2001:db8::2/64"]),
            inner: text(&["10.10.2.1/24", "fd00:10:2::1/64"]),
        }
    }

    /// That one, and others without a peer, so that there are so many.
    #[must_use]
    pub fn several(count: usize) -> Vec<Self> {
        let more = (2..=count).map(|n| Self {
            name: format!("g{n}"),
            outer: vec![format!("192.0.2.{}/24", 20 + n)],
            inner: Vec::new(),
        });
        std::iter::once(Self::usual()).chain(more).collect()
    }
}

/// How soon members act on what they do not hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As configured by default: what is about times and gaps. Such a drill needs the machine for itself.
    Usual,
    /// Six times as patient, for what holds at any speed: a machine that is busy with other drills does not make members lose their leases.
    Patient,
    /// For `cluster-tests/guest`, where a member that has to wait for a processor may wait for seconds.
    Emulated,
}

impl Pace {
    /// Where processors are emulated no other will do.
    fn here(self) -> Self {
        match patience() {
            1 => self,
            _ => Self::Emulated,
        }
    }

    /// No gap of a takeover may be as long as this, with the stalls of a usual machine.
    #[must_use]
    pub fn longest_gap(self) -> Duration {
        match self.here() {
            Self::Usual => secs(1),
            Self::Patient => secs(6),
            Self::Emulated => secs(30),
        }
    }

    /// Lines for a member's `[cluster]`.
    fn toml(self) -> &'static str {
        match self.here() {
            Self::Usual => "",
            Self::Patient => {
                "lease = \"2100ms\"\nrenew = \"240ms\"\nheartbeat = \"120ms\"\nelection_min = \"360ms\"\nelection_max = \"600ms\"\n"
            }
            Self::Emulated => {
                "lease = \"12s\"\nrenew = \"1s\"\nheartbeat = \"600ms\"\nelection_min = \"1500ms\"\nelection_max = \"3s\"\n"
            }
        }
    }
}

/// How many hosts for members there are, and how many members form the cluster.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) hosts: usize,
    pub(crate) forming: usize,
    pub(crate) pace: Pace,
}

/// In which direction a member is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneWay {
    /// It hears the others, who do not hear it.
    Unheard,
    /// It is heard, and hears nothing.
    Deaf,
}

/// Members, a peer, and everything on the wire between them.
#[derive(Debug)]
pub struct Trio<P = StrongSwan> {
    /// The peer on `peer1`: strongSwan, unless it is a member by itself.
    pub peer: P,
    /// The members; a killed one stays in its place.
    pub members: Vec<Member>,
    /// Everything on the wire.
    pub capture: Capture,
    /// The hosts.
    pub lab: Lab,
}

impl Trio {
    /// Starts all, and waits until somebody serves the gateways.
    pub fn start(
        pace: Pace,
        esp: Esp,
        gateways: &[Gateway],
        change: impl Fn(&mut Connection),
    ) -> Result<Self> {
        Self::start_with(pace, esp, gateways, change, &[])
    }

    /// The same with members that have this environment.
    pub fn start_with(
        pace: Pace,
        esp: Esp,
        gateways: &[Gateway],
        change: impl Fn(&mut Connection),
        env: &[(&str, &str)],
    ) -> Result<Self> {
        Self::with_peer(
            pace,
            gateways,
            change,
            |_| None,
            env,
            |lab, connection| {
                StrongSwan::start(lab, "peer1", esp, std::slice::from_ref(connection))
            },
        )
    }

    /// Starts the first of so many members, which forms a cluster alone. The others are to [`Trio::join`].
    pub fn start_with_one(pace: Pace, esp: Esp, hosts: usize) -> Result<Self> {
        let start = |lab: &Lab, connection: &Connection| {
            StrongSwan::start(lab, "peer1", esp, std::slice::from_ref(connection))
        };
        let plan = Plan {
            hosts,
            forming: 1,
            pace,
        };
        Self::with_plan(plan, &[Gateway::usual()], |_| {}, |_| None, start, &[])
    }

    /// The same with a data plane of its own for each member, by its number from 0, and the kernel's for the peer: for `cluster-tests/guest`.
    pub fn start_in_kernels(planes: [Plane; MEMBERS]) -> Result<Self> {
        let start = |lab: &Lab, connection: &Connection| {
            let connections = std::slice::from_ref(connection);
            StrongSwan::start(lab, "peer1", Esp::Kernel, connections)
        };
        let plane = |n: usize| Some(planes[n]);
        Self::with_peer(
            Pace::Emulated,
            &[Gateway::usual()],
            |_| {},
            plane,
            &[],
            start,
        )
    }
}

impl Trio<Member> {
    /// The same with a member of its own as the peer.
    pub fn start_against_member(
        pace: Pace,
        gateways: &[Gateway],
        change: impl Fn(&mut Connection),
    ) -> Result<Self> {
        Self::with_peer(
            pace,
            gateways,
            change,
            |_| None,
            &[],
            |lab, connection| Member::start(lab, "peer1", std::slice::from_ref(connection), &[]),
        )
    }
}

impl<P: Endpoint> Trio<P> {
    fn with_peer(
        pace: Pace,
        gateways: &[Gateway],
        change: impl Fn(&mut Connection),
        plane: impl Fn(usize) -> Option<Plane>,
        env: &[(&str, &str)],
        start: impl Fn(&Lab, &Connection) -> Result<P>,
    ) -> Result<Self> {
        let plan = Plan {
            hosts: MEMBERS,
            forming: MEMBERS,
            pace,
        };
        Self::with_plan(plan, gateways, change, plane, start, env)
    }

    fn with_plan(
        plan: Plan,
        gateways: &[Gateway],
        change: impl Fn(&mut Connection),
        plane: impl Fn(usize) -> Option<Plane>,
        start: impl Fn(&Lab, &Connection) -> Result<P>,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let mut lab = Lab::new(1500)?;
        lab.add_peer(1)?;
        wire(&mut lab, plan.hosts)?;
        let mut peer = Connection::peer(1, Family::V4);
        change(&mut peer);
        let members = configure(&lab, plan, gateways, &peer.mirrored(), plane)?;
        let capture = Capture::start(&lab)?;
        let peer = start(&lab, &peer)?;
        let mut trio = Self {
            peer,
            members,
            capture,
            lab,
        };
        for member in &mut trio.members[..plan.forming] {
            member.spawn(env)?;
        }
        trio.all_serve()?;
        for gateway in gateways {
            trio.active(&gateway.name)?;
        }
        Ok(trio)
    }

    /// Lets a member join with a token that another one is asked for: `ctl member ARGUMENTS`.
    pub fn join(&mut self, n: usize, through: usize, arguments: &[&str]) -> Result<()> {
        let arguments = [&["member"], arguments].concat();
        let said = self.members[through].ctl(&arguments)?;
        let token = said.lines().next().context("no token")?;
        self.give_token(n, token)?;
        self.members[n].start_again(&[])
    }

    /// A member that helped to form the cluster is configured to join it instead, through another one.
    pub fn is_to_join(&self, n: usize, through: usize) -> Result<()> {
        let path = self.members[n].dir().join("evergate.toml");
        let token = self.members[n].dir().join("token");
        let join = format!(
            "join = [\"10.77.0.{}:4510\"]\njoin_token_file = \"{}\"",
            11 + through,
            token.display()
        );
        let lines = fs::read_to_string(&path)?;
        let lines = lines.lines().map(|line| match line {
            listed if listed.starts_with("members = ") => join.as_str(),
            other => other,
        });
        fs::write(&path, lines.collect::<Vec<_>>().join("\n") + "\n")?;
        Ok(())
    }

    /// The IKE SAs that a member knows of.
    pub fn sas_of(&self, n: usize) -> Result<Vec<crate::sa::IkeSa>> {
        self.members[n].sas()
    }

    /// Adds lines to a member's `[member]`, which it reads when it starts.
    pub fn configure_member(&self, n: usize, lines: &str) -> Result<()> {
        let path = self.members[n].dir().join("evergate.toml");
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains("[member]\n"), "{text}");
        let text = text.replacen("[member]\n", &format!("[member]\n{lines}\n"), 1);
        fs::write(&path, text)?;
        Ok(())
    }

    /// Waits until the numbers of gateways, by the names of members that have any, are as wanted, as far as member `n` knows.
    pub fn has_spread(
        &self,
        n: usize,
        wanted: impl Fn(&BTreeMap<String, usize>) -> bool,
    ) -> Result<()> {
        until(secs(30), "the gateways are spread as wanted", || {
            let text = self.members[n].ctl(&["gateways", "--json"])?;
            let gateways: Vec<Value> = serde_json::from_str(&text)?;
            let mut counts = BTreeMap::new();
            for gateway in gateways {
                let member = gateway["member"].as_str().unwrap_or_default().to_owned();
                *counts.entry(member).or_default() += 1;
            }
            ensure!(wanted(&counts), "{counts:?}");
            Ok(true)
        })
    }

    /// Puts a token where a member looks for it.
    pub fn give_token(&self, n: usize, token: &str) -> Result<()> {
        let path = self.members[n].dir().join("token");
        fs::write(&path, token)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// A member by its name, as member `n` sees it: an element of `ctl members --json`.
    pub fn member(&self, n: usize, name: &str) -> Result<Value> {
        let text = self.members[n].ctl(&["members", "--json"])?;
        let all: Vec<Value> = serde_json::from_str(&text)?;
        let found = all.into_iter().find(|m| m["name"] == name);
        found.with_context(|| format!("no {name} in {text}"))
    }

    /// Waits until a member sees these members and no others, all of them voters, and none on its way.
    pub fn has_voters(&self, n: usize, names: &[&str]) -> Result<()> {
        until(secs(30), "the members are as wanted", || {
            let text = self.members[n].ctl(&["members", "--json"])?;
            let all: Vec<Value> = serde_json::from_str(&text)?;
            let voters = all.iter().filter(|m| m["voter"] == true);
            let voters: Vec<&str> = voters.filter_map(|m| m["name"].as_str()).collect();
            let settled = all.iter().all(|m| m["way"] == "in" && m["voter"] == true);
            ensure!(voters == names && settled, "{text}");
            Ok(true)
        })
    }

    /// Waits until all members that run answer.
    pub fn all_serve(&mut self) -> Result<()> {
        for member in &mut self.members {
            if member.process().is_ok() {
                until(secs(60), "a member serves", || {
                    member.status().map(|_| true)
                })?;
            }
        }
        Ok(())
    }

    /// Waits until exactly one member that runs says that it serves a gateway, and returns its number.
    pub fn active(&mut self, gateway: &str) -> Result<usize> {
        active(&mut self.members, gateway)
    }

    /// Whether a member says that it serves a gateway.
    pub fn serves(&self, n: usize, gateway: &str) -> Result<bool> {
        serves(&self.members[n], gateway)
    }

    /// The number of the member that leads.
    pub fn leader(&mut self) -> Result<usize> {
        leader(&mut self.members)
    }

    /// Traffic between the networks every `interval` milliseconds, in this inner family.
    pub fn traffic(&self, family: Family, interval: u64) -> Result<Flow> {
        let index = usize::from(family == Family::V6);
        let addresses = inside(1);
        let (a, b) = (("peer1", &*addresses[index]), ("host", PROTECTED[index]));
        Flow::start(&self.lab, a, b, millis(interval), 200)
    }

    /// Fails if a datagram was lost or came twice. What members did with packets is said then.
    pub fn lost_nothing(&self, report: &Report) -> Result<()> {
        let lossless = report.is_lossless();
        if lossless.is_err() {
            for member in &self.members {
                eprintln!("{}", member.ctl(&["status"]).unwrap_or_default());
            }
        }
        lossless
    }

    /// Waits until the peer and the active member name the same live SAs, and returns them from the member's view.
    pub fn agree(&mut self, gateway: &str, children: usize) -> Result<Spis> {
        let active = self.active(gateway)?;
        let mut agreed = Spis::default();
        until(secs(30), "both sides agree on their SAs", || {
            let (member, peer) = (self.members[active].sas()?, self.peer.sas()?);
            agreed = Spis::of(&member);
            if agreed == Spis::of(&peer).mirrored() && agreed.child.len() == children {
                return Ok(true);
            }
            anyhow::bail!("member: {member:?}\npeer: {peer:?}")
        })?;
        Ok(agreed)
    }

    /// The same once they are so. strongSwan only begins a rekey that it is asked for, and one that has met an exchange of the member it begins again
    /// after up to half a minute.
    pub fn agree_on(
        &mut self,
        gateway: &str,
        children: usize,
        so: impl Fn(&Spis) -> bool,
    ) -> Result<Spis> {
        let mut agreed = Spis::default();
        until(secs(60), "both sides agree on other SAs", || {
            agreed = self.agree(gateway, children)?;
            Ok(so(&agreed))
        })?;
        Ok(agreed)
    }

    /// Starts a tunnel from the peer.
    pub fn up(&mut self, gateway: &str) -> Result<Spis> {
        self.peer.initiate(C1, C1)?;
        self.agree(gateway, 1)
    }

    /// Starts a member that was killed or stopped, and waits until it serves.
    pub fn start_again(&mut self, n: usize) -> Result<()> {
        self.members[n].start_again(&[])
    }

    /// Waits until a member that was started again has all that the others have: without it there may be no majority for what comes next.
    pub fn has_caught_up(&mut self, n: usize) -> Result<()> {
        let name = format!("m{}", n + 1);
        until(secs(60), "the member has caught up", || {
            let leader = self.leader()?;
            let this = self.member(leader, &name)?;
            let lag = this["lag"].as_u64().unwrap_or(u64::MAX);
            let silence = this["acknowledged_ms"].as_u64().unwrap_or(u64::MAX);
            Ok(leader == n || (lag <= 2 && silence < 1000))
        })
    }

    /// Has member `through` see to it that member `to` gets a gateway, and waits until it has it. Another member may just begin to lead, and the leader
    /// may not have heard of who was started a moment ago: then it is asked again.
    pub fn move_to(&self, through: usize, gateway: &str, to: usize) -> Result<()> {
        let name = format!("m{}", to + 1);
        until(secs(30), "the gateway moves", || {
            let moved = self.members[through].ctl(&["move", gateway, &name]);
            moved.map(|_| true)
        })
    }

    /// The network on which members talk to each other: cut, or joined again.
    pub fn cut(&self, n: usize, cut: bool) -> Result<()> {
        let state = if cut { "down" } else { "up" };
        self.lab.ip("gw", &format!("link set rp{n} {state}"))
    }

    /// Cuts a member off from the others in one direction only, or joins it again (`None`).
    pub fn cut_one_way(&self, n: usize, way: Option<OneWay>) -> Result<()> {
        let table = "table bridge oneway";
        self.lab
            .exec("gw", &["nft", &format!("{table}; delete {table}")])?;
        let Some(way) = way else { return Ok(()) };
        let port = match way {
            OneWay::Unheard => format!("iifname rp{n}"),
            OneWay::Deaf => format!("oifname rp{n}"),
        };
        // Neighbours stay known: without ARP the other direction would fail, too.
        let rules = format!(
            "{table} {{ chain forward {{ type filter hook forward priority 0; {port} ether type ip drop; }}; }}"
        );
        self.lab.exec("gw", &["nft", &rules]).map(drop)
    }

    /// Sends a signal to a member.
    pub fn signal(&mut self, n: usize, signal: Signal) -> Result<()> {
        self.members[n].process()?.signal(signal)
    }

    /// The Ethernet addresses from which the usual gateway's outer addresses spoke since then (microseconds of Unix time), ARP and neighbour
    /// advertisements included.
    pub fn speakers(&self, since: u64) -> Result<BTreeSet<String>> {
        let frames = self.capture.so_far()?;
        let recent = frames.iter().filter(|(at, _)| *at >= since);
        Ok(recent.filter_map(|(_, frame)| speaker(frame)).collect())
    }

    /// Ends all and judges the wire.
    pub fn finish(self) -> Result<Findings> {
        let Self {
            peer,
            members,
            capture,
            mut lab,
        } = self;
        drop((peer, members));
        let findings = capture.check(&[])?;
        findings.verdict()?;
        lab.passed();
        Ok(findings)
    }
}

/// Members that run.
fn running(members: &mut [Member]) -> Vec<usize> {
    let runs = members.iter_mut().map(|m| m.process().is_ok());
    let numbered = runs.enumerate().filter(|(_, runs)| *runs);
    numbered.map(|(n, _)| n).collect()
}

/// Waits until exactly one of those that run says that it serves a gateway, and returns its number.
pub fn active(members: &mut [Member], gateway: &str) -> Result<usize> {
    let running = running(members);
    let mut found = 0;
    until(secs(20), "one member is active", || {
        let mut active = Vec::new();
        for &n in &running {
            if serves(&members[n], gateway)? {
                active.push(n);
            }
        }
        found = active.first().copied().unwrap_or(0);
        Ok(active.len() == 1)
    })?;
    Ok(found)
}

/// Whether a member says that it serves a gateway.
pub fn serves(member: &Member, gateway: &str) -> Result<bool> {
    let status = member.status()?;
    let gateways = status["gateways"].as_array().context("no gateways")?;
    let this = |g: &&Value| g["name"] == *gateway && g["active"] == true;
    Ok(gateways.iter().any(|g| this(&g)))
}

/// The number of the one that leads.
pub fn leader(members: &mut [Member]) -> Result<usize> {
    let running = running(members);
    let mut found = 0;
    until(secs(20), "there is a leader", || {
        for &n in &running {
            if members[n].status()?["leads"] == true {
                found = n;
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    Ok(found)
}

/// Moves a gateway to, or away from, the member that leads, and says which member it is on.
pub fn place(members: &mut [Member], gateway: &str, on_leader: bool) -> Result<usize> {
    until(secs(20), "the gateway is where it is wanted", || {
        let (leader, active) = (leader(members)?, active(members, gateway)?);
        if (leader == active) == on_leader {
            return Ok(true);
        }
        let to = if on_leader {
            leader
        } else {
            (leader + 1) % members.len()
        };
        members[leader].ctl(&["move", gateway, &format!("m{}", to + 1)])?;
        Ok(false)
    })?;
    active(members, gateway)
}

/// Who sends a frame, if it is from an outer address of the usual gateway.
fn speaker(frame: &[u8]) -> Option<String> {
    let source: &[u8] = match frame.get(12..14)? {
        [0x08, 0x00] => frame.get(26..30)?,
        [0x08, 0x06] => frame.get(28..32)?,
        [0x86, 0xdd] => frame.get(22..38)?,
        _ => return None,
    };
    let v6: [u8; 16] = "2001:db8::2".parse::<Ipv6Addr>().ok()?.octets();
    // The target of a neighbour advertisement.
    let advertised = frame.get(54) == Some(&136) && frame.get(62..78) == Some(&v6[..]);
    let from = source == [192, 0, 2, 2] || source == v6 || advertised;
    let mac = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    from.then(|| mac(&frame[6..12]))
}

/// Makes the host `gw` of the lab two switches, and adds the members' hosts.
pub(crate) fn wire(lab: &mut Lab, hosts: usize) -> Result<()> {
    lab.ip("gw", "link del up0")?;
    lab.ip("gw", "addr flush dev in0")?;
    for bridge in ["inner", "raft"] {
        lab.ip(
            "gw",
            &format!("link add {bridge} type bridge mcast_snooping 0"),
        )?;
        lab.ip("gw", &format!("link set {bridge} up"))?;
    }
    lab.ip("gw", "link set in0 master inner")?;
    let switch = lab.namespace("gw");
    for n in 0..hosts {
        let number = u8::try_from(11 + n)?;
        let host = lab.add_peer(number)?;
        let namespace = lab.namespace(&host);
        for (device, port, bridge) in [("in0", "ip", "inner"), ("raft0", "rp", "raft")] {
            let line = format!(
                "ip link add {device} netns {namespace} type veth peer name {port}{n} netns {switch}"
            );
            run(&line.split_whitespace().collect::<Vec<_>>())?;
            lab.ip("gw", &format!("link set {port}{n} master {bridge} up"))?;
            lab.ip(&host, &format!("link set {device} up"))?;
        }
        lab.ip(&host, &format!("addr add 10.10.2.{number}/24 dev in0"))?;
        lab.ip(
            &host,
            &format!("addr add fd00:10:2::{number}/64 dev in0 nodad"),
        )?;
        lab.ip(&host, &format!("addr add 10.77.0.{number}/24 dev raft0"))?;
        let forward = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
        lab.exec(&host, &[&["sysctl", "-qw"], &forward[..]].concat())?;
    }
    Ok(())
}

/// Keys, certificates and configurations of the members.
pub(crate) fn configure(
    lab: &Lab,
    plan: Plan,
    gateways: &[Gateway],
    connection: &Connection,
    plane: impl Fn(usize) -> Option<Plane>,
) -> Result<Vec<Member>> {
    let pki = lab.dir_of("pki")?;
    let pki = pki.to_str().context("path")?;
    run(&[&binary()?, "keygen", "--out", &format!("{pki}/cluster.key")])?;
    run(&[&binary()?, "pki", "init", &format!("{pki}/ca")])?;
    let mut shared = String::new();
    for n in 1..=plan.forming {
        let _ = write!(
            shared,
            "{{ name = \"m{n}\", address = \"10.77.0.{}:4510\" }},",
            10 + n
        );
    }
    let mut members = Vec::new();
    for n in 1..=plan.hosts {
        let name = format!("m{n}");
        run(&[
            &binary()?,
            "pki",
            "issue",
            "--name",
            &name,
            &format!("{pki}/ca"),
        ])?;
        let mut text = format!(
            "[member]\nname = \"{name}\"\nstate_dir = \"{{dir}}/state\"\nkey_file = \"{{dir}}/cluster.key\"\nadmin_socket = \"{{dir}}/admin.sock\"\n{}\
             [cluster]\nlisten = \"10.77.0.{}:4510\"\nca = \"{pki}/ca/ca.pem\"\ncert = \"{pki}/ca/{name}.pem\"\nkey = \"{pki}/ca/{name}.key\"\n\
             {}\n{}{}",
            connection.member_toml(),
            10 + n,
            if n <= plan.forming {
                format!("members = [{shared}]")
            } else {
                "join = [\"10.77.0.11:4510\", \"10.77.0.12:4510\"]\njoin_token_file = \"{dir}/token\"".to_owned()
            },
            plan.pace.toml(),
            plane(n - 1).unwrap_or(connection.plane).toml()
        );
        for gateway in gateways {
            let list = |all: &[String]| {
                let quoted: Vec<String> = all.iter().map(|a| format!("\"{a}\"")).collect();
                quoted.join(", ")
            };
            let _ = write!(
                text,
                "[gateways.{}]\nouter = [{}]\ninner = [{}]\n",
                gateway.name,
                list(&gateway.outer),
                list(&gateway.inner)
            );
        }
        text.push_str(&connection.toml());
        let member = Member::with_config(lab, &host(n - 1), &text)?;
        fs::copy(
            format!("{pki}/cluster.key"),
            member.dir().join("cluster.key"),
        )?;
        members.push(member);
    }
    ensure!(members.len() == plan.hosts, "{} members", members.len());
    Ok(members)
}
