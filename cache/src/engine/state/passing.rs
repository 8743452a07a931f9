//! Blobs that the disk does not have: RAM alone holds them, or they pass by whoever reads them. Only executors that say so have any.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::clock::Tick;
use crate::engine::event::Effect;
use crate::engine::state::memory::Stage;
use crate::engine::state::{Blob, Fate, State};
use crate::engine::view::{DemoteReason, Trust};
use crate::fault::Fault;
use crate::ids::{BlobId, EnsureId, FlightId, Sha256Digest};

/// What is between the tiers.
#[derive(Debug, Default)]
pub(crate) struct Passing {
    /// Blobs that may be nowhere by now: looked at once nobody holds them.
    unsure: BTreeSet<BlobId>,
    /// Blobs that wait for room on the disk, in order.
    pub(super) waiting: VecDeque<BlobId>,
    /// Blobs that leave RAM once the disk has them.
    pub(super) leaving_ram: BTreeSet<BlobId>,
    /// Blobs whose bytes are on their way off the disk.
    pub(super) departing: BTreeSet<BlobId>,
    /// Callers that were told that all is ready and read it now, with what they hold.
    pub(super) readers: BTreeMap<EnsureId, Vec<BlobId>>,
}

impl Passing {
    /// A blob left a tier: it may be in none now.
    pub(super) fn check(&mut self, blob: BlobId) {
        self.unsure.insert(blob);
    }
}

