//! One file that is held: its map, the ranges of it that are locked or warm, and what the kernel says of them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::ResidentError;
use super::map::{Map, whole_pages};
use super::ranges::Ranges;
use super::{READERS_MAX, Residency, WINDOW_BYTES};
use crate::units::MIB;

/// Bytes that a fallback reads at once.
const READ_BYTES: usize = 2 * MIB as usize;

/// Bytes of the steps in which evicted bytes are looked for and read again.
pub const REWARM_BYTES: u64 = 2 * MIB;

/// A file that is held in RAM. Dropping it gives everything back at once.
#[derive(Debug)]
#[must_use = "what is dropped is unlocked"]
pub struct Held {
    path: PathBuf,
    file: File,
    map: Map,
    bytes: u64,
    /// Dropped after the map: bytes leave the books once they are unlocked, not before.
    books: Books,
}

/// What is held of a file, and its part in the sum over all files.
#[derive(Debug)]
struct Books {
    lock: bool,
    /// Whole pages that are held.
    ranges: Mutex<Ranges>,
    /// Locked bytes of all held files.
    locked: Arc<AtomicU64>,
}

impl Books {
    fn add(&self, pages: Range<u64>) {
        let new = self.ranges().add(pages);
        if self.lock {
            self.locked.fetch_add(new, Relaxed);
        }
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        // Changed in one step, by code that does not panic.
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        if self.lock {
            self.locked.fetch_sub(self.ranges().bytes(), Relaxed);
        }
    }
}

impl Held {
    pub(super) fn new(path: &Path, bytes: u64, lock: bool, locked: Arc<AtomicU64>) -> Result<Self, ResidentError> {
        let file = File::open(path).map_err(|error| ResidentError::io("open", path, error))?;
        long_enough(path, &file, bytes)?;
        let map = Map::new(&file, bytes).map_err(|error| ResidentError::io("map", path, error))?;
        let books = Books { lock, ranges: Mutex::default(), locked };
        Ok(Self { path: path.to_owned(), file, map, bytes, books })
    }

