//! What members and peers are told: configurations as operators write them.

use crate::conductor::Random;
use std::{fmt::Write, net::Ipv4Addr, path::Path};

/// A virtual gateway, and its outer address.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
}

/// A peer, and what is between it and the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: Ipv4Addr,
    /// Where it finds its gateway.
    pub(crate) gateway: Ipv4Addr,
    /// Its inner address; `None`: the cluster gives it one.
    pub(crate) inner: Option<Ipv4Addr>,
    /// The cluster sets the tunnel up, else the peer does.
    pub(crate) called: bool,
    /// Life of IKE SAs and Child SAs in milliseconds, by the cluster and by the peer.
    lives: [(u64, u64); 2],
    /// After so much silence either asks whether the other lives, in milliseconds.
    dpd: [u64; 2],
    window: u64,
    sync: bool,
    mobike: bool,
}

/// The host behind the cluster that talks to all peers.
pub(crate) const PROTECTED: Ipv4Addr = Ipv4Addr::new(10, 10, 2, 9);

/// The gateways of a cluster.
pub(crate) fn gateways(count: u8) -> Vec<Gateway> {
    let gateway = |n: u8| Gateway {
        name: format!("g{n}"),
        address: Ipv4Addr::new(192, 0, 2, 1 + n),
    };
    (1..=count).map(gateway).collect()
}

impl Peer {
    pub(crate) fn draw(n: u8, gateways: &[Gateway], random: &mut Random) -> Self {
        let life = |random: &mut Random| (random.range(4000, 15_000), random.range(2500, 9000));
        let lives = [life(random), life(random)];
        let called = random.one_in(3);
        let inner = Ipv4Addr::new(10, 20, n, 9);
        Self {
            address: Ipv4Addr::new(198, 51, 100, n),
            gateway: random.pick(gateways).address,
            inner: (called || random.one_in(2)).then_some(inner),
            called,
            lives,
            dpd: [random.range(800, 3000), random.range(800, 3000)],
            window: *random.pick(&[1, 1, 1, 4]),
            sync: !random.one_in(4),
            mobike: !random.one_in(3),
        }
    }

    fn common(&self, out: &mut String, name: &str, side: usize) {
        let (ike, _) = self.lives[side];
        let _ = writeln!(
            out,
            "proposals = ['aes256gcm16-prfsha256-x25519']\nrekey_time = '{ike}ms'\nover_time = '60s'\nrand_time = '500ms'\n\
             dpd_delay = '{}ms'\nwindow_size = {}\nmessage_id_sync = {}\nmobike = {}\nlocal.id = '{name}'",
            self.dpd[side], self.window, self.sync, self.mobike
        );
    }

    fn child(&self, out: &mut String, connection: &str, local: &str, remote: &str, side: usize) {
        let (_, life) = self.lives[side];
        let start = match self.called == (side == 0) {
            true => "start_action = 'start'\n",
            false => "",
        };
        let _ = writeln!(
            out,
            "[connections.{connection}.children.net]\nlocal_ts = ['{local}']\nremote_ts = ['{remote}']\nesp_proposals = ['aes256gcm16']\n\
             rekey_time = '{life}ms'\nrand_time = '300ms'\nlife_time = '60s'\n{start}"
        );
    }

    fn network(&self) -> String {
        self.inner.map_or("dynamic".to_owned(), |a| {
            let [a, b, c, _] = a.octets();
            format!("{a}.{b}.{c}.0/24")
        })
    }

    fn at_cluster(&self, n: usize, out: &mut String) {
        let _ = writeln!(
            out,
            "[connections.c{n}]\nlocal_addrs = ['{}']\nremote_addrs = ['{}']\nremote.id = 'peer{n}'",
            self.gateway, self.address
        );
        self.common(out, "gw", 0);
        if self.inner.is_none() {
            out.push_str("pools = ['pool']\n");
        }
        self.child(out, &format!("c{n}"), "10.10.2.0/24", &self.network(), 0);
        let _ = writeln!(
            out,
            "[secrets.s{n}]\nids = ['gw', 'peer{n}']\nsecret = 'secret of {n}'"
        );
    }

    /// The configuration of the peer itself.
    pub(crate) fn text(&self, n: usize, directory: &Path) -> String {
        let mut out = format!(
            "[member]\nname = 'peer{n}'\nworkers = 1\nstate_dir = '{}'\n",
            directory.display()
        );
        out.push_str(RETRANSMIT);
        let _ = writeln!(
            out,
            "[connections.c]\nlocal_addrs = ['{}']\nremote_addrs = ['{}']\nremote.id = 'gw'",
            self.address, self.gateway
        );
        self.common(&mut out, &format!("peer{n}"), 1);
        if self.inner.is_none() {
            out.push_str("vips = ['0.0.0.0']\n");
        }
        self.child(&mut out, "c", &self.network(), "10.10.2.0/24", 1);
        let _ = writeln!(
            out,
            "[secrets.s]\nids = ['gw', 'peer{n}']\nsecret = 'secret of {n}'"
        );
        out
    }
}

const RETRANSMIT: &str = "[retransmit]\ntimeout = '400ms'\nbase = 1.4\ntries = 8\n";

/// Where a member listens for others.
pub(crate) fn listens(n: usize) -> String {
    format!("10.77.0.{n}:4510")
}

/// The file with the token of a member that joins.
pub(crate) const TOKEN: &str = "token";

/// The configuration of a member: one of the first so many, or one that joins them.
pub(crate) fn member(
    n: usize,
    count: usize,
    gateways: &[Gateway],
    peers: &[Peer],
    directory: &Path,
) -> String {
    let mut out = format!(
        "[member]\nname = 'm{n}'\nworkers = 2\nstate_dir = '{}'\n\
         [cluster]\nlisten = '{}'\nca = 'ca.pem'\ncert = 'm.pem'\nkey = 'm.key'\n\
         lease = '1100ms'\nrenew = '120ms'\nheartbeat = '60ms'\nelection_min = '180ms'\nelection_max = '300ms'\n",
        directory.display(),
        listens(n)
    );
    let joins = n > count;
    out.push_str(if joins { "join = [" } else { "members = [" });
    for m in 1..=count {
        let _ = match joins {
            true => write!(out, "'{}',", listens(m)),
            false => write!(out, "{{ name = 'm{m}', address = '{}' }},", listens(m)),
        };
    }
    out.push_str("]\n");
    if joins {
        let _ = writeln!(out, "join_token_file = '{TOKEN}'");
    }
    out.push_str(RETRANSMIT);
    for gateway in gateways {
        let _ = writeln!(
            out,
            "[gateways.{}]\nouter = ['{}/24']",
            gateway.name, gateway.address
        );
    }
    out.push_str("[pools.pool]\naddrs = '10.99.0.0/28'\n");
    for (n, peer) in (1..).zip(peers) {
        peer.at_cluster(n, &mut out);
    }
    out
}
