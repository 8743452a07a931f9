//! What is expected, acted on: flights for the models of queued prompts in the order of their use, room for them at nobody's cost
//! who is nearer, RAM for the nearest. An expectation is never a caller: nobody is told, and it holds nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Tick;
use crate::engine::event::{Ahead, Effect};
use crate::engine::state::flight::{Flight, Keep, Stage};
use crate::engine::state::memory::Stage as RamStage;
use crate::engine::state::{Fate, State};
use crate::engine::view::{DemoteReason, Priority, Tier};
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, ModelKey};
use crate::plan::expected::{Future, Rank, Want};
use crate::store::PartialName;

/// Flights for expected models that run at once. Each holds an open file; a queue that needs more is fetched in its order.
const AHEAD_FLIGHTS_MAX: usize = 32;
/// The prompts next in line whose models count as demand, beside the one that runs: they start within seconds.
const SOON_POSITIONS: u32 = 2;
/// How long a model that could not be fetched ahead is left alone. Whoever asks for it meanwhile is served at once.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Bytes of a flight, in percent, from which it is let finish although nobody expects its model any more.
const FINISH_PERCENT: u64 = 50;

/// How urgent a flight is. What is more urgent takes the connections of what is less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// A caller waits.
    Caller,
    /// The prompt that runs needs it.
    Running,
    /// One of the next prompts needs it.
    Soon,
    /// A guess, or a prompt farther back.
    Guess,
}

impl State {
    /// A source's whole list of what it expects to use.
    pub(super) fn expect(&mut self, source: &str, wants: Vec<Want>, now: Tick) {
        let before: Vec<(FlightId, Urgency)> = self.flights.iter().map(|(id, f)| (*id, self.turn(f).0)).collect();
        let had_ram: BTreeSet<ModelKey> =
            self.expected.nearest().into_iter().filter(|row| row.1.ram).map(|row| row.0).collect();
        let gone = self.expected.replace(source, wants, now);
        let nearest: Vec<ModelKey> = self.expected.nearest().into_iter().map(|(model, _)| model).collect();
        self.foresee(&nearest, now);
        for (id, urgency) in before {
            let Some(flight) = self.flights.get(&id).filter(|flight| flight.ahead) else { continue };
            if urgency == Urgency::Guess && self.turn(flight).0 < urgency {
                self.out.push(Effect::CountAhead(Ahead::Upgraded));
            }
        }
        for model in gone.iter().filter(|model| self.expected.rank(model).is_none()).collect::<Vec<_>>() {
            self.not_expected(model, now);
        }
        self.release_loaded(&had_ram);
        self.learn_running(source, now);
    }

    /// Nobody expects a model any more: a flight that was begun for it alone stops, unless most of it is there.
    fn not_expected(&mut self, model: &ModelKey, now: Tick) {
        self.put_off.remove(model);
        let found = self.flights.iter().find(|(_, flight)| !flight.is_ending() && flight.models.contains_key(model));
        let Some((id, flight)) = found.map(|(id, flight)| (*id, flight)) else { return };
        let expected = flight.models.keys().any(|model| self.expected.rank(model).is_some());
        if !flight.ahead || expected || self.waiters(id) > 0 {
            return;
        }
        if !self.let_go_ahead(id, "the prompt that needed it left the queue", now) {
            return;
        }
        // Not a failure: a prompt that names it again finds its pieces.
        self.put_off.remove(model);
    }

    /// Stops a flight that nobody needs any more, unless most of it is there. Whether it stopped.
    pub(super) fn let_go_ahead(&mut self, id: FlightId, by: &str, now: Tick) -> bool {
        let Some(flight) = self.flights.get(&id) else { return false };
        let finishing = matches!(flight.stage, Stage::Whole(_) | Stage::Committing(_));
        if finishing || flight.bytes_done() * 100 >= flight.layout.bytes() * FINISH_PERCENT {
            self.out.push(Effect::CountAhead(Ahead::LetFinish));
            return false;
        }
        self.out.push(Effect::CountAhead(Ahead::Dropped));
        self.end_flight(id, &Fault::Cancelled { by: by.to_owned() }, Keep::Pieces, now);
        true
    }

