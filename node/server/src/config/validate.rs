//! The document as a whole: references, defaults that depend on others, and what contradicts itself.

use super::{
    Config, Problem, Severity,
    credentials::Known,
    document::{self, Dataplane, Document, PlaneKind},
    marks,
    values::{Named, PoolRange, Proposals, Remote, Text},
};
use evergate_ike::{
    config::{
        ChildConfig, Childless, Connection, EnableTcp, FRAGMENT_SIZE, Fragmentation, HeaderCopy,
        HwOffload, LocalAuth, Mode, Policy, Pool, PrivateKey, RemoteAuth, Retransmit, SharedSecret,
        StartAction, Unique,
    },
    identity::{IdPattern, Identity},
    proposal::{default_esp, default_ike},
    secret::Secret,
    selector::SelectorTemplate,
};
use ipnet::IpNet;
use std::{
    collections::HashMap,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    time::Duration,
};
use toml::Spanned;

/// The TCP port that every implementation supports (RFC 9329 §2).
const TCP_PORT: u16 = 4500;

/// What the anti-replay window may be, in packets.
const REPLAY_WINDOW: RangeInclusive<u32> = 64..=4096;
/// What the MTU of the TUN device may be: IPv6 needs 1280 (RFC 8200 §5).
const MTU: RangeInclusive<u16> = 1280..=65_000;
/// What the size of fragments may be, in bytes: every IPv4 host takes a packet of 576 (RFC 791 §3.1).
const FRAGMENT_SIZES: RangeInclusive<u16> = 576..=u16::MAX;
/// What the window of requests may be: each response of it is kept in the record of the IKE SA.
const WINDOW_SIZES: RangeInclusive<u8> = 1..=8;
/// How long a half-open IKE SA may wait for IKE_AUTH.
const HALF_OPEN_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);
/// Longest name of anything, in characters.
const MAX_NAME: usize = 64;
/// Bytes in the path of a program.
const MAX_PROGRAM: usize = 255;
/// Longest name of a network device, in bytes (IFNAMSIZ without its end).
const MAX_DEVICE_NAME: usize = 15;
/// Most workers that can be asked for.
const MAX_WORKERS: usize = 256;

/// Turns a document into a configuration.
pub(super) fn validate(
    document: Document,
    text: &str,
    directory: &Path,
) -> Result<Config, Vec<Problem>> {
    let mut check = Check {
        text,
        directory,
        plane: None,
        clustered: document.cluster.is_some(),
        problems: Vec::new(),
    };
    check.local(&document);
    let gateways = check.gateways(document.gateways.0);
    check.place(document.member.as_ref());
    let cluster = check.cluster(document.cluster, document.member.as_ref(), &gateways);
    let pools = check.pools(document.pools.0);
    let (secrets, private_keys) = check.secrets(document.secrets.0);
    let authorities = check.authorities(document.authorities.0);
    let ppks = check.ppks(document.ppks.0);
    let known = Known {
        keys: &private_keys,
        ppks: &ppks,
        authorities: &authorities,
    };
    // A file of policy alone is for members of any kind.
    let planes = document.member.is_some() || document.dataplane.is_some();
    let plane = document.dataplane.as_ref().map(Spanned::get_ref);
    check.plane = planes.then(|| plane.cloned().unwrap_or_default());
    let connections = check.connections(document.connections.0, &pools, &secrets, &known);
    let retransmit = check.retransmit(document.retransmit);
    let mut problems = check.problems;
    problems.sort_by_key(|p| (p.line, p.column));
    if problems.iter().any(|p| p.severity == Severity::Error) {
        return Err(problems);
    }
    Ok(Config {
        member: document.member.map(Spanned::into_inner),
        cluster,
        dataplane: document
            .dataplane
            .map(Spanned::into_inner)
            .unwrap_or_default(),
        limits: document.limits.map(Spanned::into_inner).unwrap_or_default(),
        policy: Policy {
            connections,
            secrets,
            ppks,
            private_keys,
            authorities,
            pools,
            retransmit,
            gateways,
        },
        warnings: problems,
    })
}

pub(super) struct Check<'a> {
    text: &'a str,
    pub(super) directory: &'a Path,
    /// The data plane of the member whose file it is.
    plane: Option<Dataplane>,
    /// Whether there are other members, which may have others.
    clustered: bool,
    problems: Vec<Problem>,
}

