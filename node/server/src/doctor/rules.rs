//! What is wrong, from what members say: no I/O.

use super::name_of;
use crate::cluster::ADVICE;
use evergate_cluster::raft::MemberStatus;
use evergate_proto::{
    admin::{Finding, Severity},
    forward::Examination,
};
use evergate_state::{Abilities, KeyId, Level, State};
use std::collections::{BTreeMap, BTreeSet};

/// Clocks that differ by more give entries and lifetimes wrong times.
const CLOCKS_MS: u64 = 5_000;

/// Who is further behind has more to read than is kept in memory for it.
const BEHIND: u64 = 1_000;

const DAY_MS: u64 = 86_400_000;

/// A certificate that ends sooner is to be replaced.
const SOON_DAYS: u64 = 30;

/// A log and two snapshots need room: a disk of which less than this part is free is said to be nearly full.
const LEAST_FREE: u64 = 10;

/// What a member said, or why it did not; and the time here when it did, in milliseconds.
pub(super) struct Seen {
    pub(super) told: Result<Examination, String>,
    pub(super) here: u64,
}

/// A virtual gateway, and who has it.
struct Owned {
    name: String,
    owner: Option<String>,
    addresses: Vec<String>,
}

/// What members say and what is replicated.
pub(super) struct Facts {
    asked: String,
    voters: BTreeSet<String>,
    /// Voters that lost what they had, and learn again as another node.
    returning: BTreeSet<String>,
    members: BTreeMap<String, Seen>,
    gateways: Vec<Owned>,
    draining: Vec<String>,
    abilities: BTreeMap<String, Abilities>,
    first_keys: BTreeMap<String, KeyId>,
    levels: BTreeMap<String, Level>,
}

impl Facts {
    pub(super) fn new(
        asked: &str,
        state: &State,
        members: &[MemberStatus],
        seen: BTreeMap<String, Seen>,
    ) -> Self {
        let policy = state.policy();
        let gateways = policy.gateways.iter().map(|g| {
            let owner = state.gateway(g.id).and_then(|g| g.owner.as_ref());
            let addresses = g.outer.iter().chain(&g.inner);
            Owned {
                name: name_of(policy, g.id),
                owner: owner.map(|o| o.member.clone()),
                addresses: addresses.map(|a| a.addr().to_string()).collect(),
            }
        });
        let known = || {
            state
                .members()
                .map(|(name, member)| (name.to_owned(), member))
        };
        let first = |name: &str| state.keys_of(name)?.has.first().copied();
        Self {
            asked: asked.to_owned(),
            voters: members
                .iter()
                .filter(|m| m.voter)
                .map(|m| m.name.clone())
                .collect(),
            returning: members
                .iter()
                .filter(|m| !m.voter && members.iter().any(|v| v.voter && v.name == m.name))
                .map(|m| m.name.clone())
                .collect(),
            members: seen,
            gateways: gateways.collect(),
            draining: known()
                .filter(|(_, m)| m.draining)
                .map(|(name, _)| name)
                .collect(),
            abilities: known().map(|(name, m)| (name, m.abilities)).collect(),
            first_keys: known()
                .filter_map(|(name, _)| Some((name.clone(), first(&name)?)))
                .collect(),
            levels: known().map(|(name, m)| (name, m.level)).collect(),
        }
    }

    /// Who answered.
    pub(super) fn answered(&self) -> Vec<String> {
        self.examined().map(|(name, _)| name.to_owned()).collect()
    }

    fn examined(&self) -> impl Iterator<Item = (&str, &Examination)> {
        let all = self.members.iter();
        all.filter_map(|(name, seen)| Some((name.as_str(), seen.told.as_ref().ok()?)))
    }
}

/// What is wrong, the worst first.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut found = Found(Vec::new());
    quorum(facts, &mut found);
    clocks(facts, &mut found);
    leases(facts, &mut found);
    replication(facts, &mut found);
    addresses(facts, &mut found);
    disks(facts, &mut found);
    certificates(facts, &mut found);
    differences(facts, &mut found);
    found.0.sort_by_key(|f| std::cmp::Reverse(f.severity));
    found.0
}

struct Found(Vec<Finding>);

impl Found {
    fn add(&mut self, severity: Severity, member: &str, subject: &str, text: String) {
        self.0.push(Finding {
            severity: severity.into(),
            member: member.to_owned(),
            subject: subject.to_owned(),
            text,
        });
    }
}

