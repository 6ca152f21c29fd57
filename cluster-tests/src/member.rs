//! A member: a real `evergate` process on a host of the lab.

use crate::connection::Connection;
use crate::lab::{GATEWAY_INSIDE, Lab};
use crate::process::{Process, output, run};
use crate::sa::{ChildSa, Endpoint, IkeSa};
use crate::{Result, secs, until};
use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A pool of virtual addresses.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// A prefix.
    pub addrs: String,
    /// DNS servers, announced with it.
    pub dns: Vec<String>,
}

/// Names a file that a member has as its `/etc/hosts`.
pub const HOSTS: &str = "EVERGATE_DRILL_HOSTS";

/// Runs a command with the file $1 as `/etc/hosts`.
const WITH_HOSTS: &str = r#"h=$1; shift; mount --bind "$h" /etc/hosts && exec "$@""#;

/// Mount options of a disk of its own, in memory, that a member has for its state: what is on it goes with the process.
pub const DISK: &str = "EVERGATE_DRILL_DISK";

/// Runs a command with a disk with options $1 in the directory $2.
const WITH_DISK: &str =
    r#"o=$1 d=$2; shift 2; mkdir -p "$d" && mount -t tmpfs -o "$o" none "$d" && exec "$@""#;

/// A member, running or killed.
#[derive(Debug)]
pub struct Member {
    process: Option<Process>,
    namespace: String,
    dir: PathBuf,
}

impl Member {
    /// Starts a member on `host` and waits until it serves.
    pub fn start(
        lab: &Lab,
        host: &str,
        connections: &[Connection],
        pools: &[Pool],
    ) -> Result<Self> {
        Self::start_with(lab, host, connections, pools, &[])
    }

    /// The same with these environment variables.
    pub fn start_with(
        lab: &Lab,
        host: &str,
        connections: &[Connection],
        pools: &[Pool],
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let dir = lab.dir_of(&format!("{host}-member"))?;
        let member = Self {
            process: None,
            namespace: lab.namespace(host),
            dir,
        };
        run(&[&binary()?, "keygen", "--out", &member.path("key")?])?;
        member.write_config(connections, pools)?;
        let mut member = member;
        member.start_again(env)?;
        Ok(member)
    }

    /// A member on `host` with this configuration, which is not started yet. `{dir}` in it stands for the member's directory.
    pub fn with_config(lab: &Lab, host: &str, config: &str) -> Result<Self> {
        let dir = lab.dir_of(&format!("{host}-member"))?;
        let text = config.replace("{dir}", &dir.display().to_string());
        std::fs::write(dir.join("evergate.toml"), text)?;
        Ok(Self {
            process: None,
            namespace: lab.namespace(host),
            dir,
        })
    }

    fn write_config(&self, connections: &[Connection], pools: &[Pool]) -> Result<()> {
        let mut text = format!(
            "[member]\nname = \"m1\"\nstate_dir = \"{dir}/state\"\nkey_file = \"{dir}/key\"\nadmin_socket = \"{dir}/admin.sock\"\n\
             {more}{dataplane}",
            dir = self.dir.display(),
            more = connections.first().map_or("", Connection::member_toml),
            dataplane = connections.first().map_or_else(String::new, |c| {
                format!("{}{}", c.plane.toml(), c.dataplane)
            })
        );
        for connection in connections {
            text.push_str(&connection.toml());
        }
        for pool in pools {
            let dns: Vec<String> = pool.dns.iter().map(|d| format!("\"{d}\"")).collect();
            let _ = writeln!(
                text,
                "[pools.{}]\naddrs = \"{}\"\ndns = [{}]",
                pool.name,
                pool.addrs,
                dns.join(", ")
            );
        }
        std::fs::write(self.dir.join("evergate.toml"), text)?;
        Ok(())
    }

