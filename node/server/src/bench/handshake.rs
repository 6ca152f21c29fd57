//! `evergate bench handshake`: many clients set up IKE SAs with one responder.

use super::{
    clients::{Common, IdTemplate, Proof},
    links::{Ends, local_address},
    load::{Load, Plan, Shared},
    report::{Measured, Report, Tally},
    usage::{Usage, own_cpu},
};
use crate::clock::{Clock, SystemEntropy};
use anyhow::{Context, anyhow, bail, ensure};
use evergate_ike::{
    env::Entropy,
    identity::IdPattern,
    proposal::{EspProposal, IkeProposal},
    secret::Secret,
    selector::SelectorTemplate,
};
use ipnet::IpNet;
use std::{
    convert::Infallible,
    io::Write,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    str::FromStr,
    sync::atomic::AtomicU32,
    thread,
    time::{Duration, Instant},
};

/// Left for the responder to finish what a handshake started: what is counted as its cost is complete then.
const SETTLE: Duration = Duration::from_millis(300);
/// Deleting what was set up may take this long.
const CLEANUP: Duration = Duration::from_secs(30);

/// Arguments of `evergate bench handshake`, and of others that have the same peers.
#[derive(Debug, clap::Args)]
#[group(id = "peers")]
pub(super) struct Options {
    /// The responder: a name or an address
    #[arg(long, value_name = "HOST")]
    against: String,
    /// Its port for IKE
    #[arg(long, default_value_t = 500)]
    port: u16,
    /// Its port for IKE and ESP in UDP
    #[arg(long, default_value_t = 4500)]
    nat_port: u16,
    /// Local address; that of the route to the responder unless given
    #[arg(long, value_name = "ADDR")]
    local: Option<IpAddr>,
    /// Local port for IKE; any unless given. Only with one pair of sockets
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    local_port: u16,
    /// Local port for IKE and ESP in UDP, likewise
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    local_nat_port: u16,
    /// Pre-shared key of all clients
    #[arg(long, value_name = "TEXT", env = "EVERGATE_BENCH_PSK", hide_env_values = true, value_parser = secret, required_unless_present = "cert")]
    psk: Option<Secret>,
    /// Certificate of all clients, with those between it and a root, in PEM; the responder has one, too
    #[arg(long, value_name = "FILE", requires_all = ["key", "cacert"])]
    cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The authority above the responder's certificate
    #[arg(long, value_name = "FILE", requires = "cert")]
    cacert: Option<PathBuf>,
    /// Identities of the clients: %d is the number. With a certificate all may have the same
    #[arg(long, value_name = "TEXT", default_value = "client-%d.test")]
    id_template: IdTemplate,
    /// Number of the first client
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u32,
    /// What the responder must call itself
    #[arg(long, value_name = "ID", default_value = "%any")]
    remote_id: IdPattern,
    /// So many handshakes, each with an identity of its own
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// So many at a time
    #[arg(long, value_name = "C", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    concurrency: u16,
    /// Threads that make the load
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
    /// Pairs of sockets of each thread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    sockets: u8,
    /// IKE proposals
    #[arg(
        long = "proposal",
        value_name = "PROPOSAL",
        value_delimiter = ',',
        default_value = "aes256gcm16-prfsha256-x25519"
    )]
    proposals: Vec<String>,
    /// ESP proposals
    #[arg(
        long = "esp-proposal",
        value_name = "PROPOSAL",
        value_delimiter = ',',
        default_value = "aes256gcm16"
    )]
    esp_proposals: Vec<String>,
    /// What the clients want to reach
    #[arg(
        long,
        value_name = "SELECTOR",
        value_delimiter = ',',
        default_value = "0.0.0.0/0"
    )]
    remote_ts: Vec<SelectorTemplate>,
    /// Each client's traffic is that of its own address in this network; otherwise all have that of their outer address
    #[arg(long, value_name = "NET", conflicts_with = "vip")]
    local_net: Option<IpNet>,
    /// Each client asks for a virtual address
    #[arg(long)]
    vip: bool,
    /// Begin no handshake and wait for none after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Leave the SAs with the responder instead of deleting them afterwards
    #[arg(long)]
    keep: bool,
    /// A process of the responder, if it is on this machine: processor time and memory are reported. May be repeated
    #[arg(long = "responder-pid", value_name = "PID")]
    responder_pids: Vec<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text.as_bytes().to_vec()))
}

