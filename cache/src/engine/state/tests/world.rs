//! A naive world: a disk, an origin and callers, that do what the state asks, one thing at a time, in any order.
//!
//! It keeps its own books, as simply as can be, and panics as soon as the state asks for something that must not be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{Catalog, Entry, Source, Validator};
use crate::clock::{Tick, Wall};
use crate::config::{FetchConfig, LimitsConfig, VramConfig};
use crate::engine::event::{Broken, Commit, CommitFault, Effect, Event, Fetch, Found, Relocated, RequestId};
use crate::engine::state::{Executor, State, StateConfig};
use crate::engine::view::{EnsureRequest, LeaseView, Priority, RamHold, Tier, Trust};
use crate::fault::Fault;
use crate::ids::{BlobId, EnsureId, FlightId, LeaseId, ModelKey, OriginName};
use crate::piece::{self, Cv, Layout, PIECE_BYTES};
use crate::plan::expected::{Rank, Want};
use crate::plan::predict::{Guess, Habit, PredictConfig, Predictor, Seen};
use crate::plan::{Costs, PolicyKind};
use crate::store::{Inventory, PartialName, StoredBlob, StoredLink, StoredPartial};
use crate::units::{MIB, Share};
use crate::vram::{Claim, DeviceReport, Hello, Report, WorkerId};

const ORIGINS: [&str; 2] = ["near", "far"];
const MODELS: u8 = 8;
/// Bytes of the world's file system; the budget is half of it.
const DISK: u64 = 96 * MIB;
/// Bytes that the world's RAM tier may hold.
const RAM: u64 = 30 * MIB;

/// Something that the test does to the world.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Ensure {
        a: u8,
        b: u8,
        demand: bool,
        cancel: bool,
        ram: bool,
    },
    Promote(u8),
    Demote(u8),
    RamLimit(u8),
    Pressure(u8),
    PressureOver,
    Leave(u8),
    DoOne(u8),
    PieceArrives(u8),
    RequestBreaks {
        request: u8,
        fault: u8,
    },
    DiskFails(u8),
    Touch(u8),
    Delete(u8),
    ChangeAtOrigin(u8),
    Pin {
        model: u8,
        seconds: u8,
    },
    Unpin(u8),
    Evict(u8),
    CancelFlight(u8),
    Space(u8),
    Wait(u8),
    /// A server's queue: one model a prompt, in RAM or not.
    Expect {
        source: u8,
        queue: Vec<u8>,
        ram: bool,
    },
    Load {
        worker: u8,
        a: u8,
        b: u8,
        in_use: bool,
    },
    WorkerEnds(u8),
    Restart,
}

/// A caller, as the world sees it.
#[derive(Debug, Default)]
struct Caller {
    plans: u32,
    ends: u32,
    left: bool,
    ram: bool,
    demand: bool,
}

/// A whole file on the world's disk.
#[derive(Debug, Clone)]
struct File {
    bytes: u64,
    names: BTreeMap<ModelKey, StoredLink>,
    touched: bool,
    deleted: bool,
    /// Whether the disk has it; if not, RAM does, or somebody reads it as it passes.
    on_disk: bool,
}

/// An unfinished file on the world's disk.
#[derive(Debug, Clone)]
struct Unfinished {
    bytes: u64,
    /// Whether its bytes go past the disk.
    passes: bool,
    pieces: BTreeMap<u32, Cv>,
}

pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Tick,
    rng: fastrand::Rng,
    kind: (Executor, PolicyKind),
    /// Version of each model's content at the origin.
    versions: [u32; MODELS as usize],
    files: BTreeMap<BlobId, File>,
    unfinished: BTreeMap<PartialName, Unfinished>,
    open: BTreeMap<FlightId, PartialName>,
    leases: BTreeMap<LeaseId, LeaseView>,
    /// What each worker has in VRAM, and when it said so.
    workers: BTreeMap<u8, (Tick, BTreeSet<BlobId>)>,
    seq: u64,
    /// Blobs whose pages are held.
    ram: BTreeSet<BlobId>,
    ram_limit: u64,
    /// The set that a restart locks again, as it was last written down.
    noted: Vec<BlobId>,
    /// Work that was asked for and not done.
    todo: Vec<Effect>,
    pub(super) requests: BTreeMap<RequestId, (Fetch, BTreeSet<u32>)>,
    callers: BTreeMap<EnsureId, Caller>,
    next_ensure: u64,
    free: u64,
    pub(super) log: Vec<String>,
}

pub(super) fn model(n: u8) -> ModelKey {
    let folder = ["vae", "diffusion_models", "text_encoders"].get(usize::from(n % MODELS)).unwrap_or(&"loras");
    ModelKey::parse(&format!("{folder}/m{}.safetensors", n % MODELS)).expect("a valid key")
}

