//! Callers: what each wants, and how far each of its models is.

use std::collections::BTreeSet;

use crate::clock::Tick;
use crate::engine::event::{Effect, Found};
use crate::engine::state::memory::Memory;
use crate::engine::state::{Fate, State};
use crate::engine::view::{
    EnsureFailed, EnsurePlan, EnsureReady, EnsureRequest, PlannedModel, Priority, ReadyModel, Tier,
};
use crate::fault::Fault;
use crate::ids::{BlobId, EnsureId, FlightId, ModelKey};

/// One caller.
#[derive(Debug)]
pub(crate) struct Ensure {
    pub(crate) request: EnsureRequest,
    pub(crate) started: Tick,
    pub(crate) wants: Vec<Want>,
    /// Whether the plan was told: the set as a whole was accepted.
    pub(crate) admitted: bool,
    pub(crate) bytes_fetched: u64,
}

/// One model of one caller.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) model: ModelKey,
    pub(crate) from: Tier,
    pub(crate) step: Step,
    /// The blob that this want keeps from being evicted.
    pub(crate) hold: Option<BlobId>,
    /// Whether the policy was told of it.
    pub(crate) counted: bool,
}

/// How far a want is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// No origin listed it; they are being asked.
    Locating,
    /// It is stored; the disk is being asked whether nobody touched it.
    Inspecting(BlobId),
    /// It is stored under another name; the new name is being made.
    Linking(BlobId),
    /// Its stored bytes are being read, because something touched them.
    Scrubbing(BlobId),
    /// It must be fetched.
    Missing,
    /// A flight brings it.
    Flying(FlightId),
    /// It is on the disk and wanted in RAM: it waits for room there, or for its pages.
    Locking(BlobId),
    /// It is ready.
    Ready(BlobId),
    /// It failed.
    Failed(Fault),
}

impl Step {
    /// Whether nothing more will happen.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self, Self::Ready(_) | Self::Failed(_))
    }
}

impl State {
    pub(super) fn ensure(&mut self, id: EnsureId, request: EnsureRequest, now: Tick) {
        if let Err(fault) = self.accept(&request) {
            let failed = EnsureFailed { elapsed: Tick::default().since(now), fault, models: Vec::new() };
            self.out.push(Effect::TellFailed(id, failed));
            return;
        }
        let mut seen = BTreeSet::new();
        let models: Vec<ModelKey> =
            request.models.iter().filter(|model| seen.insert((*model).clone())).cloned().collect();
        let mut wants = Vec::with_capacity(models.len());
        for model in models {
            wants.push(self.want(model));
        }
        if request.priority == Priority::Demand {
            // What was guessed is judged by how things stood before this was asked.
            self.learn(&request.client, &wants, now);
            self.count(&mut wants, now);
        }
        self.ensures.insert(id, Ensure { request, started: now, wants, admitted: false, bytes_fetched: 0 });
    }

    fn accept(&self, request: &EnsureRequest) -> Result<(), Fault> {
        let limits = &self.config.limits;
        if request.models.is_empty() {
            return Err(Fault::Invalid { field: "models", reason: "name at least one model".to_owned() });
        }
        if matches!(request.target, Tier::Vram | Tier::Origin) {
            let reason = "models can be made ready in RAM or on the disk".to_owned();
            return Err(Fault::Invalid { field: "target", reason });
        }
        let most = limits.models_per_request_max as usize;
        if request.models.len() > most {
            let reason = format!("{} models in one request, at most {most} are allowed", request.models.len());
            return Err(Fault::Invalid { field: "models", reason });
        }
        if self.ensures.len() >= limits.ensures_max as usize {
            return Err(Fault::Busy { limit: "ensures_max", max: limits.ensures_max.into() });
        }
        Ok(())
    }

    /// Starts to find out where a model is.
    fn want(&mut self, model: ModelKey) -> Want {
        let stored = self.current_blob(&model);
        let (step, from, hold) = match stored {
            Some(blob) => {
                let names = self.blobs[&blob].models.iter().cloned().collect();
                let step = match self.blobs[&blob].fate {
                    Fate::Kept | Fate::Shedding | Fate::Sinking => {
                        self.out.push(Effect::Inspect { blob, models: names });
                        Step::Inspecting(blob)
                    }
                    Fate::Scrubbing | Fate::Withdrawing => Step::Scrubbing(blob),
                    Fate::Removing => Step::Missing,
                };
                let hold = (step != Step::Missing).then_some(blob);
                (step, self.fastest(blob), hold)
            }
            None if self.catalog.get(&model).is_some() => (Step::Missing, Tier::Origin, None),
            None => {
                if !self.is_locating(&model) {
                    self.out.push(Effect::Locate(model.clone()));
                }
                (Step::Locating, Tier::Origin, None)
            }
        };
        if let Some(blob) = hold {
            self.hold(blob);
        }
        Want { model, from, step, hold, counted: false }
    }

