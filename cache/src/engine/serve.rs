//! Commands and reports: what the loop does with each.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::engine::done::{Done, Evicting};
use crate::engine::event::Event;
use crate::engine::handle::{Command, Verified};
use crate::engine::run::{Engine, SPACE_AGE_MAX};
use crate::engine::view::{
    EnsureRequest, EnsureUpdate, ImportOutcome, ImportedFile, NodeView, Priority, RamHold, Tier,
};
use crate::fault::Fault;
use crate::ids::{BlobId, EnsureId, ModelKey};
use crate::store::{Found, StoredLink};

/// Rows of an import or a verification that may wait for their reader.
const ROWS_MAX: usize = 64;

impl Engine {
    /// Answers a question or starts what is ordered. A caller that went away needs no answer.
    pub(crate) fn command(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Ensure(request, reply) => {
                // Who just made room on the disk must not be refused for how full it was before.
                if now.since(self.spaced) >= SPACE_AGE_MAX {
                    self.measure_space();
                }
                let _ = reply.send(Ok(self.ensure(request)));
            }
            Command::Flight(flight, reply) => {
                let _ = reply.send(self.state.flight(flight, now));
            }
            Command::Flights(reply) => {
                let _ = reply.send(self.state.flights(now));
            }
            Command::CancelFlight(flight, by, reply) => {
                let result = self.state.cancel(flight, &by, now);
                let _ = reply.send(result.map(|effects| self.act(effects)));
            }
            Command::Pin { models, owner, ttl, ram, reply } => {
                if ram != RamHold::None {
                    self.measure_ram();
                }
                let result = self.state.pin(&models, (&owner, ttl, ram), now, self.clock.wall());
                let _ = reply.send(result.map(|(lease, effects)| {
                    self.act(effects);
                    lease
                }));
            }
            Command::Expect { source, wants, reply } => {
                if now.since(self.spaced) >= SPACE_AGE_MAX {
                    self.measure_space();
                }
                if wants.iter().any(|want| want.ram) {
                    self.measure_ram();
                }
                self.apply(Event::Expect { source, wants });
                let _ = reply.send(());
            }
            Command::Unpin(lease, reply) => {
                let _ = reply.send(self.state.unpin(lease, now).map(|(lease, effects)| {
                    self.act(effects);
                    lease
                }));
            }
            Command::Leases(reply) => {
                let _ = reply.send(self.state.leases());
            }
            Command::Promote { models, reply } => {
                self.measure_ram();
                let (report, effects) = self.state.promote(&models, now);
                self.act(effects);
                let _ = reply.send(report);
            }
            Command::Demote { models, by, reply } => {
                let (report, effects) = self.state.demote(&models, &by, now);
                self.act(effects);
                let _ = reply.send(report);
            }
            Command::Evict { models, by, reply } => self.evict(&models, &by, reply),
            Command::Models { filter, after, max, reply } => {
                let _ = reply.send(self.state.models(&filter, after.as_ref(), max));
            }
            Command::Known(reply) => {
                let _ = reply.send(self.state.known());
            }
            Command::Model(model, reply) => {
                let _ = reply.send(self.state.model(&model));
            }
            Command::Refresh(origin, reply) => self.refresh(origin, Some(reply)),
            Command::Node(reply) => {
                let _ = reply.send(self.node());
            }
            Command::Explain(model, reply) => drop(reply.send(self.state.explain(&model, now))),
            Command::Predictions(reply) => drop(reply.send(self.state.predictions(now))),
            Command::Report(hours, reply) => drop(reply.send(self.report_on(hours))),
            Command::Watch(since, reply) => {
                let _ = reply.send(self.chronicle.watch(since));
            }
            Command::Follow(since, reply) => {
                let _ = reply.send(self.follow(since));
            }
            Command::Spans(sink, reply) => {
                self.spans.send_to(sink);
                let _ = reply.send(());
            }
            Command::Import { path, dry_run, reply } => {
                let _ = reply.send(Ok(self.import(path, dry_run)));
            }
            Command::Verify { models, reply } => {
                let _ = reply.send(self.verify(models));
            }
            Command::Hint(hint) => self.hint(hint),
            Command::Shutdown(reply) => self.drain(reply),
        }
    }

    /// Takes a report in.
    pub(crate) fn report(&mut self, done: Done) {
        match done {
            Done::Event(event) => self.reported(event),
            Done::Opened(flight, result) => {
                let pieces = result.map(|(partial, pieces)| {
                    self.open.insert(flight, partial);
                    pieces
                });
                self.apply(Event::Opened { flight, pieces });
                self.measure_space();
            }
            Done::Listed(origin, result, reply) => {
                let result = self.listed(&origin, result);
                if let Some(reply) = reply {
                    let _ = reply.send(result);
                }
            }
            Done::Located(model, result) => {
                let result = result.map(|(origin, listed, manifest)| {
                    self.sources.found(&origin, listed);
                    if manifest.is_some() {
                        self.sources.manifest(&origin, manifest);
                    }
                    self.apply(Event::Catalog(self.sources.catalog()));
                });
                self.apply(Event::Located { model, result });
            }
            Done::Relocated(flight, origin, result) => {
                let result = result.map(|found| {
                    let relocated = found.map(|(listed, manifest, relocated)| {
                        self.sources.found(&origin, listed);
                        if manifest.is_some() {
                            self.sources.manifest(&origin, manifest);
                        }
                        self.apply(Event::Catalog(self.sources.catalog()));
                        relocated
                    });
                    (origin, relocated)
                });
                self.apply(Event::Relocated { flight, result });
            }
            Done::ReserveImport(bytes, reply) => {
                let reserved = self.state.reserve_import(bytes);
                if reserved.is_ok() && reply.send(reserved).is_err() {
                    self.state.unreserve_import(bytes);
                }
            }
            Done::Held(blob, found, result) => self.held(blob, found, result),
            Done::Pressed(look) => self.pressed(&look),
            Done::Noted(number) => self.noted(number),
            Done::Hinted(looked) => self.hinted(looked),
            Done::UnreserveImport(bytes) => self.state.unreserve_import(bytes),
        }
    }

    fn reported(&mut self, event: Event) {
        match &event {
            Event::RequestEnded { request, .. } => {
                self.running.remove(request);
            }
            // From here on the state counts this piece; taken off where progress is told from, so that it never steps back.
            Event::PieceDone { flight, request, piece, .. } => {
                if let (Some(running), Some(partial)) = (self.running.get(request), self.open.get(flight)) {
                    let range = partial.layout().range(*piece);
                    running.received.fetch_sub(range.end - range.start, Ordering::Relaxed);
                }
            }
            Event::Committed { flight, result: Ok(_) } => {
                self.open.remove(flight);
                self.landed(*flight);
            }
            Event::Scrubbed { blob, bad } => self.tell_verified(*blob, bad),
            _ => {}
        }
        let removed = match &event {
            Event::Removed { blob, .. } => Some(*blob),
            _ => None,
        };
        self.apply(event);
        self.forget_landed();
        if let Some(blob) = removed {
            self.measure_space();
            self.evicted(blob);
        }
    }

    fn ensure(&mut self, request: EnsureRequest) -> mpsc::Receiver<EnsureUpdate> {
        let id = EnsureId(self.next_ensure);
        self.next_ensure += 1;
        if request.target == Tier::Ram {
            self.measure_ram();
        }
        let stream = self.callers.add(id, request.progress_interval, self.clock.now());
        self.foretell(id, &request);
        if let Some(recorder) = self.recorder.as_mut().filter(|_| request.priority == Priority::Demand) {
            recorder.begun(id, &request.client, self.clock.wall());
        }
        self.apply(Event::Ensure { id, request });
        stream
    }

    fn evict(
        &mut self,
        models: &[ModelKey],
        by: &str,
        reply: oneshot::Sender<Result<crate::engine::view::EvictReport, Fault>>,
    ) {
        if models.is_empty() {
            let reason = "name at least one model".to_owned();
            let _ = reply.send(Err(Fault::Invalid { field: "models", reason }));
            return;
        }
        let (report, waiting, effects) = self.state.evict(models, by, self.clock.now());
        self.act(effects);
        if waiting.is_empty() {
            let _ = reply.send(Ok(report));
            return;
        }
        self.evicting.push(Evicting { waiting, report, reply });
    }

    /// A blob is gone: evictions that waited for it may be over.
    fn evicted(&mut self, blob: BlobId) {
        for evicting in &mut self.evicting {
            evicting.waiting.retain(|waiting| *waiting != blob);
        }
        for over in self.evicting.extract_if(.., |evicting| evicting.waiting.is_empty()) {
            let _ = over.reply.send(Ok(over.report));
        }
    }

    pub(crate) fn node(&self) -> NodeView {
        let (flights, ensures, leases, models_known) = self.state.counts();
        let now = self.clock.now();
        let tiers = [self.state.vram(now), Some(self.ram_view()), Some(self.state.disk(self.store.mode()))];
        NodeView {
            uptime: Duration::from_micros(self.clock.now().0),
            tiers: tiers.into_iter().flatten().collect(),
            origins: self.origins.iter().map(|origin| self.origin(origin)).collect(),
            flights,
            ensures,
            leases,
            models_known,
            models_path: self.models_path.clone(),
            workers: self.state.workers(now),
            activity: self.activity(),
        }
    }

    fn verify(&mut self, models: Vec<ModelKey>) -> Result<mpsc::Receiver<Verified>, Fault> {
        let models = if models.is_empty() { self.state.stored_models() } else { models };
        for model in &models {
            if self.state.stored(model).is_none() {
                return Err(Fault::unknown_model(model, "it is not on this node"));
            }
        }
        let (rows, stream) = mpsc::channel(models.len().max(1));
        for model in models {
            let Some((blob, bytes)) = self.state.stored(&model) else { continue };
            self.verifying.entry(blob).or_default().push((model, bytes, rows.clone()));
            let effects = self.state.verify(blob, self.clock.now());
            self.act(effects);
        }
        Ok(stream)
    }

    fn tell_verified(&mut self, blob: BlobId, bad: &Result<Vec<u32>, Fault>) {
        for (model, bytes, rows) in self.verifying.remove(&blob).unwrap_or_default() {
            let pieces_bad = bad.as_ref().map(|bad| bad.len() as u64).map_err(Clone::clone);
            // The channel has a place for every row.
            let _ = rows.try_send(Verified { model, bytes, pieces_bad });
        }
    }

    fn import(&self, path: PathBuf, dry_run: bool) -> mpsc::Receiver<ImportedFile> {
        let (rows, stream) = mpsc::channel(ROWS_MAX);
        let import = Import {
            store: self.store.clone(),
            halt: self.halt.clone(),
            now: self.clock.wall(),
            done: self.done.clone(),
            rows,
        };
        tokio::task::spawn_blocking(move || import.run(&path, dry_run));
        stream
    }
}

