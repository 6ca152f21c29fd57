//! Policies of the kernel: what they are told.

use super::{
    Tag,
    flows::{Direction, Flow, LOWEST_PRIORITY, address, family},
};
use crate::Outer;
use netlink_packet_xfrm as xfrm;
use netlink_packet_xfrm::{XfrmAttrs, policy};
use std::net::{IpAddr, Ipv4Addr};

/// ESP's IP protocol.
const ESP: u8 = 50;

/// So many kinds of Child SAs may receive the same traffic at a time: the kernel has as many templates (`XFRM_MAX_DEPTH`).
pub(super) const MAX_RECEIVERS: usize = 6;

/// Which policy: the kernel has one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PolicyId {
    pub(super) flow: Flow,
    pub(super) direction: Direction,
}

/// What becomes of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// This Child SA sends them.
    Send { outer: Outer, spi: u32, reqid: u32 },
    /// They must have come by a Child SA of one of these kinds.
    Receive(Vec<u32>),
    /// Nobody sends them. They are dropped, and that is told.
    Trap(u32),
    /// Who would send them may not now. They are dropped.
    Closed,
}

impl PolicyId {
    /// The request that makes the policy, or takes the place of what it was.
    pub(super) fn put(self, rule: &Rule, tag: Tag) -> policy::ModifyMessage {
        let priority = match rule {
            Rule::Trap(_) => LOWEST_PRIORITY,
            _ => self.flow.priority(),
        };
        let mut nlas = self.identity(tag);
        let templates = rule.templates();
        if !templates.is_empty() {
            nlas.push(XfrmAttrs::Template(templates));
        }
        policy::ModifyMessage {
            user_policy_info: xfrm::UserPolicyInfo {
                selector: self.flow.selector(self.direction),
                priority,
                direction: self.direction.number(),
                action: match rule {
                    Rule::Closed => xfrm::XFRM_POLICY_BLOCK,
                    _ => xfrm::XFRM_POLICY_ALLOW,
                },
                ..xfrm::UserPolicyInfo::default()
            },
            nlas,
        }
    }

    /// The request that removes it.
    pub(super) fn remove(self, tag: Tag) -> policy::DelGetMessage {
        policy::DelGetMessage {
            user_policy_id: xfrm::UserPolicyId {
                selector: self.flow.selector(self.direction),
                index: 0,
                direction: self.direction.number(),
            },
            nlas: self.identity(tag),
        }
    }

    /// What it is known by, besides its selector.
    fn identity(self, tag: Tag) -> Vec<XfrmAttrs> {
        let mark = self.flow.mark;
        let mut nlas = vec![XfrmAttrs::IfId(tag.if_id)];
        nlas.extend((!mark.is_none()).then_some(XfrmAttrs::Mark(xfrm::Mark {
            value: mark.value,
            mask: mark.mask,
        })));
        nlas
    }
}

impl Rule {
    fn templates(&self) -> Vec<xfrm::UserTemplate> {
        match self {
            Self::Send { outer, spi, reqid } => {
                let mut template = template(outer.local.ip(), outer.remote.ip(), *reqid);
                template.spi(*spi);
                vec![template]
            }
            // With addresses that nobody has: no state will ever fit.
            Self::Trap(reqid) => {
                let nobody = IpAddr::from(Ipv4Addr::LOCALHOST);
                vec![template(nobody, nobody, *reqid)]
            }
            Self::Closed => Vec::new(),
            Self::Receive(reqids) => {
                // Of optional templates that are of tunnels any may fit; that none does the kernel takes for a mismatch.
                let optional = reqids.len() > 1;
                let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
                let templates = reqids.iter().rev().take(MAX_RECEIVERS);
                let receive = templates.map(|reqid| {
                    let mut template = template(any, any, *reqid);
                    template.optional(optional);
                    template
                });
                receive.collect()
            }
        }
    }
}

fn template(source: IpAddr, destination: IpAddr, reqid: u32) -> xfrm::UserTemplate {
    let mut template = xfrm::UserTemplate {
        reqid,
        mode: xfrm::XFRM_MODE_TUNNEL,
        family: family(destination),
        ..xfrm::UserTemplate::default()
    };
    template.source(&source);
    template.destination(&destination);
    template.protocol(ESP);
    template
}

/// Whether a policy that the kernel told of is ours, and the request that removes it.
pub(super) fn removal_of_ours(
    found: &policy::ModifyMessage,
    tag: Tag,
) -> Option<policy::DelGetMessage> {
    let ours = |a: &XfrmAttrs| matches!(a, XfrmAttrs::IfId(id) if *id == tag.if_id);
    let marks = found
        .nlas
        .iter()
        .filter(|a| matches!(a, XfrmAttrs::Mark(_)));
    let identity = [XfrmAttrs::IfId(tag.if_id)].into_iter();
    let nlas = identity.chain(marks.cloned()).collect();
    found
        .nlas
        .iter()
        .any(ours)
        .then_some(policy::DelGetMessage {
            user_policy_id: xfrm::UserPolicyId {
                selector: found.user_policy_info.selector,
                index: 0,
                direction: found.user_policy_info.direction,
            },
            nlas,
        })
}

/// What an acquire is about: source, destination, protocol and ports of the packet.
pub(super) fn packet_of(selector: &xfrm::Selector) -> (IpAddr, IpAddr, u8, Option<(u16, u16)>) {
    let ports = (selector.sport_mask | selector.dport_mask != 0)
        .then_some((selector.sport, selector.dport));
    (
        address(&selector.saddr, selector.family),
        address(&selector.daddr, selector.family),
        selector.proto,
        ports,
    )
}
