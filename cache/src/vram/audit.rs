//! Claims beside what the driver counts: one row for each GPU, with what models claim and what is left over.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{DeviceReport, WorkerId, WorkerView};
use crate::ids::BlobId;

/// A GPU, as the driver has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as the driver counts.
    pub index: u32,
    /// What it is called.
    pub name: String,
    /// Its UUID: `GPU-…`.
    pub uuid: String,
    /// Bytes of VRAM.
    pub total: u64,
    /// Bytes in use, by all processes.
    pub used: u64,
    /// Share of the last moment in which it computed, in percent; `None` if the driver does not tell.
    pub utilisation: Option<u32>,
    /// Processes on it with the bytes of each; `None` if the driver does not tell those.
    pub processes: Vec<(u32, Option<u64>)>,
}

/// A device with its claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audited {
    /// Its number: as the driver counts, or as the worker does where there is no driver to ask.
    pub index: u32,
    /// What it is called.
    pub name: String,
    /// Its UUID; empty if nobody knows.
    pub uuid: String,
    /// Bytes of VRAM.
    pub total: u64,
    /// Bytes in use, by all processes.
    pub used: u64,
    /// Bytes that workers say their models take.
    pub claimed: u64,
    /// Bytes in use that no model accounts for: activations, caches, other programs.
    pub other: u64,
    /// Bytes that are claimed and not in use: above zero, a worker claims what the driver does not have.
    pub overclaimed: u64,
    /// Share of the last moment in which it computed, in percent.
    pub utilisation: Option<u32>,
    /// Models on it, one for each worker's copy.
    pub models: u64,
    /// Whether the driver was asked; else a worker's word is all there is.
    pub by_driver: bool,
    /// Processes on it.
    pub processes: Vec<AuditedProcess>,
    /// Stored blobs on it, with the bytes of the largest copy that one worker has.
    pub loaded: BTreeMap<BlobId, u64>,
}

/// A process on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedProcess {
    /// Its id.
    pub pid: u32,
    /// Bytes of VRAM, as the driver counts; `None` if it does not tell.
    pub used: Option<u64>,
    /// The worker that it is, if it is one.
    pub worker: Option<WorkerId>,
    /// Bytes that the worker claims for models.
    pub claimed: u64,
}

/// Puts the claims of workers beside the driver's figures. `driver` is empty where there is none to ask.
#[must_use]
pub fn audit(workers: &[WorkerView], driver: &[Gpu]) -> Vec<Audited> {
    let mut rows: Vec<Audited> = driver.iter().map(of_driver).collect();
    // The youngest report of a device counts: two workers on one GPU see the same memory.
    let mut heard: Vec<Duration> = vec![Duration::MAX; rows.len()];
    for worker in workers {
        for device in &worker.devices {
            let found = rows.iter().position(|row| is_same(row, device));
            let at = found.unwrap_or_else(|| {
                rows.push(Audited {
                    index: device.index,
                    name: device.name.clone(),
                    uuid: device.uuid.clone(),
                    ..Audited::default()
                });
                heard.push(Duration::MAX);
                rows.len() - 1
            });
            let row = &mut rows[at];
            if !row.by_driver && worker.silent < heard[at] {
                heard[at] = worker.silent;
                (row.total, row.used) = (device.total, device.total.saturating_sub(device.free));
            }
            add(row, worker, device);
        }
    }
    for row in &mut rows {
        row.other = row.used.saturating_sub(row.claimed);
        row.overclaimed = row.claimed.saturating_sub(row.used);
    }
    rows
}

fn of_driver(gpu: &Gpu) -> Audited {
    let process =
        |(pid, used): &(u32, Option<u64>)| AuditedProcess { pid: *pid, used: *used, worker: None, claimed: 0 };
    Audited {
        index: gpu.index,
        name: gpu.name.clone(),
        uuid: gpu.uuid.clone(),
        total: gpu.total,
        used: gpu.used,
        utilisation: gpu.utilisation,
        by_driver: true,
        processes: gpu.processes.iter().map(process).collect(),
        ..Audited::default()
    }
}

/// By UUID where both know it: a worker counts only the devices that it was given.
fn is_same(row: &Audited, device: &DeviceReport) -> bool {
    let plain = |uuid: &str| uuid.trim_start_matches("GPU-").to_ascii_lowercase();
    if row.uuid.is_empty() || device.uuid.is_empty() {
        return row.index == device.index;
    }
    plain(&row.uuid) == plain(&device.uuid)
}

fn add(row: &mut Audited, worker: &WorkerView, device: &DeviceReport) {
    let claimed: u64 = device.models.iter().map(|claim| claim.loaded).fold(0, u64::saturating_add);
    row.claimed = row.claimed.saturating_add(claimed);
    row.models += device.models.iter().filter(|claim| claim.loaded > 0).count() as u64;
    let blobs = device.models.iter().filter_map(|claim| claim.blob.map(|blob| (blob, claim.loaded)));
    for (blob, loaded) in blobs.filter(|(_, loaded)| *loaded > 0) {
        let most = row.loaded.entry(blob).or_default();
        *most = loaded.max(*most);
    }
    let pids = [worker.hello.watched, Some(worker.hello.pid)];
    match row.processes.iter_mut().find(|process| pids.contains(&Some(process.pid))) {
        Some(process) => {
            process.worker = Some(worker.worker.clone());
            process.claimed = process.claimed.saturating_add(claimed);
        }
        None => row.processes.push(AuditedProcess {
            pid: worker.hello.watched.unwrap_or(worker.hello.pid),
            used: None,
            worker: Some(worker.worker.clone()),
            claimed,
        }),
    }
}
