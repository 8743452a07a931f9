//! Read-only views of the state for the outside.

use crate::clock::Tick;
use crate::engine::event::RequestId;
use crate::engine::known::{Here, Known};
use crate::engine::state::ensure::Step;
use crate::engine::state::flight::Flight;
use crate::engine::state::{Fate, State};
use crate::engine::view::{
    EnsureProgress, FlightView, LeaseView, ModelFilter, ModelPage, ModelProgress, ModelView, Phase, Priority,
    SourceView, Tier, TierView,
};
use crate::fault::Fault;
use crate::ids::{BlobId, EnsureId, FlightId, ModelKey, OriginName, canonical_folder};

/// Largest page of models.
const PAGE_MAX: u32 = 1000;

impl State {
    /// Whether a caller asked for what a flight brings. What is expected or guessed was asked for by nobody yet, however near it is.
    #[must_use]
    pub fn is_demanded(&self, flight: FlightId) -> bool {
        self.flights.get(&flight).is_some_and(|flight| flight.priority == Priority::Demand)
    }

    pub(super) fn flight_view(&self, id: FlightId, flight: &Flight, now: Tick) -> FlightView {
        FlightView {
            flight: id,
            models: flight.models.keys().cloned().collect(),
            blob: flight.digest,
            priority: self.priority_of(flight),
            phase: flight.phase(),
            bytes_total: flight.layout.bytes(),
            bytes_done: flight.bytes_done(),
            connections: flight.requests.len() as u32,
            retries: flight.retries,
            waiters: self.waiters(id),
            elapsed: now.since(flight.started),
            ended: None,
        }
    }

    /// One flight, under way or ended not long ago.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`].
    pub fn flight(&self, id: FlightId, now: Tick) -> Result<FlightView, Fault> {
        if let Some(ended) = self.ended.get(&id) {
            return Ok(ended.view.clone());
        }
        let flight = self.flights.get(&id).ok_or_else(|| Fault::NotFound {
            what: format!("flight {id}"),
            hint: "it never was, or it ended long ago; see tierd flights".to_owned(),
        })?;
        Ok(self.flight_view(id, flight, now))
    }

    /// All flights under way.
    #[must_use]
    pub fn flights(&self, now: Tick) -> Vec<FlightView> {
        let live = self.flights.iter().filter(|(_, flight)| !flight.is_ending());
        live.map(|(id, flight)| self.flight_view(*id, flight, now)).collect()
    }

    /// How far a caller is. `received` gives the bytes that a request has received of pieces that are not done.
    #[must_use]
    pub fn progress(&self, id: EnsureId, received: &dyn Fn(RequestId) -> u64, now: Tick) -> Option<EnsureProgress> {
        let ensure = self.ensures.get(&id).filter(|ensure| ensure.admitted)?;
        let mut progress = EnsureProgress {
            elapsed: now.since(ensure.started),
            bytes_done: 0,
            bytes_total: 0,
            bytes_per_second: 0,
            remaining: None,
            models: Vec::with_capacity(ensure.wants.len()),
        };
        for want in &ensure.wants {
            let bytes_total = self.model_bytes(want);
            let (phase, bytes_done) = match &want.step {
                Step::Ready(_) => (Phase::Ready, bytes_total),
                Step::Failed(_) => (Phase::Failed, 0),
                Step::Flying(flight) => self.flights.get(flight).map_or((Phase::Waiting, 0), |flight| {
                    let passing: u64 = flight.requests.iter().map(|request| received(*request)).sum();
                    (flight.phase(), (flight.bytes_done() + passing).min(bytes_total))
                }),
                Step::Scrubbing(_) | Step::Inspecting(_) | Step::Linking(_) => (Phase::Checking, 0),
                Step::Locking(_) => (Phase::Locking, bytes_total),
                Step::Locating | Step::Missing => (Phase::Waiting, 0),
            };
            progress.bytes_total += bytes_total;
            progress.bytes_done += bytes_done;
            progress.models.push(ModelProgress { model: want.model.clone(), bytes_total, bytes_done, phase });
        }
        Some(progress)
    }

    /// One model.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] if no origin and no tier knows it.
    pub fn model(&self, model: &ModelKey) -> Result<ModelView, Fault> {
        if self.catalog.get(model).is_none() && !self.links.contains_key(model) {
            return Err(Fault::unknown_model(model, "no origin lists it and it is not on this node; see tierd models"));
        }
        Ok(self.model_view(model))
    }

