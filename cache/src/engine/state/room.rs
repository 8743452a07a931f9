//! The disk budget: which sets fit, what is evicted for them, who gets its room when.

use std::collections::BTreeSet;

use crate::clock::Tick;
use crate::engine::event::Effect;
use crate::engine::state::flight::{Keep, Stage};
use crate::engine::state::{Fate, State};
use crate::engine::view::{DemoteReason, EvictReason, Tier, What};
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, ModelKey};
use crate::plan::expected::Rank;
use crate::store::PartialName;

impl State {
    /// The file system's answer: the budget is the configured share, and never so much that `keep_free` is touched.
    pub(super) fn space(&mut self, total: u64, free: u64, _now: Tick) {
        // Reserved bytes of open files are allocated already: they are not in `free`.
        let open = |flight: &&super::flight::Flight| flight.has_file;
        let allocated: u64 = self.flights.values().filter(open).map(|flight| flight.reserved).sum();
        let ours = self.disk.used() + allocated;
        let spare = free.saturating_sub(self.config.keep_free.of(total));
        self.disk.set_limit(self.config.budget.of(total).min(ours + spare));
    }

    /// Whether the models that a set still misses fit, with everything evictable gone.
    pub(super) fn room_for<'a>(&self, missing: impl Iterator<Item = &'a ModelKey>) -> Result<(), Fault> {
        if self.config.executor.apart {
            // What finds no room passes by.
            return Ok(());
        }
        let mut names = BTreeSet::new();
        let mut needed = 0;
        for model in missing {
            let Some(entry) = self.catalog.get(model) else { continue };
            let Some(first) = entry.sources.first() else { continue };
            let (digest, _) = self.expected(model, entry);
            let name = digest.map_or_else(|| PartialName::of_source(first), PartialName::of_blob);
            let flying = self.flights.values().any(|flight| flight.name == name && !flight.is_ending());
            if names.insert(name) && !flying && !self.partials.contains_key(&name) {
                needed += entry.bytes;
            }
        }
        if needed == 0 {
            return Ok(());
        }
        let waiting = |flight: &&super::flight::Flight| flight.stage == Stage::Waiting;
        let promised: u64 = self.flights.values().filter(waiting).map(|flight| flight.layout.bytes()).sum();
        // What is only guessed gives its room back.
        let (guessed, waiting) = self.guessed_room();
        let promised = promised - waiting;
        let over = self.disk.over();
        let free = self.disk.free();
        let evictable = self.evictable(&names) + guessed;
        if needed + promised + over > free + evictable {
            return Err(Fault::NoRoom { needed, free: free.saturating_sub(promised), evictable });
        }
        Ok(())
    }

    /// Bytes that eviction could give back, those on their way out included.
    fn evictable(&self, but: &BTreeSet<PartialName>) -> u64 {
        let but: u64 = self.partials.iter().filter(|(name, _)| but.contains(name)).map(|(_, (bytes, _))| bytes).sum();
        // What the running prompt uses is nobody's to take.
        self.evictable_if(&|blob| self.blob_rank(*blob).is_none_or(|rank| rank > Rank::RUNNING)) - but
    }

    /// The same, of those stored blobs that `may_go`.
    pub(super) fn evictable_if(&self, may_go: &dyn Fn(&BlobId) -> bool) -> u64 {
        let leased = self.leased();
        let evictable = |id: &BlobId| self.is_evictable(*id, &leased) && may_go(id);
        let blobs: u64 = self
            .blobs
            .iter()
            .filter(|(id, blob)| blob.fate == Fate::Removing && blob.on_disk || evictable(id) || self.can_shed(**id))
            .map(|(_, blob)| blob.bytes)
            .sum();
        let partials: u64 = self.partials.values().map(|(bytes, _)| bytes).sum();
        blobs + partials + self.discarding.values().sum::<u64>()
    }

    pub(super) fn leased(&self) -> BTreeSet<&ModelKey> {
        self.leases.values().flat_map(|lease| &lease.view.models).collect()
    }

    pub(super) fn is_evictable(&self, id: BlobId, leased: &BTreeSet<&ModelKey>) -> bool {
        let Some(blob) = self.blobs.get(&id) else { return false };
        blob.on_disk
            && blob.fate == Fate::Kept
            && blob.holds == 0
            && !blob.models.iter().any(|model| leased.contains(model))
            && !self.vram.ledger.holds(id)
    }

    /// Gives waiting flights their room, in order; evicts what that takes.
    pub(super) fn make_room(&mut self, now: Tick) {
        self.sweep_nameless();
        self.sweep_passing();
        self.shrink(now);
        self.sink_waiting();
        for (_, id) in self.in_turn(|flight| flight.stage == Stage::Waiting) {
            if !self.grant(id, now) {
                // In order, or a large flight would wait for ever behind small ones.
                break;
            }
        }
    }

    /// Tries to give one flight its room. False if it must wait for something that is on its way out.
    fn grant(&mut self, id: FlightId, now: Tick) -> bool {
        let flight = &self.flights[&id];
        let (name, bytes) = (flight.name, flight.layout.bytes());
        let ahead = |(other, flight): (&FlightId, &super::flight::Flight)| {
            *other != id && flight.name == name && (flight.stage != Stage::Waiting || *other < id)
        };
        let taken = self.flights.iter().any(ahead) || self.discarding.contains_key(&name);
        match flight.digest.and_then(|blob| self.blobs.get(&blob).map(|stored| (blob, stored.fate))) {
            Some((blob, Fate::Kept)) => {
                self.arrived_otherwise(id, blob, now);
                return true;
            }
            // The file belongs to somebody who is about to let go of it. Nobody else waits for that.
            Some(_) => return true,
            None if taken => return true,
            None => {}
        }
        if let Some((held, _)) = self.partials.get(&name).copied() {
            self.partials.remove(&name);
            if held == bytes {
                self.disk.resume(bytes);
                self.granted(id, bytes, true);
            } else {
                self.discarding.insert(name, held);
                self.out.push(Effect::Discard(name));
            }
            return true;
        }
        let apart = self.config.executor.apart;
        if apart && self.plan.places_late() {
            self.granted_passing(id);
            return true;
        }
        if self.disk.reserve(bytes) {
            self.granted(id, bytes, false);
            return true;
        }
        let leaving = self.leaving();
        let short = (bytes + self.disk.over()).saturating_sub(self.disk.free());
        if short <= leaving {
            return false;
        }
        if self.is_guess(&self.flights[&id]) {
            // Room was made for it, and somebody took it.
            let by = "it was guessed, and somebody took the room for it".to_owned();
            self.end_flight(id, &Fault::Cancelled { by }, Keep::Pieces, now);
            return true;
        }
        let flight = &self.flights[&id];
        if apart && short > self.evictable(&BTreeSet::new()) {
            self.granted_passing(id);
            return true;
        }
        let wanted_by = flight.models.keys().next().cloned();
        let policy = self.plan.name().to_owned();
        let reason =
            |_: &Self| wanted_by.clone().map(|wanted_by| EvictReason::Room { wanted_by, policy: policy.clone() });
        let spared = self.spared_by(flight);
        let found = self.clear(short - leaving, Some(spared), &reason, now);
        if leaving + found >= short {
            return false;
        }
        if leaving + found + self.in_flight() >= short {
            // Flights that end badly give their room back.
            return false;
        }
        if self.stop_guesses(now) {
            return false;
        }
        let fault = Fault::NoRoom { needed: bytes, free: self.disk.free(), evictable: found };
        self.end_flight(id, &fault, Keep::Pieces, now);
        true
    }

    fn granted(&mut self, id: FlightId, bytes: u64, has_file: bool) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.reserved = bytes;
            flight.has_file = has_file;
            flight.stage = Stage::Granted;
        }
    }

    /// Bytes that are being deleted.
    pub(super) fn leaving(&self) -> u64 {
        let going = self.passing.departing.iter().filter_map(|blob| self.blobs.get(blob));
        let removing: u64 = going.filter(|blob| blob.on_disk).map(|blob| blob.bytes).sum();
        removing + self.discarding.values().sum::<u64>()
    }

    /// Bytes that ending flights will give back.
    fn in_flight(&self) -> u64 {
        self.flights.values().filter(|flight| flight.is_ending()).map(|flight| flight.reserved).sum()
    }

    /// Starts to delete at least `bytes`: unfinished blobs that nobody wants first, then what the policy chooses.
    /// Returns the bytes that will come back.
    /// What is expected to be used goes last, and only what is farther than `spared`.
    fn clear(
        &mut self,
        bytes: u64,
        spared: Option<Rank>,
        reason: &dyn Fn(&Self) -> Option<EvictReason>,
        now: Tick,
    ) -> u64 {
        let wanted: BTreeSet<PartialName> = self.flights.values().map(|flight| flight.name).collect();
        let mut oldest: Vec<(Tick, PartialName, u64)> = self
            .partials
            .iter()
            .filter(|(name, _)| !wanted.contains(name))
            .map(|(name, (bytes, touched))| (*touched, *name, *bytes))
            .collect();
        oldest.sort_unstable();
        let mut found = 0;
        for (_, name, size) in oldest {
            if found >= bytes {
                return found;
            }
            self.partials.remove(&name);
            self.discarding.insert(name, size);
            self.out.push(Effect::Discard(name));
            found += size;
        }
        for blob in self.disk_victims(bytes.saturating_sub(found), spared, now) {
            let Some(stored) = self.blobs.get(&blob) else { continue };
            found += stored.bytes;
            if self.can_shed(blob) {
                self.shed(blob);
                continue;
            }
            if let Some(reason) = reason(self) {
                self.record_evicted(blob, &reason);
            }
            self.start_removal(blob);
        }
        found
    }

    /// Writes down that a blob leaves the disk under all its names; its bytes count once.
    pub(super) fn record_evicted(&mut self, blob: BlobId, reason: &EvictReason) {
        self.decided_to_evict(blob, reason);
        let Some(stored) = self.blobs.get(&blob) else { return };
        let (mut bytes, last_used) = (stored.bytes, stored.last_used);
        for model in stored.models.clone() {
            let reason = reason.clone();
            self.out.push(Effect::Record(What::Evicted { model, blob, bytes, reason, last_used }));
            bytes = 0;
        }
    }

    /// What the policy would evict so that at least `bytes` come back, in order.
    /// What is expected to be used comes last, and of that only what is farther than `spared`.
    pub(super) fn disk_victims(&self, bytes: u64, spared: Option<Rank>, now: Tick) -> Vec<BlobId> {
        let leased = self.leased();
        let evictable = |blob: BlobId| {
            let may_go = self.is_evictable(blob, &leased) || self.can_shed(blob);
            may_go.then(|| self.blobs.get(&blob).map_or(0, |blob| blob.bytes))
        };
        let unexpected = |blob: BlobId| evictable(blob).filter(|_| self.blob_rank(blob).is_none());
        let mut victims = self.plan.victims(Tier::Nvme, bytes, &unexpected, now);
        let chosen: u64 = victims.iter().filter_map(|blob| unexpected(*blob)).sum();
        if chosen < bytes {
            victims.extend(self.farthest(bytes - chosen, spared, &evictable));
        }
        victims
    }

    /// The limit fell below what is held: what the policy chooses goes.
    fn shrink(&mut self, now: Tick) {
        let over = self.disk.over();
        // Before the file system was asked, nobody knows what is too much.
        if over == 0 || self.disk.limit() == 0 {
            return;
        }
        let leaving = self.leaving();
        if over > leaving {
            self.clear(over - leaving, None, &|_| Some(EvictReason::Shrunk { over }), now);
        }
    }

    pub(super) fn start_removal(&mut self, blob: BlobId) {
        if let Some(stored) = self.blobs.get_mut(&blob) {
            stored.fate = Fate::Removing;
            self.passing.departing.insert(blob);
            // Pages that are held would keep the bytes on the disk.
            self.start_unlock(blob, DemoteReason::Removed);
            self.out.push(Effect::Remove(blob));
        }
    }

    pub(super) fn removed(&mut self, blob: BlobId, result: Result<(), Fault>, _now: Tick) {
        self.passing.departing.remove(&blob);
        match result {
            Ok(()) => {
                if let Some(stored) = self.forget(blob).filter(|stored| stored.on_disk) {
                    self.disk.give_back(stored.bytes);
                }
            }
            Err(fault) => {
                tracing::warn!(%blob, %fault, "a blob could not be removed");
                self.passing.check(blob);
                if let Some(stored) = self.blobs.get_mut(&blob) {
                    stored.fate = Fate::Kept;
                }
            }
        }
    }
}
