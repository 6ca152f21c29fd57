//! Questions to the kernel about states and policies.

use super::{
    Tag, algorithms,
    policies::{self, PolicyId, Rule},
    states::{StateId, Told},
    thresholds::{self, OfVersions},
};
use crate::rtnl::{self, Requests};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_xfrm::{XFRMNLGRP_SA, XfrmAttrs, XfrmMessage, policy, state};
use netlink_sys::{Socket, protocols::NETLINK_XFRM};
use std::io;
use zeroize::Zeroizing;

/// The kernel's side of IPsec, in one network namespace.
pub(super) struct Kernel {
    requests: Requests<XfrmMessage>,
    tag: Tag,
}

/// Hears of states that are removed. Of all of them, with their keys: so it lives no longer than is needed, and whoever has it reads it empty with each.
pub(super) struct Witness(Option<Socket>);

impl Witness {
    /// One in the network namespace of the calling thread. If the kernel gives none, states are removed all the same, and say nothing.
    pub(super) fn open() -> Self {
        let opened = Self::listen();
        if let Err(error) = &opened {
            tracing::warn!(%error, "what states are at their end is not heard");
        }
        Self(opened.ok())
    }

    fn listen() -> io::Result<Socket> {
        rtnl::listen(NETLINK_XFRM, &[XFRMNLGRP_SA])
    }
}

impl Kernel {
    /// Opens it in the network namespace of the calling thread.
    pub(super) fn open(tag: Tag) -> io::Result<Self> {
        Ok(Self {
            requests: Requests::open_for(NETLINK_XFRM)?,
            tag,
        })
    }

    /// Makes a state. One of ours that is there already gives way: an embryonic one, of a packet that came before.
    pub(super) fn add_state(&mut self, message: state::ModifyMessage) -> io::Result<()> {
        let id = StateId::of_info(&message.user_sa_info);
        let mut again = message.clone();
        let added = self.say_state(XfrmMessage::AddSa(message));
        let exists = |e: &io::Error| e.kind() == io::ErrorKind::AlreadyExists;
        let cleared = match added.as_ref().is_err_and(exists) {
            true => self.clear_away(id),
            false => Ok(false),
        };
        if let Ok(true) = cleared {
            return self.say_state(XfrmMessage::AddSa(again));
        }
        // Whatever happened, the keys do not stay behind.
        algorithms::wipe(&mut again.nlas);
        cleared.and(added)
    }

    /// Removes a state if it is ours; whether it was.
    fn clear_away(&mut self, id: StateId) -> io::Result<bool> {
        let ours = self.state(id)?.is_some_and(|t| t.if_id == self.tag.if_id);
        if ours {
            self.remove_state(id)?;
        }
        Ok(ours)
    }

    /// Changes limits and ports of encapsulation of a state; it must be there.
    pub(super) fn update_state(&mut self, message: state::ModifyMessage) -> io::Result<()> {
        self.say_state(XfrmMessage::UpdateSa(message))
    }

    fn say_state(&mut self, message: XfrmMessage) -> io::Result<()> {
        self.requests.ask_with(message, 0, |message| match message {
            XfrmMessage::AddSa(m) | XfrmMessage::UpdateSa(m) => algorithms::wipe(&mut m.nlas),
            _ => {}
        })
    }