/// Runs the load and prints the report.
///
/// # Errors
/// If it cannot be run, or if not one handshake succeeded.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let report = measure(options)?;
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    ensure!(report.established > 0, "not one handshake succeeded");
    Ok(())
}

impl Options {
    /// How long handshakes may take.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    fn shared(&self) -> anyhow::Result<Shared> {
        let end = self.first.checked_add(self.count);
        Ok(Shared {
            clock: Clock::new(),
            next: AtomicU32::new(self.first),
            end: end.context("the numbers of the clients are too large")?,
        })
    }
}

/// What the only thread of a load is to do.
///
/// # Errors
/// If the options make no load, or one of several threads.
pub(super) fn one_thread(options: &Options) -> anyhow::Result<(Plan, Shared)> {
    let mut plans = plans(options)?;
    ensure!(plans.len() == 1, "this load has one thread");
    Ok((plans.remove(0), options.shared()?))
}

/// Runs the load.
pub(super) fn measure(options: &Options) -> anyhow::Result<Report> {
    let plans = plans(options)?;
    let shared = options.shared()?;
    let mut loads = plans
        .iter()
        .map(|plan| Load::new(plan, &shared))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let usage = || match options.responder_pids.is_empty() {
        true => Ok(None),
        false => Usage::of(&options.responder_pids).map(Some),
    };

    let (usage_before, own_before) = (usage()?, own_cpu());
    let began = Instant::now();
    let deadline = began + Duration::from_secs(options.timeout);
    on_threads(&mut loads, |load| load.connect_all(deadline))?;
    let own_cpu = own_cpu().saturating_sub(own_before);
    thread::sleep(SETTLE);
    let usage_after = usage()?;
    if !options.keep {
        let deadline = Instant::now() + CLEANUP;
        on_threads(&mut loads, |load| load.delete_all(deadline))?;
    }

    let mut tally = Tally::default();
    for load in loads {
        tally.add(load.into_tally());
    }
    let measured = Measured {
        against: plans
            .first()
            .map_or_else(String::new, |p| p.common.remote.to_string()),
        count: options.count,
        concurrency: usize::from(options.concurrency),
        threads: plans.len(),
        proposals: options.proposals.clone(),
        esp_proposals: options.esp_proposals.clone(),
        began,
        own_cpu,
        responder: usage_before.zip(usage_after),
    };
    Ok(Report::new(measured, tally))
}

/// Does the same on a thread for each.
fn on_threads<'s>(
    loads: &mut [Load<'s>],
    what: impl Fn(&mut Load<'s>) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let what = &what;
        let threads: Vec<_> = loads
            .iter_mut()
            .map(|load| scope.spawn(move || what(load)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().map_err(|_| anyhow!("a thread of the load died"))?)
    })
}

