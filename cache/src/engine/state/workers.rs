//! L1 in the state: what workers have in VRAM, and what follows from it: such files stay on the disk, are used, and are
//! worth less in RAM. Decides advice; seizes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{Tick, Wall};
use crate::config::VramConfig;
use crate::engine::event::Effect;
use crate::engine::state::{Fate, State};
use crate::engine::view::{Tier, TierView, What};
use crate::fault::Fault;
use crate::ids::{BlobId, ModelKey};
use crate::vram::advice::advise;
use crate::vram::{Advice, Changes, Hello, Ledger, Report, VramError, WORKERS_MAX, WorkerId, WorkerView};

/// Shortest time between two records of advice for one device: a record is for people, and what is short stays short for a while.
const ADVICE_RECORD_INTERVAL: Duration = Duration::from_secs(60);
/// Most models that are told to be absent: the gate asks by name, and a bucket of more is listed by hand.
const ABSENT_MAX: usize = 100_000;

/// The ledger, and what was advised.
#[derive(Debug)]
pub(crate) struct Vram {
    pub(super) ledger: Ledger,
    config: VramConfig,
    advised: BTreeMap<(WorkerId, u32), Advised>,
}

/// The last word for one device.
#[derive(Debug)]
struct Advised {
    advice: Advice,
    /// When it was last written down that something should go.
    recorded: Option<Tick>,
}

impl Vram {
    /// An empty ledger.
    pub(crate) fn new(config: VramConfig) -> Self {
        Self { ledger: Ledger::new(config.worker_expiry), config, advised: BTreeMap::new() }
    }
}

impl From<VramError> for Fault {
    fn from(error: VramError) -> Self {
        match error {
            VramError::Unknown(worker) => {
                Self::NotFound { what: format!("worker {worker}"), hint: "say hello first".to_owned() }
            }
            VramError::Full => Self::Busy { limit: "workers_max", max: WORKERS_MAX as u64 },
            VramError::TooMany { what, found, max } => {
                Self::Invalid { field: what, reason: format!("there are {found}, more than {max}") }
            }
        }
    }
}

impl State {
    /// A worker introduces itself, for the first time or again.
    ///
    /// # Errors
    ///
    /// [`Fault::Busy`], [`Fault::Invalid`].
    pub fn worker_hello(&mut self, worker: &WorkerId, hello: Hello, now: Tick) -> Result<Vec<Effect>, Fault> {
        let (pid, address, version) = (hello.pid, hello.address.clone(), hello.version.clone());
        if self.vram.ledger.hello(worker, hello, now)? {
            let worker = worker.clone();
            self.out.push(Effect::Record(What::WorkerSeen { worker, pid, address, version }));
        }
        self.settle(now);
        Ok(std::mem::take(&mut self.out))
    }

    /// A worker reports. The blobs behind its files must be set.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] for a worker that has not introduced itself, [`Fault::Invalid`].
    pub fn worker_report(
        &mut self,
        worker: &WorkerId,
        report: Report,
        now: Tick,
        wall: Wall,
    ) -> Result<Vec<Effect>, Fault> {
        self.wall = wall;
        let changes = self.vram.ledger.report(worker, report, now)?;
        self.count_uses(&changes);
        for blob in changes.used {
            if let Some(bytes) = self.blobs.get(&blob).map(|stored| stored.bytes) {
                self.plan.asked(blob, bytes, now);
            }
            self.touch(blob, now);
        }
        self.advise(worker, now);
        self.settle(now);
        Ok(std::mem::take(&mut self.out))
    }

    fn count_uses(&mut self, changes: &Changes) {
        for _ in &changes.hits {
            self.out.push(Effect::CountUse { from: Some(Tier::Vram), bytes: 0, elapsed: Duration::ZERO });
        }
        for read in &changes.reads {
            let in_ram = |blob| if self.memory.is_locked(blob) { Tier::Ram } else { Tier::Nvme };
            self.out.push(Effect::CountUse { from: read.blob.map(in_ram), bytes: read.bytes, elapsed: read.elapsed });
        }
    }

    /// Says what a worker's devices should do, if that is not what was said last.
    fn advise(&mut self, worker: &WorkerId, now: Tick) {
        let stored = |model: &ModelKey| {
            let here = self.stored(model).map(|(blob, bytes)| (Some(blob), bytes));
            here.or_else(|| self.catalog.get(model).map(|entry| (None, entry.bytes)))
        };
        let named = |blob: BlobId| self.blobs.get(&blob)?.models.first().cloned();
        let all = advise(&self.vram.ledger, worker, &self.vram.config, &stored, &named);
        let devices: Vec<u32> = all.iter().map(|advice| advice.device).collect();
        self.vram.advised.retain(|(of, device), _| of != worker || devices.contains(device));
        for advice in all {
            let key = (worker.clone(), advice.device);
            let before = self.vram.advised.get(&key);
            let news = before.map_or(!advice.is_empty(), |before| !before.advice.says_the_same(&advice));
            let mut recorded = before.and_then(|before| before.recorded);
            let due = recorded.is_none_or(|at| now.since(at) >= ADVICE_RECORD_INTERVAL);
            if news && due && !advice.unload.is_empty() {
                recorded = Some(now);
                let name = |row: &crate::vram::AdvisedModel| {
                    row.model.as_ref().map_or_else(|| row.file.clone(), ToString::to_string)
                };
                let unload = advice.unload.iter().map(name).collect();
                let (worker, device, total, used) = (worker.clone(), advice.device, advice.total, advice.used);
                self.out.push(Effect::Record(What::Advised { worker, device, total, used, unload }));
            }
            if news {
                self.out.push(Effect::Advise(advice.clone()));
            }
            self.vram.advised.insert(key, Advised { advice, recorded });
        }
    }

