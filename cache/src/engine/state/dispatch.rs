//! Which piece is fetched next, from where: demand before prefetch, within the connections that each origin gets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Source;
use crate::clock::Tick;
use crate::engine::event::{Broken, Effect, Fetch, RequestId};
use crate::engine::state::expect::Urgency;
use crate::engine::state::flight::{Flight, Keep, Stage};
use crate::engine::state::{Lane, State};
use crate::engine::view::Priority;
use crate::fault::Fault;
use crate::ids::{FlightId, OriginName};
use crate::plan::expected::Rank;

/// First requests of expected flights that run beyond the connections that are filled otherwise.
const BEGIN_MAX: usize = 8;

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) flight: FlightId,
    pub(crate) source: Source,
    /// Pieces that it still owes.
    pub(crate) left: BTreeSet<u32>,
    pub(crate) aborting: bool,
    /// Whether it is the first of a flight that is only expected: it is spared while nobody waits.
    pub(crate) first: bool,
    pub(crate) started: Tick,
    /// Bytes that it was asked for.
    pub(crate) bytes: u64,
    /// Requests to its origin when it started, itself included.
    pub(crate) beside: u32,
}

impl State {
    /// Hands out pieces while there are connections.
    pub(super) fn dispatch(&mut self, now: Tick) {
        self.end_backoffs(now);
        let mut starved = vec![false; self.lanes.len()];
        let yielding = self.yield_guesses();
        let mut order = self.dispatch_order();
        order.retain(|(_, id)| !yielding.contains(id));
        self.begin_ahead(&order, now);
        let mut waiting: Option<Urgency> = None;
        for (urgency, id) in order {
            if waiting.is_some_and(|waiting| waiting < urgency) {
                break;
            }
            self.dispatch_flight(id, &mut starved, now);
            let waits = self.flights.get(&id).is_some_and(|flight| !flight.pending.is_empty());
            waiting = waiting.or(waits.then_some(urgency));
        }
        for (lane, starved) in self.lanes.iter_mut().zip(&starved) {
            lane.connections.wanted_more(*starved);
        }
        if let Some(waiting) = waiting.filter(|waiting| *waiting < Urgency::Guess) {
            self.stop_less_urgent(waiting);
        }
    }

    /// Flights that want bytes: the most urgent first, then the nearest use, then the oldest; inside one set the largest was
    /// created first.
    fn dispatch_order(&self) -> Vec<(Urgency, FlightId)> {
        self.in_turn(|flight| flight.stage == Stage::Fetching && !flight.pending.is_empty())
    }

    /// Gives each flight that is only expected its first request as soon as it can have one, a few beyond the connections that
    /// the nearest ones fill: that its origin refuses or has lost a model must be known while there is time, not when its prompt runs.
    ///
    /// Not while a caller waits: demand goes before all guesses.
    fn begin_ahead(&mut self, order: &[(Urgency, FlightId)], now: Tick) {
        if self.caller_waits() {
            return;
        }
        let mut room = BEGIN_MAX.saturating_sub(self.requests.values().filter(|request| request.first).count());
        for (_, id) in order {
            let Some(flight) = self.flights.get(id).filter(|flight| flight.ahead && !flight.begun) else { continue };
            let Some(first) = flight.pending.first().copied().filter(|_| room > 0) else { continue };
            let running: u32 = self.lanes.iter().map(|lane| lane.running).sum();
            let free = |lane: &Lane| {
                lane.paused_until <= now
                    && !lane.ignores_ranges
                    && lane.running < lane.connections.max()
                    && running < self.config.fetch.connections_max
            };
            let lane_of =
                |source: &Source| self.lanes.iter().position(|lane| lane.origin == source.origin && free(lane));
            let found = flight.usable().find_map(|source| Some((lane_of(source)?, source.clone())));
            let Some((lane, source)) = found else { continue };
            room -= 1;
            self.start_request(*id, (lane, source), BTreeSet::from([first]), false, now);
        }
    }

    /// Whether a flight that a caller asked for waits for connections.
    fn caller_waits(&self) -> bool {
        let waits = |flight: &Flight| flight.priority == Priority::Demand && flight.stage == Stage::Fetching;
        self.flights.values().any(|flight| waits(flight) && !flight.pending.is_empty())
    }

    fn dispatch_flight(&mut self, id: FlightId, starved: &mut [bool], now: Tick) {
        loop {
            let Some(flight) = self.flights.get(&id) else { return };
            let Some(first) = flight.pending.first().copied() else { return };
            let Some((lane, source)) = self.open_lane(flight, starved, now) else { return };
            let whole = self.lanes[lane].ignores_ranges;
            if whole && !flight.requests.is_empty() {
                // One stream carries the whole object. It starts once every ranged request has had its answer, or it would
                // leave out pieces that another stream would have to carry from the beginning.
                return;
            }
            let pieces: BTreeSet<u32> = if whole { flight.pending.clone() } else { BTreeSet::from([first]) };
            self.start_request(id, (lane, source), pieces, whole, now);
        }
    }

