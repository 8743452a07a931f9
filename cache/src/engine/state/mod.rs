//! The state of the engine and its one rule: `apply(event, now) -> effects`. Total and synchronous: no clock, no
//! channel, no file. Replaying the same events at the same ticks yields the same effects.
//!
//! | file | holds |
//! | --- | --- |
//! | `ensure` | callers: what each wants and how far it is |
//! | `flight` | flights: from room, to pieces, to a whole blob |
//! | `dispatch` | which piece is fetched next, from where |
//! | `expect` | what queued prompts will need: flights ahead of time, in order |
//! | `explain` | why a model is where it is: the last decisions, and where it stands |
//! | `room` | the disk budget: admission, reservation, eviction |
//! | `memory` | the RAM tier: what is held in RAM, what goes first |
//! | `demote` | what leaves RAM first, and what may not |
//! | `predict` | what is guessed, and how guesses have done |
//! | `prefetch` | guesses, acted on |
//! | `place` | where what was just read stays, and what goes for it |
//! | `passing` | blobs that RAM alone holds, or nobody: for executors that can do that |
//! | `order` | in which order a set is locked in RAM |
//! | `patrol` | which stored blob is read again while nothing else happens |
//! | `leases` | what somebody asked to keep |
//! | `stored` | what is on the disk: names, uses, damage |
//! | `restart` | flights whose source changed or failed; files that are let go |
//! | `uses` | what the policy counted, over a restart |
//! | `look` | read-only views for the outside |
//! | `outlook` | what an estimate needs to know, as a snapshot |
//! | `workers` | L1: what workers have in VRAM, and what follows from it |
//! | `check` | the invariants, for tests and debug builds |

mod check;
mod course;
mod demote;
mod dispatch;
mod ensure;
mod expect;
mod explain;
mod flight;
mod leases;
mod look;
mod memory;
mod order;
mod outlook;
mod passing;
mod patrol;
mod place;
mod predict;
mod prefetch;
mod restart;
mod room;
mod stored;
#[cfg(test)]
mod tests;
mod uses;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::budget::Budget;
use crate::catalog::Catalog;
use crate::clock::{Tick, Wall};
use crate::config::{FetchConfig, LimitsConfig, VramConfig};
use crate::engine::event::{Effect, Event, RequestId};
use crate::engine::view::{LeaseView, Trust};
use crate::ids::{BlobId, EnsureId, FlightId, LeaseId, ModelKey, OriginName, Sha256Digest};
use crate::piece::PIECE_BYTES;
use crate::plan::connections::{self, Connections};
use crate::plan::expected::Expected;
use crate::plan::predict::{Habits, PredictConfig, PredictMode, Predictor};
use crate::plan::rates::Rates;
use crate::plan::rivals::Rivals;
use crate::plan::{Costs, Policy};
use crate::store::{Inventory, PartialName, StoredLink};
use crate::units::Share;

use self::ensure::Ensure;
use self::explain::Decisions;
use self::flight::Flight;
use self::memory::Memory;
use self::predict::Guessing;
use self::workers::Vram;

/// Commits, opens and scrubs that run at once: each is one stream of reads or syncs, and disks like a few.
const DISK_JOBS_MAX: usize = 4;

/// What the state is told once.
#[derive(Debug, Clone)]
pub struct StateConfig {
    /// How bytes are fetched.
    pub fetch: FetchConfig,
    /// Named limits.
    pub limits: LimitsConfig,
    /// Most bytes that blobs and reservations may take.
    pub budget: Share,
    /// Bytes of the file system that stay free.
    pub keep_free: Share,
    /// Origins in order of preference, with the most connections of each.
    pub origins: Vec<(OriginName, u32)>,
    /// How long stored bytes are believed before they are read again while idle; `None` for ever.
    pub scrub_interval: Option<Duration>,
    /// Where models appear.
    pub models: PathBuf,
    /// How long workers are believed, and when advice is given.
    pub vram: VramConfig,
    /// Seed of the back-off's jitter.
    pub seed: u64,
    /// What the executor of the effects can do.
    pub executor: Executor,
    /// Whether guesses are made and acted on.
    pub predict: PredictConfig,
    /// What bytes cost on this node, for guesses.
    pub costs: Costs,
}

