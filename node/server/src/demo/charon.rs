//! strongSwan as a peer: the installed charon-systemd, run by hand in a namespace of its own, and asked by swanctl.
//!
//! ESP is that of its plugin kernel-libipsec, in user space as ours is, so that it works in namespaces of users and on any kernel.

use super::{
    gateway::{ANSWER, Sa},
    network::NetNs,
    process::Process,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// What there must be, by the names of Debian's packages.
const PACKAGES: &str = "charon-systemd strongswan-swanctl libcharon-extra-plugins libstrongswan-standard-plugins libstrongswan-extra-plugins";
/// Where programs of the system are, whether or not the search path of this user says so.
const SYSTEM: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];
/// An explicit list: whatever else is installed has no part in it. kernel-libipsec comes before kernel-netlink and gets to do ESP; nothing works
/// without it.
const PLUGINS: &str = "random nonce openssl kdf drbg sha1 sha2 aes hmac ctr gcm curve25519 kernel-libipsec! kernel-netlink socket-default vici!";
/// What charon says.
const LOG: &str = "charon.log";
/// How long charon may need until it listens.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often is looked whether something has come about.
const GLANCE: Duration = Duration::from_millis(10);

/// The installed strongSwan.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    charon: PathBuf,
    swanctl: PathBuf,
}

impl Programs {
    /// Finds it.
    ///
    /// # Errors
    /// If it is not there; the error says what to install.
    pub(super) fn find() -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let places = env::split_paths(&path).chain(SYSTEM.iter().map(PathBuf::from));
        Self::among(&places.collect::<Vec<_>>())
    }

    fn among(places: &[PathBuf]) -> Result<Self> {
        let find = |name: &str| {
            let mut candidates = places.iter().map(|place| place.join(name));
            candidates.find(|file| is_program(file)).with_context(|| {
                format!("--peer strongswan needs {name}, which is not installed. Debian's packages are: {PACKAGES}")
            })
        };
        Ok(Self {
            charon: find("charon-systemd")?,
            swanctl: find("swanctl")?,
        })
    }

    /// Copies of both in a directory. Distributions confine the installed ones by their path (AppArmor), to files in /etc.
    pub(super) fn copy(&self, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let copy = |from: &Path, name: &str| {
            let to = dir.join(name);
            let copied = fs::copy(from, &to);
            copied.with_context(|| format!("cannot copy {}", from.display()))?;
            anyhow::Ok(to)
        };
        Ok(Self {
            charon: copy(&self.charon, "charon-systemd")?,
            swanctl: copy(&self.swanctl, "swanctl")?,
        })
    }

    /// Its name and version.
    pub(super) fn version(&self) -> String {
        // What swanctl says of itself, whether or not it reaches a daemon.
        let said = Command::new(&self.swanctl).arg("--version").output();
        let said = said.map_or_else(|_| Vec::new(), |o| [o.stdout, o.stderr].concat());
        version(&String::from_utf8_lossy(&said))
    }
}