fn plans(options: &Options) -> anyhow::Result<Vec<Plan>> {
    let remote = resolve(&options.against, options.port, options.local)?;
    let local = match options.local {
        Some(local) => local,
        None => local_address(remote).with_context(|| format!("there is no way to {remote}"))?,
    };
    let threads = options
        .threads
        .min(u8::try_from(options.concurrency).unwrap_or(u8::MAX));
    let fixed = options.local_port != 0 || options.local_nat_port != 0;
    if fixed && (threads > 1 || options.sockets > 1) {
        bail!("local ports can only be given for one thread with one pair of sockets");
    }
    // Refused here, where they have a name.
    parsed::<IkeProposal>(&options.proposals)?;
    parsed::<EspProposal>(&options.esp_proposals)?;
    let proof = proof(options)?;
    ensure!(
        options.id_template.is_numbered() || matches!(proof, Proof::Certificate { .. }),
        "the identities of the clients need a %d, where their number belongs"
    );
    let common = Common {
        local,
        remote,
        proof,
        ids: options.id_template.clone(),
        remote_id: options.remote_id.clone(),
        proposals: options.proposals.clone(),
        esp_proposals: options.esp_proposals.clone(),
        remote_ts: options.remote_ts.clone(),
        local_net: options.local_net,
        vip: options.vip,
    };
    let total = usize::from(options.concurrency);
    let first_spi = SystemEntropy.next_u32();
    let plan = |thread: u8| Plan {
        thread,
        first_spi,
        common: common.clone(),
        links: usize::from(options.sockets),
        ends: Ends {
            local,
            local_ports: (options.local_port, options.local_nat_port),
            remote,
            remote_nat_port: options.nat_port,
        },
        // The remainder goes to the first ones.
        concurrency: (total + usize::from(threads - 1 - thread)) / usize::from(threads),
    };
    Ok((0..threads).map(plan).collect())
}

fn proof(options: &Options) -> anyhow::Result<Proof> {
    let files = (&options.cert, &options.key, &options.cacert);
    if let (Some(chain), Some(key), Some(authority)) = files {
        return Ok(Proof::Certificate {
            chain: chain.clone(),
            key: key.clone(),
            authority: authority.clone(),
        });
    }
    let psk = options.psk.clone();
    psk.map(Proof::Psk)
        .context("neither a pre-shared key nor a certificate is given")
}

/// The address of the responder, of the family of ours if that is given.
fn resolve(host: &str, port: u16, local: Option<IpAddr>) -> anyhow::Result<SocketAddr> {
    (host, port)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {host}"))?
        .find(|a| local.is_none_or(|l| l.is_ipv4() == a.is_ipv4()))
        .with_context(|| format!("{host} has no address of the family of the local one"))
}

fn parsed<T: FromStr>(texts: &[String]) -> anyhow::Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    texts
        .iter()
        .map(|t| t.parse().with_context(|| format!("proposal {t:?}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(more: &[&str]) -> Result<Options, clap::Error> {
        let basic = ["bench", "--against", "127.0.0.1", "--psk", "kept to itself"];
        Line::try_parse_from(basic.iter().chain(more)).map(|l| l.options)
    }

    #[test]
    fn concurrency_is_divided_without_loss() {
        for (threads, concurrency) in [("1", "1"), ("3", "16"), ("7", "5"), ("4", "4")] {
            let o = options(&["--threads", threads, "--concurrency", concurrency]).unwrap();
            let shares: Vec<_> = plans(&o).unwrap().iter().map(|p| p.concurrency).collect();
            assert_eq!(shares.iter().sum::<usize>().to_string(), concurrency);
            assert!(shares.iter().all(|s| *s > 0), "{shares:?}");
        }
    }

    #[test]
    fn the_secret_is_not_in_debug_output() {
        let shown = format!("{:?}", options(&[]).unwrap());
        assert!(!shown.contains("kept to itself"), "{shown}");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(options(&["--count", "0"]).is_err());
        assert!(options(&["--concurrency", "0"]).is_err());
        let o = options(&["--id-template", "client.test"]).unwrap();
        assert!(plans(&o).is_err(), "clients that all have one identity");
        assert!(options(&["--cert", "c.pem"]).is_err(), "without its key");
        assert!(options(&["--vip", "--local-net", "10.0.0.0/8"]).is_err());
        let o = options(&["--proposal", "aes256gcm16"]).unwrap();
        assert!(plans(&o).is_err(), "a proposal without group");
        let o = options(&["--local-port", "500", "--sockets", "2"]).unwrap();
        assert!(plans(&o).is_err(), "two sockets with one port");
    }
}
