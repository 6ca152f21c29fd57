//! What commands do. Each checks everything before it changes anything.

use crate::{
    command::{Command, Counters, Entry, Outcome, Refusal},
    lease::{Claim, Wish},
    limits::{MAX_CHILDREN, MAX_SAS, MAX_VIPS},
    reservation::Reservation,
    state::State,
};
use evergate_ike::{
    config::{Policy, Pool},
    record::{FollowUp, GatewayId, Phase, Record, SaId},
    sa::CookieSecrets,
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// The records of one [`Command::PutSas`]: the last one of each SA.
pub(crate) type Batch<'a> = BTreeMap<SaId, &'a Arc<Record>>;

/// An SPI of ours that a record has.
#[derive(Clone, Copy)]
pub(crate) struct SpiUse {
    pub(crate) spi: u32,
    /// For a Child SA: whether it has extended sequence numbers. `None` for an offer.
    pub(crate) esn: Option<bool>,
}

/// The SPIs of ours that a record has: of its Child SAs and of what it offers at the moment.
pub(crate) fn spis_of(record: &Record) -> impl Iterator<Item = SpiUse> {
    let children = record.children().iter().map(|c| SpiUse {
        spi: c.spi_in,
        esn: Some(c.suite.esn),
    });
    let asked_for = match &record.phase {
        Phase::Established(e) => &e.follow_ups[..],
        _ => &[],
    };
    let asked_for = asked_for.iter().filter_map(FollowUp::child_spi);
    let offered = record.offered_children().chain(asked_for);
    children.chain(offered.map(|spi| SpiUse { spi, esn: None }))
}

/// The pools that there are, of these names.
fn named<'a>(policy: &'a Policy, names: &[String]) -> Vec<&'a Pool> {
    let found = |name: &String| policy.pools.iter().find(|p| p.name == *name);
    names.iter().filter_map(found).collect()
}

impl State {
    /// Carries out an entry of whatever term. There is one outcome for each of its commands, in their order.
    pub fn apply(&mut self, entry: &Entry) -> Vec<Outcome> {
        self.apply_in_term(entry, None)
    }

    /// Carries out an entry that was logged in a term of Raft.
    pub fn apply_in_term(&mut self, entry: &Entry, term: Option<u64>) -> Vec<Outcome> {
        self.body.clock = self.body.clock.max(entry.at);
        self.body.leases.expire(self.body.clock);
        entry
            .commands
            .iter()
            .map(|c| self.carry_out_in(c, term).unwrap_or_else(Outcome::Refused))
            .collect()
    }

    fn carry_out_in(&mut self, command: &Command, term: Option<u64>) -> Result<Outcome, Refusal> {
        let Command::AssignInTerm {
            term: given,
            gateway,
            member,
            incarnation,
            expected_epoch,
        } = command
        else {
            return self.carry_out(command);
        };
        if term != Some(*given) {
            return Err(Refusal::StaleTerm { given: *given });
        }
        self.assign(*gateway, member, *incarnation, *expected_epoch)
    }