fn quorum(facts: &Facts, found: &mut Found) {
    let silent = |name: &&String| {
        let unheard = facts.members.get(*name).is_none_or(|s| s.told.is_err());
        unheard || facts.returning.contains(*name)
    };
    let voters = facts.voters.len();
    let lost = facts.voters.iter().filter(silent).count();
    let bears = (voters.max(1) - 1) / 2;
    for (name, seen) in &facts.members {
        let Err(why) = &seen.told else { continue };
        let role = if facts.voters.contains(name) {
            "it votes"
        } else {
            "it only learns"
        };
        found.add(
            Severity::Error,
            name,
            "quorum",
            format!("it does not answer ({role}): {why}"),
        );
    }
    for name in &facts.returning {
        let text = "it lost what it had, and learns again: it does not vote yet".to_owned();
        found.add(Severity::Warning, name, "quorum", text);
    }
    if lost > bears {
        found.add(
            Severity::Error,
            &facts.asked,
            "quorum",
            format!(
                "{lost} of {voters} voters do not answer: nothing can be committed, leases end, and nobody serves until {} more are back: {ADVICE}",
                lost - bears
            ),
        );
    } else if lost == bears && lost > 0 {
        found.add(
            Severity::Warning,
            &facts.asked,
            "quorum",
            format!("{lost} of {voters} voters do not answer: no further loss is borne"),
        );
    }
    if voters > 1 && voters.is_multiple_of(2) {
        found.add(
            Severity::Info,
            &facts.asked,
            "quorum",
            format!(
                "there are {voters} voters: they bear no more losses than {}",
                voters - 1
            ),
        );
    }
    for (name, told) in facts.examined() {
        if told.leader.is_empty() {
            found.add(Severity::Error, name, "quorum", "it knows no leader".into());
        }
        if !told.failure.is_empty() {
            let text = format!("it serves nothing any more: {}", told.failure);
            found.add(Severity::Error, name, "failure", text);
        }
    }
    let leaders: BTreeSet<&str> = facts
        .examined()
        .map(|(_, told)| told.leader.as_str())
        .collect();
    let leaders: Vec<&str> = leaders.into_iter().filter(|l| !l.is_empty()).collect();
    if leaders.len() > 1 {
        let text = format!("members name different leaders: {}", leaders.join(", "));
        found.add(Severity::Warning, &facts.asked, "quorum", text);
    }
}

fn clocks(facts: &Facts, found: &mut Found) {
    for (name, seen) in &facts.members {
        let Ok(told) = &seen.told else { continue };
        let apart = told.unix_ms.abs_diff(seen.here);
        if apart > CLOCKS_MS {
            let way = if told.unix_ms > seen.here {
                "ahead of"
            } else {
                "behind"
            };
            found.add(
                Severity::Warning,
                name,
                "clock",
                format!(
                    "its clock is {}.{} s {way} that of {}: lifetimes and certificates are judged by it",
                    apart / 1000,
                    apart % 1000 / 100,
                    facts.asked
                ),
            );
        }
    }
}

fn leases(facts: &Facts, found: &mut Found) {
    for (name, told) in facts.examined() {
        let Some(remaining) = told.remaining_ms else {
            continue;
        };
        if remaining == 0 {
            found.add(
                Severity::Error,
                name,
                "lease",
                "it has no lease for a gateway that it serves: it sends nothing for it".into(),
            );
        } else if remaining * 3 < told.lease_ms {
            found.add(
                Severity::Warning,
                name,
                "lease",
                format!(
                    "of its lease of {} ms only {remaining} ms are left: it is renewed too late, because the network between members or a machine is slow",
                    told.lease_ms
                ),
            );
        }
    }
}

fn replication(facts: &Facts, found: &mut Found) {
    let most = facts
        .examined()
        .map(|(_, told)| told.applied)
        .max()
        .unwrap_or(0);
    for (name, told) in facts.examined() {
        let behind = most - told.applied;
        if behind > BEHIND {
            let text = format!("it is {behind} entries of the log behind");
            found.add(Severity::Warning, name, "replication", text);
        }
    }
}

fn addresses(facts: &Facts, found: &mut Found) {
    for gateway in &facts.gateways {
        let name = &gateway.name;
        let owner = gateway.owner.as_deref();
        match owner {
            None => found.add(
                Severity::Error,
                "",
                "gateway",
                format!("nobody has gateway {name}"),
            ),
            Some(owner) if facts.members.get(owner).is_none_or(|s| s.told.is_err()) => {
                let text = format!("gateway {name} is with {owner}, which does not answer");
                found.add(Severity::Error, owner, "gateway", text);
            }
            Some(_) => {}
        }
        for address in &gateway.addresses {
            let has = |told: &Examination| told.addresses.contains(address);
            let holders: Vec<&str> = facts
                .examined()
                .filter(|(_, told)| has(told))
                .map(|(name, _)| name)
                .collect();
            let others: Vec<&str> = holders
                .iter()
                .copied()
                .filter(|h| Some(*h) != owner)
                .collect();
            if !others.is_empty() {
                found.add(
                    Severity::Error,
                    others[0],
                    "address",
                    format!(
                        "{address} of gateway {name} is on interfaces of {}, and the gateway is with {}",
                        others.join(", "),
                        owner.unwrap_or("nobody")
                    ),
                );
            } else if owner.is_some_and(|o| facts.members.get(o).is_some_and(|s| s.told.is_ok()))
                && holders.is_empty()
            {
                let text = format!("{address} of gateway {name} is on no interface of its owner");
                found.add(Severity::Error, owner.unwrap_or_default(), "address", text);
            }
        }
    }
}

