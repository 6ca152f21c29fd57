//! Hosts in network namespaces around one "internet" segment.
//!
//! ```text
//! peer1 192.0.2.1, 2001:db8::1 ──┐
//!   lo 10.10.1.1, fd00:10:1::1   │
//!                                ├── bridge ── gw 192.0.2.2, 2001:db8::2
//! peer3 192.0.2.3, 2001:db8::3 ──┘              │ 10.10.2.1, fd00:10:2::1
//!   lo 10.10.3.1, fd00:10:3::1                  └── host 10.10.2.10, fd00:10:2::10
//! ```

use crate::Result;
use crate::process::{run, tail};
use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// The outer address family of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 192.0.2.0/24.
    V4,
    /// 2001:db8::/64.
    V6,
}

impl Family {
    /// The address of host number `n` on the internet segment.
    #[must_use]
    pub fn outer(self, n: u8) -> String {
        match self {
            Self::V4 => format!("192.0.2.{n}"),
            Self::V6 => format!("2001:db8::{n}"),
        }
    }
}

/// The number of the gateway on the internet segment.
pub const GATEWAY: u8 = 2;
/// The host in the protected network behind the gateway.
pub const PROTECTED: [&str; 2] = ["10.10.2.10", "fd00:10:2::10"];
/// The address of a host behind a NAT.
pub const BEHIND_NAT: &str = "172.16.0.2";
/// The gateway's own addresses in its protected network.
pub const GATEWAY_INSIDE: [&str; 2] = ["10.10.2.1", "fd00:10:2::1"];

/// The addresses that host number `n` protects on its loopback.
#[must_use]
pub fn inside(n: u8) -> [String; 2] {
    [format!("10.10.{n}.1"), format!("fd00:10:{n}::1")]
}

/// A set of namespaces and a directory; both go when it is dropped.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: TempDir,
    hosts: Vec<String>,
    mtu: u32,
    passed: bool,
}

