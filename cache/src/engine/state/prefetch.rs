//! Guesses, acted on: those of habits that have proved right on this node, each if it is worth its bytes. Whoever waits goes before: a
//! guess is not begun while somebody does, stops when somebody comes, and gives its room back when somebody needs it.

use crate::clock::Tick;
use crate::engine::event::{Ahead, Effect};
use crate::engine::state::expect::Urgency;
use crate::engine::state::flight::{Flight, Keep, Stage};
use crate::engine::state::predict::Standing;
use crate::engine::state::{Fate, State};
use crate::engine::view::{EvictReason, Priority, Tier};
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, ModelKey};
use crate::piece::PIECE_BYTES;
use crate::plan::expected::Rank;
use crate::plan::predict::Habit;
use crate::plan::predict::gate::{FILL_UNTIL, SHARE_MAX, Stakes, fills};
use crate::plan::predict::shadow::Step;
use crate::plan::{Placement, Room};

/// Guesses that are fetched at once: they come one after the other, and the next one may open its file meanwhile.
const FLIGHTS_MAX: usize = 2;
/// Shortest time that a guess's rate is reckoned over, in seconds: nothing is certain to be asked for at once.
const HORIZON_MIN: f64 = 60.0;

impl State {
    /// Whether a flight is there for a guess and nothing else.
    pub(super) fn is_guess(&self, flight: &Flight) -> bool {
        flight.guess
            && flight.ahead
            && flight.priority == Priority::Prefetch
            && !flight.is_ending()
            && self.turn(flight) == (Urgency::Guess, Rank::NEVER)
    }

    fn guess_flights(&self) -> Vec<FlightId> {
        self.flights.iter().filter(|(_, flight)| flight.guess && self.is_guess(flight)).map(|(id, _)| *id).collect()
    }

    /// Whether bytes are on their way, or about to be, that somebody waits for or is known to use soon.
    fn demand_moves(&self) -> bool {
        self.flights.values().any(|flight| !flight.is_ending() && self.turn(flight).0 < Urgency::Guess)
    }

    /// Begins what is worth it, the likeliest first.
    pub(super) fn fly_guesses(&mut self, now: Tick) {
        if self.guessing.predictor_is_none() {
            return;
        }
        let busy = self.demand_moves();
        self.guessing.note_busy(busy, now);
        if !std::mem::take(&mut self.guessing.look) || busy || !self.guessing.shadow.acts() {
            return;
        }
        let may_act = |((habit, _), standing): &(&(Habit, ModelKey), &Standing)| {
            !standing.acted && self.guessing.may_act(*habit, standing)
        };
        let mut due: Vec<((Habit, ModelKey), Standing)> =
            self.guessing.standing.iter().filter(may_act).map(|(key, row)| (key.clone(), row.clone())).collect();
        due.sort_by(|a, b| b.1.probability.total_cmp(&a.1.probability).then_with(|| a.0.cmp(&b.0)));
        for (key, standing) in due {
            if self.begin_guess(&key, &standing, now)
                && let Some(standing) = self.guessing.standing.get_mut(&key)
            {
                standing.acted = true;
                self.tell_guesses(now);
            }
        }
    }

    /// Tells the policy what is being acted on, so that it is kept as long as its guess stands.
    pub(super) fn tell_guesses(&mut self, now: Tick) {
        self.tell_guesses_and(None, now);
    }

    /// Uses a second that a guess stands for: no more than its habit has been right.
    fn rate_of(&self, habit: Habit, standing: &Standing, now: Tick) -> f64 {
        self.chance(habit, standing) / standing.ends.since(now).as_secs_f64().max(HORIZON_MIN)
    }

    fn chance(&self, habit: Habit, standing: &Standing) -> f64 {
        let measured = standing.kind(habit).map_or(0.0, |kind| self.guessing.shadow.score(kind).moves.share());
        standing.probability.min(measured)
    }

    /// What a step would cost: where the policy would put the blob if no room above [`FILL_UNTIL`] were free, and what would be lost.
    fn price(&mut self, step: Step, blob: Option<BlobId>, bytes: u64, now: Tick) -> (Option<Placement>, f64) {
        let slot = step as usize;
        let budget = if step == Step::Fetch { &self.disk } else { &self.memory.budget };
        let (limit, used) = (budget.limit(), budget.used() + budget.reserved());
        let filling = fills(used, limit, self.guessing.filling[slot]);
        self.guessing.filling[slot] = filling;
        let kept_free = limit - (limit as f64 * FILL_UNTIL) as u64;
        let free = if filling { budget.free().saturating_sub(kept_free) } else { 0 };
        if bytes <= free {
            return (Some(Placement { to: Some(tier(step)), ..Placement::default() }), 0.0);
        }
        let Some(blob) = blob.filter(|_| self.plan.places_late()) else { return (None, f64::INFINITY) };
        let placement = self.weigh_within(blob, bytes, step, Some(free), now);
        let loss = placement.loss;
        (Some(placement).filter(|placement| placement.to.is_some()), loss)
    }

