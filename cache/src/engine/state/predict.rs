//! What is guessed: learned from what is asked for, scored on what it would have done. Acting on it is `prefetch`'s.
//!
//! A guess **stands** from when it is made until it comes true, until its client asks for something else, or until its time is over. Then it
//! is settled, once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::{Tick, Wall};
use crate::engine::event::{Effect, Guessed};
use crate::engine::state::State;
use crate::engine::state::ensure::Want;
use crate::engine::view::{GuessView, HabitView, PredictView, Tier, What};
use crate::ids::{BlobId, FlightId, ModelKey};
use crate::plan::predict::saved::Saved;
use crate::plan::predict::shadow::{Kind, Level, Settled, Shadow, Step};
use crate::plan::predict::{Guess, Habit, PredictConfig, PredictMode, Predictor, Seen};
use crate::plan::{Beside, Costs};

/// Guesses that stand at once. Those of more than a dozen busy clients; what finds no place is not scored.
pub(super) const STANDING_MAX: usize = 256;
/// Guesses of each habit that are shown: its last answer.
const SHOWN_MAX: usize = 16;
/// Sources of prompts whose last running set is remembered: as many as may expect something.
const RUNNING_MAX: usize = crate::plan::expected::SOURCES_MAX;
/// How long "somebody waits for the link" is averaged, in seconds.
const BUSY_MEMORY: f64 = 600.0;

/// A guess that stands.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) probability: f64,
    /// Whose next request it is about; nobody's for an hour's.
    client: Option<String>,
    /// Whether it is the likeliest of its question.
    top: bool,
    /// What acting on it would do.
    pub(super) step: Option<Step>,
    pub(super) bytes: u64,
    pub(super) blob: Option<BlobId>,
    /// Expected seconds of waiting a second that what would have to go for it saves.
    pub(super) loss_rate: f64,
    made: Tick,
    pub(super) ends: Tick,
    /// Whether it was acted on.
    pub(super) acted: bool,
}

impl Standing {
    /// Its kind, if acting on it would do anything.
    pub(super) fn kind(&self, habit: Habit) -> Option<Kind> {
        self.step.map(|step| Kind { habit, step, level: Level::of(self.probability) })
    }
}

/// The state's guesses.
#[derive(Debug)]
pub(super) struct Guessing {
    pub(super) config: PredictConfig,
    pub(super) costs: Costs,
    predictor: Option<Box<dyn Predictor>>,
    pub(super) shadow: Shadow,
    pub(super) standing: BTreeMap<(Habit, ModelKey), Standing>,
    shown: BTreeMap<Habit, (Tick, Vec<Guess>)>,
    /// What each source's running prompt was last seen to use.
    running: BTreeMap<String, BTreeSet<ModelKey>>,
    /// When the predictor has something to say by itself.
    due: Option<Tick>,
    /// Whether something changed since guesses were last looked at.
    pub(super) look: bool,
    /// Whether the disk, and RAM, are being filled.
    pub(super) filling: [bool; 2],
    /// Share of the time that somebody waited for a fetch, lately.
    pub(super) busy: f64,
    busy_at: Tick,
    was_busy: bool,
    /// Whether something was learned since it was last kept.
    changed: bool,
}

impl Guessing {
    pub(super) fn new(config: PredictConfig, costs: Costs, predictor: Option<Box<dyn Predictor>>) -> Self {
        Self {
            config,
            costs,
            predictor,
            shadow: Shadow::default(),
            standing: BTreeMap::new(),
            shown: BTreeMap::new(),
            running: BTreeMap::new(),
            due: None,
            look: false,
            filling: [true; 2],
            busy: 0.0,
            busy_at: Tick::default(),
            was_busy: false,
            changed: false,
        }
    }

    /// Seconds that a use waits less for a step.
    pub(super) fn saves(&self, step: Step, bytes: u64) -> f64 {
        match step {
            Step::Fetch => self.costs.saved(Tier::Nvme, bytes, Beside::default()),
            Step::Promote => {
                self.costs.saved(Tier::Ram, bytes, Beside::default())
                    - self.costs.saved(Tier::Nvme, bytes, Beside::default())
            }
        }
    }

    /// Whether a standing guess is likely enough, and its habit is acted on.
    pub(super) fn may_act(&self, habit: Habit, standing: &Standing) -> bool {
        let proved = standing.kind(habit).is_some_and(|kind| self.shadow.score(kind).acts);
        self.config.mode == PredictMode::Auto && proved && standing.probability >= self.config.threshold
    }

