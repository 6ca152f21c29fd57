//! Clusters whose members have their ESP in the kernel, or some of them: a tunnel goes from kernel to kernel, to a member that carries packets itself, and
//! back. Runs in `cluster-tests/guest`, where a boot and the start of a cluster take long: so it is one drill.

use crate::cluster_operators::is_told;
use anyhow::ensure;
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Trio, host};
use evergate_cluster_tests::connection::Plane::{Kernel, Userspace};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::lab::{PROTECTED, inside};
use evergate_cluster_tests::sa::Spis;
use evergate_cluster_tests::{Result, secs, until};
use nix::sys::signal::Signal;
use std::time::Instant;

const G: &str = "g1";

/// The members whose ESP is the kernel's, and the one that carries packets itself.
const KERNELS: [usize; 2] = [0, 1];
const OTHER: usize = 2;

/// So many datagrams each way show that traffic goes on.
const SOME: usize = 10;

/// A cluster, its tunnel, and traffic through it.
struct Run {
    trio: Trio,
    spis: Spis,
    flow: Flow,
    started: Instant,
}

fn name(n: usize) -> String {
    format!("m{}", n + 1)
}

/// The kernel member that is not this one.
fn twin(n: usize) -> usize {
    KERNELS[0] + KERNELS[1] - n
}

impl Run {
    fn start() -> Result<Self> {
        let started = Instant::now();
        let mut trio = Trio::start_in_kernels([Kernel, Kernel, Userspace])?;
        eprintln!("{:?}: the cluster serves", started.elapsed());
        let flow = trio.traffic(V4, 50)?;
        trio.members[OTHER].ctl(&["drain", &name(OTHER)])?;
        until(secs(10), "a kernel has the gateway", || {
            Ok(KERNELS.contains(&trio.active(G)?))
        })?;
        // The third could, but a tunnel may come to any of them.
        for n in KERNELS {
            let says = "cannot do transport mode: no member negotiates that";
            is_told(&trio, OTHER, "abilities", &name(n), says)?;
        }
        let spis = trio.up(G)?;
        Ok(Self {
            trio,
            spis,
            flow,
            started,
        })
    }

    /// Traffic goes on with the same SAs, which this member has now or soon. Until then a kernel may go on whose member is dead.
    fn goes_on(&mut self, what: &str, at: usize) -> Result<()> {
        until(secs(20), what, || self.trio.serves(at, G))?;
        let taken = self.started.elapsed();
        self.flow.runs(SOME, secs(20))?;
        ensure!(self.trio.agree(G, 1)? == self.spis, "other SAs: {what}");
        ensure!(self.trio.active(G)? == at, "somebody else has it: {what}");
        eprintln!("{taken:?}: {what}; {:?}: seen", self.started.elapsed());
        Ok(())
    }

    fn drain(&self, n: usize, undo: bool) -> Result<()> {
        let name = name(n);
        let all = ["drain", &name, "--undo"];
        let words = if undo { &all[..] } else { &all[..2] };
        self.trio.members[n].ctl(words).map(drop)
    }

    fn kill(&mut self, n: usize) -> Result<()> {
        self.trio.members[n].kill9()
    }

    /// What the kernel of a member has sent with states of the gateway, in packets.
    fn sent(&self, n: usize) -> Result<u64> {
        let states = self.states(n)?;
        let ours = states
            .split("\nsrc ")
            .filter(|s| s.trim_start_matches("src ").starts_with("192.0.2.2 "));
        let counts = ours.filter_map(|state| {
            let (_, after) = state.split_once("lifetime current:")?;
            let (_, packets) = after.lines().nth(1)?.split_once("(bytes), ")?;
            packets.strip_suffix("(packets)")?.parse::<u64>().ok()
        });
        Ok(counts.sum())
    }

    fn states(&self, n: usize) -> Result<String> {
        let command = ["ip", "-s", "xfrm", "state"];
        self.trio.lab.exec(&host(n), &command)
    }