    /// What the policy says of a step, with as much free room as is given, or as there is.
    fn weigh_within(&self, blob: BlobId, bytes: u64, step: Step, free: Option<u64>, now: Tick) -> Placement {
        self.weigh_in(blob, bytes, false, now, |room: &mut Room<'_>| {
            let tier = if step == Step::Fetch { &mut room.disk } else { &mut room.ram };
            tier.free = free.map_or(tier.free, |free| free.min(tier.free));
            // What is fetched on a guess goes to the disk first.
            if step == Step::Fetch && !room.ram_alone {
                room.ram.limit = 0;
            } else if step == Step::Fetch && free.is_some() {
                room.ram.free = 0;
            }
        })
    }

    /// Begins one guess, if it is worth it. False if not, or not now.
    fn begin_guess(&mut self, key: &(Habit, ModelKey), standing: &Standing, now: Tick) -> bool {
        let Some(step) = standing.step else { return false };
        let (habit, model) = key;
        let limit = if step == Step::Fetch { self.disk.limit() } else { self.memory.budget.limit() };
        let held = self.guessing.standing.values().filter(|other| other.acted && other.step == Some(step));
        if held.map(|other| other.bytes).sum::<u64>() + standing.bytes > (limit as f64 * SHARE_MAX) as u64 {
            return false;
        }
        let chance = self.chance(*habit, standing);
        let begun = self.stakes_of(step, standing, chance, now).is_some_and(|(_, stakes)| stakes.worth())
            && match step {
                Step::Fetch => self.fetch_guess(model, standing, now),
                Step::Promote => self.promote_guess(model, standing, now),
            };
        if !begun {
            self.tell_guesses(now);
        }
        begun
    }

    /// What a guess that is this likely could win and lose, if it were begun now; `None` if there is no place for it. The policy knows of it
    /// from now on, until it is told again.
    pub(super) fn stakes_of(
        &mut self,
        step: Step,
        standing: &Standing,
        chance: f64,
        now: Tick,
    ) -> Option<(Placement, Stakes)> {
        let horizon = standing.ends.since(now).as_secs_f64().max(HORIZON_MIN);
        // The policy must know of the guess to weigh it.
        self.tell_guesses_and(standing.blob.map(|blob| (blob, standing.bytes, chance / horizon)), now);
        let (placement, loss_rate) = self.price(step, standing.blob, standing.bytes, now);
        let stakes = Stakes {
            probability: chance,
            saved: self.guessing.saves(step, standing.bytes),
            horizon,
            loss_rate,
            link: if step == Step::Fetch { standing.bytes as f64 * self.guessing.costs.origin_byte } else { 0.0 },
            busy: self.guessing.busy,
        };
        Some((placement?, stakes))
    }

    fn tell_guesses_and(&mut self, one: Option<(BlobId, u64, f64)>, now: Tick) {
        let acted = self.guessing.standing.iter().filter(|(_, standing)| standing.acted);
        let mut rated: Vec<(BlobId, u64, f64)> = acted
            .filter_map(|((habit, _), row)| Some((row.blob?, row.bytes, self.rate_of(*habit, row, now))))
            .collect();
        rated.extend(one);
        self.plan.guess(&rated);
    }

    fn fetch_guess(&mut self, model: &ModelKey, standing: &Standing, now: Tick) -> bool {
        let flying = self.flights.values().any(|flight| flight.models.contains_key(model));
        // Nobody else may be there to forget what was put off long ago.
        let put_off = self.put_off.get(model).is_some_and(|until| *until > now);
        if flying || put_off || self.current_blob(model).is_some() {
            return false;
        }
        if self.guess_flights().len() >= FLIGHTS_MAX {
            return false;
        }
        if !self.config.executor.apart && !self.clear_for(model, standing, now) {
            return false;
        }
        let Ok((id, false)) = self.fly(model, Priority::Prefetch, now) else { return false };
        if let Some(flight) = self.flights.get_mut(&id) {
            (flight.ahead, flight.guess) = (true, true);
        }
        self.out.push(Effect::CountAhead(Ahead::Started));
        true
    }

    /// Lets go of what is worth less, if there is too little room on the disk.
    fn clear_for(&mut self, model: &ModelKey, standing: &Standing, now: Tick) -> bool {
        let waiting = self.flights.values().filter(|flight| flight.stage == Stage::Waiting);
        let promised: u64 = waiting.map(|flight| flight.layout.bytes()).sum();
        let free = (self.disk.free() + self.leaving()).saturating_sub(promised);
        if standing.bytes <= free {
            return true;
        }
        let Some(blob) = standing.blob.filter(|_| self.plan.places_late()) else { return false };
        let placement = self.weigh_within(blob, standing.bytes, Step::Fetch, Some(free), now);
        if placement.to != Some(Tier::Nvme) {
            return false;
        }
        let policy = self.plan.name().to_owned();
        let reason = EvictReason::Room { wanted_by: model.clone(), policy };
        for victim in placement.from_disk {
            // What is known to be used soon is no guess's to take.
            if self.blob_rank(victim).is_none() {
                self.record_evicted(victim, &reason);
                self.start_removal(victim);
            }
        }
        true
    }

    fn promote_guess(&mut self, model: &ModelKey, standing: &Standing, now: Tick) -> bool {
        let Some(blob) = standing.blob.filter(|blob| self.current_blob(model) == Some(*blob)) else { return false };
        let kept = self.blobs.get(&blob).is_some_and(|stored| stored.fate == Fate::Kept);
        if self.memory.paused || !kept || self.memory.held.contains_key(&blob) || self.memory.queue.contains(&blob) {
            return false;
        }
        let placement = if self.plan.places_late() {
            self.weigh_within(blob, standing.bytes, Step::Promote, None, now)
        } else {
            Placement { to: Some(Tier::Ram), ..Placement::default() }
        };
        let expected = |victim: &BlobId| self.blob_rank(*victim).is_some();
        if placement.to != Some(Tier::Ram) || placement.from_ram.iter().any(expected) {
            return false;
        }
        self.carry_out(blob, model, &placement);
        true
    }

    /// A guess did not come true while it was being fetched: it stops, unless most of it is there.
    pub(super) fn drop_guess(&mut self, id: FlightId, now: Tick) {
        if self.flights.get(&id).is_some_and(|flight| self.is_guess(flight)) {
            self.let_go_ahead(id, "it was guessed, and did not come true", now);
        }
    }

    /// Bytes of the disk budget that flights hold which are only guesses: room for whoever needs it.
    pub(super) fn guessed_room(&self) -> (u64, u64) {
        let (mut reserved, mut waiting) = (0, 0);
        for id in self.guess_flights() {
            let Some(flight) = self.flights.get(&id) else { continue };
            reserved += flight.reserved;
            if flight.stage == Stage::Waiting {
                waiting += flight.layout.bytes();
            }
        }
        (reserved, waiting)
    }

    /// Somebody needs the room: flights that are only guesses end. True if there were any.
    pub(super) fn stop_guesses(&mut self, now: Tick) -> bool {
        let guesses = self.guess_flights();
        for id in &guesses {
            self.out.push(Effect::CountAhead(Ahead::Dropped));
            let by = "it was guessed, and somebody needs its room".to_owned();
            self.end_flight(*id, &Fault::Cancelled { by }, Keep::Nothing, now);
        }
        !guesses.is_empty()
    }

    /// Guesses give up their connections at once while somebody waits for bytes. Returns the flights that must wait.
    pub(super) fn yield_guesses(&mut self) -> Vec<FlightId> {
        let guesses = self.guess_flights();
        if guesses.is_empty() || !self.demand_moves() {
            return Vec::new();
        }
        // A replay's piece is a whole file: its links put demand first by themselves.
        if self.config.executor.piece_bytes <= PIECE_BYTES {
            let theirs = |request: &super::dispatch::Request| guesses.contains(&request.flight) && !request.aborting;
            let stop: Vec<_> = self.requests.iter().filter(|(_, request)| theirs(request)).map(|(id, _)| *id).collect();
            for request in stop {
                self.abort(request);
            }
        }
        guesses
    }
}

fn tier(step: Step) -> Tier {
    match step {
        Step::Fetch => Tier::Nvme,
        Step::Promote => Tier::Ram,
    }
}
