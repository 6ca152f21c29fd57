//! One description of a connection, written as swanctl.conf for strongSwan and
//! as TOML for a member.

use crate::lab::{Family, GATEWAY, inside};
use std::fmt::Write;

/// The pre-shared key of every drill, so that it can be searched for where it
/// must not be.
pub const SECRET: &str = "correct horse battery staple";

/// A connection with one child, from the view of one side.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Its name, which is also its child's.
    pub name: String,
    /// Outer address of this side.
    pub local: String,
    /// Outer address of the other side.
    pub remote: String,
    /// Identity of this side.
    pub local_id: String,
    /// Identity of the other side.
    pub remote_id: String,
    /// The pre-shared key.
    pub secret: String,
    /// IKE proposals.
    pub proposals: Vec<String>,
    /// ESP proposals.
    pub esp: Vec<String>,
    /// Local selectors; empty means `dynamic`.
    pub local_ts: Vec<String>,
    /// Remote selectors; empty means `dynamic`.
    pub remote_ts: Vec<String>,
    /// Force UDP encapsulation.
    pub encap: bool,
    /// Addresses to ask for.
    pub vips: Vec<String>,
    /// Pools to serve from, on a member.
    pub pools: Vec<String>,
    /// Seconds between rekeys of the IKE SA; 0 for never.
    pub rekey: u32,
    /// Seconds between rekeys of the child; 0 for never.
    pub child_rekey: u32,
    /// Seconds between liveness checks; 0 for none.
    pub dpd: u32,
    /// RFC 6311, on a member.
    pub message_id_sync: bool,
    /// Addresses may change (RFC 4555).
    pub mobike: bool,
    /// Lines about `start_action` and the like in a member's child.
    pub actions: String,
    /// A member's `[retransmit]`.
    pub retransmit: String,
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
            proposals: vec![PROPOSALS.0.into()],
            esp: vec![PROPOSALS.1.into()],
            local_ts: vec![format!("{v4}/32"), format!("{v6}/128")],
            remote_ts: vec!["10.10.2.0/24".into(), "fd00:10:2::/64".into()],
            encap: false,
            vips: Vec::new(),
            pools: Vec::new(),
            rekey: 0,
            child_rekey: 0,
            dpd: 0,
            message_id_sync: true,
            mobike: false,
            actions: "start_action = \"none\"".into(),
            retransmit: String::new(),
        }
    }

    /// The same from the other side.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self {
            local: self.remote.clone(),
            remote: self.local.clone(),
            local_id: self.remote_id.clone(),
            remote_id: self.local_id.clone(),
            local_ts: self.remote_ts.clone(),
            remote_ts: self.local_ts.clone(),
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
        let connection = format!(
            "{name} {{\n version = 2\n mobike = {mobike}\n local_addrs = {local}\n remote_addrs = {remote}\n proposals = {ike}\n encap = {encap}\n \
             rekey_time = {rekey}s\n rand_time = 0s\n over_time = 30s\n dpd_delay = {dpd}s\n {vips}\n \
             local {{\n auth = psk\n id = {local_id}\n }}\n remote {{\n auth = psk\n id = {remote_id}\n }}\n \
             children {{\n {name} {{\n local_ts = {local_ts}\n remote_ts = {remote_ts}\n esp_proposals = {esp}\n \
             rekey_time = {child}s\n rand_time = 0s\n life_time = {life}s\n start_action = none\n }}\n }}\n}}\n",
            name = self.name,
            local = self.local,
            remote = self.remote,
            ike = self.proposals.join(","),
            mobike = if self.mobike { "yes" } else { "no" },
            encap = if self.encap { "yes" } else { "no" },
            rekey = self.rekey,
            dpd = self.dpd,
            local_id = self.local_id,
            remote_id = self.remote_id,
            local_ts = selectors(&self.local_ts),
            remote_ts = selectors(&self.remote_ts),
            esp = self.esp.join(","),
            child = self.child_rekey,
            life = self.child_life(),
        );
        let secret = format!(
            "ike-{} {{\n id-1 = {}\n id-2 = {}\n secret = \"{}\"\n}}\n",
            self.name, self.local_id, self.remote_id, self.secret
        );
        (connection, secret)
    }

    /// For a member's configuration.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut out = String::new();
        let name = &self.name;
        let _ = writeln!(out, "[connections.{name}]");
        let _ = writeln!(out, "local_addrs = {}", array(&[&self.local]));
        let _ = writeln!(out, "remote_addrs = {}", array(&[&self.remote]));
        let _ = writeln!(out, "proposals = {}", array(&self.proposals));
        let _ = writeln!(out, "encap = {}", self.encap);
        let _ = writeln!(out, "rekey_time = \"{}s\"\nrand_time = \"0s\"", self.rekey);
        let _ = writeln!(out, "dpd_delay = \"{}s\"", self.dpd);
        let _ = writeln!(out, "pools = {}", array(&self.pools));
        let _ = writeln!(out, "vips = {}", array(&self.vips));
        let _ = writeln!(out, "message_id_sync = {}", self.message_id_sync);
        let _ = writeln!(out, "mobike = {}", self.mobike);
        for (side, id) in [("local", &self.local_id), ("remote", &self.remote_id)] {
            let _ = writeln!(
                out,
                "[connections.{name}.{side}]\nauth = \"psk\"\nid = \"{id}\""
            );
        }
        let _ = writeln!(out, "[connections.{name}.children.{name}]");
        for (key, list) in [("local_ts", &self.local_ts), ("remote_ts", &self.remote_ts)] {
            let dynamic = vec!["dynamic".to_owned()];
            let list = if list.is_empty() { &dynamic } else { list };
            let _ = writeln!(out, "{key} = {}", array(list));
        }
        let _ = writeln!(out, "esp_proposals = {}", array(&self.esp));
        let _ = writeln!(
            out,
            "rekey_time = \"{}s\"\nlife_time = \"{}s\"\n{}",
            self.child_rekey,
            self.child_life(),
            self.actions
        );
        if !self.retransmit.is_empty() {
            let _ = writeln!(out, "[retransmit]\n{}", self.retransmit);
        }
        let _ = writeln!(
            out,
            "[secrets.{name}]\nids = {}",
            array(&[&self.local_id, &self.remote_id])
        );
        let _ = writeln!(out, "secret = \"{}\"", self.secret);
        out
    }
}

fn array<S: AsRef<str>>(list: &[S]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| format!("\"{}\"", s.as_ref())).collect();
    format!("[{}]", quoted.join(", "))
}
