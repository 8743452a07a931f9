//! Effects: each is started here, on a thread or a task of its own, and reports when it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use tokio_util::sync::CancellationToken;

use crate::engine::done::{Done, Running};
use crate::engine::event::{Commit, CommitFault, Effect, Event, Fetch, Found};
use crate::engine::run::Engine;
use crate::engine::scribe::Note;
use crate::engine::view::{EnsureUpdate, Trust, What};
use crate::engine::{fetch, sources};
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, ModelKey, OriginName, Sha256Digest};
use crate::metrics;
use crate::origin::Origin;
use crate::piece::Cv;
use crate::store::{self, Inspection, Partial, Store, StoreError, StoredLink};
use crate::units::MIB;

/// How fast stored bytes are read again while idle: a week's worth is 60 TB, and no reader of an NVMe disk notices.
const PATROL_BYTES_PER_SECOND: u64 = 100 * MIB;

impl Engine {
    /// Starts one effect.
    pub(crate) fn start(&mut self, effect: Effect) {
        self.spans.effect(&effect, self.clock.now(), &self.clock);
        match effect {
            Effect::Inspect { blob, models } => {
                self.on_disk(move |store, _| {
                    Done::Event(Event::Inspected { blob, found: inspect(store, blob, &models) })
                });
            }
            Effect::Scrub(blob) => self.scrub(blob),
            Effect::Patrol(blob) => self.on_disk(move |store, halt| {
                let bad = store.patrol(blob, halt, PATROL_BYTES_PER_SECOND).map_err(Fault::from);
                Done::Event(Event::Patrolled { blob, bad })
            }),
            Effect::Bless(blob) => {
                let store = self.store.clone();
                self.in_background(move || store.bless(blob));
            }
            Effect::Withdraw { blob, bad } => self.on_disk(move |store, _| {
                let result = store.withdraw(blob, &bad).map_err(Fault::from);
                Done::Event(Event::Withdrawn { blob, result })
            }),
            Effect::Locate(model) => self.locate(model),
            Effect::Open { flight, name, bytes } => self.on_disk(move |store, halt| {
                let opened = store.begin(name, bytes, halt).map(|(partial, pieces)| (Arc::new(partial), pieces));
                Done::Opened(flight, opened.map_err(Fault::from))
            }),
            Effect::Fetch(fetch) => self.fetch(fetch),
            Effect::Abort(request) => {
                if let Some(running) = self.running.get(&request) {
                    running.stop.cancel();
                }
            }
            Effect::Relocate { flight, model, origin, manifest } => self.relocate(flight, model, origin, manifest),
            Effect::Reset(flight) => {
                if let Some(partial) = self.open.get(&flight) {
                    self.reset(partial.clone());
                }
            }
            Effect::Close(flight) => {
                self.ram.landing.remove(&flight);
                if let Some(partial) = self.open.remove(&flight) {
                    self.in_background(move || partial.sync());
                }
            }
            Effect::Commit { flight, blob, cvs, promised, sha256, links } => {
                self.land_as(flight, blob);
                self.commit(flight, Promise { blob, promised, sha256 }, cvs, links);
            }
            Effect::Link(link) => self.on_disk(move |store, _| {
                let result = store.link(&link).map_err(Fault::from);
                Done::Event(Event::Linked { link, result })
            }),
            Effect::Unlink(model) => {
                let store = self.store.clone();
                self.in_background(move || store.unlink(&model));
            }
            Effect::Remove(blob) => self.on_disk(move |store, _| {
                let result = store.remove(blob).map(|_| ()).map_err(Fault::from);
                Done::Event(Event::Removed { blob, result })
            }),
            Effect::Discard(name) => self.on_disk(move |store, _| {
                let result = store.discard(name).map(|_| ()).map_err(Fault::from);
                Done::Event(Event::Discarded { name, result })
            }),
            Effect::Land(flight) => self.land(flight),
            Effect::Lock { blob, bytes } => self.lock(blob, bytes),
            Effect::Unlock(blob) => self.unlock(blob),
            // The state was told that this executor cannot: should it ask nevertheless, the blob stays where it is.
            Effect::Shed(blob) => {
                let result = Err(Fault::Store { detail: "the disk has every blob that RAM holds".to_owned() });
                self.on_disk(move |_, _| Done::Event(Event::Shed { blob, result }));
            }
            Effect::Sink(blob) => {
                let result = Err(Fault::Store { detail: "the disk has every blob that RAM holds".to_owned() });
                self.on_disk(move |_, _| Done::Event(Event::Sunk { blob, result }));
            }
            Effect::NoteResident(blobs) => self.note_resident(&blobs),
            Effect::NoteUse(blobs) => self.scribe.note(Note::Uses(blobs, self.clock.wall())),
            Effect::PutLease(lease) => self.scribe.note(Note::PutLease(lease)),
            Effect::EndLease(lease) => self.scribe.note(Note::EndLease(lease)),
            Effect::TellPlan(id, plan) => {
                self.note_plan(id, &plan);
                if let Some(recorder) = &mut self.recorder {
                    recorder.planned(id, &plan);
                }
                self.callers.plan(id, EnsureUpdate::Plan(plan));
            }
            Effect::TellReady(id, ready) => {
                self.count_ready(id, &ready);
                self.enter_ready(&ready);
                self.tell_ready(id, ready);
            }
            Effect::TellFailed(id, failed) => {
                self.count_failed(id, &failed);
                if let Some(recorder) = &mut self.recorder {
                    recorder.failed(id);
                }
                self.enter_failed();
                self.came_to_nothing(id);
                self.callers.end(id, EnsureUpdate::Failed(failed));
            }
            Effect::Record(what) => self.record(what),
            Effect::CountAhead(ahead) => metrics::ahead(ahead),
            Effect::CountGuess(guessed) => metrics::predict::guessed(&guessed),
            Effect::CountUse { from, bytes, elapsed } => metrics::vram::used(from, bytes, elapsed),
            Effect::Advise(advice) => self.advise(advice),
        }
    }

