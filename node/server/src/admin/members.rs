//! Members come and go because an operator says so. Only the leader does that; whoever is asked has it do it.

use super::{
    cluster::no_member,
    forward::{nonsense, refused},
};
use crate::{config::is_endpoint, node::Node};
use evergate_cluster::{
    pki,
    raft::{JoinToken, MAX_VOTERS, MemberStatus},
};
use evergate_ike::env::UnixMillis;
use evergate_proto::{
    admin::{
        AddMemberRequest, AddMemberResponse, PromoteMemberRequest, PromoteMemberResponse,
        RemoveMemberRequest, RemoveMemberResponse,
    },
    forward::{CallRequest, call_reply::Result as Answer, call_request::Call},
};
use evergate_state::{Command, Enrolment, Outcome, Refusal, Stage, State};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tracing::info;

/// How long a token is good unless it is said, and at most.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// So long a leader is looked for, which may be elected just now.
const LEADER: Duration = Duration::from_secs(5);

/// No change takes longer than this.
const LONGEST: Duration = Duration::from_secs(60);

/// How long the gateways of a member that goes may take to move, and what is left of that by force.
const DRAIN: Duration = Duration::from_secs(30);
const DRAIN_BY_FORCE: Duration = Duration::from_secs(3);

/// What is proposed is committed within this time, or most members do not answer.
const COMMIT: Duration = Duration::from_secs(5);

/// A member that has acknowledged nothing for so long counts as dead.
const DEAD: Duration = Duration::from_secs(1);

/// How often to look whether something is done.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Makes a token.
pub(super) async fn add(
    node: &Arc<Node>,
    request: AddMemberRequest,
) -> Result<AddMemberResponse, Status> {
    match at_leader(node, Call::AddMember(request)).await? {
        Answer::AddMember(done) => Ok(done),
        _ => Err(nonsense("the leader")),
    }
}

/// Lets a learner vote.
pub(super) async fn promote(
    node: &Arc<Node>,
    request: PromoteMemberRequest,
) -> Result<PromoteMemberResponse, Status> {
    match at_leader(node, Call::PromoteMember(request)).await? {
        Answer::PromoteMember(done) => Ok(done),
        _ => Err(nonsense("the leader")),
    }
}

/// Removes a member.
pub(super) async fn remove(
    node: &Arc<Node>,
    request: RemoveMemberRequest,
) -> Result<RemoveMemberResponse, Status> {
    match at_leader(node, Call::RemoveMember(request)).await? {
        Answer::RemoveMember(done) => Ok(done),
        _ => Err(nonsense("the leader")),
    }
}

/// Has the leader do it. A member that leads no more says `ABORTED`, and the next one is asked.
async fn at_leader(node: &Arc<Node>, call: Call) -> Result<Answer, Status> {
    let cluster = &node.membership.cluster;
    if !cluster.has_links() {
        return Err(Status::failed_precondition(
            "this member has no [cluster] table: it cannot have others beside it",
        ));
    }
    let deadline = Instant::now() + LEADER;
    loop {
        let leader = cluster.leader().borrow().clone();
        let why = match leader {
            None => Status::unavailable("there is no leader: most members do not answer"),
            Some(leader) if leader.id == cluster.id() => match here(node, call.clone()).await {
                Err(status) if status.code() == Code::Aborted => status,
                done => return done,
            },
            Some(leader) => {
                let request = CallRequest {
                    call: Some(call.clone()),
                };
                let asked = cluster.forward(&leader.name, request, LONGEST).await;
                match asked.map(|reply| reply.result) {
                    Ok(Some(Answer::Refusal(refusal))) => match refused(refusal) {
                        status if status.code() == Code::Aborted => status,
                        status => return Err(status),
                    },
                    Ok(Some(answer)) => return Ok(answer),
                    Ok(None) => return Err(nonsense(&leader.name)),
                    Err(e) => Status::unavailable(format!(
                        "the leader, {}, does not answer: {e}",
                        leader.name
                    )),
                }
            }
        };
        if Instant::now() >= deadline {
            return Err(match why.code() {
                Code::Aborted => Status::unavailable(why.message().to_owned()),
                _ => why,
            });
        }
        sleep(LOOK_AGAIN * 4).await;
    }
}

/// Does it, if this member leads.
///
/// # Errors
/// `ABORTED` if it does not, or no more.
pub(super) async fn here(node: &Arc<Node>, call: Call) -> Result<Answer, Status> {
    let membership = &node.membership;
    if !membership.leads() {
        return Err(Status::aborted("this member does not lead"));
    }
    if !membership.has_majority() {
        return Err(Status::aborted("most members do not answer the leader"));
    }
    let _one = membership
        .changing
        .try_lock()
        .map_err(|_| Status::failed_precondition("another change of the members is being made"))?;
    let desk = Desk { node };
    match call {
        Call::AddMember(request) => desk.add(request).await.map(Answer::AddMember),
        Call::PromoteMember(request) => desk.promote(&request).await.map(Answer::PromoteMember),
        Call::RemoveMember(request) => desk.remove(&request).await.map(Answer::RemoveMember),
        _ => Err(Status::unimplemented("not about members")),
    }
}

