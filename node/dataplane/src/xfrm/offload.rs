//! The help of network cards: the kernel is asked to have one encrypt or decrypt what a state is for.
//!
//! Only that: sequence numbers and limits stay with the kernel, whose count they are ([`super::numbers`]). A kernel says nothing where the card has no such
//! help, and goes on by itself; so it is looked at what has become of a state.

use super::{algorithms, kernel::Kernel, states::StateId};
use crate::{ChildSa, Offload, PlaneError, local, netlink::refused};
use netlink_packet_xfrm as xfrm;
use netlink_packet_xfrm::{XfrmAttrs, state};
use std::net::IpAddr;

/// What is wanted of a state.
pub(super) struct Wish {
    offload: Offload,
    /// Our outer address, which the card has.
    ours: IpAddr,
    inbound: bool,
}

impl Wish {
    /// Of the receiving state of a Child SA.
    pub(super) fn inbound(sa: &ChildSa) -> Self {
        Self {
            offload: sa.offload,
            ours: sa.outer.local.ip(),
            inbound: true,
        }
    }

    /// Of the sending one.
    pub(super) fn outbound(sa: &ChildSa) -> Self {
        Self {
            inbound: false,
            ..Self::inbound(sa)
        }
    }

    /// Makes the state.
    pub(super) fn add(
        &self,
        kernel: &mut Kernel,
        message: state::ModifyMessage,
    ) -> Result<(), PlaneError> {
        let made = match self.offload {
            Offload::No => kernel.add_state(message),
            Offload::Auto => {
                let mut without = message.clone();
                let made = kernel.add_state(self.with_card(message));
                match made {
                    Err(_) => kernel.add_state(without),
                    Ok(()) => {
                        algorithms::wipe(&mut without.nlas);
                        Ok(())
                    }
                }
            }
            Offload::Crypto => return self.require(kernel, message),
        };
        made.map_err(|e| refused(self.what(), e))
    }

    fn what(&self) -> &'static str {
        match self.inbound {
            true => "make a receiving state",
            false => "make a sending state",
        }
    }

    fn require(
        &self,
        kernel: &mut Kernel,
        message: state::ModifyMessage,
    ) -> Result<(), PlaneError> {
        let id = StateId::of_info(&message.user_sa_info);
        let what = format!("{} on the network card (hw_offload)", self.what());
        let made = kernel.add_state(self.with_card(message));
        made.map_err(|e| refused(&what, e))?;
        let there = kernel.state(id);
        if there
            .as_ref()
            .is_ok_and(|t| t.as_ref().is_some_and(|t| t.offloaded))
        {
            return Ok(());
        }
        kernel.remove_state(id).map_err(|e| refused(&what, e))?;
        there.map_err(|e| refused(&what, e))?;
        Err(PlaneError::Unsupported(
            "the network card cannot encrypt and decrypt, as hw_offload wants it to",
        ))
    }

    /// Names the device that has our outer address; if none has, the kernel looks for the one to the peer.
    fn with_card(&self, mut message: state::ModifyMessage) -> state::ModifyMessage {
        let mut flags = 0;
        if self.inbound {
            flags |= xfrm::XFRM_OFFLOAD_INBOUND;
        }
        if self.ours.is_ipv6() {
            flags |= xfrm::XFRM_OFFLOAD_IPV6;
        }
        let device = local::device_with(self.ours).unwrap_or(0);
        let card = xfrm::UserOffloadDev {
            ifindex: i32::try_from(device).unwrap_or(0),
            flags,
        };
        message.nlas.push(XfrmAttrs::OffloadDevice(card));
        message
    }
}