    fn carry_out(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        match command {
            Command::AssignGateway {
                gateway,
                member,
                incarnation,
                expected_epoch,
            } => self.assign(*gateway, member, *incarnation, *expected_epoch),
            // Only in its term.
            Command::AssignInTerm { term, .. } => Err(Refusal::StaleTerm { given: *term }),
            Command::ReleaseGateway { gateway, epoch } => self.release(*gateway, *epoch),
            Command::PutSas { epoch, records } => self.put_sas(*epoch, records),
            Command::Counters {
                gateway,
                epoch,
                counters,
            } => self.count(*gateway, *epoch, counters),
            Command::ReportReceived {
                gateway,
                epoch,
                edges,
            } => self.note_received(*gateway, *epoch, edges),
            Command::ReportCarried {
                gateway,
                epoch,
                carried,
            } => self.note_carried(*gateway, *epoch, carried),
            Command::ReportCarriedTogether {
                gateway,
                epoch,
                carried,
            } => self.note_carried_together(*gateway, *epoch, carried),
            Command::RemoveSas {
                gateway,
                epoch,
                sas,
            } => self.remove_sas(*gateway, *epoch, sas),
            Command::ExtendReservations {
                gateway,
                epoch,
                children,
            } => self.extend(*gateway, *epoch, children),
            Command::LeaseAddresses {
                epoch,
                sa,
                gateway,
                identity,
                pools,
                v4,
                v6,
                takes_over,
            } => {
                let policy = Arc::clone(&self.body.policy);
                let wish = Wish {
                    sa: *sa,
                    identity,
                    pools: named(&policy, pools),
                    names: pools,
                    v4: *v4,
                    v6: *v6,
                    takes_over: *takes_over,
                };
                self.lease(*gateway, *epoch, &wish)
            }
            Command::SetPolicy { expected, policy } => self.set_policy(*expected, policy),
            Command::SetCookieSecrets(secrets) => self.set_cookie_secrets(secrets),
            Command::RegisterMember { .. }
            | Command::RemoveMember { .. }
            | Command::DescribePlane { .. }
            | Command::AnnounceLevel { .. }
            | Command::AnnounceKeys { .. }
            | Command::SetDraining { .. }
            | Command::Invite { .. }
            | Command::Admit { .. }
            | Command::Enrol { .. }
            | Command::EndEnrolment { .. }
            | Command::Dismiss { .. }
            | Command::PlaceMember { .. } => self.change_members(command),
        }
    }

    /// What is about members and not about what they serve.
    fn change_members(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        match command {
            Command::RegisterMember {
                member,
                incarnation,
            } => self.register(member, *incarnation),
            Command::RemoveMember {
                member,
                incarnation,
            } => self.remove_member(member, *incarnation),
            Command::DescribePlane {
                member,
                incarnation,
                abilities,
            } => self.describe(member, *incarnation, *abilities),
            Command::AnnounceLevel {
                member,
                incarnation,
                level,
            } => self.announce_level(member, *incarnation, *level),
            Command::AnnounceKeys {
                member,
                incarnation,
                keys,
            } => self.announce_keys(member, *incarnation, keys),
            Command::SetDraining { member, draining } => self.set_draining(member, *draining),
            Command::Invite { member, enrolment } => self.invite(member, enrolment),
            Command::Admit {
                member,
                digest,
                node,
            } => self.admit(member, digest, *node),
            Command::Enrol { member, enrolment } => self.enrol(member, enrolment),
            Command::EndEnrolment { member, node } => self.end_enrolment(member, *node),
            Command::Dismiss { member, node } => Ok(self.dismiss(member, *node)),
            Command::PlaceMember {
                member,
                incarnation,
                place,
            } => self.put_in_place(member, *incarnation, place),
            // All others are about what members serve.
            _ => Ok(Outcome::Applied),
        }
    }

    fn set_cookie_secrets(&mut self, secrets: &CookieSecrets) -> Result<Outcome, Refusal> {
        self.body.cookie_secrets = Some(secrets.clone());
        Ok(Outcome::Applied)
    }

    fn lease(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        wish: &Wish<'_>,
    ) -> Result<Outcome, Refusal> {
        self.check_epoch(gateway, epoch)?;
        self.check_gateway(gateway, wish.sa)?;
        self.body
            .leases
            .lease(wish, self.body.clock)
            .map(Outcome::Leased)
    }

    fn put_sas(&mut self, epoch: u32, records: &[Arc<Record>]) -> Result<Outcome, Refusal> {
        let Some(first) = records.first() else {
            return Ok(Outcome::Applied);
        };
        let gateway = first.gateway;
        self.check_epoch(gateway, epoch)?;
        let batch = self.check_records(gateway, records)?;
        let spis = self.check_spis(&batch)?;
        let claims: Vec<Claim<'_>> = batch.values().flat_map(|r| claims_of(r)).collect();
        self.body
            .leases
            .check(&claims, &batch.keys().copied().collect())?;
        let displaced = self.check_unique(&batch)?;

        self.move_spis(gateway, epoch, &batch, &spis);
        // First what is held, then what is released, so that an address that moves between records is never free.
        for claim in &claims {
            self.body.leases.hold(claim);
        }
        for (&id, &record) in &batch {
            let before = self.body.sas.insert(id, Arc::clone(record));
            self.peers.replace(before.as_deref(), record);
            let dropped = before
                .iter()
                .flat_map(|b| b.peer_vips())
                .filter(|a| !record.peer_vips().contains(a));
            for address in dropped {
                self.body.leases.release(id, *address);
            }
            if matches!(record.phase, Phase::Closed(_)) {
                self.body.displaced.remove(&id);
                self.body.leases.release_all(id);
            }
        }
        for record in batch.values() {
            self.hand_on_carried(record);
        }
        Ok(self.displace(displaced))
    }

