//! The ledger: what each worker says it holds, until it says otherwise, ends, or falls silent.
//!
//! Invariants (`Ledger::check`): the tables are within their bounds, and each worker's index of blobs is what its claims add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{
    CLAIMS_MAX, DEVICES_MAX, DeviceReport, Hello, PROMPTS_MAX, Prompt, READ_HOLD, READS_MAX, Read, Report, VramError,
    WORKERS_MAX, WorkerId, WorkerView,
};
use crate::clock::Tick;
use crate::ids::{BlobId, ModelKey};

/// Everything that workers claim.
#[derive(Debug, Default)]
pub struct Ledger {
    expiry: Duration,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    /// Models that the server at an address is going to need, in order, as whoever watches its queue says.
    expected: BTreeMap<String, Vec<ModelKey>>,
}

/// One worker.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) hello: Hello,
    since: Tick,
    heard: Tick,
    seq: u64,
    pub(super) devices: Vec<DeviceReport>,
    /// Each claimed blob, over all devices.
    pub(super) index: BTreeMap<BlobId, Loaded>,
    /// Files that were just read, and until when they are held for that.
    pub(super) reads: BTreeMap<BlobId, Tick>,
    /// When each blob was last in use.
    pub(super) used: BTreeMap<BlobId, Tick>,
    waiting: BTreeSet<String>,
    running: BTreeSet<String>,
    pub(super) next: Vec<ModelKey>,
}

/// One blob of one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    /// Bytes on devices.
    pub(super) loaded: u64,
    /// Whether some device has it whole.
    pub(super) whole: bool,
    pub(super) in_use: bool,
}

/// What a report changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Blobs that a worker read, began to hold, began to use, or let go: their last use is now.
    pub used: Vec<BlobId>,
    /// Blobs that were used from VRAM, without a read.
    pub hits: Vec<BlobId>,
    /// Files that were read, stored or not.
    pub reads: Vec<Read>,
}

impl Ledger {
    /// An empty ledger that believes a report for `expiry`.
    #[must_use]
    pub fn new(expiry: Duration) -> Self {
        Self { expiry, ..Self::default() }
    }

    /// A worker introduces itself, for the first time or again. True if it is new.
    ///
    /// # Errors
    ///
    /// [`VramError::Full`], [`VramError::TooMany`].
    pub fn hello(&mut self, id: &WorkerId, hello: Hello, now: Tick) -> Result<bool, VramError> {
        hello.check()?;
        if let Some(worker) = self.workers.get_mut(id) {
            worker.hello = hello;
            worker.heard = now;
            return Ok(false);
        }
        if self.workers.len() >= WORKERS_MAX {
            return Err(VramError::Full);
        }
        let worker = Worker {
            hello,
            since: now,
            heard: now,
            seq: 0,
            devices: Vec::new(),
            index: BTreeMap::new(),
            reads: BTreeMap::new(),
            used: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            next: Vec::new(),
        };
        self.workers.insert(id.clone(), worker);
        Ok(true)
    }

    /// A worker reports. A report that another one has overtaken tells its events and nothing of its devices.
    ///
    /// # Errors
    ///
    /// [`VramError::Unknown`], [`VramError::TooMany`].
    pub fn report(&mut self, id: &WorkerId, report: Report, now: Tick) -> Result<Changes, VramError> {
        report.check()?;
        let worker = self.workers.get_mut(id).ok_or_else(|| VramError::Unknown(id.clone()))?;
        worker.heard = now;
        worker.prompts(report.prompts);
        let mut changes = Changes::default();
        for read in &report.reads {
            if let Some(blob) = read.blob {
                worker.hold_read(blob, now);
                changes.used.push(blob);
            }
        }
        let fresh = report.seq > worker.seq;
        worker.seq = worker.seq.max(report.seq);
        if let Some(next) = report.next.filter(|_| fresh) {
            worker.next = next;
        }
        if let Some(devices) = report.devices.filter(|_| fresh) {
            worker.replace(devices, &report.reads, &mut changes, now);
        }
        changes.reads = report.reads;
        changes.used.sort_unstable();
        changes.used.dedup();
        Ok(changes)
    }

