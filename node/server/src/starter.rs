//! Child SAs that the configuration wants up: from the start on, on traffic, or again when they ended (`start_action`, `close_action`,
//! `dpd_action`).
//!
//! Only who serves the gateway of a connection does this. A successor begins with `start_action` again: what is up stays, what is
//! under way is in the records, and what ended meanwhile is begun anew.

use crate::{
    clock::SystemEntropy,
    node::gateway_of,
    outer,
    shared::Shared,
    wishes::{News, Target},
    worker::{Message, Watcher},
};
use evergate_ike::{
    config::{ChildConfig, Connection, Policy, StartAction},
    env::Entropy,
    record::{CloseReason, Phase, Record, SaId, Scope},
    sa::{Command, Failure},
};
use evergate_state::State;
use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often to look, besides when something happened.
const PERIOD: Duration = Duration::from_millis(500);
/// How long to wait after the first failure, and at most.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// So many attempts may be begun at once; the others come with the next look.
const AT_ONCE: usize = 64;

/// What is wanted of a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nothing, until somebody asks.
    Rests,
    /// That it comes up when there is traffic.
    Trapped,
    /// That it is up.
    Wanted,
}

impl From<StartAction> for Mode {
    fn from(action: StartAction) -> Self {
        match action {
            StartAction::None => Self::Rests,
            StartAction::Trap => Self::Trapped,
            StartAction::Start => Self::Wanted,
        }
    }
}

/// What the configuration says of a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Actions {
    start: StartAction,
    close: StartAction,
    dpd: StartAction,
    /// Attempts in a row; zero means that there is no end.
    tries: u32,
}

impl Actions {
    fn of(connection: &Connection, child: &ChildConfig) -> Self {
        Self {
            start: child.start_action,
            close: child.close_action,
            dpd: child.dpd_action,
            tries: connection.keyingtries,
        }
    }

    fn any(self) -> bool {
        [self.start, self.close, self.dpd] != [StartAction::None; 3]
    }

    /// What is wanted after an end. A trap of the configuration stays.
    fn after(self, why: CloseReason) -> Mode {
        let mode = match why {
            CloseReason::PeerSilent => self.dpd.into(),
            CloseReason::DeletedByUs => Mode::Rests,
            _ => self.close.into(),
        };
        match (mode, self.start) {
            (Mode::Rests, StartAction::Trap) => Mode::Trapped,
            (mode, _) => mode,
        }
    }
}

/// What there is of a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Down,
    /// Its IKE SA is there and idle: the child can be made in it.
    IkeUp(SaId),
    UnderWay,
    Up,
}

/// A Child SA that may be wanted.
#[derive(Debug)]
struct Desire {
    actions: Actions,
    mode: Mode,
    /// There was traffic.
    triggered: bool,
    /// An attempt is being begun.
    busy: bool,
    attempts: u32,
    /// When the next attempt may be, and how long the wait before it is.
    next: Option<(Instant, Duration)>,
}

impl Desire {
    fn new(actions: Actions) -> Self {
        Self {
            actions,
            mode: actions.start.into(),
            triggered: false,
            busy: false,
            attempts: 0,
            next: None,
        }
    }

    fn up(&mut self) {
        self.triggered = false;
        self.attempts = 0;
        self.next = None;
    }

    /// Whether it is time to try; if so, the next time comes after twice the wait. `jitter` from 0 to 1 spreads those that failed together.
    fn due(&mut self, now: Instant, jitter: f64) -> bool {
        let wanted = self.mode == Mode::Wanted || (self.mode == Mode::Trapped && self.triggered);
        if self.busy || !wanted || self.next.is_some_and(|(at, _)| at > now) {
            return false;
        }
        let wait = match self.next {
            Some((_, wait)) => (wait * 2).min(LONGEST_WAIT),
            None => FIRST_WAIT,
        };
        self.next = Some((now + wait.mul_f64(0.75 + jitter / 2.0), wait));
        self.attempts = self.attempts.saturating_add(1);
        // Traffic that goes on asks again.
        self.triggered = false;
        true
    }

    /// Whether it was tried as often as it may be.
    fn exhausted(&self) -> bool {
        self.mode == Mode::Wanted && self.actions.tries != 0 && self.attempts >= self.actions.tries
    }

    fn rest(&mut self) {
        self.up();
        self.mode = match self.actions.start {
            StartAction::Trap => Mode::Trapped,
            _ => Mode::Rests,
        };
    }
}

/// What is wanted, and what is being begun.
struct Desk {
    shared: Arc<Shared>,
    desires: BTreeMap<Target, Desire>,
    beginning: JoinSet<Target>,
    rng: SystemEntropy,
}

