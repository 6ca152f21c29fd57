//! `start_action = "start"`: initiates Child SAs when the configuration is loaded, and again whenever they are down.

use crate::{node::gateway_of, shared::Shared, worker::Message};
use evergate_ike::{
    config::StartAction,
    record::{Phase, Record},
};
use evergate_state::State;
use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How often to look.
const PERIOD: Duration = Duration::from_millis(500);
/// How long to wait after the first failure, and at most.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A connection and a child of it.
type Target = (String, String);

/// When to try again.
#[derive(Debug, Default)]
struct Attempts(HashMap<Target, (Instant, Duration)>);

impl Attempts {
    /// Whether it is time to try; if so, the next time comes after twice the wait.
    fn due(&mut self, target: &Target, now: Instant) -> bool {
        match self.0.get_mut(target) {
            Some((at, _)) if *at > now => false,
            Some((at, wait)) => {
                *wait = (*wait * 2).min(LONGEST_WAIT);
                *at = now + *wait;
                true
            }
            None => {
                self.0
                    .insert(target.clone(), (now + FIRST_WAIT, FIRST_WAIT));
                true
            }
        }
    }

    fn up(&mut self, target: &Target) {
        self.0.remove(target);
    }
}

/// What there is of a Child SA that should be up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Down,
    /// Its IKE SA is there and idle: the child can be made in it.
    IkeUp(evergate_ike::record::SaId),
    UnderWay,
    Up,
}

/// Keeps up what the policy wants up, until told to stop.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut attempts = Attempts::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.passive.cancelled() => return,
            _ = period.tick() => {}
        }
        if !shared.may_send() {
            continue;
        }
        for (target, standing) in look(&shared) {
            match standing {
                Standing::Up => attempts.up(&target),
                Standing::UnderWay => {}
                Standing::Down | Standing::IkeUp(_) => {
                    if attempts.due(&target, Instant::now()) {
                        start(&shared, target, standing).await;
                    }
                }
            }
        }
    }
}

/// Everything that should be up, and how it stands.
fn look(shared: &Shared) -> Vec<(Target, Standing)> {
    let policy = shared.policy.load();
    let wanted: Vec<Target> = policy
        .connections
        .iter()
        .filter(|c| gateway_of(&policy, c) == shared.gateway)
        .flat_map(|c| c.children.iter().map(move |child| (c, child)))
        .filter(|(_, child)| child.start_action == StartAction::Start)
        .map(|(c, child)| (c.name.clone(), child.name.clone()))
        .collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    shared.read(|state| {
        wanted
            .into_iter()
            .map(|target| {
                let standing = standing(state, &target);
                (target, standing)
            })
            .collect()
    })
}

fn standing(state: &State, (connection, child): &Target) -> Standing {
    let sas = state.sas().filter(|r| r.connection == *connection);
    sas.map(|record| of_record(record, child))
        .max()
        .unwrap_or(Standing::Down)
}

fn of_record(record: &Record, child: &str) -> Standing {
    match &record.phase {
        Phase::InitSent(_) | Phase::AuthSent(_) => Standing::UnderWay,
        Phase::HalfOpen(_) | Phase::Closed(_) => Standing::Down,
        Phase::Established(e) if e.replaced_by.is_some() => Standing::UnderWay,
        Phase::Established(e) if e.children.iter().any(|c| c.name == child) => Standing::Up,
        Phase::Established(_) if record.outbound.pending.is_some() => Standing::UnderWay,
        Phase::Established(_) => Standing::IkeUp(record.id),
    }
}

async fn start(shared: &Shared, (connection, child): Target, standing: Standing) {
    let (reply, answer) = oneshot::channel();
    let (worker, message) = match standing {
        Standing::IkeUp(sa) => {
            let command = evergate_ike::sa::Command::CreateChild(child);
            let message = Message::Command {
                sa,
                command,
                watcher: None,
                reply: None,
            };
            (shared.worker(sa), message)
        }
        _ => {
            let worker = worker_for(shared, &connection);
            (
                worker,
                Message::Initiate {
                    connection,
                    child,
                    watcher: None,
                    reply,
                },
            )
        }
    };
    if let Some(worker) = worker
        && worker.send(message).await.is_ok()
    {
        // What went wrong is in the log already.
        let _ = answer.await;
    }
}

/// Initiated connections spread over the workers by name.
pub(crate) fn worker_for<'a>(
    shared: &'a Shared,
    connection: &str,
) -> Option<&'a tokio::sync::mpsc::Sender<Message>> {
    let mut hasher = DefaultHasher::new();
    connection.hash(&mut hasher);
    shared.worker(evergate_ike::record::SaId(hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_success() {
        let mut attempts = Attempts::default();
        let target = ("a".to_owned(), "x".to_owned());
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(attempts.due(&target, now));
            let before = now;
            while !{
                now += Duration::from_millis(500);
                let (at, _) = attempts.0[&target];
                at <= now
            } {
                assert!(!attempts.due(&target, now));
            }
            waits.push((now - before).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        attempts.up(&target);
        assert!(attempts.due(&target, now));
    }
}