    /// Gateways, revisions and limits. Returns the last record of each SA.
    fn check_records<'a>(
        &self,
        gateway: GatewayId,
        records: &'a [Arc<Record>],
    ) -> Result<Batch<'a>, Refusal> {
        let mut batch = Batch::new();
        for record in records {
            let sa = record.id;
            if record.gateway != gateway {
                return Err(Refusal::WrongGateway { sa, given: gateway });
            }
            self.check_gateway(gateway, sa)?;
            let current = batch
                .get(&sa)
                .copied()
                .or_else(|| self.sa(sa))
                .map_or(0, |r| r.revision);
            if current.checked_add(1) != Some(record.revision) {
                return Err(Refusal::StaleRevision {
                    sa,
                    given: record.revision,
                    current,
                });
            }
            if record.children().len() > MAX_CHILDREN {
                return Err(Refusal::Limit("Child SAs of an IKE SA"));
            }
            if record.peer_vips().len() > MAX_VIPS {
                return Err(Refusal::Limit("virtual addresses of a peer"));
            }
            batch.insert(sa, record);
        }
        let new = batch.keys().filter(|id| self.sa(**id).is_none()).count();
        if new > 0 && self.body.sas.len() + new > MAX_SAS {
            return Err(Refusal::Limit("IKE SAs"));
        }
        Ok(batch)
    }

    /// Refuses an SA that another gateway has.
    fn check_gateway(&self, given: GatewayId, sa: SaId) -> Result<(), Refusal> {
        match self.sa(sa) {
            Some(record) if record.gateway != given => Err(Refusal::WrongGateway { sa, given }),
            _ => Ok(()),
        }
    }

    /// The SPIs that the records of a batch will have: each in one record only, and in none outside the batch.
    fn check_spis(&self, batch: &Batch<'_>) -> Result<BTreeMap<u32, (SaId, SpiUse)>, Refusal> {
        let mut claimed: BTreeMap<u32, (SaId, SpiUse)> = BTreeMap::new();
        for (&id, record) in batch {
            for used in spis_of(record) {
                let elsewhere = self
                    .spi_owner(used.spi)
                    .is_some_and(|owner| !batch.contains_key(&owner));
                // The numbers of a Child SA are counted on; they would not fit an SA with other sequence numbers.
                let unlike = self
                    .body
                    .reservations
                    .get(&used.spi)
                    .is_some_and(|r| used.esn.is_some_and(|e| e != r.esn()));
                let twice = match claimed.get(&used.spi) {
                    Some((other, before)) => {
                        *other != id || (before.esn.is_some() && used.esn.is_some())
                    }
                    None => false,
                };
                if elsewhere || unlike || twice {
                    return Err(Refusal::SpiInUse(used.spi));
                }
                let entry = claimed.entry(used.spi).or_insert((id, used));
                entry.1.esn = entry.1.esn.or(used.esn);
            }
        }
        Ok(claimed)
    }

    /// Makes SPIs and reservations what they are after a batch. Over the batch as a whole, because an IKE rekey moves Child SAs
    /// between records, and they must go on where they are.
    fn move_spis(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        batch: &Batch<'_>,
        spis: &BTreeMap<u32, (SaId, SpiUse)>,
    ) {
        let before: Vec<u32> = batch
            .keys()
            .filter_map(|id| self.body.sas.get(id))
            .flat_map(|r| spis_of(r))
            .map(|u| u.spi)
            .collect();
        for spi in before {
            self.spis.remove(&spi);
            if spis.get(&spi).is_none_or(|(_, used)| used.esn.is_none()) {
                self.body.reservations.remove(&spi);
                self.body.received.remove(&spi);
                self.body.carried.remove(&spi);
            }
        }
        for (&spi, &(id, used)) in spis {
            self.spis.insert(spi, id);
            if let Some(esn) = used.esn {
                self.body
                    .reservations
                    .entry(spi)
                    .or_insert_with(|| Reservation::new(gateway, epoch, esn));
            }
        }
    }

    fn count(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        counters: &[Counters],
    ) -> Result<Outcome, Refusal> {
        self.check_epoch(gateway, epoch)?;
        for counted in counters {
            if let Some(record) = self
                .body
                .sas
                .get_mut(&counted.sa)
                .filter(|r| r.gateway == gateway)
            {
                raise(record, counted);
            }
        }
        Ok(Outcome::Applied)
    }

    fn remove_sas(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        sas: &[SaId],
    ) -> Result<Outcome, Refusal> {
        self.check_epoch(gateway, epoch)?;
        for &sa in sas {
            self.check_gateway(gateway, sa)?;
        }
        for &sa in sas {
            self.body.leases.release_all(sa);
            let Some(record) = self.body.sas.remove(&sa) else {
                continue;
            };
            self.peers.remove(&record);
            self.body.displaced.remove(&sa);
            self.body.carried_together.remove(&sa);
            for used in spis_of(&record) {
                self.spis.remove(&used.spi);
                self.body.reservations.remove(&used.spi);
                self.body.received.remove(&used.spi);
                self.body.carried.remove(&used.spi);
            }
        }
        Ok(Outcome::Applied)
    }

    fn extend(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        children: &[(u32, u64)],
    ) -> Result<Outcome, Refusal> {
        self.check_epoch(gateway, epoch)?;
        let mut added = Vec::new();
        for &(spi, count) in children {
            if let Some(r) = self
                .body
                .reservations
                .get_mut(&spi)
                .filter(|r| r.gateway() == gateway)
            {
                added.push((spi, r.grow(count)));
            }
        }
        Ok(Outcome::Reserved(added))
    }

    fn note_received(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        edges: &[(u32, u64)],
    ) -> Result<Outcome, Refusal> {
        self.check_epoch(gateway, epoch)?;
        for &(spi, edge) in edges {
            let reservation = self.body.reservations.get(&spi);
            if reservation.is_some_and(|r| r.gateway() == gateway) {
                let known = self.body.received.entry(spi).or_insert(0);
                *known = edge.max(*known);
            }
        }
        Ok(Outcome::Applied)
    }

    fn set_policy(&mut self, expected: u64, policy: &Arc<Policy>) -> Result<Outcome, Refusal> {
        let current = self.body.policy_version;
        if expected != current {
            return Err(Refusal::StalePolicy {
                given: expected,
                current,
            });
        }
        self.body.policy_version = current
            .checked_add(1)
            .ok_or(Refusal::Limit("versions of the policy"))?;
        self.body.policy = Arc::clone(policy);
        Ok(Outcome::Applied)
    }
}

/// The addresses that a record has.
fn claims_of(record: &Record) -> impl Iterator<Item = Claim<'_>> {
    let identity = match &record.phase {
        Phase::Established(e) => Some(&e.remote_id),
        _ => None,
    };
    let addresses: &[IpAddr] = record.peer_vips();
    identity.into_iter().flat_map(move |identity| {
        addresses.iter().map(move |&address| Claim {
            sa: record.id,
            identity,
            address,
        })
    })
}

/// Moves Message IDs forward by harmless exchanges. What they say is only believed where the record leaves room for it.
fn raise(record: &mut Arc<Record>, counted: &Counters) {
    if matches!(record.phase, Phase::Closed(_)) {
        return;
    }
    if counted.inbound_next > record.inbound.next {
        Arc::make_mut(record).inbound.skip_to(counted.inbound_next);
    }
    // A request that changes something is finished only by a record that says so.
    if counted.outbound_next > record.outbound.accounted() {
        let outbound = &mut Arc::make_mut(record).outbound;
        outbound.skip_to(counted.outbound_next);
    }
}
