//! `[connections.NAME]`: what a connection is, and what it names elsewhere in the document.

use super::{
    credentials::Known,
    document,
    problem::Severity,
    validate::Check,
    values::{Remote, Text},
};
use evergate_ike::{
    config::{
        Childless, Connection, EnableTcp, FRAGMENT_SIZE, Fragmentation, LocalAuth, Pool,
        RemoteAuth, SharedSecret, Unique,
    },
    identity::{IdPattern, Identity},
    proposal::default_ike,
};
use ipnet::IpNet;
use std::{collections::HashMap, ops::RangeInclusive, time::Duration};
use toml::Spanned;

/// The TCP port that every implementation supports (RFC 9329 §2).
const TCP_PORT: u16 = 4500;
/// What the size of fragments may be, in bytes: every IPv4 host takes a packet of 576 (RFC 791 §3.1).
const FRAGMENT_SIZES: RangeInclusive<u16> = 576..=u16::MAX;
/// What the window of requests may be: each response of it is kept in the record of the IKE SA.
const WINDOW_SIZES: RangeInclusive<u8> = 1..=8;

impl Check<'_> {
    pub(super) fn connections(
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
