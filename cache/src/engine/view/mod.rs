//! What the engine tells about itself: plain values, no channels. The proto messages mirror these words.
//! What a caller asks for and is told is in `ensured`; what happened, and why, in `happened`; what changes and is not written down is in `changed`; what is guessed in `predict`.

mod changed;
mod ensured;
mod explained;
mod happened;
mod predict;
mod spans;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::fault::Fault;
use crate::ids::{BlobId, FlightId, LeaseId, ModelKey, OriginName, Sha256Digest};
use crate::vram::WorkerView;

pub use self::changed::{ActivityView, Change, Changed, Position, StateView, Told};
pub use self::ensured::{
    EnsureFailed, EnsurePlan, EnsureProgress, EnsureReady, EnsureRequest, EnsureUpdate, ModelProgress, Phase,
    PlannedModel, ReadyModel,
};
pub use self::explained::{Decided, Decision, Explanation, TierStanding};
pub use self::happened::{DemoteReason, EvictReason, Occurrence, What};
pub use self::predict::{GuessView, HabitView, PredictView};
pub use self::spans::{Span, SpanTree, Value};

/// A tier. Smaller is faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// L1: the VRAM of the node's GPUs. A worker's, never ours to fill.
    Vram,
    /// L2: the page cache of the node, locked.
    Ram,
    /// L3: the disk of the node.
    Nvme,
    /// L4: an origin.
    Origin,
}

/// Demand goes before prefetch, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// A guess: stoppable, yields to demand.
    Prefetch,
    /// Somebody waits.
    Demand,
}

/// How sure we are of a blob's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// It matched a BLAKE3 digest that an origin's manifest promised.
    Blake3,
    /// It matched a SHA-256 digest that an origin promised.
    Sha256,
    /// No digest was known: size, identity at the origin and structure were checked, and the digest computed then is what it is held to now.
    FirstUse,
    /// It was imported from this node's disk; its digest was computed then.
    Imported,
}

/// A flight, as seen from outside.
#[derive(Debug, Clone)]
pub struct FlightView {
    /// Its number.
    pub flight: FlightId,
    /// The models that it will appear as.
    pub models: Vec<ModelKey>,
    /// Its digest, if known.
    pub blob: Option<BlobId>,
    /// Demand or prefetch.
    pub priority: Priority,
    /// What happens now.
    pub phase: Phase,
    /// Its size.
    pub bytes_total: u64,
    /// Bytes on this node.
    pub bytes_done: u64,
    /// Requests to origins that are under way for it.
    pub connections: u32,
    /// Failed attempts so far.
    pub retries: u32,
    /// Callers that wait for it.
    pub waiters: u32,
    /// Time since it began.
    pub elapsed: Duration,
    /// How it ended, if it has: `Ok` means stored. Ended flights are remembered for a while.
    pub ended: Option<Result<(), Fault>>,
}

/// A model, as seen from outside.
#[derive(Debug, Clone)]
pub struct ModelView {
    /// The model.
    pub model: ModelKey,
    /// Its size.
    pub bytes: u64,
    /// Its digest, if known.
    pub blob: Option<BlobId>,
    /// Its SHA-256, if known.
    pub sha256: Option<Sha256Digest>,
    /// The fastest tier that has it whole.
    pub tier: Tier,
    /// Where ComfyUI opens it, if it is on the disk.
    pub path: Option<PathBuf>,
    /// How its content was checked, if it is on the disk.
    pub trust: Option<Trust>,
    /// When it was last asked for or used.
    pub last_used: Option<Wall>,
    /// Leases that hold it.
    pub leases: Vec<LeaseId>,
    /// The flight that brings it, if one is under way.
    pub flight: Option<FlightId>,
    /// Where it can be fetched.
    pub sources: Vec<SourceView>,
    /// Bytes of it that workers have in VRAM, all copies together.
    pub vram: u64,
}

/// Where one origin has one model.
#[derive(Debug, Clone)]
pub struct SourceView {
    /// The origin.
    pub origin: OriginName,
    /// Its path there.
    pub path: String,
    /// Its ETag, if the origin gave one.
    pub etag: Option<String>,
}

/// Which models to list.
#[derive(Debug, Clone, Default)]
pub struct ModelFilter {
    /// Only this folder (aliases resolved).
    pub folder: Option<String>,
    /// Only keys that contain this text, ignoring case.
    pub contains: Option<String>,
    /// Only models in this tier.
    pub tier: Option<Tier>,
    /// Only models that a lease holds.
    pub pinned: bool,
}