    fn is_locating(&self, model: &ModelKey) -> bool {
        let mut wants = self.ensures.values().flat_map(|ensure| &ensure.wants);
        wants.any(|want| want.step == Step::Locating && want.model == *model)
    }

    /// The blob that serves a model now: stored under its name and not outdated, or stored under another name.
    pub(super) fn current_blob(&self, model: &ModelKey) -> Option<BlobId> {
        let entry = self.catalog.get(model);
        if let Some(link) = self.links.get(model)
            && !entry.is_some_and(|entry| super::stored::is_outdated(link, &self.blobs[&link.blob], entry))
        {
            return Some(link.blob);
        }
        let digest = entry?.blake3?;
        self.blobs.contains_key(&digest).then_some(digest)
    }

    pub(super) fn located(&mut self, model: &ModelKey, result: Result<(), Fault>, _now: Tick) {
        let step = match result {
            Ok(()) => Step::Missing,
            Err(fault) => Step::Failed(fault),
        };
        self.each_want(|want| want.step == Step::Locating && want.model == *model, &step);
    }

    pub(super) fn inspected(&mut self, blob: BlobId, found: Found, now: Tick) {
        let waiting = Step::Inspecting(blob);
        // What the disk does not have cannot have been touched there.
        let elsewhere = self.blobs.get(&blob).is_some_and(|stored| !stored.on_disk || stored.fate == Fate::Shedding);
        match found {
            Found::Changed(_) if elsewhere => self.whole(blob, &waiting, now),
            Found::Intact => self.whole(blob, &waiting, now),
            Found::Changed(detail) => {
                self.each_want(|want| want.step == waiting, &Step::Scrubbing(blob));
                self.start_scrub(blob, &detail);
            }
            Found::Missing => {
                self.each_want(|want| want.hold == Some(blob), &Step::Missing);
                self.drop_holds(blob);
                self.missing(blob);
            }
            Found::Unreadable(fault) => {
                self.each_want(|want| want.step == waiting, &Step::Failed(fault));
                self.drop_holds(blob);
            }
        }
    }

    /// A stored blob turned out to be whole: its wants are ready, or need one more name.
    pub(super) fn whole(&mut self, blob: BlobId, waiting: &Step, now: Tick) {
        let mut link = BTreeSet::new();
        for ensure in self.ensures.values_mut() {
            for want in ensure.wants.iter_mut().filter(|want| want.step == *waiting) {
                let named = self.links.get(&want.model).is_some_and(|link| link.blob == blob);
                if named {
                    want.step = arrived(&self.memory, ensure.request.target, blob);
                } else {
                    want.step = Step::Linking(blob);
                    link.insert(want.model.clone());
                }
            }
        }
        for model in link {
            let link = self.link_for(&model, blob);
            self.out.push(Effect::Link(link));
        }
        self.touch(blob, now);
        if !self.is_placed_later(blob) {
            self.place(blob, false, now);
        }
    }

    /// A wanted model is on the disk under its name: each of its callers is told so, or waits for RAM.
    pub(super) fn named_for(&mut self, model: &ModelKey, waiting: &Step, blob: BlobId) {
        for ensure in self.ensures.values_mut() {
            for want in ensure.wants.iter_mut().filter(|want| want.step == *waiting && want.model == *model) {
                want.step = arrived(&self.memory, ensure.request.target, blob);
            }
        }
    }

    /// Moves every want that matches to a step.
    pub(super) fn each_want(&mut self, matches: impl Fn(&Want) -> bool, step: &Step) {
        for want in self.ensures.values_mut().flat_map(|ensure| &mut ensure.wants) {
            if matches(want) {
                want.step = step.clone();
            }
        }
    }

    /// Lets go of every hold on a blob that is not stored any more, or whose wants have failed.
    pub(super) fn drop_holds(&mut self, blob: BlobId) {
        let mut dropped = 0;
        for want in self.ensures.values_mut().flat_map(|ensure| &mut ensure.wants) {
            let gone = matches!(want.step, Step::Missing | Step::Failed(_) | Step::Flying(_));
            if want.hold == Some(blob) && gone {
                want.hold = None;
                dropped += 1;
            }
        }
        if let Some(blob) = self.blobs.get_mut(&blob) {
            blob.holds -= dropped;
        }
    }

