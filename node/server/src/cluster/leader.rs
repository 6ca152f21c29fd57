//! What the leader does: it grants leases, and assigns virtual gateways that nobody has.

use super::{
    Membership,
    lease::at,
    message::{Answer, Ask, HandOver, decode, encode},
    now,
};
use crate::node::Node;
use bytes::Bytes;
use evergate_cluster::{
    lease::{BootTime, Grantor},
    placement::{Action, Candidate, Holding, Seat, plan},
};
use evergate_ike::record::GatewayId;
use evergate_state::{Command, Outcome, Owner, State};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// The leader looks this often who should have what while something is under way, and whenever it is told that something has changed.
const PERIOD: Duration = Duration::from_millis(5);

/// While everything is where it should be, it looks when the next lease could be over, or this late: nobody tells it of a policy that is another.
const CALM_PERIOD: Duration = Duration::from_millis(50);

/// Timers are as coarse as that: what is waited for is over when they end.
const GRAIN: Duration = Duration::from_millis(1);

/// So long a new leader waits for others to ask before it assigns gateways that were never assigned: members start at about the same time.
const GATHER: Duration = Duration::from_secs(2);

/// While members are missing, gateways are spread over the others when nobody came or went for so long.
const SETTLED: Duration = Duration::from_secs(2);

/// Handovers that were not done after so long are planned anew.
const HANDOVER: Duration = Duration::from_secs(5);

/// What a process is as the leader of one term.
pub(super) struct Leading {
    term: u64,
    since: BootTime,
    grantor: Grantor,
    /// Handovers that were asked for: in which epoch, who gets it, and when it was asked.
    moving: BTreeMap<GatewayId, (u32, Owner, BootTime)>,
    /// Assignments that are being committed.
    assigning: BTreeSet<GatewayId>,
    /// Processes that said that they are about to end.
    leaving: BTreeSet<Owner>,
    /// Who could have gateways at the last look, and whether gateways are spread over them: that is done when somebody came or went, not
    /// against an operator who moved one.
    candidates: Vec<Candidate>,
    spreading: bool,
    /// When somebody came or went last.
    changed: BootTime,
    /// Everything was where it should be at the last look.
    calm: bool,
}

/// Answers requests for leases from now on.
pub(super) fn answer(node: &Arc<Node>, membership: &Arc<Membership>) {
    // The cluster outlives the node: it must not keep it alive.
    let (node, of) = (Arc::downgrade(node), Arc::downgrade(membership));
    let handler = move |name: String, request: Bytes| {
        let answered = grant(&node, &of, &name, &request);
        futures::future::ready(answered).boxed()
    };
    membership.cluster.on_renew_leases(Arc::new(handler));
    let of = Arc::downgrade(membership);
    membership.cluster.on_step_down(Arc::new(move |stop| {
        let Some(membership) = of.upgrade() else {
            return;
        };
        let mut leading = membership.leading();
        match leading.as_mut() {
            Some(leading) if stop => leading.grantor.stop(),
            // It leads on, and knows nothing of what it granted before.
            _ => *leading = None,
        }
        membership.plan.notify_one();
    }));
}