    /// Starts flights for expected models that are not there, the nearest use first.
    pub(super) fn fly_ahead(&mut self, now: Tick) {
        if !std::mem::take(&mut self.look_ahead) || self.expected.is_empty() {
            return;
        }
        self.put_off.retain(|_, until| *until > now);
        let mut running = self.flights.values().filter(|flight| flight.ahead && !flight.is_ending()).count();
        for (model, future) in self.expected.nearest() {
            if running >= AHEAD_FLIGHTS_MAX {
                break;
            }
            let flying = self.flights.values().any(|flight| flight.models.contains_key(&model));
            if flying || self.put_off.contains_key(&model) || self.is_there(&model, now) {
                continue;
            }
            if self.worth_a_guess(&model, now).is_err() {
                // It would pass by. Something else may be worth less by the next look.
                continue;
            }
            let Some(bytes) = self.catalog.get(&model).map(|entry| entry.bytes) else { continue };
            if bytes > self.disk.limit() {
                self.put_off.insert(model, now.after(RETRY_AFTER));
                continue;
            }
            if !self.room_ahead(&model, bytes, future.rank) {
                // What comes later must not take the room that this one waits for.
                break;
            }
            match self.fly(&model, Priority::Prefetch, now) {
                Ok((_, true)) => {}
                Ok((id, false)) => {
                    running += 1;
                    if let Some(flight) = self.flights.get_mut(&id) {
                        flight.ahead = true;
                    }
                    self.out.push(Effect::CountAhead(Ahead::Started));
                }
                Err(Fault::Busy { .. }) => break,
                Err(_) => drop(self.put_off.insert(model, now.after(RETRY_AFTER))),
            }
        }
    }

    /// Whether an expected model is stored. One that is, under another name only, gets its own.
    fn is_there(&mut self, model: &ModelKey, now: Tick) -> bool {
        let Some(blob) = self.current_blob(model) else { return false };
        let named = self.links.get(model).is_some_and(|link| link.blob == blob);
        if !named && self.blobs.get(&blob).is_some_and(|stored| stored.fate == Fate::Kept) {
            // Once: if it cannot be named, asking again at each event would not help.
            self.put_off.insert(model.clone(), now.after(RETRY_AFTER));
            self.out.push(Effect::Link(self.link_for(model, blob)));
        }
        // A policy that weighs knows what is nearer; of one that does not, two that wait would push each other out.
        if self.plan.places_late() && !self.is_placed_later(blob) {
            self.place(blob, false, now);
        }
        true
    }

    /// An expected model could not be fetched: it waits before it is tried again.
    pub(super) fn put_off(&mut self, id: FlightId, now: Tick) {
        let Some(flight) = self.flights.get(&id).filter(|flight| flight.ahead) else { return };
        for model in flight.models.keys() {
            self.put_off.insert(model.clone(), now.after(RETRY_AFTER));
        }
    }

    /// When a model that was put off is tried again.
    pub(super) fn next_ahead(&self) -> Option<Tick> {
        self.put_off.values().min().copied().filter(|_| !self.expected.is_empty())
    }

    /// How urgent a flight is, and how near the use that it is for. The order of flights, the first first.
    pub(super) fn turn(&self, flight: &Flight) -> (Urgency, Rank) {
        let rank = flight.models.keys().filter_map(|model| self.expected.rank(model)).min();
        match (flight.priority, rank) {
            (Priority::Demand, rank) => (Urgency::Caller, rank.unwrap_or(Rank::NOW)),
            (Priority::Prefetch, Some(rank)) if rank.position == 0 => (Urgency::Running, rank),
            (Priority::Prefetch, Some(rank)) if rank.position <= SOON_POSITIONS => (Urgency::Soon, rank),
            (Priority::Prefetch, rank) => (Urgency::Guess, rank.unwrap_or(Rank::NEVER)),
        }
    }

    /// What a flight counts as: the models of the prompt that runs and of those next in line are demand.
    pub(super) fn priority_of(&self, flight: &Flight) -> Priority {
        if self.turn(flight).0 == Urgency::Guess { Priority::Prefetch } else { Priority::Demand }
    }