    /// A worker is about to open a stored blob: it must not go before that is reported.
    pub fn opens(&mut self, id: &WorkerId, blob: BlobId, now: Tick) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.heard = now;
            worker.hold_read(blob, now);
        }
    }

    /// Models that the server at an address is going to need, in order; none forgets it.
    pub fn expect(&mut self, address: &str, models: Vec<ModelKey>) {
        if models.is_empty() {
            self.expected.remove(address);
        } else if self.expected.contains_key(address) || self.expected.len() < WORKERS_MAX {
            self.expected.insert(address.to_owned(), models);
        }
    }

    /// A worker is over. What it claimed lapses.
    pub fn gone(&mut self, id: &WorkerId) -> Option<Hello> {
        self.workers.remove(id).map(|worker| worker.hello)
    }

    /// A process ended: its workers, to be told as lost.
    #[must_use]
    pub fn of_process(&self, pid: u32) -> Vec<WorkerId> {
        let of = |(_, worker): &(&WorkerId, &Worker)| worker.hello.watched == Some(pid);
        self.workers.iter().filter(of).map(|(id, _)| id.clone()).collect()
    }

    /// Forgets reads whose time is over, and returns workers that fell silent.
    pub fn expire(&mut self, now: Tick) -> Vec<WorkerId> {
        for worker in self.workers.values_mut() {
            worker.reads.retain(|_, until| *until > now);
        }
        let silent = |worker: &Worker| worker.heard.after(self.expiry) <= now;
        self.workers.iter().filter(|(_, worker)| silent(worker)).map(|(id, _)| id.clone()).collect()
    }

    /// When [`Ledger::expire`] has something to do next.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Tick> {
        let silent = self.workers.values().map(|worker| worker.heard.after(self.expiry));
        let reads = self.workers.values().flat_map(|worker| worker.reads.values().copied());
        silent.chain(reads).min()
    }

    /// Who needs a blob's file to stay, in words; `None` if no worker does.
    #[must_use]
    pub fn holder(&self, blob: BlobId) -> Option<String> {
        let (id, worker) = self.workers.iter().find(|(_, worker)| worker.holds(blob))?;
        let what = if worker.index.contains_key(&blob) { "has it loaded" } else { "has just read it" };
        Some(format!("worker {id} (process {}) {what}", worker.hello.pid))
    }

    /// Whether a worker has it loaded, or has just read it.
    #[must_use]
    pub fn holds(&self, blob: BlobId) -> bool {
        self.workers.values().any(|worker| worker.holds(blob))
    }

    /// Whether it is whole in the VRAM of some worker.
    #[must_use]
    pub fn is_whole(&self, blob: BlobId) -> bool {
        self.workers.values().any(|worker| worker.index.get(&blob).is_some_and(|loaded| loaded.whole))
    }

    /// Whether the workers that have it loaded keep copies of their own, so that nobody reads its pages: whole in VRAM of a
    /// worker, and claimed by none that streams from the disk.
    #[must_use]
    pub fn is_copied(&self, blob: BlobId) -> bool {
        let streams = |worker: &Worker| worker.hello.fast_disk && worker.index.contains_key(&blob);
        self.is_whole(blob) && !self.workers.values().any(streams)
    }

    /// Bytes of it in VRAM, over all workers and devices.
    #[must_use]
    pub fn loaded(&self, blob: BlobId) -> u64 {
        self.workers.values().filter_map(|worker| worker.index.get(&blob)).map(|loaded| loaded.loaded).sum()
    }

    /// What a worker is going to need, in order: as it says itself, or as whoever watches its queue says.
    #[must_use]
    pub fn next_of(&self, id: &WorkerId) -> &[ModelKey] {
        let Some(worker) = self.workers.get(id) else { return &[] };
        if !worker.next.is_empty() {
            return &worker.next;
        }
        self.expected.get(&worker.hello.address).map_or(&[], Vec::as_slice)
    }

    /// The model that a file is, by the folders that the worker named: for files that this process cannot see, because the
    /// worker lives in another mount namespace.
    #[must_use]
    pub fn alias(&self, id: &WorkerId, file: &str) -> Option<ModelKey> {
        let folders = &self.workers.get(id)?.hello.folders;
        let below = |(folder, path): &(String, String)| {
            let rest = file.strip_prefix(path.trim_end_matches('/'))?.strip_prefix('/')?;
            ModelKey::parse(&format!("{folder}/{rest}")).ok()
        };
        folders.iter().find_map(below)
    }

    /// All workers, by name.
    #[must_use]
    pub fn views(&self, now: Tick) -> Vec<WorkerView> {
        let view = |(id, worker): (&WorkerId, &Worker)| WorkerView {
            worker: id.clone(),
            hello: worker.hello.clone(),
            age: now.since(worker.since),
            silent: now.since(worker.heard),
            waiting: worker.waiting.len() as u32,
            running: worker.running.len() as u32,
            devices: worker.devices.clone(),
        };
        self.workers.iter().map(view).collect()
    }

    /// Every blob that is whole in the VRAM of some worker.
    #[must_use]
    pub fn whole(&self) -> BTreeSet<BlobId> {
        let blobs = self.workers.values().flat_map(|worker| &worker.index);
        blobs.filter(|(_, loaded)| loaded.whole).map(|(blob, _)| *blob).collect()
    }

    /// Whether some worker has a prompt that runs or waits.
    #[must_use]
    pub fn is_working(&self) -> bool {
        self.workers.values().any(|worker| !worker.running.is_empty() || !worker.waiting.is_empty())
    }

    /// How many workers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// What is wrong with the ledger. Empty, always.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.workers.len() > WORKERS_MAX || self.expected.len() > WORKERS_MAX {
            wrong.push(format!("{} workers, {} expected", self.workers.len(), self.expected.len()));
        }
        for (id, worker) in &self.workers {
            let claims = worker.devices.iter().map(|device| device.models.len()).max().unwrap_or(0);
            if worker.devices.len() > DEVICES_MAX || claims > CLAIMS_MAX || worker.reads.len() > READS_MAX {
                wrong.push(format!("{id} has more than a worker may have"));
            }
            if worker.waiting.len() + worker.running.len() > PROMPTS_MAX {
                wrong.push(format!("{id} has more prompts than a worker may have"));
            }
            if worker.index != index(&worker.devices) {
                wrong.push(format!("{id}'s index is not what its claims add up to"));
            }
            if worker.used.keys().any(|blob| !worker.index.contains_key(blob)) {
                wrong.push(format!("{id} has used what it does not hold"));
            }
        }
        wrong
    }
}