fn grant(
    node: &Weak<Node>,
    membership: &Weak<Membership>,
    name: &str,
    request: &[u8],
) -> Result<Bytes, String> {
    let (Some(node), Some(membership)) = (node.upgrade(), membership.upgrade()) else {
        return Err("the member is stopping".to_owned());
    };
    let request = match decode(request)? {
        Ask::Leases(request) => request,
        Ask::Move { gateway, member } => return ask_to_move(&node, &membership, gateway, &member),
        Ask::Leave(owner) => {
            is_own(name, &owner)?;
            let mut leading = membership.leading();
            let leading = leading.as_mut().ok_or("not the leader, or not yet")?;
            leading.leaving.insert(owner);
            membership.plan.notify_one();
            return Ok(Bytes::new());
        }
    };
    is_own(name, &request.owner)?;
    let until = membership.quorum_until().ok_or("not the leader")?;
    // First of all its own leases get a bound, then others get theirs.
    membership.holder().lead(until);
    let mut leading = membership.leading();
    let leading = leading.as_mut().ok_or("not the leader, or not yet")?;
    let owner = &request.owner;
    let was_live = leading.grantor.is_live(owner, now());
    let grant = node.read(|state| {
        let epoch_of = |gateway| state.epoch_of(gateway, owner);
        leading.grantor.grant(&request, now(), until, epoch_of)
    });
    let grant = grant.map_err(|e| e.to_string())?;
    if !was_live {
        membership.plan.notify_one();
    }
    let asked = |gateway: &GatewayId, epoch: u32| request.gateways.contains(&(*gateway, epoch));
    let hand_over = leading
        .moving
        .iter()
        .filter(|(gateway, (epoch, to, _))| asked(gateway, *epoch) && to != owner)
        .map(|(gateway, (epoch, to, _))| HandOver {
            gateway: *gateway,
            epoch: *epoch,
            to: to.clone(),
        })
        .collect();
    encode(&Answer { grant, hand_over })
}

/// A member speaks for its own processes only; its name is that of its certificate.
fn is_own(name: &str, owner: &Owner) -> Result<(), String> {
    if owner.member != name {
        return Err(format!("{name:?} asks for {:?}", owner.member));
    }
    Ok(())
}

/// Moves a gateway because an operator wants it.
fn ask_to_move(
    node: &Node,
    membership: &Membership,
    gateway: GatewayId,
    member: &str,
) -> Result<Bytes, String> {
    let mut leading = membership.leading();
    let leading = leading.as_mut().ok_or("not the leader, or not yet")?;
    let at = now();
    let mut live = leading.grantor.live(at);
    let to = live
        .find(|owner| owner.member == member && node.read(|s| s.is_current(owner)))
        .cloned()
        .ok_or_else(|| format!("member {member:?} does not run, as far as the leader knows"))?;
    let epoch = node.read(|s| s.epoch(gateway));
    info!(
        event = "moving",
        gateway = gateway.0,
        epoch,
        to = member,
        "an operator moves gateway {} to {member}",
        gateway.0
    );
    leading.moving.insert(gateway, (epoch, to, at));
    membership.plan.notify_one();
    Ok(Bytes::new())
}

/// What became of an assignment.
type Assigned = BoxFuture<'static, (Vec<(GatewayId, u32)>, bool)>;

/// Leads whenever this member is the leader, until told to stop.
pub(super) async fn run(node: Arc<Node>, membership: Arc<Membership>, stop: CancellationToken) {
    let mut leader = membership.cluster.leader();
    let mut assigned: FuturesUnordered<Assigned> = FuturesUnordered::new();
    // When to look again.
    let mut next = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                // Nothing is granted any more: leadership may be transferred now.
                membership.leading().take();
                return;
            }
            () = at(next) => {}
            () = membership.plan.notified() => {}
            changed = leader.changed() => if changed.is_err() { return },
            Some((gateways, decided)) = assigned.next(), if !assigned.is_empty() => {
                if let Some(leading) = membership.leading().as_mut() {
                    leading.assigned(&gateways, decided);
                }
            }
        }
        let mine = leader.borrow_and_update().clone();
        let term = mine
            .filter(|l| l.id == membership.cluster.id())
            .map(|l| l.term);
        next = term.map(|_| Instant::now() + PERIOD);
        let Some(term) = term.filter(|_| membership.leads()) else {
            if membership.leading().take().is_some() {
                info!(event = "follows", "this member does not lead any more");
            }
            continue;
        };
        let known = membership.leading().as_ref().map(|l| l.term);
        if known != Some(term) && !elected(&membership, term).await {
            continue;
        }
        assigned.extend(look(&node, &membership));
        let pause = membership.leading().as_ref().map(|l| l.pause(now()));
        next = Some(Instant::now() + pause.unwrap_or(PERIOD));
    }
}