    /// Flights that fit, in their order: the most urgent, the nearest use, the oldest.
    pub(super) fn in_turn(&self, fits: impl Fn(&Flight) -> bool) -> Vec<(Urgency, FlightId)> {
        let mut order: Vec<(Urgency, Rank, FlightId)> = Vec::new();
        for (id, flight) in self.flights.iter().filter(|(_, flight)| fits(flight)) {
            let (urgency, rank) = self.turn(flight);
            order.push((urgency, rank, *id));
        }
        order.sort_unstable();
        order.into_iter().map(|(urgency, _, id)| (urgency, id)).collect()
    }

    /// The nearest expected use of a stored blob.
    pub(super) fn blob_rank(&self, blob: BlobId) -> Option<Rank> {
        let stored = self.blobs.get(&blob).filter(|_| !self.expected.is_empty())?;
        stored.models.iter().filter_map(|model| self.expected.rank(model)).min()
    }

    /// Uses up to this one may not be pushed out by a flight; what is expected later, or never, may.
    pub(super) fn spared_by(&self, flight: &Flight) -> Rank {
        match self.turn(flight) {
            (Urgency::Caller | Urgency::Running, _) => Rank::RUNNING,
            // All of one prompt is needed together.
            (_, rank) => Rank { position: rank.position, order: u32::MAX },
        }
    }

    /// Expected blobs that may go for a use at `spared`, the farthest first, until they give back `bytes`. The last resort.
    pub(super) fn farthest(
        &self,
        bytes: u64,
        spared: Option<Rank>,
        evictable: &dyn Fn(BlobId) -> Option<u64>,
    ) -> Vec<BlobId> {
        let mut far: Vec<(Rank, BlobId)> = self
            .blobs
            .keys()
            .filter_map(|blob| Some((self.blob_rank(*blob)?, *blob)))
            .filter(|(rank, _)| spared.is_none_or(|spared| *rank > spared))
            .collect();
        far.sort_unstable();
        let mut found = 0;
        let mut victims = Vec::new();
        for (_, blob) in far.into_iter().rev() {
            if found >= bytes {
                break;
            }
            if let Some(size) = evictable(blob) {
                found += size;
                victims.push(blob);
            }
        }
        victims
    }

    /// Whether an expected model has room without pushing out what is used before it.
    fn room_ahead(&self, model: &ModelKey, bytes: u64, rank: Rank) -> bool {
        let Some(entry) = self.catalog.get(model) else { return false };
        let Some(first) = entry.sources.first() else { return false };
        let (digest, _) = self.expected(model, entry);
        let name = digest.map_or_else(|| PartialName::of_source(first), PartialName::of_blob);
        if self.partials.contains_key(&name) {
            return true;
        }
        let waiting = self.flights.values().filter(|flight| flight.stage == Stage::Waiting);
        let promised: u64 = waiting.map(|flight| flight.layout.bytes()).sum();
        let spared = Rank { position: rank.position, order: u32::MAX };
        let may_go = |blob: &BlobId| self.blob_rank(*blob).is_none_or(|at| at > spared);
        let evictable = self.evictable_if(&may_go);
        bytes + promised + self.disk.over() <= self.disk.free() + evictable
    }

    /// Locks expected models in RAM, the nearest first, demoting only what nobody expects sooner.
    pub(super) fn place_expected(&mut self, now: Tick) {
        self.release_copied();
        if self.memory.paused || self.expected.is_empty() {
            return;
        }
        if self.config.executor.places && self.plan.places_late() {
            // The policy weighed what is known to come when it was looked at.
            return;
        }
        for (model, Future { rank, .. }) in self.expected.nearest().into_iter().filter(|row| row.1.ram) {
            let Some((blob, bytes)) = self.stored(&model) else { continue };
            match self.memory.held.get(&blob).map(|held| held.stage) {
                Some(RamStage::Locking | RamStage::Locked) => continue,
                Some(RamStage::Unlocking) => return,
                // Whoever will use it has a copy of its own: nobody will read these pages.
                None if self.vram.ledger.is_copied(blob) => continue,
                None => {}
            }
            if bytes > self.memory.budget.limit() {
                continue;
            }
            let short = (bytes + self.memory.budget.over()).saturating_sub(self.memory.budget.free());
            if short == 0 {
                self.memory.placed.insert(blob);
                self.lock(blob, false, now);
                continue;
            }
            let leaving = self.memory.leaving();
            if short > leaving {
                self.demote_for(&model, rank, short - leaving, now);
            }
            // In order: what comes later waits for what this one waits for.
            return;
        }
    }

