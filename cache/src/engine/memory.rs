//! The RAM tier in action: maps and locks what the state asks for, measures what the node can spare, listens to its pressure.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::clock::Tick;
use crate::config::RamConfig;
use crate::engine::done::Done;
use crate::engine::event::Event;
use crate::engine::fetch::Landing;
use crate::engine::run::Engine;
use crate::engine::scribe::Note;
use crate::engine::view::{EnsureReady, EnsureUpdate, TierView};
use crate::fault::Fault;
use crate::ids::{BlobId, EnsureId, FlightId};
use crate::resident::budget::{self, Binding, Inputs};
use crate::resident::limits::read_limits;
use crate::resident::pressure::{Pressure, Watch};
use crate::resident::relief::{Relief, ReliefLimits, Stock, next_look};
use crate::resident::{Held, Mode, Resident, cached_bytes};

/// The name under which the set that is to be locked again after a restart is kept.
const RESIDENT_STATE: &str = "resident";
/// How much is read again in one go when pages that are only warm were evicted: what a disk reads in a tenth of a second.
const REWARM_BYTES: u64 = 256 * crate::units::MIB;

/// What the loop holds of the RAM tier.
#[derive(Debug)]
pub(crate) struct Ram {
    config: RamConfig,
    resident: Arc<Resident>,
    held: HashMap<BlobId, Arc<Held>>,
    /// Locks under way, and how to stop them. `true` behind it: it is to go as soon as it has stopped.
    locking: HashMap<BlobId, (Arc<AtomicBool>, bool)>,
    /// Unfinished blobs whose pages are kept as they land, and those that have just landed.
    pub(crate) landing: HashMap<FlightId, Arc<Landing>>,
    landed: HashMap<BlobId, Arc<Landing>>,
    /// Watches while something is held, and only then: an idle node costs nothing.
    watch: Option<Watch>,
    relief: Relief,
    binding: Option<Binding>,
    /// RAM of the node.
    total: u64,
    rewarmed: Tick,
    /// How often the set was written down, and how often that is known to be on the disk.
    notes: (u64, u64),
    /// Answers that wait until the set they are part of is on the disk, and for which note. One an ensure at most.
    unwritten: Vec<(u64, EnsureId, EnsureReady, Tick)>,
}

impl Ram {
    /// Finds out what this process may hold.
    pub(crate) fn new(config: RamConfig) -> Self {
        Self {
            config,
            resident: Arc::new(Resident::open()),
            held: HashMap::new(),
            locking: HashMap::new(),
            landing: HashMap::new(),
            landed: HashMap::new(),
            watch: None,
            relief: Relief::new(ReliefLimits::around(0)),
            binding: None,
            total: 0,
            rewarmed: Tick::default(),
            notes: (0, 0),
            unwritten: Vec::new(),
        }
    }

    /// Whether nothing is held, nor on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.locking.is_empty()
    }

    fn mode(&self) -> &'static str {
        if self.config.budget.of(u64::MAX) == 0 { "off" } else { self.resident.mode().word() }
    }

    /// Why it works as it does, in words.
    fn detail(&self) -> String {
        let mut parts = Vec::new();
        if let Mode::Warm { why, what_to_change } = self.resident.mode() {
            parts.push(format!("not locked: {why}; {what_to_change}"));
        }
        let limit = match self.binding {
            None => "",
            Some(Binding::Configured) => "limited by [ram] budget",
            Some(Binding::CgroupLimit) => "limited by the cgroup",
            Some(Binding::CgroupUse) => "limited by what others use in the cgroup",
            Some(Binding::LockLimit) => "limited by RLIMIT_MEMLOCK",
            Some(Binding::Reserve) => "limited by the memory that must stay available ([ram] reserve)",
        };
        parts.extend((!limit.is_empty()).then(|| limit.to_owned()));
        if let Some(watch) = &self.watch {
            parts.push(format!("pressure by {}", watch.source().word()));
        }
        parts.join("; ")
    }
}

impl Engine {
    /// Asks for the set of before the restart, once what the node can spare is known.
    pub(crate) fn recall_resident(&mut self) {
        self.measure_ram();
        let Ok(Some(bytes)) = self.store.get_state(RESIDENT_STATE) else { return };
        match serde_json::from_slice::<Vec<BlobId>>(&bytes) {
            Ok(blobs) => {
                let effects = self.state.relock(&blobs, self.clock.now());
                self.act(effects);
            }
            Err(error) => tracing::warn!(%error, "the last resident set is unreadable"),
        }
    }

    pub(crate) fn note_resident(&mut self, blobs: &[BlobId]) {
        let bytes = match serde_json::to_vec(blobs) {
            Ok(bytes) => bytes,
            Err(error) => return tracing::error!(%error, "the resident set could not be written"),
        };
        self.scribe.note(Note::State(RESIDENT_STATE.to_owned(), bytes));
        self.ram.notes.0 += 1;
        if !self.scribe.mark(self.ram.notes.0) {
            // Nobody is kept waiting for a disk that hangs.
            self.noted(self.ram.notes.0);
        }
    }