    /// Accepts or refuses each set whose models are all known by now, then starts the flights that are missing.
    pub(super) fn admit_ensures(&mut self, now: Tick) {
        let ids: Vec<EnsureId> = self.ensures.keys().copied().collect();
        for id in ids {
            let ensure = &self.ensures[&id];
            if !ensure.admitted {
                let unknown = |step: &Step| matches!(step, Step::Locating | Step::Inspecting(_) | Step::Linking(_));
                if ensure.wants.iter().any(|want| unknown(&want.step)) {
                    continue;
                }
                if let Err(failed) = self.admit(id, now) {
                    self.drop_ensure(id);
                    self.out.push(Effect::TellFailed(id, failed));
                    continue;
                }
            }
            let joined = self.start_missing(id, now);
            if !self.ensures[&id].admitted {
                let plan = self.plan(id, &joined);
                self.out.push(Effect::TellPlan(id, plan));
            }
            if let Some(ensure) = self.ensures.get_mut(&id) {
                ensure.admitted = true;
            }
        }
    }

    /// A set is taken whole or not at all: a model that nobody has, or no room, refuses it before the first byte.
    fn admit(&self, id: EnsureId, now: Tick) -> Result<(), EnsureFailed> {
        let ensure = &self.ensures[&id];
        let elapsed = now.since(ensure.started);
        let failed: Vec<(ModelKey, Fault)> = ensure
            .wants
            .iter()
            .filter_map(|want| match &want.step {
                Step::Failed(fault) => Some((want.model.clone(), fault.clone())),
                _ => None,
            })
            .collect();
        if let Some((_, fault)) = failed.first() {
            return Err(EnsureFailed { elapsed, fault: fault.clone(), models: failed });
        }
        let missing = ensure.wants.iter().filter(|want| want.step == Step::Missing).map(|want| &want.model);
        self.room_for(missing).map_err(|fault| EnsureFailed { elapsed, fault, models: Vec::new() })?;
        if ensure.request.target == Tier::Ram {
            let sizes = ensure.wants.iter().map(|want| {
                let held = want.hold.is_some_and(|blob| self.memory.is_locked(blob));
                (self.model_bytes(want), held)
            });
            let sizes: Vec<(u64, bool)> = sizes.collect();
            let wanted = sizes.iter().map(|(bytes, _)| bytes).sum();
            let needed = sizes.iter().filter(|(_, held)| !held).map(|(bytes, _)| bytes).sum();
            self.ram_for(needed, wanted).map_err(|fault| EnsureFailed { elapsed, fault, models: Vec::new() })?;
        }
        Ok(())
    }

    /// Creates or joins a flight for each missing model of a caller, the largest first: it gates the set.
    fn start_missing(&mut self, id: EnsureId, now: Tick) -> BTreeSet<ModelKey> {
        let ensure = &self.ensures[&id];
        let priority = ensure.request.priority;
        let guess = priority == Priority::Prefetch;
        let mut missing: Vec<(usize, ModelKey)> = Vec::new();
        for (row, want) in ensure.wants.iter().enumerate() {
            if want.step == Step::Missing {
                missing.push((row, want.model.clone()));
            }
        }
        missing.sort_by_key(|(_, model)| std::cmp::Reverse(self.catalog.get(model).map_or(0, |entry| entry.bytes)));
        let mut joined = BTreeSet::new();
        for (row, model) in missing {
            let worth = if guess { self.worth_a_guess(&model, now) } else { Ok(()) };
            let step = match worth.and_then(|()| self.fly(&model, priority, now)) {
                Ok((flight, was_there)) => {
                    if let Some(flight) = self.flights.get_mut(&flight) {
                        flight.ahead = false;
                    }
                    if was_there {
                        joined.insert(model);
                    }
                    Step::Flying(flight)
                }
                Err(fault) => Step::Failed(fault),
            };
            if let Some(ensure) = self.ensures.get_mut(&id) {
                ensure.wants[row].step = step;
            }
        }
        joined
    }

    fn plan(&self, id: EnsureId, joined: &BTreeSet<ModelKey>) -> EnsurePlan {
        let ensure = &self.ensures[&id];
        let mut plan = EnsurePlan { ensure: id, models: Vec::new(), bytes_total: 0, bytes_to_fetch: 0 };
        for want in &ensure.wants {
            let flight = match want.step {
                Step::Flying(flight) => Some(flight),
                _ => None,
            };
            let flying = flight.and_then(|flight| self.flights.get(&flight));
            let bytes = self.model_bytes(want);
            plan.bytes_total += bytes;
            plan.bytes_to_fetch += flying.map_or(0, super::flight::Flight::bytes_left);
            plan.models.push(PlannedModel {
                model: want.model.clone(),
                bytes,
                blob: want.hold.or(flying.and_then(|flight| flight.digest)),
                tier: if flight.is_some() { Tier::Origin } else { want.from },
                flight,
                joined: joined.contains(&want.model),
                origin: flying.and_then(|flight| flight.sources.first()).map(|source| source.origin.clone()),
            });
        }
        plan
    }

