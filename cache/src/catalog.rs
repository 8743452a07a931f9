//! The catalog: an immutable snapshot of which model can be had where. Built from what each origin listed and from
//! manifests, whose digests win. Decides nothing about fetching.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::ids::{BlobId, ModelKey, OriginName, Sha256Digest};

/// What identifies one state of an object at its origin. A read is only good while this holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Validator {
    /// The ETag as sent, quotes included.
    pub etag: Option<String>,
    /// Last-Modified, milliseconds since 1970 UTC.
    pub modified_ms: Option<i64>,
}

/// Where one origin has one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The origin.
    pub origin: OriginName,
    /// Path as the origin spells it, prefix included.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// Its identity there.
    pub validator: Validator,
}

/// One object that an origin listed (or located) under a model's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The model.
    pub model: ModelKey,
    /// Path as the origin spells it, prefix included.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// Its identity.
    pub validator: Validator,
}

/// What the catalog knows of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3, if a manifest has it.
    pub blake3: Option<BlobId>,
    /// SHA-256, if a manifest has it.
    pub sha256: Option<Sha256Digest>,
    /// Where it is, the preferred origin first. All of them have the same size, and the same digest if one is known.
    pub sources: Vec<Source>,
}

/// The snapshot: model -> size, digests known, sources.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    entries: BTreeMap<ModelKey, Entry>,
}

impl Catalog {
    /// The entry of one model.
    #[must_use]
    pub fn get(&self, model: &ModelKey) -> Option<&Entry> {
        self.entries.get(model)
    }

    /// A catalog of given entries.
    #[cfg(test)]
    pub(crate) fn from_entries(entries: impl IntoIterator<Item = (ModelKey, Entry)>) -> Self {
        Self { entries: entries.into_iter().collect() }
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&ModelKey, &Entry)> {
        self.entries.iter()
    }

    /// How many models.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no origin has anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What is known of one origin since it was last listed; kept across restarts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OriginSnapshot {
    /// The origin.
    pub origin: OriginName,
    /// When it was listed.
    pub at: Wall,
    /// What it has.
    pub listed: Vec<Listed>,
    /// Its manifest, if it has one.
    pub manifest: Option<crate::manifest::Manifest>,
}