    /// The first usable source of a flight whose origin has a connection to give. Notes which origins had none.
    fn open_lane(&self, flight: &Flight, starved: &mut [bool], now: Tick) -> Option<(usize, Source)> {
        let running: u32 = self.lanes.iter().map(|lane| lane.running).sum();
        for source in flight.usable() {
            let Some(index) = self.lanes.iter().position(|lane| lane.origin == source.origin) else { continue };
            let lane = &self.lanes[index];
            if lane.paused_until > now {
                continue;
            }
            if lane.running < lane.connections.allowed() && running < self.config.fetch.connections_max {
                return Some((index, source.clone()));
            }
            starved[index] = true;
        }
        None
    }

    fn start_request(
        &mut self,
        id: FlightId,
        (lane, source): (usize, Source),
        pieces: BTreeSet<u32>,
        whole: bool,
        now: Tick,
    ) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let request = RequestId(self.next_request);
        self.next_request += 1;
        for piece in &pieces {
            flight.pending.remove(piece);
        }
        flight.requests.insert(request);
        let first_one = !std::mem::replace(&mut flight.begun, true) && flight.ahead;
        flight.last_origin = Some(source.origin.clone());
        self.lanes[lane].running += 1;
        let all = 0..flight.layout.pieces();
        let (first, count) =
            if whole { (0, all.end) } else { (pieces.first().copied().unwrap_or(0), pieces.len() as u32) };
        let skip = if whole { all.filter(|piece| !pieces.contains(piece)).collect() } else { Vec::new() };
        let bytes = pieces.iter().map(|piece| flight.bytes_of(*piece)).sum();
        let beside = self.lanes[lane].running;
        let priority = self.flights.get(&id).map_or(Priority::Prefetch, |flight| self.priority_of(flight));
        self.out.push(Effect::Fetch(Fetch {
            request,
            flight: id,
            source: source.clone(),
            first,
            count,
            whole,
            skip,
            priority,
        }));
        let started = now;
        let asked =
            Request { flight: id, source, left: pieces, aborting: false, first: first_one, started, bytes, beside };
        self.requests.insert(request, asked);
    }

    /// What is urgent waits for connections that less urgent flights hold: they give them up at once, the farthest first. Their pieces
    /// wait for a quiet moment.
    fn stop_less_urgent(&mut self, waiting: Urgency) {
        let waits = |flight: &Flight| flight.stage == Stage::Fetching && self.turn(flight).0 <= waiting;
        let wanted: usize =
            self.flights.values().filter(|flight| waits(flight)).map(|flight| flight.pending.len()).sum();
        let spare_first = !self.caller_waits();
        let mut stop: Vec<((Urgency, Rank), RequestId)> = Vec::new();
        for (id, request) in &self.requests {
            let turn =
                self.flights.get(&request.flight).map_or((Urgency::Guess, Rank::NEVER), |flight| self.turn(flight));
            if turn.0 > waiting && !request.aborting && !(spare_first && request.first) {
                stop.push((turn, *id));
            }
        }
        stop.sort_unstable();
        let stop: Vec<RequestId> = stop.into_iter().rev().map(|(_, id)| id).take(wanted).collect();
        for request in stop {
            self.abort(request);
        }
    }

    pub(super) fn abort(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id).filter(|request| !request.aborting) {
            request.aborting = true;
            self.out.push(Effect::Abort(id));
        }
    }

    pub(super) fn request_ended(&mut self, id: FlightId, request: RequestId, result: Result<(), Broken>, now: Tick) {
        let Some(ended) = self.requests.remove(&request) else { return };
        let origin = ended.source.origin.clone();
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.origin == origin) {
            // The middle of how many there were when it began and when it ended.
            let beside = (ended.beside + lane.running).div_ceil(2);
            lane.running -= 1;
            if result.is_ok() {
                Arc::make_mut(&mut self.rates).request(&origin, beside, ended.bytes, now.since(ended.started));
            }
        }
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.requests.remove(&request);
        if !flight.takes_pieces() {
            return;
        }
        let left: BTreeSet<u32> =
            ended.left.into_iter().filter(|piece| flight.cvs[*piece as usize].is_none()).collect();
        flight.pending.extend(&left);
        if flight.stage == Stage::Relocating {
            return;
        }
        match result {
            // A request that says it is done but owes pieces is a broken one.
            Ok(()) if left.is_empty() => {}
            Ok(()) => self.transient(id, &origin, &left, "the body ended early", None, now),
            Err(Broken::Aborted) => {}
            Err(Broken::Transient { detail, status }) => self.transient(id, &origin, &left, &detail, status, now),
            Err(Broken::Throttled { status, retry_after }) => {
                self.throttled(id, &origin, &left, status, retry_after, now);
            }
            Err(Broken::Changed) => self.source_changed(id, &origin, now),
            Err(Broken::RangeIgnored) => {
                if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.origin == origin && !lane.ignores_ranges) {
                    tracing::warn!(%origin, "it ignores ranges: one stream for each file from here on");
                    lane.ignores_ranges = true;
                }
            }
            Err(Broken::Refused(fault)) => self.source_failed(id, &origin, &fault, now),
            Err(Broken::Local(fault)) => self.end_flight(id, &fault, Keep::Pieces, now),
        }
    }

    fn transient(
        &mut self,
        id: FlightId,
        origin: &OriginName,
        left: &BTreeSet<u32>,
        detail: &str,
        status: Option<u16>,
        now: Tick,
    ) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.origin == *origin) {
            lane.connections.failed(now);
        }
        let Some(tries) = self.postpone(id, left, None, now) else { return };
        tracing::debug!(flight = %id, %origin, detail, tries, "request failed");
        if tries >= self.config.fetch.attempts_max {
            let fault = Fault::OriginUnavailable {
                origin: origin.clone(),
                status,
                retry_after: Some(self.config.fetch.backoff_max),
                detail: format!("{detail} ({tries} attempts)"),
            };
            self.source_failed(id, origin, &fault, now);
        }
    }

    fn throttled(
        &mut self,
        id: FlightId,
        origin: &OriginName,
        left: &BTreeSet<u32>,
        status: u16,
        retry_after: Option<Duration>,
        now: Tick,
    ) {
        let most = self.config.fetch.backoff_max;
        let wait = retry_after.map(|wait| wait.min(most));
        let Some(tries) = self.postpone(id, left, wait, now) else { return };
        let wait = wait.unwrap_or_else(|| self.backoff(tries));
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.origin == *origin) {
            lane.paused_until = lane.paused_until.max(now.after(wait));
            lane.connections.failed(now);
        }
        if tries >= self.config.fetch.attempts_max {
            let detail = format!("it asked to slow down {tries} times (http {status})");
            let fault = Fault::OriginUnavailable { origin: origin.clone(), status: Some(status), retry_after, detail };
            self.source_failed(id, origin, &fault, now);
        }
    }

    /// Puts pieces aside until their back-off ends. Returns how often the worst of them has failed.
    fn postpone(&mut self, id: FlightId, left: &BTreeSet<u32>, wait: Option<Duration>, now: Tick) -> Option<u32> {
        let first = *left.first()?;
        let flight = self.flights.get_mut(&id)?;
        flight.retries += 1;
        let tries = flight.attempts.entry(first).or_insert(0);
        *tries += 1;
        let tries = *tries;
        let wait = wait.unwrap_or_else(|| self.backoff(tries));
        let flight = self.flights.get_mut(&id)?;
        for piece in left {
            flight.pending.remove(piece);
            flight.delayed.insert(*piece, now.after(wait));
        }
        Some(tries)
    }

    /// Doubles with each attempt up to a bound; the upper half is random, so that clients do not come back together.
    fn backoff(&mut self, attempt: u32) -> Duration {
        let fetch = &self.config.fetch;
        let full = fetch.backoff_min.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(fetch.backoff_max);
        full.mul_f64(0.5 + 0.5 * self.rng.f64())
    }

    fn end_backoffs(&mut self, now: Tick) {
        for flight in self.flights.values_mut().filter(|flight| !flight.delayed.is_empty()) {
            let over: Vec<u32> =
                flight.delayed.iter().filter(|(_, until)| **until <= now).map(|(piece, _)| *piece).collect();
            for piece in over {
                flight.delayed.remove(&piece);
                flight.pending.insert(piece);
            }
        }
    }

    /// When the next back-off or pause ends.
    pub(super) fn next_retry(&self) -> Option<Tick> {
        let delayed = self.flights.values().flat_map(|flight| flight.delayed.values().copied());
        let wanted = self.flights.values().any(|flight| flight.stage == Stage::Fetching && !flight.pending.is_empty());
        let paused = self.lanes.iter().map(|lane| lane.paused_until).filter(|until| wanted && *until > self.settled);
        delayed.chain(paused).min()
    }

    pub(super) fn sample(&mut self, origin: &OriginName, bytes: u64, now: Tick) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.origin == *origin) {
            lane.connections.sample(bytes, lane.running > 0, now);
        }
    }
}
