//! The RAM tier (L2): files held in the page cache, locked where the kernel allows it, shared by every process on the node.
//!
//! Acts and counts; what is held, in which order and what goes first is the caller's decision. Knows no model, no blob
//! and no store, and never reads a byte of what it holds. All calls block: they belong on blocking threads.
//!
//! # How a file is held
//!
//! A shared read-only map of the file, populated and locked in windows of [`WINDOW_BYTES`]. The lock keeps the pages
//! through memory pressure and through readers that call `posix_fadvise(DONTNEED)` behind themselves, as ComfyUI does.
//! The map is of the inode, so it stays valid when the file is renamed or gets more names. Dropping [`Held`] unlocks at
//! once; a killed process leaves no lock behind, because a lock is part of its address space.
//!
//! - **Reading from cold** is done by `mlock` itself, from [`READERS_MAX`] threads at most, on a map marked `MADV_HUGEPAGE`: each
//!   fault then reads 2 MiB in one go and fills one large folio, whatever the device's read-ahead is set to. 2 GiB from cold into
//!   memory that was not used before, medians of 3, MiB/s and CPU s: **2 threads, marked: 1850, 0.02**; 1 thread, marked: 1530, 0.02;
//!   1 thread, not marked: 1840, 0.02; 2 threads, not marked: 1650, 0.10; `MADV_POPULATE_READ`, then `mlock`: 1470, 0.02;
//!   `posix_fadvise(WILLNEED)` over the window, then `mlock`: 1520, 0.32; the same two windows ahead: 1500, 0.34; `pread` of 2 MiB by
//!   4 threads, then `mlock`: 1060, 0.95. Copying to user space is what makes `pread` lose. In one run on 4 GiB, medians of 3 on a busy
//!   machine, seconds: this room 2.43, `mlock` 2.51, `MADV_POPULATE_READ` 2.59, direct reads by dd 2.78 and fio 2.93, `vmtouch -l` 5.4,
//!   dd 6.5, `vmtouch -t` 7.5. What is resident already is locked at 1600 GB/s, because the folios are large.
//! - **`mlock2(MLOCK_ONFAULT)`** is not used for files: it locks what *this* map faults in, and nothing reads through this map. A
//!   page that only a reader's `pread` brings would stay unlocked.
//! - **Without the right to lock** ([`Mode::Warm`]) the same map is populated but not locked. Being mapped alone keeps pages through
//!   `DONTNEED`; memory pressure takes them, and [`Held::rewarm`] brings them back.
//!
//! # How it is counted
//!
//! Resident bytes come from the kernel, per file, by `cachestat(2)` (`mincore(2)` where that is missing). Locked bytes of the
//! process come from the kernel too ([`Resident::locked_by_kernel`], `VmLck`); per file they come from our books, because
//! `/proc/self/smaps` walks every page (tens of ms a GiB) and a lock does not get lost: what `mlock` granted stays until unlock.

pub mod budget;
mod error;
mod held;
pub mod landing;
pub mod limits;
mod map;
pub mod pressure;
mod ranges;
pub mod relief;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::units::{ByteSize, MIB};

pub use self::error::ResidentError;
pub use self::held::{Held, REWARM_BYTES};

/// Bytes that are populated and locked in one step: 20-40 ms from a disk, so that a stop is obeyed at once, and a multiple of 2 MiB.
pub const WINDOW_BYTES: u64 = 64 * MIB;

/// Most threads that read one file: two keep a disk of 3 GB/s busy, four leave room for a faster one.
pub const READERS_MAX: usize = 4;

/// A lock limit below this holds no model worth the name: the tier is `warm` then.
pub const LOCK_LIMIT_BYTES_MIN: u64 = 256 * MIB;

/// What this process may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Pages are locked.
    Locked {
        /// Most bytes that the kernel locks for this process; `None` if it sets no limit.
        limit: Option<u64>,
    },
    /// Pages are populated and mapped, and read again when they were evicted.
    Warm {
        /// Why they cannot be locked, with the limit.
        why: String,
        /// What to do about it.
        what_to_change: &'static str,
    },
}

impl Mode {
    /// The word for status and metrics: `locked` or `warm`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "locked",
            Self::Warm { .. } => "warm",
        }
    }
}

/// What is where, of one held file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Residency {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of it in the page cache now, counted by the kernel.
    pub resident: u64,
    /// Bytes of it that are locked, by our books. At most `bytes`.
    pub locked: u64,
}

/// The room: what may be locked, and how much is. Shared between threads.
#[derive(Debug)]
pub struct Resident {
    mode: Mode,
    locked: Arc<AtomicU64>,
}