    fn model_view(&self, model: &ModelKey) -> ModelView {
        let entry = self.catalog.get(model);
        let link = self.links.get(model);
        let blob = link.and_then(|link| self.blobs.get(&link.blob)).filter(|blob| blob.fate == Fate::Kept);
        let leases = self.leases.iter().filter(|(_, lease)| lease.view.models.contains(model)).map(|(id, _)| *id);
        let flight = self.flights.iter().find(|(_, flight)| !flight.is_ending() && flight.models.contains_key(model));
        let source = |source: &crate::catalog::Source| SourceView {
            origin: source.origin.clone(),
            path: source.path.clone(),
            etag: source.validator.etag.clone(),
        };
        ModelView {
            model: model.clone(),
            bytes: blob.map(|blob| blob.bytes).or(entry.map(|entry| entry.bytes)).unwrap_or(0),
            blob: blob.and(link).map(|link| link.blob).or(entry.and_then(|entry| entry.blake3)),
            sha256: blob.and_then(|blob| blob.sha256).or(entry.and_then(|entry| entry.sha256)),
            tier: self.tier_of(model),
            path: blob.map(|_| self.config.models.join(model.as_str())),
            trust: blob.map(|blob| blob.trust),
            last_used: blob.map(|blob| blob.last_used),
            leases: leases.collect(),
            flight: flight.map(|(id, _)| *id),
            sources: entry.map(|entry| entry.sources.iter().map(source).collect()).unwrap_or_default(),
            vram: blob.and(link).map_or(0, |link| self.vram.ledger.loaded(link.blob)),
        }
    }

    /// One page of models, in the order of their keys, starting behind `after`.
    #[must_use]
    pub fn models(&self, filter: &ModelFilter, after: Option<&ModelKey>, max: u32) -> ModelPage {
        let max = if max == 0 { PAGE_MAX } else { max.min(PAGE_MAX) } as usize;
        let folder = filter.folder.as_deref().map(canonical_folder);
        let contains = filter.contains.as_ref().map(|text| text.to_lowercase());
        let mut keys: std::collections::BTreeSet<&ModelKey> = self.catalog.iter().map(|(key, _)| key).collect();
        keys.extend(self.links.keys());
        let mut page = ModelPage { models: Vec::new(), next: None, total: 0 };
        for key in keys {
            if folder.is_some_and(|folder| key.folder() != folder) {
                continue;
            }
            if contains.as_ref().is_some_and(|text| !key.as_str().to_lowercase().contains(text)) {
                continue;
            }
            let leased = || self.leases.values().any(|lease| lease.view.models.contains(key));
            if filter.pinned && !leased() {
                continue;
            }
            if filter.tier.is_some_and(|tier| tier != self.tier_of(key)) {
                continue;
            }
            page.total += 1;
            if after.is_some_and(|after| key <= after) {
                continue;
            }
            if page.models.len() < max {
                page.models.push(self.model_view(key));
            } else if page.next.is_none() {
                page.next = page.models.last().map(|model| model.model.clone());
            }
        }
        page
    }

    /// All names that some origin or tier knows.
    #[must_use]
    pub fn known(&self) -> Known {
        let here = self.links.keys().filter_map(|model| {
            let (_, bytes) = self.stored(model)?;
            Some((model.clone(), Here { bytes, tier: self.tier_of(model) }))
        });
        Known::new(self.catalog.clone(), here.collect())
    }

    fn tier_of(&self, model: &ModelKey) -> Tier {
        let link = self.links.get(model);
        let blob = link.and_then(|link| self.blobs.get(&link.blob));
        match (blob, link) {
            (Some(blob), Some(link)) if blob.fate == Fate::Kept => self.fastest(link.blob),
            _ => Tier::Origin,
        }
    }

    /// The disk's budget. `mode` says how it is written.
    #[must_use]
    pub fn disk(&self, mode: &str) -> TierView {
        let held = self.blobs.iter().filter(|(id, _)| self.holder(**id).is_some()).map(|(_, blob)| blob.bytes);
        TierView {
            tier: Tier::Nvme,
            capacity: self.disk.limit(),
            used: self.disk.used(),
            reserved: self.disk.reserved(),
            models: self.links.len() as u64,
            held: held.sum(),
            mode: mode.to_owned(),
            detail: String::new(),
        }
    }

    /// The RAM tier's budget. `mode` says how pages are held.
    #[must_use]
    pub fn memory(&self, mode: &str) -> TierView {
        let locked = self.memory.held.keys().filter(|blob| self.memory.is_locked(**blob));
        let hard =
            self.memory.held.iter().filter(|(blob, _)| self.ram_holder(**blob).is_some()).map(|(_, held)| held.bytes);
        TierView {
            tier: Tier::Ram,
            capacity: self.memory.budget.limit(),
            used: self.memory.budget.used(),
            reserved: self.memory.budget.reserved(),
            models: locked.filter_map(|blob| self.blobs.get(blob)).map(|blob| blob.models.len() as u64).sum(),
            held: hard.sum(),
            mode: mode.to_owned(),
            detail: String::new(),
        }
    }

