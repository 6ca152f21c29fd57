//! What former levels of the format wrote is still read, and means the same.
//!
//! `formats/level-N.log` has the entries of a history, and `formats/level-N.snapshot` the state that it leads to, both written by the program when `N` was the latest
//! level. They are made once, by this test with `EVERGATE_WRITE_FORMATS=1`, and never again.

use super::*;
use crate::{Abilities, Carried, Counters, Enrolment, KeyId, Level, MemberKeys, Place, Stage};
use evergate_ike::{
    config::{GatewayConfig, SharedSecret},
    sa::CookieSecrets,
};
use std::{fs, path::PathBuf};

fn file(level: u16, kind: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/tests/formats");
    dir.join(format!("level-{level}.{kind}"))
}

fn begin() -> Vec<Command> {
    let policy = Arc::new(Policy {
        secrets: vec![SharedSecret {
            name: "s".into(),
            ids: vec![],
            secret: Secret::new(b"a secret".to_vec()),
        }],
        pools: vec![pool("p", "10.0.0.1", "10.0.0.9")],
        gateways: vec![GatewayConfig {
            id: GW,
            name: "east".into(),
            outer: vec!["192.0.2.1/24".parse().unwrap()],
            inner: vec![],
        }],
        ..Policy::default()
    });
    vec![
        register("a", 1),
        register("b", 7),
        Command::DescribePlane {
            member: "a".into(),
            incarnation: 1,
            abilities: Abilities::ALL.without(Abilities::TCP),
        },
        Command::AnnounceLevel {
            member: "a".into(),
            incarnation: 1,
            level: Level::LATEST,
        },
        assign(GW, "a", 1, 0),
        Command::SetPolicy {
            expected: 0,
            policy,
        },
        Command::SetCookieSecrets(CookieSecrets {
            current: Secret::new(vec![1; 32]),
            previous: Secret::new(vec![2; 32]),
        }),
        Command::SetDraining {
            member: "b".into(),
            draining: true,
        },
    ]
}

fn sas() -> Vec<Command> {
    let mut waiting = established(4, 1, "d", vec![child(1003, true)], vec![]);
    waiting.outbound = pending(5, [Task::Liveness]);
    vec![
        put(
            1,
            vec![established(1, 1, "p", vec![child(1000, true)], vec![])],
        ),
        put(1, vec![established(2, 1, "q", vec![], vec![]), waiting]),
        put(1, vec![closed(3, 1)]),
        Command::LeaseAddresses {
            epoch: 1,
            sa: SaId(2),
            gateway: GW,
            identity: identity("q"),
            pools: vec!["p".into()],
            v4: Some(ip("0.0.0.0")),
            v6: None,
            takes_over: false,
        },
        Command::ReleaseGateway {
            gateway: GatewayId(9),
            epoch: 1,
        },
    ]
}

fn reports() -> Vec<Command> {
    let carried = Carried {
        bytes: 5000,
        packets: 7,
    };
    vec![
        Command::Counters {
            gateway: GW,
            epoch: 1,
            counters: vec![Counters {
                sa: SaId(1),
                inbound_next: 4,
                outbound_next: 2,
            }],
        },
        Command::ReportReceived {
            gateway: GW,
            epoch: 1,
            edges: vec![(1000, 40)],
        },
        Command::ReportCarried {
            gateway: GW,
            epoch: 1,
            carried: vec![(1000, carried)],
        },
        Command::ReportCarriedTogether {
            gateway: GW,
            epoch: 1,
            carried: vec![(SaId(1), carried)],
        },
        Command::ExtendReservations {
            gateway: GW,
            epoch: 1,
            children: vec![(1000, 100_000)],
        },
        Command::AssignInTerm {
            term: 3,
            gateway: GW,
            member: "a".into(),
            incarnation: 1,
            expected_epoch: 1,
        },
        Command::RemoveSas {
            gateway: GW,
            epoch: 2,
            sas: vec![SaId(3)],
        },
        Command::RemoveMember {
            member: "b".into(),
            incarnation: 7,
        },
    ]
}

fn second_level() -> Vec<Command> {
    vec![Command::AnnounceKeys {
        member: "a".into(),
        incarnation: 1,
        keys: MemberKeys {
            has: vec![KeyId([1; 8]), KeyId([2; 8])],
            needs: vec![KeyId([2; 8])],
        },
    }]
}