/// Brings up what the policy wants up, until told to stop.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut desk = Desk {
        shared: Arc::clone(&shared),
        desires: BTreeMap::new(),
        beginning: JoinSet::new(),
        rng: SystemEntropy,
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.passive.cancelled() => return,
            _ = period.tick() => {}
            () = shared.wishes.news() => {}
            Some(done) = desk.beginning.join_next() => {
                if let Some(desire) = done.ok().and_then(|t| desk.desires.get_mut(&t)) {
                    desire.busy = false;
                }
                continue;
            }
        }
        if shared.may_send() {
            desk.look();
        }
    }
}

impl Desk {
    fn look(&mut self) {
        let policy = self.shared.policy.load_full();
        self.follow(&policy);
        let news = self.shared.wishes.take();
        if self.desires.is_empty() {
            return;
        }
        let standings = self.shared.read(|state| standings(state, &self.desires));
        let now = Instant::now();
        for (target, desire) in &mut self.desires {
            let standing = standings.get(target).copied().unwrap_or(Standing::Down);
            note(desire, target, &news, standing);
            let sa = match standing {
                Standing::Up => {
                    desire.up();
                    continue;
                }
                Standing::UnderWay => continue,
                Standing::Down => None,
                Standing::IkeUp(sa) => Some(sa),
            };
            if desire.exhausted() && desire.next.is_some_and(|(at, _)| at <= now) {
                let (connection, child) = target;
                warn!(
                    event = "gave-up",
                    connection, child, "not tried again: keyingtries are used up"
                );
                desire.rest();
            }
            let jitter = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
            if self.beginning.len() < AT_ONCE && desire.due(now, jitter) {
                desire.busy = true;
                let (shared, target) = (Arc::clone(&self.shared), target.clone());
                self.beginning.spawn(async move {
                    begin(&shared, &target, sa).await;
                    target
                });
            }
        }
    }

    /// Makes the desires those of the policy. What is configured as before goes on as it is.
    fn follow(&mut self, policy: &Policy) {
        let mut before = std::mem::take(&mut self.desires);
        for connection in &policy.connections {
            if gateway_of(policy, connection) != self.shared.gateway {
                continue;
            }
            for child in &connection.children {
                let actions = Actions::of(connection, child);
                if !actions.any() {
                    continue;
                }
                let target = (connection.name.clone(), child.name.clone());
                let known = before.remove(&target).filter(|d| d.actions == actions);
                let desire = known.unwrap_or_else(|| Desire::new(actions));
                self.desires.insert(target, desire);
            }
        }
    }
}

/// Notes what happened to a Child SA. One that is up has been replaced.
fn note(desire: &mut Desire, target: &Target, news: &News, standing: Standing) {
    if standing >= Standing::UnderWay {
        return;
    }
    if let Some(why) = news.ended.get(target) {
        desire.up();
        desire.mode = desire.actions.after(*why);
    }
    desire.triggered |= news.traffic.contains(target);
}

/// What there is of each.
fn standings(state: &State, desires: &BTreeMap<Target, Desire>) -> HashMap<Target, Standing> {
    let mut of: HashMap<&str, Vec<&Target>> = HashMap::new();
    for target in desires.keys() {
        of.entry(&target.0).or_default().push(target);
    }
    let mut found: HashMap<Target, Standing> = HashMap::new();
    for record in state.sas() {
        for target in of.get(record.connection.as_str()).into_iter().flatten() {
            let standing = of_record(record, &target.1);
            let best = found.entry((*target).clone()).or_insert(Standing::Down);
            *best = standing.max(*best);
        }
    }
    found
}

fn of_record(record: &Record, child: &str) -> Standing {
    match &record.phase {
        Phase::InitSent(_) | Phase::Intermediate(_) | Phase::AuthSent(_) => Standing::UnderWay,
        Phase::HalfOpen(_) | Phase::Closed(_) => Standing::Down,
        Phase::Established(e) if e.replaced_by.is_some() => Standing::UnderWay,
        Phase::Established(e) if e.children.iter().any(|c| c.name == child) => Standing::Up,
        Phase::Established(_) if !record.outbound.admits(&Scope::child(child, None)) => {
            Standing::UnderWay
        }
        Phase::Established(_) => Standing::IkeUp(record.id),
    }
}

/// Begins an attempt. What goes wrong is in the log already.
async fn begin(shared: &Arc<Shared>, (connection, child): &Target, sa: Option<SaId>) {
    match sa {
        Some(sa) => {
            let message = Message::Command {
                sa,
                command: Command::CreateChild(child.clone()),
                watcher: None,
                reply: None,
            };
            if let Some(worker) = shared.worker(sa) {
                let _ = worker.send(message).await;
            }
        }
        None => {
            let _ = initiate(shared, connection, child, None).await;
        }
    }
}