    /// Gives back `bytes` of RAM for an expected model, of what no one expects sooner. All or nothing.
    fn demote_for(&mut self, model: &ModelKey, rank: Rank, bytes: u64, now: Tick) {
        let leased = self.hard_or_soft();
        let wanted = |blob: BlobId| self.blob_rank(blob).is_some_and(|at| at <= rank) && self.is_expected_in_ram(blob);
        let evictable = |blob: BlobId| {
            let held = self.memory.held.get(&blob).filter(|held| held.stage != RamStage::Unlocking)?;
            let free = !self.is_wanted_in_ram(blob) && !wanted(blob);
            // A lease is somebody's word; an expectation is not.
            (free && !leased.contains(&blob)).then_some(held.bytes)
        };
        let victims = self.plan.victims(Tier::Ram, bytes, &evictable, now);
        let found: u64 = victims.iter().filter_map(|blob| evictable(*blob)).sum();
        if found < bytes {
            return;
        }
        let reason = DemoteReason::Room { wanted_by: model.clone(), policy: self.plan.name().to_owned() };
        for blob in victims {
            self.start_unlock(blob, reason.clone());
        }
    }

    /// Whether some reader is expected to read a blob from RAM.
    fn is_expected_in_ram(&self, blob: BlobId) -> bool {
        self.blobs.get(&blob).is_some_and(|stored| stored.models.iter().any(|model| self.expected.wants_ram(model)))
    }

    /// Blobs in RAM that some reader is expected to read from there.
    pub(super) fn expected_in_ram(&self) -> Vec<BlobId> {
        if self.expected.is_empty() {
            return Vec::new();
        }
        self.memory.held.keys().copied().filter(|blob| self.is_expected_in_ram(*blob)).collect()
    }

    /// Gives back the RAM of models that were locked for a prompt and are whole in VRAM now, by readers that keep copies of their own.
    /// What a reader streams from the disk at each use stays.
    fn release_copied(&mut self) {
        if self.memory.placed.is_empty() {
            return;
        }
        let leased = self.hard_or_soft();
        let copied = |blob: &BlobId| self.vram.ledger.is_copied(*blob) && !leased.contains(blob);
        let locked = |blob: &BlobId| self.memory.is_locked(*blob) && !self.is_wanted_in_ram(*blob);
        let done: Vec<BlobId> =
            self.memory.placed.iter().copied().filter(|blob| copied(blob) && locked(blob)).collect();
        for blob in done {
            let by = "comfyui: it is in VRAM, and its reader keeps a copy of its own".to_owned();
            self.start_unlock(blob, DemoteReason::Asked { by });
        }
    }

    /// Blobs that leases hold in RAM.
    fn hard_or_soft(&self) -> BTreeSet<BlobId> {
        let leases = self.leases.values().filter(|lease| lease.view.ram != crate::engine::view::RamHold::None);
        leases
            .flat_map(|lease| &lease.view.models)
            .filter_map(|model| self.links.get(model))
            .map(|link| link.blob)
            .collect()
    }

    /// Gives back the RAM of models that were locked for a reader which has read them and keeps its own copy.
    fn release_loaded(&mut self, had_ram: &BTreeSet<ModelKey>) {
        let read = |model: &&ModelKey| self.expected.rank(model).is_some() && !self.expected.wants_ram(model);
        let loaded: Vec<BlobId> =
            had_ram.iter().filter(read).filter_map(|model| self.links.get(model)).map(|link| link.blob).collect();
        for blob in loaded {
            let leased = self.hard_or_soft().contains(&blob);
            if self.memory.placed.remove(&blob)
                && !leased
                && !self.is_wanted_in_ram(blob)
                && !self.is_expected_in_ram(blob)
            {
                let by = "comfyui: it has read the file and keeps a copy of its own".to_owned();
                self.start_unlock(blob, DemoteReason::Asked { by });
            }
        }
    }
}