/// The leader.
struct Desk<'a> {
    node: &'a Arc<Node>,
}

impl Desk<'_> {
    fn members(&self) -> Vec<MemberStatus> {
        self.node.membership.cluster.members()
    }

    /// Nothing else may be under way.
    fn check_quiet(&self, but: &str) -> Result<(), Status> {
        let under_way = |what: String| {
            Status::failed_precondition(format!(
                "another change of the members is under way: {what}"
            ))
        };
        if self.node.membership.cluster.is_changing() {
            return Err(under_way("voters come or go".to_owned()));
        }
        let members = self.members();
        self.node.read(|state| {
            let joins = |(name, e): &(&str, &Enrolment)| {
                *name != but && matches!(e.stage, Stage::Admitted { .. })
            };
            if let Some((name, _)) = state.enrolments().find(joins) {
                return Err(under_way(format!("{name} joins or begins to vote")));
            }
            let goes = |m: &&MemberStatus| m.name != but && state.dismissed(m.id).is_some();
            match members.iter().find(goes) {
                Some(m) => Err(under_way(format!("{} goes", m.name))),
                None => Ok(()),
            }
        })
    }

    /// Commits a command.
    async fn commit(&self, command: Command) -> Result<(), Status> {
        let proposed = timeout(COMMIT, self.node.propose(command)).await;
        let proposed = proposed.map_err(|_| {
            Status::unavailable("most members do not answer; what was asked may still be done")
        })?;
        match proposed {
            Ok(Outcome::Refused(refusal)) => Err(Status::failed_precondition(refusal.to_string())),
            Ok(_) => Ok(()),
            Err(e) => Err(Status::unavailable(e.to_string())),
        }
    }

    async fn wait(&self, limit: Duration, done: impl Fn() -> bool) -> bool {
        let until = Instant::now() + limit;
        while !done() {
            if Instant::now() >= until {
                return false;
            }
            sleep(LOOK_AGAIN).await;
        }
        true
    }

    async fn add(&self, request: AddMemberRequest) -> Result<AddMemberResponse, Status> {
        let AddMemberRequest {
            name,
            address,
            learner,
            valid_for,
            replaces,
        } = request;
        let members = self.members();
        let replaces = Some(replaces).filter(|old| !old.is_empty());
        check_newcomer(&members, &name, &address, replaces.as_deref())?;
        let old = members.iter().find(|m| Some(&m.name) == replaces.as_ref());
        // Who takes the place of a learner learns.
        let learner = learner || old.is_some_and(|m| !m.voter);
        let mut warnings = Vec::new();
        if !learner && old.is_none() {
            let voters = self.voters_to_be(&members, &name) + 1;
            if voters > MAX_VOTERS {
                return Err(Status::failed_precondition(format!(
                    "a cluster has at most {MAX_VOTERS} voters: add {name:?} as a learner"
                )));
            }
            warnings.extend(even(voters));
        }
        let life = match valid_for {
            0 => TOKEN_LIFE,
            seconds => Duration::from_secs(seconds),
        };
        if life > MAX_TOKEN_LIFE {
            return Err(Status::invalid_argument(
                "a token is good for at most 7 days",
            ));
        }
        let token = JoinToken::generate().map_err(|e| Status::internal(e.to_string()))?;
        let now = self.node.clock.now().max(self.node.read(State::clock));
        let life = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        info!(
            event = "member-invited",
            member = name,
            address,
            learner,
            replaces,
            "a token is made with which {name:?} may join"
        );
        let enrolment = Enrolment {
            address,
            learner,
            replaces,
            stage: Stage::Invited {
                digest: token.digest(),
                until: UnixMillis(now.0.saturating_add(life)),
            },
        };
        let member = name;
        self.commit(Command::Invite { member, enrolment }).await?;
        Ok(AddMemberResponse {
            token: token.reveal().to_string(),
            warnings,
        })
    }

    /// Voters that there will be when all have come that may, but for one.
    fn voters_to_be(&self, members: &[MemberStatus], but: &str) -> usize {
        let voters = members.iter().filter(|m| m.voter).count();
        let coming = self.node.read(|state| {
            let comes =
                |(name, e): &(&str, &Enrolment)| *name != but && !e.learner && e.replaces.is_none();
            state.enrolments().filter(comes).count()
        });
        voters + coming
    }

    async fn promote(
        &self,
        request: &PromoteMemberRequest,
    ) -> Result<PromoteMemberResponse, Status> {
        let name = &request.name;
        self.check_quiet("")?;
        let members = self.members();
        let member = members.iter().find(|m| m.name == *name);
        let member = member.ok_or_else(|| no_member(name))?;
        if member.voter {
            let why = format!("{name:?} votes already");
            return Err(Status::failed_precondition(why));
        }
        if !is_live(member) {
            let why = format!("{name:?} does not answer: it would count, and not vote");
            return Err(Status::failed_precondition(why));
        }
        let voters = self.voters_to_be(&members, name) + 1;
        if voters > MAX_VOTERS {
            return Err(Status::failed_precondition(format!(
                "a cluster has at most {MAX_VOTERS} voters"
            )));
        }
        info!(
            event = "member-promoted",
            member = name,
            "{name:?} is to vote"
        );
        let enrolment = Enrolment {
            address: member.address.clone(),
            learner: false,
            replaces: None,
            stage: Stage::Admitted { node: member.id },
        };
        let member = name.clone();
        self.commit(Command::Enrol { member, enrolment }).await?;
        let votes = || self.members().iter().any(|m| m.name == *name && m.voter);
        let settled = || votes() && self.node.read(|s| s.enrolment(name).is_none());
        if self.wait(LONGEST - COMMIT, settled).await {
            let warnings = even(voters).into_iter().collect();
            return Ok(PromoteMemberResponse { warnings });
        }
        Err(Status::deadline_exceeded(format!(
            "{name:?} does not vote yet; the attempt goes on"
        )))
    }

    async fn remove(&self, request: &RemoveMemberRequest) -> Result<RemoveMemberResponse, Status> {
        let RemoveMemberRequest { name, force } = request;
        let members = self.members();
        let mut nodes: Vec<u64> = members
            .iter()
            .filter(|m| m.name == *name)
            .map(|m| m.id)
            .collect();
        let stage = self
            .node
            .read(|s| s.enrolment(name).map(|e| e.stage.clone()));
        match stage {
            Some(Stage::Invited { .. }) if nodes.is_empty() => return self.withdraw(name).await,
            Some(Stage::Admitted { node }) if !nodes.contains(&node) => nodes.push(node),
            _ => {}
        }
        let registered = self.node.read(|s| s.member(name).is_some());
        if nodes.is_empty() && !registered {
            return Err(no_member(name));
        }
        self.check_quiet(name)?;
        let voters = check_majority(&members, name)?;
        let moved = self.drain(name, *force).await?;
        let cluster = &self.node.membership.cluster;
        if nodes.contains(&cluster.id()) {
            if self.node.read(|s| s.gateways_of(name)) > 0 {
                return Err(Status::failed_precondition(
                    "the leader has gateways that nobody else takes: no other member can lead before that",
                ));
            }
            cluster.step_down().await.map_err(Status::unavailable)?;
            return Err(Status::aborted("another member leads now"));
        }
        info!(
            event = "member-removed",
            member = name,
            force,
            "an operator removes {name:?}"
        );
        if nodes.is_empty() {
            // What was left of it.
            nodes.push(0);
        }
        for node in nodes {
            let member = name.clone();
            self.commit(Command::Dismiss { member, node }).await?;
        }
        let gone = || self.members().iter().all(|m| m.name != *name);
        if !self.wait(COMMIT * 2, gone).await {
            return Err(Status::deadline_exceeded(format!(
                "{name:?} is not gone yet, because too few members answer; the attempt goes on"
            )));
        }
        Ok(RemoveMemberResponse {
            moved,
            withdrawn: false,
            warnings: even(voters).into_iter().collect(),
        })
    }

    async fn withdraw(&self, name: &str) -> Result<RemoveMemberResponse, Status> {
        info!(
            event = "token-withdrawn",
            member = name,
            "the token for {name:?} is good no more"
        );
        let (member, node) = (name.to_owned(), None);
        self.commit(Command::EndEnrolment { member, node }).await?;
        Ok(RemoveMemberResponse {
            withdrawn: true,
            ..RemoveMemberResponse::default()
        })
    }

    /// Waits until a member has no gateways; yields how many it had.
    async fn drain(&self, name: &str, force: bool) -> Result<u32, Status> {
        let has = || self.node.read(|s| s.gateways_of(name));
        let before = has();
        let command = Command::SetDraining {
            member: name.to_owned(),
            draining: true,
        };
        match timeout(COMMIT, self.node.propose(command)).await {
            // It never ran.
            Ok(Ok(Outcome::Refused(Refusal::UnknownMember(_)))) => return Ok(0),
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(Status::unavailable(e.to_string())),
            Err(_) => return Err(Status::unavailable("most members do not answer")),
        }
        let limit = if force { DRAIN_BY_FORCE } else { DRAIN };
        if self.wait(limit, || has() == 0).await || force {
            return Ok(u32::try_from(before).unwrap_or(u32::MAX));
        }
        Err(Status::failed_precondition(format!(
            "{name:?} still has {} gateways, which nobody else takes: it is not removed, but drains",
            has()
        )))
    }
}