    pub(super) fn predictor_is_none(&self) -> bool {
        self.predictor.is_none()
    }

    /// Notes whether somebody waits for a fetch from now on.
    pub(super) fn note_busy(&mut self, busy: bool, now: Tick) {
        let age = now.since(self.busy_at).as_secs_f64();
        let weight = 1.0 - (-age / BUSY_MEMORY).exp();
        self.busy += weight * (f64::from(u8::from(self.was_busy)) - self.busy);
        (self.busy_at, self.was_busy) = (now, busy);
    }
}

impl State {
    /// Guesses by this predictor from now on, in place of the one that it has.
    pub fn set_predictor(&mut self, predictor: Option<Box<dyn Predictor>>) {
        self.guessing.predictor = predictor;
    }

    /// Acts on every guess from now on, as if all kinds had proved right beyond doubt.
    #[cfg(test)]
    pub(super) fn believe_guesses(&mut self) {
        use crate::plan::predict::shadow::{Rate, Score};
        for kind in Kind::all() {
            let right = Rate { tried: f64::MAX, hit: f64::MAX };
            let (top, moves, saved) = (right, right, f64::MAX);
            let score = Score { acts: true, top, moves, saved, ..Score::default() };
            self.guessing.shadow.recall(kind, score);
        }
    }

    /// Takes up what was kept before a restart.
    pub fn recall_guesses(&mut self, saved: Saved) {
        self.guessing.shadow = saved.shadow();
        self.guessing.predictor = Some(Box::new(crate::plan::predict::Habits::from(saved.learned)));
    }

    /// What should outlive a restart, if something changed since this was last asked.
    pub fn keep_guesses(&mut self) -> Option<Saved> {
        if !std::mem::take(&mut self.guessing.changed) {
            return None;
        }
        let learned = self.guessing.predictor.as_ref()?.saved()?;
        Some(Saved::of(learned, &self.guessing.shadow))
    }

    /// Whether there is something to keep.
    #[must_use]
    pub fn guesses_changed(&self) -> bool {
        self.guessing.changed
    }

    /// Learns from what a caller asks for.
    pub(super) fn learn(&mut self, client: &str, wants: &[Want], now: Tick) {
        if self.guessing.predictor.is_none() {
            return;
        }
        let runs = |model| self.expected.rank(model).is_some_and(|rank| rank.position == 0);
        // What the running prompt uses was learned when it began to run.
        if !self.expected.is_empty() && wants.iter().all(|want| runs(&want.model)) {
            return;
        }
        let models = wants.iter().map(|want| (want.model.clone(), self.model_bytes(want))).collect();
        self.asked_for(client, models, now);
    }

    /// Learns from prompts that began to run, of a source that says what it expects.
    pub(super) fn learn_running(&mut self, source: &str, now: Tick) {
        if self.guessing.predictor.is_none() {
            return;
        }
        let running: BTreeSet<ModelKey> = self.expected.running(source).cloned().collect();
        let before = self.guessing.running.get(source);
        if running.is_empty() || before == Some(&running) {
            return;
        }
        if before.is_none() && self.guessing.running.len() >= RUNNING_MAX {
            self.guessing.running.pop_first();
        }
        self.guessing.running.insert(source.to_owned(), running.clone());
        let sized = running.into_iter().filter_map(|model| Some((model.clone(), self.bytes_of(&model)?)));
        let models = sized.collect();
        self.asked_for(source, models, now);
    }

    /// The size of a model that is stored or listed.
    fn bytes_of(&self, model: &ModelKey) -> Option<u64> {
        let stored = self.links.get(model).and_then(|link| self.blobs.get(&link.blob)).map(|blob| blob.bytes);
        stored.or(self.catalog.get(model).map(|entry| entry.bytes))
    }

    fn asked_for(&mut self, client: &str, models: Vec<(ModelKey, u64)>, now: Tick) {
        self.settle_asked(client, &models, now);
        let at = self.wall;
        let Some(predictor) = &mut self.guessing.predictor else { return };
        let guesses = predictor.seen(&Seen { client, models: &models, at });
        self.guessing.changed = true;
        self.guessing.shown.insert(Habit::Sequence, (now, guesses.iter().take(SHOWN_MAX).cloned().collect()));
        self.stand(guesses, Some((client, &models)), now);
        self.hear(now);
    }

    /// Time passed: hears what the hour says, and lets go of what did not come true.
    pub(super) fn guess_by_time(&mut self, now: Tick) {
        self.hear(now);
        self.expire_guesses(now);
    }