    /// Starts the process (again) with these environment variables, and waits
    /// until it serves.
    pub fn start_again(&mut self, env: &[(&str, &str)]) -> Result<()> {
        self.spawn(env)?;
        until(secs(60), "the member serves", || {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                bail!("the member ended: {status}");
            }
            self.ctl(&["status", "--json"]).map(|_| true)
        })
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(&mut self, env: &[(&str, &str)]) -> Result<()> {
        self.process = None;
        let keys = self.dir.join("keys");
        std::fs::create_dir_all(&keys)?;
        let program = binary()?;
        let config = self.path("evergate.toml")?;
        let mut command = vec!["ip", "netns", "exec", &self.namespace];
        // In a mount namespace of its own, so that nothing of this machine changes.
        if let Some((_, hosts)) = env.iter().find(|(name, _)| *name == HOSTS) {
            command.extend(["unshare", "-m", "sh", "-c", WITH_HOSTS, "-", hosts]);
        }
        let state = self.path("state")?;
        if let Some((_, options)) = env.iter().find(|(name, _)| *name == DISK) {
            command.extend(["unshare", "-m", "sh", "-c", WITH_DISK, "-", options, &state]);
        }
        command.extend([&program, "run", "--config", &config]);
        let mut all = vec![
            ("EVERGATE_KEYLOG", keys.to_str().context("path")?),
            ("RUST_BACKTRACE", "1"),
        ];
        all.extend(env);
        self.process = Some(Process::start(&command, &all, &self.log_path())?);
        Ok(())
    }

    fn path(&self, name: &str) -> Result<String> {
        Ok(self.dir.join(name).to_str().context("path")?.to_owned())
    }

    /// Its log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("evergate.log")
    }

    /// What it logged.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log_path())?)
    }

    /// Its directory: configuration, state, log and key log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The running process.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the member is not running")
    }

    /// `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        self.process()?.kill9()?;
        self.process = None;
        Ok(())
    }

    /// SIGTERM, and the exit status must be clean.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process()?.stop(Signal::SIGTERM)?;
        self.process = None;
        anyhow::ensure!(status.success(), "after SIGTERM: {status}");
        Ok(())
    }

    /// Waits until the process has ended by itself.
    pub fn wait_for_end(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("the member is not running")?;
        until(secs(60), "the member ends", || {
            Ok(process.ended()?.is_some())
        })?;
        self.process = None;
        Ok(())
    }

    /// Waits until the process killed itself at a failure point.
    pub fn wait_for_failpoint(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("the member is not running")?;
        until(secs(60), "the failure point kills the member", || {
            Ok(process.ended()?.is_some())
        })?;
        self.process = None;
        Ok(())
    }

    /// `evergate ctl ARGS` against this member.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let (program, socket) = (binary()?, self.path("admin.sock")?);
        let mut command = vec![program.as_str(), "ctl", "--socket", &socket];
        command.extend(args);
        let output = output(&command, &[])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "ctl {args:?}: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(text)
    }

    /// `evergate COMMAND --config … ARGS` on the member's host, for what is done to a member that does not run; yields all that it says.
    pub fn offline(&self, arguments: &[&str]) -> Result<String> {
        let (program, config) = (binary()?, self.path("evergate.toml")?);
        let (command, arguments) = arguments.split_first().context("no command")?;
        let in_namespace = ["ip", "netns", "exec", &self.namespace, &program];
        let all = [
            &in_namespace[..],
            &[command, "--config", &config],
            arguments,
        ]
        .concat();
        let output = output(&all, &[])?;
        let said = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&said).into_owned();
        anyhow::ensure!(output.status.success(), "{command}: {text}");
        Ok(text)
    }

    /// `ctl status --json`.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ctl(&["status", "--json"])?)?)
    }

    /// A local address inside the protected network, for its own traffic.
    #[must_use]
    pub fn inside(&self) -> [&'static str; 2] {
        GATEWAY_INSIDE
    }

    fn find_ike(&self, connection: &str) -> Result<String> {
        let all = self.listing()?;
        let found = all
            .iter()
            .find(|sa| sa["connection"] == *connection && phase(sa).contains("established"));
        Ok(number(&found.context("no such IKE SA")?["id"]).to_string())
    }

    /// Authenticates again, with a new IKE SA in the place of that of this connection.
    pub fn reauthenticate(&self, connection: &str) -> Result<()> {
        self.ctl(&["rekey", "--ike", &self.find_ike(connection)?, "--reauth"])
            .map(drop)
    }

    fn find_child(&self, child: &str) -> Result<String> {
        for sa in self.listing()? {
            for found in sa["children"].as_array().into_iter().flatten() {
                if found["name"] == *child && lower(&found["fate"]).contains("live") {
                    return Ok(number(&found["spi_in"]).to_string());
                }
            }
        }
        bail!("no live child {child}")
    }

    fn listing(&self) -> Result<Vec<Value>> {
        match serde_json::from_str(&self.ctl(&["sas", "--json"])?)? {
            Value::Array(list) => Ok(list),
            other => bail!("not a list: {other}"),
        }
    }
}

