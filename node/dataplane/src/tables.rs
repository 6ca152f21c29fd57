//! From packets to Child SAs.

use crate::{ChildSa, PlaneError, child::Child, userspace::Direction};
use evergate_esp::{Action, Entry, Policies, PolicyId, Sad, Spd, packet::PacketSelectors};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

/// How many Child SAs there can be: several times what one member is to carry.
const MAX_CHILDREN: usize = 1 << 20;

/// From packets to Child SAs. Packets find theirs without a lock.
pub(crate) struct Tables {
    sad: Sad<Child>,
    policies: Arc<Policies<Child>>,
    changing: Mutex<Changing>,
}

/// What only those need who change something.
#[derive(Default)]
struct Changing {
    spd: Spd<Child>,
    /// The policy of each Child SA that sends.
    sending: HashMap<u32, PolicyId>,
    /// Those that only receive any more, and until when.
    leaving: HashMap<u32, Instant>,
    /// The same in the order of time.
    ends: BTreeSet<(Instant, u32)>,
    /// Those that give way to others, and until when.
    behind: BTreeSet<(Instant, u32)>,
    activations: u64,
}

impl Default for Tables {
    fn default() -> Self {
        let changing = Changing::default();
        Self {
            sad: Sad::default(),
            policies: Arc::clone(changing.spd.policies()),
            changing: Mutex::new(changing),
        }
    }
}

impl Tables {
    pub(crate) fn install(&self, sa: &ChildSa, now: Instant) -> Result<(), PlaneError> {
        let child = Arc::new(Child::new(sa)?);
        let mut changing = self.changing();
        if self.sad.get(sa.spi_in).is_some() {
            return Err(PlaneError::SpiInUse(sa.spi_in));
        }
        if self.sad.len() >= MAX_CHILDREN {
            return Err(PlaneError::Limit("Child SAs"));
        }
        self.sad.insert(sa.spi_in, Arc::clone(&child));
        match sa.outbound_active {
            true if changing.goes_behind(&child, now, sa.gives_way) => {}
            true => changing.activate(&child),
            false => {}
        }
        Ok(())
    }

    /// The Child SA that receives with this SPI.
    pub(crate) fn inbound(&self, spi: u32) -> Option<Arc<Child>> {
        self.sad.get(spi)
    }

    /// Has all memory fetched that opening packets with these SPIs takes: see [`Sad::look_ahead`].
    pub(crate) fn look_ahead_in(&self, spis: &[u32]) {
        let (fetch, warm) = ahead(Direction::In);
        self.sad.look_ahead(spis, fetch, warm);
    }

    /// Has all memory fetched that sending these packets takes.
    pub(crate) fn look_ahead_out(&self, packets: &[PacketSelectors]) {
        let (fetch, warm) = ahead(Direction::Out);
        self.policies.look_ahead(packets, fetch, warm);
    }

    /// The Child SA that sends this packet.
    pub(crate) fn outbound(&self, packet: &PacketSelectors) -> Option<Arc<Child>> {
        self.policies.lookup(packet)?.sa
    }

    /// The right edges of all Child SAs that have received anything, by SPI. The many that have not cost little.
    pub(crate) fn replay_edges(&self) -> Vec<(u32, u64)> {
        let mut edges = Vec::new();
        self.sad.for_each(|spi, child| {
            if child.last_inbound.get() != 0 {
                edges.push((spi, child.replay_edge()));
            }
        });
        edges
    }

    pub(crate) fn is_sending(&self, spi_in: u32) -> bool {
        self.changing().is_sending(spi_in)
    }

    pub(crate) fn set_outbound(&self, spi_in: u32, active: bool) -> Result<(), PlaneError> {
        let mut changing = self.changing();
        let child = self.staying_of(&changing, spi_in)?;
        match (active, changing.is_sending(spi_in)) {
            (true, false) => changing.activate(&child),
            (true, true) if child.is_shown_to_be_there() => changing.bring_forward(&child),
            (false, true) => changing.deactivate(&child),
            _ => {}
        }
        Ok(())
    }

    /// A Child SA that is not about to go.
    pub(crate) fn staying(&self, spi_in: u32) -> Result<Arc<Child>, PlaneError> {
        self.staying_of(&self.changing(), spi_in)
    }

    fn staying_of(&self, changing: &Changing, spi_in: u32) -> Result<Arc<Child>, PlaneError> {
        let stays = !changing.leaving.contains_key(&spi_in);
        let child = self.sad.get(spi_in).filter(|_| stays);
        child.ok_or(PlaneError::NoSuchChild(spi_in))
    }

