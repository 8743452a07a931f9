//! The course of a flight: from a promise of room to a whole, named file, or to an end without one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::Source;
use crate::clock::Tick;
use crate::engine::event::{Ahead, Commit, CommitFault, Effect, RequestId};
use crate::engine::state::ensure::{Step, arrived};
use crate::engine::state::flight::{Flight, Keep, Stage};
use crate::engine::state::{DISK_JOBS_MAX, Fate, State};
use crate::engine::view::{Decided, Phase, Priority, What};
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, ModelKey, OriginName};
use crate::piece::{self, Cv, Layout};
use crate::plan::expected::Expected;
use crate::store::{PartialName, StoredLink};

impl State {
    /// Joins the flight that brings a model, or starts one. Tells whether it was there.
    pub(super) fn fly(&mut self, model: &ModelKey, priority: Priority, now: Tick) -> Result<(FlightId, bool), Fault> {
        let Some(entry) = self.catalog.get(model) else {
            return Err(Fault::unknown_model(model, "it left its origin"));
        };
        let sha256 = entry.sha256;
        let (digest, vouched) = self.expected(model, entry);
        let (bytes, sources) = (entry.bytes, entry.sources.clone());
        let Some(first) = sources.first() else {
            return Err(Fault::unknown_model(model, "no origin has it"));
        };
        let name = digest.map_or_else(|| PartialName::of_source(first), PartialName::of_blob);
        let source = Some(first.clone());
        if let Some((id, flight)) =
            self.flights.iter_mut().find(|(_, flight)| flight.name == name && !flight.is_ending())
        {
            let id = *id;
            let committing = matches!(flight.stage, Stage::Committing(_));
            if !committing || flight.models.contains_key(model) {
                flight.models.insert(model.clone(), source);
                flight.priority = flight.priority.max(priority);
                return Ok((id, true));
            }
        }
        let most = self.config.limits.flights_max;
        if self.flights.len() >= most as usize {
            return Err(Fault::Busy { limit: "flights_max", max: most.into() });
        }
        let id = FlightId(self.next_flight);
        self.next_flight += 1;
        let layout = self.layout(bytes);
        let flight = Flight {
            name,
            layout,
            models: BTreeMap::from([(model.clone(), source)]),
            digest,
            vouched,
            sha256,
            sources,
            priority,
            started: now,
            stage: Stage::Waiting,
            disk_since: now,
            disk_busy: false,
            committing: None,
            has_file: false,
            is_open: false,
            reserved: 0,
            cvs: vec![None; layout.pieces() as usize],
            pending: (0..layout.pieces()).collect(),
            delayed: BTreeMap::new(),
            attempts: BTreeMap::new(),
            requests: BTreeSet::new(),
            excluded: BTreeSet::new(),
            suspect: None,
            retries: 0,
            restarts: 0,
            bytes_fetched: 0,
            last_origin: None,
            landing: 0,
            passes: false,
            ahead: false,
            guess: false,
            begun: false,
        };
        self.flights.insert(id, flight);
        Ok((id, false))
    }

    pub(super) fn layout(&self, bytes: u64) -> Layout {
        Layout::with_pieces_of(bytes, self.config.executor.piece_bytes)
    }

    /// Lets flights take their next step on the disk, a few at a time, demand first.
    pub(super) fn advance_flights(&mut self, now: Tick) {
        let order = self.in_turn(|_| true);
        let mut committing: BTreeSet<BlobId> = self.flights.values().filter_map(|flight| flight.committing).collect();
        for (_, id) in order {
            let Some(flight) = self.flights.get_mut(&id) else { continue };
            let on_its_way_out = |blob| self.blobs.get(&blob).is_some_and(|blob| blob.fate != Fate::Kept);
            match flight.stage {
                // Two names may turn out to have one content: the second finds it stored.
                Stage::Whole(blob) if on_its_way_out(blob) || committing.contains(&blob) => {}
                Stage::Granted if self.disk_jobs < DISK_JOBS_MAX => {
                    flight.stage = Stage::Opening;
                    flight.disk_busy = true;
                    flight.disk_since = now;
                    self.disk_jobs += 1;
                    self.out.push(Effect::Open { flight: id, name: flight.name, bytes: flight.layout.bytes() });
                }
                Stage::Whole(blob) if self.disk_jobs < DISK_JOBS_MAX => {
                    flight.stage = Stage::Committing(blob);
                    flight.committing = Some(blob);
                    committing.insert(blob);
                    flight.disk_busy = true;
                    flight.disk_since = now;
                    self.disk_jobs += 1;
                    let link = |(model, source): (&ModelKey, &Option<Source>)| StoredLink {
                        model: model.clone(),
                        blob,
                        source: source.clone(),
                    };
                    self.out.push(Effect::Commit {
                        flight: id,
                        blob,
                        cvs: flight.cvs.iter().flatten().copied().collect(),
                        promised: flight.digest.is_some() && !flight.vouched,
                        sha256: flight.sha256.filter(|_| flight.digest.is_none() || flight.vouched),
                        links: flight.models.iter().map(link).collect(),
                    });
                }
                Stage::Restarting if flight.requests.is_empty() => self.restart(id),
                Stage::Ending(keep) if flight.requests.is_empty() && !flight.disk_busy => self.let_go(id, keep, now),
                _ => {}
            }
        }
    }

