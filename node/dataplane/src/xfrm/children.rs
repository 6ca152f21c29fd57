//! Child SAs: what they are to be, and what the kernel has of them.

use super::{
    Tag,
    child::Child,
    flows::Flows,
    gates::Gates,
    kernel::{Kernel, Witness},
    kinds::Kinds,
    leftovers::Leftovers,
    numbers::{More, Numbers},
    offload::Wish,
    spd::Spd,
    states::{Description, StateId, Told},
};
use crate::{ChildSa, Encapsulation, Outer, PlaneError, Selector, netlink::refused};
use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

/// How many Child SAs there can be: several times what one member is to carry.
const MAX_CHILDREN: usize = 1 << 18;

/// All Child SAs.
pub(super) struct Children {
    pub(super) kernel: Kernel,
    tag: Tag,
    nat_port: u16,
    pub(super) all: HashMap<u32, Child>,
    /// The names of those that send with these states.
    by_outbound: HashMap<StateId, u32>,
    kinds: Kinds,
    pub(super) gates: Gates,
    pub(super) spd: Spd,
    leftovers: Leftovers,
    /// When something is to be done with one.
    due: BTreeSet<(Instant, u32)>,
    /// Those that may need more numbers and have not said so.
    needy: BTreeSet<u32>,
    /// The number of the trap for what no Child SA sends.
    pub(super) trap: u32,
}

/// The source that the host's own packets to these selectors were to have.
pub(super) type Hint = (Vec<Selector>, IpAddr);

impl Children {
    pub(super) fn new(kernel: Kernel, tag: Tag, nat_port: u16, leftovers: Leftovers) -> Self {
        Self {
            kernel,
            tag,
            nat_port,
            all: HashMap::new(),
            by_outbound: HashMap::new(),
            kinds: Kinds::default(),
            gates: Gates::default(),
            spd: Spd::default(),
            leftovers,
            due: BTreeSet::new(),
            needy: BTreeSet::new(),
            trap: 0,
        }
    }

    /// A Child SA needs more numbers: once until it gets some.
    pub(super) fn need(&mut self, spi_in: u32) {
        let child = self.all.get_mut(&spi_in);
        if let Some(child) = child.filter(|c| !c.asks && c.leaving.is_none()) {
            child.asks = true;
            self.needy.insert(spi_in);
        }
    }

    /// Those that need numbers and have not said so; those for which `tell` yields true have.
    pub(super) fn tell_needs(&mut self, mut tell: impl FnMut(u32, u64, u64) -> bool) {
        for spi_in in std::mem::take(&mut self.needy) {
            let Some(child) = self.all.get(&spi_in).filter(|c| c.leaving.is_none()) else {
                continue;
            };
            let counted = match child.outbound.is_there {
                true => {
                    let id = StateId::outbound(&child.sa);
                    let told = self.kernel.state(id).ok().flatten();
                    told.map_or(u64::MAX, |t| t.packets)
                }
                false => u64::MAX,
            };
            let numbers = &self.all[&spi_in].numbers;
            if !tell(spi_in, numbers.left(counted), numbers.peak()) {
                self.needy.insert(spi_in);
            }
        }
    }

    /// The Child SA that receives with this SPI.
    pub(super) fn get(&self, spi_in: u32) -> Option<&Child> {
        self.all.get(&spi_in)
    }

    pub(super) fn get_mut(&mut self, spi_in: u32) -> Option<&mut Child> {
        self.all.get_mut(&spi_in)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Child)> {
        self.all.iter().map(|(spi, child)| (*spi, child))
    }

    /// The name of the Child SA that sends with this state.
    pub(super) fn sender(&self, id: StateId) -> Option<u32> {
        self.by_outbound.get(&id).copied()
    }

