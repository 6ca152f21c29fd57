//! strongSwan as a peer: charon-systemd and swanctl from Debian packages, run
//! by hand, with ESP in user space or in the kernel.

use crate::connection::{Connection, Plane};
use crate::lab::Lab;
use crate::process::{Process, output};
use crate::sa::{ChildSa, Endpoint, IkeSa};
use crate::{Result, patience, secs, until};
use anyhow::{Context, bail};
use serde_json::{Map, Value};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// How the peer sends ESP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Esp {
    /// strongSwan of this machine, which can only do UDP encapsulation.
    InUdp,
    /// strongSwan 6.1 from a root directory, which sends plain ESP.
    Plain,
    /// strongSwan of this machine, and the kernel does ESP: plain, unless there is a NAT. Where the kernel cannot, drills are for `cluster-tests/guest`.
    Kernel,
}

/// A running charon.
#[derive(Debug)]
pub struct StrongSwan {
    process: Process,
    dir: PathBuf,
    vici: String,
    esp: Esp,
}

/// An explicit list, so that nothing depends on what else is installed. Where
/// kernel-libipsec comes before kernel-netlink, it gets to do ESP.
const PLUGINS: &str = "random nonce openssl x509 revocation constraints pubkey pkcs1 pkcs8 pem \
    kdf drbg mgf1 sha1 sha2 aes hmac cmac xcbc ctr gcm ccm chapoly curve25519 gmp";

/// Enters the root directory $1 with the lab's directory $2 in it. The mounts
/// are private to the process, and /tmp and /dev of the root are covered, so that
/// several peers share one root and leave nothing in it.
const IN_ROOT: &str = r#"r=$1 d=$2; shift 2
mount --rbind /dev "$r/dev" && mount -t tmpfs lab "$r/tmp" && mkdir -p "$r$d" &&
mount --bind "$d" "$r$d" && mount -t proc proc "$r/proc" && exec chroot "$r" "$@""#;

impl StrongSwan {
    /// Starts charon on `host` with these connections loaded.
    pub fn start(lab: &Lab, host: &str, esp: Esp, connections: &[Connection]) -> Result<Self> {
        Self::start_with(lab, host, esp, connections, &[])
    }

    /// The same with these lines in charon's own section of strongswan.conf.
    pub fn start_with(
        lab: &Lab,
        host: &str,
        esp: Esp,
        connections: &[Connection],
        charon: &[String],
    ) -> Result<Self> {
        let dir = lab.dir_of(host)?;
        let vici = format!("unix://{}/vici.sock", dir.display());
        std::fs::write(
            dir.join("strongswan.conf"),
            conf(&dir, &vici, esp, connections, charon),
        )?;
        let namespace = lab.namespace(host);
        let root = forky_root();
        let lab_dir = lab.dir().to_str().context("path")?;
        let mut command = vec!["ip", "netns", "exec", &namespace];
        if esp == Esp::Plain {
            let root = root.to_str().context("path")?;
            command.extend(["unshare", "-m", "sh", "-c", IN_ROOT, "-", root, lab_dir]);
        }
        command.push("/usr/sbin/charon-systemd");
        // Of a charon that was killed.
        let _ = std::fs::remove_file(dir.join("vici.sock"));
        let conf = dir.join("strongswan.conf");
        let env = [("STRONGSWAN_CONF", conf.to_str().context("path")?)];
        let process = Process::start(&command, &env, &dir.join("charon-out.log"))?;
        let peer = Self {
            process,
            dir,
            vici,
            esp,
        };
        let socket = peer.dir.join("vici.sock");
        // It is there a moment before anything is accepted.
        until(secs(60), "charon listens", || {
            Ok(UnixStream::connect(&socket).is_ok())
        })?;
        peer.load(connections)?;
        Ok(peer)
    }

    /// Replaces all connections.
    pub fn load(&self, connections: &[Connection]) -> Result<()> {
        let (mut all, mut secrets) = (String::new(), String::new());
        for connection in connections {
            connection.install(&self.dir)?;
            let mut connection = connection.clone();
            connection.encap |= self.esp == Esp::InUdp;
            let (connection, secret) = connection.swanctl();
            all.push_str(&connection);
            secrets.push_str(&secret);
        }
        let text = format!("connections {{\n{all}}}\nsecrets {{\n{secrets}}}\n");
        std::fs::write(self.dir.join("swanctl.conf"), text)?;
        self.swanctl(&["--load-all", "--noprompt"]).map(drop)
    }

