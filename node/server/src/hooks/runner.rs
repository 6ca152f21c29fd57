//! Runs programs: a few at a time, each for a bounded time, those about one subject one after the other.

use crate::worker::RateLimit;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    hash::{BuildHasher, RandomState},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{info, warn};

/// Programs that run at a time.
const LANES: usize = 4;
/// Runs that wait behind one of them.
const QUEUE: usize = 4096;
/// A program that runs for longer is killed, with all that it has started in its process group.
const LONGEST: Duration = Duration::from_secs(30);
/// Bytes that are shown of what a program writes, of each of both outputs.
const MAX_OUTPUT: usize = 4096;
/// What a program has started may keep its outputs open: so long they are read after its end.
const AFTERWARDS: Duration = Duration::from_millis(200);
/// Lines a second that say that something is not run.
const LINES: u32 = 20;
/// A stop of the member waits so long for what was begun.
const FAREWELL: Duration = Duration::from_secs(5);
/// Where programs find others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A run of a program.
pub(super) struct Job {
    pub(super) program: String,
    /// Runs with the same subject keep their order.
    pub(super) subject: String,
    pub(super) environment: Vec<(String, String)>,
}

enum Order {
    Run(Job),
    /// Tell that all before has ended.
    Tell(oneshot::Sender<()>),
}

/// Runs programs, once there is one to run.
pub(super) struct Runner {
    lanes: OnceLock<Vec<mpsc::Sender<Order>>>,
    hasher: RandomState,
    lines: RateLimit,
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            lanes: OnceLock::new(),
            hasher: RandomState::new(),
            lines: RateLimit::new(LINES),
        }
    }
}

impl Runner {
    /// Has a program run. Does not wait; if too many wait already, it is left out, with a line in the log.
    pub(super) fn run(&self, job: Job) {
        let lanes = self.lanes.get_or_init(begin);
        let hash = self.hasher.hash_one(&job.subject).to_le_bytes()[0];
        let lane = &lanes[usize::from(hash) % lanes.len()];
        if let Err(refused) = lane.try_send(Order::Run(job))
            && let Order::Run(job) = refused.into_inner()
            && let Some(suppressed) = self.lines.pass(Instant::now())
        {
            warn!(
                event = "updown-dropped",
                suppressed,
                program = job.program,
                subject = job.subject,
                verb = verb(&job),
                "{} is not run for {}: {QUEUE} runs wait",
                job.program,
                job.subject
            );
        }
    }

    /// Waits, for a while, until all that waits has run.
    pub(super) async fn finish(&self) {
        let all = async {
            for lane in self.lanes.get().into_iter().flatten() {
                let (tell, told) = oneshot::channel();
                if lane.send(Order::Tell(tell)).await.is_ok() {
                    let _ = told.await;
                }
            }
        };
        if timeout(FAREWELL, all).await.is_err() {
            warn!(
                event = "stop-incomplete",
                "programs of updown did not end in time"
            );
        }
    }
}

fn begin() -> Vec<mpsc::Sender<Order>> {
    let lane = |_| {
        let (sender, mut orders) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            while let Some(order) = orders.recv().await {
                match order {
                    Order::Run(job) => run(job, LONGEST).await,
                    Order::Tell(tell) => drop(tell.send(())),
                }
            }
        });
        sender
    };
    (0..LANES).map(lane).collect()
}

fn verb(job: &Job) -> &str {
    let all = job.environment.iter();
    let mut verbs = all.filter(|(name, _)| name == "PLUTO_VERB");
    verbs.next().map_or("", |(_, value)| value)
}

/// Runs a program to its end, or kills it; its output and what went wrong become lines in the log.
async fn run(job: Job, longest: Duration) {
    let (program, subject, verb) = (job.program.as_str(), job.subject.as_str(), verb(&job));
    let failed = |why: &dyn std::fmt::Display| {
        warn!(
            event = "updown-failed",
            program, subject, verb, "{program} for {subject}, {verb}: {why}"
        );
    };
    let started = Command::new(program)
        .env_clear()
        .env("PATH", PATH)
        .envs(job.environment.iter().map(|(n, v)| (n, v)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return failed(&error),
    };
    let outputs = [
        child.stdout.take().map(|out| tokio::spawn(shown(out))),
        child.stderr.take().map(|out| tokio::spawn(shown(out))),
    ];
    let ended = wait(&mut child, longest).await;
    for output in outputs.into_iter().flatten() {
        let abort = output.abort_handle();
        let Ok(Ok(text)) = timeout(AFTERWARDS, output).await else {
            abort.abort();
            continue;
        };
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            let line = line.escape_debug();
            info!(
                event = "updown-output",
                program, subject, verb, "{program}: {line}"
            );
        }
    }
    match ended {
        None => failed(&format_args!("killed after {} s", longest.as_secs())),
        Some(Err(error)) => failed(&error),
        Some(Ok(status)) if !status.success() => failed(&status),
        Some(Ok(_)) => {}
    }
}