impl Endpoint for Member {
    fn sas(&self) -> Result<Vec<IkeSa>> {
        Ok(self.listing()?.iter().map(ike_sa).collect())
    }

    fn initiate(&self, connection: &str, child: &str) -> Result<()> {
        self.ctl(&["initiate", connection, child]).map(drop)
    }

    fn rekey_child(&self, child: &str) -> Result<()> {
        self.ctl(&["rekey", "--child", &self.find_child(child)?])
            .map(drop)
    }

    fn rekey_ike(&self, connection: &str) -> Result<()> {
        self.ctl(&["rekey", "--ike", &self.find_ike(connection)?])
            .map(drop)
    }

    fn terminate(&self, connection: &str) -> Result<()> {
        self.ctl(&["terminate", "--connection", connection])
            .map(drop)
    }

    fn terminate_child(&self, child: &str) -> Result<()> {
        self.ctl(&["terminate", "--child", &self.find_child(child)?])
            .map(drop)
    }
}

/// The binary under test: that of this build, or of `EVERGATE_BIN`.
pub fn binary() -> Result<String> {
    let path = match std::env::var_os("EVERGATE_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            // target/PROFILE/deps/drills-HASH, and the binary is two levels up.
            let own = std::env::current_exe()?;
            own.ancestors()
                .nth(2)
                .context("no target directory")?
                .join("evergate")
        }
    };
    anyhow::ensure!(
        path.exists(),
        "{} is missing: cargo build --workspace --features evergate-server/drills, or cluster-tests/run",
        path.display()
    );
    Ok(path.to_str().context("path")?.to_owned())
}

fn ike_sa(sa: &Value) -> IkeSa {
    let (own, other) = (number(&sa["id"]), number(&sa["remote_spi"]));
    let initiator = sa["initiator"] == true;
    IkeSa {
        name: sa["connection"].as_str().unwrap_or_default().to_owned(),
        spis: if initiator {
            (own, other)
        } else {
            (other, own)
        },
        established: phase(sa).contains("established"),
        children: sa["children"]
            .as_array()
            .into_iter()
            .flatten()
            .map(child_sa)
            .collect(),
    }
}

fn child_sa(child: &Value) -> ChildSa {
    let spi = |key: &str| u32::try_from(number(&child[key])).unwrap_or(0);
    let list = |key: &str| {
        let all = child[key].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    ChildSa {
        name: child["name"].as_str().unwrap_or_default().to_owned(),
        spi_in: spi("spi_in"),
        spi_out: spi("spi_out"),
        installed: lower(&child["fate"]).contains("live"),
        local_ts: list("local_ts"),
        remote_ts: list("remote_ts"),
    }
}

fn phase(sa: &Value) -> String {
    lower(&sa["phase"])
}

fn lower(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_lowercase()
}

/// SPIs are numbers or, because JSON numbers of 64 bits get lost, hexadecimal.
fn number(value: &Value) -> u64 {
    match value {
        Value::String(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0),
        other => other.as_u64().unwrap_or(0),
    }
}
