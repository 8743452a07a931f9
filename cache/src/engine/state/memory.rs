//! The RAM tier: which stored blobs are held in RAM, who asked for it, what goes first when there is too little.
//!
//! RAM holds copies of what is on the disk, never anything else: a blob that leaves the disk leaves RAM first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// Bytes that may come back now.
    growth: u64,
    /// Nothing new is promoted while the node is short of memory.
    pub(crate) paused: bool,
    /// Whether the set that a restart locks again has changed since it was told.
    changed: bool,
}

/// One blob in RAM, or on its way there or away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) stage: Stage,
    since: Tick,
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
            growth: 0,
            paused: false,
            changed: false,
        }
    }

    pub(crate) fn is_locked(&self, blob: BlobId) -> bool {
        self.held.get(&blob).is_some_and(|held| held.stage == Stage::Locked)
    }

    /// Bytes on their way out.
    pub(super) fn leaving(&self) -> u64 {
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

    /// Takes up the set of before a restart, in order, as far as it is still stored.
    pub fn relock(&mut self, blobs: &[BlobId], now: Tick) -> Vec<Effect> {
        let stored = blobs.iter().filter(|blob| self.blobs.contains_key(blob)).copied();
        self.memory.queue = stored.collect();
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
        self.shrink_memory(now);
        if self.memory.paused {
            return;
        }
        let mut wanted: Vec<BlobId> = Vec::new();
        for ensure in self.ensures.values().filter(|ensure| ensure.admitted) {
            let locking = ensure.wants.iter().filter_map(|want| match want.step {
                Step::Locking(blob) => Some((order_of_use(want.model.folder()), blob)),
                _ => None,
            });
            let mut locking: Vec<(u8, BlobId)> = locking.collect();
            locking.sort_by_key(|(order, _)| *order);
            wanted.extend(locking.into_iter().map(|(_, blob)| blob));
        }
        for blob in wanted {
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
        self.regrow(now);
    }

    /// Lets come back what went for want of memory, the last to go first, as far as there is room to spare.
    fn regrow(&mut self, now: Tick) {
        while let Some(blob) = self.memory.regrow.back().copied() {
            let Some(bytes) = self.blobs.get(&blob).filter(|blob| blob.fate == Fate::Kept).map(|blob| blob.bytes)
            else {
                self.memory.regrow.pop_back();
                continue;
            };
            if bytes > self.memory.growth.min(self.memory.budget.free()) || self.memory.held.contains_key(&blob) {
                return;
            }
            self.memory.growth -= bytes;
            self.memory.regrow.pop_back();
            self.lock(blob, false, now);
        }
    }

    /// Whether something waits to come back.
    #[must_use]
    pub fn ram_wants_back(&self) -> bool {
        !self.memory.regrow.is_empty()
    }

    /// Starts to lock one blob. False if it must wait for pages on their way out, or for memory.
    fn lock(&mut self, blob: BlobId, demanded: bool, now: Tick) -> bool {
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
            self.memory.held.insert(blob, Held { bytes, stage: Stage::Locking, since: now });
            self.plan.inserted(Tier::Ram, blob, bytes, now);
            self.out.push(Effect::Lock { blob, bytes });
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
        if matches!(reason, DemoteReason::Pressure { .. } | DemoteReason::Shrunk { .. }) {
            self.memory.regrow.push_back(blob);
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
        self.note_resident();
    }

    pub(super) fn locked(&mut self, blob: BlobId, result: Result<(), Fault>, now: Tick) {
        let Some(held) = self.memory.held.get_mut(&blob).filter(|held| held.stage == Stage::Locking) else { return };
        match result {
            Ok(()) => {
                held.stage = Stage::Locked;
                let (bytes, elapsed) = (held.bytes, now.since(held.since));
                self.memory.budget.settle(bytes);
                self.each_want(|want| want.step == Step::Locking(blob), &Step::Ready(blob));
                let models =
                    self.blobs.get(&blob).map(|stored| stored.models.iter().cloned().collect()).unwrap_or_default();
                let elapsed_ms = elapsed.as_millis() as u64;
                self.out.push(Effect::Record(What::Promoted { models, blob, bytes, elapsed_ms }));
                self.note_resident();
            }
            Err(fault) => {
                let bytes = held.bytes;
                self.memory.held.remove(&blob);
                self.plan.removed(Tier::Ram, blob);
                self.memory.budget.unreserve(bytes);
                self.passing.check(blob);
                self.each_want(|want| want.step == Step::Locking(blob), &Step::Failed(fault));
                self.drop_holds(blob);
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
        let leaving = self.memory.leaving();
        if release > leaving {
            let reason = DemoteReason::Pressure { source: source.to_owned() };
            self.demote_coldest(release - leaving, &reason, now);
        }
    }

    pub(super) fn pressure_over(&mut self, growth: u64) {
        self.memory.paused = false;
        self.memory.growth = growth;
    }

    fn note_resident(&mut self) {
        self.memory.changed = true;
    }

    /// Tells the set that a restart locks again, the most recently used first, if it changed.
    pub(super) fn tell_resident(&mut self) {
        if !std::mem::take(&mut self.memory.changed) {
            return;
        }
        let mut locked: Vec<BlobId> =
            self.memory.held.iter().filter(|(_, held)| held.stage == Stage::Locked).map(|(blob, _)| *blob).collect();
        locked.sort_by_key(|blob| std::cmp::Reverse(self.blobs.get(blob).map(|stored| stored.last_used)));
        self.out.push(Effect::NoteResident(locked));
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

/// The order in which ComfyUI uses the models of one prompt: text encoders, then what diffuses, then what decodes.
fn order_of_use(folder: &str) -> u8 {
    match folder {
        "text_encoders" | "clip_vision" => 0,
        "vae" | "vae_approx" | "upscale_models" => 2,
        _ => 1,
    }
}