impl Check<'_> {
    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.problem(span, Severity::Error, message);
    }

    fn problem(&mut self, span: Range<usize>, severity: Severity, message: impl Into<String>) {
        let problem = Problem::at(self.text, span, severity, message);
        self.problems.push(problem);
    }

    /// The parts that are not replicated.
    fn local(&mut self, document: &Document) {
        if let Some(member) = &document.member {
            let (span, m) = (member.span(), member.get_ref());
            self.name(&Spanned::new(span.clone(), m.name.clone()), "member");
            if m.ike_port == m.nat_port {
                self.error(
                    span.clone(),
                    "ike_port and nat_port are the same, expected two ports",
                );
            }
            if m.workers.is_some_and(|w| !(1..=MAX_WORKERS).contains(&w)) {
                self.error(
                    span,
                    format!("workers is out of range, expected 1 to {MAX_WORKERS}"),
                );
            }
        }
        if let Some(dataplane) = &document.dataplane {
            let (span, d) = (dataplane.span(), dataplane.get_ref());
            if d.mark.0.value == 0 {
                let what = "mark must not be zero: that is the mark of all other packets";
                self.error(span.clone(), what);
            }
            let member = document.member.as_ref().map(Spanned::get_ref);
            if d.kind == PlaneKind::Xfrm && member.is_some_and(|m| m.listen_tcp) {
                let what =
                    "kind is xfrm, but listen_tcp is set: the kernel's data plane has no TCP";
                self.error(span.clone(), what);
            }
            let device = !d.tun.is_empty()
                && d.tun.len() <= MAX_DEVICE_NAME
                && d.tun
                    .chars()
                    .all(|c| c.is_ascii_graphic() && c != '/' && c != ':');
            if !device {
                let what = format!(
                    "tun is not the name of a device, expected up to {MAX_DEVICE_NAME} characters"
                );
                self.error(span.clone(), what);
            }
            if !MTU.contains(&d.mtu) {
                let what = format!(
                    "mtu is out of range, expected {} to {}",
                    MTU.start(),
                    MTU.end()
                );
                self.error(span.clone(), what);
            }
            if !(1..=evergate_dataplane::MAX_WORKERS).contains(&d.workers) {
                let most = evergate_dataplane::MAX_WORKERS;
                let what = format!("workers is out of range, expected 1 to {most}");
                self.error(span, what);
            }
        }
        if let Some(limits) = &document.limits
            && !HALF_OPEN_TIMEOUT.contains(&limits.get_ref().half_open_timeout.0)
        {
            let (low, high) = (HALF_OPEN_TIMEOUT.start(), HALF_OPEN_TIMEOUT.end());
            let what = format!("half_open_timeout is out of range, expected {low:?} to {high:?}");
            self.error(limits.span(), what);
        }
        if let Some(limits) = &document.limits
            && limits.get_ref().half_open == 0
        {
            self.error(
                limits.span(),
                "half_open is zero, expected how many half-open IKE SAs there may be",
            );
        }
    }

    /// Every wait stays below a day.
    fn retransmit(&mut self, given: Option<Spanned<document::Retransmit>>) -> Retransmit {
        const LONGEST: f64 = 86_400.0;
        let default = Retransmit::default();
        let Some(given) = given else {
            return default;
        };
        let span = given.span();
        let given = given.into_inner();
        let timeout = given.timeout.map_or(default.timeout, |t| t.0);
        let base = given
            .base
            .unwrap_or(f64::from(default.growth_percent) / 100.0);
        let tries = given.tries.unwrap_or(default.tries);
        let longest = timeout.as_secs_f64() * base.powf(f64::from(tries));
        if timeout.is_zero() || !(1.0..=10.0).contains(&base) || tries > 100 || longest >= LONGEST {
            let what = "these times cannot be used, expected a timeout above zero, a base from 1 to 10, \
                        up to 100 tries, and no wait of a day or more";
            self.error(span, what);
            return default;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 100 and 1000"
        )]
        let growth_percent = (base * 100.0).round() as u32;
        Retransmit {
            timeout,
            growth_percent,
            tries,
        }
    }

    pub(super) fn name(&mut self, name: &Spanned<String>, what: &str) {
        let n = name.get_ref();
        if n.is_empty() || n.chars().count() > MAX_NAME || n.chars().any(char::is_control) {
            let message = format!(
                "{n:?} is no name for a {what}, expected 1 to {MAX_NAME} printable characters"
            );
            self.error(name.span(), message);
        }
    }

    fn pools(&mut self, pools: Vec<(Spanned<String>, document::Pool)>) -> Vec<Pool> {
        let mut done: Vec<Pool> = Vec::new();
        for (name, pool) in pools {
            self.name(&name, "pool");
            let span = pool.addrs.span();
            let Text(PoolRange { first, last }) = pool.addrs.into_inner();
            let overlaps = |p: &&Pool| {
                p.first.is_ipv4() == first.is_ipv4() && p.first <= last && first <= p.last
            };
            if let Some(other) = done.iter().find(overlaps) {
                let message = format!(
                    "the addresses overlap with those of pool {:?}, expected each address in one pool",
                    other.name
                );
                self.error(span, message);
            }
            done.push(Pool {
                name: name.into_inner(),
                first,
                last,
                dns: pool.dns.into_iter().map(|t| t.0).collect(),
            });
        }
        done
    }

    fn secrets(
        &mut self,
        secrets: Vec<(Spanned<String>, Spanned<document::SharedSecret>)>,
    ) -> (Vec<SharedSecret>, Vec<PrivateKey>) {
        let (mut done, mut keys) = (Vec::new(), Vec::new());
        for (name, secret) in secrets {
            self.name(&name, "secret");
            let span = secret.span();
            let secret = secret.into_inner();
            if let Some(file) = &secret.file {
                keys.extend(self.key_of(&name, file, &secret, span));
                continue;
            }
            let value = self.secret(secret.secret, secret.secret_file, span);
            done.extend(value.map(|secret_value| SharedSecret {
                name: name.into_inner(),
                ids: secret.ids.into_iter().map(|t| t.0).collect(),
                secret: secret_value,
            }));
        }
        (done, keys)
    }

    /// A secret that is written there, or in a file.
    pub(super) fn secret(
        &mut self,
        secret: Option<Text<Secret>>,
        file: Option<Spanned<PathBuf>>,
        span: Range<usize>,
    ) -> Option<Secret> {
        match (secret, file) {
            (Some(Text(value)), None) => Some(value),
            (None, Some(file)) => self.secret_file(&file),
            _ => {
                self.error(span, "expected either \"secret\" or \"secret_file\"");
                None
            }
        }
    }

    /// A secret that is a private key in a file; its own secret is the passphrase.
    fn key_of(
        &mut self,
        name: &Spanned<String>,
        file: &Spanned<PathBuf>,
        secret: &document::SharedSecret,
        span: Range<usize>,
    ) -> Option<PrivateKey> {
        if !secret.ids.is_empty() {
            let what = "a private key belongs to its certificate, expected no ids";
            self.error(span.clone(), what);
        }
        let passphrase = match (&secret.secret, &secret.secret_file) {
            (None, None) => None,
            (Some(Text(value)), None) => Some(value.clone()),
            (None, Some(file)) => Some(self.secret_file(file)?),
            (Some(_), Some(_)) => {
                let what = "expected the passphrase in either \"secret\" or \"secret_file\"";
                self.error(span, what);
                return None;
            }
        };
        self.private_key(name, file, passphrase.as_ref())
    }

    /// A secret that is kept in a file of its own; one newline at the end is no part of it.
    fn secret_file(&mut self, file: &Spanned<PathBuf>) -> Option<Secret> {
        let mut bytes = self.file(file)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if bytes.is_empty() {
            let path = self.directory.join(file.get_ref());
            let what = format!("{} is empty, expected a secret", path.display());
            self.error(file.span(), what);
            return None;
        }
        Some(Secret::new(bytes))
    }

    fn connections(
        &mut self,
        connections: Vec<(Spanned<String>, Spanned<document::Connection>)>,
        pools: &[Pool],
        secrets: &[SharedSecret],
        known: &Known<'_>,
    ) -> Vec<Connection> {
        let mut done = Vec::new();
        for (name, connection) in connections {
            self.name(&name, "connection");
            done.push(self.connection(&name, connection.into_inner(), pools, secrets, known));
        }
        done
    }

    fn connection(
        &mut self,
        name: &Spanned<String>,
        c: document::Connection,
        pools: &[Pool],
        secrets: &[SharedSecret],
        known: &Known<'_>,
    ) -> Connection {
        let certificates = (c.send_cert, c.send_certreq);
        let (locals, remotes) = (&c.local.0, &c.remote.0);
        let local_id = locals.first().and_then(|l| l.id.clone()).map(|id| id.0);
        let remote_id = remotes.first().and_then(|r| r.id.clone()).map(|id| id.0);
        let mut auth = self.authentication(name, locals, remotes, certificates, known);
        auth.ppk = self.ppk_use(c.ppk_id, c.ppk_required, known);
        self.references(&c.pools, pools);
        let proposals = self.proposals(c.proposals, default_ike);
        let times = self.ike_times(c.rekey_time, c.reauth_time, c.over_time, c.rand_time);
        let bytes = (c.rekey_bytes, c.reauth_bytes, c.over_bytes, c.rand_bytes);
        let bytes = self.ike_volume("bytes", bytes);
        let packets = (
            c.rekey_packets,
            c.reauth_packets,
            c.over_packets,
            c.rand_packets,
        );
        let packets = self.ike_volume("packets", packets);
        let (remote_addrs, remote_names) = remotes_of(c.remote_addrs);
        let remote_port = c.remote_port.unwrap_or(500);
        let is_host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let named = !remote_names.is_empty();
        let reachable = remote_port != 0 && (named || remote_addrs.iter().any(is_host));
        let children = self.children(name, c.children, reachable);
        let connection = Connection {
            name: name.get_ref().clone(),
            local_addrs: c.local_addrs.into_iter().flat_map(|t| t.0.0).collect(),
            remote_addrs,
            remote_names,
            remote_port,
            proposals,
            local_id,
            remote_id: remote_id.unwrap_or(IdPattern::Any),
            auth,
            encap: c.encap,
            vips: c.vips.into_iter().map(|t| t.0).collect(),
            pools: c.pools.into_iter().map(Spanned::into_inner).collect(),
            rekey_time: times.rekey,
            reauth_time: times.reauth,
            over_time: times.over,
            rand_time: times.rand,
            bytes,
            packets,
            dpd_delay: c.dpd_delay.map_or(Duration::ZERO, |t| t.0),
            message_id_sync: c.message_id_sync,
            window_size: self.within(c.window_size, "window_size", WINDOW_SIZES, 1),
            keyingtries: c.keyingtries,
            enable_tcp: c.enable_tcp.map_or_else(EnableTcp::default, |e| e.0),
            tcp_remote_port: self.within(
                c.tcp_remote_port,
                "tcp_remote_port",
                1..=u16::MAX,
                TCP_PORT,
            ),
            mobike: c.mobike,
            return_routability: c.return_routability,
            childless: c.childless.map_or_else(Childless::default, |c| c.0),
            unique: c.unique.map_or_else(Unique::default, |u| u.0),
            fragmentation: c.fragmentation.map_or_else(Fragmentation::default, |f| f.0),
            fragment_size: self.within(
                c.fragment_size,
                "fragment_size",
                FRAGMENT_SIZES,
                FRAGMENT_SIZE,
            ),
            children,
        };
        self.has_what_it_needs(name, &connection, secrets);
        connection
    }

    /// Warns of a connection with which nobody can authenticate.
    fn has_what_it_needs(
        &mut self,
        name: &Spanned<String>,
        connection: &Connection,
        secrets: &[SharedSecret],
    ) {
        if !has_secrets(connection, secrets) {
            let what = format!(
                "no secret fits connection {:?}: its peers cannot authenticate",
                connection.name
            );
            self.problem(name.span(), Severity::Warning, what);
        }
    }

    fn children(
        &mut self,
        connection: &Spanned<String>,
        children: Named<document::Child>,
        reachable: bool,
    ) -> Vec<ChildConfig> {
        if children.0.is_empty() {
            let name = connection.get_ref();
            let what = format!("connection {name:?} has no children: it carries nothing");
            self.problem(connection.span(), Severity::Warning, what);
        }
        let children = children.0.into_iter();
        children
            .map(|(name, child)| self.child(name, child, reachable))
            .collect()
    }

    /// A connection's pools must exist, each once.
    fn references(&mut self, names: &[Spanned<String>], pools: &[Pool]) {
        let mut seen = HashMap::new();
        for name in names {
            let n = name.get_ref();
            if !pools.iter().any(|p| p.name == *n) {
                let message = format!("there is no pool {n:?}, expected {}", known(pools));
                self.error(name.span(), message);
            } else if seen.insert(n, ()).is_some() {
                self.error(
                    name.span(),
                    format!("pool {n:?} is named twice, expected once"),
                );
            }
        }
    }

    fn child(&mut self, name: Spanned<String>, c: document::Child, reachable: bool) -> ChildConfig {
        self.name(&name, "child");
        self.for_the_plane(&c);
        let marks = marks::of(&c);
        let rekey_time = c.rekey_time.map_or(Duration::from_secs(3600), |t| t.0);
        let life_time = match c.life_time {
            None => rekey_time * 11 / 10,
            Some(life) => {
                let value = life.get_ref().0;
                if !value.is_zero() && value <= rekey_time {
                    self.error(
                        life.span(),
                        "life_time is not longer than rekey_time, expected time to rekey",
                    );
                }
                value
            }
        };
        let rand_time = self.rand_time(
            c.rand_time,
            life_time.saturating_sub(rekey_time),
            rekey_time,
        );
        let dynamic = || {
            vec![SelectorTemplate::Dynamic {
                protocol: 0,
                start_port: 0,
                end_port: u16::MAX,
            }]
        };
        let start_action = self.action(c.start_action, StartAction::None, "start", reachable);
        // What is wanted from the start on is wanted again, unless the file says otherwise.
        let close_action = self.action(c.close_action, start_action, "close", reachable);
        let dpd_action = c
            .dpd_action
            .map(|a| Spanned::new(a.span(), Text(a.into_inner().0.0)));
        let dpd_action = self.action(dpd_action, start_action, "dpd", reachable);
        let replay_window = self.within(c.replay_window, "replay_window", REPLAY_WINDOW, 1024);
        ChildConfig {
            name: name.into_inner(),
            local_ts: self.list(c.local_ts, dynamic, "traffic selector"),
            remote_ts: self.list(c.remote_ts, dynamic, "traffic selector"),
            mode: c.mode.map_or_else(Mode::default, |m| m.0),
            esp_proposals: self.proposals(c.esp_proposals, default_esp),
            rekey_time,
            life_time,
            rand_time,
            bytes: self.volume("bytes", c.rekey_bytes, c.life_bytes, c.rand_bytes),
            packets: self.volume("packets", c.rekey_packets, c.life_packets, c.rand_packets),
            start_action,
            close_action,
            dpd_action,
            replay_window,
            headers: HeaderCopy {
                dscp_out: c.copy_dscp.out,
                dscp_in: c.copy_dscp.inwards,
                ecn: c.copy_ecn,
                df: c.copy_df,
            },
            marks,
            hw_offload: c.hw_offload.map_or(HwOffload::No, |o| o.into_inner().0),
            updown: c.updown.map(|program| self.program(program)),
        }
    }

    /// What the data plane cannot do. In a cluster it may be meant for other members, and is left out while this one is there.
    fn for_the_plane(&mut self, c: &document::Child) {
        let found = self.plane.as_ref().map(|plane| marks::problems(c, plane));
        for (span, what) in found.unwrap_or_default() {
            match self.clustered {
                true => self.problem(
                    span,
                    Severity::Warning,
                    format!("{what}; the child is left out while this member is in the cluster"),
                ),
                false => self.error(span, what),
            }
        }
    }

    /// A program that is run: named by a path that means the same wherever the member was started.
    fn program(&mut self, path: Spanned<String>) -> String {
        let is_path = path.get_ref().starts_with('/')
            && path.get_ref().len() <= MAX_PROGRAM
            && !path.get_ref().contains('\0');
        if !is_path {
            let message = format!(
                "updown names no program, expected an absolute path of up to {MAX_PROGRAM} bytes"
            );
            self.error(path.span(), message);
        }
        path.into_inner()
    }

    /// An action that leads to initiating needs somewhere to go.
    fn action(
        &mut self,
        given: Option<Spanned<Text<StartAction>>>,
        default: StartAction,
        what: &str,
        reachable: bool,
    ) -> StartAction {
        let Some(given) = given else {
            return default;
        };
        let action = given.get_ref().0;
        if action != StartAction::None && !reachable {
            let message = format!(
                "{what}_action needs a peer to go to, expected a single address or a name in remote_addrs, and a port"
            );
            self.error(given.span(), message);
        }
        action
    }

    /// A number that must be in a range.
    fn within<T: Copy + PartialOrd + std::fmt::Display>(
        &mut self,
        given: Option<Spanned<T>>,
        name: &str,
        range: RangeInclusive<T>,
        default: T,
    ) -> T {
        let Some(given) = given else {
            return default;
        };
        if !range.contains(given.get_ref()) {
            let (low, high) = (range.start(), range.end());
            let what = format!("{name} is out of range, expected {low} to {high}");
            self.error(given.span(), what);
        }
        given.into_inner()
    }

    /// Proposals, each text of which may stand for several.
    fn proposals<P>(
        &mut self,
        given: Option<Spanned<Vec<Text<Proposals<P>>>>>,
        default: impl FnOnce() -> Vec<P>,
    ) -> Vec<P> {
        let lists = self.list(given, || vec![Proposals(default())], "proposal");
        lists.into_iter().flat_map(|list| list.0).collect()
    }

    /// A list that has a default, but must not be empty.
    fn list<T>(
        &mut self,
        given: Option<Spanned<Vec<Text<T>>>>,
        default: impl FnOnce() -> Vec<T>,
        what: &str,
    ) -> Vec<T> {
        let Some(list) = given else {
            return default();
        };
        if list.get_ref().is_empty() {
            self.error(
                list.span(),
                format!("the list is empty, expected at least one {what}"),
            );
        }
        list.into_inner().into_iter().map(|t| t.0).collect()
    }
}

