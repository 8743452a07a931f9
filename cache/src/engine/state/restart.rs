//! Flights that cannot go on as they are: sources that change or fail for good, files that are let go.

use crate::clock::Tick;
use crate::engine::event::{Effect, Relocated, RequestId};
use crate::engine::state::State;
use crate::engine::state::ensure::Step;
use crate::engine::state::flight::{Ended, Keep, Stage};
use crate::engine::view::FlightView;
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, OriginName};
use crate::piece::Layout;
use crate::store::PartialName;

/// Times that a flight starts anew because the object changed under it.
const RESTARTS_MAX: u32 = 4;
/// Ended flights that are remembered, so that a late question gets an answer.
const ENDED_MAX: usize = 256;

impl State {
    /// An object is not the one that was listed: its flight looks it up again, and mixes no old byte with a new one.
    pub(super) fn source_changed(&mut self, id: FlightId, origin: &OriginName, now: Tick) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        if flight.stage != Stage::Fetching || flight.excluded.contains(origin) {
            return;
        }
        let Some(model) = flight.models.keys().next().cloned() else { return };
        flight.restarts += 1;
        if flight.restarts > RESTARTS_MAX {
            let fault = Fault::Changed { model, origin: origin.clone() };
            self.end_flight(id, &fault, Keep::Nothing, now);
            return;
        }
        tracing::warn!(flight = %id, %model, %origin, "the object changed at its origin, looking it up again");
        flight.stage = Stage::Relocating;
        let requests: Vec<RequestId> = flight.requests.iter().copied().collect();
        let manifest = flight.digest.is_some() || flight.sha256.is_some();
        self.out.push(Effect::Relocate { flight: id, model, origin: origin.clone(), manifest });
        for request in requests {
            self.abort(request);
        }
    }

    pub(super) fn relocated(
        &mut self,
        id: FlightId,
        result: Result<(OriginName, Option<Relocated>), Fault>,
        now: Tick,
    ) {
        let Some(flight) = self.flights.get_mut(&id).filter(|flight| flight.stage == Stage::Relocating) else { return };
        match result {
            Ok((_, Some(found))) => {
                for source in flight.models.values_mut() {
                    *source = Some(found.source.clone());
                }
                flight.digest = found.blake3;
                flight.vouched = false;
                flight.sha256 = found.sha256;
                flight.layout = Layout::with_pieces_of(found.source.bytes, self.config.executor.piece_bytes);
                flight.cvs = vec![None; flight.layout.pieces() as usize];
                flight.forget_pieces();
                flight.excluded.clear();
                flight.sources = vec![found.source];
                flight.stage = Stage::Restarting;
            }
            Ok((origin, None)) => {
                flight.stage = Stage::Fetching;
                let model = flight.models.keys().next().map(ToString::to_string).unwrap_or_default();
                let hint = format!("it left origin {origin} while it was being fetched");
                self.source_failed(id, &origin, &Fault::NotFound { what: model, hint }, now);
            }
            Err(fault) => self.end_flight(id, &fault, Keep::Pieces, now),
        }
    }

    /// An origin failed for good: the flight goes on with another one, or ends.
    pub(super) fn source_failed(&mut self, id: FlightId, origin: &OriginName, fault: &Fault, now: Tick) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        if flight.stage != Stage::Fetching || flight.excluded.contains(origin) {
            return;
        }
        flight.excluded.insert(origin.clone());
        if flight.usable().next().is_none() {
            self.end_flight(id, fault, Keep::Pieces, now);
            return;
        }
        tracing::warn!(flight = %id, %origin, %fault, "origin failed, trying the next one");
        let mut unproven = false;
        if flight.digest.is_none() {
            // Nothing proves that the next origin has the same bytes: start anew with it.
            flight.sources.retain(|source| source.origin != *origin);
            flight.stage = Stage::Restarting;
            unproven = true;
        }
        let requests: Vec<RequestId> = flight.requests.iter().copied().collect();
        for request in requests {
            if unproven || self.requests.get(&request).is_some_and(|request| request.source.origin == *origin) {
                self.abort(request);
            }
        }
    }

    /// Deletes the file of a flight and begins anew with the sources that it has now.
    pub(super) fn restart(&mut self, id: FlightId) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let Some(first) = flight.sources.first() else { return };
        let name = flight.digest.map_or_else(|| PartialName::of_source(first), PartialName::of_blob);
        let before = std::mem::replace(&mut flight.name, name);
        let bytes = std::mem::take(&mut flight.reserved);
        flight.passes = false;
        let landing = std::mem::take(&mut flight.landing);
        flight.forget_pieces();
        flight.suspect = None;
        flight.has_file = false;
        flight.is_open = false;
        flight.stage = Stage::Waiting;
        self.memory.budget.unreserve(landing);
        self.disk.settle(bytes);
        self.discarding.insert(before, bytes);
        self.out.push(Effect::Close(id));
        self.out.push(Effect::Discard(before));
    }

    /// A flight that waited for its room finds its blob stored: only its names are missing.
    pub(super) fn arrived_otherwise(&mut self, id: FlightId, blob: BlobId, now: Tick) {
        let Some(flight) = self.flights.remove(&id) else { return };
        let mut held = 0;
        for want in self.ensures.values_mut().flat_map(|ensure| &mut ensure.wants) {
            if want.step == Step::Flying(id) {
                // Looked at like any stored blob, then named.
                want.step = Step::Inspecting(blob);
                want.hold = Some(blob);
                held += 1;
            }
        }
        if let Some(stored) = self.blobs.get_mut(&blob) {
            stored.holds += held;
            let models = stored.models.iter().cloned().collect();
            self.out.push(Effect::Inspect { blob, models });
        }
        let view = self.flight_view(id, &flight, now);
        self.remember(view, Ok(()));
    }

    /// The end of an ended flight: its file becomes an unfinished blob that nobody has open, or is deleted.
    pub(super) fn let_go(&mut self, id: FlightId, keep: Keep, now: Tick) {
        let Some(mut flight) = self.flights.remove(&id) else { return };
        self.end_landing(&mut flight);
        self.let_go += 1;
        if !flight.has_file {
            self.disk.unreserve(flight.reserved);
            return;
        }
        self.disk.settle(flight.reserved);
        if flight.is_open {
            self.out.push(Effect::Close(id));
        }
        match keep {
            Keep::Pieces => {
                self.partials.insert(flight.name, (flight.reserved, now));
            }
            Keep::Nothing => {
                self.discarding.insert(flight.name, flight.reserved);
                self.out.push(Effect::Discard(flight.name));
            }
        }
    }

    pub(super) fn discarded(&mut self, name: PartialName, result: Result<(), Fault>, now: Tick) {
        let Some(bytes) = self.discarding.remove(&name) else { return };
        match result {
            Ok(()) => self.disk.give_back(bytes),
            Err(fault) => {
                tracing::warn!(%fault, "an unfinished blob could not be deleted");
                self.partials.insert(name, (bytes, now));
            }
        }
    }

    /// Keeps the last word of a flight for those who ask later.
    pub(super) fn remember(&mut self, mut view: FlightView, ended: Result<(), Fault>) {
        view.ended = Some(ended);
        self.ended.insert(view.flight, Ended { view });
        while self.ended.len() > ENDED_MAX {
            self.ended.pop_first();
        }
    }
}