    pub(super) fn install(&mut self, sa: ChildSa, now: Instant) -> Result<(), PlaneError> {
        let spi_in = sa.spi_in;
        if sa.spi_in < 256 || sa.spi_out < 256 {
            return Err(PlaneError::SpiReserved(sa.spi_in.min(sa.spi_out)));
        }
        if self.all.contains_key(&spi_in) {
            return Err(PlaneError::SpiInUse(spi_in));
        }
        if self.all.len() >= MAX_CHILDREN {
            return Err(PlaneError::Limit("Child SAs"));
        }
        if matches!(sa.outer.encapsulation, Encapsulation::Tcp(_)) {
            return Err(NO_TCP);
        }
        let flows = Flows::of(&sa)?;
        let numbers = Numbers::new(sa.reservation.clone(), sa.esn, now)
            .map_err(|_| PlaneError::Reservation(sa.reservation.clone()))?;
        let left = self.leftovers.edge(&sa);
        let edge = sa.replay_edge.unwrap_or(0).max(left.unwrap_or(0));
        let reqid = self.kinds.enter(&sa);
        let child = Child::new(sa, flows, reqid, numbers, edge);
        let gives_way = child.sa.gives_way;
        let flows = child.flows.clone();
        self.gates.enter(&child.sa.gate, crate::boot_time());
        self.all.insert(spi_in, child);
        if let Err(error) = self.make_states(spi_in) {
            self.forget(spi_in);
            return Err(error);
        }
        self.spd.receive(&flows.received, reqid);
        if self.all[&spi_in].active {
            let behind = !gives_way.is_zero() && self.spd.is_sent(&flows.sent);
            self.spd.send(&flows.sent, spi_in, !behind);
            if behind {
                let until = now + gives_way;
                self.child(spi_in)?.gives_way = Some(until);
                self.due.insert((until, spi_in));
            }
        }
        self.settle()
    }

    /// One that is not about to go.
    fn child(&mut self, spi_in: u32) -> Result<&mut Child, PlaneError> {
        let child = self.all.get_mut(&spi_in).filter(|c| c.leaving.is_none());
        child.ok_or(PlaneError::NoSuchChild(spi_in))
    }

    pub(super) fn set_outbound(&mut self, spi_in: u32, active: bool) -> Result<(), PlaneError> {
        let child = self.child(spi_in)?;
        let (was, gave_way) = (child.active, child.gives_way.take().is_some());
        child.active = active;
        let flows = child.flows.clone();
        match (was, active) {
            (true, true) if !gave_way => return Ok(()),
            (_, true) => self.spd.send(&flows.sent, spi_in, true),
            (_, false) => self.spd.send_no_more(&flows.sent, spi_in),
        }
        self.settle()
    }

    /// The peer has shown that it has the Child SA.
    pub(super) fn bring_forward(&mut self, spi_in: u32) -> Result<(), PlaneError> {
        match self.all.get(&spi_in).is_some_and(|c| c.gives_way.is_some()) {
            true => self.set_outbound(spi_in, true),
            false => Ok(()),
        }
    }

    /// Other states take the place of those that there are: with other addresses, and with what is left of the numbers. Between the two
    /// nothing is sent or received.
    pub(super) fn move_to(&mut self, spi_in: u32, outer: Outer) -> Result<(), PlaneError> {
        if matches!(outer.encapsulation, Encapsulation::Tcp(_)) {
            return Err(NO_TCP);
        }
        self.child(spi_in)?;
        self.replace(spi_in, |children| {
            children.end_states(spi_in, &Witness::open())?;
            let child = children.child(spi_in)?;
            child.sa.outer = outer;
            child.seen = None;
            children.make_states(spi_in)
        })
    }

    /// Has other states take the place of those that a Child SA has. Meanwhile policy lets nothing to it: for a packet the kernel would make a state by itself
    /// as soon as there is none, and that one would be in the way.
    fn replace(
        &mut self,
        spi_in: u32,
        work: impl FnOnce(&mut Self) -> Result<(), PlaneError>,
    ) -> Result<(), PlaneError> {
        let done = self.close(spi_in, true).and_then(|()| work(self));
        self.close(spi_in, false).and(done)
    }

