//! `evergate recover` and `evergate restore`: how a later generation of a cluster begins, on a member that does not run.

use crate::{
    clock,
    config::{self, ClusterConfig, Config, Member},
    policy, run,
};
use anyhow::{Context, bail, ensure};
use evergate_cluster::{
    Backup, Generation, KeyRing,
    raft::{Estate, Heir, Node},
    store::Storage,
};
use evergate_state::State;
use std::{
    fs,
    io::Write,
    net::{TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};
use tracing::info;

/// How long it is waited whether another member listens.
const LISTENS: Duration = Duration::from_secs(1);

/// Arguments of `evergate recover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Recover {
    /// The configuration file of this member
    #[arg(long, default_value = "/etc/evergate/evergate.toml")]
    config: PathBuf,
    /// Do it: the other members are dead, and none of them will be started again with what it has. Without this it is only said what would be done
    #[arg(long)]
    the_others_are_gone: bool,
}

/// Arguments of `evergate restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// The configuration file of this member
    #[arg(long, default_value = "/etc/evergate/evergate.toml")]
    config: PathBuf,
    /// Do it: no member of the former cluster runs, and none will be started again with what it has. Without this it is only said what would be done
    #[arg(long)]
    the_others_are_gone: bool,
    /// What `evergate ctl backup` made
    backup: PathBuf,
}

/// What both need.
struct Here {
    config: Config,
    member: Member,
    keys: KeyRing,
    storage: Storage,
}

impl Here {
    fn open(path: &Path) -> anyhow::Result<Self> {
        run::keep_secrets()?;
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
            .init();
        let config = config::load(path)?;
        let member = config.member.clone();
        let member = member.context("the configuration has no [member] table")?;
        Ok(Self {
            keys: KeyRing::from_file(&member.key_file)?,
            storage: Storage::Directory(member.state_dir.clone()),
            config,
            member,
        })
    }

    /// What is in the directory, which no process may use.
    fn estate(&self) -> anyhow::Result<Estate> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let opened = runtime.block_on(Estate::open(&self.storage, &self.keys));
        opened.with_context(|| format!("cannot use {}", self.member.state_dir.display()))
    }

    /// Waits until no lease of the former generation can run any more.
    fn outwait_leases(&self) {
        if let Some(cluster) = &self.config.cluster {
            thread::sleep(cluster.lease.surely(cluster.lease.grant));
        }
    }

    fn found(&self, estate: Estate, heir: &Heir) -> anyhow::Result<()> {
        self.outwait_leases();
        estate.found(heir)?;
        let (number, name) = (heir.generation.number, &heir.member.name);
        info!(
            event = "generation-founded",
            generation = number,
            member = name,
            policy = heir.state.policy_version(),
            "generation {number} of the cluster begins with {name} alone: start it, and let others join (evergate ctl member add)"
        );
        Ok(())
    }
}

/// Makes what one member has the beginning of a later generation.
///
/// # Errors
/// If there is nothing to go on with, another member answers, or the directory cannot be used.
pub(crate) fn recover(arguments: &Recover) -> anyhow::Result<()> {
    let here = Here::open(&arguments.config)?;
    ensure!(
        here.member.state_dir.join("meta").exists(),
        "there is nothing in {}: to begin from a backup, see `evergate restore`",
        here.member.state_dir.display()
    );
    let estate = here.estate()?;
    let name = &here.member.name;
    let members = estate.members();
    let own = members.iter().find(|(node, _)| node.name == *name);
    let dismissed = estate.read(|s| s.dismissed(estate.node()).is_some());
    let Some((own, _)) = own.filter(|_| !dismissed) else {
        bail!(
            "{name} is no member of the cluster that {} is of",
            here.member.state_dir.display()
        );
    };
    let others = members.iter().map(|(node, _)| node.clone());
    let mut others: Vec<Node> = others.filter(|node| node.name != *name).collect();
    ensure!(
        !others.is_empty() || estate.superseded().is_some(),
        "{name} is the only member: it needs nobody's consent, and there is nothing to recover"
    );
    let next = following(
        estate
            .generation()
            .max(estate.superseded().unwrap_or_default()),
    );
    let heir = Heir {
        generation: next,
        state: estate.read(State::heir),
        member: own.clone(),
    };
    say(&remains(&estate, name))?;
    say(&prospects(&heir))?;
    // After a recovery that broke off they are in the configuration only.
    let configured = configured(&here);
    let unknown = |node: &Node| others.iter().all(|known| known.address != node.address);
    let more: Vec<Node> = configured.into_iter().filter(unknown).collect();
    others.extend(more);
    let answers = look_for(others.iter())?;
    ensure!(
        answers.is_empty(),
        "{} still runs. What it has cannot be brought together with what is here: stop it first. If more than half of the voters run, no recovery is needed",
        answers.join(", ")
    );
    if !arguments.the_others_are_gone {
        return say(NOT_DONE);
    }
    here.found(estate, &heir)
}