/// Begins to lead once everything is applied that was committed before; false if that cannot be said yet.
async fn elected(membership: &Membership, term: u64) -> bool {
    let since = now();
    let applied = timeout(
        membership.timing.election_timeout_max,
        membership.cluster.barrier(),
    );
    if !matches!(applied.await, Ok(Ok(()))) {
        return false;
    }
    let former = membership
        .cluster
        .term_before(term)
        .and_then(|before| membership.holder().former_leader(before));
    info!(
        event = "leads",
        term,
        former = former.as_ref().map(|f| f.member.as_str()),
        "this member leads"
    );
    let me = membership.me.clone();
    *membership.leading() = Some(Leading {
        term,
        since,
        grantor: Grantor::new(membership.timing, term, me, former, since),
        moving: BTreeMap::new(),
        assigning: BTreeSet::new(),
        leaving: BTreeSet::new(),
        candidates: Vec::new(),
        spreading: false,
        changed: since,
        calm: false,
    });
    membership.renew.notify_one();
    true
}

/// Looks who should have what, and starts what follows.
fn look(node: &Arc<Node>, membership: &Membership) -> Option<Assigned> {
    if membership.quorum_until().is_none_or(|until| until <= now()) {
        return None;
    }
    let mut leading = membership.leading();
    let leading = leading.as_mut()?;
    let members = membership.cluster.members().len();
    let chosen = node.read(|state| leading.choose(state, members, membership.timing.renew));
    if chosen.is_empty() {
        return None;
    }
    let gateways = chosen.iter().map(|(g, e, _)| (*g, *e)).collect();
    let term = leading.term;
    let command = |(gateway, epoch, to): (GatewayId, u32, Owner)| Command::AssignInTerm {
        term,
        gateway,
        member: to.member,
        incarnation: to.incarnation,
        expected_epoch: epoch,
    };
    let commands: Vec<Command> = chosen.into_iter().map(command).collect();
    let replica = node.replica.clone();
    let done = async move {
        let outcomes = replica.propose(commands).await;
        match &outcomes {
            Ok(outcomes) => {
                for outcome in outcomes {
                    if let Outcome::Refused(refusal) = outcome {
                        debug!(
                            event = "assign-refused",
                            "an assignment was refused: {refusal}"
                        );
                    }
                }
            }
            Err(e) => warn!(event = "assign-failed", "gateways were not assigned: {e}"),
        }
        (gateways, outcomes.is_ok())
    };
    Some(done.boxed())
}

impl Leading {
    /// The gateways to assign now: in which epoch, and to whom.
    fn choose(
        &mut self,
        state: &State,
        members: usize,
        renew: Duration,
    ) -> Vec<(GatewayId, u32, Owner)> {
        let at = now();
        let live = self.live(state, at);
        let complete = live.len() >= members;
        self.forget(state, &live, at);
        let seats: Vec<Seat> = state
            .policy()
            .gateway_ids()
            .into_iter()
            .filter(|id| !self.assigning.contains(id))
            .map(|id| self.seat(state, id, at))
            .collect();
        let moving: BTreeMap<GatewayId, Owner> = self
            .moving
            .iter()
            .map(|(gateway, (_, to, _))| (*gateway, to.clone()))
            .collect();
        let balance = self.balances(&live, complete, at) && moving.is_empty();
        let actions = plan(&seats, &live, &moving, balance);
        if balance && actions.is_empty() {
            self.spreading = false;
        }
        // Who lives asks at once when there is a new leader; what was never assigned has more time. As long as others may serve something
        // without having asked yet, nobody can say who has least.
        let unheard = seats.iter().any(|s| s.holding == Holding::Uncertain);
        let since = self.since;
        let patient = |epoch: u32| {
            let wait = if epoch == 0 { GATHER } else { renew };
            complete || (at >= since.after(wait) && (epoch == 0 || !unheard))
        };
        let at_rest =
            self.moving.is_empty() && self.assigning.is_empty() && self.leaving.is_empty();
        let held = |seat: &Seat| matches!(seat.holding, Holding::Held(_));
        self.calm = at_rest && !self.spreading && actions.is_empty() && seats.iter().all(held);
        let mut chosen = Vec::new();
        for action in actions {
            match action {
                Action::Assign { gateway, epoch, to } => {
                    if patient(epoch) && self.begin_assignment(state, gateway, epoch, &to, at) {
                        chosen.push((gateway, epoch, to));
                    }
                }
                Action::Move {
                    gateway,
                    epoch,
                    from,
                    to,
                } => self.begin_handover(gateway, epoch, &from, to, at),
            }
        }
        chosen
    }

