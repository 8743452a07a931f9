//! Why a model could not be held in RAM, and what that is to the rest of the daemon.

use std::io;
use std::path::{Path, PathBuf};

use crate::fault::Fault;
use crate::units::ByteSize;

/// Why a model could not be held in RAM. What was locked on the way is unlocked.
#[derive(Debug, thiserror::Error)]
pub enum ResidentError {
    /// A system call failed.
    #[error("could not {what} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is shorter than it should be: somebody cut it.
    #[error("{} has {found} bytes, and {expected} were to be held", path.display())]
    Short {
        /// Which.
        path: PathBuf,
        /// Bytes that it has.
        found: u64,
        /// Bytes that were to be held.
        expected: u64,
    },
    /// The kernel locks no more for this process.
    #[error(
        "could not lock {} on top of {}: {source}; raise RLIMIT_MEMLOCK (LimitMEMLOCK=) or give CAP_IPC_LOCK",
        ByteSize(*bytes), ByteSize(*locked)
    )]
    Refused {
        /// Bytes that were to be locked.
        bytes: u64,
        /// Bytes that were locked by then.
        locked: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

impl ResidentError {
    /// Wraps the system's answer with what was tried and where.
    pub(super) fn io(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { what, path: path.to_owned(), source: source.into() }
    }
}

impl From<ResidentError> for Fault {
    fn from(error: ResidentError) -> Self {
        match error {
            ResidentError::Refused { locked, .. } => Self::Busy { limit: "RLIMIT_MEMLOCK", max: locked },
            ResidentError::Stopped => Self::Cancelled { by: "the daemon".to_owned() },
            ResidentError::Io { .. } | ResidentError::Short { .. } => Self::Store { detail: error.to_string() },
        }
    }
}