    fn close(&mut self, spi_in: u32, closed: bool) -> Result<(), PlaneError> {
        if let Some(child) = self.all.get_mut(&spi_in) {
            child.closed = closed;
            self.spd.refresh(&child.flows.sent);
        }
        self.settle()
    }

    pub(super) fn remove(
        &mut self,
        spi_in: u32,
        until: Instant,
        now: Instant,
    ) -> Result<Option<Hint>, PlaneError> {
        let child = self.all.get_mut(&spi_in);
        let child = child.ok_or(PlaneError::NoSuchChild(spi_in))?;
        let before = child.leaving;
        let until = before.map_or(until, |t| until.min(t));
        child.leaving = Some(until);
        child.active = false;
        child.numbers.revoke();
        let source = child.sa.source_hint.filter(|_| before.is_none());
        let hint = source.map(|source| (child.sa.remote_ts.clone(), source));
        let (flows, out) = (child.flows.clone(), StateId::outbound(&child.sa));
        self.spd.send_no_more(&flows.sent, spi_in);
        let settled = self.settle();
        if self.all[&spi_in].outbound.is_there {
            let told = self.kernel.end_state(out);
            let told = told.map_err(|e| refused("remove a sending state", e))?;
            self.half_ended(spi_in, told.as_ref());
        }
        self.due.insert((until, spi_in));
        if until <= now {
            self.sweep(now);
        }
        settled.map(|()| hint)
    }

    fn half_ended(&mut self, spi_in: u32, told: Option<&Told>) {
        if let Some(child) = self.all.get_mut(&spi_in) {
            child.outbound.ended(told);
            self.by_outbound.remove(&StateId::outbound(&child.sa));
        }
    }

