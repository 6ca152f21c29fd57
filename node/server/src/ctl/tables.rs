//! Answers as tables and as JSON. The names of JSON's fields are part of the interface: they only ever grow.

use super::commits;
use evergate_proto::admin::{ChildFate, ChildSa, GetStatusResponse, IkePhase, IkeSa};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write};

/// An SPI of an IKE SA as it is written everywhere.
pub(super) fn spi64(spi: u64) -> String {
    format!("0x{spi:016x}")
}

/// An SPI of a Child SA.
pub(super) fn spi32(spi: u32) -> String {
    format!("0x{spi:08x}")
}

/// The answer in the form that is wanted.
pub(super) fn either(as_json: bool, value: &Value, text: String) -> String {
    if as_json {
        format!("{value:#}\n")
    } else {
        text
    }
}

/// The answer of `status`.
pub(super) fn status(s: &GetStatusResponse, as_json: bool) -> String {
    if as_json {
        return either(true, &status_json(s), String::new());
    }
    let plane = s.data_plane.clone().unwrap_or_default();
    let commits = s.commits.clone().unwrap_or_default();
    let gateways: Vec<String> = s
        .gateways
        .iter()
        .map(|g| {
            let name = if g.name.is_empty() {
                g.id.to_string()
            } else {
                g.name.clone()
            };
            format!(
                "{name} epoch {} {}",
                g.epoch,
                if g.active { "active" } else { "passive" }
            )
        })
        .collect();
    let mut rows = vec![
        ("member", s.member.clone()),
        ("version", s.version.clone()),
        ("uptime", duration(s.uptime_ms)),
        (
            "cluster",
            match (s.without_majority_ms, s.leads, s.leader.as_str()) {
                (Some(ms), ..) => format!(
                    "most members have not answered for {}: nothing is committed",
                    duration(ms)
                ),
                (_, true, _) => "leads".to_owned(),
                (_, false, "") => "no leader".to_owned(),
                (_, false, leader) => format!("follows {leader}"),
            } + &format!(", generation {}", s.generation),
        ),
        ("gateways", gateways.join(", ")),
        (
            "policy",
            format!(
                "version {}: {} connections, {} secrets, {} pools",
                s.policy_version, s.connections, s.secrets, s.pools
            ),
        ),
        (
            "IKE SAs",
            format!(
                "{} established, {} connecting, {} half-open, {} closed",
                s.ike_established, s.ike_connecting, s.ike_half_open, s.ike_closed
            ),
        ),
        ("Child SAs", s.children.to_string()),
        ("leases", s.leases.to_string()),
        ("commits", commits::text(&commits)),
        ("data plane", plane.name.clone()),
        (
            "in",
            format!(
                "{} packets, {} bytes, {} IKE messages",
                plane.packets_in, plane.bytes_in, plane.ike_in
            ),
        ),
        (
            "out",
            format!(
                "{} packets, {} bytes, {} IKE messages",
                plane.packets_out, plane.bytes_out, plane.ike_out
            ),
        ),
    ];
    for (reason, n) in sorted(&plane.drops) {
        rows.push(("dropped", format!("{n} packets: {reason}")));
    }
    for (reason, n) in sorted(&s.ike_drops) {
        rows.push(("dropped", format!("{n} IKE messages: {reason}")));
    }
    rows.into_iter()
        .fold(String::new(), |mut out, (name, value)| {
            let _ = writeln!(out, "{name:<12}{value}");
            out
        })
}

fn sorted(map: &std::collections::HashMap<String, u64>) -> BTreeMap<&str, u64> {
    map.iter().map(|(k, v)| (k.as_str(), *v)).collect()
}

