//! States of the kernel: what they are told, and what they tell.

use super::{
    Tag, algorithms,
    flows::{address, family},
    numbers::Limits,
};
use crate::{ChildSa, Encapsulation, Mark, Mode, PlaneError};
use netlink_packet_xfrm as xfrm;
use netlink_packet_xfrm::{XfrmAttrs, state};
use std::net::IpAddr;
use zeroize::Zeroizing;

/// The largest anti-replay window of the kernel, in packets (`XFRMA_REPLAY_ESN_MAX`).
pub(super) const MAX_WINDOW: u32 = 4096;
/// The kernel tells how far a state has received when so many packets came since it last did,
const REPLAY_THRESHOLD: u32 = 32_768;
/// or so much later, in ticks of the kernel's timer: 100 ms where it has 250 a second, as most have.
const REPLAY_TICKS: u32 = 25;
/// A peer that was seen elsewhere is told of so often, in seconds; every time if it moved on.
const MAPPING_SECONDS: u32 = 1;
/// ESP's IP protocol.
const ESP: u8 = 50;

/// Which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StateId {
    pub(super) destination: IpAddr,
    pub(super) spi: u32,
}

impl StateId {
    /// That receives for a Child SA.
    pub(super) fn inbound(sa: &ChildSa) -> Self {
        Self {
            destination: sa.outer.local.ip(),
            spi: sa.spi_in,
        }
    }

    /// That sends for it.
    pub(super) fn outbound(sa: &ChildSa) -> Self {
        Self {
            destination: sa.outer.remote.ip(),
            spi: sa.spi_out,
        }
    }

    pub(super) fn of(id: &xfrm::UserSaId) -> Self {
        Self {
            destination: address(&id.daddr, id.family),
            spi: id.spi,
        }
    }

    pub(super) fn of_info(info: &xfrm::UserSaInfo) -> Self {
        Self {
            destination: address(&info.id.daddr, info.family),
            spi: info.id.spi,
        }
    }

    /// The request that is about it.
    pub(super) fn request(self) -> state::DelGetMessage {
        state::DelGetMessage {
            user_sa_id: xfrm::UserSaId {
                daddr: xfrm::Address::from_ip(&self.destination),
                spi: self.spi,
                family: family(self.destination),
                proto: ESP,
            },
            nlas: Vec::new(),
        }
    }
}

/// What is said to the kernel of both states of a Child SA.
pub(super) struct Description<'a> {
    pub(super) sa: &'a ChildSa,
    pub(super) reqid: u32,
    pub(super) tag: Tag,
    pub(super) nat_port: u16,
}

impl Description<'_> {
    /// The receiving state, which refuses all up to the edge.
    pub(super) fn inbound(&self, edge: u64) -> Result<state::ModifyMessage, PlaneError> {
        let sa = self.sa;
        let (from, to) = (sa.outer.remote.ip(), sa.outer.local.ip());
        let mut message = self.state(StateId::inbound(sa), from, &sa.key_in)?;
        debug_assert_eq!(StateId::of_info(&message.user_sa_info).destination, to);
        if sa.headers.dscp_in {
            message.user_sa_info.flags |= xfrm::XFRM_STATE_DECAP_DSCP;
        }
        message.nlas.extend(set_mark(sa.marks.set_inbound));
        let window = sa.replay_window.clamp(1, MAX_WINDOW);
        message.nlas.extend([
            XfrmAttrs::ReplayStateEsn(xfrm::ReplayEsn {
                seq: low(edge),
                seq_hi: high(edge),
                // What lies within the window below a known edge was received, for all we know.
                bmp: vec![if edge > 0 { u32::MAX } else { 0 }; words(window)],
                ..replay(window)
            }),
            XfrmAttrs::ReplayThreshold(REPLAY_THRESHOLD),
            XfrmAttrs::EventTimeThreshold(REPLAY_TICKS),
        ]);
        if sa.outer.encapsulation == Encapsulation::Udp {
            message.nlas.extend([
                self.encapsulation(sa.outer.remote.port(), self.nat_port),
                XfrmAttrs::MappingTimeThreshold(MAPPING_SECONDS),
            ]);
        }
        Ok(message)
    }

    /// The sending state, with these numbers.
    pub(super) fn outbound(&self, limits: Limits) -> Result<state::ModifyMessage, PlaneError> {
        let sa = self.sa;
        let mut message = self.state(StateId::outbound(sa), sa.outer.local.ip(), &sa.key_out)?;
        if !sa.headers.df {
            message.user_sa_info.flags |= xfrm::XFRM_STATE_NOPMTUDISC;
        }
        message.user_sa_info.lifetime_cfg.soft_packet_limit = limits.soft;
        message.user_sa_info.lifetime_cfg.hard_packet_limit = limits.hard;
        message.nlas.extend([
            XfrmAttrs::ReplayStateEsn(xfrm::ReplayEsn {
                oseq: low(limits.before),
                oseq_hi: high(limits.before),
                // It receives nothing, but with extended numbers there has to be a window.
                bmp: vec![0; words(1)],
                ..replay(1)
            }),
            // Nothing is to be told of it but its limits.
            XfrmAttrs::ReplayThreshold(0),
            XfrmAttrs::EventTimeThreshold(0),
        ]);
        message.nlas.extend(set_mark(self.outer_mark()));
        if !sa.headers.dscp_out {
            message
                .nlas
                .push(XfrmAttrs::ExtraFlags(xfrm::XFRM_SA_XFLAG_DONT_ENCAP_DSCP));
        }
        if sa.outer.encapsulation == Encapsulation::Udp {
            let encapsulation = self.encapsulation(self.nat_port, sa.outer.remote.port());
            message.nlas.push(encapsulation);
        }
        Ok(message)
    }

    fn state(
        &self,
        id: StateId,
        source: IpAddr,
        key: &[u8],
    ) -> Result<state::ModifyMessage, PlaneError> {
        let mut info = xfrm::UserSaInfo {
            reqid: self.reqid,
            mode: xfrm::XFRM_MODE_TUNNEL,
            // What is inside may be of the other family than what is outside.
            flags: xfrm::XFRM_STATE_AF_UNSPEC,
            ..xfrm::UserSaInfo::default()
        };
        info.source(&source);
        info.destination(&id.destination);
        info.id.spi = id.spi;
        info.id.proto = ESP;
        if self.sa.esn {
            info.flags |= xfrm::XFRM_STATE_ESN;
        }
        if !self.sa.headers.ecn {
            info.flags |= xfrm::XFRM_STATE_NOECN;
        }
        if self.sa.mode != Mode::Tunnel {
            return Err(PlaneError::Unsupported(
                "the kernel's data plane has no transport mode",
            ));
        }
        let mut nlas = algorithms::attributes(self.sa.cipher, key)?;
        nlas.push(XfrmAttrs::IfId(self.tag.if_id));
        Ok(state::ModifyMessage {
            user_sa_info: info,
            nlas,
        })
    }

    /// The mark of outer packets: ours, by which they take no routes into the tunnel, and beside it what was asked for. The bits of neither are those of the clear
    /// packet then; else there are none.
    fn outer_mark(&self) -> Mark {
        let (Tag { mark: ours, .. }, set) = (self.tag, self.sa.marks.set_outbound);
        match set.is_none() {
            true => Mark {
                value: ours.value,
                mask: u32::MAX,
            },
            false => Mark {
                value: ours.value | set.value & !ours.mask,
                mask: ours.mask | set.mask,
            },
        }
    }

    fn encapsulation(&self, from: u16, to: u16) -> XfrmAttrs {
        XfrmAttrs::EncapsulationTemplate(xfrm::EncapTmpl {
            encap_type: xfrm::UDP_ENCAP_ESPINUDP,
            encap_sport: from,
            encap_dport: to,
            encap_oa: xfrm::Address::default(),
        })
    }
}