    /// What charon logged.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.join("charon.log"))?)
    }

    /// How many log lines hold `text`.
    pub fn logged(&self, text: &str) -> Result<usize> {
        Ok(self.log()?.matches(text).count())
    }

    /// Virtual addresses that this peer got.
    pub fn virtual_addresses(&self) -> Result<Vec<String>> {
        let log = self.log()?;
        let got = log.lines().filter_map(|line| {
            let (_, rest) = line.split_once("installing new virtual IP ")?;
            Some(rest.trim().to_owned())
        });
        Ok(got.collect())
    }

    /// The process, for signals.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts a child; what happens meanwhile is the error's text when the peer
    /// refuses.
    pub fn initiate_within(&self, child: &str, seconds: u32) -> Result<String> {
        let seconds = seconds.to_string();
        self.swanctl(&["--initiate", "--child", child, "--timeout", &seconds])
    }

    /// Has a connection authenticate again.
    pub fn reauthenticate(&self, connection: &str) -> Result<()> {
        self.swanctl(&["--rekey", "--ike", connection, "--reauth"])
            .map(drop)
    }

    /// Deletes the IKE SA of a connection, whether or not the other side answers.
    pub fn forget(&self, connection: &str) -> Result<()> {
        self.swanctl(&["--terminate", "--ike", connection, "--force"])
            .map(drop)
    }

    fn swanctl(&self, args: &[&str]) -> Result<String> {
        let (command, args) = args.split_first().context("no command")?;
        let mut all = vec!["/usr/sbin/swanctl", command, "--uri", &self.vici];
        all.extend(args);
        let env = [
            ("STRONGSWAN_CONF", self.dir.join("strongswan.conf")),
            ("SWANCTL_DIR", self.dir.clone()),
        ];
        let env = env
            .each_ref()
            .map(|(k, v)| (*k, v.to_str().unwrap_or_default()));
        let output = output(&all, &env)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("swanctl {args:?}: {text}{error}");
        }
        Ok(text)
    }
}

impl Endpoint for StrongSwan {
    fn sas(&self) -> Result<Vec<IkeSa>> {
        let text = self.swanctl(&["--list-sas", "--raw"])?;
        text.lines()
            .filter_map(|line| ike_sa(line).transpose())
            .collect()
    }

    fn initiate(&self, _connection: &str, child: &str) -> Result<()> {
        self.initiate_within(child, 30 * patience()).map(drop)
    }

    fn rekey_child(&self, child: &str) -> Result<()> {
        self.swanctl(&["--rekey", "--child", child]).map(drop)
    }

    fn rekey_ike(&self, connection: &str) -> Result<()> {
        self.swanctl(&["--rekey", "--ike", connection]).map(drop)
    }

    fn terminate(&self, connection: &str) -> Result<()> {
        let seconds = answered_within();
        self.swanctl(&["--terminate", "--ike", connection, "--timeout", &seconds])
            .map(drop)
    }

    fn terminate_child(&self, child: &str) -> Result<()> {
        let seconds = answered_within();
        self.swanctl(&["--terminate", "--child", child, "--timeout", &seconds])
            .map(drop)
    }
}

/// How many seconds the other side has to answer, which may be started again meanwhile.
fn answered_within() -> String {
    (30 * patience()).to_string()
}

/// Where strongSwan 6.1 with its libraries is: `cluster-tests/run` makes it.
#[must_use]
pub fn forky_root() -> PathBuf {
    match std::env::var_os("EVERGATE_FORKY_ROOT") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster-tests/forky"),
    }
}

fn conf(dir: &Path, vici: &str, esp: Esp, connections: &[Connection], charon: &[String]) -> String {
    // One for all connections.
    let fragment_size = connections.iter().map(|c| c.fragment_size).min();
    let make_before_break = connections.iter().any(|c| c.make_before_break);
    let make_before_break = if make_before_break { "yes" } else { "no" };
    let raw = if esp == Esp::Plain { "yes" } else { "no" };
    // Where the member's ESP is the kernel's, the peer's is, too; what is on the wire stays.
    let kernel = match esp {
        Esp::InUdp | Esp::Plain if Plane::usual() == Plane::Userspace => {
            "kernel-libipsec kernel-netlink"
        }
        _ => "kernel-netlink",
    };
    // Without systemd there is no journal: the log is a file. Retransmissions
    // come fast and for long, so that a drill need not wait for them.
    format!(
        "charon-systemd {{\n load = {PLUGINS} {kernel} socket-default vici updown attr\n retransmit_tries = 12\n retransmit_timeout = 1.0\n retransmit_base = 1.2\n \
         half_open_timeout = 60\n fragment_size = {fragment_size}\n make_before_break = {make_before_break}\n {charon}\n \
         filelog {{\n log {{\n path = {dir}/charon.log\n time_format = %H:%M:%S\n time_add_ms = yes\n default = 1\n flush_line = yes\n }}\n }}\n \
         journal {{\n default = -1\n }}\n \
         plugins {{\n vici {{\n socket = {vici}\n }}\n kernel-libipsec {{\n allow_peer_ts = yes\n raw_esp = {raw}\n }}\n }}\n}}\n\
         swanctl {{\n load = pem pkcs1 x509 pubkey pkcs8 openssl random nonce sha1 sha2\n}}\n",
        fragment_size = fragment_size.unwrap_or(1280),
        charon = charon.join("\n "),
        dir = dir.display()
    )
}

