//! Advice: what a device should let go when it is nearly full, and what it could load ahead when it has room. Arithmetic only;
//! tierd never seizes VRAM.

use std::collections::BTreeSet;

use super::{Ledger, WorkerId};
use crate::config::VramConfig;
use crate::ids::{BlobId, ModelKey};

/// Advice for one device of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// The worker.
    pub worker: WorkerId,
    /// Its device, as it counts.
    pub device: u32,
    /// Bytes of VRAM.
    pub total: u64,
    /// Bytes in use, by all processes.
    pub used: u64,
    /// What the next prompts need and the device has not, in order.
    pub load: Vec<AdvisedModel>,
    /// What of that could be loaded now and push nothing out: the device is below the low mark, and stays below it.
    pub preload: Vec<AdvisedModel>,
    /// What nothing needs, the longest unused first, as much as brings the device down to the high mark. Empty below that.
    pub unload: Vec<AdvisedModel>,
    /// Whether the worker could as well unload everything: it runs nothing, and nothing that it holds is needed next.
    pub idle: bool,
}

/// One model of an advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvisedModel {
    /// The model, if it is one of ours.
    pub model: Option<ModelKey>,
    /// The file, as the worker names it; empty for what it has not loaded.
    pub file: String,
    /// Bytes: loaded ones for what is to go, its size on the disk for what is to come.
    pub bytes: u64,
}

impl Advice {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.load.is_empty() && self.preload.is_empty() && self.unload.is_empty()
    }

    /// Whether it says the same as another, whatever the exact use of the device.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        (&self.load, &self.preload, &self.unload, self.idle) == (&other.load, &other.preload, &other.unload, other.idle)
    }
}

/// The blob and the size of a model: no blob if it is not on the node, nothing if nobody knows it.
pub type Stored<'a> = &'a dyn Fn(&ModelKey) -> Option<(Option<BlobId>, u64)>;

/// Advises on each device of one worker. `named` gives a blob's name.
#[must_use]
pub fn advise(
    ledger: &Ledger,
    id: &WorkerId,
    config: &VramConfig,
    stored: Stored<'_>,
    named: &dyn Fn(BlobId) -> Option<ModelKey>,
) -> Vec<Advice> {
    let Some(worker) = ledger.workers.get(id) else { return Vec::new() };
    let next: Vec<(&ModelKey, Option<BlobId>, u64)> =
        ledger.next_of(id).iter().filter_map(|model| stored(model).map(|(blob, bytes)| (model, blob, bytes))).collect();
    let needed: BTreeSet<BlobId> = next.iter().filter_map(|(_, blob, _)| *blob).collect();
    let holds_needed = worker.index.keys().any(|blob| needed.contains(blob));
    let mut advice = Vec::new();
    for device in worker.devices.iter().filter(|device| device.total > 0) {
        let used = device.total.saturating_sub(device.free);
        let (low, high) = (share(device.total, config.low_percent), share(device.total, config.high_percent));
        let has = |blob: BlobId| device.models.iter().any(|claim| claim.blob == Some(blob) && claim.loaded > 0);
        let mut load: Vec<AdvisedModel> = Vec::new();
        for (model, blob, bytes) in &next {
            let known = load.iter().any(|row| row.model.as_ref() == Some(*model));
            if !blob.is_some_and(has) && !known {
                load.push(AdvisedModel { model: Some((*model).clone()), file: String::new(), bytes: *bytes });
            }
        }
        let mut filled = used;
        let fits = |row: &&AdvisedModel| {
            filled = filled.saturating_add(row.bytes);
            filled <= low
        };
        let preload = load.iter().take_while(fits).cloned().collect();
        let mut spare: Vec<_> = device
            .models
            .iter()
            .filter(|claim| claim.loaded > 0 && !claim.in_use && !claim.blob.is_some_and(|blob| needed.contains(&blob)))
            .collect();
        spare.sort_by_key(|claim| (claim.blob.and_then(|blob| worker.used.get(&blob)), &claim.file));
        let mut left = used;
        let mut unload = Vec::new();
        for claim in spare {
            if left <= high {
                break;
            }
            left = left.saturating_sub(claim.loaded);
            let model = claim.blob.and_then(named);
            unload.push(AdvisedModel { model, file: claim.file.clone(), bytes: claim.loaded });
        }
        advice.push(Advice {
            worker: id.clone(),
            device: device.index,
            total: device.total,
            used,
            load,
            preload,
            unload,
            idle: worker.is_idle() && !holds_needed,
        });
    }
    advice
}

fn share(total: u64, percent: u32) -> u64 {
    // In 128 bits: no card is large enough to overflow that.
    u64::try_from(u128::from(total) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}