    /// The size of a wanted model, as far as it is known.
    pub(super) fn model_bytes(&self, want: &Want) -> u64 {
        match want.step {
            Step::Flying(flight) => self.flights.get(&flight).map_or(0, |flight| flight.layout.bytes()),
            Step::Ready(blob)
            | Step::Inspecting(blob)
            | Step::Linking(blob)
            | Step::Scrubbing(blob)
            | Step::Locking(blob) => self.blobs.get(&blob).map_or(0, |blob| blob.bytes),
            Step::Locating | Step::Missing | Step::Failed(_) => {
                self.catalog.get(&want.model).map_or(0, |entry| entry.bytes)
            }
        }
    }

    /// Ends each caller whose models are all settled.
    pub(super) fn finish_ensures(&mut self, now: Tick) {
        let done = |ensure: &Ensure| ensure.admitted && ensure.wants.iter().all(|want| want.step.is_settled());
        let ids: Vec<EnsureId> = self.ensures.iter().filter(|(_, e)| done(e)).map(|(id, _)| *id).collect();
        for id in ids {
            let ensure = &self.ensures[&id];
            let elapsed = now.since(ensure.started);
            let mut ready = Vec::new();
            let mut failed = Vec::new();
            for want in &ensure.wants {
                match &want.step {
                    Step::Failed(fault) => failed.push((want.model.clone(), fault.clone())),
                    Step::Ready(blob) => ready.push(self.ready_model(want, *blob)),
                    _ => {}
                }
            }
            let effect = match failed.first() {
                Some((_, fault)) => {
                    Effect::TellFailed(id, EnsureFailed { elapsed, fault: fault.clone(), models: failed })
                }
                None => {
                    let bytes_fetched = ensure.bytes_fetched;
                    Effect::TellReady(id, EnsureReady { elapsed, bytes_fetched, models: ready })
                }
            };
            let waited = self.ensures[&id].request.priority == Priority::Demand;
            if self.config.executor.readers_hold && waited && matches!(effect, Effect::TellReady(..)) {
                self.reader_stays(id);
            }
            self.drop_ensure(id);
            self.out.push(effect);
        }
    }

    fn ready_model(&self, want: &Want, blob: BlobId) -> ReadyModel {
        let stored = &self.blobs[&blob];
        ReadyModel {
            model: want.model.clone(),
            path: self.config.models.join(want.model.as_str()),
            blob,
            bytes: stored.bytes,
            from: want.from,
            trust: stored.trust,
        }
    }

    /// A caller goes. What it wanted goes on, unless it asked otherwise and nobody else wants it.
    pub(super) fn leave(&mut self, id: EnsureId, now: Tick) {
        self.reader_leaves(id, now);
        let Some(ensure) = self.ensures.get(&id) else { return };
        let cancel = ensure.request.cancel_on_drop;
        let flights: BTreeSet<FlightId> = ensure
            .wants
            .iter()
            .filter_map(|want| match want.step {
                Step::Flying(flight) => Some(flight),
                _ => None,
            })
            .collect();
        self.drop_ensure(id);
        if cancel {
            for flight in flights {
                if self.waiters(flight) > 0 {
                    continue;
                }
                let by = "its last caller left".to_owned();
                self.end_flight(flight, &Fault::Cancelled { by }, super::flight::Keep::Pieces, now);
            }
        }
    }

    /// Callers that wait for a flight.
    pub(super) fn waiters(&self, flight: FlightId) -> u32 {
        let waits = |ensure: &&Ensure| ensure.wants.iter().any(|want| want.step == Step::Flying(flight));
        self.ensures.values().filter(waits).count() as u32
    }

    fn drop_ensure(&mut self, id: EnsureId) {
        let Some(ensure) = self.ensures.remove(&id) else { return };
        self.let_go += 1;
        for blob in ensure.wants.iter().filter_map(|want| want.hold) {
            if let Some(blob) = self.blobs.get_mut(&blob) {
                blob.holds -= 1;
            }
        }
    }

    pub(super) fn hold(&mut self, blob: BlobId) {
        if let Some(blob) = self.blobs.get_mut(&blob) {
            blob.holds += 1;
        }
    }
}

/// What becomes of a want whose blob is whole and named: ready, or on its way to RAM.
pub(super) fn arrived(memory: &Memory, target: Tier, blob: BlobId) -> Step {
    if target == Tier::Ram && !memory.is_locked(blob) { Step::Locking(blob) } else { Step::Ready(blob) }
}