/// What the executor of the effects can do beyond whole files on the disk. The daemon's can do none of it; a replay says what it
/// assumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Executor {
    /// RAM and disk hold bytes of their own: RAM can hold a blob that the disk does not, and bytes can go past the disk to whoever
    /// reads them, so that what is not kept needs no room there.
    pub apart: bool,
    /// Whatever is read is placed: it goes to RAM, or stays out, as the policy says. Without it RAM holds what is asked for there.
    pub places: bool,
    /// Whoever asked for models reads them after they are ready, and says so with [`Event::Leave`]: they are held until then.
    pub readers_hold: bool,
    /// What bytes cost is measured as they move, and the policy told. Without it the policy keeps what it was built with.
    pub measures: bool,
    /// The policies that do not act are scored beside the one that does.
    pub rivals: bool,
    /// Bytes of a piece.
    pub piece_bytes: u64,
    /// Connections that each origin starts with.
    pub connections_start: u32,
}

impl Default for Executor {
    fn default() -> Self {
        Self {
            apart: false,
            places: false,
            readers_hold: false,
            measures: true,
            rivals: true,
            piece_bytes: PIECE_BYTES,
            connections_start: connections::START,
        }
    }
}

/// A blob on the disk, whole.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: u64,
    pub(crate) trust: Trust,
    pub(crate) sha256: Option<Sha256Digest>,
    pub(crate) last_used: Wall,
    pub(crate) models: BTreeSet<ModelKey>,
    /// Whether the disk holds it. If not, RAM alone does, or it is passing by.
    pub(crate) on_disk: bool,
    /// Callers and scrubs that need it to stay.
    pub(crate) holds: u32,
    pub(crate) fate: Fate,
    /// When its bytes are read again although nothing happened to it.
    pub(crate) patrol_due: Tick,
}

/// What is being done to a stored blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing.
    Kept,
    /// It is being read and compared.
    Scrubbing,
    /// It is damaged and leaves its names.
    Withdrawing,
    /// It is being deleted.
    Removing,
    /// The disk gives up its copy; RAM keeps it.
    Shedding,
    /// It is being written to the disk, which does not have it.
    Sinking,
}

/// A lane: one origin as the scheduler sees it.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) origin: OriginName,
    pub(crate) connections: Connections,
    pub(crate) running: u32,
    /// It asked us to wait until then.
    pub(crate) paused_until: Tick,
    /// It sends everything whatever range is asked for.
    pub(crate) ignores_ranges: bool,
}

