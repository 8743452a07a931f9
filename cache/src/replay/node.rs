//! The replayed node: virtual time, links, readers, and the state that decides. What the world does with each effect is in `moves`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{Catalog, Entry, Source, Validator};
use crate::clock::{Tick, Wall};
use crate::config::{FetchConfig, LimitsConfig, VramConfig};
use crate::engine::event::{Broken, Effect, Event, Fetch, RequestId};
use crate::engine::state::{Executor, State, StateConfig};
use crate::engine::view::{EnsureRequest, Priority, Tier};
use crate::ids::{BlobId, EnsureId, ModelKey, OriginName};
use crate::piece::Cv;
use crate::plan::predict::PredictConfig;
use crate::replay::link::Link;
use crate::replay::queue::Queue;
use crate::replay::report::{Move, Report, Tally};
use crate::replay::trace::Trace;
use crate::replay::{NodeKind, Setup};
use crate::store::Inventory;
use crate::units::Share;

/// One piece for each blob: a replay has no use for parts of files.
const PIECE_BYTES: u64 = 1 << 50;
/// Callers, flights and connections at once: more than any backlog of a replay.
const AT_ONCE_MAX: u32 = 1 << 20;
/// The only origin.
const ORIGIN: &str = "origin";

/// What a transfer is for.
#[derive(Debug)]
pub(super) enum Cargo {
    /// Bytes from an origin.
    Fetch(Fetch),
    /// A blob from the disk or from RAM.
    Read(BlobId),
}

/// Bytes on their way over one link.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) cargo: Cargo,
    pub(super) file: u32,
    pub(super) link: Tier,
    pub(super) started: f64,
    /// Rows of the trace that wait for it; a fetch tells those who wait through the state.
    pub(super) readers: Vec<usize>,
    pub(super) prefetch: bool,
}

/// A request that is being made ready.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) row: usize,
    pub(super) started: f64,
    /// Reads that are under way.
    pub(super) left: usize,
    /// Whether the state said that all is ready.
    pub(super) told: bool,
}

pub(super) struct Node<'a> {
    pub(super) trace: &'a Trace,
    pub(super) setup: &'a Setup,
    pub(super) state: State,
    /// Seconds since the first request.
    pub(super) now: f64,
    /// Origin, disk, RAM.
    links: [Link; 3],
    transfers: Vec<Option<Transfer>>,
    spare: Vec<usize>,
    /// Fetches that wait for their first byte.
    delayed: BinaryHeap<Reverse<(u64, usize)>>,
    pub(super) fetching: HashMap<RequestId, usize>,
    /// Blobs on their way from the disk.
    pub(super) reading: HashMap<BlobId, usize>,
    /// Blobs that RAM takes once they are read.
    pub(super) locking: HashSet<BlobId>,
    /// Blobs whose bytes went by at this very moment.
    pub(super) in_hand: HashSet<BlobId>,
    pub(super) readers: HashMap<EnsureId, Reader>,
    ensures: HashMap<usize, EnsureId>,
    next_ensure: u64,
    queue: Queue,
    pub(super) todo: VecDeque<Effect>,
    pub(super) tally: Tally,
    pub(super) blobs: HashMap<BlobId, u32>,
    pub(super) log: &'a mut dyn FnMut(&Move<'_>),
}

