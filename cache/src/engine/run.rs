//! The loop: one task owns the state, applies events to it and starts the work that it asks for.
//!
//! Facts pass through here; payload bytes never do. Nothing in the loop waits: what takes time runs beside it and reports.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::clock::{Clock, Tick};
use crate::config::EngineConfig;
use crate::engine::callers::Callers;
use crate::engine::changes::Changes;
use crate::engine::chronicle::Chronicle;
use crate::engine::done::{Done, Evicting, Running};
use crate::engine::event::{Effect, Event, RequestId};
use crate::engine::fetch::Lines;
use crate::engine::forecast::Forecast;
use crate::engine::gauges::GAUGES_INTERVAL;
use crate::engine::handle::{COMMANDS_MAX, Command, EngineHandle, Verified};
use crate::engine::hints::Hints;
use crate::engine::ledger::Ledger;
use crate::engine::marks::Marks;
use crate::engine::memory::Ram;
use crate::engine::movers::Movers;
use crate::engine::pace::Pace;
use crate::engine::page_cache::PageCache;
use crate::engine::recorder::Recorder;
use crate::engine::scribe::{NOTES_MAX, Scribe};
use crate::engine::sources::Sources;
use crate::engine::spans::Spans;
use crate::engine::state::{Executor, State, StateConfig};
use crate::engine::view::{OriginState, What};
use crate::fault::Fault;
use crate::heap;
use crate::ids::{BlobId, EnsureId, FlightId, ModelKey, OriginName};
use crate::metrics;
use crate::origin::Origin;
use crate::store::{BlockPool, Partial, Store};

/// Reports that may wait for the loop. Each worker has one at a time, so this is never reached; it is a bound.
const DONE_MAX: usize = 4096;
/// How often progress is told and rates are measured while something happens. Nothing ticks while nothing does.
const BEAT: Duration = Duration::from_millis(50);
/// How often open files and their journals are made durable: what a power cut may cost.
pub(crate) const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// How often the file system is asked for its free space while idle. While something is fetched, at every sync.
const SPACE_INTERVAL: Duration = Duration::from_secs(30);
/// Oldest knowledge of the free space by which a new set may be refused: one system call, but not one for each of a thousand hits.
pub(crate) const SPACE_AGE_MAX: Duration = Duration::from_millis(100);
/// Blobs that are read for verification at once: one stream fills most disks, two hide the hashing.
const SCRUBS_MAX: usize = 2;

/// How long nothing must be fetched before the memory for it is given back: a second set often follows the first.
const TRIM_AFTER: Duration = Duration::from_secs(2);
/// Models that origins are asked for at once: a set of a thousand unknown names must not become a thousand requests.
const LOCATES_MAX: usize = 16;

/// The engine's task.
pub(crate) struct Engine {
    pub(crate) state: State,
    pub(crate) clock: Clock,
    pub(crate) store: Arc<Store>,
    pub(crate) scribe: Scribe,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) origins: Vec<Arc<Origin>>,
    pub(crate) lines: HashMap<OriginName, Lines>,
    pub(crate) pool: Arc<BlockPool>,
    pub(crate) sources: Sources,
    pub(crate) origin_states: HashMap<OriginName, OriginState>,
    pub(crate) done: mpsc::Sender<Done>,
    pub(crate) callers: Callers,
    pub(crate) chronicle: Chronicle,
    pub(crate) changes: Changes,
    pub(crate) spans: Spans,
    pub(crate) ram: Ram,
    pub(crate) forecast: Forecast,
    pub(crate) ledger: Ledger,
    /// When what was learned was last written.
    pub(crate) habits_kept: Tick,
    pub(crate) movers: Movers,
    pub(crate) hints: Hints,
    pub(crate) open: HashMap<FlightId, Arc<Partial>>,
    pub(crate) running: HashMap<RequestId, Running>,
    pub(crate) evicting: Vec<Evicting>,
    pub(crate) verifying: HashMap<BlobId, Vec<(ModelKey, u64, mpsc::Sender<Verified>)>>,
    pub(crate) scrubs: Arc<Semaphore>,
    pub(crate) locates: Arc<Semaphore>,
    /// Set once: long reads of the disk stop soon after.
    pub(crate) halt: Arc<AtomicBool>,
    pub(crate) refresh_interval: Duration,
    /// Callers that only joined flights of others.
    pub(crate) joined: HashSet<EnsureId>,
    pub(crate) free_fs: u64,
    /// When the gauges were last set, and whether something happened since.
    pub(crate) gauged: Tick,
    pub(crate) stale: bool,
    /// Since when nothing has been fetched, and whether the memory for it was given back.
    pub(crate) idle_since: Tick,
    pub(crate) trimmed: bool,
    pub(crate) models_path: PathBuf,
    pub(crate) marks: Marks,
    pub(crate) next_ensure: u64,
    /// When the state wants to be told that time passed.
    pub(crate) wake: Tick,
    pub(crate) synced: Tick,
    pub(crate) spaced: Tick,
    pub(crate) refreshed: Tick,
    pub(crate) draining: Option<oneshot::Sender<()>>,
}