/// Waits for its end. `None` if it had to be killed.
async fn wait(child: &mut Child, longest: Duration) -> Option<std::io::Result<ExitStatus>> {
    // It leads a process group of its own.
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    if let Ok(ended) = timeout(longest, child.wait()).await {
        return Some(ended);
    }
    if let Some(group) = group {
        // It may have ended just now.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait().await;
    None
}

/// The beginning of an output. What is behind it is read all the same, so that nobody waits for it to be read.
async fn shown(output: impl AsyncRead + Unpin) -> String {
    let mut begin = Vec::new();
    let mut output = output.take(MAX_OUTPUT as u64);
    let _ = output.read_to_end(&mut begin).await;
    let mut rest = output.into_inner();
    let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&begin).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    /// Another process writes it. What is open here, children that other tests start have open, too, until they execute their programs; and a file that is
    /// open to be written is not executed.
    fn script(directory: &Path, text: &str) -> String {
        let path = directory.join("hook");
        let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod 755 \"$1\"";
        let written = std::process::Command::new("/bin/sh")
            .args(["-c", write, "sh"])
            .arg(&path)
            .arg(text)
            .status();
        assert!(written.unwrap().success());
        path.to_str().unwrap().to_owned()
    }

    fn job(program: &str, subject: &str, value: &str) -> Job {
        Job {
            program: program.to_owned(),
            subject: subject.to_owned(),
            environment: vec![("VALUE".into(), value.into())],
        }
    }

    #[tokio::test]
    async fn runs_about_one_subject_keep_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("out");
        let program = script(
            directory.path(),
            &format!("[ -z \"$HOME\" ] && echo \"$VALUE\" >> {}", file.display()),
        );
        let runner = Runner::default();
        for value in ["a", "b", "c; exit", "$(d)"] {
            runner.run(job(&program, "net", value));
        }
        // It waits for a while each time, which may be too short on a slow machine.
        for _ in 0..4 {
            runner.finish().await;
        }
        assert_eq!(fs::read_to_string(file).unwrap(), "a\nb\nc; exit\n$(d)\n");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_what_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("alive");
        let text = format!(
            "(while :; do echo >> {}; sleep 0.05; done) & sleep 60",
            file.display()
        );
        let program = script(directory.path(), &text);
        let begun = Instant::now();
        run(job(&program, "net", ""), Duration::from_secs(1)).await;
        assert!(begun.elapsed() < Duration::from_secs(30));
        // Signals need a moment to arrive.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let written = || fs::metadata(&file).map_or(0, |m| m.len());
        let before = written();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(written(), before);
    }

    #[tokio::test]
    async fn nobody_waits_for_output_and_a_missing_program_is_no_disaster() {
        let directory = tempfile::tempdir().unwrap();
        let program = script(
            directory.path(),
            "head -c 10000000 /dev/zero | tr '\\0' x; sleep 30 & exit 3",
        );
        let begun = Instant::now();
        run(job(&program, "net", ""), Duration::from_secs(60)).await;
        assert!(begun.elapsed() < Duration::from_secs(30));
        run(job("/nonexistent", "net", ""), Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let runner = Runner::default();
        // Nothing runs here until this test waits for something, which it does not.
        for _ in 0..QUEUE + 100 {
            runner.run(job("/nonexistent", "net", ""));
        }
        let lanes = runner.lanes.get().unwrap();
        let full = lanes.iter().filter(|lane| lane.capacity() == 0).count();
        let idle = lanes.iter().filter(|lane| lane.capacity() == QUEUE);
        assert_eq!((full, idle.count()), (1, LANES - 1));
    }
}