/// Models 6 and 7 have no digest; 4 and 5 share one content, and so do 6 and 7, but nobody knows before they are there.
fn content(n: u8, version: u32) -> (u64, Vec<Cv>) {
    let n = if n == 5 || n == 7 { n - 1 } else { n };
    let bytes = (u64::from(n) + 1) * 3 * MIB + u64::from(version);
    let layout = Layout::new(bytes);
    let cv = |piece| Cv(*blake3::hash(format!("{n} {version} {piece}").as_bytes()).as_bytes());
    (bytes, (0..layout.pieces()).map(cv).collect())
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(seed, (Executor::default(), PolicyKind::Lru))
    }

    /// A world whose executor can do more, under another policy.
    pub(super) fn with(seed: u64, kind: (Executor, PolicyKind)) -> Self {
        let mut world = Self {
            state: state(seed, &Inventory::default(), Tick(0), kind),
            kind,
            now: Tick(1),
            rng: fastrand::Rng::with_seed(seed),
            versions: [0; MODELS as usize],
            files: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            open: BTreeMap::new(),
            leases: BTreeMap::new(),
            workers: BTreeMap::new(),
            seq: 0,
            ram: BTreeSet::new(),
            ram_limit: RAM,
            noted: Vec::new(),
            todo: Vec::new(),
            requests: BTreeMap::new(),
            callers: BTreeMap::new(),
            next_ensure: 1,
            free: DISK,
            log: Vec::new(),
        };
        world.tell_space();
        world.tell_ram();
        world.tell_catalog();
        world
    }

    fn catalog(&self) -> Arc<Catalog> {
        let entries = (0..MODELS).map(|n| (model(n), self.entry(n)));
        Arc::new(Catalog::from_entries(entries))
    }

    fn entry(&self, n: u8) -> Entry {
        let version = self.versions[n as usize];
        let (bytes, cvs) = content(n, version);
        let digest = (n < 6).then(|| piece::root(Layout::new(bytes), &cvs));
        let source = |origin| Source {
            origin: OriginName::new(origin),
            path: model(n).to_string(),
            bytes,
            validator: Validator { etag: Some(format!("\"{n}-{version}\"")), modified_ms: None },
        };
        Entry { bytes, blake3: digest, sha256: None, sources: ORIGINS.into_iter().map(source).collect() }
    }

    pub(super) fn apply(&mut self, event: Event) {
        self.log.push(format!("{:?} <- {event:?}", self.now));
        if matches!(event, Event::Tick) {
            let (now, expiry) = (self.now, VramConfig::default().worker_expiry);
            self.workers.retain(|_, (heard, _)| heard.after(expiry) > now);
        }
        let effects = self.state.apply(event, self.now, Wall(self.now.0 / 1000));
        self.take(effects);
    }

    fn take(&mut self, effects: Vec<Effect>) {
        let wrong = self.state.check();
        assert!(wrong.is_empty(), "{wrong:?}");
        for effect in effects {
            self.log.push(format!("  -> {effect:?}"));
            match effect {
                Effect::TellPlan(id, _) => self.caller(id, |caller| caller.plans += 1),
                Effect::TellReady(id, ready) => {
                    for ready in &ready.models {
                        let file = self.files.get(&ready.blob).expect("a ready model is on the disk");
                        assert!(file.names.contains_key(&ready.model), "{} is ready without its name", ready.model);
                        if self.callers[&id].ram {
                            assert!(self.ram.contains(&ready.blob), "{} is ready without its pages", ready.model);
                            assert!(self.noted.contains(&ready.blob), "a kill now would lose {}", ready.model);
                        }
                    }
                    self.caller(id, |caller| caller.ends += 1);
                }
                Effect::TellFailed(id, _) => self.caller(id, |caller| caller.ends += 1),
                Effect::PutLease(lease) => drop(self.leases.insert(lease.lease, lease)),
                Effect::EndLease(lease) => drop(self.leases.remove(&lease)),
                Effect::Land(flight) => assert!(self.open.contains_key(&flight), "only an open file lands"),
                Effect::NoteResident(blobs) => self.noted = blobs,
                Effect::NoteUse(_)
                | Effect::Record(_)
                | Effect::CountUse { .. }
                | Effect::Advise(_)
                | Effect::CountGuess(_)
                | Effect::CountAhead(_) => {}
                Effect::Bless(blob) => {
                    if let Some(file) = self.files.get_mut(&blob) {
                        file.touched = false;
                    }
                }
                Effect::Reset(flight) => {
                    let name = self.open.get(&flight).expect("only an open file is reset");
                    self.unfinished.get_mut(name).expect("an open file exists").pieces.clear();
                }
                Effect::Close(flight) => {
                    self.open.remove(&flight).expect("only an open file is closed");
                }
                Effect::Fetch(fetch) => self.fetch(fetch),
                Effect::Unlink(model) => {
                    for file in self.files.values_mut() {
                        file.names.remove(&model);
                    }
                }
                effect => {
                    if let Effect::Unlock(blob) = &effect {
                        self.may_be_unlocked(*blob);
                    }
                    if let Effect::Remove(blob) = &effect {
                        self.may_be_removed(*blob);
                    }
                    if let Effect::Commit { blob, .. } = &effect {
                        let twice = |work: &Effect| matches!(work, Effect::Commit { blob: other, .. } if other == blob);
                        assert!(!self.todo.iter().any(twice), "{blob} is committed twice at once");
                    }
                    self.todo.push(effect);
                }
            }
        }
    }

    /// A lease of today forbids a removal that is decided today.
    fn may_be_removed(&self, blob: BlobId) {
        let Some(file) = self.files.get(&blob).filter(|file| !file.deleted) else { return };
        for lease in self.leases.values() {
            let held = lease.models.iter().any(|model| file.names.contains_key(model));
            assert!(!held, "{blob} is removed under lease {}", lease.lease);
        }
        for (worker, (_, loaded)) in &self.workers {
            assert!(!loaded.contains(&blob), "{blob} is removed although worker {worker} has it in VRAM");
        }
    }

    /// A worker says that it has these models in VRAM, as far as they are stored, and nothing else.
    pub(super) fn load(&mut self, n: u8, models: &[u8], in_use: bool) {
        let (worker, pid) = (WorkerId::parse(&format!("w{n}")).expect("a valid name"), u32::from(n));
        let hello = Hello { pid, watched: Some(pid), ..Hello::default() };
        let effects = self.state.worker_hello(&worker, hello, self.now).expect("there is room");
        self.take(effects);
        let stored = models.iter().filter_map(|n| Some((*n, self.state.stored(&model(*n))?.0)));
        let loaded: Vec<(u8, BlobId)> = stored.collect();
        let claim = |(n, blob): &(u8, BlobId)| Claim {
            // A file for each blob: what a name that was fetched anew stands for is the ledger's own tests' business.
            file: format!("{n} {blob}"),
            blob: Some(*blob),
            bytes: 10,
            loaded: 10,
            in_use,
        };
        self.seq += 1;
        let models = loaded.iter().map(claim).collect();
        let devices = Some(vec![DeviceReport { total: 100, free: 10, models, ..DeviceReport::default() }]);
        let report = Report { seq: self.seq, devices, ..Report::default() };
        self.workers.insert(n, (self.now, loaded.into_iter().map(|(_, blob)| blob).collect()));
        let effects =
            self.state.worker_report(&worker, report, self.now, Wall(self.now.0 / 1000)).expect("it said hello");
        self.take(effects);
    }

    /// A hard lease of today forbids a demotion that is decided today, unless the blob leaves the disk.
    fn may_be_unlocked(&self, blob: BlobId) {
        let Some(file) = self.files.get(&blob).filter(|file| !file.deleted && !file.touched) else { return };
        if self.state.is_leaving(blob) {
            return;
        }
        for lease in self.leases.values().filter(|lease| lease.ram == RamHold::Hard) {
            let held = lease.models.iter().any(|model| file.names.contains_key(model));
            assert!(!held, "{blob} is demoted under lease {}", lease.lease);
        }
    }

    fn caller(&mut self, id: EnsureId, note: impl FnOnce(&mut Caller)) {
        let caller = self.callers.get_mut(&id).expect("only callers are told");
        note(caller);
        assert!(caller.plans <= 1 && caller.ends <= 1, "{id} was told twice: {caller:?}");
    }

    fn fetch(&mut self, fetch: Fetch) {
        let name = self.open.get(&fetch.flight).expect("only open files are fetched into");
        let done = &self.unfinished[name].pieces;
        let pieces: BTreeSet<u32> =
            (fetch.first..fetch.first + fetch.count).filter(|piece| !fetch.skip.contains(piece)).collect();
        for piece in &pieces {
            assert!(!done.contains_key(piece), "finished piece {piece} of {name:?} is fetched again");
        }
        for (other, owed) in self.requests.values().filter(|(other, _)| other.flight == fetch.flight) {
            assert!(owed.is_disjoint(&pieces), "{other:?} and {fetch:?} fetch the same piece");
        }
        self.requests.insert(fetch.request, (fetch, pieces));
    }

    fn pick<T: Clone>(&self, all: impl IntoIterator<Item = T>, n: u8) -> Option<T> {
        let all: Vec<T> = all.into_iter().collect();
        (!all.is_empty()).then(|| all[n as usize % all.len()].clone())
    }

    /// A server's queue, one model a prompt.
    pub(super) fn expect(&mut self, source: u8, queue: &[u8], ram: bool) {
        let want = |(position, n): (u32, &u8)| Want { model: model(*n), rank: Rank { position, order: 0 }, ram };
        let wants = (0..).zip(queue).map(want).collect();
        self.apply(Event::Expect { source: format!("comfy:{}", source % 2), wants });
    }

    pub(super) fn step(&mut self, step: Step) {
        self.now = self.now.after(Duration::from_millis(10));
        match step {
            Step::Ensure { a, b, demand, cancel, ram } => self.ensure_in(&[a, b], demand, cancel, ram),
            Step::Expect { source, queue, ram } => self.expect(source, &queue, ram),
            Step::Promote(n) => {
                let (_, effects) = self.state.promote(&[model(n)], self.now);
                self.take(effects);
            }
            Step::Demote(n) => {
                let (_, effects) = self.state.demote(&[model(n)], "world", self.now);
                self.take(effects);
            }
            Step::RamLimit(mib) => {
                self.ram_limit = u64::from(mib) * MIB;
                self.tell_ram();
            }
            Step::Pressure(mib) => {
                self.apply(Event::Pressure { release: u64::from(mib) * MIB, source: "world" });
            }
            Step::PressureOver => self.apply(Event::PressureOver { growth: RAM }),
            Step::Leave(n) => {
                let reads = self.kind.0.readers_hold;
                let live = self
                    .callers
                    .iter()
                    .filter(|(_, c)| (c.ends == 0 || reads && c.demand) && !c.left)
                    .map(|(id, _)| *id);
                if let Some(id) = self.pick(live.collect::<Vec<_>>(), n) {
                    self.caller(id, |caller| caller.left = true);
                    self.apply(Event::Leave(id));
                }
            }
            Step::DoOne(n) if !self.todo.is_empty() => {
                let effect = self.todo.remove(n as usize % self.todo.len());
                self.work(effect, true);
            }
            Step::DiskFails(n) if !self.todo.is_empty() => {
                let effect = self.todo.remove(n as usize % self.todo.len());
                self.work(effect, false);
            }
            Step::DoOne(_) | Step::DiskFails(_) => {}
            Step::PieceArrives(n) => {
                if let Some(request) = self.pick(self.requests.keys().copied(), n) {
                    self.piece_arrives(request);
                }
            }
            Step::RequestBreaks { request, fault } => {
                if let Some(request) = self.pick(self.requests.keys().copied(), request) {
                    self.request_breaks(request, fault);
                }
            }
            Step::Touch(n) => {
                if let Some(blob) = self.pick(self.files.keys().copied(), n) {
                    self.files.get_mut(&blob).expect("picked").touched = true;
                }
            }
            Step::Delete(n) => {
                if let Some(blob) = self.pick(self.files.keys().copied(), n) {
                    self.files.get_mut(&blob).expect("picked").deleted = true;
                }
            }
            Step::ChangeAtOrigin(n) => {
                // Contents that are shared change together.
                for n in if n == 4 || n == 5 { vec![4, 5] } else { vec![n] } {
                    self.versions[n as usize] += 1;
                }
                if self.rng.bool() {
                    self.tell_catalog();
                }
            }
            Step::Pin { model: n, seconds } => {
                let ttl = Duration::from_secs(seconds.into());
                let ram = [RamHold::None, RamHold::Soft, RamHold::Hard][seconds as usize % 3];
                match self.state.pin(&[model(n)], ("world", ttl, ram), self.now, Wall(self.now.0 / 1000)) {
                    Ok((_, effects)) => self.take(effects),
                    Err(fault) => assert_eq!(ram, RamHold::Hard, "a known model can be pinned: {fault}"),
                }
            }
            Step::Unpin(n) => {
                let lease = self.pick(self.leases.keys().copied(), n);
                if let Some(Ok((_, effects))) = lease.map(|lease| self.state.unpin(lease, self.now)) {
                    self.take(effects);
                }
            }
            Step::Evict(n) => {
                let (_, _, effects) = self.state.evict(&[model(n)], "world", self.now);
                self.take(effects);
            }
            Step::CancelFlight(n) => {
                let flights = self.state.flights(self.now);
                if let Some(flight) = self.pick(flights, n) {
                    let effects = self.state.cancel(flight.flight, "world", self.now).expect("it is under way");
                    self.take(effects);
                }
            }
            Step::Space(mib) => {
                self.free = u64::from(mib) * MIB;
                self.tell_space();
            }
            Step::Wait(seconds) => {
                self.now = self.now.after(Duration::from_secs(seconds.into()));
                self.apply(Event::Tick);
            }
            Step::Load { worker, a, b, in_use } => self.load(worker, &[a, b], in_use),
            Step::WorkerEnds(n) => {
                self.workers.remove(&n);
                self.apply(Event::ProcessEnded(n.into()));
            }
            Step::Restart => self.restart(),
        }
    }

    pub(super) fn key(&self, n: u8) -> ModelKey {
        model(n)
    }

    pub(super) fn ensure(&mut self, models: &[u8], demand: bool, cancel: bool) {
        self.ensure_in(models, demand, cancel, false);
    }

    fn tell_ram(&mut self) {
        self.apply(Event::RamLimit(self.ram_limit));
    }

    pub(super) fn ensure_in(&mut self, models: &[u8], demand: bool, cancel: bool, ram: bool) {
        let id = EnsureId(self.next_ensure);
        self.next_ensure += 1;
        self.callers.insert(id, Caller { ram, demand, ..Caller::default() });
        let request = EnsureRequest {
            models: models.iter().map(|n| model(*n)).collect(),
            priority: if demand { Priority::Demand } else { Priority::Prefetch },
            target: if ram { Tier::Ram } else { Tier::Nvme },
            cancel_on_drop: cancel,
            progress_interval: Duration::from_secs(1),
            client: "world".to_owned(),
        };
        self.apply(Event::Ensure { id, request });
    }

    fn tell_space(&mut self) {
        let free = self.free;
        self.apply(Event::Space { total: DISK, free });
    }

    fn tell_catalog(&mut self) {
        let catalog = self.catalog();
        self.apply(Event::Catalog(catalog));
    }

    pub(super) fn piece_arrives(&mut self, id: RequestId) {
        let (fetch, owed) = self.requests.get_mut(&id).expect("picked");
        let (fetch, Some(piece)) = (fetch.clone(), owed.pop_first()) else { return };
        let n = (0..MODELS).find(|n| model(*n).as_str() == fetch.source.path).expect("a known path");
        let version = self.versions[n as usize];
        let (bytes, cvs) = content(n, version);
        if bytes != fetch.source.bytes || fetch.source.validator.etag != Some(format!("\"{n}-{version}\"")) {
            self.end(id, Err(Broken::Changed));
            return;
        }
        let cv = cvs[piece as usize];
        let name = self.open[&fetch.flight];
        self.unfinished.get_mut(&name).expect("open").pieces.insert(piece, cv);
        self.apply(Event::PieceDone { flight: fetch.flight, request: id, piece, cv });
        if self.requests.get(&id).is_some_and(|(_, owed)| owed.is_empty()) {
            self.end(id, Ok(()));
        }
    }

    pub(super) fn end(&mut self, id: RequestId, result: Result<(), Broken>) {
        let (fetch, _) = self.requests.remove(&id).expect("under way");
        self.apply(Event::RequestEnded { flight: fetch.flight, request: id, result });
    }

    fn request_breaks(&mut self, id: RequestId, fault: u8) {
        let detail = "world".to_owned();
        let broken = match fault {
            0 => Broken::Throttled { status: 503, retry_after: None },
            1 => Broken::Throttled { status: 429, retry_after: Some(Duration::from_secs(3)) },
            2 => Broken::Changed,
            3 => Broken::RangeIgnored,
            4 => Broken::Refused(Fault::OriginDenied { origin: OriginName::new("near"), status: Some(403), detail }),
            5 => Broken::Local(Fault::DiskFull { detail }),
            _ => Broken::Transient { detail, status: None },
        };
        self.end(id, Err(broken));
    }

    /// Does one piece of work, or fails at it.
    fn work(&mut self, effect: Effect, well: bool) {
        let fault = || Fault::Store { detail: "world".to_owned() };
        let event = match effect {
            Effect::Inspect { blob, .. } => {
                let found = match self.files.get(&blob) {
                    None => Found::Missing,
                    Some(file) if file.deleted => Found::Missing,
                    Some(_) if !well => Found::Unreadable(fault()),
                    Some(file) if file.touched => Found::Changed("touched".to_owned()),
                    Some(_) => Found::Intact,
                };
                Event::Inspected { blob, found }
            }
            Effect::Patrol(blob) => {
                let bad = if well { Ok(if self.rng.bool() { vec![0] } else { Vec::new() }) } else { Err(fault()) };
                Event::Patrolled { blob, bad }
            }
            Effect::Scrub(blob) => {
                let damaged = self.rng.bool();
                let bad = if !well {
                    Err(fault())
                } else if damaged {
                    Ok(vec![0])
                } else {
                    Ok(Vec::new())
                };
                Event::Scrubbed { blob, bad }
            }
            Effect::Lock { blob, .. } => {
                // A blob that was removed or withdrawn meanwhile cannot be opened any more.
                let well = well && self.files.contains_key(&blob);
                if well {
                    self.ram.insert(blob);
                }
                Event::Locked { blob, found: 0, result: if well { Ok(()) } else { Err(fault()) } }
            }
            Effect::Unlock(blob) => {
                // Reading that is under way is stopped.
                self.todo.retain(|work| !matches!(work, Effect::Lock { blob: other, .. } if *other == blob));
                self.ram.remove(&blob);
                Event::Unlocked(blob)
            }
            Effect::Withdraw { blob, bad } => {
                let result = if well { Ok(self.withdraw(blob, &bad)) } else { Err(fault()) };
                Event::Withdrawn { blob, result }
            }
            Effect::Locate(model) => Event::Located { model, result: Err(fault()) },
            Effect::Open { flight, name, bytes } => {
                Event::Opened { flight, pieces: self.open(flight, name, bytes, well) }
            }
            Effect::Abort(request) => {
                if self.requests.contains_key(&request) {
                    self.end(request, Err(Broken::Aborted));
                }
                return;
            }
            Effect::Relocate { flight, model: key, origin, .. } => {
                let n = (0..MODELS).find(|n| model(*n) == key).expect("a known model");
                let entry = self.entry(n);
                let source = entry.sources.iter().find(|source| source.origin == origin).cloned().expect("everywhere");
                self.tell_catalog();
                let found = Relocated { source, blake3: entry.blake3, sha256: None };
                let result = if well { Ok((origin, Some(found))) } else { Ok((origin, None)) };
                Event::Relocated { flight, result }
            }
            Effect::Commit { flight, blob, cvs, links, .. } => {
                let result =
                    if well { Ok(self.commit(flight, blob, &cvs, links)) } else { Err(CommitFault::Local(fault())) };
                Event::Committed { flight, result }
            }
            Effect::Link(link) => {
                let result = match self.files.get_mut(&link.blob).filter(|_| well) {
                    Some(file) => {
                        file.names.insert(link.model.clone(), link.clone());
                        Ok(())
                    }
                    None => Err(fault()),
                };
                if result.is_ok() {
                    self.unname(&link.model, link.blob);
                }
                Event::Linked { link, result }
            }
            Effect::Remove(blob) => {
                let result = if well { self.remove(blob) } else { Err(fault()) };
                Event::Removed { blob, result }
            }
            Effect::Discard(name) => {
                assert!(!self.open.values().any(|open| *open == name), "{name:?} is discarded while it is open");
                let result = if well { Ok(()) } else { Err(fault()) };
                if well {
                    self.unfinished.remove(&name);
                }
                Event::Discarded { name, result }
            }
            Effect::Shed(blob) => {
                assert!(self.kind.0.apart, "{blob} is given up by the disk, and RAM holds only copies");
                if let Some(file) = self.files.get_mut(&blob).filter(|_| well) {
                    file.on_disk = false;
                }
                Event::Shed { blob, result: if well { Ok(()) } else { Err(fault()) } }
            }
            Effect::Sink(blob) => {
                let file = self.files.get_mut(&blob).expect("only what is here is written to the disk");
                file.on_disk |= well;
                Event::Sunk { blob, result: if well { Ok(()) } else { Err(fault()) } }
            }
            effect => unreachable!("{effect:?} is done at once"),
        };
        self.apply(event);
        self.check_disk();
    }

    fn open(&mut self, flight: FlightId, name: PartialName, bytes: u64, well: bool) -> Result<Vec<(u32, Cv)>, Fault> {
        assert!(!self.open.values().any(|open| *open == name), "{name:?} is opened twice");
        if !well {
            return Err(Fault::DiskFull { detail: "world".to_owned() });
        }
        let passes = self.state.passes(flight);
        let file = self.unfinished.entry(name).or_insert(Unfinished { bytes, passes, pieces: BTreeMap::new() });
        file.passes = passes;
        assert_eq!(file.bytes, bytes, "{name:?} is resumed with another size");
        self.open.insert(flight, name);
        Ok(file.pieces.iter().map(|(piece, cv)| (*piece, *cv)).collect())
    }

    fn commit(&mut self, flight: FlightId, blob: BlobId, cvs: &[Cv], links: Vec<StoredLink>) -> Commit {
        let name = self.open.remove(&flight).expect("only open files are committed");
        let unfinished = self.unfinished.remove(&name).expect("an open file exists");
        assert_eq!(unfinished.pieces.values().copied().collect::<Vec<_>>(), cvs, "committed what was not written");
        assert_eq!(piece::root(Layout::new(unfinished.bytes), cvs), blob);
        let bytes = unfinished.bytes;
        let on_disk = !self.state.passes(flight);
        let file = File { bytes, names: BTreeMap::new(), touched: false, deleted: false, on_disk };
        let file = self.files.entry(blob).or_insert(file);
        file.deleted = false;
        for link in &links {
            file.names.insert(link.model.clone(), link.clone());
        }
        for link in &links {
            self.unname(&link.model, blob);
        }
        // Closing a committed file is the executor's business.
        self.open.insert(flight, name);
        self.open.remove(&flight);
        Commit { trust: Trust::FirstUse, sha256: None }
    }

    fn unname(&mut self, model: &ModelKey, but: BlobId) {
        for (_, file) in self.files.iter_mut().filter(|(blob, _)| **blob != but) {
            file.names.remove(model);
        }
    }

    fn remove(&mut self, blob: BlobId) -> Result<(), Fault> {
        self.files.remove(&blob);
        Ok(())
    }

    fn withdraw(&mut self, blob: BlobId, bad: &[u32]) -> PartialName {
        let name = PartialName::of_blob(blob);
        let file = self.files.remove(&blob).expect("a blob that is withdrawn was there");
        let (n, version) = (0..MODELS)
            .flat_map(|n| (0..=self.versions[n as usize]).map(move |version| (n, version)))
            .find(|(n, version)| {
                let (bytes, cvs) = content(*n, *version);
                piece::root(Layout::new(bytes), &cvs) == blob
            })
            .expect("every blob is some content");
        let (_, cvs) = content(n, version);
        let good = cvs.into_iter().enumerate().map(|(piece, cv)| (piece as u32, cv));
        let pieces = good.filter(|(piece, _)| !bad.contains(piece)).collect();
        let old = self.unfinished.insert(name, Unfinished { bytes: file.bytes, passes: false, pieces });
        assert!(old.is_none(), "{name:?} was withdrawn over an unfinished blob");
        name
    }

    /// The world's own sum of what is on its disk.
    fn check_disk(&self) {
        let files: u64 = self.files.values().filter(|file| file.on_disk).map(|file| file.bytes).sum();
        let kept = self.unfinished.values().filter(|file| !file.passes);
        let unfinished: u64 = kept.map(|file| file.bytes).sum();
        let disk = self.state.disk("world");
        assert!(
            files + unfinished <= disk.used + disk.reserved,
            "{files} + {unfinished} bytes on the disk, {} + {} in the books",
            disk.used,
            disk.reserved
        );
        let ram: u64 = self.ram.iter().filter_map(|blob| self.files.get(blob)).map(|file| file.bytes).sum();
        let books = self.state.memory("world");
        assert!(ram <= books.used, "{ram} bytes in RAM, {} in the books", books.used);
        assert!(ram <= RAM, "the RAM budget is exceeded: {ram}");
        assert!(files + unfinished <= DISK / 2, "the budget is exceeded: {files} + {unfinished}");
    }

    /// kill -9: what was asked for is lost, what is on the disk stays.
    fn restart(&mut self) {
        // RAM and what passes by do not outlive the daemon.
        self.files.retain(|_, file| file.on_disk);
        self.unfinished.retain(|_, file| !file.passes);
        let blobs = self.files.iter().filter(|(_, file)| !file.deleted).map(|(blob, file)| StoredBlob {
            blob: *blob,
            bytes: file.bytes,
            trust: Trust::FirstUse,
            sha256: None,
            last_used: Wall(0),
        });
        let live = self.files.values().filter(|file| !file.deleted);
        let partials = self.unfinished.iter().map(|(name, file)| StoredPartial {
            name: *name,
            bytes: file.bytes,
            touched: Wall(0),
        });
        let inventory = Inventory {
            blobs: blobs.collect(),
            links: live.flat_map(|file| file.names.values().cloned()).collect(),
            partials: partials.collect(),
            leases: self.leases.values().cloned().collect(),
            next_lease: self.leases.keys().last().map_or(1, |lease| lease.0 + 1),
            ..Inventory::default()
        };
        self.files.retain(|_, file| !file.deleted);
        self.todo.clear();
        self.open.clear();
        self.requests.clear();
        self.callers.clear();
        self.ram.clear();
        self.workers.clear();
        self.state = state(self.rng.u64(..), &inventory, self.now, self.kind);
        self.tell_space();
        self.tell_ram();
        let effects = self.state.relock(&self.noted, self.now);
        self.take(effects);
        self.tell_catalog();
    }

    /// Does the work that is asked for, with good luck, until only requests are left.
    pub(super) fn work_all(&mut self) {
        while let Some(effect) = self.todo.pop() {
            self.work(effect, true);
        }
    }

    /// Changes what RAM may hold.
    pub(super) fn limit_ram(&mut self, bytes: u64) {
        self.ram_limit = bytes;
        self.tell_ram();
    }

    /// Models in RAM, by number.
    pub(super) fn in_ram(&self) -> Vec<u8> {
        let held = |n: &u8| {
            self.files.iter().any(|(blob, file)| self.ram.contains(blob) && file.names.contains_key(&model(*n)))
        };
        (0..MODELS).filter(held).collect()
    }

    /// Whether a line of the log says so.
    pub(super) fn says(&self, text: &str) -> bool {
        self.log.iter().any(|line| line.contains(text))
    }

    /// Lets everything finish with good luck. Whoever still waits must get an answer.
    pub(super) fn run_to_the_end(&mut self) {
        self.free = DISK;
        self.tell_space();
        self.ram_limit = RAM;
        self.tell_ram();
        self.apply(Event::PressureOver { growth: RAM });
        for _ in 0..20_000 {
            self.now = self.now.after(Duration::from_millis(100));
            if let Some(effect) = self.todo.pop() {
                self.work(effect, true);
            } else if let Some(request) = self.requests.keys().next().copied() {
                self.piece_arrives(request);
            } else if let Some(wake) = self.state.next_wake().filter(|_| self.waits()) {
                self.now = self.now.max(wake);
                self.apply(Event::Tick);
            } else if let Some(id) = self.readers().first().copied() {
                self.caller(id, |caller| caller.left = true);
                self.apply(Event::Leave(id));
            } else {
                break;
            }
        }
        for (id, caller) in &self.callers {
            let flights = self.state.flights(self.now);
            let told = caller.left || caller.ends == 1;
            let blobs: Vec<_> = self.state.blobs.values().map(|blob| (blob.bytes, blob.fate, blob.holds)).collect();
            let wants = &self.state.ensures.get(id).map(|ensure| &ensure.wants);
            assert!(told, "{id} never got an answer: {caller:?} {wants:?} {flights:?} {:?} {blobs:?}", self.state.disk);
        }
        assert!(self.state.is_quiet(), "flights are left over: {:?}", self.state.flights(self.now));
        let disk = self.state.disk("world");
        assert_eq!(disk.reserved, 0, "a reservation leaked");
        assert_eq!(self.state.memory("world").reserved, 0, "a reservation of RAM leaked");
    }

    /// Callers that were told that all is ready and have not left.
    fn readers(&self) -> Vec<EnsureId> {
        let reads = self.kind.0.readers_hold;
        let done = |caller: &&Caller| reads && caller.demand && caller.ends == 1 && !caller.left;
        self.callers.iter().filter(|(_, caller)| done(caller)).map(|(id, _)| *id).collect()
    }

    fn waits(&self) -> bool {
        !self.state.is_quiet() || self.callers.values().any(|caller| caller.ends == 0 && !caller.left)
    }
}