    /// Does what is due.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some(&(at, spi_in)) = self.due.first().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, spi_in));
            let Some(child) = self.all.get(&spi_in) else {
                continue;
            };
            let done = if child.leaving.is_some_and(|until| until <= now) {
                self.let_go(spi_in)
            } else if child.gives_way.is_some_and(|until| until <= now) {
                self.bring_forward(spi_in)
            } else {
                Ok(())
            };
            if let Err(error) = done {
                tracing::warn!(spi_in = format_args!("{spi_in:08x}"), %error, "the kernel did not do what is due");
            }
        }
    }

    /// Its grace is over.
    fn let_go(&mut self, spi_in: u32) -> Result<(), PlaneError> {
        let Some(child) = self.all.get(&spi_in) else {
            return Ok(());
        };
        let (flows, reqid, id) = (
            child.flows.clone(),
            child.reqid,
            StateId::inbound(&child.sa),
        );
        let removed = match child.inbound.is_there {
            true => self.kernel.remove_state(id),
            false => Ok(()),
        };
        self.spd.receive_no_more(&flows.received, reqid);
        self.forget(spi_in);
        let settled = self.settle();
        removed.map_err(|e| refused("remove a receiving state", e))?;
        settled
    }

    fn forget(&mut self, spi_in: u32) {
        if let Some(child) = self.all.remove(&spi_in) {
            self.kinds.leave(&child.sa);
            self.gates.leave(&child.sa.gate);
            let out = StateId::outbound(&child.sa);
            if self.by_outbound.get(&out) == Some(&spi_in) {
                self.by_outbound.remove(&out);
            }
        }
    }

    pub(super) fn extend(&mut self, spi_in: u32, range: Range<u64>) -> Result<(), PlaneError> {
        let child = self.child(spi_in)?;
        let more = child
            .numbers
            .extend(range.clone(), child.sa.esn)
            .map_err(|_| PlaneError::Reservation(range.clone()))?;
        child.asks = false;
        let is_there = child.outbound.is_there;
        if more == More::Raise && is_there && self.raise(spi_in)? {
            return Ok(());
        }
        // The state is gone or about to go, or the numbers leave a gap: another one begins with what is new.
        self.replace(spi_in, |children| {
            if is_there {
                let id = StateId::outbound(&children.child(spi_in)?.sa);
                let told = children.kernel.end_state(id);
                let told = told.map_err(|e| refused("remove a sending state", e))?;
                children.half_ended(spi_in, told.as_ref());
            }
            children.child(spi_in)?.numbers.restart(&range);
            children.make_outbound(spi_in)
        })
    }

    /// Tells the state of its new limits; whether it is still there to be told.
    fn raise(&mut self, spi_in: u32) -> Result<bool, PlaneError> {
        let child = &self.all[&spi_in];
        let Some(limits) = child.numbers.limits() else {
            return Ok(false);
        };
        let message = self.description(child).outbound(limits)?;
        match self.kernel.update_state(message) {
            Ok(()) => Ok(true),
            // It has counted all that it might.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => Ok(false),
            Err(e) => Err(refused("raise the limits of a state", e)),
        }
    }

    fn description<'a>(&self, child: &'a Child) -> Description<'a> {
        Description {
            sa: &child.sa,
            reqid: child.reqid,
            tag: self.tag,
            nat_port: self.nat_port,
        }
    }

    /// Makes the states that a Child SA should have and has not.
    fn make_states(&mut self, spi_in: u32) -> Result<(), PlaneError> {
        let child = &self.all[&spi_in];
        if child.held {
            return Ok(());
        }
        let message = self.description(child).inbound(child.edge)?;
        let id = StateId::inbound(&child.sa);
        let wish = Wish::inbound(&child.sa);
        wish.add(&mut self.kernel, message)?;
        if let Some(child) = self.all.get_mut(&spi_in) {
            child.inbound.is_there = true;
            child.packets_then = child.inbound.packets;
        }
        let made = self.make_outbound(spi_in);
        if made.is_err() {
            let _ = self.kernel.remove_state(id);
            if let Some(child) = self.all.get_mut(&spi_in) {
                child.inbound.is_there = false;
            }
        }
        made
    }

    fn make_outbound(&mut self, spi_in: u32) -> Result<(), PlaneError> {
        let child = &self.all[&spi_in];
        let Some(limits) = child.numbers.limits() else {
            return Ok(());
        };
        if child.held || child.leaving.is_some() {
            return Ok(());
        }
        let id = StateId::outbound(&child.sa);
        if self.by_outbound.contains_key(&id) {
            // Two peers behind one address that chose the same SPI: the kernel cannot tell them apart.
            let twice = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(refused("make a sending state", twice));
        }
        let message = self.description(child).outbound(limits)?;
        let wish = Wish::outbound(&child.sa);
        wish.add(&mut self.kernel, message)?;
        self.by_outbound.insert(id, spi_in);
        if let Some(child) = self.all.get_mut(&spi_in) {
            child.outbound.is_there = true;
        }
        Ok(())
    }

    /// Ends the states of a Child SA; what is known of them then is all that they did.
    fn end_states(&mut self, spi_in: u32, witness: &Witness) -> Result<(), PlaneError> {
        let child = &self.all[&spi_in];
        let (id_in, id_out) = (StateId::inbound(&child.sa), StateId::outbound(&child.sa));
        let failed = |e| refused("end a state", e);
        if child.outbound.is_there {
            let told = self.kernel.end_state_before(witness, id_out);
            let told = told.map_err(failed)?;
            self.half_ended(spi_in, told.as_ref());
            if let Some(child) = self.all.get_mut(&spi_in) {
                child.numbers.ended(told.as_ref().map(|t| t.last_sent));
                if child.numbers.limits().is_none() {
                    self.need(spi_in);
                }
            }
        }
        if self.all[&spi_in].inbound.is_there {
            let told = self.kernel.end_state_before(witness, id_in);
            let told = told.map_err(failed)?;
            if let Some(child) = self.all.get_mut(&spi_in) {
                child.inbound.ended(told.as_ref());
                child.edge = child.edge.max(told.map_or(0, |t| t.edge));
            }
        }
        Ok(())
    }

    /// The kernel has removed a sending state, because it has counted all that it might. What it told of may be over: another state is there by now.
    pub(super) fn exhausted(&mut self, spi_in: u32, told: &Told) -> Result<(), PlaneError> {
        let Some(child) = self.all.get(&spi_in) else {
            return Ok(());
        };
        let there = self.kernel.state(StateId::outbound(&child.sa));
        let there = there.map_err(|e| refused("look at a sending state", e))?;
        if there.is_some_and(|t| !t.is_embryonic()) {
            return Ok(());
        }
        self.half_ended(spi_in, Some(told));
        let Some(child) = self.all.get_mut(&spi_in) else {
            return Ok(());
        };
        child.numbers.ended(None);
        let flows = child.flows.clone();
        self.need(spi_in);
        self.spd.refresh(&flows.sent);
        self.settle()
    }

    /// Ends the states of all Child SAs with these addresses of ours, until they are let go.
    pub(super) fn hold(&mut self, addresses: &[IpAddr]) {
        let witness = Witness::open();
        self.each_at(addresses, |children, spi_in| {
            children.end_states(spi_in, &witness)?;
            children.all.entry(spi_in).and_modify(|c| c.held = true);
            Ok(())
        });
    }

    /// Gives them states again, unless they are about to go.
    pub(super) fn unhold(&mut self, addresses: &[IpAddr]) {
        self.each_at(addresses, |children, spi_in| {
            let Some(child) = children.all.get_mut(&spi_in).filter(|c| c.held) else {
                return Ok(());
            };
            if child.sa.gate.is_shut() {
                return Ok(());
            }
            child.held = false;
            let flows = child.flows.clone();
            children.make_states(spi_in)?;
            children.spd.refresh(&flows.sent);
            Ok(())
        });
    }

    fn each_at(
        &mut self,
        addresses: &[IpAddr],
        mut work: impl FnMut(&mut Self, u32) -> Result<(), PlaneError>,
    ) {
        let there = |c: &Child| addresses.contains(&c.sa.outer.local.ip());
        let concerned: Vec<u32> = self
            .iter()
            .filter(|(_, c)| there(c))
            .map(|(spi, _)| spi)
            .collect();
        for spi_in in concerned {
            if let Err(error) = work(self, spi_in) {
                tracing::error!(spi_in = format_args!("{spi_in:08x}"), %error, "the kernel did not change a Child SA for a handover");
            }
        }
        if let Err(error) = self.settle() {
            tracing::error!(%error, "the kernel did not change policies for a handover");
        }
    }

    /// Tells the kernel of leases that are there or over, at this time on the boot-time clock.
    pub(super) fn look_at_gates(&mut self, now: Duration) {
        let changed = self.gates.look(now);
        if changed.is_empty() {
            return;
        }
        for gate in changed {
            let children = self.all.values();
            for child in children.filter(|c| Arc::ptr_eq(&c.sa.gate, &gate)) {
                self.spd.refresh(&child.flows.sent);
            }
        }
        if let Err(error) = self.settle() {
            tracing::error!(%error, "the kernel did not hear of a lease");
        }
    }

    /// Ends all.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.kernel.remove_policies()?;
        for (id, _) in self.kernel.states()? {
            // Embryonic ones have no name, and go by themselves.
            if id.spi != 0 {
                self.kernel.remove_state(id)?;
            }
        }
        self.all.clear();
        self.by_outbound.clear();
        Ok(())
    }

    /// When the next thing is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let (at, _) = self.due.first()?;
        Some(at.saturating_duration_since(Instant::now()))
    }
}

const NO_TCP: PlaneError = PlaneError::Unsupported("the kernel's data plane has no ESP in TCP");
