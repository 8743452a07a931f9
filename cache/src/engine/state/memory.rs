//! The RAM tier: which stored blobs are held in RAM, who asked for it, what goes first when there is too little.
//!
//! RAM holds copies of what is on the disk, never anything else: a blob that leaves the disk leaves RAM first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::budget::Budget;
use crate::clock::Tick;
use crate::engine::event::Effect;
use crate::engine::state::ensure::Step;
use crate::engine::state::{Fate, State};
use crate::engine::view::{DemoteReason, Tier, What};
use crate::fault::Fault;
use crate::ids::{BlobId, ModelKey};
use crate::plan::EvictionPolicy;

/// The RAM tier's books.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) budget: Budget,
    pub(crate) held: BTreeMap<BlobId, Held>,
    /// Blobs that shall be promoted though no caller waits for it, in order.
    pub(crate) queue: VecDeque<BlobId>,
    /// Nothing new is promoted while the node is short of memory.
    pub(crate) paused: bool,
    policy: Box<dyn EvictionPolicy>,
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
    pub(crate) fn new(policy: Box<dyn EvictionPolicy>) -> Self {
        Self { budget: Budget::new(0), held: BTreeMap::new(), queue: VecDeque::new(), paused: false, policy }
    }

    pub(crate) fn is_locked(&self, blob: BlobId) -> bool {
        self.held.get(&blob).is_some_and(|held| held.stage == Stage::Locked)
    }

    /// Bytes on their way out.
    fn leaving(&self) -> u64 {
        self.held.values().filter(|held| held.stage == Stage::Unlocking).map(|held| held.bytes).sum()
    }
}

impl State {
    /// Promotes models that are on the disk, in order. Those that are not there are reported.
    pub fn promote(&mut self, models: &[ModelKey], now: Tick) -> (Vec<(ModelKey, Fault)>, Vec<Effect>) {
        let mut refused = Vec::new();
        for model in models {
            match self.stored(model) {
                Some((_, bytes)) if bytes > self.memory.budget.limit() => {
                    let free = self.memory.budget.free();
                    refused.push((model.clone(), Fault::NoMemory { needed: bytes, free, evictable: self.demotable() }));
                }
                Some((blob, _)) => {
                    if !self.memory.held.contains_key(&blob) && !self.memory.queue.contains(&blob) {
                        self.memory.queue.push_back(blob);
                    }
                    self.memory.policy.used(blob, now);
                }
                None => refused
                    .push((model.clone(), Fault::unknown_model(model, "it is not on this node; ensure it first"))),
            }
        }
        self.settle(now);
        (refused, std::mem::take(&mut self.out))
    }

    /// Demotes models: their pages are given back, they stay on the disk. Held ones stay and are reported.
    pub fn demote(&mut self, models: &[ModelKey], by: &str, now: Tick) -> (Vec<(ModelKey, Fault)>, Vec<Effect>) {
        let mut kept = Vec::new();
        let models: BTreeSet<&ModelKey> = models.iter().collect();
        for model in models {
            let held = self.links.get(model).map(|link| link.blob).filter(|blob| self.memory.held.contains_key(blob));
            match held {
                None => kept.push((model.clone(), Fault::unknown_model(model, "it is not in RAM"))),
                Some(blob) if self.is_wanted_in_ram(blob) => {
                    let held_by = "a caller waits for it or is being served".to_owned();
                    kept.push((model.clone(), Fault::Held { what: model.to_string(), held_by }));
                }
                Some(blob) => self.start_unlock(blob, DemoteReason::Asked { by: by.to_owned() }),
            }
        }
        self.settle(now);
        (kept, std::mem::take(&mut self.out))
    }

    /// Whether a caller of today wants a blob in RAM.
    fn is_wanted_in_ram(&self, blob: BlobId) -> bool {
        self.ensures
            .values()
            .any(|ensure| ensure.request.target == Tier::Ram && ensure.wants.iter().any(|want| want.hold == Some(blob)))
    }

