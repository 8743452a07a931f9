//! The store (L3): whole verified blobs with their names, unfinished blobs with their journals, and the index of it all.
//!
//! The only place of the engine that touches the file system. Knows nothing of origins, flights or eviction. All calls
//! block: they belong on blocking threads.
//!
//! # Layout
//!
//! ```text
//! LOCK                        held while open; a second opener is refused
//! v1/index.log                what is stored, named, leased, used and has happened
//! v1/blobs/ab/<64 hex>        whole verified blobs
//! v1/pieces/ab/<64 hex>       the chaining values of their pieces
//! v1/partial/<64 hex>.data    unfinished blobs, preallocated
//! v1/partial/<64 hex>.journal their finished pieces
//! v1/catalog/<name>.json      what others keep here, whole or not at all
//! models/<folder>/<path>      names: hard links to blobs; or marks, dangling links for what could be had
//! ```
//!
//! # What survives a crash, and what that costs
//!
//! - **A finished piece** is one line appended to the journal, with no sync. [`Partial::sync`] (about once a second) makes data
//!   and journal durable. No order between the two is needed: at the next [`Store::begin`] every journalled piece is read
//!   again and believed only if its chaining value matches.
//! - **A commit** cuts the data to size and syncs it, then appends to the index and syncs that: two syncs, and the second is the commit.
//!   Only then the file moves to `blobs/` and gets its names, unsynced: the index says what is meant, and the next open
//!   finishes what is missing. A visible name is thus always a link to a blob that was whole, verified and durable before.
//! - **A commit cut short** before that is still a partial with all its pieces; after that it is finished at the next open.
//! - **A sidecar** is never synced: it can be computed again, and is believed only if it merges into the blob's digest.
//! - **A withdrawal** is decided by a synced record, then carried out: names first, then the file goes back to `partial/` with a journal
//!   of its good pieces. The next open finishes it.
//! - **A removal** takes names first, then the file, then appends the record. Cut short, it is either done or undone.
//! - **A file that is not ours** is never removed, replaced or written to. A blob that shares its inode with a file outside
//!   (an import by hard link) is never repaired in place: its good pieces are copied.

mod adopt;
mod begin;
mod block;
mod check;
mod classify;
mod commit;
mod crash;
mod depart;
mod disk;
mod error;
mod find;
mod heal;
pub mod hostile;
mod import;
mod index;
mod journal;
mod marks;
mod names;
mod open;
mod partial;
mod paths;
mod read;
mod record;
mod sidecar;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::catalog::Source;
use crate::clock::Wall;
use crate::engine::view::{LeaseView, Occurrence, Trust};
use crate::ids::{BlobId, LeaseId, ModelKey, Sha256Digest};

pub use self::adopt::Adopted;
pub use self::block::{BLOCK_BYTES, Block, BlockPool};
pub use self::check::Inspection;
pub use self::commit::Commit;
pub use self::error::StoreError;
pub use self::find::FoundFile;
pub use self::import::Found;
pub use self::marks::{MARKS_MAX, Marked, count_marks, remove_marks};
pub use self::partial::Partial;

use self::error::Wrap;
use self::index::{Index, Record};
use self::paths::Paths;

/// The store. Open in one process at a time; shared between threads.
#[derive(Debug)]
pub struct Store {
    paths: Paths,
    direct: bool,
    piece_bytes: u64,
    index: Mutex<Index>,
    /// Partials that a handle may still write to.
    open: Mutex<HashMap<PartialName, Weak<partial::OpenFile>>>,
    temps: AtomicU64,
    /// Models that have a mark while they are not stored; none if marks are off.
    marks: Mutex<Option<BTreeSet<ModelKey>>>,
    /// Held until the process ends or the store is dropped.
    _lock: File,
}

/// What was found when the store was opened, after everything healed.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Whole blobs. One without a name is possible.
    pub blobs: Vec<StoredBlob>,
    /// Their names.
    pub links: Vec<StoredLink>,
    /// Unfinished blobs.
    pub partials: Vec<StoredPartial>,
    /// Leases that were not ended; expired ones too.
    pub leases: Vec<LeaseView>,
    /// The last events, oldest first.
    pub events: Vec<Occurrence>,
    /// The first lease number that was never used.
    pub next_lease: u64,
    /// The first event number that was never used.
    pub next_seq: u64,
}

/// A whole blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlob {
    /// Its content.
    pub blob: BlobId,
    /// Its size.
    pub bytes: u64,
    /// How its content was checked when it came.
    pub trust: Trust,
    /// Its SHA-256, if it was computed.
    pub sha256: Option<Sha256Digest>,
    /// When it was last used, as far as that was noted.
    pub last_used: Wall,
}

/// A name of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLink {
    /// The name.
    pub model: ModelKey,
    /// What it names.
    pub blob: BlobId,
    /// Where it came from, if from an origin.
    pub source: Option<Source>,
}

