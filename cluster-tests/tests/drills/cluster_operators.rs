//! What operators do with a cluster: ask any member for anything, and stop a
//! member.

use anyhow::{Context, ensure};
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio, host};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};
use serde_json::Value;
use std::fs;

const G: &str = "g1";
/// The addresses of the usual gateway.
const ADDRESSES: [&str; 4] = [
    "192.0.2.2/24",
    "2001:db8::2/64",
    "10.10.2.1/24",
    "fd00:10:2::1/64",
];

fn start() -> Result<Trio> {
    Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |_| {})
}

/// Waits until a member knows what the active one does.
fn knows(trio: &Trio, n: usize, spis: &Spis) -> Result<()> {
    until(secs(20), "a standby member follows", || {
        Ok(Spis::of(&trio.members[n].sas()?) == *spis)
    })
}

/// What a member says of the packets of the only Child SA: in and out, if it knows.
fn counted(trio: &Trio, n: usize) -> Result<Option<(u64, u64)>> {
    let text = trio.members[n].ctl(&["sas", "--established", "--json"])?;
    let all: Value = serde_json::from_str(&text)?;
    let stats = &all[0]["children"][0]["stats"];
    Ok(stats["packets_in"]
        .as_u64()
        .zip(stats["packets_out"].as_u64()))
}

#[test]
fn any_member_does_what_an_operator_asks() -> Result<()> {
    let mut trio = start()?;
    let active = trio.active(G)?;
    for n in 0..MEMBERS {
        trio.members[n].initiate(C1, C1)?;
        let up = trio.agree(G, 1)?;
        let flow = trio.traffic(V4, 5)?;
        flow.runs(50, secs(10))?;
        flow.stop().has_no_duplicate()?;
        for other in 0..MEMBERS {
            // Who serves the SA has a second to say it.
            until(secs(20), &format!("m{} has counters", other + 1), || {
                let (packets_in, packets_out) = counted(&trio, other)?.context("no counters")?;
                Ok(packets_in >= 50 && packets_out >= 50)
            })?;
        }

        knows(&trio, n, &up)?;
        trio.members[n].rekey_child(C1)?;
        let child = trio.agree(G, 1)?;
        ensure!(child.ike == up.ike && child.child.is_disjoint(&up.child));
        knows(&trio, n, &child)?;
        trio.members[n].rekey_ike(C1)?;
        let ike = trio.agree(G, 1)?;
        ensure!(ike.child == child.child && ike.ike.is_disjoint(&child.ike));
        knows(&trio, n, &ike)?;
        trio.members[n].terminate(C1)?;
        until(secs(20), "the peer was told", || {
            Ok(trio.peer.sas()?.is_empty())
        })?;
        knows(&trio, n, &Spis::default())?;
    }
    ensure!(trio.active(G)? == active, "who asks gets no gateway");
    // Refusals are those of the member that was asked by the other.
    for n in 0..MEMBERS {
        for (arguments, reason) in [
            (["rekey", "--child", "0x00000001"], "there is no Child SA"),
            (["initiate", C1, "nope"], "has no child"),
            (["terminate", "--connection", C1], "has no IKE SA"),
        ] {
            let error = trio.members[n].ctl(&arguments).err().context("done")?;
            ensure!(error.to_string().contains(reason), "{error:#}");
        }
    }
    trio.finish().map(drop)
}

#[test]
fn an_operator_is_told_who_does_not_answer() -> Result<()> {
    let mut trio = start()?;
    trio.up(G)?;
    let active = trio.active(G)?;
    let asked = (active + 1) % MEMBERS;
    // Two of three do not move: nobody takes over.
    let other = (active + 2) % MEMBERS;
    trio.members[other].kill9()?;
    trio.members[active].kill9()?;
    let error = trio.members[asked]
        .ctl(&["initiate", C1, C1, "--timeout", "20"])
        .err()
        .context("a dead member did something")?;
    let expected = format!(
        "gateway \"{G}\" is served by m{}, which does not answer",
        active + 1
    );
    ensure!(error.to_string().contains(&expected), "{error:#}");
    // What is not known is not shown as zero.
    ensure!(counted(&trio, asked)?.is_none());
    for n in [active, other] {
        trio.members[n].spawn(&[])?;
    }
    trio.all_serve()?;
    trio.active(G)?;
    // Who was asked may hear a moment later than others who serves the gateway.
    until(secs(20), "it is done again", || {
        trio.members[asked].rekey_child(C1).map(|()| true)
    })?;
    trio.agree(G, 1)?;
    trio.finish().map(drop)
}

/// What is found to be wrong: subject, member and text.
fn found(trio: &Trio, n: usize) -> Result<Vec<[String; 3]>> {
    let told: Value = serde_json::from_str(&trio.members[n].ctl(&["doctor", "--json"])?)?;
    let all = told["findings"].as_array().context("no findings")?.iter();
    let text = |f: &Value, key: &str| f[key].as_str().unwrap_or_default().to_owned();
    Ok(all
        .map(|f| ["subject", "member", "text"].map(|key| text(f, key)))
        .collect())
}