    /// Tells a caller that all is ready, once what a kill would lose of it is on the disk: the set to lock again after it.
    pub(crate) fn tell_ready(&mut self, id: EnsureId, ready: EnsureReady) {
        let (asked, written) = self.ram.notes;
        if asked == written || self.draining.is_some() {
            self.end_ready(id, ready);
        } else {
            self.ram.unwritten.push((asked, id, ready, self.clock.now()));
        }
    }

    /// The set is on the disk as it was at this note, or could not be written.
    pub(crate) fn noted(&mut self, number: u64) {
        self.ram.notes.1 = self.ram.notes.1.max(number.min(self.ram.notes.0));
        let written = self.ram.notes.1;
        let due: Vec<_> = self.ram.unwritten.extract_if(.., |(note, ..)| *note <= written).collect();
        for (_, id, mut ready, since) in due {
            // The caller waited for the disk too.
            ready.elapsed += self.clock.now().since(since);
            self.end_ready(id, ready);
        }
    }

    /// Tells the caller, and compares what it waited with what would have been told.
    fn end_ready(&mut self, id: EnsureId, ready: EnsureReady) {
        self.came_true(id, &ready);
        self.callers.end(id, EnsureUpdate::Ready(ready));
    }

    /// What the node can spare now becomes the tier's limit.
    pub(crate) fn measure_ram(&mut self) {
        let locked = self.ram.resident.locked();
        match read_limits() {
            Ok(limits) => {
                self.ram.total = limits.ram;
                self.limit_ram(limits.available, limits.cgroup.map(|(_, group)| group), locked);
            }
            Err(error) => tracing::warn!(%error, "the node does not tell its memory"),
        }
    }

    /// Bytes of RAM that must stay available.
    fn reserve(&self) -> u64 {
        let ram = self.ram.total;
        self.ram.config.reserve.map_or_else(|| budget::default_reserve(ram), |share| share.of(ram))
    }

    /// `locked` is what was locked just before `available` and `cgroup` were measured.
    fn limit_ram(&mut self, available: u64, cgroup: Option<budget::Cgroup>, locked: u64) {
        let lock_limit = match self.ram.resident.mode() {
            Mode::Locked { limit } => *limit,
            Mode::Warm { .. } => None,
        };
        let (ram, reserve, configured) = (self.ram.total, self.reserve(), self.ram.config.budget);
        self.ram.relief.set_limits(ReliefLimits::around(reserve));
        let effective = budget::effective(&Inputs { configured, reserve, ram, available, locked, cgroup, lock_limit });
        self.ram.binding = Some(effective.binding);
        self.apply(Event::RamLimit(effective.bytes));
    }

    /// One look at the node's memory: gives back what is asked for, or lets the tier grow again.
    pub(crate) fn pressed(&mut self, look: &Pressure) {
        let view = self.state.memory("");
        let stock = Stock {
            held: view.used,
            leaving: self.state.ram_leaving(),
            locked_then: matches!(self.ram.resident.mode(), Mode::Locked { .. }).then_some(look.locked),
            locked_now: self.ram.resident.locked(),
        };
        let advice = self.ram.relief.weigh(look, stock, self.clock.now());
        if advice.release > 0 {
            crate::metrics::ram_pressure(look.source.word());
            self.apply(Event::Pressure { release: advice.release, source: look.source.word() });
        } else if advice.calm {
            // Also where nothing may grow by itself: whoever waits for RAM must not wait for more of it than is needed.
            self.apply(Event::PressureOver { growth: advice.growth });
        }
        // After the release, which is the reason; the limit asks for nothing that is leaving.
        self.limit_ram(look.available, look.cgroup, look.locked);
        self.rewarm();
    }

    /// Pages that could not be locked and were evicted are read again, a little at a time.
    fn rewarm(&mut self) {
        let now = self.clock.now();
        if matches!(self.ram.resident.mode(), Mode::Locked { .. })
            || now.since(self.ram.rewarmed) < crate::engine::run::SYNC_INTERVAL
        {
            return;
        }
        self.ram.rewarmed = now;
        let held: Vec<Arc<Held>> = self.ram.held.values().cloned().collect();
        tokio::task::spawn_blocking(move || {
            let mut left = REWARM_BYTES;
            for held in held {
                match held.rewarm(left) {
                    Ok(read) => left = left.saturating_sub(read),
                    Err(error) => tracing::warn!(%error, "evicted pages could not be read again"),
                }
            }
        });
    }