    fn hear(&mut self, now: Tick) {
        let wall = self.wall;
        let Some(predictor) = &mut self.guessing.predictor else { return };
        let guesses = predictor.passed(wall);
        self.guessing.due =
            predictor.due().map(|Wall(due)| now.after(Duration::from_millis(due.saturating_sub(wall.0))));
        if !guesses.is_empty() {
            self.guessing.shown.insert(Habit::Hour, (now, guesses.iter().take(SHOWN_MAX).cloned().collect()));
            self.stand(guesses, None, now);
        }
    }

    /// When guesses want to be looked at by themselves.
    #[must_use]
    pub fn next_guess(&self) -> Option<Tick> {
        let ends = self.guessing.standing.values().map(|standing| standing.ends);
        self.guessing.due.into_iter().chain(ends).min()
    }

    /// Confident guesses stand from now on: of what follows what `asked` is asking for, or of an hour.
    fn stand(&mut self, guesses: Vec<Guess>, asked: Option<(&str, &[(ModelKey, u64)])>, now: Tick) {
        let client = asked.map(|(client, _)| client);
        let asks = |model: &ModelKey| asked.is_some_and(|(_, models)| models.iter().any(|(other, _)| other == model));
        let threshold = self.guessing.config.threshold;
        for guess in guesses.into_iter().filter(|guess| guess.probability >= threshold) {
            let key = (guess.habit, guess.model);
            let ends = now.after(guess.horizon);
            if let Some(standing) = self.guessing.standing.get_mut(&key) {
                standing.probability = guess.probability;
                standing.client = client.map(str::to_owned);
                standing.ends = standing.ends.max(ends);
                continue;
            }
            let Some(bytes) = self.bytes_of(&key.1) else { continue };
            if self.guessing.standing.len() >= STANDING_MAX {
                break;
            }
            // What is being asked for is coming anyway.
            let (step, blob) = if asks(&key.1) { (None, None) } else { self.step_for(&key.1, bytes) };
            let mut standing = Standing {
                probability: guess.probability,
                client: client.map(str::to_owned),
                top: guess.top,
                step,
                bytes,
                blob,
                loss_rate: 0.0,
                made: now,
                ends,
                acted: false,
            };
            let stakes = step.and_then(|step| self.stakes_of(step, &standing, standing.probability, now));
            // What would not be worth its bytes would not be moved: nothing is proved by it.
            match stakes.filter(|(_, stakes)| stakes.worth()) {
                Some((_, stakes)) => standing.loss_rate = stakes.loss_rate,
                None => standing.step = None,
            }
            self.guessing.standing.insert(key, standing);
        }
        self.tell_guesses(now);
        self.guessing.look = true;
    }

    /// What having a model ready would take now.
    fn step_for(&self, model: &ModelKey, bytes: u64) -> (Option<Step>, Option<BlobId>) {
        let flying = self.flights.values().any(|flight| !flight.is_ending() && flight.models.contains_key(model));
        match self.current_blob(model) {
            Some(blob) => {
                let fits = bytes <= self.memory.budget.limit();
                let promotes = fits && !self.memory.held.contains_key(&blob) && !self.memory.queue.contains(&blob);
                (promotes.then_some(Step::Promote), Some(blob))
            }
            None if flying => (None, None),
            None => (Some(Step::Fetch), self.catalog.get(model).and_then(|entry| entry.blake3)),
        }
    }

    /// A client asked for something: what stood for it came true, what stood for this client's next request did not.
    fn settle_asked(&mut self, client: &str, models: &[(ModelKey, u64)], now: Tick) {
        let asked = |model: &ModelKey| models.iter().any(|(other, _)| other == model);
        let over = |((_, model), standing): (&(Habit, ModelKey), &Standing)| {
            asked(model) || standing.client.as_deref() == Some(client) || standing.ends <= now
        };
        let over: Vec<(Habit, ModelKey)> =
            self.guessing.standing.iter().filter(|row| over(*row)).map(|(key, _)| key.clone()).collect();
        for key in over {
            let hit = asked(&key.1);
            self.settle_guess(&key, hit, now);
        }
    }

    /// Lets go of guesses whose time is over.
    pub(super) fn expire_guesses(&mut self, now: Tick) {
        let over = self.guessing.standing.iter().filter(|(_, standing)| standing.ends <= now);
        let over: Vec<(Habit, ModelKey)> = over.map(|(key, _)| key.clone()).collect();
        for key in over {
            self.settle_guess(&key, false, now);
        }
    }

