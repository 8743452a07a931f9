//! What a replay adds up to. Only requests after the warm-up count; moves are told from the beginning.

use std::collections::HashMap;

use serde::Serialize;

use crate::engine::event::Guessed;
use crate::engine::view::Tier;
use crate::ids::{BlobId, ModelKey};
use crate::replay::node::Transfer;
use crate::replay::trace::Trace;
use crate::replay::{NodeKind, Setup};

/// One move: a line of the decisions.
#[derive(Debug)]
pub struct Move<'a> {
    /// Seconds since the first request.
    pub at: f64,
    /// When it began; the same as `at` for what takes no time.
    pub started: f64,
    /// What.
    pub step: Step,
    /// The model.
    pub model: &'a ModelKey,
    /// The tier that is entered, left or read from. Leaving [`Tier::Origin`] means: whatever the node has of it.
    pub tier: Tier,
    /// Bytes.
    pub bytes: u64,
    /// The request, if it is one's end.
    pub request: Option<u64>,
    /// Why; for a request its stall in seconds.
    pub reason: &'a str,
}

/// What a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A tier holds it from now on.
    Enter,
    /// A tier holds it no more.
    Leave,
    /// Its bytes went over the tier's link from `started` until now.
    Carried,
    /// A request that began at `started` has all its files.
    Ready,
}

impl Step {
    /// Its name in the decisions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enter => "enter",
            Self::Leave => "leave",
            Self::Carried => "carried",
            Self::Ready => "ready",
        }
    }
}

/// A tier's name in the decisions.
#[must_use]
pub fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Vram => "vram",
        Tier::Ram => "ram",
        Tier::Nvme => "disk",
        Tier::Origin => "origin",
    }
}

/// What came out. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The policy.
    pub policy: String,
    /// `apart` or `copies`.
    pub node: &'static str,
    /// Bytes of RAM.
    pub ram: u64,
    /// Bytes of disk.
    pub disk: u64,
    /// GPUs; 0: open arrivals.
    pub gpus: u32,
    /// Waiting requests that were visible.
    pub visible: u32,
    /// Requests that count.
    pub requests: u64,
    /// Requests that could not be served: a file is larger than what may go for it.
    pub refused: u64,
    /// Waiting that having every file in RAM would have saved.
    pub stall: Times,
    /// From the start of a request until its last file is there.
    pub ready: Times,
    /// Share of the files that were in RAM, or on the disk, when they were wanted.
    pub hits: Hits,
    /// The same by bytes.
    pub byte_hits: Hits,
    /// Bytes from the origin.
    pub origin_bytes: u64,
    /// Files that left the node for want of room.
    pub evictions: u64,
    /// Bytes of them.
    pub evicted_bytes: u64,
    /// What was loaded before anybody waited for it.
    pub prefetch: Prefetch,
    /// Who guessed, and how that went.
    pub guesses: Guesses,
    /// Seconds that each link carried something: origin, disk, RAM. Warm-up included.
    pub busy: [f64; 3],
}

/// A distribution of times, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Times {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95 of 100 are below.
    pub p95: f64,
    /// 99 of 100 are below.
    pub p99: f64,
}

/// Shares, 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Hits {
    /// In RAM.
    pub ram: f64,
    /// On the disk.
    pub disk: f64,
}

/// Prefetches from the origin and from the disk to RAM together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Prefetch {
    /// Bytes that were loaded ahead.
    pub bytes: u64,
    /// Bytes of them that somebody asked for before they left again. What is still there at the end counts as neither.
    pub used: u64,
    /// Bytes that left unused.
    pub wasted: u64,
}

/// Confident guesses, acted on or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Guesses {
    /// Who guessed.
    pub predictor: &'static str,
    /// Likeliest guesses of each question, and those that came true.
    pub top: u64,
    /// See `top`.
    pub top_right: u64,
    /// Guesses that would have moved bytes, and those that came true.
    pub moves: u64,
    /// See `moves`.
    pub moves_right: u64,
    /// Guesses that did move bytes, and those that came true.
    pub acted: u64,
    /// See `acted`.
    pub acted_right: u64,
    /// How often guesses began to be acted on, or ceased to be.
    pub switched: u64,
}

impl Guesses {
    /// Share of the likeliest guesses that came true; 0 if there were none.
    #[must_use]
    pub fn precision(&self) -> f64 {
        if self.top == 0 { 0.0 } else { self.top_right as f64 / self.top as f64 }
    }
}

/// Adds up as the replay goes.
#[derive(Debug)]
pub(super) struct Tally {
    warm_up: usize,
    started: usize,
    stalls: Vec<f64>,
    readies: Vec<f64>,
    refused: u64,
    found: [(u64, u64); 3],
    origin_bytes: u64,
    evictions: u64,
    evicted_bytes: u64,
    prefetch: Prefetch,
    /// Blobs that were loaded ahead and not wanted yet, by the tier that they came to.
    ahead: HashMap<(BlobId, bool), u64>,
    guesses: Guesses,
}

impl Tally {
    pub(super) fn new(warm_up: usize) -> Self {
        Self {
            warm_up,
            started: 0,
            stalls: Vec::new(),
            readies: Vec::new(),
            refused: 0,
            found: [(0, 0); 3],
            origin_bytes: 0,
            evictions: 0,
            evicted_bytes: 0,
            prefetch: Prefetch::default(),
            ahead: HashMap::new(),
            guesses: Guesses::default(),
        }
    }