/// One page of models, in the order of their keys.
#[derive(Debug, Clone)]
pub struct ModelPage {
    /// The rows.
    pub models: Vec<ModelView>,
    /// The last key of this page, if there are more: where the next page starts.
    pub next: Option<ModelKey>,
    /// All models that match, on all pages.
    pub total: u64,
}

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Its number.
    pub lease: LeaseId,
    /// Who holds it.
    pub owner: String,
    /// What it holds.
    pub models: Vec<ModelKey>,
    /// Whether it holds them in RAM too, and how hard.
    #[serde(default, skip_serializing_if = "RamHold::is_none")]
    pub ram: RamHold,
    /// When it ends by itself.
    pub expires: Wall,
}

/// What a lease says about RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RamHold {
    /// Nothing: the disk only.
    #[default]
    None,
    /// Its models are promoted, and demoted last.
    Soft,
    /// Its models are promoted and never demoted while it lasts, not even under memory pressure. Refused if they cannot all fit.
    Hard,
}

impl RamHold {
    /// Whether it says nothing about RAM: records of such leases are as they were before there was a RAM tier.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// What a promotion or demotion did.
#[derive(Debug, Clone, Default)]
pub struct MoveReport {
    /// Models that are on their way, or were there already.
    pub moved: Vec<ModelKey>,
    /// Models that stay where they are, and why.
    pub kept: Vec<(ModelKey, Fault)>,
}

/// What an eviction did.
#[derive(Debug, Clone, Default)]
pub struct EvictReport {
    /// Models whose names and bytes are gone.
    pub evicted: Vec<(ModelKey, u64)>,
    /// Models that stay, and why.
    pub kept: Vec<(ModelKey, Fault)>,
    /// Bytes given back to the disk.
    pub bytes_freed: u64,
}

/// The node.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Time since the engine started.
    pub uptime: Duration,
    /// One row for each tier that has a budget here.
    pub tiers: Vec<TierView>,
    /// One row for each origin.
    pub origins: Vec<OriginView>,
    /// Flights under way.
    pub flights: u32,
    /// Callers that wait.
    pub ensures: u32,
    /// Leases held.
    pub leases: u32,
    /// Models that some origin or tier knows.
    pub models_known: u64,
    /// Where ComfyUI finds models.
    pub models_path: PathBuf,
    /// Workers that report what they have in VRAM.
    pub workers: Vec<WorkerView>,
    /// Who needs the node.
    pub activity: ActivityView,
}

/// A tier's budget.
#[derive(Debug, Clone)]
pub struct TierView {
    /// The tier.
    pub tier: Tier,
    /// Bytes that it may hold now.
    pub capacity: u64,
    /// Bytes that it holds.
    pub used: u64,
    /// Bytes promised to flights on top of that.
    pub reserved: u64,
    /// Models that it holds.
    pub models: u64,
    /// Bytes that a lease or a flight keeps from being evicted.
    pub held: u64,
    /// How it works here: `direct` or `buffered` on the disk; `locked`, `warm` or `off` in RAM.
    pub mode: String,
    /// What limits it and why it works like that, in words; empty if there is nothing to say.
    pub detail: String,
}

/// How an origin is.
#[derive(Debug, Clone)]
pub struct OriginView {
    /// Its name.
    pub origin: OriginName,
    /// `s3`, `http` or `folder`.
    pub kind: String,
    /// Its address, without secrets.
    pub address: String,
    /// Whether its last answer was a good one.
    pub state: OriginState,
    /// What went wrong last, if it is not up.
    pub detail: String,
    /// Models that it has.
    pub models: u64,
    /// When it was last listed.
    pub listed: Option<Wall>,
    /// Connections in use.
    pub connections: u32,
    /// Connections that it may have now: found by measuring, at most the configured bound.
    pub connections_allowed: u32,
    /// Bytes a second over the last seconds.
    pub bytes_per_second: u64,
}

/// Whether an origin answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OriginState {
    /// Not asked yet.
    Unknown,
    /// Its last answer was good.
    Up,
    /// It asked us to wait.
    Throttled,
    /// It does not answer, or refuses.
    Down,
}

/// What an import did with one file.
#[derive(Debug, Clone)]
pub struct ImportedFile {
    /// The file.
    pub file: PathBuf,
    /// What came of it.
    pub outcome: ImportOutcome,
}

/// What came of one file of an import.
#[derive(Debug, Clone)]
pub enum ImportOutcome {
    /// It is a model now.
    Adopted {
        /// Its name.
        model: ModelKey,
        /// Its content.
        blob: BlobId,
        /// Its size.
        bytes: u64,
        /// How its bytes came in.
        how: ImportHow,
        /// Why it is in that folder: `path`, `safetensors header` or `file name`.
        classified_by: &'static str,
    },
    /// It stays outside.
    Skipped {
        /// Why.
        reason: String,
    },
}

/// How an imported file's bytes came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportHow {
    /// A hard link: no byte moved.
    HardLink,
    /// A reflink: shared extents.
    Reflink,
    /// A copy, because it lies on another file system.
    Copy,
    /// The content was stored already; only the name is new.
    Known,
}