    /// How long nothing happens that it is not told of.
    fn pause(&self, at: BootTime) -> Duration {
        match self.grantor.next_end(at) {
            Some(end) if self.calm => CALM_PERIOD.min(at.until(end)) + GRAIN,
            _ => PERIOD,
        }
    }

    /// Forgets what is over.
    fn forget(&mut self, state: &State, live: &[Candidate], at: BootTime) {
        self.leaving.retain(|owner| state.is_current(owner));
        self.moving.retain(|gateway, (epoch, to, asked)| {
            state.epoch(*gateway) == *epoch
                && live.iter().any(|c| c.owner == *to)
                && at < asked.after(HANDOVER)
        });
        self.grantor.forget(at, |owner| {
            state
                .gateways()
                .any(|(_, g)| g.owner.as_ref() == Some(owner))
        });
    }

    /// Whether gateways are to be spread over those that live: once, after somebody came or went.
    fn balances(&mut self, live: &[Candidate], complete: bool, at: BootTime) -> bool {
        if self.candidates != live {
            self.candidates = live.to_vec();
            (self.spreading, self.changed) = (true, at);
        }
        let settled = complete || at >= self.changed.after(SETTLED);
        self.spreading && settled
    }

    /// Takes a gateway away from a silent owner, if its lease is over.
    fn begin_assignment(
        &mut self,
        state: &State,
        gateway: GatewayId,
        epoch: u32,
        to: &Owner,
        at: BootTime,
    ) -> bool {
        let owner = state.gateway(gateway).and_then(|g| g.owner.as_ref());
        if !self.grantor.reassign(gateway, epoch, owner, at) {
            return false;
        }
        let before = owner.map(|o| o.member.as_str());
        info!(
            event = "assigning",
            gateway = gateway.0,
            epoch,
            before,
            to = to.member,
            "assigning gateway {} to {}",
            gateway.0,
            to.member
        );
        self.assigning.insert(gateway);
        true
    }

    /// The answer to the owner's next request for leases asks it to hand the gateway over.
    fn begin_handover(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        from: &Owner,
        to: Owner,
        at: BootTime,
    ) {
        info!(
            event = "moving",
            gateway = gateway.0,
            epoch,
            from = from.member,
            to = to.member,
            "asking {} to hand gateway {} over to {}",
            from.member,
            gateway.0,
            to.member
        );
        self.moving.insert(gateway, (epoch, to, at));
    }

    /// Who can have gateways.
    fn live(&self, state: &State, at: BootTime) -> Vec<Candidate> {
        let live = self
            .grantor
            .live(at)
            .filter(|owner| state.is_current(owner));
        live.map(|owner| Candidate {
            owner: owner.clone(),
            place: state.place(&owner.member),
            draining: self.leaving.contains(owner)
                || state.member(&owner.member).is_some_and(|m| m.draining),
        })
        .collect()
    }

    fn seat(&self, state: &State, gateway: GatewayId, at: BootTime) -> Seat {
        let owner = state.gateway(gateway).and_then(|g| g.owner.as_ref());
        let holding = match owner {
            None => Holding::Free,
            Some(owner) if self.grantor.is_live(owner, at) => Holding::Held(owner.clone()),
            Some(owner) if at >= self.grantor.silent_from(owner) => Holding::Free,
            Some(_) => Holding::Uncertain,
        };
        Seat {
            gateway,
            epoch: state.epoch(gateway),
            holding,
        }
    }

    /// Assignments were applied or refused; if that is not known they may be proposed again, but nothing is granted under the old epochs.
    fn assigned(&mut self, gateways: &[(GatewayId, u32)], decided: bool) {
        for (gateway, epoch) in gateways {
            self.assigning.remove(gateway);
            if decided {
                self.grantor.settled(*gateway, *epoch);
            }
        }
    }
}