/// Opens the store and starts the engine. It runs until [`EngineHandle::shutdown`].
///
/// # Errors
///
/// Whatever keeps the store from being opened (another daemon, no permission, a full disk), and origins whose
/// configuration makes no sense. Origins that do not answer are no error: the catalog of the last run serves.
pub async fn start(config: EngineConfig) -> Result<EngineHandle, Fault> {
    let clock = Clock::start();
    let events_max = config.limits.events_max as usize;
    let store_config = config.store.clone();
    let opened = tokio::task::spawn_blocking(move || Store::open(&store_config, events_max)).await;
    let (store, inventory) =
        opened.map_err(|panic| Fault::Store { detail: format!("opening the store panicked: {panic}") })??;
    let store = Arc::new(store);
    let mut origins = Vec::new();
    for origin in &config.origins {
        metrics::prime_origin(&origin.name);
        let opened = Origin::open(origin).map_err(|error| error.fault(&origin.name, ""))?;
        origins.push(Arc::new(opened));
    }
    let state_config = StateConfig {
        fetch: config.fetch.clone(),
        limits: config.limits.clone(),
        budget: config.store.budget,
        keep_free: config.store.keep_free,
        scrub_interval: config.store.scrub_interval,
        origins: config.origins.iter().map(|origin| (origin.name.clone(), origin.connections_max)).collect(),
        models: config.store.models.clone(),
        vram: config.vram,
        seed: clock.wall().0,
        executor: Executor::default(),
        predict: config.predict,
        costs: config.plan.costs,
    };
    let policy = config.plan.policy.build(config.plan.costs);
    let mut state = State::new(state_config, &inventory, policy, clock.now(), clock.wall());
    crate::engine::habits::recall(&mut state, &store);
    let movers =
        Movers::start().map_err(|error| Fault::Store { detail: format!("no threads for moving bytes: {error}") })?;
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (done, reports) = mpsc::channel(DONE_MAX);
    let pool = Arc::new(BlockPool::new(config.fetch.bytes_in_flight_max));
    let lines = lines(&config, &origins, &pool, &clock, &done);
    let noted = done.clone();
    let unwritable = |error: std::io::Error| Fault::Store { detail: format!("trace.record: {error}") };
    let recorder = Recorder::start(&config.trace).map_err(unwritable)?;
    let scribe = Scribe::start(store.clone(), move |number| {
        // A loop that has ended waits for nothing.
        let _ = noted.blocking_send(Done::Noted(number));
    });
    let mut engine = Engine {
        state,
        scribe,
        recorder,
        lines,
        pool,
        sources: Sources::new(&origins),
        origin_states: HashMap::new(),
        done,
        callers: Callers::default(),
        ram: Ram::new(config.ram.clone()),
        forecast: Forecast::new(PageCache::of(Arc::downgrade(&store), clock.clone())),
        ledger: Ledger::open(&store, clock.now()),
        habits_kept: clock.now(),
        movers,
        hints: Hints::default(),
        chronicle: Chronicle::new(inventory.events, inventory.next_seq, NOTES_MAX as u64, events_max)
            .of_run(clock.wall().0),
        changes: Changes::default(),
        spans: Spans::default(),
        open: HashMap::new(),
        running: HashMap::new(),
        evicting: Vec::new(),
        verifying: HashMap::new(),
        scrubs: Arc::new(Semaphore::new(SCRUBS_MAX)),
        locates: Arc::new(Semaphore::new(LOCATES_MAX)),
        halt: Arc::new(AtomicBool::new(false)),
        refresh_interval: config.refresh_interval,
        joined: HashSet::new(),
        free_fs: 0,
        gauged: clock.now(),
        stale: true,
        idle_since: clock.now(),
        trimmed: false,
        models_path: config.store.models.clone(),
        marks: Marks::new(config.store.marks),
        next_ensure: 1,
        wake: Tick(u64::MAX),
        synced: clock.now(),
        spaced: clock.now(),
        refreshed: clock.now(),
        draining: None,
        origins,
        store,
        clock,
    };
    // First of all: until the limit is known, everything found on the disk is too much of it.
    engine.measure_space();
    engine.recall_resident();
    engine.recall_catalog();
    engine.set_marks();
    let bytes = inventory.blobs.iter().map(|blob| blob.bytes).sum();
    engine.record(What::Started { blobs: inventory.blobs.len() as u64, bytes });
    engine.refresh(None, None);
    let outlook = engine.forecast.subscribe();
    tokio::spawn(engine.run(inbox, reports));
    Ok(EngineHandle::new(commands, outlook))
}