    /// All leases, in the order they began.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseView> {
        self.leases.values().map(|lease| lease.view.clone()).collect()
    }

    /// An origin's connections in use, connections allowed, and bytes a second.
    #[must_use]
    pub fn lane(&self, origin: &OriginName) -> (u32, u32, u64) {
        let lane = self.lanes.iter().find(|lane| lane.origin == *origin);
        lane.map_or((0, 0, 0), |lane| {
            let rate = if lane.running == 0 { 0 } else { lane.connections.rate() };
            (lane.running, lane.connections.allowed(), rate)
        })
    }

    /// Flights under way, callers waiting, leases held, models known to some tier.
    #[must_use]
    pub fn counts(&self) -> (u32, u32, u32, u64) {
        let live = self.flights.values().filter(|flight| !flight.is_ending()).count();
        let mut known = self.catalog.len();
        known += self.links.keys().filter(|model| self.catalog.get(model).is_none()).count();
        (live as u32, self.ensures.len() as u32, self.leases.len() as u32, known as u64)
    }

    /// Flights under way, with what happens to each.
    pub fn phases(&self) -> impl Iterator<Item = (FlightId, Phase)> {
        let live = self.flights.iter().filter(|(_, flight)| !flight.is_ending());
        live.map(|(id, flight)| (*id, flight.phase()))
    }

    /// Flights that somebody waits for, and all others.
    #[must_use]
    pub fn flights_by_need(&self) -> (u32, u32) {
        let live: Vec<&Flight> = self.flights.values().filter(|flight| !flight.is_ending()).collect();
        let needed = live.iter().filter(|flight| flight.priority == Priority::Demand).count();
        (needed as u32, (live.len() - needed) as u32)
    }

    /// Whether somebody needs the node now: a caller waits, or a worker has a prompt.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        let waits = |ensure: &super::ensure::Ensure| ensure.request.priority == Priority::Demand;
        self.ensures.values().any(waits) || self.flights_by_need().0 > 0 || self.vram.ledger.is_working()
    }

    /// Every blob that is whole in VRAM.
    #[must_use]
    pub fn whole_in_vram(&self) -> std::collections::BTreeSet<BlobId> {
        self.vram.ledger.whole()
    }

    /// The names of a stored blob.
    #[must_use]
    pub fn names_of(&self, blob: BlobId) -> Vec<ModelKey> {
        self.blobs.get(&blob).map(|blob| blob.models.iter().cloned().collect()).unwrap_or_default()
    }

    /// Bytes that the disk holds over its budget.
    #[must_use]
    pub fn disk_over(&self) -> u64 {
        self.disk.over()
    }

    /// Every model on the node, with its size and the fastest tier that has it.
    #[must_use]
    pub fn residence(&self) -> Vec<(ModelKey, u64, Tier)> {
        let row = |model: &ModelKey| self.stored(model).map(|(_, bytes)| (model.clone(), bytes, self.tier_of(model)));
        self.links.keys().filter_map(row).collect()
    }

    /// The stored blob under a name, if it is there.
    #[must_use]
    pub fn stored(&self, model: &ModelKey) -> Option<(BlobId, u64)> {
        let link = self.links.get(model)?;
        self.blobs.get(&link.blob).filter(|blob| blob.fate == Fate::Kept).map(|blob| (link.blob, blob.bytes))
    }

    /// Every model that an origin lists.
    #[must_use]
    pub fn listed(&self) -> std::collections::BTreeSet<ModelKey> {
        self.catalog.iter().map(|(model, _)| model.clone()).collect()
    }

    /// Every name on the disk.
    #[must_use]
    pub fn stored_models(&self) -> Vec<ModelKey> {
        self.links.keys().cloned().collect()
    }

    /// The origin that a request under way reads from.
    #[must_use]
    pub fn origin_of(&self, request: RequestId) -> Option<&OriginName> {
        self.requests.get(&request).map(|request| &request.source.origin)
    }

    /// Whether a blob is on its way off the disk.
    #[cfg(test)]
    pub(crate) fn is_leaving(&self, blob: BlobId) -> bool {
        self.blobs.get(&blob).is_none_or(|blob| matches!(blob.fate, Fate::Removing | Fate::Withdrawing))
    }

    /// Requests under way.
    #[must_use]
    pub fn is_fetching(&self) -> bool {
        !self.requests.is_empty()
    }
}
