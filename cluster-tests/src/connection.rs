//! One description of a connection, written as swanctl.conf for strongSwan and
//! as TOML for a member.

use crate::Result;
use crate::lab::{Family, GATEWAY, inside};
use crate::pki::Certificate;
use std::fmt::Write;
use std::path::Path;

/// The pre-shared key of every drill, so that it can be searched for where it
/// must not be.
pub const SECRET: &str = "correct horse battery staple";

/// What carries a member's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// The member itself.
    Userspace,
    /// The kernel.
    Kernel,
}

impl Plane {
    /// That of members about which a drill says nothing: `EVERGATE_DRILL_DATAPLANE`, as `cluster-tests/guest-drills` sets it.
    #[must_use]
    pub fn usual() -> Self {
        match std::env::var("EVERGATE_DRILL_DATAPLANE").as_deref() {
            Ok("xfrm") => Self::Kernel,
            _ => Self::Userspace,
        }
    }

    /// A member's `[dataplane]`.
    #[must_use]
    pub fn toml(self) -> &'static str {
        match self {
            Self::Userspace => "[dataplane]\ntun = \"evergate0\"\n",
            Self::Kernel => "[dataplane]\nkind = \"xfrm\"\n",
        }
    }
}

/// A connection with one child, from the view of one side.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Its name, which is also its child's.
    pub name: String,
    /// Outer address of this side, or several with commas between.
    pub local: String,
    /// Outer address of the other side.
    pub remote: String,
    /// Identity of this side.
    pub local_id: String,
    /// Identity of the other side.
    pub remote_id: String,
    /// The pre-shared key.
    pub secret: String,
    /// How this side authenticates.
    pub local_auth: Auth,
    /// How the other side does.
    pub remote_auth: Auth,
    /// Further rounds in which this side authenticates (RFC 4739): how, and as whom.
    pub local_rounds: Vec<(Auth, String)>,
    /// Further rounds in which the other side does.
    pub remote_rounds: Vec<(Auth, String)>,
    /// Whether a post-quantum pre-shared key is used, and required; it is the same in all drills.
    pub ppk: Option<bool>,
    /// What a member makes of revocations, and where lists of them are; nothing is written if there is no policy.
    pub revocation: Option<(String, Vec<String>)>,
    /// IKE proposals.
    pub proposals: Vec<String>,
    /// ESP proposals.
    pub esp: Vec<String>,
    /// Local selectors; empty means `dynamic`.
    pub local_ts: Vec<String>,
    /// Remote selectors; empty means `dynamic`.
    pub remote_ts: Vec<String>,
    /// A child of its own for what is IPv6, named as the other with "-v6".
    pub split: bool,
    /// `mode` of swanctl: tunnel or transport.
    pub mode: &'static str,
    /// Force UDP encapsulation.
    pub encap: bool,
    /// Addresses to ask for.
    pub vips: Vec<String>,
    /// Pools to serve from, on a member.
    pub pools: Vec<String>,
    /// Seconds between rekeys of the IKE SA; 0 for never.
    pub rekey: u32,
    /// Seconds between authentications; 0 for never.
    pub reauth: u32,
    /// Packets of all children after which a member rekeys the IKE SA, and after which it authenticates again; 0 for any number.
    pub together_packets: (u32, u32),
    /// How many requests the other side may have under way, on a member.
    pub window: u8,
    /// Whether strongSwan makes the new IKE SA of a new authentication before it breaks the old one, which 5.9 does not by itself.
    pub make_before_break: bool,
    /// Seconds between rekeys of the child; 0 for never.
    pub child_rekey: u32,
    /// Packets after which the child is rekeyed, on a member; 0 for any number.
    pub child_rekey_packets: u32,
    /// Seconds between liveness checks; 0 for none.
    pub dpd: u32,
    /// The same of the other side, if it is not the same.
    pub remote_dpd: Option<u32>,
    /// RFC 6311, on a member.
    pub message_id_sync: bool,
    /// Addresses may change (RFC 4555).
    pub mobike: bool,
    /// Lines about `start_action` and the like in a member's child.
    pub actions: String,
    /// A member's `[retransmit]`.
    pub retransmit: String,
    /// A member's `[limits]`.
    pub limits: String,
    /// `enable_tcp` of a member, which then listens for TCP, too.
    pub enable_tcp: &'static str,
    /// What a member has as its data plane.
    pub plane: Plane,
    /// More lines of a member's `[dataplane]`.
    pub dataplane: &'static str,
    /// `childless` of swanctl.
    pub childless: &'static str,
    /// `unique` of swanctl.
    pub unique: &'static str,
    /// The longest IP packet with an IKE message; longer ones are fragmented.
    pub fragment_size: u16,
    /// `fragmentation` of swanctl: yes, no or accept.
    pub fragmentation: &'static str,
}