    /// Whether what a guess moved is still where it was moved to, or on its way there; or would be, had it been acted on: what would not be
    /// let in any more would have been put out by now.
    fn guess_is_in_place(&mut self, model: &ModelKey, standing: &Standing, now: Tick) -> bool {
        if let (Some(step), false) = (standing.step, standing.acted) {
            return self.stakes_of(step, standing, standing.probability, now).is_some_and(|(_, stakes)| stakes.worth());
        }
        let stored = self.links.get(model).map(|link| link.blob);
        match standing.step {
            Some(Step::Fetch) => stored.is_some() || self.guess_flight(model).is_some(),
            Some(Step::Promote) => {
                stored.is_some_and(|blob| self.memory.held.contains_key(&blob) || self.memory.queue.contains(&blob))
            }
            None => true,
        }
    }

    fn settle_guess(&mut self, key: &(Habit, ModelKey), hit: bool, now: Tick) {
        let Some(standing) = self.guessing.standing.remove(key) else { return };
        let stood = now.since(standing.made).as_secs_f64();
        // What was moved and is gone again when it is asked for was moved for nothing, however right the guess was.
        let hit = hit && self.guess_is_in_place(&key.1, &standing, now);
        let saved = match standing.step {
            // What had no time to arrive has saved the time that it had.
            Some(step) if hit => self.guessing.saves(step, standing.bytes).clamp(0.0, stood),
            _ => 0.0,
        };
        let settled = Settled {
            habit: key.0,
            level: Level::of(standing.probability),
            hit,
            top: standing.top,
            step: standing.step,
            bytes: standing.bytes,
            saved,
            lost: standing.loss_rate * stood,
        };
        let flying = self.guess_flight(&key.1);
        self.guessing.look = true;
        self.guessing.changed = true;
        self.out.push(Effect::CountGuess(Guessed {
            settled,
            acted: standing.acted,
            late: standing.acted && flying.is_some(),
        }));
        for (kind, score) in self.guessing.shadow.settle(&settled, self.guessing.config.precision) {
            let percent = |share: f64| (share * 100.0).round() as u32;
            self.out.push(Effect::Record(What::Predicts {
                habit: kind.habit.name().to_owned(),
                step: kind.step.name().to_owned(),
                level: kind.level.name().to_owned(),
                acts: score.acts,
                precision_percent: percent(score.moves.share().min(score.top.share())),
                guesses: score.moves.tried.round() as u32,
                saved_ms: (score.saved * 1e3) as u64,
                lost_ms: (score.lost * 1e3) as u64,
            }));
        }
        if standing.acted {
            self.tell_guesses(now);
            if let Some(flight) = flying.filter(|_| !hit) {
                self.drop_guess(flight, now);
            }
        }
    }

    /// The flight that brings a model only because it is guessed.
    fn guess_flight(&self, model: &ModelKey) -> Option<FlightId> {
        let found = self.flights.iter().find(|(_, flight)| flight.models.contains_key(model) && self.is_guess(flight));
        found.map(|(id, _)| *id)
    }

    /// Whether guesses are made at all.
    #[must_use]
    pub fn is_guessing(&self) -> bool {
        self.guessing.predictor.is_some()
    }

    /// What is guessed and how guesses have done.
    #[must_use]
    pub fn predictions(&self, now: Tick) -> PredictView {
        let auto = self.guessing.config.mode == PredictMode::Auto;
        let row = |kind: Kind| {
            let score = *self.guessing.shadow.score(kind);
            HabitView { kind, acts: score.acts && auto, score }
        };
        let habits = Kind::all().map(row).collect();
        let mut guesses: Vec<GuessView> = Vec::new();
        for (habit, (made, shown)) in &self.guessing.shown {
            for guess in shown.iter().filter(|guess| now < made.after(guess.horizon)) {
                let standing = self.guessing.standing.get(&(*habit, guess.model.clone()));
                let blob = self.current_blob(&guess.model);
                let tier = blob.map_or(Tier::Origin, |blob| self.fastest(blob));
                let within = made.after(guess.horizon).since(now);
                let acted = standing.is_some_and(|standing| standing.acted);
                let (model, probability) = (guess.model.clone(), guess.probability);
                guesses.push(GuessView { model, probability, within, habit: *habit, tier, acted });
            }
        }
        guesses.sort_by(|a, b| b.probability.total_cmp(&a.probability).then_with(|| a.model.cmp(&b.model)));
        let mode = if self.is_guessing() { self.guessing.config.mode } else { PredictMode::Off };
        let PredictConfig { threshold, precision, .. } = self.guessing.config;
        PredictView { mode, threshold, precision, habits, guesses }
    }
}
