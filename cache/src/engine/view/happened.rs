//! What happened, and why: the words of the record that `tierd events` shows. Stored, so that a change here is a change of format.

use serde::{Deserialize, Serialize};

use super::{OriginState, Trust};
use crate::clock::Wall;
use crate::ids::{BlobId, FlightId, LeaseId, ModelKey, OriginName, Seq};
use crate::vram::WorkerId;

/// Something that happened, in the order it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occurrence {
    /// Its place in the order.
    pub seq: Seq,
    /// When.
    pub at: Wall,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// The daemon opened its store.
    Started {
        /// Blobs found whole.
        blobs: u64,
        /// Bytes of them.
        bytes: u64,
    },
    /// A model became whole and visible.
    Stored {
        /// The model.
        model: ModelKey,
        /// Its content.
        blob: BlobId,
        /// Its size.
        bytes: u64,
        /// Bytes of it that came from origins: less than its size after a resume or a repair, 0 if the blob was there under another name.
        fetched: u64,
        /// The origin it came from, if any.
        origin: Option<OriginName>,
        /// How it was checked.
        trust: Trust,
        /// Time from the start of its flight.
        elapsed_ms: u64,
    },
    /// A model left the disk.
    Evicted {
        /// The model.
        model: ModelKey,
        /// Its content.
        blob: BlobId,
        /// Bytes given back (0 if another name keeps the blob).
        bytes: u64,
        /// Why.
        reason: EvictReason,
        /// When it was last used.
        last_used: Wall,
    },
    /// A flight ended badly.
    FlightFailed {
        /// The flight.
        flight: FlightId,
        /// The models it was for.
        models: Vec<ModelKey>,
        /// The kind of fault.
        fault: String,
        /// In words.
        detail: String,
    },
    /// Stored bytes are not what they were: the model was withdrawn and the bad pieces are fetched again.
    Damaged {
        /// The models.
        models: Vec<ModelKey>,
        /// The content it should be.
        blob: BlobId,
        /// Pieces that do not match.
        pieces_bad: u64,
        /// What was seen.
        detail: String,
    },
    /// A lease began.
    Pinned {
        /// The lease.
        lease: LeaseId,
        /// Who holds it.
        owner: String,
        /// What it holds.
        models: Vec<ModelKey>,
    },
    /// A lease ended.
    Unpinned {
        /// The lease.
        lease: LeaseId,
        /// Who held it.
        owner: String,
        /// Whether it expired by itself.
        expired: bool,
    },
    /// A model is in RAM: its pages are held until it is demoted.
    Promoted {
        /// Its names.
        models: Vec<ModelKey>,
        /// Its content.
        blob: BlobId,
        /// Its size.
        bytes: u64,
        /// How long that took.
        elapsed_ms: u64,
    },
    /// A model left RAM. It is still on the disk.
    Demoted {
        /// Its names.
        models: Vec<ModelKey>,
        /// Its content.
        blob: BlobId,
        /// Bytes given back.
        bytes: u64,
        /// Why.
        reason: DemoteReason,
    },
    /// An origin changed its state.
    Origin {
        /// The origin.
        origin: OriginName,
        /// Its new state.
        state: OriginState,
        /// Why.
        detail: String,
    },
    /// An origin was listed.
    Listed {
        /// The origin.
        origin: OriginName,
        /// Models found.
        models: u64,
    },
    /// A worker reports what it has in VRAM from now on.
    WorkerSeen {
        /// The worker.
        worker: WorkerId,
        /// Its process.
        pid: u32,
        /// Where it listens; empty if it does not say.
        address: String,
        /// Its version.
        version: String,
    },
    /// A worker is over: what it had in VRAM counts no more.
    WorkerLost {
        /// The worker.
        worker: WorkerId,
        /// Its process.
        pid: u32,
        /// Why.
        detail: String,
    },
    /// A device was advised to let models go.
    Advised {
        /// Its worker.
        worker: WorkerId,
        /// The device, as the worker counts.
        device: u32,
        /// Bytes of VRAM.
        total: u64,
        /// Bytes in use.
        used: u64,
        /// Models, or files that are none of ours, the longest unused first.
        unload: Vec<String>,
    },
    /// Guesses of one kind are acted on from now on, or are not any more.
    Predicts {
        /// The habit: `sequence` or `hour`.
        habit: String,
        /// What they do: `fetch` or `promote`.
        step: String,
        /// How sure they are: `likely` or `sure`.
        level: String,
        /// Whether they are acted on.
        acts: bool,
        /// Share of the last guesses that came true, in percent.
        precision_percent: u32,
        /// How many that were, those long ago counting less.
        guesses: u32,
        /// Waiting that they would have saved, in milliseconds.
        saved_ms: u64,
        /// Waiting that they would have cost, in milliseconds.
        lost_ms: u64,
    },
    /// Advice was carried out, or could not be.
    Freed {
        /// The worker that was told to unload everything.
        worker: WorkerId,
        /// What went wrong; empty if it was told.
        detail: String,
    },
}

/// Why a model left a tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum EvictReason {
    /// Room was needed, and the policy chose it.
    Room {
        /// The model that needed it.
        wanted_by: ModelKey,
        /// The policy.
        policy: String,
    },
    /// Somebody asked for it.
    Asked {
        /// Who.
        by: String,
    },
    /// The budget or the file system shrank.
    Shrunk {
        /// Bytes over the budget.
        over: u64,
    },
    /// The origin has another content under this name now, and that was fetched.
    Replaced {
        /// The new content.
        by: BlobId,
    },
}

/// Why a model left RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum DemoteReason {
    /// Room was needed, and the policy chose it.
    Room {
        /// The model that needed it.
        wanted_by: ModelKey,
        /// The policy.
        policy: String,
    },
    /// Somebody asked for it.
    Asked {
        /// Who.
        by: String,
    },
    /// The node runs short of memory.
    Pressure {
        /// What said so.
        source: String,
    },
    /// The budget shrank: less memory, a lower limit.
    Shrunk {
        /// Bytes over the budget.
        over: u64,
    },
    /// It leaves the disk too.
    Removed,
    /// Its pages could not be read or locked.
    Failed {
        /// Why.
        detail: String,
    },
}