fn status_json(s: &GetStatusResponse) -> Value {
    let plane = s.data_plane.clone().unwrap_or_default();
    let gateways: Vec<Value> = s
        .gateways
        .iter()
        .map(|g| json!({ "id": g.id, "name": g.name, "epoch": g.epoch, "active": g.active }))
        .collect();
    json!({
        "member": s.member,
        "version": s.version,
        "uptime_ms": s.uptime_ms,
        "leads": s.leads,
        "leader": s.leader,
        "generation": s.generation,
        "without_majority_ms": s.without_majority_ms,
        "gateways": gateways,
        "policy_version": s.policy_version,
        "connections": s.connections,
        "secrets": s.secrets,
        "pools": s.pools,
        "ike_established": s.ike_established,
        "ike_connecting": s.ike_connecting,
        "ike_half_open": s.ike_half_open,
        "ike_closed": s.ike_closed,
        "children": s.children,
        "leases": s.leases,
        "data_plane": {
            "name": plane.name,
            "packets_in": plane.packets_in,
            "bytes_in": plane.bytes_in,
            "packets_out": plane.packets_out,
            "bytes_out": plane.bytes_out,
            "ike_in": plane.ike_in,
            "ike_out": plane.ike_out,
            "tcp_connections": plane.tcp_connections,
            "drops": sorted(&plane.drops),
        },
        "ike_drops": sorted(&s.ike_drops),
        "commits": commits::json(&s.commits.clone().unwrap_or_default()),
    })
}

/// The answer of `sas`.
pub(super) fn sas(sas: &[IkeSa], as_json: bool) -> String {
    if as_json {
        return either(
            true,
            &Value::Array(sas.iter().map(ike_json).collect()),
            String::new(),
        );
    }
    let head = [
        "IKE SA",
        "CONNECTION",
        "PHASE",
        "ROLE",
        "MEMBER",
        "LOCAL",
        "REMOTE",
        "PEER",
        "SUITE",
    ];
    let ikes = sas.iter().map(|sa| {
        [
            spi64(sa.id),
            sa.connection.clone(),
            phase(sa).to_owned(),
            if sa.initiator {
                "initiator"
            } else {
                "responder"
            }
            .to_owned(),
            sa.member.clone(),
            sa.local.clone(),
            if sa.tcp {
                format!("{} (TCP)", sa.remote)
            } else {
                sa.remote.clone()
            },
            sa.remote_id.clone(),
            sa.suite.clone(),
        ]
    });
    let mut out = table(head, ikes.collect());
    let head = [
        "CHILD SA",
        "NAME",
        "IKE SA",
        "FATE",
        "OUT",
        "LOCAL TS",
        "REMOTE TS",
        "IN/OUT BYTES",
    ];
    let children = sas
        .iter()
        .flat_map(|sa| sa.children.iter().map(move |c| (sa, c)))
        .map(|(sa, c)| {
            let bytes = match &c.stats {
                Some(stats) => format!("{}/{}", stats.bytes_in, stats.bytes_out),
                // Whoever serves it did not say.
                None => "-".to_owned(),
            };
            [
                spi32(c.spi_in),
                c.name.clone(),
                spi64(sa.id),
                fate(c).to_owned(),
                spi32(c.spi_out),
                c.local_ts.join(","),
                c.remote_ts.join(","),
                bytes,
            ]
        });
    let children: Vec<_> = children.collect();
    if !children.is_empty() {
        out.push('\n');
        out += &table(head, children);
    }
    let drops = drops(sas);
    if !drops.is_empty() {
        out.push('\n');
        out += &table(["DROPPED FOR", "NAME", "PACKETS", "REASON"], drops);
    }
    out
}

/// What was dropped for each Child SA, and why.
fn drops(sas: &[IkeSa]) -> Vec<[String; 4]> {
    let children = sas.iter().flat_map(|sa| &sa.children);
    let counted = children.filter_map(|c| Some((c, c.stats.as_ref()?)));
    let rows = counted.flat_map(|(c, stats)| {
        let drops = sorted(&stats.drops).into_iter();
        drops.map(|(reason, n)| {
            [
                spi32(c.spi_in),
                c.name.clone(),
                n.to_string(),
                reason.into(),
            ]
        })
    });
    rows.collect()
}