impl State {
    /// A flight whose bytes need no room on the disk.
    pub(super) fn granted_passing(&mut self, id: FlightId) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.passes = true;
            flight.reserved = 0;
            flight.stage = super::flight::Stage::Granted;
        }
    }

    /// A blob is here, and in no tier.
    pub(super) fn insert_passing(
        &mut self,
        blob: BlobId,
        bytes: u64,
        trust: Trust,
        sha256: Option<Sha256Digest>,
        now: Tick,
    ) {
        self.add_blob(blob, (bytes, trust, sha256), false, now);
        self.passing.check(blob);
    }

    /// Whether a flight's bytes go past the disk.
    #[must_use]
    pub fn passes(&self, id: FlightId) -> bool {
        self.flights.get(&id).is_some_and(|flight| flight.passes)
    }

    /// What is in no tier, and nobody's, is let go.
    pub(super) fn sweep_passing(&mut self) {
        for id in std::mem::take(&mut self.passing.unsure) {
            let Some(blob) = self.blobs.get(&id).filter(|blob| !blob.on_disk) else { continue };
            if self.memory.held.contains_key(&id) || blob.fate == Fate::Removing {
                continue;
            }
            let placed = self.memory.queue.contains(&id) || self.passing.waiting.contains(&id);
            let leased = blob.models.iter().any(|model| self.is_leased(model));
            let used = blob.holds > 0 || self.vram.ledger.holds(id);
            if placed || leased || used || blob.fate != Fate::Kept {
                self.passing.unsure.insert(id);
            } else {
                self.start_removal(id);
            }
        }
    }

    /// Whether the disk can give up its copy of a blob because RAM keeps it.
    pub(super) fn can_shed(&self, id: BlobId) -> bool {
        let kept = |blob: &Blob| blob.on_disk && blob.fate == Fate::Kept;
        self.config.executor.apart && self.memory.is_locked(id) && self.blobs.get(&id).is_some_and(kept)
    }

    pub(super) fn shed(&mut self, id: BlobId) {
        if let Some(blob) = self.blobs.get_mut(&id) {
            blob.fate = Fate::Shedding;
            self.passing.departing.insert(id);
            self.out.push(Effect::Shed(id));
        }
    }

    pub(super) fn shed_done(&mut self, id: BlobId, result: Result<(), Fault>) {
        self.passing.departing.remove(&id);
        let Some(blob) = self.blobs.get_mut(&id).filter(|blob| blob.fate == Fate::Shedding) else { return };
        blob.fate = Fate::Kept;
        match result {
            Ok(()) => {
                blob.on_disk = false;
                let bytes = blob.bytes;
                self.disk.give_back(bytes);
                self.plan.removed(crate::engine::view::Tier::Nvme, id);
                self.passing.check(id);
            }
            Err(fault) => tracing::warn!(blob = %id, %fault, "the disk could not give up its copy"),
        }
    }

    /// A blob shall be on the disk; if it is in RAM, it may leave that afterwards.
    pub(super) fn sink_later(&mut self, id: BlobId, leaves_ram: bool) {
        if leaves_ram {
            self.passing.leaving_ram.insert(id);
        }
        if !self.passing.waiting.contains(&id) {
            self.passing.waiting.push_back(id);
        }
    }

    /// Writes to the disk what waits for it, in order, as room comes free.
    pub(super) fn sink_waiting(&mut self) {
        while let Some(id) = self.passing.waiting.front().copied() {
            let waits = self.blobs.get(&id).filter(|blob| !blob.on_disk && blob.fate == Fate::Kept);
            let Some(bytes) = waits.map(|blob| blob.bytes) else {
                self.passing.waiting.pop_front();
                self.passing.leaving_ram.remove(&id);
                continue;
            };
            if self.disk.reserve(bytes) {
                self.passing.waiting.pop_front();
                if let Some(blob) = self.blobs.get_mut(&id) {
                    blob.fate = Fate::Sinking;
                }
                self.out.push(Effect::Sink(id));
            } else if self.leaving() > 0 {
                return;
            } else {
                self.passing.waiting.pop_front();
                self.lose_if_leaving(id);
            }
        }
    }

    /// There is no room on the disk after all: what was to leave RAM for it goes.
    fn lose_if_leaving(&mut self, id: BlobId) {
        self.passing.check(id);
        if self.passing.leaving_ram.remove(&id) {
            self.start_unlock(id, DemoteReason::Removed);
        }
    }

    pub(super) fn sunk(&mut self, id: BlobId, result: Result<(), Fault>, now: Tick) {
        let Some(blob) = self.blobs.get_mut(&id).filter(|blob| blob.fate == Fate::Sinking) else { return };
        blob.fate = Fate::Kept;
        let bytes = blob.bytes;
        match result {
            Ok(()) => {
                blob.on_disk = true;
                self.disk.settle(bytes);
                self.plan.inserted(crate::engine::view::Tier::Nvme, id, bytes, now);
                if self.passing.leaving_ram.remove(&id) {
                    let policy = self.plan.name().to_owned();
                    let model = self.blobs.get(&id).and_then(|blob| blob.models.first().cloned());
                    let reason =
                        model.map_or(DemoteReason::Removed, |wanted_by| DemoteReason::Room { wanted_by, policy });
                    self.start_unlock(id, reason);
                }
            }
            Err(fault) => {
                tracing::warn!(blob = %id, %fault, "it could not be written to the disk");
                self.disk.unreserve(bytes);
                self.lose_if_leaving(id);
            }
        }
    }

    /// A caller was told that all is ready: it holds its models until it leaves.
    pub(super) fn reader_stays(&mut self, id: EnsureId) {
        let Some(ensure) = self.ensures.get(&id) else { return };
        let held: Vec<BlobId> = ensure.wants.iter().filter_map(|want| want.hold).collect();
        for blob in &held {
            self.hold(*blob);
        }
        self.passing.readers.insert(id, held);
    }

    /// A reader is done: what it read is in hand, and finds its place now.
    pub(super) fn reader_leaves(&mut self, id: EnsureId, now: Tick) {
        let Some(held) = self.passing.readers.remove(&id) else { return };
        self.let_go += 1;
        for id in &held {
            if let Some(blob) = self.blobs.get_mut(id) {
                blob.holds -= 1;
            }
        }
        if self.plan.places_late() {
            for id in held {
                self.place(id, true, now);
            }
        }
    }

    /// A blob's file is gone under those who read it: nothing of it is left to hold.
    pub(super) fn readers_lose(&mut self, id: BlobId) {
        let mut lost = 0;
        for held in self.passing.readers.values_mut() {
            let before = held.len();
            held.retain(|blob| *blob != id);
            lost += (before - held.len()) as u32;
        }
        if let Some(blob) = self.blobs.get_mut(&id) {
            blob.holds -= lost;
        }
    }

    /// Bytes that leave RAM once the disk has them.
    pub(super) fn leaving_ram(&self) -> u64 {
        let held = self.passing.leaving_ram.iter().filter_map(|blob| self.memory.held.get(blob));
        held.filter(|held| held.stage != Stage::Unlocking).map(|held| held.bytes).sum()
    }

    /// Whether a blob in RAM may leave it for another one.
    pub(super) fn may_leave_ram(&self, id: BlobId) -> Option<u64> {
        let held = self.memory.held.get(&id).filter(|held| held.stage == Stage::Locked)?;
        let blob = self.blobs.get(&id).filter(|blob| blob.fate == Fate::Kept && blob.holds == 0)?;
        let free = !self.passing.waiting.contains(&id) && self.ram_holder(id).is_none();
        let leased = blob.models.iter().any(|model| self.is_leased(model)) || self.vram.ledger.holds(id);
        (free && (blob.on_disk || !leased)).then_some(held.bytes)
    }

    fn is_leased(&self, model: &crate::ids::ModelKey) -> bool {
        self.leases.values().any(|lease| lease.view.models.contains(model))
    }
}