fn state(seed: u64, inventory: &Inventory, now: Tick, (executor, policy): (Executor, PolicyKind)) -> State {
    let config = StateConfig {
        fetch: FetchConfig { connections_max: 4, ..FetchConfig::default() },
        limits: LimitsConfig::default(),
        budget: Share::Percent(50.0),
        keep_free: Share::Bytes(0),
        scrub_interval: Some(Duration::from_secs(100)),
        origins: ORIGINS.into_iter().map(|origin| (OriginName::new(origin), 3)).collect(),
        models: "/models".into(),
        vram: VramConfig::default(),
        seed,
        executor,
        predict: PredictConfig { precision: 0.0, ..PredictConfig::default() },
        costs: Costs::default(),
    };
    assert_eq!(PIECE_BYTES, 8 * MIB, "the world's sizes are made for this");
    let mut state = State::new(config, inventory, policy.build(Costs::default()), now, Wall(now.0 / 1000));
    // In every third world guesses are wild, and all of them are believed.
    let wild = seed % 3 == 2;
    state.set_predictor(wild.then(|| Box::new(Wild(fastrand::Rng::with_seed(seed))) as Box<dyn Predictor>));
    if wild {
        state.believe_guesses();
    }
    state
}

/// Guesses anything, and is sure of it.
#[derive(Debug)]
struct Wild(fastrand::Rng);

impl Predictor for Wild {
    fn seen(&mut self, _seen: &Seen<'_>) -> Vec<Guess> {
        let horizon = Duration::from_secs(self.0.u64(1..100));
        let habit = Habit::ALL[self.0.usize(0..2)];
        let models = [self.0.u8(..), self.0.u8(..)].map(model);
        models.map(|model| Guess { model, probability: 0.99, horizon, habit, top: true }).into()
    }

    fn passed(&mut self, _at: Wall) -> Vec<Guess> {
        Vec::new()
    }

    fn due(&self) -> Option<Wall> {
        None
    }
}