/// An unfinished blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPartial {
    /// Its name.
    pub name: PartialName,
    /// Bytes that the whole will have. All of them count against the disk: they are preallocated.
    pub bytes: u64,
    /// When it was last written to.
    pub touched: Wall,
}

/// The space of the store's file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What this process may still take: less than what is unused where some is kept for root.
    pub free: u64,
}

/// The name of an unfinished blob: its digest if that is known, or else a digest of where it comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartialName(pub [u8; 32]);

impl PartialName {
    /// The name of an unfinished blob whose digest is known.
    #[must_use]
    pub fn of_blob(blob: BlobId) -> Self {
        Self(blob.0)
    }

    /// The name of an unfinished blob of which only the source is known, in exactly this state of the object there.
    #[must_use]
    pub fn of_source(source: &Source) -> Self {
        // The context keeps these apart from every digest of content.
        let mut hasher = blake3::Hasher::new_derive_key("tierd 2026-11-21 unfinished blob of a source v1");
        let json = serde_json::to_vec(source).expect("a source holds only strings and numbers");
        hasher.update(&json);
        Self(*hasher.finalize().as_bytes())
    }

    /// Reads 64 hex digits.
    fn from_hex(text: &str) -> Option<Self> {
        BlobId::from_hex(text).map(|BlobId(bytes)| Self(bytes))
    }
}

impl fmt::Display for PartialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        BlobId(self.0).fmt(f)
    }
}

impl fmt::Debug for PartialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        BlobId(self.0).fmt(f)
    }
}

impl Serialize for PartialName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        BlobId(self.0).serialize(s)
    }
}

impl<'de> Deserialize<'de> for PartialName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        BlobId::deserialize(d).map(|BlobId(bytes)| Self(bytes))
    }
}

impl Store {
    /// How data is written and scrubbed here: `direct` past the page cache, or `buffered` through it.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        if self.direct { "direct" } else { "buffered" }
    }

    /// The space of the file system now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn space(&self) -> Result<Space, StoreError> {
        let answer = rustix::fs::statvfs(&self.paths.root).wrap("ask for the space of", &self.paths.root)?;
        Ok(Space { total: answer.f_blocks * answer.f_frsize, free: answer.f_bavail * answer.f_frsize })
    }

    /// Where a blob's bytes are, for a tier that keeps its pages. Not for writing.
    #[must_use]
    pub fn blob_path(&self, blob: BlobId) -> PathBuf {
        self.paths.blob(blob)
    }

    /// Where a model appears, or would.
    #[must_use]
    pub fn model_path(&self, model: &ModelKey) -> PathBuf {
        self.paths.model(model)
    }

    /// Notes when blobs were used. Unknown blobs are passed over. Not synced: after power loss an older use may count.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn note_uses(&self, uses: &[(BlobId, Wall)]) -> Result<(), StoreError> {
        let mut index = self.index();
        let known = uses.iter().filter(|(blob, _)| index.tables.blobs.contains_key(blob));
        let records = known.map(|&(blob, at)| Record::Used { blob, at }).collect();
        index.append(records, false)
    }

    /// Keeps a lease, durably: a pin that was promised holds after power loss too. Replaces one of the same number.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn put_lease(&self, lease: &LeaseView) -> Result<(), StoreError> {
        self.index().append(vec![Record::Lease(lease.clone())], true)
    }

    /// Forgets a lease. Not synced: a lease that comes back after power loss expires by itself.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn end_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.index().append(vec![Record::LeaseEnd { lease }], false)
    }

    /// Keeps an event. Not synced.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn record(&self, event: &Occurrence) -> Result<(), StoreError> {
        self.index().append(vec![Record::Event(event.clone())], false)
    }

    fn inventory(&self, partials: Vec<StoredPartial>) -> Inventory {
        let index = self.index();
        let tables = &index.tables;
        let blobs = tables.blobs.values().map(|record| StoredBlob {
            blob: record.blob,
            bytes: record.bytes,
            trust: record.trust,
            sha256: record.sha256,
            last_used: record.last_used,
        });
        let links = tables.links.iter().map(|(model, link)| StoredLink {
            model: model.clone(),
            blob: link.blob,
            source: link.source.clone(),
        });
        Inventory {
            blobs: blobs.collect(),
            links: links.collect(),
            partials,
            leases: tables.leases.values().cloned().collect(),
            events: tables.events.iter().cloned().collect(),
            next_lease: tables.next_lease,
            next_seq: tables.next_seq,
        }
    }

    /// The index. Held while names are changed too, so that what is meant and what stands change together.
    fn index(&self) -> MutexGuard<'_, Index> {
        // Tables change only after their records are written, by code that does not panic half way.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_partials(&self) -> MutexGuard<'_, HashMap<PartialName, Weak<partial::OpenFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted_marks(&self) -> MutexGuard<'_, Option<BTreeSet<ModelKey>>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path that nothing uses, on the same file system as blobs and models.
    fn temp(&self) -> PathBuf {
        self.paths.temp(self.temps.fetch_add(1, Relaxed))
    }
}
