//! The RAM tier: which stored blobs are held in RAM, who asked for it, what goes first when there is too little.
//!
//! RAM holds copies of what is on the disk, never anything else: a blob that leaves the disk leaves RAM first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::budget::Budget;
use crate::clock::Tick;
use crate::engine::event::Effect;
use crate::engine::state::ensure::Step;
use crate::engine::state::{Fate, State};
use crate::engine::view::{DemoteReason, LeaseView, MoveReport, RamHold, Tier, What};
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, ModelKey};

/// The RAM tier's books.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) budget: Budget,
    pub(crate) held: BTreeMap<BlobId, Held>,
    /// Blobs that shall be promoted though no caller waits for it, in order.
    pub(crate) queue: VecDeque<BlobId>,
    /// Blobs that went because the node was short of memory: they come back when there is room, and push nobody out.
    regrow: VecDeque<BlobId>,
    /// The set that a restart locks again, while it does, the most recently used first.
    relocking: Vec<BlobId>,
    /// Bytes that may come back now.
    growth: u64,
    /// The blob whose pages have just landed: to lock it costs no reading.
    pub(super) landed: Option<BlobId>,
    /// Nothing new is promoted while the node is short of memory.
    pub(crate) paused: bool,
    /// Blobs that were locked because a prompt was expected to read them, and that nobody asked for.
    pub(super) placed: BTreeSet<BlobId>,
    /// Whether the set that a restart locks again is another one since it was last written down, and which that was.
    changed: bool,
    noted: Vec<BlobId>,
}

/// One blob in RAM, or on its way there or away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) stage: Stage,
    since: Tick,
    /// All bytes that were being locked when this began, its own included; `None` if its pages landed and need no reading.
    beside: Option<u64>,
}

/// Where a blob is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its pages are being read and locked.
    Locking,
    /// Its pages are held.
    Locked,
    /// Its pages are being given back.
    Unlocking,
}

impl Memory {
    /// An empty tier that may hold nothing until the node's limits are known.
    pub(crate) fn new() -> Self {
        Self {
            budget: Budget::new(0),
            held: BTreeMap::new(),
            queue: VecDeque::new(),
            regrow: VecDeque::new(),
            relocking: Vec::new(),
            growth: 0,
            landed: None,
            paused: false,
            placed: BTreeSet::new(),
            changed: false,
            noted: Vec::new(),
        }
    }

    pub(crate) fn is_locked(&self, blob: BlobId) -> bool {
        self.held.get(&blob).is_some_and(|held| held.stage == Stage::Locked)
    }

    pub(crate) fn is_locking(&self, blob: BlobId) -> bool {
        self.held.get(&blob).is_some_and(|held| held.stage == Stage::Locking)
    }

    /// Bytes on their way in.
    pub(crate) fn locking(&self) -> u64 {
        self.held.values().filter(|held| held.stage == Stage::Locking).map(|held| held.bytes).sum()
    }

    /// Bytes on their way out.
    pub(crate) fn leaving(&self) -> u64 {
        self.held.values().filter(|held| held.stage == Stage::Unlocking).map(|held| held.bytes).sum()
    }
}

impl State {
    /// Promotes models that are on the disk, in order. Those that are not there, or are too large, are reported.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`] for an empty list.
    pub fn promote(&mut self, models: &[ModelKey], now: Tick) -> (Result<MoveReport, Fault>, Vec<Effect>) {
        let mut report = MoveReport::default();
        if models.is_empty() {
            return (Err(nothing_named()), Vec::new());
        }
        for model in models {
            match self.stored(model) {
                Some((_, bytes)) if bytes > self.memory.budget.limit() => {
                    let free = self.memory.budget.free();
                    let fault = Fault::NoMemory { needed: bytes, free, evictable: self.demotable() };
                    report.kept.push((model.clone(), fault));
                }
                Some((blob, _)) => {
                    self.queue(blob, now);
                    report.moved.push(model.clone());
                }
                None => {
                    let fault = Fault::unknown_model(model, "it is not on this node; ensure it first");
                    report.kept.push((model.clone(), fault));
                }
            }
        }
        self.settle(now);
        (Ok(report), std::mem::take(&mut self.out))
    }

    fn queue(&mut self, blob: BlobId, now: Tick) {
        if !self.memory.held.contains_key(&blob) && !self.memory.queue.contains(&blob) {
            self.memory.queue.push_back(blob);
        }
        self.plan.used(Tier::Ram, blob, now);
    }