impl Resident {
    /// Finds out what this process may do, by trying it. Never fails: what cannot be locked is kept warm.
    #[must_use]
    pub fn open() -> Self {
        let mode = probe(LOCK_LIMIT_BYTES_MIN);
        match &mode {
            Mode::Locked { limit } => tracing::info!(limit, "the ram tier locks pages"),
            Mode::Warm { why, what_to_change } => {
                tracing::warn!(%why, %what_to_change, "the ram tier cannot lock pages and keeps them warm");
            }
        }
        Self::with(mode)
    }

    fn with(mode: Mode) -> Self {
        Self { mode, locked: Arc::new(AtomicU64::new(0)) }
    }

    /// What this process may do.
    #[must_use]
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Bytes that are locked, by our books, in whole pages.
    #[must_use]
    pub fn locked(&self) -> u64 {
        self.locked.load(Relaxed)
    }

    /// Bytes that the kernel has locked for this process: ours and, if any, others'.
    ///
    /// # Errors
    ///
    /// If `/proc` does not say.
    pub fn locked_by_kernel() -> io::Result<u64> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        limits::field(&status, "VmLck:").ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Maps a file of `bytes` bytes of which nothing is held yet; [`Held::extend`] holds ranges of it. For files that
    /// are still being written: the map stays valid when the file is renamed.
    ///
    /// # Errors
    ///
    /// [`ResidentError::Io`]; [`ResidentError::Short`] if the file has fewer bytes (one that is preallocated has them).
    pub fn begin(&self, path: &Path, bytes: u64) -> Result<Held, ResidentError> {
        Held::new(path, bytes, matches!(self.mode, Mode::Locked { .. }), Arc::clone(&self.locked))
    }

    /// Holds a whole file: reads what is missing at the disk's rate and, in [`Mode::Locked`], locks it. `progress` grows
    /// by the bytes held; `stop` is obeyed between windows.
    ///
    /// # Errors
    ///
    /// [`ResidentError::Stopped`] once `stop` is set, [`ResidentError::Refused`] where the kernel locks no more,
    /// [`ResidentError::Short`], [`ResidentError::Io`]. Nothing of the file is held then.
    pub fn hold(
        &self,
        path: &Path,
        bytes: u64,
        stop: &AtomicBool,
        progress: &AtomicU64,
    ) -> Result<Held, ResidentError> {
        let held = self.begin(path, bytes)?;
        held.fill(stop, progress)?;
        Ok(held)
    }
}

/// Bytes of a file's range that are in the page cache now: `cachestat(2)`, or `mincore(2)` where that is missing.
///
/// Of a file that is neither ours nor writable to us the kernel tells nothing: all of it counts as resident then.
///
/// # Errors
///
/// What the system says.
pub fn resident_bytes(file: &File, range: Range<u64>) -> io::Result<u64> {
    match map::cachestat(file, &range) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => map::Map::new(file, range.end)?.mincore(&range),
        counted => counted,
    }
}

/// The same of a whole file by its path; 0 of one that cannot be looked at, such as one that has just gone.
#[must_use]
pub fn cached_bytes(path: &Path, bytes: u64) -> u64 {
    File::open(path).and_then(|file| resident_bytes(&file, 0..bytes)).unwrap_or(0)
}

/// Tries what may be locked. The limit of the process is believed only if the kernel indeed refuses one page more: a
/// capability may be there or, inside a user namespace, look as if it were. A limit below `worth` is not used.
fn probe(worth: u64) -> Mode {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let beyond = limit.map_or(map::page(), |limit| limit.saturating_add(map::page()));
    let Err(refusal) = map::try_lock(beyond) else { return Mode::Locked { limit: None } };
    match limit {
        Some(limit) if limit >= worth && map::try_lock(map::page()).is_ok() => Mode::Locked { limit: Some(limit) },
        Some(limit) => Mode::Warm {
            why: format!(
                "RLIMIT_MEMLOCK is {} and CAP_IPC_LOCK is missing ({refusal}); at least {} are worth locking",
                ByteSize(limit),
                ByteSize(worth)
            ),
            what_to_change: RAISE,
        },
        None => Mode::Warm { why: format!("the kernel refuses to lock memory ({refusal})"), what_to_change: RAISE },
    }
}

const RAISE: &str = "systemd: LimitMEMLOCK=infinity or AmbientCapabilities=CAP_IPC_LOCK; container: ulimits memlock -1 or cap_add IPC_LOCK; \
                     shell: ulimit -l unlimited";