/// The state of the engine. Only [`State::apply`] and the orders beside it change it.
///
/// Invariant: [`State::check`] finds nothing.
#[derive(Debug)]
pub struct State {
    config: StateConfig,
    catalog: Arc<Catalog>,
    disk: Budget,
    blobs: BTreeMap<BlobId, Blob>,
    links: BTreeMap<ModelKey, StoredLink>,
    /// Blobs that have lost their last name: they go once nobody holds them.
    nameless: BTreeSet<BlobId>,
    /// Unfinished blobs that no flight has open, oldest first.
    partials: BTreeMap<PartialName, (u64, Tick)>,
    /// Names of withdrawn blobs: while their source is unchanged, the digest that was computed at first use still holds.
    vouched: BTreeMap<ModelKey, StoredLink>,
    /// Unfinished blobs that are being deleted.
    discarding: BTreeMap<PartialName, u64>,
    flights: BTreeMap<FlightId, Flight>,
    ended: BTreeMap<FlightId, flight::Ended>,
    ensures: BTreeMap<EnsureId, Ensure>,
    leases: BTreeMap<LeaseId, Lease>,
    lanes: Vec<Lane>,
    requests: BTreeMap<RequestId, dispatch::Request>,
    plan: Box<dyn Policy>,
    memory: Memory,
    passing: passing::Passing,
    /// How long things take on this node. Shared with snapshots, copied when it changes under one.
    rates: Arc<Rates>,
    vram: Vram,
    /// What is expected to be used soon: the known future, for the order of flights and for what may be evicted.
    expected: Expected,
    /// Expected models that could not be fetched, until when they are left alone.
    put_off: BTreeMap<ModelKey, Tick>,
    /// Whether something changed since expected models were looked at.
    look_ahead: bool,
    guessing: Guessing,
    disk_jobs: usize,
    /// The blob that is being read because it was its turn.
    patrolled: Option<BlobId>,
    /// Since when nobody has wanted anything.
    idle_since: Tick,
    /// How often a caller or a flight let go of something that another may have waited for.
    let_go: u64,
    /// When everything that could move last did.
    settled: Tick,
    next_flight: u64,
    next_request: u64,
    next_lease: u64,
    rng: fastrand::Rng,
    wall: Wall,
    /// The time of the last event or question: what decisions are remembered by.
    now: Tick,
    decisions: Decisions,
    /// What the policy was told last, and when it may be told again.
    costs: Costs,
    costs_due: Tick,
    /// Whether the policy was told of a use since its counts were last kept.
    counted: bool,
    /// What other policies would have done.
    rivals: Option<Rivals>,
    out: Vec<Effect>,
}

/// A pin, with its end on the monotonic clock.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) view: LeaseView,
    pub(crate) ends: Tick,
}

impl State {
    /// Takes over what the store found.
    #[must_use]
    pub fn new(config: StateConfig, inventory: &Inventory, plan: Box<dyn Policy>, now: Tick, wall: Wall) -> Self {
        let lanes = config
            .origins
            .iter()
            .map(|(origin, max)| Lane {
                origin: origin.clone(),
                connections: Connections::starting_at(
                    config.executor.connections_start,
                    (*max).min(config.fetch.connections_max),
                ),
                running: 0,
                paused_until: Tick::default(),
                ignores_ranges: false,
            })
            .collect();
        let (vram, predict, costs) = (config.vram, config.predict, config.costs);
        let rivals = config.executor.rivals.then(|| Rivals::of(plan.name(), costs));
        let learns = predict.mode != PredictMode::Off;
        let predictor = learns.then(|| Box::new(Habits::default()) as Box<dyn Predictor>);
        let mut state = Self {
            rng: fastrand::Rng::with_seed(config.seed),
            config,
            catalog: Arc::new(Catalog::default()),
            disk: Budget::new(0),
            blobs: BTreeMap::new(),
            links: BTreeMap::new(),
            nameless: BTreeSet::new(),
            partials: BTreeMap::new(),
            vouched: BTreeMap::new(),
            discarding: BTreeMap::new(),
            flights: BTreeMap::new(),
            ended: BTreeMap::new(),
            ensures: BTreeMap::new(),
            leases: BTreeMap::new(),
            lanes,
            requests: BTreeMap::new(),
            plan,
            memory: Memory::new(),
            passing: passing::Passing::default(),
            rates: Arc::default(),
            vram: Vram::new(vram),
            expected: Expected::default(),
            put_off: BTreeMap::new(),
            look_ahead: false,
            guessing: Guessing::new(predict, costs, predictor),
            disk_jobs: 0,
            patrolled: None,
            idle_since: now,
            let_go: 0,
            settled: now,
            next_flight: 1,
            next_request: 1,
            next_lease: inventory.next_lease,
            wall,
            now,
            decisions: Decisions::default(),
            costs,
            costs_due: now,
            counted: false,
            rivals,
            out: Vec::new(),
        };
        state.take_over(inventory, now);
        state
    }