    /// Demotes models: their pages are given back, they stay on the disk. Held ones stay and are reported.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`] for an empty list.
    pub fn demote(&mut self, models: &[ModelKey], by: &str, now: Tick) -> (Result<MoveReport, Fault>, Vec<Effect>) {
        let mut report = MoveReport::default();
        if models.is_empty() {
            return (Err(nothing_named()), Vec::new());
        }
        let models: BTreeSet<&ModelKey> = models.iter().collect();
        for model in models {
            let held = self.links.get(model).map(|link| link.blob).filter(|blob| self.memory.held.contains_key(blob));
            let Some(blob) = held else {
                report.kept.push((model.clone(), Fault::unknown_model(model, "it is not in RAM")));
                continue;
            };
            match self.ram_holder(blob) {
                Some(held_by) => report.kept.push((model.clone(), Fault::Held { what: model.to_string(), held_by })),
                None => {
                    self.start_unlock(blob, DemoteReason::Asked { by: by.to_owned() });
                    report.moved.push(model.clone());
                }
            }
        }
        self.settle(now);
        (Ok(report), std::mem::take(&mut self.out))
    }

    /// Promotes what a lease holds in RAM.
    pub(super) fn queue_lease(&mut self, lease: &LeaseView, now: Tick) {
        if lease.ram == RamHold::None {
            return;
        }
        for model in &lease.models {
            if let Some((blob, _)) = self.stored(model) {
                self.queue(blob, now);
            }
        }
    }

    /// Takes up the set of before a restart, in order, as far as it is still stored and there is room: the most recently used do
    /// not go again for the sake of others.
    pub fn relock(&mut self, blobs: &[BlobId], now: Tick) -> Vec<Effect> {
        let mut room = self.memory.budget.free();
        for blob in blobs {
            let Some(bytes) = self.blobs.get(blob).map(|stored| stored.bytes).filter(|bytes| *bytes <= room) else {
                continue;
            };
            room -= bytes;
            self.memory.relocking.push(*blob);
        }
        self.memory.queue = self.memory.relocking.iter().copied().collect();
        self.settle(now);
        std::mem::take(&mut self.out)
    }

    /// Bytes of RAM that are being given back.
    #[must_use]
    pub fn ram_leaving(&self) -> u64 {
        self.memory.leaving()
    }

    /// Whether all models of a set fit into RAM together, with everything demotable gone.
    pub(super) fn ram_for(&self, needed: u64, wanted: u64) -> Result<(), Fault> {
        let limit = self.memory.budget.limit();
        if wanted <= limit && needed <= self.memory.budget.free() + self.demotable() {
            return Ok(());
        }
        Err(Fault::NoMemory { needed: wanted, free: self.memory.budget.free(), evictable: self.demotable() })
    }

    /// Starts to lock what is wanted, in order, as far as there is room; demotes what that takes.
    pub(super) fn fill_memory(&mut self, now: Tick) {
        self.take_up(now);
        if std::mem::take(&mut self.memory.changed) {
            self.note_resident();
        }
    }

    fn take_up(&mut self, now: Tick) {
        self.shrink_memory(now);
        if self.memory.paused {
            return;
        }
        for blob in self.wanted_now() {
            if !self.lock(blob, true, now) {
                return;
            }
        }
        while let Some(blob) = self.memory.queue.front().copied() {
            if !self.lock(blob, false, now) {
                return;
            }
            self.memory.queue.pop_front();
        }
        // They were taken up the last used first; the policy must remember the opposite.
        for blob in std::mem::take(&mut self.memory.relocking).into_iter().rev() {
            self.plan.used(Tier::Ram, blob, now);
        }
        self.place_expected(now);
        self.regrow(now);
    }

    /// Lets come back what went for want of memory, the last to go first, as far as there is room to spare.
    fn regrow(&mut self, now: Tick) {
        // What is whole in VRAM waits until it is unloaded: its worker does not read the pages.
        while let Some(at) = self.memory.regrow.iter().rposition(|blob| !self.vram.ledger.is_copied(*blob)) {
            let blob = self.memory.regrow[at];
            let Some(bytes) = self.blobs.get(&blob).filter(|blob| blob.fate == Fate::Kept).map(|blob| blob.bytes)
            else {
                self.memory.regrow.remove(at);
                continue;
            };
            if bytes > self.memory.growth.min(self.memory.budget.free()) || self.memory.held.contains_key(&blob) {
                return;
            }
            self.memory.growth -= bytes;
            self.memory.regrow.remove(at);
            self.lock(blob, false, now);
        }
    }

