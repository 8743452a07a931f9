//! The manifest: an optional object at an origin that names models with their sizes and digests.

use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, ModelKey, Sha256Digest};

/// The manifest, format 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version: 1.
    pub version: u32,
    /// The models, in the order of their names.
    pub models: Vec<ManifestModel>,
}

/// One model of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestModel {
    /// The model.
    pub name: ModelKey,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<BlobId>,
    /// SHA-256 of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Digest>,
    /// Paths at the same origin, below its prefix, if the object is not at `name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
}