impl Worker {
    fn holds(&self, blob: BlobId) -> bool {
        self.index.contains_key(&blob) || self.reads.contains_key(&blob)
    }

    /// Whether no prompt runs, as far as it says.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && !self.index.values().any(|loaded| loaded.in_use)
    }

    fn hold_read(&mut self, blob: BlobId, now: Tick) {
        self.reads.insert(blob, now.after(READ_HOLD));
        while self.reads.len() > READS_MAX {
            let oldest = self.reads.iter().min_by_key(|(_, until)| **until).map(|(blob, _)| *blob);
            oldest.map(|blob| self.reads.remove(&blob));
        }
    }

    fn prompts(&mut self, prompts: Vec<Prompt>) {
        for prompt in prompts {
            let (Prompt::Queued(id) | Prompt::Started(id) | Prompt::Ended(id)) = &prompt;
            self.waiting.remove(id);
            self.running.remove(id);
            let room = self.waiting.len() + self.running.len() < PROMPTS_MAX;
            match prompt {
                Prompt::Queued(id) if room => drop(self.waiting.insert(id)),
                Prompt::Started(id) if room => drop(self.running.insert(id)),
                Prompt::Queued(_) | Prompt::Started(_) | Prompt::Ended(_) => {}
            }
        }
    }

    /// Takes over the whole truth about its devices.
    fn replace(&mut self, mut devices: Vec<DeviceReport>, reads: &[Read], changes: &mut Changes, now: Tick) {
        // A name may stand for a newer blob than the one that was loaded under it; only a read makes it the newer one.
        let read: BTreeSet<&str> = reads.iter().map(|read| read.file.as_str()).collect();
        let before: BTreeMap<&str, BlobId> = claims(&self.devices)
            .filter_map(|claim| Some((claim.file.as_str(), claim.blob?)))
            .filter(|(file, _)| !read.contains(file))
            .collect();
        for claim in devices.iter_mut().flat_map(|device| &mut device.models) {
            claim.blob = before.get(claim.file.as_str()).copied().or(claim.blob);
        }
        let index = index(&devices);
        for (blob, loaded) in &index {
            let old = self.index.get(blob);
            if loaded.in_use || old.is_none() {
                self.used.insert(*blob, now);
            }
            let begins = loaded.in_use && !old.is_some_and(|old| old.in_use);
            if begins || old.is_none() {
                changes.used.push(*blob);
            }
            let was_read = reads.iter().any(|read| read.blob == Some(*blob));
            if begins && !was_read && old.is_some_and(|old| old.loaded > 0) {
                changes.hits.push(*blob);
            }
        }
        changes.used.extend(self.index.keys().filter(|blob| !index.contains_key(blob)));
        self.used.retain(|blob, _| index.contains_key(blob));
        self.devices = devices;
        self.index = index;
    }
}

fn claims(devices: &[DeviceReport]) -> impl Iterator<Item = &super::Claim> {
    devices.iter().flat_map(|device| &device.models)
}

/// The blobs that claims name, over all devices.
fn index(devices: &[DeviceReport]) -> BTreeMap<BlobId, Loaded> {
    let mut index: BTreeMap<BlobId, Loaded> = BTreeMap::new();
    for claim in claims(devices) {
        let Some(blob) = claim.blob else { continue };
        let loaded = index.entry(blob).or_default();
        loaded.loaded = loaded.loaded.saturating_add(claim.loaded);
        loaded.whole |= claim.bytes > 0 && claim.loaded >= claim.bytes;
        loaded.in_use |= claim.in_use;
    }
    index
}