    /// Whether what happens now counts.
    fn counts(&self) -> bool {
        self.started > self.warm_up
    }

    pub(super) fn starts(&mut self, row: usize) {
        self.started = row + 1;
    }

    pub(super) fn ready(&mut self, row: usize, took: f64, stall: f64) {
        if row >= self.warm_up {
            self.stalls.push(stall);
            self.readies.push(took);
        }
    }

    pub(super) fn refused(&mut self, row: usize) {
        self.refused += u64::from(row >= self.warm_up);
    }

    pub(super) fn found(&mut self, row: usize, tier: Tier, bytes: u64) {
        if row >= self.warm_up {
            let slot = match tier {
                Tier::Vram | Tier::Ram => 0,
                Tier::Nvme => 1,
                Tier::Origin => 2,
            };
            let slot = &mut self.found[slot];
            slot.0 += 1;
            slot.1 += bytes;
        }
    }

    pub(super) fn carried(&mut self, transfer: &Transfer, (blob, bytes): (BlobId, u64)) {
        if !self.counts() {
            return;
        }
        if transfer.link == Tier::Origin {
            self.origin_bytes += bytes;
        }
        if transfer.prefetch {
            self.prefetch.bytes += bytes;
            self.ahead.insert((blob, transfer.link == Tier::Origin), bytes);
        }
    }

    /// Somebody waits for what is being loaded ahead.
    pub(super) fn joined(&mut self, file: u32, trace: &Trace) {
        if self.counts() {
            let bytes = trace.files[file as usize].bytes;
            self.prefetch.bytes += bytes;
            self.prefetch.used += bytes;
        }
    }

    pub(super) fn wanted(&mut self, blob: BlobId, tier: Tier) {
        for fetched in [true, false] {
            if (fetched || tier == Tier::Ram)
                && let Some(bytes) = self.ahead.remove(&(blob, fetched))
            {
                self.prefetch.used += bytes;
            }
        }
    }

    pub(super) fn removed(&mut self, blob: BlobId) {
        for fetched in [true, false] {
            self.prefetch.wasted += self.ahead.remove(&(blob, fetched)).unwrap_or(0);
        }
    }

    pub(super) fn demoted(&mut self, blob: BlobId) {
        self.prefetch.wasted += self.ahead.remove(&(blob, false)).unwrap_or(0);
    }

    pub(super) fn evicted(&mut self, bytes: u64) {
        if self.counts() {
            self.evictions += 1;
            self.evicted_bytes += bytes;
        }
    }

    /// A prefetch was stopped after so many bytes.
    pub(super) fn stopped(&mut self, bytes: u64) {
        if self.counts() {
            self.origin_bytes += bytes;
            self.prefetch.bytes += bytes;
            self.prefetch.wasted += bytes;
        }
    }

    pub(super) fn guessed(&mut self, guessed: &Guessed) {
        if !self.counts() {
            return;
        }
        let (settled, guesses) = (&guessed.settled, &mut self.guesses);
        let one = |counts: bool| (u64::from(counts), u64::from(counts && settled.hit));
        for ((all, right), (sum, sum_right)) in [
            (one(settled.top), (&mut guesses.top, &mut guesses.top_right)),
            (one(settled.step.is_some()), (&mut guesses.moves, &mut guesses.moves_right)),
            (one(guessed.acted), (&mut guesses.acted, &mut guesses.acted_right)),
        ] {
            *sum += all;
            *sum_right += right;
        }
    }

    pub(super) fn switched(&mut self) {
        self.guesses.switched += u64::from(self.counts());
    }

    pub(super) fn report(self, trace: &Trace, setup: &Setup, busy: [f64; 3]) -> Report {
        let files: u64 = self.found.iter().map(|(files, _)| files).sum();
        let bytes: u64 = self.found.iter().map(|(_, bytes)| bytes).sum();
        let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        let [ram, disk, _] = self.found;
        Report {
            policy: if setup.foresight { "bound (all-knowing)" } else { setup.policy.name() }.to_owned(),
            node: if setup.node == NodeKind::Apart { "apart" } else { "copies" },
            ram: setup.ram,
            disk: setup.disk,
            gpus: setup.gpus,
            visible: setup.visible,
            requests: (trace.requests.len() - self.warm_up) as u64,
            refused: self.refused,
            stall: times(self.stalls),
            ready: times(self.readies),
            hits: Hits { ram: share(ram.0, files), disk: share(disk.0, files) },
            byte_hits: Hits { ram: share(ram.1, bytes), disk: share(disk.1, bytes) },
            origin_bytes: self.origin_bytes,
            evictions: self.evictions,
            evicted_bytes: self.evicted_bytes,
            prefetch: self.prefetch,
            guesses: Guesses { predictor: setup.predictor.name(), ..self.guesses },
            busy,
        }
    }
}

fn times(mut all: Vec<f64>) -> Times {
    if all.is_empty() {
        return Times::default();
    }
    // Added in the order in which they came: the same sum each time.
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
    Times { mean, p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}
