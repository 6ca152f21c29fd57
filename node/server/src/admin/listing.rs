//! What there is: status and SAs, from the replicated state and the data plane.

use crate::{clock::millis, node::Node, shared::Shared};
use evergate_dataplane::{ChildStats, Drops};
use evergate_ike::{
    crypto::{EspSuite, IkeSuite},
    proposal::{EspProposal, IkeProposal},
    record::{Child, Fate, Mode, Phase, Record, Role},
};
use evergate_proto::admin::{self, ChildFate, GetStatusResponse, IkePhase, IkeSa, ListSasRequest};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// What this member is and does.
pub(super) fn status(node: &Node) -> GetStatusResponse {
    let totals = node.plane.totals();
    let mut status = GetStatusResponse {
        member: node.member.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        gateways: node.services().iter().map(|s| gateway(s)).collect(),
        uptime_ms: node.clock.uptime_millis(),
        data_plane: Some(admin::DataPlane {
            name: node.plane.capabilities().name.to_owned(),
            packets_in: totals.packets_in,
            bytes_in: totals.bytes_in,
            packets_out: totals.packets_out,
            bytes_out: totals.bytes_out,
            ike_in: totals.ike_in,
            ike_out: totals.ike_out,
            drops: drops(&totals.drops),
            tcp_connections: totals.tcp_connections as u64,
        }),
        ike_drops: node
            .drops
            .nonzero()
            .map(|(reason, n)| (reason.to_owned(), n))
            .collect(),
        commits: Some(commits(node)),
        ..GetStatusResponse::default()
    };
    let cluster = node.replica.cluster();
    status.leads = cluster.is_leader();
    if let Some(leader) = cluster.leader().borrow().as_ref() {
        status.leader.clone_from(&leader.name);
    }
    status.generation = cluster.generation().number;
    let lost = node.membership.quorum.lost_for();
    status.without_majority_ms =
        lost.map(|lost| u64::try_from(lost.as_millis()).unwrap_or(u64::MAX));
    node.read(|state| {
        let policy = state.policy();
        status.policy_version = state.policy_version();
        status.connections = count(policy.connections.len());
        status.secrets = count(policy.secrets.len());
        status.pools = count(policy.pools.len());
        status.leases = count(state.leases().count());
        for record in state.sas() {
            match phase(record) {
                IkePhase::Connecting => status.ike_connecting += 1,
                IkePhase::HalfOpen => status.ike_half_open += 1,
                IkePhase::Closed => status.ike_closed += 1,
                IkePhase::Unspecified | IkePhase::Established | IkePhase::Replaced => {
                    status.ike_established += 1
                }
            }
            status.children += count(record.children().len());
        }
    });
    status
}