    /// Whether something waits to come back, or for the node to be calm again.
    #[must_use]
    pub fn ram_wants_back(&self) -> bool {
        self.memory.paused || !self.memory.regrow.is_empty()
    }

    /// Starts to lock one blob. False if it must wait for pages on their way out, or for memory.
    pub(super) fn lock(&mut self, blob: BlobId, demanded: bool, now: Tick) -> bool {
        let stays = |stored: &&super::Blob| matches!(stored.fate, Fate::Kept | Fate::Shedding);
        let Some(stored) = self.blobs.get(&blob).filter(stays) else { return true };
        let bytes = stored.bytes;
        let wanted_by = stored.models.first().cloned();
        match self.memory.held.get(&blob).map(|held| held.stage) {
            Some(Stage::Locking | Stage::Locked) => return true,
            Some(Stage::Unlocking) => return !demanded,
            None => {}
        }
        if self.memory.budget.reserve(bytes) {
            let beside = (self.memory.landed != Some(blob)).then(|| bytes + self.memory.locking());
            self.memory.held.insert(blob, Held { bytes, stage: Stage::Locking, since: now, beside });
            self.plan.inserted(Tier::Ram, blob, bytes, now);
            self.out.push(Effect::Lock { blob, bytes });
            self.memory.changed = true;
            self.decided_to_promote(blob, demanded);
            return true;
        }
        let short = (bytes + self.memory.budget.over()).saturating_sub(self.memory.budget.free());
        let leaving = self.memory.leaving() + self.leaving_ram();
        if short > leaving {
            let policy = self.plan.name().to_owned();
            let reason = wanted_by
                .map_or(DemoteReason::Shrunk { over: short }, |wanted_by| DemoteReason::Room { wanted_by, policy });
            let found = self.demote_coldest(short - leaving, &reason, now);
            if leaving + found < short {
                let fault = Fault::NoMemory { needed: bytes, free: self.memory.budget.free(), evictable: found };
                self.each_want(|want| want.step == Step::Locking(blob), &Step::Failed(fault));
                self.drop_holds(blob);
                self.let_go += 1;
                return true;
            }
        }
        false
    }