    /// Keeps the pages of an open unfinished blob from here on.
    pub(crate) fn land(&mut self, flight: FlightId) {
        let Some(partial) = self.open.get(&flight) else { return };
        match self.ram.resident.begin(partial.path(), partial.layout().bytes()) {
            Ok(held) => {
                let landing =
                    Landing { held, ways: Mutex::default(), waits: AtomicBool::new(false), blob: OnceLock::new() };
                self.ram.landing.insert(flight, Arc::new(landing));
                self.watch_pressure();
            }
            Err(error) => {
                tracing::warn!(%flight, %error, "its pages are not kept as they land; they are read back later")
            }
        }
    }

    /// A flight's pieces add up to a blob.
    pub(crate) fn land_as(&self, flight: FlightId, blob: BlobId) {
        if let Some(landing) = self.ram.landing.get(&flight) {
            // Set once: a flight that is fetched again lands anew.
            let _ = landing.blob.set(blob);
        }
    }

    /// A flight's blob is whole. If it is to be locked, that is asked for next.
    pub(crate) fn landed(&mut self, flight: FlightId) {
        if let Some(landing) = self.ram.landing.remove(&flight)
            && let Some(blob) = landing.blob.get()
        {
            self.ram.landed.insert(*blob, landing);
        }
    }

    /// What landed and was not asked for is let go.
    pub(crate) fn forget_landed(&mut self) {
        self.ram.landed.clear();
    }

    /// Reads a blob's pages and locks them, beside the loop.
    pub(crate) fn lock(&mut self, blob: BlobId, bytes: u64) {
        self.watch_pressure();
        let stop = Arc::new(AtomicBool::new(false));
        self.ram.locking.insert(blob, (stop.clone(), false));
        let (resident, path, clock) = (self.ram.resident.clone(), self.store.blob_path(blob), self.clock.clone());
        let landed = self.ram.landed.remove(&blob);
        self.on_disk(move |_, _| {
            let started = clock.now();
            let found = cached_bytes(&path, bytes);
            let held = match landed.map(Arc::try_unwrap) {
                Some(Ok(landed)) => landed.held.extend(0..bytes).map(|()| landed.held),
                // A piece is still being read back: what is resident already costs next to nothing.
                Some(Err(_)) | None => resident.hold(&path, bytes, &stop, &AtomicU64::new(0)),
            };
            if held.is_ok() {
                crate::metrics::ram_locked(bytes, clock.now().since(started));
            }
            Done::Held(blob, found, held.map(Arc::new).map_err(Fault::from))
        });
    }

    pub(crate) fn held(&mut self, blob: BlobId, found: u64, result: Result<Arc<Held>, Fault>) {
        let Some((_, leaving)) = self.ram.locking.remove(&blob) else { return };
        if leaving {
            self.let_go(result.ok(), blob);
            return;
        }
        let result = result.map(|held| {
            self.ram.held.insert(blob, held);
        });
        self.apply(Event::Locked { blob, found, result });
        self.measure_ram();
    }

    /// Gives a blob's pages back, beside the loop: a few milliseconds for a large one.
    pub(crate) fn unlock(&mut self, blob: BlobId) {
        if let Some((stop, leaving)) = self.ram.locking.get_mut(&blob) {
            stop.store(true, Ordering::Relaxed);
            *leaving = true;
            return;
        }
        let held = self.ram.held.remove(&blob);
        self.let_go(held, blob);
    }

    fn let_go(&self, held: Option<Arc<Held>>, blob: BlobId) {
        self.on_disk(move |_, _| {
            drop(held);
            Done::Event(Event::Unlocked(blob))
        });
    }

    fn watch_pressure(&mut self) {
        if self.ram.watch.is_some() {
            return;
        }
        let (done, resident, reserve) = (self.done.clone(), self.ram.resident.clone(), self.reserve());
        let report = move |look: Pressure| {
            let next = next_look(&look, reserve);
            // A loop that is busy gets the next look.
            let _ = done.try_send(Done::Pressed(look));
            next
        };
        let watch = Watch::start(move || resident.locked(), report);
        match watch {
            Ok(watch) => self.ram.watch = Some(watch),
            Err(error) => tracing::error!(%error, "memory pressure cannot be watched"),
        }
    }

    /// Nothing is held and nothing waits to come back: nobody needs to watch.
    pub(crate) fn rest_ram(&mut self) {
        if self.ram.is_empty() && !self.state.ram_wants_back() {
            self.ram.watch = None;
        }
    }

    /// The tier as it is now.
    pub(crate) fn ram_view(&self) -> TierView {
        TierView { detail: self.ram.detail(), ..self.state.memory(self.ram.mode()) }
    }

    /// Bytes of held blobs that are in RAM now, counted by the kernel.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let counted = self.ram.held.values().filter_map(|held| held.residency().ok());
        counted.map(|residency| residency.resident).sum()
    }
}