/// From a line such as `strongSwan 5.9.8 swanctl`.
fn version(said: &str) -> String {
    let line = said.lines().find(|line| line.starts_with("strongSwan"));
    let mut words = line.unwrap_or_default().split_whitespace();
    let number = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    ["strongSwan"]
        .into_iter()
        .chain(number)
        .collect::<Vec<_>>()
        .join(" ")
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// A peer that is a charon.
pub(super) struct Charon {
    process: Process,
    programs: Programs,
}

impl Charon {
    /// Writes its files; all that it keeps is in a directory of its name in `root`. `config` is its swanctl.conf.
    pub(super) fn new(
        name: &str,
        ns: &NetNs,
        root: &Path,
        config: &str,
        programs: &Programs,
    ) -> Result<Self> {
        let process = Process::new(name, ns, root, LOG)?;
        fs::write(process.path("swanctl.conf"), config)?;
        let charon = Self {
            process,
            programs: programs.clone(),
        };
        fs::write(charon.settings(), charon.strongswan_conf())?;
        Ok(charon)
    }

    /// Starts it. It does nothing until [`Charon::load`].
    pub(super) fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.programs.charon);
        command.env("STRONGSWAN_CONF", self.settings());
        self.process.start(&mut command)
    }

    /// Waits until it listens, and has it load its connection, which it initiates.
    ///
    /// # Errors
    /// If it does not start, or refuses its configuration.
    pub(super) async fn load(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !self.process.path("vici.sock").exists() {
            let running = self.process.check();
            running.with_context(|| {
                format!("charon does not start; it needs the packages {PACKAGES}")
            })?;
            ensure!(Instant::now() < end, "charon does not listen in time");
            sleep(GLANCE).await;
        }
        self.swanctl(&["--load-all", "--noprompt"]).await.map(drop)
    }

    /// Whether it was started.
    pub(super) fn is_started(&self) -> bool {
        self.process.is_started()
    }

    /// Looks whether it still runs, if it was started.
    ///
    /// # Errors
    /// If it ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        self.process.log()
    }

    /// Its established SAs, with the Child SAs that are installed.
    pub(super) async fn sas(&self) -> Result<Vec<Sa>> {
        let text = self.swanctl(&["--list-sas", "--raw"]).await?;
        let events = text.lines().filter_map(|l| l.strip_prefix("list-sa event"));
        let sas = events.flat_map(|event| Section::parse(event).sections);
        let established = sas.filter(|(_, sa)| sa.is("state", "ESTABLISHED"));
        established.map(|(_, sa)| ike_sa(&sa)).collect()
    }

    /// Rekeys all of its Child SAs, and waits until there are new ones in their place.
    ///
    /// # Errors
    /// If the cluster does not answer, or refuses.
    pub(super) async fn rekey(&self) -> Result<u64> {
        let children = |sas: Vec<Sa>| sas.into_iter().flat_map(|sa| sa.children);
        let before: Vec<_> = children(self.sas().await?).collect();
        self.swanctl(&["--rekey", "--child", "net"]).await?;
        let replaced = async {
            loop {
                let now: Vec<_> = children(self.sas().await?).collect();
                if now.len() == before.len() && !now.iter().any(|c| before.contains(c)) {
                    return anyhow::Ok(());
                }
                sleep(GLANCE).await;
            }
        };
        let name = self.process.name();
        timeout(ANSWER, replaced)
            .await
            .with_context(|| format!("{name} cannot rekey its SAs"))??;
        Ok(before.len() as u64)
    }

    fn settings(&self) -> PathBuf {
        self.process.path("strongswan.conf")
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.process.path("vici.sock").display())
    }

    /// Retransmissions come as early as ours: while nobody serves the gateway they are what finds the successor.
    fn strongswan_conf(&self) -> String {
        format!(
            r"charon-systemd {{
  load = {PLUGINS}
  retransmit_timeout = 1.0
  retransmit_base = 1.2
  retransmit_tries = 12
  filelog {{
    stderr {{
      time_format = %H:%M:%S
      default = 1
      flush_line = yes
    }}
  }}
  journal {{
    default = -1
  }}
  plugins {{
    vici {{
      socket = {socket}
    }}
    kernel-libipsec {{
      allow_peer_ts = yes
    }}
  }}
}}
swanctl {{
  load = random openssl
}}
",
            socket = self.socket()
        )
    }

    async fn swanctl(&self, arguments: &[&str]) -> Result<String> {
        let (command, options) = arguments.split_first().context("no command")?;
        let socket = self.socket();
        let called = tokio::process::Command::new(&self.programs.swanctl)
            .args([command, "--uri", &socket])
            .args(options)
            .env("STRONGSWAN_CONF", self.settings())
            .env("SWANCTL_DIR", self.process.path(""))
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        let name = self.process.name();
        let output = timeout(ANSWER, called)
            .await
            .with_context(|| format!("the charon of {name} does not answer"))??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{name}: swanctl {command}: {text}{error}");
        }
        Ok(text)
    }
}