/// The post-quantum pre-shared key of every drill, and its name.
const PPK: (&str, &str) = (
    "ppk.test",
    "a key of which nobody has heard, long enough for quantum computers",
);

/// How a side authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// With the pre-shared key.
    Psk,
    /// With a certificate, in a way that is named as in swanctl.conf.
    Certificate {
        /// The way, such as `pubkey` or `rsa/pss-sha256`.
        auth: String,
        /// The certificate of that side.
        certificate: Certificate,
    },
    /// With the key of this certificate, which the other side knows; the certificate is shown to nobody.
    RawKey(Certificate),
}

impl Auth {
    /// Any signature with this certificate.
    #[must_use]
    pub fn pubkey(certificate: Certificate) -> Self {
        Self::Certificate {
            auth: "pubkey".to_owned(),
            certificate,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Psk => "psk",
            Self::Certificate { auth, .. } => auth,
            Self::RawKey(_) => "pubkey",
        }
    }

    /// As swanctl.conf has it, which has no name for Ed25519.
    fn in_swanctl(&self) -> &str {
        match self.name() {
            "ed25519" => "pubkey",
            name => name,
        }
    }

    /// The certificate, if there is one.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        match self {
            Self::Psk | Self::RawKey(_) => None,
            Self::Certificate { certificate, .. } => Some(certificate),
        }
    }
}

/// IKE and ESP proposals that every drill uses unless it is about proposals.
pub const PROPOSALS: (&str, &str) = ("aes256gcm16-prfsha384-x25519", "aes256gcm16");

impl Connection {
    /// Peer number `n` to the gateway's protected network, from the peer's view.
    #[must_use]
    pub fn peer(n: u8, family: Family) -> Self {
        let [v4, v6] = inside(n);
        Self {
            name: format!("c{n}"),
            local: family.outer(n),
            remote: family.outer(GATEWAY),
            local_id: format!("peer{n}.test"),
            remote_id: "gw.test".into(),
            secret: SECRET.into(),
            local_auth: Auth::Psk,
            remote_auth: Auth::Psk,
            local_rounds: Vec::new(),
            remote_rounds: Vec::new(),
            revocation: None,
            ppk: None,
            proposals: vec![PROPOSALS.0.into()],
            esp: vec![PROPOSALS.1.into()],
            local_ts: vec![format!("{v4}/32"), format!("{v6}/128")],
            remote_ts: vec!["10.10.2.0/24".into(), "fd00:10:2::/64".into()],
            split: false,
            mode: "tunnel",
            encap: false,
            vips: Vec::new(),
            pools: Vec::new(),
            rekey: 0,
            reauth: 0,
            together_packets: (0, 0),
            window: 1,
            make_before_break: false,
            child_rekey: 0,
            child_rekey_packets: 0,
            dpd: 0,
            remote_dpd: None,
            message_id_sync: true,
            mobike: false,
            actions: "start_action = \"none\"".into(),
            retransmit: String::new(),
            limits: String::new(),
            enable_tcp: "no",
            plane: Plane::usual(),
            dataplane: "",
            childless: "allow",
            unique: "no",
            fragment_size: 1280,
            fragmentation: "yes",
        }
    }

    /// Only what is between the two ends themselves, in transport mode.
    pub fn host_to_host(&mut self) {
        self.mode = "transport";
        self.local_ts.clear();
        self.remote_ts.clear();
    }

