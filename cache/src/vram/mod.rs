//! L1: what sits in VRAM, as far as the workers that own it say so.
//!
//! A worker is a process that loads models onto GPUs: ComfyUI. It reports state, not changes: each report is the whole truth
//! about its devices, and is believed until it expires. Nothing here touches a GPU, a file or the clock; time is an argument.
//!
//! | file | holds |
//! | --- | --- |
//! | `ledger` | workers and their claims: what is loaded, used, read; who lapses when |
//! | `advice` | what a device should let go, and what it could load ahead |
//! | `audit` | claims beside what the driver counts |
//! | `fit` | whether the weights of a set fit onto a device |

pub mod advice;
pub mod audit;
pub mod fit;
pub mod ledger;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, ModelKey};

pub use advice::{Advice, AdvisedModel};
pub use ledger::{Changes, Ledger};

/// Workers at once: a process for each GPU of a large node, and some that are being replaced.
pub const WORKERS_MAX: usize = 64;
/// Devices of one worker.
pub const DEVICES_MAX: usize = 32;
/// Models on one device.
pub const CLAIMS_MAX: usize = 1024;
/// Files of one worker that are held because they were just read.
pub const READS_MAX: usize = 256;
/// Prompts of one worker that are remembered as waiting.
pub const PROMPTS_MAX: usize = 4096;
/// Models that a worker may be told to need next.
pub const NEXT_MAX: usize = 256;
/// Hooks, and folders with their paths, that one worker may name.
pub const NAMES_MAX: usize = 256;
/// Longest text of any field of a report, in bytes: the longest path of the system.
pub const TEXT_BYTES_MAX: usize = 4096;
/// How long a file that was read is held on the disk although no claim names it yet: from the read to the first report that
/// does, a large model is patched and moved, and may be read a second time.
pub const READ_HOLD: Duration = Duration::from_secs(30);

/// The name that a worker gave itself: unique for each process.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// Takes a name of 1 to 64 letters, digits, `-` and `_`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        (plain && (1..=64).contains(&text.len())).then(|| Self(text.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// What a worker says of itself once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// Its process id, as it sees it.
    pub pid: u32,
    /// Its process id as this node's kernel told it; its claims lapse when that process ends.
    pub watched: Option<u32>,
    /// Where its HTTP server listens; empty if it does not say.
    pub address: String,
    /// Version of the node pack.
    pub pack_version: String,
    /// Version of ComfyUI.
    pub version: String,
    /// Whether it streams weights from the disk instead of keeping a copy of its own (`--fast-disk`).
    pub fast_disk: bool,
    /// Its hooks, each `attached`, `absent` or `failed: why`.
    pub hooks: BTreeMap<String, String>,
    /// Its model folders: a folder of the layout, and where it looks for that.
    pub folders: Vec<(String, String)>,
}

/// What a worker says each second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Grows with each report; an older one that comes late changes nothing.
    pub seq: u64,
    /// Everything on its devices; `None` if that is as before.
    pub devices: Option<Vec<DeviceReport>>,
    /// Files that were read since the last report.
    pub reads: Vec<Read>,
    /// Prompts that were queued, started or ended since the last report, in order.
    pub prompts: Vec<Prompt>,
    /// Models that it is going to need, in order; `None` if that is as before.
    pub next: Option<Vec<ModelKey>>,
}

impl Report {
    /// Whether somebody uses the worker: files were read, or something happened to a prompt.
    #[must_use]
    pub fn tells_of_use(&self) -> bool {
        !self.reads.is_empty() || !self.prompts.is_empty()
    }
}

/// One device of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceReport {
    /// Its number, as the worker counts.
    pub index: u32,
    /// What it is called.
    pub name: String,
    /// Its UUID; empty if the worker does not know.
    pub uuid: String,
    /// Bytes of VRAM.
    pub total: u64,
    /// Bytes that nobody uses, of all processes.
    pub free: u64,
    /// Bytes that the worker's allocator holds.
    pub torch: u64,
    /// Models on it.
    pub models: Vec<Claim>,
}