    /// An unfinished blob that a caller wants in RAM keeps its pages as they land, if there is room now. If there is not, it is
    /// locked once it is whole.
    pub(super) fn start_landing(&mut self, id: FlightId, now: Tick) {
        let wanted = self.ensures.values().any(|ensure| {
            ensure.request.target == Tier::Ram && ensure.wants.iter().any(|want| want.step == Step::Flying(id))
        });
        let Some(flight) = self.flights.get(&id).filter(|flight| wanted && flight.landing == 0) else { return };
        let bytes = flight.layout.bytes();
        let wanted_by = flight.models.keys().next().cloned();
        if self.memory.paused || bytes == 0 {
            return;
        }
        if !self.memory.budget.reserve(bytes) {
            let short = (bytes + self.memory.budget.over()).saturating_sub(self.memory.budget.free());
            let policy = self.plan.name().to_owned();
            if let Some(wanted_by) = wanted_by.filter(|_| bytes <= self.memory.budget.limit()) {
                let leaving = self.memory.leaving();
                self.demote_coldest(short.saturating_sub(leaving), &DemoteReason::Room { wanted_by, policy }, now);
            }
            return;
        }
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.landing = bytes;
        }
        self.out.push(Effect::Land(id));
    }

    /// A flight is over: what was promised to its pages is free for its blob, or for others.
    pub(super) fn end_landing(&mut self, flight: &mut super::flight::Flight) {
        self.memory.budget.unreserve(std::mem::take(&mut flight.landing));
    }

    pub(super) fn start_unlock(&mut self, blob: BlobId, reason: DemoteReason) {
        self.memory.queue.retain(|queued| *queued != blob);
        self.memory.regrow.retain(|queued| *queued != blob);
        self.memory.placed.remove(&blob);
        if matches!(reason, DemoteReason::Pressure { .. } | DemoteReason::Shrunk { .. }) {
            self.memory.regrow.push_back(blob);
        }
        if self.memory.held.get(&blob).is_some_and(|held| held.stage != Stage::Unlocking) {
            self.decided_to_demote(blob, &reason);
        }
        let Some(held) = self.memory.held.get_mut(&blob).filter(|held| held.stage != Stage::Unlocking) else { return };
        let was_locked = held.stage == Stage::Locked;
        if !was_locked {
            // Its promise becomes bytes held: they are given back when the pages are.
            self.memory.budget.settle(held.bytes);
        }
        held.stage = Stage::Unlocking;
        let bytes = held.bytes;
        self.plan.removed(Tier::Ram, blob);
        self.out.push(Effect::Unlock(blob));
        let models = self.blobs.get(&blob).map(|stored| stored.models.iter().cloned().collect()).unwrap_or_default();
        self.out.push(Effect::Record(What::Demoted { models, blob, bytes, reason }));
        self.memory.changed = true;
    }

    pub(super) fn locked(&mut self, blob: BlobId, found: u64, result: Result<(), Fault>, now: Tick) {
        let Some(held) = self.memory.held.get_mut(&blob).filter(|held| held.stage == Stage::Locking) else { return };
        match result {
            Ok(()) => {
                held.stage = Stage::Locked;
                let (bytes, elapsed, beside) = (held.bytes, now.since(held.since), held.beside);
                let rates = Arc::make_mut(&mut self.rates);
                // What was in the page cache costs next to nothing; the rest is read. Whichever is more says what this was.
                match beside {
                    Some(beside) if found < bytes / 2 => rates.lock.saw(beside - found, elapsed),
                    _ => rates.settle.saw(bytes, elapsed),
                }
                self.memory.budget.settle(bytes);
                self.each_want(|want| want.step == Step::Locking(blob), &Step::Ready(blob));
                let models =
                    self.blobs.get(&blob).map(|stored| stored.models.iter().cloned().collect()).unwrap_or_default();
                let elapsed_ms = elapsed.as_millis() as u64;
                self.out.push(Effect::Record(What::Promoted { models, blob, bytes, elapsed_ms }));
            }
            Err(fault) => {
                let bytes = held.bytes;
                self.memory.held.remove(&blob);
                self.plan.removed(Tier::Ram, blob);
                self.memory.budget.unreserve(bytes);
                self.passing.check(blob);
                self.each_want(|want| want.step == Step::Locking(blob), &Step::Failed(fault));
                self.drop_holds(blob);
                self.memory.changed = true;
            }
        }
    }

    pub(super) fn unlocked(&mut self, blob: BlobId) {
        if let Some(held) = self.memory.held.remove(&blob) {
            debug_assert_eq!(held.stage, Stage::Unlocking, "only what was told to go is gone");
            self.memory.budget.give_back(held.bytes);
            self.passing.check(blob);
        }
    }

    pub(super) fn ram_limit(&mut self, bytes: u64) {
        self.memory.budget.set_limit(bytes);
    }

    /// The limit fell below what is held: the coldest go.
    fn shrink_memory(&mut self, now: Tick) {
        let over = self.memory.budget.over();
        let leaving = self.memory.leaving();
        if over > leaving {
            self.demote_coldest(over - leaving, &DemoteReason::Shrunk { over }, now);
        }
    }

    /// The node is short of memory: the coldest go at once, wanted or not; nothing new comes.
    pub(super) fn pressure(&mut self, release: u64, source: &str, now: Tick) {
        self.memory.paused = true;
        self.memory.growth = 0;
        let reason = DemoteReason::Pressure { source: source.to_owned() };
        self.demote_coldest(release, &reason, now);
    }

    pub(super) fn pressure_over(&mut self, growth: u64) {
        self.memory.paused = false;
        self.memory.growth = growth;
    }

    /// The set that a restart locks again, the most recently used first. Written down as soon as it begins to be locked, so that the
    /// disk has it by the time the pages are there; and what is still on its way is part of it, because a kill while a restart
    /// locks its set again must not lose the rest.
    fn note_resident(&mut self) {
        let staying = self.memory.held.iter().filter(|(_, held)| held.stage != Stage::Unlocking);
        let mut set: Vec<BlobId> = staying.map(|(blob, _)| *blob).collect();
        set.sort_by_key(|blob| std::cmp::Reverse(self.blobs.get(blob).map(|stored| stored.last_used)));
        let queued = self.memory.queue.iter().filter(|blob| !self.memory.held.contains_key(blob));
        set.extend(queued);
        if set != self.memory.noted {
            self.memory.noted.clone_from(&set);
            self.out.push(Effect::NoteResident(set));
        }
    }

    /// A blob in RAM was used.
    pub(super) fn touch_memory(&mut self, blob: BlobId, now: Tick) {
        if self.memory.held.contains_key(&blob) {
            self.plan.used(Tier::Ram, blob, now);
        }
    }
}

fn nothing_named() -> Fault {
    Fault::Invalid { field: "models", reason: "name at least one model".to_owned() }
}