/// Has packets of a state get a mark.
fn set_mark(mark: Mark) -> Vec<XfrmAttrs> {
    match mark.is_none() {
        true => Vec::new(),
        false => vec![
            XfrmAttrs::MarkVal(mark.value),
            XfrmAttrs::MarkMask(mark.mask),
        ],
    }
}

fn replay(window: u32) -> xfrm::ReplayEsn {
    xfrm::ReplayEsn {
        bmp_len: u32::try_from(words(window)).unwrap_or(u32::MAX),
        replay_window: window,
        ..xfrm::ReplayEsn::default()
    }
}

/// How many words hold so many bits.
fn words(window: u32) -> usize {
    window.div_ceil(32) as usize
}

fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

fn high(number: u64) -> u32 {
    low(number >> 32)
}

/// What a state tells.
#[derive(Default)]
pub(super) struct Told {
    pub(super) if_id: u32,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// The highest number that was received.
    pub(super) edge: u64,
    /// The last number that was sent.
    pub(super) last_sent: u64,
    /// Packets that had been received before, or were too old.
    pub(super) replayed: u64,
    /// Packets that were not authentic.
    pub(super) forged: u64,
    /// Whether a network card encrypts or decrypts.
    pub(super) offloaded: bool,
    /// Keys, as [`ChildSa`] has them; empty where the kernel does not tell.
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl Told {
    pub(super) fn of(info: &xfrm::UserSaInfo, attributes: &mut [XfrmAttrs]) -> Self {
        let mut told = Self {
            packets: info.lifetime_cur.packets,
            bytes: info.lifetime_cur.bytes,
            replayed: u64::from(info.stats.replay) + u64::from(info.stats.replay_window),
            forged: info.stats.integrity_failed.into(),
            key: Zeroizing::new(algorithms::material(attributes)),
            ..Self::default()
        };
        algorithms::wipe(attributes);
        told.read(attributes);
        told
    }

    /// Whether it is none yet: the kernel makes it for a packet, and waits for its keys.
    pub(super) fn is_embryonic(&self) -> bool {
        self.key.is_empty()
    }

    /// What events and answers have alike.
    pub(super) fn read(&mut self, attributes: &[XfrmAttrs]) {
        for attribute in attributes {
            match attribute {
                XfrmAttrs::IfId(id) => self.if_id = *id,
                XfrmAttrs::OffloadDevice(_) => self.offloaded = true,
                XfrmAttrs::ReplayStateEsn(r) => {
                    self.edge = u64::from(r.seq_hi) << 32 | u64::from(r.seq);
                    self.last_sent = u64::from(r.oseq_hi) << 32 | u64::from(r.oseq);
                }
                XfrmAttrs::ReplayState(r) => {
                    (self.edge, self.last_sent) = (r.seq.into(), r.oseq.into());
                }
                XfrmAttrs::LifetimeBytes(l) => (self.packets, self.bytes) = (l.packets, l.bytes),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "tests/states.rs"]
mod tests;