fn ike_sa(sa: &Section) -> Result<Sa> {
    let ike = (sa.spi("initiator-spi")?, sa.spi("responder-spi")?);
    let all = sa.sections.get("child-sas");
    let children = all.into_iter().flat_map(|all| all.sections.values());
    let installed = children.filter(|child| child.is("state", "INSTALLED"));
    let pairs = installed.map(|child| {
        let spi = |key| child.spi(key).and_then(|spi| Ok(u32::try_from(spi)?));
        anyhow::Ok((spi("spi-in")?, spi("spi-out")?))
    });
    Ok(Sa::new(ike, None, pairs.collect::<Result<Vec<_>>>()?))
}

/// A section of what swanctl prints raw: `{key=value list=[a b] section {...}}`.
#[derive(Debug, Default)]
struct Section {
    values: BTreeMap<String, String>,
    sections: BTreeMap<String, Section>,
}

impl Section {
    fn parse(text: &str) -> Self {
        // Lists hold spaces, but nothing that is of interest here.
        let text = text.replace('{', " { ").replace('}', " } ");
        let mut words = text.split_whitespace();
        match words.next() {
            Some("{") => Self::until_closed(&mut words),
            _ => Self::default(),
        }
    }

    fn until_closed<'a>(words: &mut impl Iterator<Item = &'a str>) -> Self {
        let mut section = Self::default();
        let mut name = "";
        while let Some(word) = words.next() {
            match (word, word.split_once('=')) {
                ("}", _) => break,
                ("{", _) => {
                    let inner = Self::until_closed(words);
                    section.sections.insert(name.to_owned(), inner);
                }
                (_, Some((key, value))) => {
                    section.values.insert(key.to_owned(), value.to_owned());
                }
                (word, None) => name = word,
            }
        }
        section
    }

    fn is(&self, key: &str, value: &str) -> bool {
        self.values.get(key).is_some_and(|v| v == value)
    }

    fn spi(&self, key: &str) -> Result<u64> {
        let digits = self.values.get(key);
        let digits = digits.with_context(|| format!("charon gives no {key}"))?;
        u64::from_str_radix(digits, 16).with_context(|| format!("{key}={digits} is no SPI"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_understood() {
        let line = " {cluster {uniqueid=1 version=2 state=ESTABLISHED local-host=192.0.2.101 \
            initiator-spi=00000000000000ab responder-spi=ff00000000000001 tasks-active=[CHILD_REKEY IKE_DPD] child-sas {\
            net-1 {name=net uniqueid=1 state=REKEYED spi-in=1 spi-out=2} \
            net-2 {name=net uniqueid=2 state=INSTALLED spi-in=c0ffee01 spi-out=0000abcd \
            local-ts=[10.2.1.0/24] remote-ts=[10.1.0.0/16]}}}}";
        let all = Section::parse(line);
        let sa = all.sections.get("cluster").unwrap();
        assert!(sa.is("state", "ESTABLISHED"));
        assert_eq!(
            ike_sa(sa).unwrap(),
            Sa::new((0xab, 0xff00_0000_0000_0001), None, [(0xc0ff_ee01, 0xabcd)])
        );
    }

    #[test]
    fn what_cannot_be_understood_is_an_error_or_nothing() {
        for text in [
            "",
            "{",
            "}",
            "{a {b=1 ",
            "nonsense",
            "{cluster {state=ESTABLISHED}}",
        ] {
            for sa in Section::parse(text).sections.values() {
                assert!(ike_sa(sa).is_err(), "{text}");
            }
        }
    }

    #[test]
    fn the_version_is_found_in_what_swanctl_says() {
        let said = "strongSwan 5.9.8 swanctl\nusage:\n  swanctl --version\n";
        assert_eq!(version(said), "strongSwan 5.9.8");
        assert_eq!(version("strongSwan swanctl 6.1.0\n"), "strongSwan 6.1.0");
        assert_eq!(version(""), "strongSwan");
    }

    #[test]
    fn only_what_can_be_run_is_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("charon-systemd");
        assert!(!is_program(&file) && !is_program(dir.path()));
        fs::write(&file, "").unwrap();
        assert!(!is_program(&file));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(is_program(&file));
        // The other one is not there.
        let error = Programs::among(&[dir.path().to_owned()]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("swanctl") && text.contains(PACKAGES),
            "{text}"
        );
    }
}