/// A virtual gateway that this process serves.
fn gateway(service: &Shared) -> admin::Gateway {
    let policy = service.policy.load();
    let config = policy.gateways.iter().find(|g| g.id == service.gateway);
    admin::Gateway {
        name: config.map(|g| g.name.clone()).unwrap_or_default(),
        id: service.gateway.0,
        epoch: service.epoch,
        active: service.may_send(),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn drops(drops: &Drops) -> HashMap<String, u64> {
    drops
        .iter()
        .filter(|(_, n)| *n != 0)
        .map(|(reason, n)| (reason.label().to_owned(), n))
        .collect()
}

/// The records that a request asks for.
pub(super) fn select(node: &Node, request: &ListSasRequest) -> Vec<Arc<Record>> {
    let wanted = |record: &&Arc<Record>| {
        let of_phase = match &record.phase {
            Phase::Established(_) => true,
            Phase::Closed(_) => request.closed && !request.established_only,
            Phase::InitSent(_)
            | Phase::Intermediate(_)
            | Phase::AuthSent(_)
            | Phase::HalfOpen(_) => !request.established_only,
        };
        request
            .connection
            .as_ref()
            .is_none_or(|name| record.connection == *name)
            && request.ike.is_none_or(|id| record.id.0 == id)
            && of_phase
    };
    node.read(|state| state.sas().filter(wanted).cloned().collect())
}

fn phase(record: &Record) -> IkePhase {
    match &record.phase {
        Phase::InitSent(_) | Phase::Intermediate(_) | Phase::AuthSent(_) => IkePhase::Connecting,
        Phase::HalfOpen(_) => IkePhase::HalfOpen,
        Phase::Established(e) if e.replaced_by.is_some() => IkePhase::Replaced,
        Phase::Established(_) => IkePhase::Established,
        Phase::Closed(_) => IkePhase::Closed,
    }
}

/// An IKE SA as operators see it.
pub(super) fn ike_sa(node: &Node, record: &Record) -> IkeSa {
    let mut sa = IkeSa {
        id: record.id.0,
        remote_spi: record.remote_spi,
        initiator: record.role == Role::Initiator,
        connection: record.connection.clone(),
        phase: phase(record).into(),
        local: record.path.local.to_string(),
        remote: record.path.remote.to_string(),
        nat_local: record.path.nat_local,
        nat_remote: record.path.nat_remote,
        tcp: record.path.transport.is_tcp(),
        created_ms: record.created.0,
        revision: record.revision,
        inbound_next: record.inbound.next,
        outbound_next: record.outbound.next,
        member: node
            .read(|state| {
                Some(
                    state
                        .gateway(record.gateway)?
                        .owner
                        .as_ref()?
                        .member
                        .clone(),
                )
            })
            .unwrap_or_default(),
        ..IkeSa::default()
    };
    match &record.phase {
        Phase::Established(e) => {
            sa.local_id = e.local_id.to_string();
            sa.remote_id = e.remote_id.to_string();
            sa.suite = ike_suite(e.suite);
            sa.authenticated_ms = Some(e.authenticated.0);
            sa.rekey_at_ms = e.rekey_at.map(|t| t.0);
            sa.expires_at_ms = e.expires_at.map(|t| t.0);
            sa.peer_vips = e.peer_vips.iter().map(ToString::to_string).collect();
            sa.our_vips = e.our_vips.iter().map(ToString::to_string).collect();
            sa.children = e.children.iter().map(|c| child_sa(node, c)).collect();
        }
        Phase::HalfOpen(h) => {
            sa.suite = ike_suite(h.negotiated.suite);
            sa.expires_at_ms = Some(h.expires_at.0);
        }
        Phase::AuthSent(a) => {
            sa.suite = ike_suite(a.negotiated.suite);
            sa.local_id = a.local_id.to_string();
        }
        Phase::Closed(c) => sa.expires_at_ms = Some(c.expires_at.0),
        Phase::InitSent(_) | Phase::Intermediate(_) => {}
    }
    sa
}

fn child_sa(node: &Node, child: &Child) -> admin::ChildSa {
    let fate = match child.fate {
        Fate::Standby => ChildFate::Standby,
        Fate::Live => ChildFate::Live,
        Fate::Replaced => ChildFate::Replaced,
    };
    admin::ChildSa {
        name: child.name.clone(),
        spi_in: child.spi_in,
        spi_out: child.spi_out,
        fate: fate.into(),
        suite: esp_suite(child.suite),
        local_ts: child.local_ts.iter().map(ToString::to_string).collect(),
        remote_ts: child.remote_ts.iter().map(ToString::to_string).collect(),
        created_ms: child.created.0,
        rekey_at_ms: child.rekey_at.map(|t| t.0),
        expires_at_ms: child.expires_at.map(|t| t.0),
        stats: counted(node, child.spi_in),
        transport: child.mode != Mode::Tunnel,
    }
}

/// What the data plane here counted for a Child SA.
pub(super) fn counted(node: &Node, spi_in: u32) -> Option<admin::ChildStats> {
    node.plane.stats(spi_in).map(|s| child_stats(&s))
}

fn commits(node: &Node) -> admin::Commits {
    let (stats, latencies) = (node.replica.stats(), node.replica.latencies());
    let latency = |(took, count): &(Duration, u64)| admin::Latency {
        micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        count: *count,
    };
    admin::Commits {
        entries: stats.commits,
        snapshots: stats.snapshots,
        latencies: latencies.counts().iter().map(latency).collect(),
    }
}

fn child_stats(stats: &ChildStats) -> admin::ChildStats {
    admin::ChildStats {
        packets_in: stats.packets_in,
        bytes_in: stats.bytes_in,
        packets_out: stats.packets_out,
        bytes_out: stats.bytes_out,
        last_inbound_ms: stats.last_inbound.map(|t| millis(t).0),
        last_outbound_ms: stats.last_outbound.map(|t| millis(t).0),
        next_sequence: stats.next_sequence,
        remaining: stats.remaining,
        replay_edge: stats.replay_edge,
        drops: drops(&stats.drops),
    }
}

fn ike_suite(suite: IkeSuite) -> String {
    let proposal = IkeProposal {
        encryption: vec![suite.encryption],
        integrity: suite.integrity.into_iter().collect(),
        prf: vec![suite.prf],
        groups: vec![suite.group],
        additional: suite.additional.0.map(|g| Vec::from_iter(g.map(Some))),
    };
    proposal.to_string()
}

fn esp_suite(suite: EspSuite) -> String {
    let proposal = EspProposal {
        encryption: vec![suite.encryption],
        integrity: suite.integrity.into_iter().collect(),
        groups: suite.group.into_iter().collect(),
        additional: suite.additional.0.map(|g| Vec::from_iter(g.map(Some))),
        esn: vec![suite.esn],
    };
    proposal.to_string()
}