    /// A member hears nothing of the others, so that its lease ends; it says so in its policies, and lets go once it hears that it was replaced.
    fn cut_off(&mut self, n: usize, successor: usize) -> Result<()> {
        self.trio.cut(n, true)?;
        until(secs(20), "another member takes over", || {
            self.trio.serves(successor, G)
        })?;
        until(secs(10), "policies without a lease block", || {
            let policies = self.trio.lab.exec(&host(n), &["ip", "xfrm", "policy"])?;
            Ok(policies.contains("action block"))
        })?;
        self.trio.cut(n, false)?;
        self.has_let_go(n)?;
        self.goes_on("a member was cut off, and came back", successor)
    }

    fn has_let_go(&self, n: usize) -> Result<()> {
        until(secs(20), "it has let go of its states", || {
            Ok(!self.states(n)?.contains("proto esp"))
        })
    }

    /// A member is stopped, so that its lease ends. Its kernel goes on with what comes to it, and the dead-man switch lets nothing of that out.
    fn freeze(&mut self, n: usize, successor: usize) -> Result<()> {
        self.trio.signal(n, Signal::SIGSTOP)?;
        until(secs(20), "another member takes over", || {
            self.trio.serves(successor, G)
        })?;
        self.flow.runs(SOME, secs(20))?;
        let (taken, before) = (now(), self.sent(n)?);
        // What is inside has not heard that the gateway went away.
        let [_, to] = inside(1);
        let old = format!("fd00:10:2::{}", 11 + n);
        self.trio
            .lab
            .ip("host", &format!("-6 route add {to}/128 via {old}"))?;
        let ping = ["ping", "-c", "3", "-i", "0.2", "-W", "1"];
        let ping = [&ping[..], &["-I", PROTECTED[1], &to]].concat();
        until(secs(20), "the stopped member's kernel encrypts", || {
            ensure!(
                self.trio.lab.exec("host", &ping).is_err(),
                "an answer by a member without a lease"
            );
            Ok(self.sent(n)? > before)
        })?;
        eprintln!(
            "{} packets of a member without a lease",
            self.sent(n)? - before
        );
        let speakers = self.trio.speakers(taken)?;
        ensure!(speakers.len() == 1, "these speak: {speakers:?}");
        self.trio
            .lab
            .ip("host", &format!("-6 route del {to}/128 via {old}"))?;
        self.trio.signal(n, Signal::SIGCONT)?;
        self.has_let_go(n)?;
        self.goes_on("a member was stopped, and came back", successor)?;
        let speakers = self.trio.speakers(taken)?;
        ensure!(speakers.len() == 1, "these speak: {speakers:?}");
        Ok(())
    }
}

/// From kernel to kernel by a kill, by a handover and by a cut; then to a member that carries packets itself by a handover, and from there to a kernel by a
/// kill. In the end a kernel goes on without its member, and without its lease.
#[test]
#[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
fn a_tunnel_goes_from_kernel_to_kernel_and_to_another_plane() -> Result<()> {
    let mut run = Run::start()?;
    let established = now();
    let first = run.trio.active(G)?;
    run.goes_on("it is up", first)?;

    run.kill(first)?;
    let second = twin(first);
    run.goes_on("kernel to kernel, by a kill", second)?;
    run.trio.start_again(first)?;

    run.drain(second, false)?;
    run.goes_on("kernel to kernel, handed over", first)?;
    run.has_let_go(second)?;
    run.drain(second, true)?;

    run.cut_off(first, second)?;

    run.drain(OTHER, true)?;
    run.trio.move_to(second, G, OTHER)?;
    run.goes_on("kernel to user space, handed over", OTHER)?;

    run.kill(OTHER)?;
    let third = run.trio.active(G)?;
    run.goes_on("user space to kernel, by a kill", third)?;
    run.trio.start_again(OTHER)?;

    run.drain(twin(third), false)?;
    run.freeze(third, OTHER)?;

    let Run { trio, flow, .. } = run;
    flow.stop().has_no_duplicate()?;
    let found = trio.finish()?;
    ensure!(found.authentications_after(established) == 0);
    let sent = found.esp_from("192.0.2.2");
    ensure!(sent > 0, "no ESP was seen");
    Ok(())
}
