//! One simulation from its beginning to its end.

use crate::{
    agreement,
    conductor::{self, MILLI, Random, SECOND},
    config::{self, Gateway, Peer},
    host::{Host, Part},
    network::{HostId, Weather},
    script::{Act, Script},
    secrecy,
    trace::{self, say},
    world::{Event, World},
};
use anyhow::Context;
use evergate_cluster::{pki, raft::Credentials, store::Disk};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// All tunnels are up within this time when nothing fails.
const BEGINNING: u64 = 40 * SECOND;

/// So long faults happen.
const FAULTS: (u64, u64) = (4, 11);

/// So long it may take after that until all is as it should be.
const HEALING: u64 = 45 * SECOND;

/// What is said of a cluster that is not well by then.
pub(crate) const UNWELL: &str = "not well in time";

/// Plays a seed to its end.
pub(crate) fn play(seed: u64, loud: bool, strict: bool, log: &str) -> ExitCode {
    let made = trace::begin(loud, log).and_then(|()| {
        let directory = tempfile::Builder::new()
            .prefix("evergate-simulation")
            .tempdir();
        directory.context("no directory")
    });
    let directory = match made {
        Ok(directory) => directory,
        Err(e) => {
            println!("{e:#}");
            return ExitCode::FAILURE;
        }
    };
    trace::called(format!("seed {seed}"));
    conductor::begin(seed);
    trace::name(conductor::WORLD, "world");
    let mut random = Random::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let (world, script) = match begin(seed, &mut random, directory.path()) {
        Ok(begun) => begun,
        Err(e) => trace::fatal(&format!("{e:#}")),
    };
    let summary = run(world, &script, strict, &mut random);
    // Only files of ours are in there, and nobody needs them.
    let _ = std::fs::remove_dir_all(directory.path());
    let happened = happened(world);
    println!(
        "seed {seed}: {summary}, digest {:016x}{FAULTS_WERE}{happened}",
        conductor::digest()
    );
    crate::leave(0)
}

/// What is said before [`happened`].
pub(crate) const FAULTS_WERE: &str = ", faults: ";

/// How often what happened.
fn happened(world: &World) -> String {
    let scene = world.scene();
    let all = scene.happened.iter();
    let all: Vec<_> = all.map(|(what, n)| format!("{what} {n}")).collect();
    all.join(", ")
}

/// Looks for keys on all disks.
fn search_disks(world: &World) {
    let disks: Vec<Disk> = world.scene().hosts.iter().map(|h| h.disk.clone()).collect();
    for blob in disks.iter().flat_map(Disk::content) {
        secrecy::search("a disk", &blob);
    }
}

/// Who there is.
fn begin(
    seed: u64,
    random: &mut Random,
    directory: &Path,
) -> anyhow::Result<(&'static World, Script)> {
    let first = if random.one_in(4) { 5 } else { 3 };
    // Three may become four.
    let members = if first == 3 { 4 } else { first };
    let gateways = config::gateways(u8::try_from(random.range(1, 4))?);
    let peers: Vec<Peer> = (1..=u8::try_from(random.range(2, 4))?)
        .map(|n| Peer::draw(n, &gateways, random))
        .collect();
    let authority = pki::authority()?;
    let mut hosts = Vec::new();
    for n in 1..=members {
        let pair = pki::issue(&authority, &format!("m{n}"))?;
        let directory = place(directory, &format!("m{n}"))?;
        hosts.push(Host {
            text: config::member(n, first, &gateways, &peers, &directory),
            part: if n > first { Part::Absent } else { Part::In },
            listens: config::listens(n),
            is_member: true,
            credentials: Some(Credentials {
                authority: authority.certificate.clone().into_bytes(),
                certificate: pair.certificate.into_bytes(),
                key: pair.key.as_bytes().to_vec().into(),
            }),
            ..host(format!("m{n}"), directory, random)
        });
    }
    for (n, peer) in (1..).zip(&peers) {
        let directory = place(directory, &format!("peer{n}"))?;
        hosts.push(Host {
            text: peer.text(n, &directory),
            address: Some(peer.address.into()),
            ..host(format!("peer{n}"), directory, random)
        });
    }
    say!(
        "{first} members, {} gateways, {} peers: {peers:?}",
        gateways.len(),
        peers.len()
    );
    let script = Script {
        members,
        first,
        hosts: hosts.len(),
        gateways: addresses(&gateways),
        from: 0,
        to: random.range(FAULTS.0, FAULTS.1) * SECOND,
    };
    Ok((World::create(seed, hosts, members, peers), script))
}