/// What a newcomer must not be.
fn check_newcomer(
    members: &[MemberStatus],
    name: &str,
    address: &str,
    replaces: Option<&str>,
) -> Result<(), Status> {
    if !pki::is_name(name) {
        return Err(Status::invalid_argument(format!(
            "{name:?} is no name for a member: letters, digits, hyphens and dots, as in a host name"
        )));
    }
    if !is_endpoint(address) {
        return Err(Status::invalid_argument(format!(
            "{address:?} is not where a member is reached, expected a host and a port"
        )));
    }
    if members.iter().any(|m| m.name == name) {
        return Err(Status::failed_precondition(format!(
            "{name:?} is a member already: one that has another address is replaced by a member of another name (`ctl member replace {name} NEW ADDRESS`)"
        )));
    }
    let same = |m: &&MemberStatus| m.address == address && Some(m.name.as_str()) != replaces;
    if let Some(other) = members.iter().find(same) {
        return Err(Status::failed_precondition(format!(
            "{address} is the address of {:?}",
            other.name
        )));
    }
    match replaces {
        Some(old) if members.iter().all(|m| m.name != old) => Err(no_member(old)),
        _ => Ok(()),
    }
}

fn is_live(member: &MemberStatus) -> bool {
    member.acknowledged.is_some_and(|ago| ago < DEAD)
}