    fn demotable(&self) -> u64 {
        let locked = self.memory.held.iter().filter(|(_, held)| held.stage != Stage::Unlocking);
        locked.filter(|(blob, _)| !self.is_wanted_in_ram(**blob)).map(|(_, held)| held.bytes).sum()
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
        for want in self.ensures.values().filter(|ensure| ensure.admitted).flat_map(|ensure| &ensure.wants) {
            if let Step::Locking(blob) = want.step {
                wanted.push(blob);
            }
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
    }

    /// Starts to lock one blob. False if it must wait for pages on their way out, or for memory.
    fn lock(&mut self, blob: BlobId, demanded: bool, now: Tick) -> bool {
        let Some(stored) = self.blobs.get(&blob).filter(|stored| stored.fate == Fate::Kept) else { return true };
        let bytes = stored.bytes;
        let wanted_by = stored.models.first().cloned();
        match self.memory.held.get(&blob).map(|held| held.stage) {
            Some(Stage::Locking | Stage::Locked) => return true,
            Some(Stage::Unlocking) => return !demanded,
            None => {}
        }
        if self.memory.budget.reserve(bytes) {
            self.memory.held.insert(blob, Held { bytes, stage: Stage::Locking, since: now });
            self.memory.policy.inserted(blob, bytes, now);
            self.out.push(Effect::Lock(blob));
            return true;
        }
        let short = (bytes + self.memory.budget.over()).saturating_sub(self.memory.budget.free());
        let leaving = self.memory.leaving();
        if short > leaving {
            let policy = self.memory.policy.name().to_owned();
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

    /// Starts to give back at least `bytes`, the coldest first. Returns what will come back.
    fn demote_coldest(&mut self, bytes: u64, reason: &DemoteReason, now: Tick) -> u64 {
        let wanted: BTreeSet<BlobId> = self
            .ensures
            .values()
            .filter(|ensure| ensure.request.target == Tier::Ram)
            .flat_map(|ensure| ensure.wants.iter().filter_map(|want| want.hold))
            .collect();
        let held = &self.memory.held;
        let evictable = |blob: BlobId| {
            let held = held.get(&blob).filter(|held| held.stage != Stage::Unlocking)?;
            (!wanted.contains(&blob)).then_some(held.bytes)
        };
        let victims = self.memory.policy.victims(bytes, &evictable, now);
        let mut found = 0;
        for blob in victims {
            found += self.memory.held.get(&blob).map_or(0, |held| held.bytes);
            self.start_unlock(blob, reason.clone());
        }
        found
    }

    pub(super) fn start_unlock(&mut self, blob: BlobId, reason: DemoteReason) {
        self.memory.queue.retain(|queued| *queued != blob);
        let Some(held) = self.memory.held.get_mut(&blob).filter(|held| held.stage != Stage::Unlocking) else { return };
        let was_locked = held.stage == Stage::Locked;
        if !was_locked {
            // Its promise becomes bytes held: they are given back when the pages are.
            self.memory.budget.settle(held.bytes);
        }
        held.stage = Stage::Unlocking;
        let bytes = held.bytes;
        self.memory.policy.removed(blob);
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
                self.memory.policy.removed(blob);
                self.memory.budget.unreserve(bytes);
                self.each_want(|want| want.step == Step::Locking(blob), &Step::Failed(fault));
                self.drop_holds(blob);
            }
        }
    }

    pub(super) fn unlocked(&mut self, blob: BlobId) {
        if let Some(held) = self.memory.held.remove(&blob) {
            debug_assert_eq!(held.stage, Stage::Unlocking, "only what was told to go is gone");
            self.memory.budget.give_back(held.bytes);
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
        let leaving = self.memory.leaving();
        if release > leaving {
            let reason = DemoteReason::Pressure { source: source.to_owned() };
            self.demote_coldest(release - leaving, &reason, now);
        }
    }

    pub(super) fn pressure_over(&mut self) {
        self.memory.paused = false;
    }

    /// The set that a restart locks again, the most recently used first.
    fn note_resident(&mut self) {
        let mut locked: Vec<BlobId> =
            self.memory.held.iter().filter(|(_, held)| held.stage == Stage::Locked).map(|(blob, _)| *blob).collect();
        locked.sort_by_key(|blob| std::cmp::Reverse(self.blobs.get(blob).map(|stored| stored.last_used)));
        self.out.push(Effect::NoteResident(locked));
    }

    /// A blob in RAM was used.
    pub(super) fn touch_memory(&mut self, blob: BlobId, now: Tick) {
        if self.memory.held.contains_key(&blob) {
            self.memory.policy.used(blob, now);
        }
    }
}
