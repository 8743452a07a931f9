//! What a caller that wants models asks for, and what it is told until the end.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::ids::{BlobId, EnsureId, FlightId, ModelKey, OriginName};

use super::{Priority, Tier, Trust};

/// A request to make models ready.
#[derive(Debug, Clone)]
pub struct EnsureRequest {
    /// What is wanted; 1 to `models_per_request_max`, duplicates allowed.
    pub models: Vec<ModelKey>,
    /// Demand or prefetch.
    pub priority: Priority,
    /// The tier that they are wanted in: RAM or the disk.
    pub target: Tier,
    /// Whether the fetch stops when this caller's stream is dropped and nobody else wants it.
    pub cancel_on_drop: bool,
    /// Shortest time between two progress updates. Clamped to 50 ms..60 s.
    pub progress_interval: Duration,
    /// Who asks, for events and logs; at most 200 characters.
    pub client: String,
}

/// What an ensure's stream says: one plan, then progress, then exactly one of the last two.
#[derive(Debug, Clone)]
pub enum EnsureUpdate {
    /// What is known at the start.
    Plan(EnsurePlan),
    /// How far it is.
    Progress(EnsureProgress),
    /// Everything is ready.
    Ready(EnsureReady),
    /// At least one model could not be made ready. The others may be.
    Failed(EnsureFailed),
}

/// What an ensure will do.
#[derive(Debug, Clone)]
pub struct EnsurePlan {
    /// The caller's number.
    pub ensure: EnsureId,
    /// One row for each distinct model, in the order asked.
    pub models: Vec<PlannedModel>,
    /// Bytes of all models.
    pub bytes_total: u64,
    /// Bytes that must come from origins (finished pieces of an earlier try not counted).
    pub bytes_to_fetch: u64,
}

/// One model of a plan.
#[derive(Debug, Clone)]
pub struct PlannedModel {
    /// The model.
    pub model: ModelKey,
    /// Its size.
    pub bytes: u64,
    /// Its blob, if the digest is known.
    pub blob: Option<BlobId>,
    /// The tier it is in now.
    pub tier: Tier,
    /// The flight that brings it, if it is not there.
    pub flight: Option<FlightId>,
    /// Whether that flight was under way before this request.
    pub joined: bool,
    /// The origin it would come from first.
    pub origin: Option<OriginName>,
}

/// How far an ensure is.
#[derive(Debug, Clone)]
pub struct EnsureProgress {
    /// Time since the request.
    pub elapsed: Duration,
    /// Bytes of the set that are on this node.
    pub bytes_done: u64,
    /// Bytes of the set.
    pub bytes_total: u64,
    /// Bytes a second over the last seconds.
    pub bytes_per_second: u64,
    /// Expected time to the end, if a rate is known.
    pub remaining: Option<Duration>,
    /// One row for each distinct model, in the order asked.
    pub models: Vec<ModelProgress>,
}

/// How far one model is.
#[derive(Debug, Clone)]
pub struct ModelProgress {
    /// The model.
    pub model: ModelKey,
    /// Its size.
    pub bytes_total: u64,
    /// Bytes of it that are on this node.
    pub bytes_done: u64,
    /// What happens to it now.
    pub phase: Phase,
}

/// What happens to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for room, for a connection, or for an origin that asked us to wait.
    Waiting,
    /// Stored bytes are checked before they are believed.
    Checking,
    /// Bytes arrive.
    Fetching,
    /// On the disk; its pages are being read and locked.
    Locking,
    /// Whole: the digest is compared, the file made durable and named.
    Finishing,
    /// Whole, verified, in place.
    Ready,
    /// It failed.
    Failed,
}

/// The good end of an ensure.
#[derive(Debug, Clone)]
pub struct EnsureReady {
    /// Time since the request.
    pub elapsed: Duration,
    /// Bytes that came from origins for this set while the caller waited.
    pub bytes_fetched: u64,
    /// One row for each distinct model, in the order asked.
    pub models: Vec<ReadyModel>,
}

/// A model that is ready.
#[derive(Debug, Clone)]
pub struct ReadyModel {
    /// The model.
    pub model: ModelKey,
    /// Where ComfyUI opens it.
    pub path: PathBuf,
    /// Its content.
    pub blob: BlobId,
    /// Its size.
    pub bytes: u64,
    /// The tier it was in when it was asked for.
    pub from: Tier,
    /// How its content was checked.
    pub trust: Trust,
}

/// The bad end of an ensure.
#[derive(Debug, Clone)]
pub struct EnsureFailed {
    /// Time since the request.
    pub elapsed: Duration,
    /// The first fault, which decides the status.
    pub fault: Fault,
    /// The models that failed, and why. Empty if the set as a whole was refused.
    pub models: Vec<(ModelKey, Fault)>,
}