fn disks(facts: &Facts, found: &mut Found) {
    for (name, told) in facts.examined() {
        if told.free_bytes < told.total_bytes / LEAST_FREE {
            let text = format!(
                "the disk with its state has {} MiB left: a member whose disk is full stops serving",
                told.free_bytes >> 20
            );
            found.add(Severity::Warning, name, "disk", text);
        }
    }
}

fn certificates(facts: &Facts, found: &mut Found) {
    for (name, told) in facts.examined() {
        let left = told.certificate_ends_ms.saturating_sub(told.unix_ms) / DAY_MS;
        if told.certificate_ends_ms == 0 || left >= SOON_DAYS {
            continue;
        }
        let (severity, when) = match told.certificate_ends_ms <= told.unix_ms {
            true => (Severity::Error, "has ended".to_owned()),
            false => (Severity::Warning, format!("ends in {left} days")),
        };
        let text = format!("its certificate {when}: no new connections with other members then");
        found.add(severity, name, "certificate", text);
    }
}

/// Where members are not alike.
fn differences(facts: &Facts, found: &mut Found) {
    let lacks = [
        (Abilities::IMPLICIT_IV, "ciphers with implicit IVs"),
        (Abilities::TRANSPORT_MODE, "transport mode"),
        (Abilities::TCP, "TCP encapsulation"),
    ];
    for (name, abilities) in &facts.abilities {
        for (ability, what) in lacks {
            if !abilities.has(ability) {
                let text = format!("its data plane cannot do {what}: no member negotiates that");
                found.add(Severity::Info, name, "abilities", text);
            }
        }
    }
    let latest = facts.levels.values().max().copied().unwrap_or_default();
    for (name, level) in &facts.levels {
        if *level < latest {
            let text =
                "it runs an older version than others: what those add is not used yet".to_owned();
            found.add(Severity::Info, name, "version", text);
        }
    }
    let keys: BTreeSet<KeyId> = facts.first_keys.values().copied().collect();
    if keys.len() > 1 {
        let text = "members have different cluster keys first: a rotation is under way, or was left half-done (ctl keys)".to_owned();
        found.add(Severity::Warning, "", "keys", text);
    }
    for name in &facts.draining {
        found.add(
            Severity::Info,
            name,
            "placement",
            "it is drained: it gets no gateways".into(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well(applied: u64) -> Seen {
        Seen {
            told: Ok(Examination {
                unix_ms: 10_000,
                leader: "m1".into(),
                applied,
                lease_ms: 350,
                remaining_ms: None,
                free_bytes: 10 << 30,
                total_bytes: 20 << 30,
                ..Examination::default()
            }),
            here: 10_010,
        }
    }

    /// Three members, and a gateway with `m1`.
    fn cluster() -> Facts {
        let names = || ["m1", "m2", "m3"].map(str::to_owned);
        let mut members: BTreeMap<String, Seen> =
            names().into_iter().map(|n| (n, well(5_000))).collect();
        change(&mut members, "m1", |told| {
            told.addresses = vec!["192.0.2.2".into()]
        });
        Facts {
            asked: "m1".into(),
            voters: names().into(),
            returning: BTreeSet::new(),
            members,
            gateways: vec![Owned {
                name: "east".into(),
                owner: Some("m1".into()),
                addresses: vec!["192.0.2.2".into()],
            }],
            draining: vec![],
            abilities: names().into_iter().map(|n| (n, Abilities::ALL)).collect(),
            first_keys: names().into_iter().map(|n| (n, KeyId([1; 8]))).collect(),
            levels: names().into_iter().map(|n| (n, Level::LATEST)).collect(),
        }
    }

    fn change(
        members: &mut BTreeMap<String, Seen>,
        name: &str,
        how: impl FnOnce(&mut Examination),
    ) {
        how(members.get_mut(name).unwrap().told.as_mut().unwrap());
    }

    /// Subject, member and text of what is found.
    fn found(facts: &Facts) -> Vec<(String, String, String)> {
        let all = judge(facts).into_iter();
        all.map(|f| (f.subject, f.member, f.text)).collect()
    }

    fn only(facts: &Facts, subject: &str, member: &str, text: &str) {
        let all = found(facts);
        let this = all
            .iter()
            .any(|(s, m, t)| s == subject && m == member && t.contains(text));
        assert!(this && all.len() == 1, "{all:?}");
    }

    #[test]
    fn nothing_is_wrong_with_a_cluster_that_is_well() {
        assert_eq!(found(&cluster()), []);
    }

    #[test]
    fn each_thing_that_is_wrong_is_said_by_itself() {
        let with = |name: &str, how: fn(&mut Examination)| {
            let mut facts = cluster();
            change(&mut facts.members, name, how);
            facts
        };
        only(
            &with("m2", |t| t.unix_ms += 7_300),
            "clock",
            "m2",
            "7.2 s ahead of that of m1",
        );
        only(
            &with("m1", |t| t.remaining_ms = Some(90)),
            "lease",
            "m1",
            "only 90 ms",
        );
        only(
            &with("m1", |t| t.remaining_ms = Some(0)),
            "lease",
            "m1",
            "no lease",
        );
        only(
            &with("m3", |t| t.applied -= 2_000),
            "replication",
            "m3",
            "entries of the log behind",
        );
        only(
            &with("m2", |t| t.addresses = vec!["192.0.2.2".into()]),
            "address",
            "m2",
            "is on interfaces of m2",
        );
        only(
            &with("m1", |t| t.addresses.clear()),
            "address",
            "m1",
            "on no interface",
        );
        only(
            &with("m2", |t| t.free_bytes = 5 << 20),
            "disk",
            "m2",
            "5 MiB",
        );
        only(
            &with("m2", |t| t.certificate_ends_ms = t.unix_ms + 3 * DAY_MS),
            "certificate",
            "m2",
            "ends in 3 days",
        );
        only(
            &with("m2", |t| t.certificate_ends_ms = 1),
            "certificate",
            "m2",
            "has ended",
        );
        only(
            &with("m2", |t| t.failure = "disk full".into()),
            "failure",
            "m2",
            "disk full",
        );
        only(
            &with("m2", |t| t.leader = "m2".into()),
            "quorum",
            "m1",
            "different leaders: m1, m2",
        );
        only(
            &with("m2", |t| t.leader.clear()),
            "quorum",
            "m2",
            "knows no leader",
        );
    }

    #[test]
    fn what_is_replicated_tells_of_more() {
        let mut facts = cluster();
        facts.gateways[0].owner = None;
        change(&mut facts.members, "m1", |t| t.addresses.clear());
        only(&facts, "gateway", "", "nobody has gateway east");
        let mut facts = cluster();
        facts.first_keys.insert("m2".into(), KeyId([2; 8]));
        only(&facts, "keys", "", "different cluster keys");
        let mut facts = cluster();
        facts.levels.insert("m3".into(), Level::FIRST);
        only(&facts, "version", "m3", "older version");
        let mut facts = cluster();
        facts
            .abilities
            .insert("m3".into(), Abilities::ALL.without(Abilities::TCP));
        only(&facts, "abilities", "m3", "TCP");
        let mut facts = cluster();
        facts.draining.push("m2".into());
        only(&facts, "placement", "m2", "drained");
    }

    #[test]
    fn lost_members_are_counted() {
        let mut facts = cluster();
        let silent = || Seen {
            told: Err("connection refused".into()),
            here: 0,
        };
        facts.returning.insert("m2".into());
        let said = found(&facts);
        assert!(
            said.len() == 2
                && said
                    .iter()
                    .any(|(_, m, t)| m == "m2" && t.contains("learns again")),
            "{said:?}"
        );
        facts.returning.clear();
        facts.members.insert("m2".into(), silent());
        let said = found(&facts);
        assert!(
            said.len() == 2 && said[1].2.contains("no further loss"),
            "{said:?}"
        );
        facts.members.insert("m3".into(), silent());
        let said = found(&facts);
        assert!(
            said.len() == 3
                && said
                    .iter()
                    .any(|(_, _, t)| t.contains("2 of 3 voters do not answer")),
            "{said:?}"
        );
        facts.members.insert("m3".into(), well(5_000));
        facts.gateways[0].owner = Some("m2".into());
        change(&mut facts.members, "m1", |t| t.addresses.clear());
        assert!(
            found(&facts)
                .iter()
                .any(|(_, m, t)| m == "m2" && t.contains("which does not answer"))
        );
    }
}
