//! What the page cache has of stored files that the RAM tier does not hold. Only the kernel knows: a model that ComfyUI has just
//! read, or that was just let go, is locked at once, and one that is on the disk alone is read first, a hundred times slower. Asked
//! before an estimate that depends on it, never by the loop.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::ids::BlobId;
use crate::resident::cached_bytes;
use crate::store::Store;

/// How long an answer counts as new: a scheduler that asks a thousand times a second costs one look.
const FRESH: Duration = Duration::from_secs(1);
/// How long an answer is believed where nobody looks: pages that nobody uses go when others need the memory.
const BELIEVED: Duration = Duration::from_secs(10);
/// Files that are remembered; what is older than [`BELIEVED`] goes first.
const FILES_MAX: usize = 4096;

/// The last answers, by blob. Shared by whoever estimates.
#[derive(Debug)]
pub struct PageCache {
    seen: Mutex<HashMap<BlobId, (Tick, u64)>>,
    clock: Clock,
    /// Gone once the engine has ended: nothing is looked at then.
    store: Weak<Store>,
}

impl Default for PageCache {
    /// Knows of nothing and looks at nothing.
    fn default() -> Self {
        Self::of(Weak::new(), Clock::start())
    }
}

impl PageCache {
    pub(crate) fn of(store: Weak<Store>, clock: Clock) -> Self {
        Self { seen: Mutex::default(), store, clock }
    }

    /// Bytes of a blob that were in the page cache a moment ago; 0 if nobody looked.
    pub(crate) fn has(&self, blob: BlobId) -> u64 {
        let now = self.clock.now();
        self.seen().get(&blob).filter(|(at, _)| now.since(*at) < BELIEVED).map_or(0, |(_, bytes)| *bytes)
    }

    /// Asks the kernel about files of so many bytes, unless it was asked just now: 0.1 ms a GiB that is there, microseconds for what
    /// is not.
    pub(crate) async fn look(&self, blobs: impl Iterator<Item = (BlobId, u64)>) {
        let now = self.clock.now();
        let stale: Vec<(BlobId, u64)> = {
            let seen = self.seen();
            blobs.filter(|(blob, _)| seen.get(blob).is_none_or(|(at, _)| now.since(*at) >= FRESH)).collect()
        };
        let Some(store) = self.store.upgrade().filter(|_| !stale.is_empty()) else { return };
        let counted = tokio::task::spawn_blocking(move || {
            let count = |(blob, bytes)| (blob, cached_bytes(&store.blob_path(blob), bytes));
            stale.into_iter().map(count).collect::<Vec<_>>()
        });
        let Ok(counted) = counted.await else { return };
        let now = self.clock.now();
        let mut seen = self.seen();
        if seen.len() + counted.len() > FILES_MAX {
            seen.retain(|_, (at, _)| now.since(*at) < BELIEVED);
        }
        for (blob, bytes) in counted.into_iter().take(FILES_MAX.saturating_sub(seen.len())) {
            seen.insert(blob, (now, bytes));
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<BlobId, (Tick, u64)>> {
        // Every entry is whole whatever panicked while it was held.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