    pub(super) fn opened(&mut self, id: FlightId, pieces: Result<Vec<(u32, Cv)>, Fault>, now: Tick) {
        self.disk_jobs = self.disk_jobs.saturating_sub(1);
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.disk_busy = false;
        flight.has_file |= pieces.is_ok();
        flight.is_open = pieces.is_ok();
        if flight.is_ending() {
            return;
        }
        match pieces {
            Ok(pieces) => {
                Arc::make_mut(&mut self.rates).open.saw(flight.layout.bytes(), now.since(flight.disk_since));
                flight.stage = Stage::Fetching;
                flight.forget_pieces();
                for (piece, cv) in pieces {
                    flight.cvs[piece as usize] = Some(cv);
                    flight.pending.remove(&piece);
                }
                self.start_landing(id, now);
                self.check_whole(id, now);
            }
            Err(fault) => self.end_flight(id, &fault, Keep::Pieces, now),
        }
    }

    pub(super) fn piece_done(&mut self, id: FlightId, request: RequestId, piece: u32, cv: Cv, now: Tick) {
        if let Some(request) = self.requests.get_mut(&request) {
            request.left.remove(&piece);
        }
        let Some(flight) = self.flights.get_mut(&id) else { return };
        if !flight.takes_pieces() || flight.cvs[piece as usize].is_some() {
            return;
        }
        flight.cvs[piece as usize] = Some(cv);
        flight.pending.remove(&piece);
        flight.delayed.remove(&piece);
        flight.attempts.remove(&piece);
        flight.bytes_fetched += flight.bytes_of(piece);
        let bytes = flight.bytes_of(piece);
        for ensure in self.ensures.values_mut() {
            if ensure.wants.iter().any(|want| want.step == Step::Flying(id)) {
                ensure.bytes_fetched += bytes;
            }
        }
        self.check_whole(id, now);
    }