    /// The same from the other side.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self {
            local: self.remote.clone(),
            remote: self.local.clone(),
            local_id: self.remote_id.clone(),
            remote_id: self.local_id.clone(),
            local_auth: self.remote_auth.clone(),
            remote_auth: self.local_auth.clone(),
            local_rounds: self.remote_rounds.clone(),
            remote_rounds: self.local_rounds.clone(),
            local_ts: self.remote_ts.clone(),
            remote_ts: self.local_ts.clone(),
            dpd: self.remote_dpd.unwrap_or(self.dpd),
            remote_dpd: Some(self.dpd),
            ..self.clone()
        }
    }

    /// The lifetime of a Child SA in seconds: long after its rekey, so that a machine that stalls does not end it.
    fn child_life(&self) -> u32 {
        match self.child_rekey {
            0 => 0,
            rekey => rekey + 60,
        }
    }

    /// The children: their names and selectors, local and remote.
    fn children(&self) -> Vec<(String, Vec<String>, Vec<String>)> {
        if !self.split {
            let (local, remote) = (self.local_ts.clone(), self.remote_ts.clone());
            return vec![(self.name.clone(), local, remote)];
        }
        let of = |list: &[String], v6: bool| {
            let kept = list.iter().filter(|ts| ts.contains(':') == v6);
            kept.cloned().collect::<Vec<_>>()
        };
        [
            (self.name.clone(), false),
            (format!("{}-v6", self.name), true),
        ]
        .map(|(name, v6)| (name, of(&self.local_ts, v6), of(&self.remote_ts, v6)))
        .into()
    }

    /// The rounds of this side, or of the other: the name of its files, how it authenticates, and as whom.
    fn rounds(&self, remote: bool) -> Vec<(String, &Auth, &str)> {
        let (auth, id, more) = if remote {
            (&self.remote_auth, &self.remote_id, &self.remote_rounds)
        } else {
            (&self.local_auth, &self.local_id, &self.local_rounds)
        };
        let mut all = vec![(self.name.clone(), auth, &id[..])];
        for (n, (auth, id)) in (2..).zip(more) {
            all.push((format!("{}-{n}", self.name), auth, id));
        }
        all
    }

    /// The identities of both sides in all rounds.
    fn ids(&self) -> Vec<String> {
        let all = [false, true].map(|remote| self.rounds(remote)).concat();
        all.into_iter().map(|(_, _, id)| id.to_owned()).collect()
    }

    /// How both sides authenticate, for swanctl.conf.
    fn swanctl_ends(&self) -> String {
        let mut out = String::new();
        for (n, (files, auth, id)) in (1..).zip(self.rounds(false)) {
            let with = match auth {
                Auth::Psk => String::new(),
                Auth::Certificate { .. } => format!("certs = {files}.pem"),
                Auth::RawKey(_) => format!("pubkeys = {files}.pem"),
            };
            let auth = auth.in_swanctl();
            let _ = writeln!(
                out,
                " local-{n} {{\n round = {n}\n auth = {auth}\n id = \"{id}\"\n {with}\n }}"
            );
        }
        for (n, (files, auth, id)) in (1..).zip(self.rounds(true)) {
            // Narrower, strongSwan would ask the same of the authorities' signatures.
            let (auth, with) = match auth {
                Auth::Psk => ("psk", String::new()),
                Auth::Certificate { .. } => ("pubkey", String::new()),
                Auth::RawKey(_) => ("pubkey", format!("pubkeys = {files}-remote.pem")),
            };
            let _ = writeln!(
                out,
                " remote-{n} {{\n round = {n}\n auth = {auth}\n id = \"{id}\"\n {with}\n }}"
            );
        }
        out
    }

    /// For swanctl.conf, inside `connections {}` and `secrets {}`.
    #[must_use]
    pub fn swanctl(&self) -> (String, String) {
        let selectors = |list: &[String]| match list {
            [] => "dynamic".to_owned(),
            list => list.join(","),
        };
        let mut vips = String::new();
        if !self.vips.is_empty() {
            vips = format!("vips = {}", self.vips.join(","));
        }
        let mut children = String::new();
        for (name, local, remote) in self.children() {
            let _ = write!(
                children,
                " {name} {{\n mode = {}\n local_ts = {}\n remote_ts = {}\n esp_proposals = {}\n \
                 rekey_time = {}s\n rand_time = 0s\n life_time = {}s\n start_action = none\n }}\n",
                self.mode,
                selectors(&local),
                selectors(&remote),
                self.esp.join(","),
                self.child_rekey,
                self.child_life()
            );
        }
        let ppk = self.ppk.map_or(String::new(), |required| {
            let required = if required { "yes" } else { "no" };
            format!("ppk_id = {}\n ppk_required = {required}", PPK.0)
        });
        let connection = format!(
            "{name} {{\n version = 2\n mobike = {mobike}\n local_addrs = {local}\n remote_addrs = {remote}\n proposals = {ike}\n encap = {encap}\n \
             rekey_time = {rekey}s\n reauth_time = {reauth}s\n rand_time = 0s\n over_time = 30s\n dpd_delay = {dpd}s\n fragmentation = {fragmentation}\n childless = {childless}\n unique = {unique}\n {vips}\n {ppk}\n \
             {ends} children {{\n{children} }}\n}}\n",
            name = self.name,
            local = self.local,
            remote = self.remote,
            ike = self.proposals.join(","),
            mobike = if self.mobike { "yes" } else { "no" },
            encap = if self.encap { "yes" } else { "no" },
            rekey = self.rekey,
            reauth = self.reauth,
            dpd = self.dpd,
            fragmentation = self.fragmentation,
            childless = self.childless,
            unique = self.unique,
            ends = self.swanctl_ends(),
        );
        // charon keeps no more than 255 bytes of an owner: a key without one is for anyone.
        let mut owners = String::new();
        for (n, id) in (1..).zip(self.ids()) {
            if id.len() < 256 {
                let _ = writeln!(owners, " id-{n} = \"{id}\"");
            }
        }
        let secret = format!(
            "ike-{} {{\n{owners} secret = \"{}\"\n}}\n",
            self.name, self.secret
        );
        let ppk = self.ppk.map_or(String::new(), |_| {
            format!(
                "ppk-{} {{\n id-1 = {}\n secret = \"{}\"\n}}\n",
                self.name, PPK.0, PPK.1
            )
        });
        (connection, secret + &ppk)
    }

    /// Lines for a member's `[member]`.
    #[must_use]
    pub fn member_toml(&self) -> &'static str {
        match self.enable_tcp {
            "no" => "",
            _ => "listen_tcp = true\n",
        }
    }

    /// Puts certificates and keys where swanctl looks for them.
    pub fn install(&self, swanctl: &Path) -> Result<()> {
        for (files, auth, _) in self.rounds(false) {
            match auth {
                Auth::Psk => {}
                Auth::Certificate { certificate, .. } => certificate.install(swanctl, &files)?,
                Auth::RawKey(own) => own.install_keys(swanctl, &files)?,
            }
        }
        for (files, auth, _) in self.rounds(true) {
            match auth {
                Auth::Psk => {}
                Auth::Certificate { certificate, .. } => {
                    certificate.install_root(swanctl, &files)?;
                }
                Auth::RawKey(other) => other.install_public(swanctl, &files)?,
            }
        }
        Ok(())
    }

    /// For a member's configuration.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut out = String::new();
        let name = &self.name;
        let _ = writeln!(out, "[connections.{name}]");
        let addresses = |list: &str| array(&list.split(',').collect::<Vec<_>>());
        let _ = writeln!(out, "local_addrs = {}", addresses(&self.local));
        let _ = writeln!(out, "remote_addrs = {}", addresses(&self.remote));
        let _ = writeln!(out, "proposals = {}", array(&self.proposals));
        let _ = writeln!(out, "encap = {}", self.encap);
        // As strongSwan's: two rekeys that cross and are both refused have time to come again.
        let _ = writeln!(
            out,
            "rekey_time = \"{}s\"\nrand_time = \"0s\"\nover_time = \"30s\"",
            self.rekey
        );
        if self.reauth > 0 {
            let _ = writeln!(out, "reauth_time = \"{}s\"", self.reauth);
        }
        let (rekey, reauth) = self.together_packets;
        let _ = writeln!(
            out,
            "rekey_packets = {rekey}\nreauth_packets = {reauth}\nrand_packets = 0\nover_packets = 1000000"
        );
        let _ = writeln!(out, "window_size = {}", self.window);
        let _ = writeln!(out, "dpd_delay = \"{}s\"", self.dpd);
        let _ = writeln!(out, "pools = {}", array(&self.pools));
        let _ = writeln!(out, "vips = {}", array(&self.vips));
        let _ = writeln!(out, "message_id_sync = {}", self.message_id_sync);
        let _ = writeln!(out, "mobike = {}", self.mobike);
        let _ = writeln!(out, "enable_tcp = \"{}\"", self.enable_tcp);
        let _ = writeln!(out, "fragmentation = \"{}\"", self.fragmentation);
        let _ = writeln!(out, "childless = \"{}\"", self.childless);
        let _ = writeln!(out, "unique = \"{}\"", self.unique);
        let _ = writeln!(out, "fragment_size = {}", self.fragment_size);
        if let Some(required) = self.ppk {
            let _ = writeln!(out, "ppk_id = \"{}\"\nppk_required = {required}", PPK.0);
        }
        self.toml_ends(&mut out);
        for (child, local, remote) in self.children() {
            self.child_toml(&mut out, &child, &local, &remote);
        }
        for (table, lines) in [("retransmit", &self.retransmit), ("limits", &self.limits)] {
            if !lines.is_empty() {
                let _ = writeln!(out, "[{table}]\n{lines}");
            }
        }
        self.toml_keys(&mut out);
        if self.ppk.is_some() {
            let (id, secret) = PPK;
            let _ = writeln!(
                out,
                "[ppks.{name}]\nids = [\"{id}\"]\nsecret = \"{secret}\""
            );
        }
        let _ = writeln!(out, "[secrets.{name}]\nids = {}", array(&self.ids()));
        let _ = writeln!(out, "secret = \"{}\"", self.secret);
        out
    }

    /// How both sides authenticate, for a member.
    fn toml_ends(&self, out: &mut String) {
        for (side, remote) in [("local", false), ("remote", true)] {
            let rounds = self.rounds(remote);
            let several = rounds.len() > 1;
            for (_, how, id) in rounds {
                let table = format!("[connections.{}.{side}]", self.name);
                let table = if several { format!("[{table}]") } else { table };
                let _ = writeln!(out, "{table}\nauth = \"{}\"\nid = \"{id}\"", how.name());
                if let (Some(own), false) = (how.certificate(), remote) {
                    let _ = writeln!(out, "certs = [\"{}\"]", own.chain.display());
                }
                if let Auth::RawKey(key) = how {
                    let _ = writeln!(out, "pubkeys = [\"{}\"]", key.public.display());
                }
                if let (Some((policy, _)), true) = (&self.revocation, remote) {
                    let _ = writeln!(out, "revocation = \"{policy}\"");
                }
            }
        }
    }

    /// Private keys of this side, and authorities of the other.
    fn toml_keys(&self, out: &mut String) {
        for (files, auth, _) in self.rounds(false) {
            if let Auth::Certificate {
                certificate: own, ..
            }
            | Auth::RawKey(own) = auth
            {
                let key = own.key.display();
                let _ = writeln!(out, "[secrets.{files}-key]\nfile = \"{key}\"");
            }
        }
        for (files, auth, _) in self.rounds(true) {
            if let Some(other) = auth.certificate() {
                let root = other.root.display();
                let _ = writeln!(out, "[authorities.{files}]\ncacert = \"{root}\"");
                if let Some((_, uris)) = &self.revocation {
                    let _ = writeln!(out, "crl_uris = {}", array(uris));
                }
            }
        }
    }

    fn child_toml(&self, out: &mut String, child: &str, local: &[String], remote: &[String]) {
        let _ = writeln!(out, "[connections.{}.children.{child}]", self.name);
        for (key, list) in [("local_ts", local), ("remote_ts", remote)] {
            let dynamic = ["dynamic".to_owned()];
            let list = if list.is_empty() { &dynamic[..] } else { list };
            let _ = writeln!(out, "{key} = {}", array(list));
        }
        let _ = writeln!(out, "mode = \"{}\"", self.mode);
        let _ = writeln!(out, "esp_proposals = {}", array(&self.esp));
        let _ = writeln!(
            out,
            "rekey_packets = {}\nlife_packets = 0\nrand_packets = 0",
            self.child_rekey_packets
        );
        let _ = writeln!(
            out,
            "rekey_time = \"{}s\"\nlife_time = \"{}s\"\n{}",
            self.child_rekey,
            self.child_life(),
            self.actions
        );
    }
}

fn array<S: AsRef<str>>(list: &[S]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| format!("\"{}\"", s.as_ref())).collect();
    format!("[{}]", quoted.join(", "))
}