/// Refuses what would leave too few voters that answer, by force as well: the change itself could not be made. Yields how many there will be.
fn check_majority(members: &[MemberStatus], name: &str) -> Result<usize, Status> {
    let rest: Vec<&MemberStatus> = members
        .iter()
        .filter(|m| m.voter && m.name != name)
        .collect();
    if rest.is_empty() {
        let why = format!("{name:?} is the only voter: a cluster needs one");
        return Err(Status::failed_precondition(why));
    }
    let votes = members.iter().any(|m| m.voter && m.name == name);
    let live = rest.iter().filter(|m| is_live(m)).count();
    let needed = rest.len() / 2 + 1;
    if votes && live < needed {
        return Err(Status::failed_precondition(format!(
            "of the {} voters that stay only {live} answer, and {needed} must: without {name:?} the cluster would stand still: start one of those that do not answer, or remove it first",
            rest.len()
        )));
    }
    Ok(rest.len())
}

/// An even number of voters is one more to lose, and none more that may be lost.
fn even(voters: usize) -> Option<String> {
    let even = voters.is_multiple_of(2);
    even.then(|| {
        format!(
            "{voters} voters bear the loss of no more than {} do",
            voters - 1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, voter: bool, live: bool) -> MemberStatus {
        MemberStatus {
            id: 1,
            name: name.to_owned(),
            address: format!("{name}:4510"),
            voter,
            leader: false,
            acknowledged: live.then_some(Duration::from_millis(20)),
            next_index: None,
            lag: None,
        }
    }

    #[test]
    fn who_goes_must_leave_a_majority_that_answers() {
        let three = |live: [bool; 3]| {
            let names = ["a", "b", "c"].into_iter().zip(live);
            names.map(|(n, l)| member(n, true, l)).collect::<Vec<_>>()
        };
        assert_eq!(check_majority(&three([true; 3]), "c").unwrap(), 2);
        // The dead one may go, a live one may not.
        let two = three([true, true, false]);
        assert_eq!(check_majority(&two, "c").unwrap(), 2);
        let refused = check_majority(&two, "b").unwrap_err();
        assert!(
            refused
                .message()
                .contains("of the 2 voters that stay only 1 answer")
        );
        let one = [member("a", true, true), member("b", false, true)];
        assert!(check_majority(&one, "a").is_err(), "the only voter");
        assert_eq!(check_majority(&one, "b").unwrap(), 1);
    }

    #[test]
    fn a_newcomer_has_a_name_and_an_address_of_its_own() {
        let members = [member("a", true, true), member("b", true, true)];
        let check = |name, address, old| {
            let checked = check_newcomer(&members, name, address, old);
            checked.map_err(|e| e.message().to_owned())
        };
        assert_eq!(check("c", "c:4510", None), Ok(()));
        assert_eq!(check("c", "b:4510", Some("b")), Ok(()));
        for (name, address, old, why) in [
            ("a b", "c:1", None, "is no name for a member"),
            ("c", "c", None, "expected a host and a port"),
            ("a", "c:1", None, "ctl member replace a NEW ADDRESS"),
            ("c", "b:4510", None, "is the address of \"b\""),
            ("c", "c:1", Some("d"), "there is no member \"d\""),
        ] {
            let refused = check(name, address, old).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