    /// If all pieces are there: do they add up to what was promised?
    fn check_whole(&mut self, id: FlightId, now: Tick) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        if flight.cvs.iter().any(Option::is_none) {
            return;
        }
        let cvs: Vec<Cv> = flight.cvs.iter().flatten().copied().collect();
        let root = piece::root(flight.layout, &cvs);
        match flight.digest {
            Some(digest) if digest != root => {
                self.corrupt(id, format!("blake3 {digest}"), format!("blake3 {root}"), now)
            }
            _ => flight.stage = Stage::Whole(root),
        }
    }

    /// The bytes are wrong. Once, everything is fetched again, from another origin if there is one; then the flight fails.
    fn corrupt(&mut self, id: FlightId, expected: String, actual: String, now: Tick) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let origin = flight.last_origin.clone().or_else(|| flight.sources.first().map(|source| source.origin.clone()));
        let origin = origin.unwrap_or_else(|| OriginName::new("unknown"));
        if flight.suspect.is_some() {
            let model = flight.models.keys().next().cloned();
            let Some(model) = model else { return };
            // If our own digest is what the origin contradicts, the next ensure starts from what the origin says.
            for model in flight.models.keys() {
                self.vouched.remove(model);
            }
            let fault = Fault::Corrupt { model, origin, expected, actual };
            self.end_flight(id, &fault, Keep::Nothing, now);
            return;
        }
        tracing::warn!(flight = %id, %origin, expected, actual, "whole blob does not match, fetching it again");
        flight.suspect = Some((expected, actual));
        if flight.sources.iter().any(|source| source.origin != origin && !flight.excluded.contains(&source.origin)) {
            flight.excluded.insert(origin);
        }
        flight.stage = Stage::Fetching;
        flight.forget_pieces();
        self.out.push(Effect::Reset(id));
    }

    pub(super) fn committed(&mut self, id: FlightId, result: Result<Commit, CommitFault>, now: Tick) {
        self.disk_jobs = self.disk_jobs.saturating_sub(1);
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.disk_busy = false;
        flight.committing = None;
        let Stage::Committing(blob) = flight.stage else {
            // Cancelled while it was being committed. What is on the disk under its names is whole, so it counts.
            if let (Ok(commit), Stage::Ending(_)) = (&result, &flight.stage) {
                self.land(id, None, *commit, now);
            }
            return;
        };
        match result {
            Ok(commit) => {
                Arc::make_mut(&mut self.rates).commit.saw(flight.layout.bytes(), now.since(flight.disk_since));
                self.land(id, Some(blob), commit, now);
            }
            Err(CommitFault::Corrupt { expected, actual }) => self.corrupt(id, expected, actual, now),
            Err(CommitFault::Local(fault)) => self.end_flight(id, &fault, Keep::Pieces, now),
        }
    }

    /// A flight's blob is on the disk under its names.
    fn land(&mut self, id: FlightId, blob: Option<BlobId>, commit: Commit, now: Tick) {
        if self.passes(id) {
            // If it finds no place after all, to fetch it again at once would end the same way.
            self.put_off(id, now);
        }
        let Some(mut flight) = self.flights.remove(&id) else { return };
        let cvs: Vec<Cv> = flight.cvs.iter().flatten().copied().collect();
        let blob = blob.unwrap_or_else(|| piece::root(flight.layout, &cvs));
        let landed = flight.landing > 0;
        self.end_landing(&mut flight);
        let bytes = flight.layout.bytes();
        if self.blobs.contains_key(&blob) {
            self.disk.unreserve(flight.reserved);
        } else {
            let sha256 = commit.sha256.or(flight.sha256);
            if flight.passes {
                self.insert_passing(blob, bytes, commit.trust, sha256, now);
            } else {
                self.disk.settle(flight.reserved);
                self.insert_blob(blob, bytes, commit.trust, sha256, now);
            }
        }
        for (model, source) in &flight.models {
            self.name(StoredLink { model: model.clone(), blob, source: source.clone() }, now);
            self.out.push(Effect::Record(What::Stored {
                model: model.clone(),
                blob,
                bytes,
                fetched: flight.bytes_fetched,
                origin: flight.last_origin.clone(),
                trust: commit.trust,
                elapsed_ms: now.since(flight.started).as_millis() as u64,
            }));
        }
        let mut held = 0;
        for ensure in self.ensures.values_mut() {
            for want in ensure.wants.iter_mut().filter(|want| want.step == Step::Flying(id)) {
                want.step = arrived(&self.memory, ensure.request.target, blob);
                want.hold = Some(blob);
                held += 1;
                if ensure.request.priority == Priority::Demand && !std::mem::replace(&mut want.counted, true) {
                    self.plan.asked(blob, bytes, crate::plan::Beside::default(), now);
                }
            }
        }
        if let Some(blob) = self.blobs.get_mut(&blob) {
            blob.holds += held;
        }
        let (what, reason) = if flight.ahead {
            (Decided::Prefetched, "a queued prompt will need it")
        } else if flight.priority == Priority::Demand {
            (Decided::Fetched, "somebody waited for it")
        } else {
            (Decided::Prefetched, "somebody asked for it ahead of time")
        };
        self.decided(blob, what, reason.to_owned(), None);
        self.place(blob, true, now);
        // What was promised a line above is still there: its pages are locked before anybody else asks.
        self.memory.landed = landed.then_some(blob);
        self.fill_memory(now);
        self.memory.landed = None;
        let mut view = self.flight_view(id, &flight, now);
        view.blob = Some(blob);
        view.phase = Phase::Ready;
        self.remember(view, Ok(()));
    }

    /// Ends a flight badly: tells who waits, stops its requests; its file is let go when they have stopped.
    pub(super) fn end_flight(&mut self, id: FlightId, fault: &Fault, keep: Keep, now: Tick) {
        let Some(flight) = self.flights.get(&id) else { return };
        if flight.is_ending() {
            return;
        }
        self.let_go += 1;
        let view = self.flight_view(id, flight, now);
        if flight.ahead && !matches!(fault, Fault::Cancelled { .. } | Fault::ShuttingDown) {
            self.out.push(Effect::CountAhead(Ahead::Failed));
        }
        self.put_off(id, now);
        self.out.push(Effect::Record(What::FlightFailed {
            flight: id,
            models: view.models.clone(),
            fault: fault.kind().to_owned(),
            detail: fault.to_string(),
        }));
        self.remember(view, Err(fault.clone()));
        self.each_want(|want| want.step == Step::Flying(id), &Step::Failed(fault.clone()));
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.stage = Stage::Ending(keep);
        let requests: Vec<RequestId> = flight.requests.iter().copied().collect();
        for request in requests {
            self.abort(request);
        }
    }

    /// Stops a flight for everyone who waits for it. Finished pieces are kept.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`].
    pub fn cancel(&mut self, id: FlightId, by: &str, now: Tick) -> Result<Vec<Effect>, Fault> {
        if self.flights.get(&id).is_none_or(Flight::is_ending) {
            let hint = "it ended or never was; see tierd flights".to_owned();
            return Err(Fault::NotFound { what: format!("flight {id}"), hint });
        }
        self.end_flight(id, &Fault::Cancelled { by: by.to_owned() }, Keep::Pieces, now);
        self.settle(now);
        Ok(std::mem::take(&mut self.out))
    }

    /// Ends every flight and every caller, because the daemon does. Finished pieces are kept.
    pub fn drain(&mut self, now: Tick) -> Vec<Effect> {
        self.expected = Expected::default();
        self.guessing.config.mode = crate::plan::predict::PredictMode::Shadow;
        let flights: Vec<FlightId> = self.flights.keys().copied().collect();
        for id in flights {
            self.end_flight(id, &Fault::ShuttingDown, Keep::Pieces, now);
        }
        let unsettled = |step: &Step| !step.is_settled();
        self.each_want(|want| unsettled(&want.step), &Step::Failed(Fault::ShuttingDown));
        self.settle(now);
        std::mem::take(&mut self.out)
    }

    /// Whether no flight is left, not even an ending one.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.flights.is_empty()
    }
}