/// The addresses of a peer, and the names that stand for more.
fn remotes_of(given: Vec<Text<Remote>>) -> (Vec<IpNet>, Vec<String>) {
    let (mut addresses, mut names) = (Vec::new(), Vec::new());
    for remote in given {
        match remote.0 {
            Remote::Nets(nets) => addresses.extend(nets),
            Remote::Name(name) => names.push(name),
        }
    }
    (addresses, names)
}

/// The names of the pools that there are, for a message.
fn known(pools: &[Pool]) -> String {
    if pools.is_empty() {
        return "a [pools.NAME] table for it".to_owned();
    }
    let names: Vec<String> = pools.iter().map(|p| format!("{:?}", p.name)).collect();
    format!("one of {}", names.join(", "))
}

/// Whether some secret may fit the connection, as far as it can be told before a peer names itself.
fn has_secrets(connection: &Connection, secrets: &[SharedSecret]) -> bool {
    let (ours, theirs) = connection.rounds();
    (0..ours.max(theirs)).all(|round| {
        let keyed = (round < ours && *connection.local_auth(round) == LocalAuth::Psk)
            || (round < theirs && *connection.remote_auth(round) == RemoteAuth::Psk);
        let local = match round.min(ours - 1).checked_sub(1) {
            Some(at) => &connection.auth.more_local[at].id,
            None => &connection.local_id,
        };
        !keyed || has_secret(local.as_ref(), connection.remote_id_in(round), secrets)
    })
}

fn has_secret(local: Option<&Identity>, remote: &IdPattern, secrets: &[SharedSecret]) -> bool {
    secrets.iter().any(|secret| {
        let fits = |pattern: &IdPattern| match (remote, pattern) {
            (IdPattern::Exact(remote), pattern) => pattern.matches(remote),
            (pattern, IdPattern::Exact(id)) => pattern.matches(id),
            _ => true,
        };
        let ours = |pattern: &IdPattern| local.is_none_or(|id| pattern.matches(id));
        secret.ids.is_empty()
            || secret
                .ids
                .iter()
                .any(|id| fits(id) || (secret.ids.len() == 1 && ours(id)))
    })
}
