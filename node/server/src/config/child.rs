//! `[connections.NAME.children.NAME]`.

use super::{
    document, marks,
    problem::Severity,
    validate::Check,
    values::{Named, Text},
};
use evergate_ike::{
    config::{ChildConfig, HeaderCopy, HwOffload, Mode, StartAction},
    proposal::default_esp,
    selector::SelectorTemplate,
};
use std::{ops::RangeInclusive, time::Duration};
use toml::Spanned;

/// What the anti-replay window may be, in packets.
const REPLAY_WINDOW: RangeInclusive<u32> = 64..=4096;
/// Bytes in the path of a program.
const MAX_PROGRAM: usize = 255;

impl Check<'_> {
    pub(super) fn children(
        &mut self,
        connection: &Spanned<String>,
        children: Named<document::Child>,
        reachable: bool,
    ) -> Vec<ChildConfig> {
        if children.0.is_empty() {
            let name = connection.get_ref();
            let what = format!("connection {name:?} has no children: it carries nothing");
            self.problem(connection.span(), Severity::Warning, what);
        }
        let children = children.0.into_iter();
        children
            .map(|(name, child)| self.child(name, child, reachable))
            .collect()
    }

    fn child(&mut self, name: Spanned<String>, c: document::Child, reachable: bool) -> ChildConfig {
        self.name(&name, "child");
        self.for_the_plane(&c);
        let marks = marks::of(&c);
        let rekey_time = c.rekey_time.map_or(Duration::from_secs(3600), |t| t.0);
        let life_time = match c.life_time {
            None => rekey_time * 11 / 10,
            Some(life) => {
                let value = life.get_ref().0;
                if !value.is_zero() && value <= rekey_time {
                    self.error(
                        life.span(),
                        "life_time is not longer than rekey_time, expected time to rekey",
                    );
                }
                value
            }
        };
        let rand_time = self.rand_time(
            c.rand_time,
            life_time.saturating_sub(rekey_time),
            rekey_time,
        );
        let dynamic = || {
            vec![SelectorTemplate::Dynamic {
                protocol: 0,
                start_port: 0,
                end_port: u16::MAX,
            }]
        };
        let start_action = self.action(c.start_action, StartAction::None, "start", reachable);
        // What is wanted from the start on is wanted again, unless the file says otherwise.
        let close_action = self.action(c.close_action, start_action, "close", reachable);
        let dpd_action = c
            .dpd_action
            .map(|a| Spanned::new(a.span(), Text(a.into_inner().0.0)));
        let dpd_action = self.action(dpd_action, start_action, "dpd", reachable);
        let replay_window = self.within(c.replay_window, "replay_window", REPLAY_WINDOW, 1024);
        ChildConfig {
            name: name.into_inner(),
            local_ts: self.list(c.local_ts, dynamic, "traffic selector"),
            remote_ts: self.list(c.remote_ts, dynamic, "traffic selector"),
            mode: c.mode.map_or_else(Mode::default, |m| m.0),
            esp_proposals: self.proposals(c.esp_proposals, default_esp),
            rekey_time,
            life_time,
            rand_time,
            bytes: self.volume("bytes", c.rekey_bytes, c.life_bytes, c.rand_bytes),
            packets: self.volume("packets", c.rekey_packets, c.life_packets, c.rand_packets),
            start_action,
            close_action,
            dpd_action,
            replay_window,
            headers: HeaderCopy {
                dscp_out: c.copy_dscp.out,
                dscp_in: c.copy_dscp.inwards,
                ecn: c.copy_ecn,
                df: c.copy_df,
            },
            marks,
            hw_offload: c.hw_offload.map_or(HwOffload::No, |o| o.into_inner().0),
            updown: c.updown.map(|program| self.program(program)),
        }
    }

    /// What the data plane cannot do. In a cluster it may be meant for other members, and is left out while this one is there.
    fn for_the_plane(&mut self, c: &document::Child) {
        let found = self.plane.as_ref().map(|plane| marks::problems(c, plane));
        for (span, what) in found.unwrap_or_default() {
            match self.clustered {
                true => self.problem(
                    span,
                    Severity::Warning,
                    format!("{what}; the child is left out while this member is in the cluster"),
                ),
                false => self.error(span, what),
            }
        }
    }

    /// A program that is run: named by a path that means the same wherever the member was started.
    fn program(&mut self, path: Spanned<String>) -> String {
        let is_path = path.get_ref().starts_with('/')
            && path.get_ref().len() <= MAX_PROGRAM
            && !path.get_ref().contains('\0');
        if !is_path {
            let message = format!(
                "updown names no program, expected an absolute path of up to {MAX_PROGRAM} bytes"
            );
            self.error(path.span(), message);
        }
        path.into_inner()
    }

    /// An action that leads to initiating needs somewhere to go.
    fn action(
        &mut self,
        given: Option<Spanned<Text<StartAction>>>,
        default: StartAction,
        what: &str,
        reachable: bool,
    ) -> StartAction {
        let Some(given) = given else {
            return default;
        };
        let action = given.get_ref().0;
        if action != StartAction::None && !reachable {
            let message = format!(
                "{what}_action needs a peer to go to, expected a single address or a name in remote_addrs, and a port"
            );
            self.error(given.span(), message);
        }
        action
    }
}
