//! A gateway as a process of its own: started, killed, and asked over its administration API.

use super::{network::NetNs, process::Process, topology::KEY_FILE};
use crate::ctl;
use anyhow::{Context, Error, Result, ensure};
use evergate_proto::admin::{
    ChildFate, ChildSa, GetStatusRequest, GetStatusResponse, IkeSa, ListMembersRequest,
    ListSasRequest, Member, RekeyRequest, admin_client::AdminClient, rekey_request,
};
use futures::TryStreamExt;
use std::{
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tokio::time::timeout;
use tonic::transport::Channel;

/// Longest wait for an answer of the administration API.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait for the answer of a peer, which may need a repetition of the request.
pub(super) const ANSWER: Duration = Duration::from_secs(20);
/// Its configuration.
const CONFIG_FILE: &str = "evergate.toml";

/// A member, or a peer that is one of ours.
pub(super) struct Gateway(Process);

/// What must not change: SPIs, from the view of one gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sa {
    /// Of the initiator and of the responder.
    pub(super) ike: (u64, u64),
    /// When both ends were authenticated, in milliseconds of Unix time, if the gateway knows: whoever authenticates again has other SPIs
    /// anyway (RFC 7296 §2.8.3).
    pub(super) authenticated_ms: Option<u64>,
    /// Of the pairs of ESP SAs, the smaller one first, so that both ends say the same.
    pub(super) children: Vec<(u32, u32)>,
}

impl Gateway {
    /// Writes its files; all that it keeps is in a directory of its name in `root`.
    pub(super) fn new(name: &str, ns: &NetNs, root: &Path, config: &str) -> Result<Self> {
        let process = Process::new(name, ns, root, "evergate.log")?;
        fs::write(process.path(CONFIG_FILE), config)?;
        Ok(Self(process))
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.0.name()
    }

    /// Starts it, or starts it again with the state that it had.
    pub(super) fn start(&mut self) -> Result<()> {
        let config = self.0.path(CONFIG_FILE);
        let arguments = ["run".as_ref(), "--config".as_ref(), config.as_os_str()];
        self.0.start(&mut evergate(arguments))
    }

    /// Kills it with SIGKILL; afterwards it is gone.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.0.kill()
    }

    /// Whether it was started, and not killed since.
    pub(super) fn is_started(&self) -> bool {
        self.0.is_started()
    }

    /// Looks whether it still runs, if it was started.
    ///
    /// # Errors
    /// If it ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        self.0.check()
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        self.0.log()
    }

    /// Whether it answers.
    pub(super) async fn serves(&self) -> bool {
        self.is_started() && matches!(timeout(PATIENCE, self.status()).await, Ok(Ok(_)))
    }

    /// The epoch in which it serves the virtual gateway, if it does.
    pub(super) async fn active_in(&self) -> Option<u32> {
        if !self.is_started() {
            return None;
        }
        let status = timeout(PATIENCE, self.status()).await.ok()?.ok()?;
        let active = status.gateways.iter().filter(|g| g.active);
        active.map(|g| g.epoch).max()
    }

    async fn status(&self) -> Result<GetStatusResponse> {
        let mut client = self.client().await?;
        let status = client.get_status(GetStatusRequest {}).await?;
        Ok(status.into_inner())
    }

    /// Its established SAs.
    pub(super) async fn sas(&self) -> Result<Vec<Sa>> {
        let sas = timeout(PATIENCE, self.list_sas()).await;
        sas.with_context(|| format!("{} does not answer", self.name()))?
    }

    async fn list_sas(&self) -> Result<Vec<Sa>> {
        let mut sas: Vec<Sa> = self.established().await?.iter().map(Sa::of).collect();
        sas.sort();
        Ok(sas)
    }

    async fn established(&self) -> Result<Vec<IkeSa>> {
        let mut client = self.client().await?;
        let request = ListSasRequest {
            established_only: true,
            ..Default::default()
        };
        let stream = client.list_sas(request).await?.into_inner();
        Ok(stream.try_collect().await?)
    }

    /// Whether it leads the cluster.
    pub(super) async fn leads(&self) -> Result<bool> {
        let ask = async {
            let mut client = self.client().await?;
            let members = client.list_members(ListMembersRequest {}).await?;
            Ok(members.into_inner().members)
        };
        let members: Result<Vec<Member>> = timeout(PATIENCE, ask).await?;
        let own = |m: &Member| m.leader && m.name == self.name();
        Ok(members?.iter().any(own))
    }

    /// Rekeys all of its Child SAs, one after the other, and says how many.
    ///
    /// # Errors
    /// If a peer does not answer, or refuses.
    pub(super) async fn rekey(&self) -> Result<u64> {
        let mut client = self.client().await?;
        let mut count = 0;
        for sa in self.established().await? {
            for child in sa.children.iter().filter(|c| is_live(c)) {
                let target = rekey_request::Target::Child(child.spi_in);
                let request = RekeyRequest {
                    target: Some(target),
                    reauth: false,
                };
                let rekeyed = timeout(ANSWER, client.rekey(request)).await;
                let rekeyed = rekeyed.map_err(Error::from).and_then(|r| Ok(r?));
                rekeyed.with_context(|| format!("{} cannot rekey its SAs", self.name()))?;
                count += 1;
            }
        }
        Ok(count)
    }

    async fn client(&self) -> Result<AdminClient<Channel>> {
        ctl::connect(&self.0.path("admin.sock"))
            .await
            .map_err(Error::msg)
    }
}

fn is_live(child: &ChildSa) -> bool {
    child.fate() == ChildFate::Live
}

impl Sa {
    /// From the SPIs of an IKE SA and the pairs of SPIs of its Child SAs.
    pub(super) fn new(
        ike: (u64, u64),
        authenticated_ms: Option<u64>,
        pairs: impl IntoIterator<Item = (u32, u32)>,
    ) -> Self {
        let ordered = pairs.into_iter().map(|(a, b)| (a.min(b), a.max(b)));
        let mut children: Vec<_> = ordered.collect();
        children.sort_unstable();
        Self {
            ike,
            authenticated_ms,
            children,
        }
    }

    fn of(sa: &IkeSa) -> Self {
        let ike = if sa.initiator {
            (sa.id, sa.remote_spi)
        } else {
            (sa.remote_spi, sa.id)
        };
        let live = sa.children.iter().filter(|c| is_live(c));
        let pairs = live.map(|c| (c.spi_in, c.spi_out));
        Self::new(ike, sa.authenticated_ms, pairs)
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("ike {:016x}/{:016x}", self.ike.0, self.ike.1);
        for (a, b) in &self.children {
            text.push_str(&format!(" child {a:08x}/{b:08x}"));
        }
        text
    }

    /// Only the SPIs.
    pub(super) fn spis(&self) -> ((u64, u64), &[(u32, u32)]) {
        (self.ike, &self.children)
    }
}

/// Makes a cluster key in a directory.
pub(super) fn make_key(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let key = dir.join(KEY_FILE);
    let made = evergate(["keygen".as_ref(), "--out".as_ref(), key.as_os_str()])
        .stdout(Stdio::null())
        .status();
    ensure!(made?.success(), "evergate keygen failed");
    Ok(())
}

/// This program, also when its file was replaced meanwhile.
fn evergate<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("evergate").args(arguments);
    command
}