/// Sets up an IKE SA with a Child SA: finds out between which addresses, then a worker begins. Yields its name once its first message is
/// committed; `None` if the member is stopping.
pub(crate) async fn initiate(
    shared: &Arc<Shared>,
    connection: &str,
    child: &str,
    watcher: Option<Watcher>,
) -> Option<Result<SaId, Failure>> {
    let policy = shared.policy.load_full();
    let Some(config) = policy.connection(connection) else {
        return Some(Err(Failure::Unconfigured(connection.to_owned())));
    };
    let pairs = outer::pairs(shared, config).await;
    let (reply, answer) = oneshot::channel();
    let message = Message::Initiate {
        connection: connection.to_owned(),
        child: child.to_owned(),
        pairs,
        watcher,
        reply,
    };
    worker_for(shared, connection)?.send(message).await.ok()?;
    answer.await.ok()
}

/// Initiated connections spread over the workers by name.
pub(crate) fn worker_for<'a>(
    shared: &'a Shared,
    connection: &str,
) -> Option<&'a tokio::sync::mpsc::Sender<Message>> {
    let mut hasher = DefaultHasher::new();
    connection.hash(&mut hasher);
    shared.worker(SaId(hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use StartAction::{None as Nothing, Start, Trap};

    fn actions(start: StartAction, close: StartAction, dpd: StartAction) -> Actions {
        Actions {
            start,
            close,
            dpd,
            tries: 0,
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_success() {
        let mut desire = Desire::new(actions(Start, Start, Start));
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(desire.due(now, 0.5));
            let (at, _) = desire.next.unwrap();
            assert!(!desire.due(at - Duration::from_millis(1), 0.5));
            waits.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        desire.up();
        assert!(desire.due(now, 0.5));
    }

    #[test]
    fn waits_are_spread_by_a_quarter() {
        for (jitter, expected) in [(0.0, 750), (1.0, 1250)] {
            let mut desire = Desire::new(actions(Start, Start, Start));
            let now = Instant::now();
            assert!(desire.due(now, jitter));
            let (at, _) = desire.next.unwrap();
            assert_eq!((at - now).as_millis(), expected);
        }
    }

    #[test]
    fn what_is_wanted_after_an_end_follows_from_why() {
        let all = actions(Nothing, Trap, Start);
        assert_eq!(all.after(CloseReason::PeerSilent), Mode::Wanted);
        assert_eq!(all.after(CloseReason::DeletedByPeer), Mode::Trapped);
        assert_eq!(all.after(CloseReason::Expired), Mode::Trapped);
        assert_eq!(all.after(CloseReason::DeletedByUs), Mode::Rests);
        // A trap that the configuration sets stays set.
        let trap = actions(Trap, Nothing, Nothing);
        for why in [
            CloseReason::PeerSilent,
            CloseReason::DeletedByPeer,
            CloseReason::DeletedByUs,
        ] {
            assert_eq!(trap.after(why), Mode::Trapped);
        }
        assert_eq!(
            actions(Start, Nothing, Nothing).after(CloseReason::PeerSilent),
            Mode::Rests
        );
    }

    #[test]
    fn a_trap_waits_for_traffic_and_each_time_is_one_attempt() {
        let mut desire = Desire::new(actions(Trap, Nothing, Nothing));
        let now = Instant::now();
        assert!(!desire.due(now, 0.5));
        desire.triggered = true;
        assert!(desire.due(now, 0.5));
        assert!(!desire.due(now + LONGEST_WAIT * 2, 0.5), "no traffic since");
        desire.triggered = true;
        assert!(!desire.due(now, 0.5), "it has just been tried");
        assert!(desire.due(now + LONGEST_WAIT, 0.5));
    }

    #[test]
    fn an_end_counts_only_while_there_is_no_other() {
        let target = ("c".to_owned(), "x".to_owned());
        let mut news = News::default();
        news.ended.insert(target.clone(), CloseReason::DeletedByUs);
        let mut desire = Desire::new(actions(Start, Start, Start));
        note(&mut desire, &target, &news, Standing::Up);
        assert_eq!(desire.mode, Mode::Wanted, "it was replaced");
        note(&mut desire, &target, &news, Standing::IkeUp(SaId(1)));
        assert_eq!(desire.mode, Mode::Rests);
    }

    #[test]
    fn attempts_are_counted_until_it_is_up() {
        let mut desire = Desire::new(Actions {
            tries: 2,
            ..actions(Start, Start, Start)
        });
        let mut now = Instant::now();
        for expected in [false, true] {
            assert!(desire.due(now, 0.5));
            assert_eq!(desire.exhausted(), expected);
            now += LONGEST_WAIT;
        }
        desire.rest();
        assert!(!desire.due(now, 0.5));
    }
}
