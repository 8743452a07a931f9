//! The closed set of ways to fail. Every room maps its own errors to a `Fault`; one file of the daemon maps a `Fault`
//! to a gRPC status. Holds no secret and no payload.

use std::time::Duration;

use crate::ids::{BadModelKey, BlobId, ModelKey, OriginName};
use crate::units::ByteSize;

/// Why something asked for did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as the proto names it.
        field: &'static str,
        /// What is wrong, with the value.
        reason: String,
    },
    /// No origin and no tier knows the thing.
    #[error("{what} was not found: {hint}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Where it was looked for, or what to do next.
        hint: String,
    },
    /// The set does not fit into the tier's budget, even if everything evictable went.
    #[error(
        "{} needed, {} free and {} evictable in the disk budget: raise [store] budget, unpin models, or ask for fewer",
        ByteSize(*needed), ByteSize(*free), ByteSize(*evictable)
    )]
    NoRoom {
        /// Bytes that the set still needs.
        needed: u64,
        /// Bytes of the budget that nothing holds or has reserved.
        free: u64,
        /// Bytes that eviction could free now.
        evictable: u64,
    },
    /// The set does not fit into RAM, even if everything demotable went. It may still fit on the disk.
    #[error(
        "{} of RAM needed, {} free and {} demotable: raise [ram] budget, demote or unpin models, or ask for the disk only",
        ByteSize(*needed), ByteSize(*free), ByteSize(*evictable)
    )]
    NoMemory {
        /// Bytes that the set needs in RAM.
        needed: u64,
        /// Bytes of the budget that nothing holds or has reserved.
        free: u64,
        /// Bytes that demotion could free now.
        evictable: u64,
    },
    /// The file system had no space although the budget did: somebody else fills it.
    #[error("the file system is full ({detail}): free some space or lower [store] budget")]
    DiskFull {
        /// What was being written.
        detail: String,
    },
    /// The bytes are not what the digest says.
    #[error("{model} from {origin} is corrupt: expected {expected}, got {actual}")]
    Corrupt {
        /// The model.
        model: ModelKey,
        /// Where the bytes came from.
        origin: OriginName,
        /// The digest or structure that was promised.
        expected: String,
        /// What came instead.
        actual: String,
    },
    /// The object was replaced at its origin faster than it could be read.
    #[error("{model} keeps changing at {origin}: wait until its upload is finished, then ask again")]
    Changed {
        /// The model.
        model: ModelKey,
        /// Where it changes.
        origin: OriginName,
    },
    /// An origin does not answer, or not in time.
    #[error("origin {origin} is unavailable: {detail}")]
    OriginUnavailable {
        /// The origin.
        origin: OriginName,
        /// The last HTTP status, if there was one.
        status: Option<u16>,
        /// What it asked to wait, or what the back-off would wait.
        retry_after: Option<Duration>,
        /// What happened last.
        detail: String,
    },
    /// An origin refuses our credentials, or has no such bucket.
    #[error("origin {origin} refuses: {detail}")]
    OriginDenied {
        /// The origin.
        origin: OriginName,
        /// The HTTP status.
        status: Option<u16>,
        /// What it said, redacted.
        detail: String,
    },
    /// The thing is held: pinned, leased, in flight or loaded.
    #[error("{what} is held: {held_by}")]
    Held {
        /// The model or blob.
        what: String,
        /// Who or what holds it.
        held_by: String,
    },
    /// A named limit of the daemon is reached.
    #[error("{limit} is reached ({max}): try again later, or raise it in the configuration")]
    Busy {
        /// The limit, as the configuration names it.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// Our own disk or store failed.
    #[error("the store failed: {detail}")]
    Store {
        /// What was done, and the system's answer.
        detail: String,
    },
    /// Someone cancelled it.
    #[error("cancelled: {by}")]
    Cancelled {
        /// Who did.
        by: String,
    },
    /// The caller's deadline passed. The fetch may go on.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// The daemon is draining.
    #[error("the daemon is shutting down: ask again after its restart; finished pieces are kept")]
    ShuttingDown,
}

impl Fault {
    /// A stable word for metrics and records.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::NotFound { .. } => "not_found",
            Self::NoRoom { .. } => "no_room",
            Self::NoMemory { .. } => "no_memory",
            Self::DiskFull { .. } => "disk_full",
            Self::Corrupt { .. } => "corrupt",
            Self::Changed { .. } => "changed",
            Self::OriginUnavailable { .. } => "origin_unavailable",
            Self::OriginDenied { .. } => "origin_denied",
            Self::Held { .. } => "held",
            Self::Busy { .. } => "busy",
            Self::Store { .. } => "store",
            Self::Cancelled { .. } => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// A model that no origin and no tier knows.
    #[must_use]
    pub fn unknown_model(model: &ModelKey, hint: impl Into<String>) -> Self {
        Self::NotFound { what: model.to_string(), hint: hint.into() }
    }

    /// A blob that is not on this node.
    #[must_use]
    pub fn unknown_blob(blob: BlobId) -> Self {
        Self::NotFound { what: format!("blob {blob}"), hint: "it is not stored on this node".to_owned() }
    }
}

impl From<BadModelKey> for Fault {
    fn from(bad: BadModelKey) -> Self {
        Self::Invalid { field: "models", reason: bad.to_string() }
    }
}