    /// Stops sending at once, receiving at `until`; another call for the same can only bring that forward. Yields the Child SA the
    /// first time.
    pub(crate) fn remove(
        &self,
        spi_in: u32,
        until: Instant,
    ) -> Result<Option<Arc<Child>>, PlaneError> {
        let mut changing = self.changing();
        let child = self.sad.get(spi_in);
        let child = child.ok_or(PlaneError::NoSuchChild(spi_in))?;
        changing.deactivate(&child);
        // In this order: whoever has looked it up and finds no number left looks again, and does not find it.
        child.outbound.revoke();
        let first = changing.leaves(spi_in, until);
        Ok(first.then_some(child))
    }

    /// Whether [`Self::sweep`] has something to do.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let changing = self.changing();
        let first = [changing.ends.first(), changing.behind.first()];
        first.into_iter().flatten().any(|(until, _)| *until <= now)
    }

    /// Forgets those whose grace is over, and lets those send that gave way for long enough.
    pub(crate) fn sweep(&self, now: Instant) {
        let pop = |set: &mut BTreeSet<(Instant, u32)>| {
            let due = set.first().is_some_and(|(until, _)| *until <= now);
            due.then(|| set.pop_first()).flatten()
        };
        let mut changing = self.changing();
        while let Some((_, spi_in)) = pop(&mut changing.ends) {
            changing.leaving.remove(&spi_in);
            self.sad.remove(spi_in);
        }
        while let Some((_, spi_in)) = pop(&mut changing.behind) {
            if let Some(child) = self.sad.get(spi_in) {
                changing.bring_forward(&child);
            }
        }
    }

    /// A Child SA that gave way sends from now on.
    pub(crate) fn bring_forward(&self, child: &Arc<Child>) {
        self.changing().bring_forward(child);
    }

    /// No operation stops half way.
    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ahead(direction: Direction) -> (impl Fn(&Child), impl Fn(&Child)) {
    let fetch = move |child: &Child| child.fetch(direction);
    let warm = move |child: &Child| child.warm(direction);
    (fetch, warm)
}

impl Changing {
    fn is_sending(&self, spi_in: u32) -> bool {
        self.sending.contains_key(&spi_in)
    }

    /// Notes when it goes, not later than was noted before. Yields whether nothing was.
    fn leaves(&mut self, spi_in: u32, until: Instant) -> bool {
        let before = self.leaving.get(&spi_in).copied();
        let until = before.map_or(until, |t| until.min(t));
        if let Some(before) = before {
            self.ends.remove(&(before, spi_in));
        }
        self.leaving.insert(spi_in, until);
        self.ends.insert((until, spi_in));
        before.is_none()
    }

    /// Puts a Child SA behind one that has the same selectors, if there is one: that goes on sending.
    fn goes_behind(&mut self, child: &Arc<Child>, now: Instant, wait: Duration) -> bool {
        let same = self.spd.same(child.inbound.selectors());
        let (Some(id), false) = (same, wait.is_zero()) else {
            return false;
        };
        child.gives_way.store(true, Ordering::Relaxed);
        self.behind
            .insert((now.checked_add(wait).unwrap_or(now), child.spi_in));
        self.sending.insert(child.spi_in, id);
        self.spd.add_behind(id, Arc::clone(child))
    }

    /// A Child SA that gave way sends from now on. It has its new place before it leaves the old one: there are packets all the time.
    fn bring_forward(&mut self, child: &Arc<Child>) {
        let Some(before) = self.sending.get(&child.spi_in).copied() else {
            return;
        };
        child.gives_way.store(false, Ordering::Relaxed);
        self.activate(child);
        self.leave_policy(before, child);
    }

    /// One policy per sending Child SA: among policies with the same selectors the lowest id wins, so ids count down.
    fn activate(&mut self, child: &Arc<Child>) {
        self.activations += 1;
        let id = u64::MAX - self.activations;
        let selectors = Arc::clone(child.inbound.selectors());
        let mut entry = Entry::new(id, Action::Protect, 0, selectors);
        entry.add(Arc::clone(child), true);
        self.spd.insert(entry);
        self.sending.insert(child.spi_in, id);
    }

    fn deactivate(&mut self, child: &Arc<Child>) {
        if let Some(id) = self.sending.remove(&child.spi_in) {
            self.leave_policy(id, child);
        }
    }

    fn leave_policy(&mut self, id: PolicyId, child: &Arc<Child>) {
        let alone = |e: &Entry<Child>| e.sas().all(|(sa, _)| Arc::ptr_eq(sa, child));
        if self.spd.get(id).is_some_and(alone) {
            self.spd.remove(id);
        } else {
            self.spd.remove_sa(id, child);
        }
    }
}

#[cfg(test)]
mod tests;