/// Columns as wide as their longest cell; the last one is not padded.
fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let head = head.map(str::to_owned);
    let all: Vec<&[String; N]> = std::iter::once(&head).chain(&rows).collect();
    let width = |column: usize| {
        all.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in all {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn ike_json(sa: &IkeSa) -> Value {
    json!({
        "id": spi64(sa.id),
        "remote_spi": spi64(sa.remote_spi),
        "initiator": sa.initiator,
        "connection": sa.connection,
        "member": sa.member,
        "phase": phase(sa),
        "local": sa.local,
        "remote": sa.remote,
        "local_id": sa.local_id,
        "remote_id": sa.remote_id,
        "suite": sa.suite,
        "nat_local": sa.nat_local,
        "nat_remote": sa.nat_remote,
        "tcp": sa.tcp,
        "created_ms": sa.created_ms,
        "authenticated_ms": sa.authenticated_ms,
        "rekey_at_ms": sa.rekey_at_ms,
        "expires_at_ms": sa.expires_at_ms,
        "peer_vips": sa.peer_vips,
        "our_vips": sa.our_vips,
        "revision": sa.revision,
        "inbound_next": sa.inbound_next,
        "outbound_next": sa.outbound_next,
        "children": sa.children.iter().map(child_json).collect::<Vec<_>>(),
    })
}

fn child_json(c: &ChildSa) -> Value {
    let stats = c.stats.as_ref().map(|s| {
        json!({
            "packets_in": s.packets_in,
            "bytes_in": s.bytes_in,
            "packets_out": s.packets_out,
            "bytes_out": s.bytes_out,
            "last_inbound_ms": s.last_inbound_ms,
            "last_outbound_ms": s.last_outbound_ms,
            "next_sequence": s.next_sequence,
            "remaining": s.remaining,
            "replay_edge": s.replay_edge,
            "drops": sorted(&s.drops),
        })
    });
    json!({
        "name": c.name,
        "spi_in": spi32(c.spi_in),
        "spi_out": spi32(c.spi_out),
        "fate": fate(c),
        "suite": c.suite,
        "mode": if c.transport { "transport" } else { "tunnel" },
        "local_ts": c.local_ts,
        "remote_ts": c.remote_ts,
        "created_ms": c.created_ms,
        "rekey_at_ms": c.rekey_at_ms,
        "expires_at_ms": c.expires_at_ms,
        "stats": stats,
    })
}

fn phase(sa: &IkeSa) -> &'static str {
    match sa.phase() {
        IkePhase::Unspecified => "unknown",
        IkePhase::Connecting => "connecting",
        IkePhase::HalfOpen => "half-open",
        IkePhase::Established => "established",
        IkePhase::Replaced => "replaced",
        IkePhase::Closed => "closed",
    }
}

fn fate(c: &ChildSa) -> &'static str {
    match c.fate() {
        ChildFate::Unspecified => "unknown",
        ChildFate::Standby => "standby",
        ChildFate::Live => "live",
        ChildFate::Replaced => "replaced",
    }
}

fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, ..) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evergate_proto::admin::{ChildStats, DataPlane, Gateway};

    fn sample() -> IkeSa {
        IkeSa {
            id: 0x1234_5678_9abc_def0,
            remote_spi: 7,
            initiator: true,
            connection: "office".into(),
            member: "m2".into(),
            phase: IkePhase::Established.into(),
            local: "192.0.2.1:500".into(),
            remote: "192.0.2.2:500".into(),
            remote_id: "b.test".into(),
            suite: "aes256gcm16-prfsha384-x25519".into(),
            children: vec![ChildSa {
                name: "net".into(),
                spi_in: 0xc0ff_ee00,
                spi_out: 0xff,
                fate: ChildFate::Live.into(),
                local_ts: vec!["10.1.0.0/16".into()],
                remote_ts: vec!["10.2.0.0/16".into(), "10.3.0.0/16".into()],
                stats: Some(ChildStats {
                    bytes_in: 10,
                    bytes_out: 20,
                    ..ChildStats::default()
                }),
                ..ChildSa::default()
            }],
            ..IkeSa::default()
        }
    }

    #[test]
    fn sas_are_a_table_with_aligned_columns() {
        let half_open = IkeSa {
            phase: IkePhase::HalfOpen.into(),
            connection: "a".into(),
            ..IkeSa::default()
        };
        let expected = "\
IKE SA              CONNECTION  PHASE        ROLE       MEMBER  LOCAL          REMOTE         PEER    SUITE
0x123456789abcdef0  office      established  initiator  m2      192.0.2.1:500  192.0.2.2:500  b.test  aes256gcm16-prfsha384-x25519
0x0000000000000000  a           half-open    responder

CHILD SA    NAME  IKE SA              FATE  OUT         LOCAL TS     REMOTE TS                IN/OUT BYTES
0xc0ffee00  net   0x123456789abcdef0  live  0x000000ff  10.1.0.0/16  10.2.0.0/16,10.3.0.0/16  10/20
";
        assert_eq!(sas(&[sample(), half_open], false), expected);
    }

    #[test]
    fn what_was_not_counted_is_not_zero() {
        let mut unknown = sample();
        unknown.children[0].stats = None;
        let text = sas(&[unknown], false);
        assert!(text.ends_with("  -\n"), "{text}");
    }

    #[test]
    fn json_has_stable_names_and_spis_that_survive_floating_point() {
        let value: Value = serde_json::from_str(&sas(&[sample()], true)).unwrap();
        let sa = &value[0];
        assert_eq!(sa["id"], "0x123456789abcdef0");
        assert_eq!(
            (&sa["phase"], &sa["initiator"], &sa["connection"]),
            (&json!("established"), &json!(true), &json!("office"))
        );
        assert_eq!(sa["member"], "m2");
        assert_eq!(sa["authenticated_ms"], Value::Null);
        let child = &sa["children"][0];
        assert_eq!(
            (&child["name"], &child["fate"]),
            (&json!("net"), &json!("live"))
        );
        assert_eq!(
            (&child["spi_in"], &child["spi_out"]),
            (&json!("0xc0ffee00"), &json!("0x000000ff"))
        );
        assert_eq!(child["remote_ts"], json!(["10.2.0.0/16", "10.3.0.0/16"]));
        assert_eq!(child["stats"]["bytes_out"], 20);
    }

    #[test]
    fn status_shows_what_was_dropped_only_if_something_was() {
        let mut s = GetStatusResponse {
            member: "m1".into(),
            version: "0.1.0".into(),
            uptime_ms: 3_725_000,
            gateways: vec![Gateway {
                id: 0,
                epoch: 3,
                active: true,
                name: String::new(),
            }],
            leads: true,
            generation: 1,
            data_plane: Some(DataPlane {
                name: "userspace".into(),
                ..DataPlane::default()
            }),
            ..GetStatusResponse::default()
        };
        let text = status(&s, false);
        assert!(text.starts_with("member      m1\nversion     0.1.0\nuptime      1h 2m\ncluster     leads, generation 1\ngateways    0 epoch 3 active\n"), "{text}");
        assert!(!text.contains("dropped"));
        s.ike_drops.insert("malformed".into(), 4);
        assert!(status(&s, false).ends_with("dropped     4 IKE messages: malformed\n"));
        let value: Value = serde_json::from_str(&status(&s, true)).unwrap();
        assert_eq!(
            (
                &value["ike_drops"]["malformed"],
                &value["gateways"][0]["epoch"]
            ),
            (&json!(4), &json!(3))
        );
    }
}