    /// Writes down that something happened, and tells who watches.
    pub(crate) fn record(&mut self, what: What) {
        Self::count_occurrence(&what);
        self.enter(&what);
        let occurrence = self.chronicle.record(what, self.clock.wall());
        self.scribe.note(Note::Occurrence(occurrence));
    }

    /// Runs work on a thread that may block; its report goes to the loop.
    pub(crate) fn on_disk(&self, work: impl FnOnce(&Store, &AtomicBool) -> Done + Send + 'static) {
        let (store, halt, done) = (self.store.clone(), self.halt.clone(), self.done.clone());
        tokio::task::spawn_blocking(move || {
            let report = work(&store, &halt);
            // The loop outlives its work, except when the whole process ends.
            let _ = done.blocking_send(report);
        });
    }

    /// Runs work whose failure changes nothing but the log.
    fn in_background(&self, work: impl FnOnce() -> Result<(), StoreError> + Send + 'static) {
        tokio::task::spawn_blocking(move || {
            if let Err(error) = work() {
                tracing::warn!(%error, "work in the background failed");
            }
        });
    }

    /// Forgets a file's pieces before any of them is fetched again: in the loop, because the order matters and it is one small write.
    fn reset(&self, partial: Arc<Partial>) {
        if let Err(error) = partial.reset() {
            tracing::warn!(%error, "a journal could not be reset; a resume will verify its pieces anyway");
        }
    }

    pub(crate) fn sync_open_files(&self) {
        for partial in self.open.values() {
            let partial = partial.clone();
            self.in_background(move || partial.sync());
        }
    }

    pub(crate) fn measure_space(&mut self) {
        self.spaced = self.clock.now();
        match self.store.space() {
            Ok(space) => {
                self.free_fs = space.free;
                self.apply(Event::Space { total: space.total, free: space.free });
            }
            Err(error) => tracing::warn!(%error, "the file system does not tell its free space"),
        }
    }

    fn scrub(&self, blob: BlobId) {
        let (store, halt, done, permits) =
            (self.store.clone(), self.halt.clone(), self.done.clone(), self.scrubs.clone());
        tokio::spawn(async move {
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let read = tokio::task::spawn_blocking(move || store.scrub(blob, &halt, &AtomicU64::new(0)));
            let bad = match read.await {
                Ok(bad) => bad.map_err(Fault::from),
                Err(panic) => Err(Fault::Store { detail: format!("checking {blob} panicked: {panic}") }),
            };
            let _ = done.send(Done::Event(Event::Scrubbed { blob, bad })).await;
        });
    }

    fn locate(&self, model: ModelKey) {
        let with_state = |origin: &Arc<Origin>| (origin.clone(), self.sources.is_listed(origin.name()));
        let origins: Vec<(Arc<Origin>, bool)> = self.origins.iter().map(with_state).collect();
        let (done, permits) = (self.done.clone(), self.locates.clone());
        tokio::spawn(async move {
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let result = sources::locate(&origins, &model).await;
            let _ = done.send(Done::Located(model, result)).await;
        });
    }

