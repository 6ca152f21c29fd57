//! No key in the clear: at rest, between members, in logs, or in a core dump.

use anyhow::{Context, ensure};
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::{Family::V4, walk};
use evergate_cluster_tests::process::Process;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};
use nix::sys::signal::Signal;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const G: &str = "g1";

/// So many bytes are to be looked through, of what is at rest and of what goes over the wire.
const ENOUGH: usize = 100_000;

/// All keys of SAs that a member had, as bytes: what is long and hexadecimal in its key log.
fn keys(member: &Path) -> Result<BTreeSet<Vec<u8>>> {
    let mut found = BTreeSet::new();
    for file in walk(&member.join("keys"))? {
        let text = fs::read_to_string(file)?;
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        for word in words.map(|w| w.trim_start_matches("0x")) {
            if word.len() >= 32 && word.bytes().all(|b| b.is_ascii_hexdigit()) {
                found.insert(unhex(word)?);
            }
        }
    }
    Ok(found)
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}

/// Looks for parts of secrets, as bytes and as hexadecimal text.
struct Search {
    parts: Vec<Vec<u8>>,
}

impl Search {
    fn new(secrets: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut parts = Vec::new();
        for secret in secrets {
            // Half a key does harm, too.
            let part = &secret[..secret.len().min(12)];
            let text: String = part.iter().map(|b| format!("{b:02x}")).collect();
            parts.extend([part.to_vec(), text.into_bytes()]);
        }
        Self { parts }
    }

    fn finds(&self, content: &[u8]) -> bool {
        let starts: BTreeSet<[u8; 2]> = self.parts.iter().map(|p| [p[0], p[1]]).collect();
        content.windows(2).enumerate().any(|(at, two)| {
            starts.contains(two) && self.parts.iter().any(|p| content[at..].starts_with(p))
        })
    }
}

/// What members have at rest, and their logs.
fn at_rest(trio: &Trio) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for member in &trio.members {
        files.extend(walk(&member.dir().join("state"))?);
        files.push(member.log_path());
    }
    Ok(files)
}

fn size(files: &[PathBuf]) -> Result<usize> {
    let mut size = 0;
    for file in files {
        size += usize::try_from(fs::metadata(file)?.len())?;
    }
    Ok(size)
}

#[test]
fn no_key_leaves_the_memory_of_a_member() -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |_| {})?;
    // What members say to each other.
    let wire = trio.lab.dir().join("members.pcap");
    let log = trio.lab.dir().join("members-tcpdump.log");
    let namespace = trio.lab.namespace("gw");
    let path = wire.to_str().context("path")?;
    let command = [
        "ip", "netns", "exec", &namespace, "tcpdump", "-i", "raft", "-U", "-w", path, "-Z", "root",
    ];
    let mut tcpdump = Process::start(&command, &[], &log)?;
    until(secs(10), "tcpdump listens", || {
        Ok(fs::read_to_string(&log)?.contains("listening on"))
    })?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    trio.peer.rekey_child(C1)?;
    trio.agree_on(G, 1, |now| now.child.is_disjoint(&up.child))?;
    trio.peer.rekey_ike(C1)?;
    let last = trio.agree_on(G, 1, |now| now.ike.is_disjoint(&up.ike))?;
    let active = trio.active(G)?;
    for n in 0..MEMBERS {
        let pid = trio.members[n].process()?.pid();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core"));
        let zero = core.is_some_and(|line| line.split_whitespace().nth(4) == Some("0"));
        ensure!(zero, "m{} may dump its memory: {core:?}", n + 1);
    }
    // How much members say depends on how often they come to it.
    until(secs(60), "there is enough to look through", || {
        let on_wire = usize::try_from(fs::metadata(&wire)?.len())?;
        Ok(size(&at_rest(&trio)?)? > ENOUGH && on_wire > ENOUGH)
    })?;
    trio.members[active].kill9()?;
    flow.runs(50, secs(20))?;
    trio.start_again(active)?;
    trio.peer.rekey_child(C1)?;
    trio.agree_on(G, 1, |now| now.child.is_disjoint(&last.child))?;
    flow.stop().has_no_duplicate()?;

    let mut secrets = BTreeSet::new();
    until(secs(20), "the keys are in the key logs", || {
        for member in &trio.members {
            secrets.extend(keys(member.dir())?);
        }
        ensure!(secrets.len() >= 10, "only {} keys are known", secrets.len());
        Ok(true)
    })?;
    let search = Search::new(secrets);
    let shown = trio.members[active].dir().join("keys/esp_sa");
    ensure!(
        search.finds(&fs::read(shown)?),
        "what is searched finds nothing"
    );
    tcpdump.stop(Signal::SIGINT)?;
    let mut looked = 0;
    for file in at_rest(&trio)? {
        let content = fs::read(&file)?;
        looked += content.len();
        ensure!(!search.finds(&content), "a key is in {}", file.display());
    }
    let content = fs::read(&wire)?;
    ensure!(
        looked > ENOUGH && content.len() > ENOUGH,
        "{looked}, {}",
        content.len()
    );
    ensure!(
        !search.finds(&content),
        "a key is on the wire between members"
    );
    trio.finish().map(drop)
}
