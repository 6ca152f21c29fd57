//! `evergate ctl doctor`: what is wrong with the cluster, in words. Each member examines itself, one asks all of them, and [`rules`] judge what they say.

mod rules;

use crate::node::Node;
use evergate_ike::record::GatewayId;
use evergate_proto::{
    admin::DiagnoseResponse,
    forward::{CallRequest, Examination, call_reply::Result as Answer, call_request::Call},
};
use futures::future::join_all;
use nix::{ifaddrs::getifaddrs, sys::statvfs::statvfs};
use rules::{Facts, Seen};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

/// Another member is waited for so long.
const ANSWER: Duration = Duration::from_secs(2);

/// What this member finds out about itself.
pub(crate) fn examine(node: &Node) -> Examination {
    let cluster = node.replica.cluster();
    let leader = cluster.leader().borrow().clone();
    let (lease, remaining) = node.membership.headroom(node);
    let (free, total) = space(node);
    Examination {
        unix_ms: unix_ms(),
        leader: leader.map(|l| l.name).unwrap_or_default(),
        applied: *node.replica.applied().borrow(),
        lease_ms: millis(lease),
        remaining_ms: remaining.map(millis),
        addresses: gateway_addresses(node)
            .iter()
            .map(ToString::to_string)
            .collect(),
        free_bytes: free,
        total_bytes: total,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: node.replica.level().0.into(),
        failure: failure(node),
        certificate_ends_ms: node.membership.certificate_ends.load(Ordering::Relaxed),
    }
}

/// Asks all members, and says what is wrong.
pub(crate) async fn diagnose(node: &Arc<Node>) -> DiagnoseResponse {
    let members = node.replica.cluster().members();
    let asked = members.iter().map(|member| async {
        let before = unix_ms();
        let told = if member.name == node.member {
            Ok(examine(node))
        } else {
            ask(node, &member.name).await
        };
        // The clock of the other one is compared with the middle of the question and its answer.
        let here = before.midpoint(unix_ms());
        (member.name.clone(), Seen { told, here })
    });
    let seen = join_all(asked).await.into_iter().collect();
    let facts = node.read(|state| Facts::new(&node.member, state, &members, seen));
    let members = facts.answered();
    DiagnoseResponse {
        findings: rules::judge(&facts),
        members,
    }
}

async fn ask(node: &Node, member: &str) -> Result<Examination, String> {
    let request = CallRequest {
        call: Some(Call::Examine(evergate_proto::forward::ExamineRequest {})),
    };
    let cluster = node.replica.cluster();
    match cluster.forward(member, request, ANSWER).await {
        Ok(reply) => match reply.result {
            Some(Answer::Examination(told)) => Ok(told),
            Some(Answer::Refusal(refusal)) => Err(refusal.message),
            _ => Err("it gave an answer to another question".into()),
        },
        Err(error) => Err(error.to_string()),
    }
}

/// Why this member serves nothing.
fn failure(node: &Node) -> String {
    let log = node.replica.failed().borrow().clone();
    match log {
        Some(reason) => reason.to_string(),
        None if node.failed.is_cancelled() => "the data plane failed".into(),
        None => String::new(),
    }
}

/// The addresses of virtual gateways that are on interfaces of this host.
fn gateway_addresses(node: &Node) -> BTreeSet<IpAddr> {
    let policy = node.policy.load();
    let all = policy
        .gateways
        .iter()
        .flat_map(|g| g.outer.iter().chain(&g.inner));
    let wanted: BTreeSet<IpAddr> = all.map(|a| a.addr()).collect();
    let Ok(interfaces) = getifaddrs() else {
        return BTreeSet::new();
    };
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    let here = interfaces.filter_map(|i| i.address.and_then(ip));
    here.filter(|address| wanted.contains(address)).collect()
}

/// Free and total bytes of the disk with the log; zero if that is not known.
fn space(node: &Node) -> (u64, u64) {
    let Ok(disk) = statvfs(&node.state_dir) else {
        return (0, 0);
    };
    let block = disk.fragment_size();
    (disk.blocks_available() * block, disk.blocks() * block)
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The name of a gateway, for people.
fn name_of(policy: &evergate_ike::config::Policy, id: GatewayId) -> String {
    let found = policy.gateways.iter().find(|g| g.id == id);
    found.map_or_else(|| id.0.to_string(), |g| g.name.clone())
}
