//! Namespaces of our own, so that nothing outside is touched and nothing is left behind.
//!
//! The command starts itself again as the first process of a new PID namespace. When that process ends, for whatever reason, the kernel
//! ends every other one in there, and with the last process go the network namespaces and the file system in memory. It ends when
//! the command does: it holds the other end of a pipe.

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid, getpid},
};
use std::{
    env,
    fmt::Display,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process::{self, Stdio},
    thread,
};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

/// The argument by which the command knows that it is inside.
pub(super) const INSIDE: &str = "--inside";
/// The exit status after an interrupt, as shells count it.
const INTERRUPTED: i32 = 130;
/// Where a file system in memory may be put, if nothing of ours is there.
const MOUNT_POINTS: [&str; 4] = ["/run", "/mnt", "/opt", "/tmp"];

const HELP: &str = "the kernel does not let this user make namespaces. Run the demo as root, or allow them:\n\
    \x20 Debian:  sysctl -w kernel.unprivileged_userns_clone=1\n\
    \x20 Ubuntu:  sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n\
    \x20 others:  sysctl -w user.max_user_namespaces=10000\n\
    \x20 in a container: start it with --privileged";

/// Runs this command again inside, and does not come back unless it succeeded there.
///
/// # Errors
/// If there are no namespaces to be had.
pub(super) fn run_inside() -> Result<()> {
    check_tun()?;
    separate()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(supervise())?;
    if code != 0 {
        process::exit(code);
    }
    Ok(())
}

fn check_tun() -> Result<()> {
    const DEVICE: &str = "/dev/net/tun";
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    match opened {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            bail!("{DEVICE} may not be opened: run the demo as root, or chmod 0666 {DEVICE}")
        }
        Err(e) => bail!(
            "{DEVICE} cannot be opened ({e}): load the kernel module (modprobe tun); in a container start it with --device {DEVICE}"
        ),
    }
}

/// New namespaces for this process (network, mounts) and for its children (process ids); as root without a user namespace, if possible.
fn separate() -> Result<()> {
    let wanted = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        match unshare(wanted) {
            // Root of a container may lack the capability for it.
            Err(Errno::EPERM) => {}
            result => return result.map_err(refused),
        }
    }
    unshare(wanted | CloneFlags::CLONE_NEWUSER).map_err(refused)?;
    let map = |file: &str, text: String| {
        fs::write(Path::new("/proc/self").join(file), text).map_err(refused)
    };
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {user} 1"))?;
    map("gid_map", format!("0 {group} 1"))
}

fn refused(error: impl Display) -> Error {
    anyhow!("{error}: {HELP}")
}

/// The exit status of the process inside.
async fn supervise() -> Result<i32> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // In a process group of its own: signals of the terminal come here only.
    let mut child = Command::new("/proc/self/exe")
        .arg0("evergate")
        .args(env::args_os().skip(1))
        .arg(INSIDE)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot start a process in the new namespaces")?;
    let lifeline = child.stdin.take();
    let interrupted = tokio::select! {
        status = child.wait() => return Ok(status?.code().unwrap_or(1)),
        _ = interrupt.recv() => INTERRUPTED,
        _ = hangup.recv() => INTERRUPTED,
        _ = terminate.recv() => INTERRUPTED,
    };
    drop(lifeline);
    child.wait().await?;
    let _ = writeln!(io::stderr(), "\ninterrupted; nothing is left behind");
    Ok(interrupted)
}

/// Makes itself at home inside: gives the directory for files, in memory unless `keep` names another.
pub(super) fn settle(keep: Option<&Path>) -> Result<PathBuf> {
    ensure!(getpid().as_raw() == 1, "{INSIDE} is for internal use");
    thread::Builder::new().spawn(end_with_the_pipe)?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .map_err(refused)?;
    // Of the new PID namespace, and writable. Where it is refused, the old one will do.
    let _ = mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        nothing,
    );
    if let Some(dir) = keep {
        return empty_directory(dir);
    }
    let program = env::current_exe()?;
    let free = |point: &&&str| Path::new(point).is_dir() && !program.starts_with(point);
    let point = MOUNT_POINTS
        .iter()
        .find(free)
        .context("no place for a file system in memory")?;
    mount(
        Some("evergate"),
        *point,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0700"),
    )
    .with_context(|| format!("cannot mount a file system in memory on {point}"))?;
    Ok(PathBuf::from(point))
}

/// As the first process of its PID namespace it takes all others with it.
fn end_with_the_pipe() {
    let _ = io::stdin().read(&mut [0]);
    process::exit(INTERRUPTED);
}

fn empty_directory(dir: &Path) -> Result<PathBuf> {
    let what = || format!("cannot use {}", dir.display());
    fs::create_dir_all(dir).with_context(what)?;
    let dir = dir.canonicalize().with_context(what)?;
    ensure!(
        fs::read_dir(&dir).with_context(what)?.next().is_none(),
        "{} is not empty",
        dir.display()
    );
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_only_where_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        assert_eq!(empty_directory(&new).unwrap(), new.canonicalize().unwrap());
        fs::write(new.join("file"), "").unwrap();
        assert!(empty_directory(&new).is_err());
        assert!(empty_directory(&new.join("file")).is_err());
    }
}