/// Where labs are: in memory, if there is room. A member answers nothing before its log is on the disk, and on a machine whose disk is busy with something
/// else that can take half a minute, which is longer than peers wait. A kill loses nothing of what was written either way.
fn scratch() -> &'static str {
    const ROOM: u64 = 1 << 30;
    const MEMORY: &str = "/dev/shm";
    let has_room = statfs(MEMORY).is_ok_and(|fs| {
        let block = u64::try_from(fs.block_size()).unwrap_or(0);
        fs.filesystem_type() == TMPFS_MAGIC && fs.blocks_available() * block >= ROOM
    });
    if has_room { MEMORY } else { "/tmp" }
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// The internet segment, the gateway, and the host behind it.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses namespaces.
    pub fn new(mtu: u32) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the drills make network namespaces: run them as root (sudo -E cluster-tests/run)"
        );
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self {
            id: format!("eg{}-{serial}", std::process::id()),
            // Short: paths of Unix sockets end after 107 bytes.
            dir: tempfile::Builder::new()
                .prefix("eg")
                .tempdir_in(scratch())?,
            hosts: Vec::new(),
            mtu,
            passed: false,
        };
        lab.add_namespace("inet")?;
        lab.ip("inet", "link add br0 type bridge mcast_snooping 0")?;
        lab.ip("inet", &format!("link set br0 up mtu {mtu}"))?;
        lab.add_outer("gw", GATEWAY)?;
        lab.add_protected()?;
        Ok(lab)
    }

    /// Adds a host on the internet segment that protects its own loopback
    /// addresses ([`inside`]).
    pub fn add_peer(&mut self, n: u8) -> Result<String> {
        let host = format!("peer{n}");
        self.add_outer(&host, n)?;
        for address in inside(n) {
            let length = if address.contains(':') { 128 } else { 32 };
            self.ip(&host, &format!("addr add {address}/{length} dev lo"))?;
        }
        Ok(host)
    }

    /// Adds a host behind a NAT whose outer side is number `n` on the internet
    /// segment; the host itself has [`BEHIND_NAT`].
    pub fn add_peer_behind_nat(&mut self, n: u8) -> Result<String> {
        let (nat, host) = (format!("nat{n}"), format!("peer{n}"));
        self.add_outer(&nat, n)?;
        self.add_namespace(&host)?;
        let (nat_ns, host_ns) = (self.namespace(&nat), self.namespace(&host));
        run(&words(&format!(
            "ip link add in0 netns {nat_ns} type veth peer name up0 netns {host_ns}"
        )))?;
        self.ip(&nat, "addr add 172.16.0.1/24 dev in0")?;
        self.ip(&nat, "link set in0 up")?;
        self.ip(&host, &format!("addr add {BEHIND_NAT}/24 dev up0"))?;
        self.ip(&host, "link set up0 gso_max_segs 1 up")?;
        self.ip(&host, "route add 192.0.2.0/24 via 172.16.0.1")?;
        for address in inside(n) {
            let length = if address.contains(':') { 128 } else { 32 };
            self.ip(&host, &format!("addr add {address}/{length} dev lo"))?;
        }
        self.exec(&nat, &["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        self.exec(&nat, &["nft", "add table ip nat"])?;
        self.exec(
            &nat,
            &[
                "nft",
                "add chain ip nat post { type nat hook postrouting priority 100 ; }",
            ],
        )?;
        // Other ports, as most NATs give them when there is more than one host.
        let rule =
            "add rule ip nat post oifname up0 udp sport { 500, 4500 } masquerade to :20000-30000";
        self.exec(&nat, &["nft", rule])?;
        Ok(host)
    }

    fn add_namespace(&mut self, host: &str) -> Result<()> {
        run(&["ip", "netns", "add", &self.namespace(host)])?;
        self.hosts.push(host.to_owned());
        self.ip(host, "link set lo up")?;
        self.exec(
            host,
            &[
                "sysctl",
                "-qw",
                "net.ipv6.conf.all.accept_dad=0",
                "net.ipv6.conf.default.accept_dad=0",
                "net.ipv6.conf.default.router_solicitations=0",
                "net.ipv4.conf.all.rp_filter=0",
                "net.ipv4.conf.default.rp_filter=0",
            ],
        )?;
        Ok(())
    }

    fn add_outer(&mut self, host: &str, n: u8) -> Result<()> {
        self.add_namespace(host)?;
        let (mtu, host_ns, inet_ns) = (self.mtu, self.namespace(host), self.namespace("inet"));
        run(&words(&format!(
            "ip link add up0 mtu {mtu} netns {host_ns} type veth peer name p{n} mtu {mtu} netns {inet_ns}"
        )))?;
        // Captures are to show packets as they would be on a wire, not several in one.
        let port = format!("link set p{n} master br0 gso_max_segs 1 up");
        self.ip("inet", &port)?;
        for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
            let address = family.outer(n);
            let nodad = if family == Family::V6 { " nodad" } else { "" };
            self.ip(host, &format!("addr add {address}/{length} dev up0{nodad}"))?;
        }
        self.ip(host, "link set up0 gso_max_segs 1 up")
    }

    fn add_protected(&mut self) -> Result<()> {
        self.add_namespace("host")?;
        let (gw, host) = (self.namespace("gw"), self.namespace("host"));
        run(&words(&format!(
            "ip link add in0 netns {gw} type veth peer name eth0 netns {host}"
        )))?;
        for (ns, dev, [v4, v6]) in [("gw", "in0", GATEWAY_INSIDE), ("host", "eth0", PROTECTED)] {
            self.ip(ns, &format!("addr add {v4}/24 dev {dev}"))?;
            self.ip(ns, &format!("addr add {v6}/64 dev {dev} nodad"))?;
            self.ip(ns, &format!("link set {dev} up"))?;
        }
        self.exec(
            "gw",
            &[
                "sysctl",
                "-qw",
                "net.ipv4.ip_forward=1",
                "net.ipv6.conf.all.forwarding=1",
            ],
        )?;
        // Inner networks only: there is no way to the internet segment from here.
        self.ip(
            "host",
            &format!("route add 10.0.0.0/8 via {}", GATEWAY_INSIDE[0]),
        )?;
        self.ip(
            "host",
            &format!("route add fd00::/8 via {}", GATEWAY_INSIDE[1]),
        )
    }

    /// The name of a host's namespace.
    #[must_use]
    pub fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.id)
    }

    /// Where everything of this lab is written.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A directory of its own for `name`.
    pub fn dir_of(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// `ip -n HOST ARGS`.
    pub fn ip(&self, host: &str, args: &str) -> Result<()> {
        let namespace = self.namespace(host);
        let mut command = vec!["ip", "-n", &namespace];
        command.extend(words(args));
        run(&command).map(drop)
    }

    /// Runs a short command on `host`.
    pub fn exec(&self, host: &str, command: &[&str]) -> Result<String> {
        let namespace = self.namespace(host);
        let mut all = vec!["ip", "netns", "exec", &namespace];
        all.extend(command);
        run(&all)
    }

    /// What the kernel of `host` would do with a packet: with XFRM on both ends no log tells. Keys are left out.
    #[must_use]
    pub fn kernel(&self, host: &str) -> String {
        const LOOK: &str = "ip -brief addr; ip route show table all | grep -v 'table local'; \
                            ip -s xfrm state | grep -vE 'auth|enc|aead'; ip xfrm policy; \
                            grep -v '[^0-9]0$' /proc/net/xfrm_stat; true";
        let found = self.exec(host, &["sh", "-c", LOOK]);
        format!("{host}: {}", found.unwrap_or_else(|e| format!("{e:#}")))
    }

    /// Runs `open` on a thread that is on `host`: the sockets that it makes
    /// stay there, wherever they are used.
    pub fn on<T: Send>(&self, host: &str, open: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.namespace(host));
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    let namespace = File::open(&path).with_context(|| path.clone())?;
                    setns(namespace, CloneFlags::CLONE_NEWNET)?;
                    open()
                })
                .join()
                .map_err(|_| anyhow::anyhow!("the thread on {host} panicked"))?
        })
    }

    /// Says that the drill passed: without it the end of every log is printed
    /// when the lab goes.
    pub fn passed(&mut self) {
        self.passed = true;
    }

    /// Prints the end of every log of the lab.
    fn print_logs(&self) {
        let Ok(entries) = walk(self.dir.path()) else {
            return;
        };
        for path in entries {
            if path.extension().is_some_and(|e| e == "log") {
                eprintln!("==== {} ====\n{}", path.display(), tail(&path, 80));
            }
        }
    }
}

/// All files below `dir`.
pub fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(walk(&path)?);
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.passed || std::thread::panicking() {
            self.print_logs();
            if std::env::var_os("EVERGATE_KEEP").is_some() {
                self.dir.disable_cleanup(true);
                eprintln!("kept: {}", self.dir.path().display());
            }
        }
        for host in &self.hosts {
            let _ = run(&["ip", "netns", "del", &self.namespace(host)]);
        }
    }
}