/// Begins a later generation from a backup, in an empty directory.
///
/// # Errors
/// If the backup is no good, a former member answers, or the directory is not empty.
pub(crate) fn restore(arguments: &Restore) -> anyhow::Result<()> {
    let here = Here::open(&arguments.config)?;
    let file = arguments.backup.display();
    let bytes = fs::read(&arguments.backup).with_context(|| format!("cannot read {file}"))?;
    let backup = Backup::open(&bytes, &here.keys).with_context(|| file.to_string())?;
    let estate = here.estate()?;
    ensure!(
        estate.is_empty(),
        "{} is not empty: a member is restored into an empty one",
        here.member.state_dir.display()
    );
    let heir = Heir {
        generation: following(backup.generation),
        member: Node {
            name: here.member.name.clone(),
            address: address(&here.member.name, here.config.cluster.as_ref())?,
        },
        state: backup.state,
    };
    say(&format!(
        "{file} is of generation {}, taken {}; its members were {}\n",
        backup.generation.number,
        ago(backup.taken.0),
        backup.members.join(", ")
    ))?;
    say(&prospects(&heir))?;
    let answers = look_for(configured(&here).iter())?;
    ensure!(
        answers.is_empty(),
        "{} still runs: stop it first. If more than half of the voters run, nothing need be restored: a member that lost its disk joins again by itself",
        answers.join(", ")
    );
    if !arguments.the_others_are_gone {
        return say(NOT_DONE);
    }
    // What was restored stays, whatever the file says that has not been looked at since.
    policy::note_file(&here.config.policy, &here.member)?;
    here.found(estate, &heir)
}

const NOT_DONE: &str = "Nothing was changed. Addresses of virtual gateways would be used twice if a member of the former generation went on somewhere, unseen from here. If it is \
     certain that none does, and that none will be started again with what it has, do this once more with --the-others-are-gone\n";

fn following(former: Generation) -> Generation {
    former.next(clock::millis(SystemTime::now()))
}

/// Where other members reach a member.
fn address(name: &str, cluster: Option<&ClusterConfig>) -> anyhow::Result<String> {
    let Some(cluster) = cluster else {
        return Ok(String::new());
    };
    let listed = cluster.members.iter().find(|n| n.name == name);
    if let Some(node) = listed {
        return Ok(node.address.clone());
    }
    ensure!(
        !cluster.listen.ip().is_unspecified(),
        "where others reach {name} is not in the configuration: name it in `members`, or an address in `listen`"
    );
    Ok(cluster.listen.to_string())
}

/// What there is.
fn remains(estate: &Estate, name: &str) -> String {
    let members = estate.members();
    let voters = members.iter().filter(|(_, votes)| *votes).count();
    let mut names: Vec<&str> = members.iter().map(|(n, _)| n.name.as_str()).collect();
    names.sort_unstable();
    let (term, index) = estate.end().unwrap_or_default();
    let mut text = format!(
        "{name} was of generation {}, with {} members, {voters} of them voters: {}\n\
         its log ends with entry {index} of term {term}, and all of it counts; what others committed after that is lost. Of several survivors take the one with the \
         greatest term, and of those with the same term the one with the last entry\n",
        estate.generation().number,
        members.len(),
        names.join(", ")
    );
    let sas = estate.read(|s| s.sas().len());
    text += &format!("{sas} IKE SAs end: their peers set up new ones\n");
    if let Some(later) = estate.superseded() {
        text += &format!(
            "generation {} has begun elsewhere, or was to begin here: what is here is older than that\n",
            later.number
        );
    }
    text
}

/// What there will be.
fn prospects(heir: &Heir) -> String {
    let policy = heir.state.policy();
    let gateways: Vec<&str> = policy.gateways.iter().map(|g| g.name.as_str()).collect();
    format!(
        "generation {} will have {} alone ({}), policy version {} with {} connections, {} secrets and {} pools, the virtual gateways {}, and no SA\n",
        heir.generation.number,
        heir.member.name,
        if heir.member.address.is_empty() {
            "without other members"
        } else {
            &heir.member.address
        },
        heir.state.policy_version(),
        policy.connections.len(),
        policy.secrets.len(),
        policy.pools.len(),
        if gateways.is_empty() {
            "none".to_owned()
        } else {
            gateways.join(", ")
        },
    )
}

/// The members that listen where they should be.
fn look_for<'a>(others: impl Iterator<Item = &'a Node>) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for node in others {
        let listens = listens(&node.address);
        let what = if listens {
            "it answers"
        } else {
            "nobody answers"
        };
        say(&format!("{} ({}): {what}\n", node.name, node.address))?;
        if listens {
            found.push(node.name.clone());
        }
    }
    Ok(found)
}

/// The members that the configuration names, but this one.
fn configured(here: &Here) -> Vec<Node> {
    let Some(cluster) = &here.config.cluster else {
        return Vec::new();
    };
    let joined = cluster.join.iter().map(|address| Node {
        name: address.clone(),
        address: address.clone(),
    });
    let all = cluster.members.iter().cloned().chain(joined);
    let own = cluster.listen.to_string();
    all.filter(|n| n.name != here.member.name && n.address != own)
        .collect()
}

fn listens(address: &str) -> bool {
    let listens = |at| TcpStream::connect_timeout(&at, LISTENS).is_ok();
    address
        .to_socket_addrs()
        .is_ok_and(|mut all| all.any(listens))
}

/// How long ago that was, for people.
fn ago(then_ms: u64) -> String {
    let now = clock::millis(SystemTime::now()).0;
    let minutes = now.saturating_sub(then_ms) / 60_000;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
        (0, 0, minutes) => format!("{minutes} min ago"),
        (0, hours, minutes) => format!("{hours} h {minutes} min ago"),
        (days, hours, _) => format!("{days} d {hours} h ago"),
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(write!(std::io::stdout(), "{text}")?)
}