/// One line of `swanctl --list-sas --raw`.
fn ike_sa(line: &str) -> Result<Option<IkeSa>> {
    let Some(rest) = line.strip_prefix("list-sa event ") else {
        return Ok(None);
    };
    let mut rest = rest.trim_start_matches([' ', '{']);
    let tree = section(&mut rest);
    let Some((name, Value::Object(sa))) = tree.into_iter().next() else {
        bail!("cannot parse {line:?}");
    };
    let spi = |key: &str| u64::from_str_radix(text(&sa, key), 16).unwrap_or(0);
    let empty = Map::new();
    let children = sa
        .get("child-sas")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    Ok(Some(IkeSa {
        name,
        spis: (spi("initiator-spi"), spi("responder-spi")),
        established: text(&sa, "state") == "ESTABLISHED",
        children: children
            .values()
            .filter_map(Value::as_object)
            .map(child_sa)
            .collect(),
    }))
}

fn child_sa(child: &Map<String, Value>) -> ChildSa {
    let spi = |key: &str| u32::from_str_radix(text(child, key), 16).unwrap_or(0);
    let list = |key: &str| {
        text(child, key)
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    ChildSa {
        name: text(child, "name").to_owned(),
        spi_in: spi("spi-in"),
        spi_out: spi("spi-out"),
        installed: text(child, "state") == "INSTALLED",
        local_ts: list("local-ts"),
        remote_ts: list("remote-ts"),
    }
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// `key=value key=[a b] key {...} }`, up to the closing brace.
fn section(rest: &mut &str) -> Map<String, Value> {
    let mut map = Map::new();
    loop {
        *rest = rest.trim_start();
        let Some(end) = rest.find(['=', ' ', '}']) else {
            return map;
        };
        let (key, tail) = (rest[..end].to_owned(), &rest[end..]);
        if let Some(tail) = tail.strip_prefix("=[") {
            let (value, tail) = tail.split_once(']').unwrap_or((tail, ""));
            map.insert(key, Value::from(value));
            *rest = tail;
        } else if let Some(tail) = tail.strip_prefix('=') {
            let end = tail.find([' ', '}']).unwrap_or(tail.len());
            map.insert(key, Value::from(&tail[..end]));
            *rest = &tail[end..];
        } else if let Some(tail) = tail.trim_start().strip_prefix('{') {
            *rest = tail;
            map.insert(key, Value::Object(section(rest)));
        } else {
            *rest = tail.strip_prefix('}').unwrap_or("");
            return map;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_of_sas_is_parsed() {
        let line = "list-sa event {c1 {uniqueid=1 version=2 state=ESTABLISHED local-id=a.test initiator-spi=00000000000000ab \
            responder-spi=ff00000000000001 child-sas {c1-1 {name=c1 uniqueid=1 state=INSTALLED spi-in=c0ffee01 spi-out=0000abcd \
            local-ts=[10.10.1.1/32 fd00:10:1::1/128] remote-ts=[10.10.2.0/24]} c1-2 {name=c1 state=REKEYED spi-in=1 spi-out=2}}}}";
        let sa = ike_sa(line).unwrap().unwrap();
        assert_eq!(
            (sa.name.as_str(), sa.spis),
            ("c1", (0xab, 0xff00_0000_0000_0001))
        );
        assert!(sa.established && sa.children[0].installed && !sa.children[1].installed);
        assert_eq!(
            (sa.children[0].spi_in, sa.children[0].spi_out),
            (0xc0ff_ee01, 0xabcd)
        );
        assert_eq!(
            sa.children[0].local_ts,
            ["10.10.1.1/32", "fd00:10:1::1/128"]
        );
    }
}