    /// Applies one event and returns the work it calls for.
    ///
    /// `wall` is written into records, and tells guesses the hour of the day; nothing else is decided by it.
    #[must_use = "an effect that is dropped is work that never happens"]
    pub fn apply(&mut self, event: Event, now: Tick, wall: Wall) -> Vec<Effect> {
        self.wall = wall;
        self.now = now;
        // Pieces come by the thousand and change nothing about what is missing.
        let moves_nothing = matches!(event, Event::PieceDone { .. } | Event::Sample { .. });
        self.look_ahead |= !moves_nothing;
        self.guessing.look |= !moves_nothing;
        match event {
            Event::Ensure { id, request } => self.ensure(id, request, now),
            Event::Leave(id) => self.leave(id, now),
            Event::Inspected { blob, found } => self.inspected(blob, found, now),
            Event::Scrubbed { blob, bad } => self.scrubbed(blob, bad, now),
            Event::Patrolled { blob, bad } => self.patrolled(blob, bad, now),
            Event::Withdrawn { blob, result } => self.withdrawn(blob, result, now),
            Event::Located { model, result } => self.located(&model, result, now),
            Event::Catalog(catalog) => self.catalog = catalog,
            Event::Opened { flight, pieces } => self.opened(flight, pieces, now),
            Event::PieceDone { flight, request, piece, cv } => self.piece_done(flight, request, piece, cv, now),
            Event::RequestEnded { flight, request, result } => self.request_ended(flight, request, result, now),
            Event::Relocated { flight, result } => self.relocated(flight, result, now),
            Event::Committed { flight, result } => self.committed(flight, result, now),
            Event::Linked { link, result } => self.linked(link, result, now),
            Event::Removed { blob, result } => self.removed(blob, result, now),
            Event::Discarded { name, result } => self.discarded(name, result, now),
            Event::Adopted { link, bytes, reserved } => self.adopted(link, bytes, reserved, now),
            Event::Space { total, free } => self.space(total, free, now),
            Event::Sample { origin, bytes } => self.sample(&origin, bytes, now),
            Event::Locked { blob, found, result } => self.locked(blob, found, result, now),
            Event::Unlocked(blob) => self.unlocked(blob),
            Event::Shed { blob, result } => self.shed_done(blob, result),
            Event::Sunk { blob, result } => self.sunk(blob, result, now),
            Event::RamLimit(bytes) => self.ram_limit(bytes),
            Event::Pressure { release, source } => self.pressure(release, source, now),
            Event::PressureOver { growth } => self.pressure_over(growth),
            Event::Expect { source, wants } => self.expect(&source, wants, now),
            Event::ProcessEnded(pid) => self.process_ended(pid),
            Event::Opens { worker, model } => self.opens(&worker, &model, now),
            Event::Expected { address, models } => self.expected_next(&address, models, now),
            Event::Tick => {
                self.expire_leases(now);
                self.expire_workers(now);
                self.guess_by_time(now);
                self.patrol(now);
            }
        }
        self.settle(now);
        std::mem::take(&mut self.out)
    }

    /// Lets everything move that can: callers whose answers are in, flights that wait for room, pieces that wait for
    /// connections.
    fn settle(&mut self, now: Tick) {
        self.now = now;
        self.tell_costs(now);
        loop {
            let before = self.let_go;
            self.admit_ensures(now);
            self.finish_ensures(now);
            self.fly_ahead(now);
            self.fly_guesses(now);
            self.make_room(now);
            self.advance_flights(now);
            self.fill_memory(now);
            if self.let_go == before {
                break;
            }
        }
        self.dispatch(now);
        if !self.flights.is_empty() || !self.ensures.is_empty() {
            self.idle_since = now;
        }
        self.settled = now;
        debug_assert_eq!(self.check(), Vec::<String>::new());
    }

    /// The next tick at which something happens by itself: a back-off or a lease ends, a worker falls silent.
    #[must_use]
    pub fn next_wake(&self) -> Option<Tick> {
        let leases = self.leases.values().map(|lease| lease.ends);
        let leases = leases.chain(self.next_retry()).chain(self.next_patrol()).chain(self.next_ahead());
        leases.chain(self.vram.ledger.next_expiry()).chain(self.next_guess()).min()
    }
}
