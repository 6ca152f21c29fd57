//! One end: a plane with Child SAs in a network namespace of its own, and what uses them.

use super::{
    CipherName, Encap,
    load::{Load, Sinks},
};
use anyhow::{Context, ensure};
use evergate_dataplane::{
    ChildSa, Cipher, DataPlane, Encapsulation, Encryption, Gate, HeaderPolicy, Marks, Mode,
    Offload, Outer, PlaneConfig, Protected, Selector, Userspace,
};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{BufRead, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};
use zeroize::Zeroizing;

/// The address behind the first end.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// Those behind the second end, from here on.
const SERVERS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const SERVERS_PREFIX: u8 = 9;
const FIRST_SPI: u32 = 0x1000;
/// More than a benchmark uses.
const RESERVATION: u64 = 1 << 48;

/// Arguments of one end.
#[derive(Debug, clap::Args)]
pub(crate) struct EndOptions {
    /// 1 sends, 2 receives
    #[arg(long)]
    number: u8,
    #[arg(long)]
    encap: Encap,
    #[arg(long)]
    cipher: CipherName,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sas: u32,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    hosts: u32,
}

impl EndOptions {
    /// The hosts behind the second end that a Child SA is for.
    fn hosts_of(&self, sa: u32) -> RangeInclusive<Ipv4Addr> {
        let (sa, sas, hosts) = (u64::from(sa), u64::from(self.sas), u64::from(self.hosts));
        let before = |sa: u64| u32::try_from(sa * hosts / sas).unwrap_or(self.hosts);
        server(before(sa))..=server(before(sa + 1).saturating_sub(1))
    }
}

/// What an end has done so far.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// Processor time of the plane's threads in nanoseconds, with what the kernel does in their name.
    pub(super) plane_cpu_ns: u64,
    /// Payload that the applications have received.
    pub(super) payload: u64,
    /// Packets of the plane, both ways.
    pub(super) packets: u64,
}

/// Runs `ip` with these arguments.
pub(super) fn ip(line: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(line.split(' ')).output();
    let output = output.context("iproute2 is needed")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {line}: {error}");
    Ok(())
}

/// Answers commands until there are no more.
pub(super) fn run(options: &EndOptions) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("no network namespace can be made: it takes root, or `unshare -Ur` before it")?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    let mut lines = std::io::stdin().lock().lines();
    let mut next = || lines.next().transpose();
    ensure!(next()?.is_some_and(|l| l == "set up"), "no command came");
    network(options)?;
    let by_link = options.encap == Encap::Link;
    let (plane, mut events) = Userspace::start(PlaneConfig {
        link_devices: by_link.then(|| "eg0".to_owned()).into_iter().collect(),
        ..PlaneConfig::default()
    })?;
    // Nobody has to act on them, but their queue must not be full.
    thread::spawn(move || while events.blocking_recv().is_some() {});
    install(options, &plane)?;
    let sinks = Sinks::open()?;
    let servers: Vec<IpAddr> = (0..options.hosts).map(|i| server(i).into()).collect();
    let servers = Arc::<[IpAddr]>::from(servers);
    let mut load = None;
    writeln!(out, "set up")?;
    while let Some(line) = next()? {
        match line.as_str() {
            "snapshot" => {
                let totals = plane.totals();
                let snapshot = Snapshot {
                    plane_cpu_ns: plane_cpu()?,
                    payload: sinks.received(),
                    packets: totals.packets_in + totals.packets_out,
                };
                writeln!(out, "{}", serde_json::to_string(&snapshot)?)?;
            }
            "stop" => {
                drop(load.take());
                writeln!(out, "stopped")?;
            }
            other => {
                load = Some(Load::start(other, &servers)?);
                writeln!(out, "started")?;
            }
        }
    }
    plane.shutdown();
    Ok(())
}

/// A host behind the second end.
fn server(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(SERVERS) + 1 + i)
}

fn outer(number: u8) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(192, 0, 2, number).into(), 4500)
}

fn network(options: &EndOptions) -> anyhow::Result<()> {
    for name in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        fs::write(&path, "0").with_context(|| format!("cannot write {path}"))?;
    }
    ip("link set lo up")?;
    ip(&format!(
        "addr add {}/24 dev eg0",
        outer(options.number).ip()
    ))?;
    ip("link set eg0 up")?;
    match options.number {
        1 => ip(&format!("addr add {CLIENT}/32 dev lo")),
        _ => ip(&format!(
            "route add local {SERVERS}/{SERVERS_PREFIX} dev lo"
        )),
    }
}

fn install(options: &EndOptions, plane: &Userspace) -> anyhow::Result<()> {
    let (me, peer) = (options.number, 3 - options.number);
    let protected = match me {
        1 => format!("{SERVERS}/{SERVERS_PREFIX}"),
        _ => format!("{CLIENT}/32"),
    };
    plane.protect(vec![Protected {
        prefix: protected.parse()?,
        source: None,
        bypass: false,
    }])?;
    let cipher: Cipher = match options.cipher {
        CipherName::Aes256gcm16 => Encryption::AesGcm16 { key_bits: 256 }.into(),
        CipherName::Chacha20poly1305 => Encryption::ChaCha20Poly1305.into(),
    };
    // As those of a virtual gateway have.
    let gate = Arc::<Gate>::default();
    let hosts = |addresses: RangeInclusive<Ipv4Addr>| {
        let (first, last) = addresses.into_inner();
        vec![Selector::addresses(first.into(), last.into())]
    };
    for i in 0..options.sas {
        let key = |direction: u8| {
            let mut key = vec![direction; cipher.material_len()];
            key[..4].copy_from_slice(&i.to_be_bytes());
            Zeroizing::new(key)
        };
        let spi = |of: u8| FIRST_SPI + 2 * i + u32::from(of);
        let (behind_me, behind_peer) = match me {
            1 => (hosts(CLIENT..=CLIENT), hosts(options.hosts_of(i))),
            _ => (hosts(options.hosts_of(i)), hosts(CLIENT..=CLIENT)),
        };
        plane.install(ChildSa {
            spi_in: spi(me),
            spi_out: spi(peer),
            cipher,
            key_in: key(me),
            key_out: key(peer),
            esn: true,
            replay_window: 1024,
            replay_edge: None,
            mode: Mode::Tunnel,
            outer: Outer {
                local: outer(me),
                remote: outer(peer),
                encapsulation: match options.encap {
                    Encap::Udp => Encapsulation::Udp,
                    Encap::None | Encap::Link => Encapsulation::None,
                },
            },
            local_ts: behind_me,
            remote_ts: behind_peer,
            outbound_active: true,
            gives_way: Duration::ZERO,
            reservation: 1..RESERVATION,
            headers: HeaderPolicy::default(),
            marks: Marks::default(),
            offload: Offload::No,
            source_hint: None,
            gate: Arc::clone(&gate),
        })?;
    }
    Ok(())
}

/// Processor time of the threads of the plane.
fn plane_cpu() -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let read = |file: &str| fs::read_to_string(task.join(file));
        // Threads of a load may just have ended.
        let (Ok(name), Ok(stat)) = (read("comm"), read("schedstat")) else {
            continue;
        };
        if name.starts_with("evergate-") {
            let time = stat
                .split(' ')
                .next()
                .and_then(|time| time.parse::<u64>().ok());
            sum += time.context("/proc/PID/task/TID/schedstat is not as expected")?;
        }
    }
    Ok(sum)
}