    fn relocate(&self, flight: FlightId, model: ModelKey, origin: OriginName, manifest: bool) {
        let found = self.origins.iter().find(|known| *known.name() == origin).cloned();
        let done = self.done.clone();
        tokio::spawn(async move {
            let result = match found {
                Some(found) => {
                    let result = sources::relocate(&found, &model, manifest).await;
                    result.map_err(|error| error.fault(&origin, model.as_str()))
                }
                None => Ok(None),
            };
            let _ = done.send(Done::Relocated(flight, origin, result)).await;
        });
    }

    fn fetch(&mut self, fetch: Fetch) {
        let (flight, request) = (fetch.flight, fetch.request);
        let (Some(lines), Some(partial)) = (self.lines.get(&fetch.source.origin), self.open.get(&flight)) else {
            let detail = format!("request {request:?} has no open file or no origin");
            tracing::error!(detail);
            let result = Err(crate::engine::event::Broken::Local(Fault::Store { detail }));
            let done = self.done.clone();
            tokio::spawn(async move {
                let _ = done.send(Done::Event(Event::RequestEnded { flight, request, result })).await;
            });
            return;
        };
        let landing = self.ram.landing.get(&flight).cloned();
        let (lines, target) = (lines.clone(), fetch::Target { partial: partial.clone(), landing });
        let running = Running { stop: CancellationToken::new(), received: Arc::default() };
        let (stop, received) = (running.stop.clone(), running.received.clone());
        self.running.insert(request, running);
        let done = self.done.clone();
        // A task of its own, so that even a panic ends with a report.
        let work = self.movers.spawn(fetch::fetch(lines, fetch, target, stop, received));
        tokio::spawn(async move {
            let result = work.await.unwrap_or_else(|panic| {
                let detail = format!("a fetch panicked: {panic}");
                Err(crate::engine::event::Broken::Local(Fault::Store { detail }))
            });
            let _ = done.send(Done::Event(Event::RequestEnded { flight, request, result })).await;
        });
    }

    fn commit(&self, flight: FlightId, promise: Promise, cvs: Vec<Cv>, links: Vec<StoredLink>) {
        let Some(partial) = self.open.get(&flight).cloned() else {
            tracing::error!(%flight, "a commit has no open file");
            return;
        };
        let (now, clock) = (self.clock.wall(), self.clock.clone());
        self.on_disk(move |store, halt| {
            let started = clock.now();
            let result = check(store, &partial, &promise, &links, halt).and_then(|commit| {
                let Promise { blob, .. } = promise;
                let Commit { trust, sha256 } = commit;
                let order = store::Commit { blob, cvs, trust, sha256, links, now };
                store.commit(&partial, order).map_err(|error| CommitFault::Local(error.into()))?;
                Ok(commit)
            });
            metrics::committed(clock.now().since(started));
            Done::Event(Event::Committed { flight, result })
        });
    }
}

/// What a blob was promised to be.
struct Promise {
    blob: BlobId,
    promised: bool,
    sha256: Option<Sha256Digest>,
}

/// The last checks before a blob gets its names.
fn check(
    store: &Store,
    partial: &Partial,
    promise: &Promise,
    links: &[StoredLink],
    halt: &AtomicBool,
) -> Result<Commit, CommitFault> {
    if promise.promised {
        return Ok(Commit { trust: Trust::Blake3, sha256: None });
    }
    if let Some(expected) = promise.sha256 {
        let actual = store.sha256(partial, halt).map_err(|error| CommitFault::Local(error.into()))?;
        if actual != expected {
            return Err(CommitFault::Corrupt {
                expected: format!("sha256 {expected}"),
                actual: format!("sha256 {actual}"),
            });
        }
        return Ok(Commit { trust: Trust::Sha256, sha256: Some(actual) });
    }
    for link in links {
        store.check_structure(partial, &link.model).map_err(structure)?;
    }
    Ok(Commit { trust: Trust::FirstUse, sha256: None })
}

fn structure(error: StoreError) -> CommitFault {
    match error {
        StoreError::Structure { .. } => {
            CommitFault::Corrupt { expected: "a whole safetensors file".to_owned(), actual: error.to_string() }
        }
        error => CommitFault::Local(error.into()),
    }
}

/// Looks at every name of a blob; the worst answer counts.
fn inspect(store: &Store, blob: BlobId, models: &[ModelKey]) -> Found {
    for model in models {
        match store.inspect(blob, model) {
            Ok(Inspection::Intact | Inspection::LinkMissing) => {}
            Ok(Inspection::Changed { detail }) => return Found::Changed(detail),
            Ok(Inspection::Missing) => return Found::Missing,
            Err(error) => return Found::Unreadable(error.into()),
        }
    }
    Found::Intact
}
