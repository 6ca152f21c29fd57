//! The policy as far as the data planes of all members can carry it out.

use evergate_dataplane::Capabilities;
use evergate_ike::config::{ChildConfig, EnableTcp, HwOffload, Mode, Policy};
use evergate_state::Abilities;
use std::sync::Arc;
use tracing::warn;

/// What a data plane can do, as it is told to others.
pub(crate) fn of(plane: &Capabilities) -> Abilities {
    let all = [
        (
            Abilities::IMPLICIT_IV,
            plane.encryption.iter().any(|e| e.implicit_iv()),
        ),
        (Abilities::TRANSPORT_MODE, plane.transport_mode),
        (Abilities::TCP, plane.tcp),
        (Abilities::MARKS, plane.marks),
        (Abilities::OFFLOAD, plane.offload),
    ];
    let can = all.into_iter().filter(|(_, can)| *can);
    can.map(|(ability, _)| ability).collect()
}

/// A policy without what not all members can do. Children that cannot be without it are left out.
pub(crate) fn narrowed(policy: &Arc<Policy>, can: Abilities) -> Arc<Policy> {
    if can.has(Abilities::KNOWN) {
        return Arc::clone(policy);
    }
    let mut narrow = Policy::clone(policy);
    for connection in &mut narrow.connections {
        if !can.has(Abilities::TCP) {
            connection.enable_tcp = EnableTcp::No;
        }
        let name = &connection.name;
        connection.children.retain_mut(|child| {
            narrow_child(child, can);
            let lack = lack(child, can);
            if let Some(lack) = lack {
                warn!(
                    event = "not-for-all-planes",
                    connection = name,
                    child = child.name,
                    "child {} of connection {name} is left out: not all members can do {lack}",
                    child.name
                );
            }
            lack.is_none()
        });
    }
    Arc::new(narrow)
}

/// Takes out what a Child SA can be without.
fn narrow_child(child: &mut ChildConfig, can: Abilities) {
    if !can.has(Abilities::TRANSPORT_MODE) {
        child.mode = Mode::Tunnel;
    }
    if !can.has(Abilities::IMPLICIT_IV) {
        for proposal in &mut child.esp_proposals {
            proposal.encryption.retain(|e| !e.implicit_iv());
        }
        child.esp_proposals.retain(|p| !p.encryption.is_empty());
    }
}

/// What a child needs and not all members can do. Marks say which packets may pass, so it is not without them.
fn lack(child: &ChildConfig, can: Abilities) -> Option<&'static str> {
    if child.esp_proposals.is_empty() {
        Some("any of its proposals")
    } else if !child.marks.is_none() && !can.has(Abilities::MARKS) {
        Some("its marks")
    } else if child.hw_offload == HwOffload::Crypto && !can.has(Abilities::OFFLOAD) {
        Some("its hw_offload")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use std::path::Path;

    fn policy() -> Arc<Policy> {
        let text = "[connections.a]\nremote_addrs = ['192.0.2.1']\nenable_tcp = 'fallback'\n\
                    [connections.a.children.both]\nmode = 'transport'\nesp_proposals = ['aes256gcm16iiv-aes256gcm16']\n\
                    [connections.a.children.only]\nesp_proposals = ['aes256gcm16iiv']\n[secrets.s]\nsecret = 'k'";
        Arc::new(parse(text, Path::new(".")).unwrap().policy)
    }

    #[test]
    fn who_can_do_all_changes_nothing() {
        let policy = policy();
        assert!(Arc::ptr_eq(&narrowed(&policy, Abilities::ALL), &policy));
    }

    #[test]
    fn what_a_member_cannot_do_is_not_negotiated() {
        let narrow = narrowed(&policy(), Abilities::NONE);
        let connection = &narrow.connections[0];
        assert_eq!(connection.enable_tcp, EnableTcp::No);
        let [both] = &connection.children[..] else {
            panic!("not one child");
        };
        assert_eq!((both.name.as_str(), both.mode), ("both", Mode::Tunnel));
        let encryption = &both.esp_proposals[0].encryption;
        assert!(encryption.len() == 1 && !encryption[0].implicit_iv());
    }

    #[test]
    fn a_child_is_not_without_its_marks_or_the_card_that_it_requires() {
        let text = "[dataplane]\nkind = 'xfrm'\nmark = '0xe6/0xff'\n[connections.a.children.plain]\nhw_offload = 'auto'\n\
                    [connections.a.children.marked]\nset_mark_out = '0x700/0xf00'\n\
                    [connections.a.children.card]\nhw_offload = 'crypto'\n[secrets.s]\nsecret = 'k'";
        let policy = Arc::new(parse(text, Path::new(".")).unwrap().policy);
        let left = |without| {
            let narrow = narrowed(&policy, Abilities::ALL.without(without));
            let children = &narrow.connections[0].children;
            children.iter().map(|c| c.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(left(Abilities::NONE), ["plain", "marked", "card"]);
        assert_eq!(left(Abilities::MARKS), ["plain", "card"]);
        assert_eq!(left(Abilities::OFFLOAD), ["plain", "marked"]);
    }

    #[test]
    fn one_lack_leaves_the_rest() {
        let can = Abilities::ALL.without(Abilities::TCP);
        let narrow = narrowed(&policy(), can);
        let connection = &narrow.connections[0];
        assert_eq!(connection.enable_tcp, EnableTcp::No);
        assert_eq!(connection.children, policy().connections[0].children);
    }
}