/// A model that a worker says it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// The file it came from, as the worker names it.
    pub file: String,
    /// The stored blob behind that file, if it is one.
    pub blob: Option<BlobId>,
    /// Its size once it is loaded whole.
    pub bytes: u64,
    /// Bytes of it that are on the device.
    pub loaded: u64,
    /// Whether a prompt uses it now.
    pub in_use: bool,
}

/// A file that a worker has read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Read {
    /// The file, as the worker names it.
    pub file: String,
    /// The stored blob behind that file, if it is one.
    pub blob: Option<BlobId>,
    /// Bytes read.
    pub bytes: u64,
    /// How long that took.
    pub elapsed: Duration,
}

/// What happened to a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// It waits.
    Queued(String),
    /// It runs.
    Started(String),
    /// It is over.
    Ended(String),
}

/// A worker, as seen from outside.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// Its name.
    pub worker: WorkerId,
    /// What it said of itself.
    pub hello: Hello,
    /// Time since it was first seen.
    pub age: Duration,
    /// Time since it was last heard.
    pub silent: Duration,
    /// Prompts that wait.
    pub waiting: u32,
    /// Prompts that run.
    pub running: u32,
    /// Its devices.
    pub devices: Vec<DeviceReport>,
}

/// The ledger refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VramError {
    /// Nobody introduced this worker, or its claims lapsed.
    #[error("worker {0} is unknown: say hello first")]
    Unknown(WorkerId),
    /// There are too many workers.
    #[error("there are {WORKERS_MAX} workers already: end some, or wait until they lapse")]
    Full,
    /// A list or a text of a report is too long.
    #[error("{what} has {found}, more than {max}")]
    TooMany {
        /// Which.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
}

impl Hello {
    /// Checks that every list and text is within its bound.
    ///
    /// # Errors
    ///
    /// [`VramError::TooMany`] for the first that is not.
    pub fn check(&self) -> Result<(), VramError> {
        at_most("hooks", self.hooks.len(), NAMES_MAX)?;
        at_most("folders", self.folders.len(), NAMES_MAX)?;
        let hooks = self.hooks.iter().flat_map(|(name, state)| [name, state]);
        let folders = self.folders.iter().flat_map(|(folder, path)| [folder, path]);
        let texts = [&self.address, &self.pack_version, &self.version];
        hooks.chain(folders).chain(texts).try_for_each(|one| text(one))
    }
}

impl Report {
    /// Checks that every list and text is within its bound.
    ///
    /// # Errors
    ///
    /// [`VramError::TooMany`] for the first that is not.
    pub fn check(&self) -> Result<(), VramError> {
        at_most("events", self.reads.len() + self.prompts.len(), READS_MAX)?;
        at_most("next", self.next.as_ref().map_or(0, Vec::len), NEXT_MAX)?;
        self.reads.iter().try_for_each(|read| text(&read.file))?;
        for prompt in &self.prompts {
            let (Prompt::Queued(id) | Prompt::Started(id) | Prompt::Ended(id)) = prompt;
            text(id)?;
        }
        let devices = self.devices.as_deref().unwrap_or_default();
        at_most("devices", devices.len(), DEVICES_MAX)?;
        for device in devices {
            at_most("models", device.models.len(), CLAIMS_MAX)?;
            [&device.name, &device.uuid].into_iter().try_for_each(|one| text(one))?;
            device.models.iter().try_for_each(|claim| text(&claim.file))?;
        }
        Ok(())
    }

    /// Every file that it names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let claims = self.devices.iter().flatten().flat_map(|device| &device.models).map(|claim| claim.file.as_str());
        claims.chain(self.reads.iter().map(|read| read.file.as_str()))
    }

    /// Sets the stored blob behind every file.
    pub fn resolve(&mut self, blob: impl Fn(&str) -> Option<BlobId>) {
        for claim in self.devices.iter_mut().flatten().flat_map(|device| &mut device.models) {
            claim.blob = blob(&claim.file);
        }
        for read in &mut self.reads {
            read.blob = blob(&read.file);
        }
    }
}

fn at_most(what: &'static str, found: usize, max: usize) -> Result<(), VramError> {
    if found > max { Err(VramError::TooMany { what, found, max }) } else { Ok(()) }
}

fn text(text: &str) -> Result<(), VramError> {
    at_most("a text (in bytes)", text.len(), TEXT_BYTES_MAX)
}
