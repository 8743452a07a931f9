//! The catalog: an immutable snapshot of which model can be had where. Built from what each origin listed and from
//! manifests, whose digests win. Decides nothing about fetching.

use std::cmp::Ordering;
use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::ids::{BlobId, ModelKey, OriginName, Sha256Digest};
use crate::manifest::{Manifest, ManifestModel};

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

impl Entry {
    /// Adds another origin's sources, if it may have the same content; says whether it did.
    fn join(&mut self, other: Self) -> bool {
        let blake3_differs = matches!((self.blake3, other.blake3), (Some(a), Some(b)) if a != b);
        let sha256_differs = matches!((self.sha256, other.sha256), (Some(a), Some(b)) if a != b);
        if self.bytes != other.bytes || blake3_differs || sha256_differs {
            return false;
        }
        self.blake3 = self.blake3.or(other.blake3);
        self.sha256 = self.sha256.or(other.sha256);
        self.sources.extend(other.sources);
        true
    }
}

/// What one origin has, by model.
fn of_origin(snapshot: &OriginSnapshot, found: &[(OriginName, Listed)]) -> BTreeMap<ModelKey, Entry> {
    let located = found.iter().filter(|(origin, _)| *origin == snapshot.origin).map(|(_, listed)| listed);
    let mut entries = BTreeMap::new();
    let mut by_path = HashMap::new();
    for listed in snapshot.listed.iter().chain(located) {
        by_path.insert(listed.path.as_str(), listed);
        // A listing comes first: a model that is also located by name stays as it was listed.
        entries.entry(listed.model.clone()).or_insert_with(|| Entry {
            bytes: listed.bytes,
            blake3: None,
            sha256: None,
            sources: vec![source(&snapshot.origin, listed)],
        });
    }
    for model in snapshot.manifest.iter().flat_map(|manifest| &manifest.models) {
        let sources = elsewhere(snapshot, model, &by_path);
        if !sources.is_empty() {
            let entry = Entry { bytes: model.size, blake3: model.blake3, sha256: model.sha256, sources };
            entries.insert(model.name.clone(), entry);
            continue;
        }
        match entries.get_mut(&model.name) {
            Some(entry) if entry.bytes == model.size => {
                (entry.blake3, entry.sha256) = (model.blake3, model.sha256);
            }
            Some(entry) => tracing::warn!(
                model = %model.name, origin = %snapshot.origin, manifest = model.size, listed = entry.bytes,
                "the manifest is stale: another size is listed, its digests are not used"
            ),
            None => tracing::debug!(
                model = %model.name, origin = %snapshot.origin, "the manifest names it, the origin does not list it"
            ),
        }
    }
    entries
}

/// The sources that a manifest alone gives a model: its other paths, or its own name at an origin that cannot list. A
/// path that is listed with another size is stale and left out.
fn elsewhere(snapshot: &OriginSnapshot, model: &ManifestModel, by_path: &HashMap<&str, &Listed>) -> Vec<Source> {
    let below = |name: &str| match snapshot.prefix.as_str() {
        "" => name.to_owned(),
        prefix => format!("{prefix}/{name}"),
    };
    let own_name = || below(model.name.as_str());
    let paths: Vec<String> = match model.sources.as_slice() {
        [] if snapshot.listed.is_empty() && !by_path.contains_key(own_name().as_str()) => vec![own_name()],
        sources => sources.iter().map(|path| below(path)).collect(),
    };
    let known = |path: String| match by_path.get(path.as_str()) {
        Some(listed) if listed.bytes == model.size => Some(source(&snapshot.origin, listed)),
        Some(listed) => {
            tracing::warn!(path, manifest = model.size, listed = listed.bytes, "the manifest is stale for this path");
            None
        }
        None => {
            let (origin, validator) = (snapshot.origin.clone(), Validator::default());
            Some(Source { origin, path, bytes: model.size, validator })
        }
    };
    paths.into_iter().filter_map(known).collect()
}

/// A listed object as a source.
fn source(origin: &OriginName, listed: &Listed) -> Source {
    let (path, validator) = (listed.path.clone(), listed.validator.clone());
    Source { origin: origin.clone(), path, bytes: listed.bytes, validator }
}

/// The snapshot: model -> size, digests known, sources.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    entries: BTreeMap<ModelKey, Entry>,
    /// Built by whoever looks first, off the engine's loop: most catalogs are replaced before anybody asks for a name.
    names: OnceLock<Names>,
}

