//! Commands about the cluster.

use super::{Arguments, Client, Command, tables::either, timed};
use evergate_proto::admin::{
    AddMemberRequest, AddMemberResponse, DiagnoseRequest, DrainMemberRequest, ListGatewaysRequest,
    ListKeysRequest, ListMembersRequest, MoveGatewayRequest, PromoteMemberRequest,
    RemoveMemberRequest, RemoveMemberResponse, Severity, Way,
};
use serde_json::{Value, json};
use std::time::Duration;
use tonic::Status;

/// `evergate ctl member`
#[derive(Debug, clap::Subcommand)]
pub(super) enum MemberCommand {
    /// Make a token with which a new member may join, once
    Add {
        /// Its name, as in its certificate
        name: String,
        /// Where other members reach it: host and port
        address: String,
        /// It does not vote
        #[arg(long)]
        learner: bool,
        /// How long the token is good, as in 30m or 1d; an hour if left out
        #[arg(long, value_parser = duration)]
        valid_for: Option<Duration>,
    },
    /// Let a learner vote; wait until it does
    Promote {
        /// The member
        name: String,
    },
    /// Hand its virtual gateways over and remove a member, or withdraw a token; wait until it is gone
    Remove {
        /// The member
        name: String,
        /// Also if nobody takes its gateways
        #[arg(long)]
        force: bool,
    },
    /// Make a token for a new member that takes the place of another one
    Replace {
        /// The member that goes
        old: String,
        /// The name of the new one
        new: String,
        /// Where other members reach the new one: host and port
        address: String,
        /// How long the token is good, as in 30m or 1d; an hour if left out
        #[arg(long, value_parser = duration)]
        valid_for: Option<Duration>,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    let read = crate::config::duration(text)?;
    match read.as_secs() {
        0 => Err("expected a second at least".to_owned()),
        _ => Ok(read),
    }
}

async fn member(
    client: &mut Client,
    arguments: &Arguments,
    command: &MemberCommand,
) -> Result<String, Status> {
    match command {
        MemberCommand::Add {
            name,
            address,
            learner,
            valid_for,
        } => {
            let request = AddMemberRequest {
                name: name.clone(),
                address: address.clone(),
                learner: *learner,
                valid_for: valid_for.map_or(0, |d| d.as_secs()),
                replaces: String::new(),
            };
            add(client, arguments, request).await
        }
        MemberCommand::Replace {
            old,
            new,
            address,
            valid_for,
        } => {
            let request = AddMemberRequest {
                name: new.clone(),
                address: address.clone(),
                learner: false,
                valid_for: valid_for.map_or(0, |d| d.as_secs()),
                replaces: old.clone(),
            };
            add(client, arguments, request).await
        }
        MemberCommand::Promote { name } => {
            let request = PromoteMemberRequest { name: name.clone() };
            let done = client.promote_member(timed(arguments, request)).await?;
            let warnings = done.into_inner().warnings;
            let value = json!({ "member": name, "voter": true, "warnings": warnings });
            let text = format!("{name} votes\n{}", warned(&warnings));
            Ok(either(arguments.json, &value, text))
        }
        MemberCommand::Remove { name, force } => {
            let request = RemoveMemberRequest {
                name: name.clone(),
                force: *force,
            };
            let done = client.remove_member(timed(arguments, request)).await?;
            let RemoveMemberResponse {
                moved,
                withdrawn,
                warnings,
            } = done.into_inner();
            let text = match withdrawn {
                true => format!("the token for {name} is good no more\n"),
                false => format!("{name} is removed, {moved} gateways moved\n"),
            };
            let value = json!({ "member": name, "moved": moved, "withdrawn": withdrawn, "warnings": warnings });
            Ok(either(arguments.json, &value, text + &warned(&warnings)))
        }
    }
}

/// The token alone goes to the standard output's first line.
async fn add(
    client: &mut Client,
    arguments: &Arguments,
    request: AddMemberRequest,
) -> Result<String, Status> {
    let name = request.name.clone();
    let made = client.add_member(timed(arguments, request)).await?;
    let AddMemberResponse { token, warnings } = made.into_inner();
    let value = json!({ "member": name, "token": token, "warnings": warnings });
    let text = format!("{token}\n{}", warned(&warnings));
    Ok(either(arguments.json, &value, text))
}

fn warned(warnings: &[String]) -> String {
    warnings.iter().map(|w| format!("warning: {w}\n")).collect()
}

/// Carries such a command out.
pub(super) async fn call(client: &mut Client, arguments: &Arguments) -> Result<String, Status> {
    match &arguments.command {
        Command::Members => members(client, arguments).await,
        Command::Member(command) => member(client, arguments, command).await,
        Command::Gateways => gateways(client, arguments).await,
        Command::Doctor => doctor(client, arguments).await,
        Command::Keys => keys(client, arguments).await,
        Command::Move { gateway, member } => move_gateway(client, arguments, gateway, member).await,
        Command::Drain { member, undo } => drain(client, arguments, member, *undo).await,
        _ => Err(Status::internal("not about the cluster")),
    }
}

async fn members(client: &mut Client, arguments: &Arguments) -> Result<String, Status> {
    let request = timed(arguments, ListMembersRequest {});
    let all = client.list_members(request).await?.into_inner().members;
    let json: Value = all
        .iter()
        .map(|m| {
            json!({ "name": m.name, "address": m.address, "voter": m.voter, "leader": m.leader, "draining": m.draining,
                    "gateways": m.gateways, "acknowledged_ms": m.acknowledged_ms, "lag": m.lag, "zone": m.zone, "weight": m.weight,
                    "way": way(m.way()) })
        })
        .collect();
    let rows = all.iter().map(|m| {
        let role = match (m.leader, m.voter, m.way()) {
            (true, ..) => "leader",
            (false, _, Way::Leaving) => "leaving",
            (false, true, _) => "follower",
            (false, false, Way::Invited | Way::Joining) => way(m.way()),
            (false, false, _) => "learner",
        };
        let heard = m
            .acknowledged_ms
            .map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms ago"));
        let draining = if m.draining { "draining" } else { "" };
        [
            m.name.clone(),
            m.address.clone(),
            role.to_owned(),
            m.gateways.to_string(),
            heard,
            m.lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
            shown(&m.zone),
            m.weight.to_string(),
            draining.to_owned(),
        ]
    });
    let head = [
        "MEMBER", "ADDRESS", "ROLE", "GATEWAYS", "HEARD", "LAG", "ZONE", "WEIGHT", "",
    ];
    let text = table(head, rows.collect());
    Ok(either(arguments.json, &json, text))
}

async fn doctor(client: &mut Client, arguments: &Arguments) -> Result<String, Status> {
    let request = timed(arguments, DiagnoseRequest {});
    let told = client.diagnose(request).await?.into_inner();
    let severity = |s: Severity| match s {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info | Severity::Unspecified => "info",
    };
    let findings: Value = told
        .findings
        .iter()
        .map(|f| {
            json!({ "severity": severity(f.severity()), "member": f.member, "subject": f.subject, "text": f.text })
        })
        .collect();
    let json = json!({ "members": told.members, "findings": findings });
    let line = |f: &evergate_proto::admin::Finding| {
        let who = if f.member.is_empty() {
            "cluster"
        } else {
            &f.member
        };
        format!(
            "{}: {who}: {}: {}\n",
            severity(f.severity()),
            f.subject,
            f.text
        )
    };
    let mut text: String = told.findings.iter().map(line).collect();
    let examined = told.members.join(", ");
    text.push_str(&match told.findings.len() {
        0 => format!("nothing is wrong; examined: {examined}\n"),
        _ => format!("examined: {examined}\n"),
    });
    Ok(either(arguments.json, &json, text))
}

async fn keys(client: &mut Client, arguments: &Arguments) -> Result<String, Status> {
    let request = timed(arguments, ListKeysRequest {});
    let all = client.list_keys(request).await?.into_inner().keys;
    let json: Value = all
        .iter()
        .map(|k| {
            json!({ "member": k.member, "key": k.key, "used": k.used, "first": k.first, "needed": k.needed })
        })
        .collect();
    let rows = all.iter().map(|k| {
        let use_of = match (k.used, k.first) {
            (true, _) => "used",
            (false, true) => "next",
            (false, false) => "former",
        };
        let needed = if k.needed { "needed" } else { "" };
        [
            k.member.clone(),
            k.key.clone(),
            use_of.to_owned(),
            needed.to_owned(),
        ]
    });
    let text = table(["MEMBER", "KEY", "", ""], rows.collect());
    Ok(either(arguments.json, &json, text))
}

fn shown(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

/// How far a member is, in a word.
fn way(way: Way) -> &'static str {
    match way {
        Way::Unspecified => "in",
        Way::Invited => "invited",
        Way::Joining => "joining",
        Way::Leaving => "leaving",
    }
}

async fn gateways(client: &mut Client, arguments: &Arguments) -> Result<String, Status> {
    let request = timed(arguments, ListGatewaysRequest {});
    let all = client.list_gateways(request).await?.into_inner().gateways;
    let json: Value = all
        .iter()
        .map(|g| {
            json!({ "name": g.name, "id": g.id, "epoch": g.epoch, "member": g.member, "outer": g.outer, "inner": g.inner,
                    "ike_sas": g.ike_sas, "children": g.children })
        })
        .collect();
    let rows = all.iter().map(|g| {
        [
            shown(&g.name),
            shown(&g.member),
            g.epoch.to_string(),
            g.ike_sas.to_string(),
            g.children.to_string(),
            [g.outer.join(" "), g.inner.join(" ")].join("  "),
        ]
    });
    let head = ["GATEWAY", "MEMBER", "EPOCH", "IKE", "CHILD", "ADDRESSES"];
    let text = table(head, rows.collect());
    Ok(either(arguments.json, &json, text))
}

async fn move_gateway(
    client: &mut Client,
    arguments: &Arguments,
    gateway: &str,
    member: &str,
) -> Result<String, Status> {
    let request = MoveGatewayRequest {
        gateway: gateway.to_owned(),
        member: member.to_owned(),
    };
    let moved = client.move_gateway(timed(arguments, request)).await?;
    let epoch = moved.into_inner().epoch;
    let line = format!("gateway {gateway} is with {member}, in epoch {epoch}\n");
    let value = json!({ "gateway": gateway, "member": member, "epoch": epoch });
    Ok(either(arguments.json, &value, line))
}

async fn drain(
    client: &mut Client,
    arguments: &Arguments,
    member: &str,
    undo: bool,
) -> Result<String, Status> {
    let request = DrainMemberRequest {
        member: member.to_owned(),
        undo,
    };
    let drained = client.drain_member(timed(arguments, request)).await?;
    let moved = drained.into_inner().moved;
    let line = if undo {
        format!("{member} may have gateways again\n")
    } else {
        format!("{member} has no gateways any more, {moved} moved\n")
    };
    let value = json!({ "member": member, "draining": !undo, "moved": moved });
    Ok(either(arguments.json, &value, line))
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let head = head.map(str::to_owned);
    let width = |at: usize| {
        let cells = rows
            .iter()
            .chain([&head])
            .map(|row| row[at].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, w)| format!("{cell:<w$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    std::iter::once(&head).chain(&rows).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = |list: [&str; 2]| list.map(str::to_owned);
        let rows = vec![text(["a", "bb"]), text(["cccc", ""])];
        assert_eq!(table(["X", "Y"], rows), "X     Y\na     bb\ncccc\n");
    }
}