fn third_level() -> Vec<Command> {
    let enrolment = |stage| Enrolment {
        address: "198.51.100.4:4510".into(),
        learner: true,
        replaces: Some("a".into()),
        stage,
    };
    let invite = |member: &str| Command::Invite {
        member: member.into(),
        enrolment: enrolment(Stage::Invited {
            digest: [7; 32],
            until: UnixMillis(9_000_000),
        }),
    };
    vec![
        invite("c"),
        invite("d"),
        Command::Admit {
            member: "c".into(),
            digest: [7; 32],
            node: 77,
        },
        Command::EndEnrolment {
            member: "c".into(),
            node: Some(77),
        },
        Command::Enrol {
            member: "e".into(),
            enrolment: enrolment(Stage::Admitted { node: 78 }),
        },
        Command::PlaceMember {
            member: "a".into(),
            incarnation: 1,
            place: Place {
                zone: "z".into(),
                weight: 50,
            },
        },
        Command::Dismiss {
            member: "f".into(),
            node: 79,
        },
    ]
}

/// Something of everything that there is.
fn history() -> Vec<Entry> {
    let entries = [begin(), sas(), reports(), second_level(), third_level()];
    let entries = entries.into_iter().zip(1u64..);
    let entry = |(commands, n)| Entry {
        at: UnixMillis(n * 1000),
        commands,
    };
    entries.map(entry).collect()
}

fn after(entries: &[Entry]) -> State {
    let mut state = State::new();
    for entry in entries {
        state.apply_in_term(entry, Some(3));
    }
    state
}

#[test]
fn what_former_levels_wrote_means_the_same() {
    let latest = Level::LATEST.0;
    if std::env::var_os("EVERGATE_WRITE_FORMATS").is_some() && !file(latest, "log").exists() {
        let entries = history();
        fs::write(file(latest, "log"), postcard::to_stdvec(&entries).unwrap()).unwrap();
        fs::write(file(latest, "snapshot"), after(&entries).to_snapshot()).unwrap();
    }
    for level in Level::FIRST.0..=latest {
        let [log, snapshot] = ["log", "snapshot"].map(|kind| fs::read(file(level, kind)).unwrap());
        let (entries, rest): (Vec<Entry>, _) = postcard::take_from_bytes(&log).unwrap();
        assert!(entries.len() >= 3 && rest.is_empty());
        let state = State::from_snapshot(&snapshot).unwrap();
        assert_eq!(state.level(), Level(level));
        assert!(state == after(&entries), "level {level}");
        assert!(
            state.to_snapshot() == snapshot,
            "it is written again as level {level}"
        );
        assert_eq!(state.sas().len(), 3);
        assert_eq!(state.epoch(GW), 2);
        assert_eq!(state.policy().secrets[0].secret.expose(), b"a secret");
    }
}

#[test]
fn each_command_of_the_latest_level_is_in_its_file() {
    let log = postcard::to_stdvec(&history()).unwrap();
    assert!(fs::read(file(Level::LATEST.0, "log")).unwrap() == log);
    // A variant that is new makes this not compile: put it into the history of the level that it belongs to.
    let known = |command: &Command| match command {
        Command::RegisterMember { .. } => 0,
        Command::RemoveMember { .. } => 1,
        Command::SetDraining { .. } => 2,
        Command::AssignGateway { .. } => 3,
        Command::ReleaseGateway { .. } => 4,
        Command::PutSas { .. } => 5,
        Command::Counters { .. } => 6,
        Command::ReportReceived { .. } => 7,
        Command::ReportCarried { .. } => 8,
        Command::RemoveSas { .. } => 9,
        Command::ExtendReservations { .. } => 10,
        Command::LeaseAddresses { .. } => 11,
        Command::SetPolicy { .. } => 12,
        Command::SetCookieSecrets(_) => 13,
        Command::ReportCarriedTogether { .. } => 14,
        Command::DescribePlane { .. } => 15,
        Command::AssignInTerm { .. } => 16,
        Command::AnnounceLevel { .. } => 17,
        Command::AnnounceKeys { .. } => 18,
        Command::Invite { .. } => 19,
        Command::Admit { .. } => 20,
        Command::Enrol { .. } => 21,
        Command::EndEnrolment { .. } => 22,
        Command::Dismiss { .. } => 23,
        Command::PlaceMember { .. } => 24,
    };
    let entries = history();
    let mut seen: Vec<i32> = entries
        .iter()
        .flat_map(|e| e.commands.iter().map(known))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (0..25).collect::<Vec<_>>());
}