/// Replays a trace. `log` is told every move, in order.
pub fn run(trace: &Trace, setup: &Setup, log: &mut dyn FnMut(&Move<'_>)) -> Report {
    let mut node = Node::new(trace, setup, log);
    while node.step() {}
    let busy = [Tier::Origin, Tier::Nvme, Tier::Ram].map(|tier| node.links[slot(tier)].busy);
    node.tally.report(trace, setup, busy)
}

fn slot(tier: Tier) -> usize {
    match tier {
        Tier::Origin => 0,
        Tier::Nvme => 1,
        // Nobody holds VRAM here.
        Tier::Ram | Tier::Vram => 2,
    }
}

fn executor(kind: NodeKind) -> Executor {
    let apart = kind == NodeKind::Apart;
    Executor {
        apart,
        places: true,
        readers_hold: true,
        measures: false,
        piece_bytes: PIECE_BYTES,
        connections_start: AT_ONCE_MAX,
    }
}

fn state(trace: &Trace, setup: &Setup) -> State {
    let config = StateConfig {
        fetch: FetchConfig { connections_max: AT_ONCE_MAX, ..FetchConfig::default() },
        limits: LimitsConfig { ensures_max: AT_ONCE_MAX, flights_max: AT_ONCE_MAX, ..LimitsConfig::default() },
        budget: Share::Bytes(setup.disk),
        keep_free: Share::Bytes(0),
        origins: vec![(OriginName::new(ORIGIN), AT_ONCE_MAX)],
        scrub_interval: None,
        models: "/models".into(),
        vram: VramConfig::default(),
        seed: 0,
        executor: executor(setup.node),
        predict: PredictConfig::default(),
        costs: setup.links.costs(),
    };
    let policy = super::bound::policy(trace, setup).unwrap_or_else(|| setup.policy.build(setup.links.costs()));
    let mut state = State::new(config, &Inventory::default(), policy, Tick(0), Wall(0));
    state.set_predictor(setup.predictor.build(trace));
    state
}

/// Each file's path at the origin is its row.
fn catalog(trace: &Trace) -> Catalog {
    let entry = |(row, file): (usize, &super::trace::File)| {
        let source = Source {
            origin: OriginName::new(ORIGIN),
            path: row.to_string(),
            bytes: file.bytes,
            validator: Validator::default(),
        };
        let entry = Entry { bytes: file.bytes, blake3: Some(file.blob), sha256: None, sources: vec![source] };
        (file.model.clone(), entry)
    };
    Catalog::from_entries(trace.files.iter().enumerate().map(entry))
}

impl<'a> Node<'a> {
    fn new(trace: &'a Trace, setup: &'a Setup, log: &'a mut dyn FnMut(&Move<'_>)) -> Self {
        let links = setup.links;
        let shared = setup.node == NodeKind::Apart;
        let origin = if shared { Link::new(links.origin) } else { Link::in_order(links.origin) };
        let mut node = Self {
            trace,
            setup,
            state: state(trace, setup),
            now: 0.0,
            links: [origin, Link::new(links.disk), Link::new(links.ram)],
            transfers: Vec::new(),
            spare: Vec::new(),
            delayed: BinaryHeap::new(),
            fetching: HashMap::new(),
            reading: HashMap::new(),
            locking: HashSet::new(),
            in_hand: HashSet::new(),
            readers: HashMap::new(),
            ensures: HashMap::new(),
            next_ensure: 1,
            queue: Queue::new(setup.gpus),
            todo: VecDeque::new(),
            tally: Tally::new(setup.warm_up),
            blobs: trace.files.iter().enumerate().map(|(row, file)| (file.blob, row as u32)).collect(),
            log,
        };
        node.apply(Event::Catalog(Arc::new(catalog(trace))));
        node.apply(Event::Space { total: u64::MAX / 4, free: u64::MAX / 4 });
        node.apply(Event::RamLimit(setup.ram));
        node
    }

    fn tick(&self) -> Tick {
        Tick((self.now * 1e6).round() as u64)
    }

    /// Tells the state, and lets the world do all that it asks for and that takes no time.
    pub(super) fn apply(&mut self, event: Event) {
        self.tell(event);
        while let Some(effect) = self.todo.pop_front() {
            if let Some(event) = self.do_effect(effect) {
                self.tell(event);
            }
        }
    }

    fn tell(&mut self, event: Event) {
        let now = self.tick();
        let effects = self.state.apply(event, now, Wall(now.0 / 1000));
        self.todo.extend(effects);
    }

    /// Lets the next thing happen. False at the end.
    fn step(&mut self) -> bool {
        let ends = [0, 1, 2].map(|link: usize| self.links[link].next_end());
        let first_byte = self.delayed.peek().map(|Reverse((at, _))| f64::from_bits(*at));
        let times = [ends[0], ends[1], ends[2], first_byte, self.queue.next_end(), self.queue.next_arrival(self.trace)];
        let next = times.into_iter().enumerate().filter_map(|(what, at)| Some((at?, what)));
        let Some(next) = next.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))) else { return false };
        // Guesses look at the time by themselves, as long as anything is to come.
        let guess = self.state.next_guess().map(|tick| ((tick.0 as f64 / 1e6).max(self.now), 6));
        let (at, what) = guess.filter(|guess| guess.0 < next.0).unwrap_or(next);
        if at > self.now {
            self.now = at;
            self.in_hand.clear();
        }
        for link in &mut self.links {
            link.advance(self.now);
        }
        match what {
            0..=2 => self.transfer_ends(what),
            3 => self.first_byte(),
            4 => self.queue.gpu_free(),
            6 => self.apply(Event::Tick),
            _ => self.queue.arrive(),
        }
        while let Some(row) = self.queue.start() {
            self.start(row);
        }
        self.look_ahead();
        true
    }

    /// Makes a request's files ready.
    fn start(&mut self, row: usize) {
        let id = EnsureId(self.next_ensure);
        self.next_ensure += 1;
        self.readers.insert(id, Reader { row, started: self.now, left: 0, told: false });
        self.ensures.insert(row, id);
        self.tally.starts(row);
        let request = self.request(row, Priority::Demand);
        self.apply(Event::Ensure { id, request });
    }

    /// Tells the state what waits in the queue, as far as it can be seen, and has the next ones loaded.
    fn look_ahead(&mut self) {
        if !self.queue.changed() || self.setup.visible == 0 {
            return;
        }
        let rows: Vec<usize> = self.queue.waiting().take(self.setup.visible as usize).collect();
        let models: Vec<ModelKey> = rows.iter().flat_map(|row| self.models(*row)).collect();
        self.apply(Event::Foresee(models));
        for row in rows {
            let id = EnsureId(self.next_ensure);
            self.next_ensure += 1;
            let request = self.request(row, Priority::Prefetch);
            self.apply(Event::Ensure { id, request });
        }
    }

    fn models(&self, row: usize) -> Vec<ModelKey> {
        let files = self.trace.requests[row].files.iter();
        files.map(|file| self.trace.files[*file as usize].model.clone()).collect()
    }

    fn request(&self, row: usize, priority: Priority) -> EnsureRequest {
        EnsureRequest {
            models: self.models(row),
            priority,
            target: Tier::Nvme,
            cancel_on_drop: false,
            progress_interval: Duration::from_secs(60),
            client: self.trace.requests[row].client.clone(),
        }
    }

    /// Puts bytes on their way.
    pub(super) fn send(&mut self, transfer: Transfer) -> usize {
        let bytes = self.trace.files[transfer.file as usize].bytes as f64;
        let (link, prefetch) = (slot(transfer.link), transfer.prefetch);
        let id = self.spare.pop().unwrap_or_else(|| {
            self.transfers.push(None);
            self.transfers.len() - 1
        });
        self.transfers[id] = Some(transfer);
        match (link, prefetch) {
            (0, _) => self.delayed.push(Reverse(((self.now + self.setup.links.first_byte).to_bits(), id))),
            (_, true) => self.links[link].prefetch(id, bytes),
            (_, false) => self.links[link].demand(id, bytes),
        }
        id
    }

    fn first_byte(&mut self) {
        let Some(Reverse((_, id))) = self.delayed.pop() else { return };
        let Some(transfer) = &self.transfers[id] else { return };
        let bytes = self.trace.files[transfer.file as usize].bytes as f64;
        if transfer.prefetch {
            self.links[0].prefetch(id, bytes);
        } else {
            self.links[0].demand(id, bytes);
        }
    }

    fn transfer_ends(&mut self, link: usize) {
        let Some(id) = self.links[link].end() else { return };
        let Some(transfer) = self.transfers[id].take() else { return };
        self.spare.push(id);
        let file = &self.trace.files[transfer.file as usize];
        self.tally.carried(&transfer, (file.blob, file.bytes));
        self.log_transfer(&transfer);
        self.in_hand.insert(file.blob);
        match &transfer.cargo {
            Cargo::Fetch(fetch) => {
                self.fetching.remove(&fetch.request);
                let (flight, request, cv) = (fetch.flight, fetch.request, Cv(file.blob.0));
                self.apply(Event::PieceDone { flight, request, piece: 0, cv });
                self.apply(Event::RequestEnded { flight, request, result: Ok(()) });
            }
            Cargo::Read(blob) => {
                let blob = *blob;
                if transfer.link == Tier::Nvme {
                    self.reading.remove(&blob);
                    if self.locking.remove(&blob) {
                        self.apply(Event::Locked { blob, found: 0, result: Ok(()) });
                    }
                }
                for row in transfer.readers {
                    if let Some(reader) = self.ensures.get(&row).and_then(|id| self.readers.get_mut(id)) {
                        reader.left -= 1;
                    }
                    self.finish(row);
                }
            }
        }
    }

    /// Ends a request whose files have all been read.
    pub(super) fn finish(&mut self, row: usize) {
        let Some(id) = self.ensures.get(&row).copied() else { return };
        if self.readers.get(&id).is_none_or(|reader| reader.left > 0 || !reader.told) {
            return;
        }
        let Some(reader) = self.readers.remove(&id) else { return };
        self.ensures.remove(&row);
        let request = &self.trace.requests[row];
        let bytes: u64 = request.files.iter().map(|file| self.trace.files[*file as usize].bytes).sum();
        let took = self.now - reader.started;
        // All files at once from RAM share the way there.
        let alone = bytes as f64 / self.setup.links.ram;
        self.tally.ready(row, took, (took - alone).max(0.0));
        self.log_ready(row, reader.started, (took - alone).max(0.0));
        for file in &request.files {
            self.in_hand.insert(self.trace.files[*file as usize].blob);
        }
        self.queue.served(self.now + request.service_ms as f64 / 1000.0, row);
        self.apply(Event::Leave(id));
        // What this one held may make room for what waits.
        self.queue.look_again();
    }

    /// A reader joins what is on its way already; a prefetch is demand from now on.
    pub(super) fn join(&mut self, id: usize, row: Option<usize>) {
        let Some(transfer) = self.transfers.get_mut(id).and_then(Option::as_mut) else { return };
        transfer.readers.extend(row);
        if std::mem::replace(&mut transfer.prefetch, false) {
            self.tally.joined(transfer.file, self.trace);
            self.links[slot(transfer.link)].upgrade(id);
        }
    }

    pub(super) fn is_under_way(&self, id: usize) -> bool {
        self.transfers.get(id).is_some_and(Option::is_some)
    }

    pub(super) fn carries(&self, id: usize, file: u32) -> bool {
        self.transfers.get(id).and_then(Option::as_ref).is_some_and(|transfer| transfer.file == file)
    }

    /// Stops a fetch that nobody waits for, if its bytes have begun to come.
    pub(super) fn abort(&mut self, request: RequestId) -> Option<Event> {
        let id = self.fetching.get(&request).copied()?;
        let transfer = self.transfers.get(id).and_then(Option::as_ref).filter(|transfer| transfer.prefetch)?;
        let left = self.links[slot(transfer.link)].stop_prefetch(id)?;
        let transfer = self.transfers[id].take()?;
        self.spare.push(id);
        self.fetching.remove(&request);
        let bytes = self.trace.files[transfer.file as usize].bytes;
        self.tally.stopped(bytes.saturating_sub(left as u64));
        let Cargo::Fetch(fetch) = transfer.cargo else { return None };
        Some(Event::RequestEnded { flight: fetch.flight, request, result: Err(Broken::Aborted) })
    }

    /// Stops a read that nobody waits for.
    pub(super) fn stop(&mut self, id: usize) {
        let Some(transfer) = self.transfers.get(id).and_then(Option::as_ref) else { return };
        if transfer.prefetch && self.links[slot(transfer.link)].stop_prefetch(id).is_some() {
            self.transfers[id] = None;
            self.spare.push(id);
        }
    }
}
