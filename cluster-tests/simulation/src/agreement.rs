//! What must be once nothing fails any more: every tunnel that should be up is, both ends agree on it, and packets get through.

use crate::{
    conductor,
    host::{Host, Part},
    world::World,
};
use evergate_ike::record::{Established, Fate, Phase, Record};
use evergate_server::member::Member;
use std::{collections::BTreeSet, sync::Arc};

/// The SAs of one side, as the other side would name them: IKE SPIs of both, then SPIs of both for each Child SA.
type Sas = BTreeSet<Sa>;
type Sa = (u64, u64, BTreeSet<(u32, u32)>);

fn established(record: &Record) -> Option<&Established> {
    match &record.phase {
        Phase::Established(e) if e.replaced_by.is_none() && e.successor.is_none() => Some(e),
        _ => None,
    }
}

fn of(record: &Record, mirrored: bool) -> Option<Sa> {
    let live = established(record)?
        .children
        .iter()
        .filter(|c| c.fate == Fate::Live);
    let children = live.map(|c| match mirrored {
        true => (c.spi_out, c.spi_in),
        false => (c.spi_in, c.spi_out),
    });
    let children = children.collect();
    Some(match mirrored {
        true => (record.remote_spi, record.id.0, children),
        false => (record.id.0, record.remote_spi, children),
    })
}

/// Members that are on their way out, or are out and still run.
fn unfinished(hosts: &[Host]) -> Option<String> {
    hosts.iter().find_map(|host| match host.part {
        Part::Leaving => Some(format!("{} is still a member", host.name)),
        Part::Gone if host.process.is_some() => Some(format!("{} is gone, and runs", host.name)),
        _ => None,
    })
}

/// What is not as it should be; packets count from a time on.
pub(crate) fn missing(world: &World, since: u64) -> Option<String> {
    let (members, peers) = {
        let scene = world.scene();
        let all = |is_member| -> Option<Vec<Arc<Member>>> {
            let belongs = |h: &&Host| h.is_member == is_member && h.part == Part::In;
            let hosts = scene.hosts.iter().filter(belongs);
            hosts.map(|h| h.member.clone()).collect()
        };
        if let Some(what) = unfinished(&scene.hosts) {
            return Some(what);
        }
        (all(true), all(false))
    };
    let (Some(members), Some(peers)) = (members, peers) else {
        return Some("not all have started".to_owned());
    };
    let mut missing = None;
    for (at, peer) in peers.iter().enumerate() {
        let theirs: Sas = peer
            .replica()
            .read(|state| state.sas().filter_map(|r| of(r, true)).collect());
        let name = format!("peer{}", at + 1);
        if theirs.is_empty() || theirs.iter().any(|(.., children)| children.is_empty()) {
            missing = missing.or_else(|| Some(format!("{name} has {theirs:x?}")));
        }
        for member in &members {
            let ours: Sas = member.replica().read(|state| {
                let own = state
                    .sas()
                    .filter(|r| established(r).is_some_and(|e| e.remote_id.to_string() == name));
                own.filter_map(|r| of(r, false)).collect()
            });
            if ours != theirs {
                missing = missing
                    .or_else(|| Some(format!("{name} has {theirs:x?}, and the cluster {ours:x?}")));
            }
        }
        let flow = 2 * (u32::try_from(at).unwrap_or_default() + 1);
        let scene = world.scene();
        for (flow, way) in [(flow, "from"), (flow + 1, "to")] {
            if scene.delivered.get(&flow).is_none_or(|t| *t < since) {
                missing = missing.or_else(|| Some(format!("no packets come {way} {name}")));
            }
        }
    }
    std::mem::forget((members, peers));
    missing
}

/// Waits until all members have applied the same, and compares their states.
pub(crate) fn same_state(world: &World) {
    const LOOKS: usize = 200;
    let members: Vec<Arc<Member>> = {
        let scene = world.scene();
        let belongs = |h: &&Host| h.is_member && h.part == Part::In;
        let all = scene.hosts.iter().filter(belongs);
        all.filter_map(|h| h.member.clone()).collect()
    };
    for _ in 0..LOOKS {
        let applied = || -> Vec<u64> {
            members
                .iter()
                .map(|m| m.replica().stats().applied)
                .collect()
        };
        let before = applied();
        // Long enough for whoever has applied an entry to say so.
        world.run_until(conductor::now() + 5 * conductor::MILLI);
        let states: Vec<Vec<u8>> = members
            .iter()
            .map(|m| m.replica().read(evergate_state::State::to_snapshot))
            .collect();
        let quiet = before.iter().all(|b| *b == before[0]) && applied() == before;
        if quiet {
            if states.windows(2).any(|pair| pair[0] != pair[1]) {
                crate::checks::violated(
                    "deterministic apply",
                    "two members have applied the same, and have another state",
                );
            }
            break;
        }
    }
    std::mem::forget(members);
}