/// Names, to be found by the path below their folder and by the name of their file.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// In the order of their paths, then of their keys.
    by_path: Vec<ModelKey>,
    /// In the order of their files' names, then of their keys.
    by_base: Vec<ModelKey>,
}

impl Names {
    /// An index of distinct names.
    #[must_use]
    pub fn new(models: impl IntoIterator<Item = ModelKey>) -> Self {
        let mut by_path: Vec<ModelKey> = models.into_iter().collect();
        let mut by_base = by_path.clone();
        by_path.sort_unstable_by(|a, b| a.path().cmp(b.path()).then_with(|| a.cmp(b)));
        by_base.sort_unstable_by(|a, b| a.base().cmp(b.base()).then_with(|| a.cmp(b)));
        Self { by_path, by_base }
    }

    /// The models with this path below their folder, in the order of their keys.
    #[must_use]
    pub fn at_path(&self, path: &str) -> &[ModelKey] {
        equal(&self.by_path, |model| model.path().cmp(path))
    }

    /// The models whose file has this name, in the order of their keys.
    #[must_use]
    pub fn at_base(&self, base: &str) -> &[ModelKey] {
        equal(&self.by_base, |model| model.base().cmp(base))
    }

    /// How many names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_path.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_path.is_empty()
    }
}

/// The run of a sorted list that compares equal.
fn equal(sorted: &[ModelKey], compare: impl Fn(&ModelKey) -> Ordering) -> &[ModelKey] {
    let start = sorted.partition_point(|model| compare(model) == Ordering::Less);
    let end = sorted.partition_point(|model| compare(model) != Ordering::Greater);
    &sorted[start..end]
}

impl Catalog {
    /// Builds the catalog from what is known of each origin, the preferred one first, and from models that were found
    /// by name (`found`), which origins that cannot list need.
    ///
    /// Per origin: a manifest's size and digests hold unless the listing gives the object another size; then the
    /// manifest is stale for that model and only the listing counts. A model that only the manifest names is taken at
    /// its word if it gives other paths, or if the origin listed nothing at all (as HTTP origins do). Among origins:
    /// the first that has a model decides its size; another joins it as a further source if its size is the same and
    /// no digest contradicts, and adds the digests that it knows; otherwise it is left out.
    #[must_use]
    pub fn build(snapshots: &[OriginSnapshot], found: &[(OriginName, Listed)]) -> Self {
        let mut entries: BTreeMap<ModelKey, Entry> = BTreeMap::new();
        for snapshot in snapshots {
            for (model, entry) in of_origin(snapshot, found) {
                match entries.entry(model) {
                    Slot::Vacant(slot) => {
                        slot.insert(entry);
                    }
                    Slot::Occupied(mut slot) => {
                        let (model, origin) = (slot.key().clone(), &snapshot.origin);
                        if !slot.get_mut().join(entry) {
                            tracing::debug!(%model, %origin, "left out: it has another content there");
                        }
                    }
                }
            }
        }
        Self { entries, names: OnceLock::new() }
    }

    /// The entry of one model.
    #[must_use]
    pub fn get(&self, model: &ModelKey) -> Option<&Entry> {
        self.entries.get(model)
    }

    /// A catalog of given entries: made up, for a replay or a test.
    pub(crate) fn from_entries(entries: impl IntoIterator<Item = (ModelKey, Entry)>) -> Self {
        Self { entries: entries.into_iter().collect(), names: OnceLock::new() }
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&ModelKey, &Entry)> {
        self.entries.iter()
    }

    /// The entries from a key on, whether it is one or not.
    pub fn from(&self, first: &ModelKey) -> impl Iterator<Item = (&ModelKey, &Entry)> {
        self.entries.range(first..)
    }

    /// Its models by path and by file name. The first call sorts them: 100,000 take some tens of milliseconds.
    #[must_use]
    pub fn names(&self) -> &Names {
        self.names.get_or_init(|| Names::new(self.entries.keys().cloned()))
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
    /// Its prefix, without slashes at its ends: where the paths of its manifest start.
    #[serde(default)]
    pub prefix: String,
    /// What it has.
    pub listed: Vec<Listed>,
    /// Its manifest, if it has one.
    pub manifest: Option<Manifest>,
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
