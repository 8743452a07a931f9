//! Where things lie in the store. Names only: touches no file.

use std::path::{Path, PathBuf};

use crate::ids::{BlobId, ModelKey};

use super::PartialName;

/// The paths of one store, and the modes of what is made there.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) root: PathBuf,
    pub(super) models: PathBuf,
    pub(super) file_mode: u32,
    pub(super) dir_mode: u32,
}

impl Paths {
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("LOCK")
    }

    /// Everything of this format version.
    pub(super) fn v1(&self) -> PathBuf {
        self.root.join("v1")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.v1().join("index.log")
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.v1().join("blobs")
    }

    pub(super) fn pieces(&self) -> PathBuf {
        self.v1().join("pieces")
    }

    pub(super) fn partial(&self) -> PathBuf {
        self.v1().join("partial")
    }

    pub(super) fn catalog(&self) -> PathBuf {
        self.v1().join("catalog")
    }

    pub(super) fn blob(&self, blob: BlobId) -> PathBuf {
        fanned(self.blobs(), &blob.to_string())
    }

    pub(super) fn sidecar(&self, blob: BlobId) -> PathBuf {
        fanned(self.pieces(), &blob.to_string())
    }

    pub(super) fn data(&self, name: PartialName) -> PathBuf {
        self.partial().join(format!("{name}.data"))
    }

    pub(super) fn journal(&self, name: PartialName) -> PathBuf {
        self.partial().join(format!("{name}.journal"))
    }

    /// Where a name or a file stands before it is moved into place. Cleaned when the store is opened.
    pub(super) fn temp(&self, number: u64) -> PathBuf {
        self.partial().join(format!("{number}.tmp"))
    }

    pub(super) fn model(&self, model: &ModelKey) -> PathBuf {
        self.models.join(model.as_str())
    }
}

/// 256 folders, so that none of them holds more than a few files.
fn fanned(dir: impl AsRef<Path>, hex: &str) -> PathBuf {
    dir.as_ref().join(&hex[..2]).join(hex)
}