/// One import, on a thread of its own.
struct Import {
    store: Arc<crate::store::Store>,
    halt: Arc<std::sync::atomic::AtomicBool>,
    now: crate::clock::Wall,
    done: mpsc::Sender<Done>,
    rows: mpsc::Sender<ImportedFile>,
}

impl Import {
    fn run(&self, path: &std::path::Path, dry_run: bool) {
        let found = match self.store.scan_import(path) {
            Ok(found) => found,
            Err(error) => {
                self.tell(path.to_owned(), ImportOutcome::Skipped { reason: error.to_string() });
                return;
            }
        };
        for found in found {
            if self.halt.load(std::sync::atomic::Ordering::Relaxed) || self.rows.is_closed() {
                return;
            }
            let outcome = self.one(&found, dry_run).unwrap_or_else(|reason| ImportOutcome::Skipped { reason });
            self.tell(found.file, outcome);
        }
    }

    fn tell(&self, file: PathBuf, outcome: ImportOutcome) {
        // A reader that left ends the import at the next file.
        let _ = self.rows.blocking_send(ImportedFile { file, outcome });
    }

    fn one(&self, found: &Found, dry_run: bool) -> Result<ImportOutcome, String> {
        let (model, classified_by) = found.model.clone()?;
        if dry_run {
            return Err(format!("dry run: it would become {model} (by its {classified_by})"));
        }
        let (reply, answer) = oneshot::channel();
        let gone = |_| Fault::ShuttingDown.to_string();
        self.done
            .blocking_send(Done::ReserveImport(found.bytes, reply))
            .map_err(|_| Fault::ShuttingDown.to_string())?;
        answer.blocking_recv().map_err(gone)?.map_err(|fault| fault.to_string())?;
        let adopted = self.store.adopt(&found.file, &model, self.now, &self.halt, &AtomicU64::new(0));
        let adopted = match adopted {
            Ok(adopted) => adopted,
            Err(error) => {
                let _ = self.done.blocking_send(Done::UnreserveImport(found.bytes));
                return Err(error.to_string());
            }
        };
        let link = StoredLink { model: model.clone(), blob: adopted.blob, source: None };
        let event = Event::Adopted { link, bytes: adopted.bytes, reserved: found.bytes };
        self.done.blocking_send(Done::Event(event)).map_err(|_| Fault::ShuttingDown.to_string())?;
        let (blob, bytes, how) = (adopted.blob, adopted.bytes, adopted.how);
        Ok(ImportOutcome::Adopted { model, blob, bytes, how, classified_by })
    }
}