/// Waits until a member says this of another, or of the cluster.
pub(crate) fn is_told(
    trio: &Trio,
    n: usize,
    subject: &str,
    member: &str,
    part: &str,
) -> Result<()> {
    until(secs(30), "the doctor says what is wrong", || {
        let all = found(trio, n)?;
        let this = |[s, m, t]: &[String; 3]| s == subject && m == member && t.contains(part);
        anyhow::ensure!(all.iter().any(this), "{all:?}");
        Ok(true)
    })
}

#[test]
fn the_doctor_says_in_words_what_is_wrong() -> Result<()> {
    let mut trio = start()?;
    let active = trio.active(G)?;
    let [asked, other] = [1, 2].map(|n| (active + n) % MEMBERS);
    let name = |n: usize| format!("m{}", n + 1);
    until(secs(30), "nothing is wrong", || {
        let text = trio.members[asked].ctl(&["doctor"])?;
        ensure!(text == "nothing is wrong; examined: m1, m2, m3\n", "{text}");
        Ok(found(&trio, asked)?.is_empty())
    })?;
    // An address of the gateway on another host.
    let device = |verb: &str| format!("addr {verb} 10.10.2.1/24 dev in0");
    trio.lab.ip(&host(other), &device("add"))?;
    is_told(
        &trio,
        asked,
        "address",
        &name(other),
        "10.10.2.1 of gateway g1 is on interfaces of",
    )?;
    trio.lab.ip(&host(other), &device("del"))?;
    trio.members[asked].ctl(&["drain", &name(other)])?;
    is_told(&trio, asked, "placement", &name(other), "drained")?;
    trio.members[asked].ctl(&["drain", &name(other), "--undo"])?;
    // One lost member, then two.
    trio.members[other].kill9()?;
    is_told(
        &trio,
        asked,
        "quorum",
        &name(other),
        "does not answer (it votes)",
    )?;
    is_told(
        &trio,
        asked,
        "quorum",
        &name(asked),
        "no further loss is borne",
    )?;
    trio.members[active].kill9()?;
    is_told(
        &trio,
        asked,
        "quorum",
        &name(asked),
        "2 of 3 voters do not answer",
    )?;
    for n in [active, other] {
        trio.members[n].spawn(&[])?;
    }
    trio.all_serve()?;
    trio.active(G)?;
    until(secs(30), "nothing is wrong any more", || {
        Ok(found(&trio, asked)?.is_empty())
    })?;
    trio.finish().map(drop)
}

/// What there is of a gateway on a member's host.
struct Left {
    tables: String,
    addresses: String,
    rules: String,
    routes: String,
}

impl Left {
    fn on(trio: &Trio, n: usize) -> Result<Self> {
        let look = |command: &[&str]| trio.lab.exec(&host(n), command);
        let both = |what: &[&str]| -> Result<String> {
            let v4 = look(&[&["ip", "-4"], what].concat())?;
            Ok(v4 + &look(&[&["ip", "-6"], what].concat())?)
        };
        Ok(Self {
            tables: look(&["nft", "list", "tables"])?,
            addresses: both(&["addr"])?,
            rules: both(&["rule"])?,
            routes: both(&["route", "show", "table", "all"])?,
        })
    }

    fn has_address(&self) -> bool {
        ADDRESSES.iter().any(|a| self.addresses.contains(a))
    }

    fn is_closed(&self) -> bool {
        self.rules.contains("lookup 220") && self.routes.contains("blackhole 10.10.1.1 table 220")
    }
}

#[test]
fn a_stopped_member_leaves_nothing_behind() -> Result<()> {
    let mut trio = start()?;
    let spis = trio.up(G)?;
    let first = trio.active(G)?;
    let running = Left::on(&trio, first)?;
    ensure!(running.tables.contains("evergate") && running.has_address());
    trio.members[first].stop()?;
    let stopped = Left::on(&trio, first)?;
    ensure!(!stopped.has_address(), "{}", stopped.addresses);
    ensure!(!stopped.tables.contains("evergate"), "{}", stopped.tables);
    // Protected prefixes stay closed, on purpose.
    ensure!(stopped.is_closed(), "{}", stopped.routes);
    ensure!(!stopped.routes.contains("dev evergate"));

    // Whoever is killed leaves the switch in front of what it had.
    let second = trio.active(G)?;
    ensure!(trio.agree(G, 1)? == spis);
    trio.start_again(first)?;
    trio.members[second].kill9()?;
    let killed = Left::on(&trio, second)?;
    ensure!(killed.tables.contains("evergate") && killed.has_address());
    let third = trio.active(G)?;
    ensure!(third != second && trio.agree(G, 1)? == spis);

    // With this, nothing at all is left of a member that ends in good order.
    let file = trio.members[second].dir().join("evergate.toml");
    let text = fs::read_to_string(&file)?;
    let opened = text.replace("[dataplane]\n", "[dataplane]\nkeep_closed = false\n");
    ensure!(opened != text, "{text}");
    fs::write(&file, opened)?;
    trio.start_again(second)?;
    trio.members[second].stop()?;
    let nothing = Left::on(&trio, second)?;
    ensure!(!nothing.has_address() && !nothing.tables.contains("evergate"));
    ensure!(!nothing.rules.contains("lookup 220"), "{}", nothing.rules);
    ensure!(!nothing.routes.contains("table 220"), "{}", nothing.routes);
    ensure!(trio.agree(G, 1)? == spis);
    trio.finish().map(drop)
}