fn lines(
    config: &EngineConfig,
    origins: &[Arc<Origin>],
    pool: &Arc<BlockPool>,
    clock: &Clock,
    done: &mpsc::Sender<Done>,
) -> HashMap<OriginName, Lines> {
    let all = Pace::new(config.fetch.bandwidth_max).map(Arc::new);
    let line = |(origin, config): (&Arc<Origin>, &crate::config::OriginConfig)| {
        let own = Pace::new(config.bandwidth_max).map(Arc::new);
        let lines = Lines {
            origin: origin.clone(),
            pool: pool.clone(),
            paces: own.into_iter().chain(all.clone()).collect(),
            clock: clock.clone(),
            total: Arc::new(AtomicU64::new(0)),
            done: done.clone(),
        };
        (config.name.clone(), lines)
    };
    origins.iter().zip(&config.origins).map(line).collect()
}

impl Engine {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>, mut reports: mpsc::Receiver<Done>) {
        loop {
            let wake = self.next_wake();
            tokio::select! {
                Some(done) = reports.recv() => self.report(done),
                command = inbox.recv(), if self.draining.is_none() => match command {
                    Some(command) => self.command(command),
                    // Every handle is gone: drain as if told to.
                    None => self.drain(oneshot::channel().0),
                },
                () = tokio::time::sleep_until(self.clock.instant(wake)) => {}
            }
            self.beat();
            if self.draining.is_some() && self.is_quiet() {
                break;
            }
        }
        // Who reports from here on finds nobody, and does not wait for a place.
        drop(reports);
        self.close().await;
    }

    /// When the loop must look again even if nothing is reported.
    fn next_wake(&mut self) -> Tick {
        let now = self.clock.now();
        let refresh = self.refreshed.after(self.refresh_interval);
        let space = self.spaced.after(SPACE_INTERVAL);
        let beat = self.is_busy().then(|| now.after(BEAT));
        let trim = (!self.trimmed).then(|| self.idle_since.after(TRIM_AFTER));
        let gauges = self.stale.then(|| self.gauged.after(GAUGES_INTERVAL));
        let outlook = self.publish_outlook();
        self.wake = self.state.next_wake().unwrap_or(Tick(u64::MAX));
        let state = Some(self.wake.max(now.after(Duration::from_millis(1))));
        [Some(refresh), Some(space), beat, gauges, trim, outlook, state, self.ledger_due(), self.habits_due()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(refresh)
    }

    /// Whether something happens that is measured or told as it goes.
    pub(crate) fn is_busy(&self) -> bool {
        !self.callers.is_empty() || !self.running.is_empty()
    }

    /// Applies an event and starts the work that it calls for.
    pub(crate) fn apply(&mut self, event: Event) {
        self.stale = true;
        self.forecast.moved = true;
        self.forecast.reshaped |= event.reshapes();
        self.changes.dirty = true;
        self.notice(&event);
        self.spans.event(&event, self.clock.now());
        self.count_event(&event);
        self.enter_request(&event);
        let lists = matches!(event, Event::Catalog(_));
        let effects = self.state.apply(event, self.clock.now(), self.clock.wall());
        // Before anybody is told: who then asks how soon something could be ready must be answered by what is.
        if self.forecast.reshaped {
            self.publish_outlook();
        }
        for effect in effects {
            self.start(effect);
        }
        if lists {
            self.set_marks();
        }
    }

    /// Starts the work that an order called for.
    pub(crate) fn act(&mut self, effects: Vec<Effect>) {
        self.forecast.reshaped = true;
        self.changes.dirty = true;
        self.publish_outlook();
        for effect in effects {
            self.start(effect);
        }
    }

    /// What is done from time to time rather than when something is reported.
    fn beat(&mut self) {
        let now = self.clock.now();
        self.tell_changes();
        for id in self.callers.left() {
            self.came_to_nothing(id);
            self.apply(Event::Leave(id));
        }
        if self.wake <= now {
            self.wake = Tick(u64::MAX);
            self.apply(Event::Tick);
        }
        if self.is_watching_bytes() {
            let samples: Vec<(OriginName, u64)> = self
                .lines
                .iter()
                .map(|(origin, lines)| (origin.clone(), lines.total.load(Ordering::Relaxed)))
                .collect();
            self.enter_bytes(&samples);
            if self.is_busy() {
                for (origin, bytes) in samples {
                    self.apply(Event::Sample { origin, bytes });
                }
            }
        }
        let (state, running) = (&self.state, &self.running);
        let received =
            |request: RequestId| running.get(&request).map_or(0, |running| running.received.load(Ordering::Relaxed));
        self.callers.progress(now, |id: EnsureId| state.progress(id, &received, now));
        if now.since(self.synced) >= SYNC_INTERVAL && !self.open.is_empty() {
            self.synced = now;
            self.sync_open_files();
            self.measure_space();
        }
        if now.since(self.spaced) >= SPACE_INTERVAL {
            self.measure_space();
        }
        if self.stale && now.since(self.gauged) >= GAUGES_INTERVAL {
            self.gauge();
            self.stale = self.is_busy();
        }
        if now.since(self.refreshed) >= self.refresh_interval && self.draining.is_none() {
            self.refresh(None, None);
        }
        self.rest_ram();
        self.keep_ledger(false);
        self.keep_habits(false);
        if self.is_busy() || !self.open.is_empty() {
            self.idle_since = now;
            self.trimmed = false;
        } else if !self.trimmed && now.since(self.idle_since) >= TRIM_AFTER {
            self.trimmed = true;
            self.pool.trim();
            heap::trim();
        }
    }

    /// Stops new work. Pieces that are under way are given up, those that are finished are in the journal.
    pub(crate) fn drain(&mut self, reply: oneshot::Sender<()>) {
        tracing::info!(requests = self.running.len(), files = self.open.len(), "draining");
        self.draining = Some(reply);
        self.halt.store(true, Ordering::Relaxed);
        self.noted(u64::MAX);
        let effects = self.state.drain(self.clock.now());
        self.act(effects);
        for running in self.running.values() {
            running.stop.cancel();
        }
    }

    fn is_quiet(&self) -> bool {
        self.running.is_empty() && self.state.is_quiet()
    }

    /// The last thing the engine does: what is open becomes durable.
    async fn close(mut self) {
        self.keep_ledger(true);
        self.keep_habits(true);
        let open: Vec<Arc<Partial>> = self.open.drain().map(|(_, partial)| partial).collect();
        let (scribe, recorder) = (self.scribe, self.recorder);
        let store = self.store.clone();
        let closed = tokio::task::spawn_blocking(move || {
            for partial in open {
                if let Err(error) = partial.sync() {
                    tracing::warn!(%error, "an unfinished blob could not be synced");
                }
            }
            scribe.finish();
            if let Some(recorder) = recorder {
                recorder.finish();
            }
            drop(store);
        });
        if let Err(panic) = closed.await {
            tracing::error!(%panic, "closing the store panicked");
        }
        drop(self.store);
        if let Some(reply) = self.draining {
            // Whoever asked may have given up waiting.
            let _ = reply.send(());
        }
    }
}
