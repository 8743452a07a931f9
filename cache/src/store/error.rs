//! Why the store could not do something, and what that is to the rest of the daemon. Holds paths and numbers, never payload.

use std::io;
use std::path::{Path, PathBuf};

use crate::fault::Fault;
use crate::ids::{BlobId, ModelKey};
use crate::safetensors::BadSafetensors;

use super::PartialName;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
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
    /// The file system, or a quota on it, has no space left.
    #[error("could not {what} {}: no space left", path.display())]
    Full {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which file.
        path: PathBuf,
    },
    /// Another process has this store open.
    #[error("the store is in use by another process ({holder}): {} is locked", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// `pid 123`, or `pid unknown`.
        holder: String,
    },
    /// The store was written by another version.
    #[error("{} has format {found}, and this version reads format {expected}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: u32,
        /// The version that would have been right.
        expected: u32,
    },
    /// Models must appear on the file system of the store: their names are hard links.
    #[error("{} and {} are on different file systems, but models are hard links into the store: put both on one", models.display(), store.display())]
    OtherFileSystem {
        /// The store.
        store: PathBuf,
        /// The models folder.
        models: PathBuf,
    },
    /// The file system cannot link names to files.
    #[error("{} cannot hold hard links into the store ({source}): choose another file system", models.display())]
    NoHardLinks {
        /// The models folder.
        models: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something that is not ours stands where a name should go. It is never replaced or removed.
    #[error("{} {reason}: it is not ours and stays as it is; move it away, or import it", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What stands there.
        reason: &'static str,
    },
    /// The blob is not stored.
    #[error("blob {blob} is not stored")]
    UnknownBlob {
        /// Which.
        blob: BlobId,
    },
    /// The partial was committed, discarded or begun anew: this handle writes no more.
    #[error("unfinished blob {name} is closed for writing")]
    Sealed {
        /// Which.
        name: PartialName,
    },
    /// A write that does not fit the partial: a mistake of the caller.
    #[error("a block of {bytes} bytes at {offset} does not fit an unfinished blob of {whole} bytes in blocks of 4096")]
    Misplaced {
        /// Where it was to go.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// Bytes of the whole blob.
        whole: u64,
    },
    /// The pieces do not make the blob that they were committed as.
    #[error("the pieces make blob {actual}, not {blob}")]
    WrongDigest {
        /// What was promised.
        blob: BlobId,
        /// What they make.
        actual: BlobId,
    },
    /// The file is no sound safetensors file.
    #[error("{model} is broken: {reason}")]
    Structure {
        /// The model.
        model: ModelKey,
        /// What is wrong with it.
        reason: BadSafetensors,
    },
    /// The file cannot be imported.
    #[error("{} cannot be imported: {reason}", path.display())]
    NotImportable {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A name under which state is kept is no file name.
    #[error("{name:?} is no name for kept state: 1 to 80 bytes")]
    BadStateName {
        /// The name.
        name: String,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

impl StoreError {
    /// Wraps the system's answer; a full disk becomes [`StoreError::Full`].
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { what, path: path.to_owned() },
            _ => Self::Io { what, path: path.to_owned(), source },
        }
    }
}

/// Wraps the error of a system call with what was tried and where.
pub(super) trait Wrap<T> {
    /// `what` is a verb: `could not {what} {path}`.
    fn wrap(self, what: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> Wrap<T> for Result<T, E> {
    fn wrap(self, what: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::io(what, path, error.into()))
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error {
            StoreError::Full { .. } => Self::DiskFull { detail },
            StoreError::UnknownBlob { blob } => Self::unknown_blob(blob),
            StoreError::NotImportable { .. } => Self::Invalid { field: "path", reason: detail },
            StoreError::Stopped => Self::Cancelled { by: "the daemon".to_owned() },
            StoreError::Io { .. }
            | StoreError::Locked { .. }
            | StoreError::Format { .. }
            | StoreError::OtherFileSystem { .. }
            | StoreError::NoHardLinks { .. }
            | StoreError::Foreign { .. }
            | StoreError::Sealed { .. }
            | StoreError::Misplaced { .. }
            | StoreError::WrongDigest { .. }
            | StoreError::Structure { .. }
            | StoreError::BadStateName { .. } => Self::Store { detail },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_full_quota_are_told_apart_from_other_failures() {
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            let error = StoreError::io("write", Path::new("/x"), errno.into());
            assert!(matches!(&error, StoreError::Full { .. }), "{error}");
            assert_eq!(Fault::from(error).kind(), "disk_full");
        }
        let error = StoreError::io("write", Path::new("/x"), rustix::io::Errno::IO.into());
        assert_eq!(Fault::from(error).kind(), "store");
    }
}