    /// What each device was told last.
    #[must_use]
    pub fn advice(&self) -> Vec<Advice> {
        self.vram.advised.values().map(|advised| advised.advice.clone()).collect()
    }

    pub(super) fn opens(&mut self, worker: &WorkerId, model: &ModelKey, now: Tick) {
        if let Some((blob, _)) = self.stored(model) {
            self.vram.ledger.opens(worker, blob, now);
        }
    }

    pub(super) fn expected_next(&mut self, address: &str, models: Vec<ModelKey>, now: Tick) {
        self.vram.ledger.expect(address, models);
        let of = |view: &WorkerView| view.hello.address == address;
        let workers: Vec<WorkerId> =
            self.vram.ledger.views(now).into_iter().filter(of).map(|view| view.worker).collect();
        for worker in workers {
            self.advise(&worker, now);
        }
    }

    pub(super) fn process_ended(&mut self, pid: u32) {
        for worker in self.vram.ledger.of_process(pid) {
            self.worker_lost(&worker, &format!("process {pid} ended"));
        }
    }

    pub(super) fn expire_workers(&mut self, now: Tick) {
        for worker in self.vram.ledger.expire(now) {
            let silence = crate::units::human_duration(self.vram.config.worker_expiry);
            self.worker_lost(&worker, &format!("it said nothing for {silence}"));
        }
    }

    fn worker_lost(&mut self, worker: &WorkerId, detail: &str) {
        if let Some(hello) = self.vram.ledger.gone(worker) {
            self.vram.advised.retain(|(of, _), _| of != worker);
            let (worker, detail) = (worker.clone(), detail.to_owned());
            self.out.push(Effect::Record(What::WorkerLost { worker, pid: hello.pid, detail }));
        }
    }

    /// All workers.
    #[must_use]
    pub fn workers(&self, now: Tick) -> Vec<WorkerView> {
        self.vram.ledger.views(now)
    }

    /// The stored blob that a file of a worker is, by its path alone: below the models folder, or below a folder that the worker
    /// named for a folder of the layout.
    #[must_use]
    pub fn blob_of_file(&self, file: &str) -> Option<BlobId> {
        let rest = std::path::Path::new(file).strip_prefix(&self.config.models).ok()?.to_str()?;
        let model = ModelKey::parse(rest).ok()?;
        self.stored(&model).map(|(blob, _)| blob)
    }

    /// The same, by the folders that the worker named.
    #[must_use]
    pub fn blob_of_alias(&self, worker: &WorkerId, file: &str) -> Option<BlobId> {
        let model = self.vram.ledger.alias(worker, file)?;
        self.stored(&model).map(|(blob, _)| blob)
    }

    /// Every stored blob with its size.
    #[must_use]
    pub fn blob_sizes(&self) -> Vec<(BlobId, u64)> {
        let kept = self.blobs.iter().filter(|(_, blob)| blob.fate == Fate::Kept);
        kept.map(|(id, blob)| (*id, blob.bytes)).collect()
    }

    /// Models that an origin has and this node has not, in the order of their keys.
    #[must_use]
    pub fn absent(&self) -> Vec<ModelKey> {
        let absent = self.catalog.iter().map(|(model, _)| model).filter(|model| self.stored(model).is_none());
        absent.take(ABSENT_MAX).cloned().collect()
    }

    /// The fastest tier that has a stored blob whole.
    pub(super) fn fastest(&self, blob: BlobId) -> Tier {
        if self.vram.ledger.is_whole(blob) {
            Tier::Vram
        } else if self.memory.is_locked(blob) {
            Tier::Ram
        } else {
            Tier::Nvme
        }
    }

    /// L1 as a tier, if some worker tells of a device. Two workers on one device see the same memory: it counts once.
    #[must_use]
    pub fn vram(&self, now: Tick) -> Option<TierView> {
        let rows = crate::vram::audit::audit(&self.workers(now), &[]);
        if rows.is_empty() {
            return None;
        }
        let sum = |of: fn(&crate::vram::audit::Audited) -> u64| rows.iter().map(of).fold(0, u64::saturating_add);
        Some(TierView {
            tier: Tier::Vram,
            capacity: sum(|row| row.total),
            used: sum(|row| row.used),
            reserved: 0,
            models: sum(|row| row.models),
            held: sum(|row| row.claimed),
            mode: "reported".to_owned(),
            detail: String::new(),
        })
    }
}