    /// Removes a state; one that is not there is no error.
    pub(super) fn remove_state(&mut self, id: StateId) -> io::Result<()> {
        let request = XfrmMessage::DeleteSa(id.request());
        match self.requests.ask(request, 0) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Removes a state, and yields what it was at its very end: the kernel tells that of what it removes, after the last packet. `None` if there was no
    /// such state, or the kernel could not tell.
    pub(super) fn end_state(&mut self, id: StateId) -> io::Result<Option<Told>> {
        self.end_state_before(&Witness::open(), id)
    }

    /// The same of one of many.
    pub(super) fn end_state_before(
        &mut self,
        witness: &Witness,
        id: StateId,
    ) -> io::Result<Option<Told>> {
        self.remove_state(id)?;
        let Witness(Some(witness)) = witness else {
            return Ok(None);
        };
        loop {
            // What it says was said within the request, so nothing is waited for. The sockets of others are full, too, if this one is.
            let datagram = match witness.recv_from_full() {
                Ok((datagram, from)) if from.port_number() == 0 => Zeroizing::new(datagram),
                Ok(_) => continue,
                Err(_) => return Ok(None),
            };
            let Ok(NetlinkMessage {
                payload: NetlinkPayload::InnerMessage(message),
                ..
            }) = NetlinkMessage::<XfrmMessage>::deserialize(&datagram)
            else {
                continue;
            };
            match message {
                XfrmMessage::DeleteSa(mut m) if StateId::of(&m.user_sa_id) == id => {
                    return Ok(last_words(&mut m));
                }
                XfrmMessage::DeleteSa(mut m) => algorithms::wipe(&mut m.nlas),
                XfrmMessage::AddSa(mut m) | XfrmMessage::UpdateSa(mut m) => {
                    algorithms::wipe(&mut m.nlas);
                }
                _ => {}
            }
        }
    }

    /// What a state is now. `None` if there is none.
    pub(super) fn state(&mut self, id: StateId) -> io::Result<Option<Told>> {
        match self.requests.get(XfrmMessage::GetSa(id.request())) {
            Ok(Some(XfrmMessage::AddSa(mut m))) => Ok(Some(Told::of(&m.user_sa_info, &mut m.nlas))),
            Ok(_) => Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All states that are ours, also embryonic ones.
    pub(super) fn states(&mut self) -> io::Result<Vec<(StateId, Told)>> {
        let all = XfrmMessage::GetDumpSa(state::GetDumpMessage { nlas: Vec::new() });
        let answers = self.requests.dump(all)?;
        let told = answers.into_iter().filter_map(|answer| match answer {
            XfrmMessage::AddSa(mut m) => Some((
                StateId::of_info(&m.user_sa_info),
                Told::of(&m.user_sa_info, &mut m.nlas),
            )),
            _ => None,
        });
        let tag = self.tag;
        Ok(told.filter(|(_, t)| t.if_id == tag.if_id).collect())
    }

    /// Makes a policy what it should be; without a rule there is none.
    pub(super) fn set_policy(&mut self, id: PolicyId, rule: Option<&Rule>) -> io::Result<()> {
        match rule {
            Some(rule) => {
                let message = id.put(rule, self.tag);
                self.requests.ask(XfrmMessage::UpdatePolicy(message), 0)
            }
            None => self.remove_policy(id.remove(self.tag)),
        }
    }

    fn remove_policy(&mut self, request: policy::DelGetMessage) -> io::Result<()> {
        match self.requests.ask(XfrmMessage::DeletePolicy(request), 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes all policies that are ours.
    pub(super) fn remove_policies(&mut self) -> io::Result<usize> {
        let all = XfrmMessage::GetPolicy(policy::DelGetMessage::default());
        let mut removed = 0;
        for answer in self.requests.dump(all)? {
            if let XfrmMessage::AddPolicy(found) = answer
                && let Some(request) = policies::removal_of_ours(&found, self.tag)
            {
                self.remove_policy(request)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// From which lengths of prefixes on policies are hashed. `None` if the kernel does not tell.
    pub(super) fn thresholds(&mut self) -> io::Result<Option<OfVersions>> {
        let request = XfrmMessage::GetSpdInfo(policy::GetSpdInfoMessage::default());
        Ok(match self.requests.get(request)? {
            Some(XfrmMessage::NewSpdInfo(told)) => thresholds::told(&told.nlas),
            _ => None,
        })
    }

    /// Sets them, for everybody in this network namespace.
    pub(super) fn set_thresholds(&mut self, chosen: OfVersions) -> io::Result<()> {
        let message = policy::NewSpdInfoMessage {
            flags: 0,
            nlas: thresholds::telling(chosen),
        };
        self.requests.ask(XfrmMessage::NewSpdInfo(message), 0)
    }
}

fn last_words(message: &mut state::DelGetMessage) -> Option<Told> {
    let info = message.nlas.iter().find_map(|a| match a {
        XfrmAttrs::SaInfo(info) => Some(*info),
        _ => None,
    })?;
    Some(Told::of(&info, &mut message.nlas))
}

#[cfg(test)]
#[path = "tests/kernel.rs"]
mod tests;

#[cfg(test)]
#[path = "tests/measure.rs"]
mod measure;