    /// Whether what is held is locked, and not only warm.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.books.lock
    }

    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Holds a range: what is not in the page cache is read. A range that is held already costs next to nothing. For
    /// a file that is being written, give only what is written: what follows is not read ahead.
    ///
    /// # Errors
    ///
    /// [`ResidentError::Refused`] where the kernel locks no more; [`ResidentError::Short`], [`ResidentError::Io`]. What
    /// was held before stays held.
    pub fn extend(&self, range: Range<u64>) -> Result<(), ResidentError> {
        let range = range.start.min(self.bytes)..range.end.min(self.bytes);
        if range.is_empty() {
            return Ok(());
        }
        self.read_exactly(&range);
        self.take(range)
    }

    /// Holds the whole file, window by window, from several threads.
    pub(super) fn fill(&self, stop: &AtomicBool, progress: &AtomicU64) -> Result<(), ResidentError> {
        let next = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let reader = || {
            while !failed.load(Relaxed) {
                let start = next.fetch_add(WINDOW_BYTES, Relaxed);
                if start >= self.bytes {
                    break;
                }
                if stop.load(Relaxed) {
                    return Err(ResidentError::Stopped);
                }
                let window = start..(start + WINDOW_BYTES).min(self.bytes);
                let bytes = window.end - window.start;
                self.take(window).inspect_err(|_| failed.store(true, Relaxed))?;
                progress.fetch_add(bytes, Relaxed);
            }
            Ok(())
        };
        let windows = usize::try_from(self.bytes.div_ceil(WINDOW_BYTES)).unwrap_or(usize::MAX);
        let readers = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, READERS_MAX).min(windows);
        if readers <= 1 {
            return reader();
        }
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..readers).map(|_| scope.spawn(reader)).collect();
            // All are waited for, and the first failure is the one that is told.
            readers.into_iter().map(|reader| reader.join().expect("a reader does not panic")).fold(Ok(()), Result::and)
        })
    }

    /// Reads again what was evicted, at most `budget` bytes of it, and returns how many that were. A budget below
    /// [`REWARM_BYTES`] may not be enough for anything. What is locked was not evicted: nothing is done then.
    ///
    /// # Errors
    ///
    /// [`ResidentError::Io`], [`ResidentError::Short`].
    pub fn rewarm(&self, budget: u64) -> Result<u64, ResidentError> {
        let mut read = 0;
        if self.books.lock || self.count(&(0..self.bytes))? >= self.bytes {
            return Ok(read);
        }
        let held = self.books.ranges().clone();
        for step in held.iter().flat_map(|range| steps(range, REWARM_BYTES)) {
            let missing = (step.end - step.start).saturating_sub(self.count(&step)?);
            if missing > budget - read {
                break;
            }
            if missing > 0 {
                self.read_exactly(&step);
                self.warm(&step)?;
                read += missing;
            }
        }
        Ok(read)
    }

    /// What of it is where, now.
    ///
    /// # Errors
    ///
    /// [`ResidentError::Io`].
    pub fn residency(&self) -> Result<Residency, ResidentError> {
        let resident = self.count(&(0..self.bytes))?.min(self.bytes);
        let locked = if self.books.lock { self.books.ranges().bytes().min(self.bytes) } else { 0 };
        Ok(Residency { bytes: self.bytes, resident, locked })
    }

    fn count(&self, range: &Range<u64>) -> Result<u64, ResidentError> {
        super::resident_bytes(&self.file, range.clone()).map_err(|error| ResidentError::io("count", &self.path, error))
    }

    /// Locks or warms a range, and books it.
    fn take(&self, range: Range<u64>) -> Result<(), ResidentError> {
        if self.books.lock {
            self.map.lock(&range).map_err(|error| self.refusal(&range, error))?;
        } else {
            self.warm(&range)?;
        }
        self.books.add(whole_pages(&range));
        Ok(())
    }

    fn warm(&self, range: &Range<u64>) -> Result<(), ResidentError> {
        match self.map.populate(range) {
            // Linux before 5.14: in the page cache, but not mapped, so readers that drop it behind themselves do.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.read(range),
            populated => populated.map_err(|error| self.failure("read", error)),
        }
    }

    fn read(&self, range: &Range<u64>) -> Result<(), ResidentError> {
        let mut memory = vec![0; READ_BYTES];
        let mut at = range.start;
        while at < range.end {
            let most = memory.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            match self.file.read_at(&mut memory[..most], at) {
                Ok(0) => return Err(self.failure("read", io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => at += read as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failure("read", error)),
            }
        }
        Ok(())
    }

    /// Asks the kernel for exactly these bytes. A fault would read ahead: beyond the budget, or into what is not written
    /// yet, which leaves zeros in the page cache for the writer to throw out again. What is there already costs nothing.
    fn read_exactly(&self, range: &Range<u64>) {
        for step in steps(range, MIB / 2) {
            // A wish: what is not read here is read by the lock.
            let bytes = std::num::NonZeroU64::new(step.end - step.start);
            let _ = rustix::fs::fadvise(&self.file, step.start, bytes, rustix::fs::Advice::WillNeed);
        }
    }

    /// Why a range could not be locked: `mlock` says the same for a file that was cut and for a limit that is reached.
    fn refusal(&self, range: &Range<u64>, source: io::Error) -> ResidentError {
        match long_enough(&self.path, &self.file, self.bytes) {
            Err(short) => short,
            Ok(()) => ResidentError::Refused {
                bytes: range.end - range.start,
                locked: self.books.locked.load(Relaxed),
                source,
            },
        }
    }

    fn failure(&self, what: &'static str, source: io::Error) -> ResidentError {
        let looked = long_enough(&self.path, &self.file, self.bytes);
        looked.err().unwrap_or_else(|| ResidentError::io(what, &self.path, source))
    }
}

fn long_enough(path: &Path, file: &File, expected: u64) -> Result<(), ResidentError> {
    let found = file.metadata().map_err(|error| ResidentError::io("look at", path, error))?.len();
    if found < expected {
        return Err(ResidentError::Short { path: path.to_owned(), found, expected });
    }
    Ok(())
}

fn steps(range: &Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end).step_by(usize::try_from(step).expect("steps are small")).map(move |at| at..(at + step).min(end))
}