fn addresses(gateways: &[Gateway]) -> Vec<IpAddr> {
    gateways.iter().map(|g| g.address.into()).collect()
}

fn place(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let place = directory.join(name);
    std::fs::create_dir(&place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(place)
}

fn host(name: String, directory: PathBuf, random: &mut Random) -> Host {
    // Two of them differ by less than the 1 % that leases allow for.
    let ppm = i64::try_from(random.below(8000)).unwrap_or_default() - 4000;
    Host {
        name,
        directory,
        ppm,
        is_member: false,
        address: None,
        listens: String::new(),
        text: String::new(),
        credentials: None,
        disk: Disk::new(),
        process: None,
        plane: None,
        door: None,
        member: None,
        orders: None,
        off: BTreeSet::new(),
        guarded: BTreeSet::new(),
        deadly_send: None,
        deadly_append: None,
        damaged: false,
        disk_delay: 0,
        part: Part::In,
        asked: 0,
    }
}

/// What happens, and what comes of it.
fn run(world: &'static World, script: &Script, strict: bool, random: &mut Random) -> String {
    let act = |at: u64, act: Act| world.schedule(at, Event::Act(act));
    for host in 0..script.hosts {
        act(random.below(300) * MILLI, Act::Start(host));
    }
    for peer in 0..script.hosts - script.members {
        act(SECOND, Act::Traffic(peer));
    }
    act(SECOND, Act::Look);
    if let Some(missing) = until_well(world, 0, BEGINNING) {
        trace::fatal(&format!(
            "violated: every tunnel is up from the beginning: {missing}"
        ));
    }
    let began = conductor::now();
    say!("all is well, and faults begin");
    let faults = script.draw(random);
    for (at, fault) in faults {
        act(began + at, fault);
    }
    world.run_until(began + script.to);
    heal(world, script.hosts);
    let healed = conductor::now();
    let missing = until_well(world, healed, HEALING);
    search_disks(world);
    match missing {
        None => agreement::same_state(world),
        Some(missing) if strict => trace::fatal(&format!(
            "violated: every tunnel that should be up is: {} s after the last fault: {missing}",
            HEALING / SECOND
        )),
        Some(missing) => return format!("{UNWELL}: {missing}"),
    }
    let scene = world.scene();
    format!(
        "{} members, {:.1} s, well {:.1} s after the last fault, {} IKE messages, {} ESP packets, {} silenced",
        script.first,
        seconds(conductor::now()),
        seconds(conductor::now() - healed),
        scene.checks.ike,
        scene.checks.esp,
        scene.silenced
    )
}

/// Nothing fails any more.
fn heal(world: &World, hosts: HostId) {
    say!("nothing fails any more");
    world.cancel_faults();
    {
        let mut scene = world.scene();
        scene.cuts.heal();
        scene.weather = Weather::FINE;
        for host in &mut scene.hosts {
            host.disk_delay = 0;
            host.disk.mend();
            (host.deadly_send, host.deadly_append) = (None, None);
        }
    }
    for host in 0..hosts {
        Host::start(world, host);
    }
}

#[allow(clippy::cast_precision_loss)]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Waits until all is well, or returns what is not.
fn until_well(world: &World, since: u64, limit: u64) -> Option<String> {
    let end = conductor::now() + limit;
    loop {
        world.run_until(conductor::now() + 200 * MILLI);
        let missing = agreement::missing(world, since);
        match missing {
            None => return None,
            Some(what) if conductor::now() > end => return Some(what),
            Some(_) => {}
        }
    }
}
