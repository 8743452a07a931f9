//! Reading stored bytes back, past the page cache, to hash them. Decides nothing: says what the pieces hash to.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use memmap2::MmapMut;
use sha2::{Digest, Sha256};

use crate::ids::Sha256Digest;
use crate::piece::{Cv, Layout, PieceHasher};

use super::block::{ALIGN, BLOCK_BYTES, map};
use super::disk;
use super::error::{StoreError, Wrap};

/// Threads that read and hash pieces side by side, a block of memory each. Four fill a fast disk; more would take cores from ComfyUI.
const THREADS: u32 = 4;

/// Blocks that the reader of a whole-file digest may be ahead of the hasher.
const AHEAD_MAX: usize = 2;

/// A file opened for reading, past the page cache where that works.
#[derive(Debug)]
pub(super) struct Reader {
    direct: Option<File>,
    cached: File,
    refused: AtomicBool,
}

impl Reader {
    pub(super) fn open(path: &Path, direct: bool) -> Result<Self, StoreError> {
        let cached = File::open(path).wrap("open", path)?;
        let direct = if direct { disk::open_direct(path, false)? } else { None };
        Ok(Self { direct, cached, refused: AtomicBool::new(false) })
    }

    /// Of a file that is open already, whatever its path leads to by now.
    pub(super) fn of(file: &File, path: &Path, direct: bool) -> Result<Self, StoreError> {
        let cached = file.try_clone().wrap("open", path)?;
        // Where there is no /proc, it is read through the page cache.
        let direct = if direct { disk::open_direct(&disk::path_of(file), false).ok().flatten() } else { None };
        Ok(Self { direct, cached, refused: AtomicBool::new(false) })
    }

    /// Reads up to `bytes` bytes at an aligned offset into the block, and returns how many there were before the file's end.
    fn block(&self, memory: &mut MmapMut, offset: u64, bytes: usize) -> std::io::Result<usize> {
        let direct = self.direct.as_ref().filter(|_| !self.refused.load(Relaxed));
        let Some(direct) = direct else { return read_full(&self.cached, &mut memory[..bytes], offset) };
        match read_full(direct, &mut memory[..bytes.next_multiple_of(ALIGN)], offset) {
            Err(error) if disk::refuses_direct(&error) => {
                self.refused.store(true, Relaxed);
                read_full(&self.cached, &mut memory[..bytes], offset)
            }
            result => result.map(|read| read.min(bytes)),
        }
    }

    /// Whether reads leave pages behind in the page cache.
    fn leaves_pages(&self) -> bool {
        self.direct.is_none() || self.refused.load(Relaxed)
    }
}

/// Reads until the buffer is full or the file ends. A direct read that ends off the grid has met the file's end.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // Behind a short direct read the next offset is off the grid: that was the end of the file.
            Err(error) if filled % ALIGN != 0 && disk::refuses_direct(&error) => break,
            Err(error) => return Err(error),
        }
        if !filled.is_multiple_of(ALIGN) {
            break;
        }
    }
    Ok(filled)
}

/// Takes every block of a piece as it is read: its offset and its bytes.
pub(super) type Tap<'a> = &'a (dyn Fn(u64, &[u8]) -> Result<(), StoreError> + Sync);

/// How a file is read.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) reader: &'a Reader,
    pub(super) path: &'a Path,
    pub(super) layout: Layout,
    /// Set by the caller to end the pass early.
    pub(super) stop: &'a AtomicBool,
    /// Grows by the bytes read.
    pub(super) progress: &'a AtomicU64,
    /// Whether pages must come from the disk and not stay in memory.
    pub(super) past_cache: bool,
    pub(super) tap: Option<Tap<'a>>,
    /// Most bytes a second; one thread reads then.
    pub(super) pace: Option<u64>,
}

impl Pass<'_> {
    /// The chaining value of each of `pieces`, in that order; none for a piece that the file does not hold whole.
    ///
    /// # Errors
    ///
    /// [`StoreError::Stopped`], or the first read that failed.
    pub(super) fn hash(&self, pieces: &[u32]) -> Result<Vec<Option<Cv>>, StoreError> {
        let next = AtomicU32::new(0);
        let results = Mutex::new(vec![None; pieces.len()]);
        let failure = Mutex::new(None);
        let work = || {
            let mut memory = map();
            loop {
                let at = next.fetch_add(1, Relaxed) as usize;
                let Some(&piece) = pieces.get(at) else { break };
                match self.hash_one(piece, &mut memory).inspect(|_| self.rest(piece)) {
                    Ok(cv) => results.lock().unwrap_or_else(PoisonError::into_inner)[at] = cv,
                    Err(error) => {
                        next.store(u32::MAX / 2, Relaxed);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            }
        };
        let most = if self.pace.is_some() { 1 } else { THREADS };
        let threads = most.min(u32::try_from(pieces.len()).unwrap_or(most));
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Waits after a piece so that the pace is kept.
    fn rest(&self, piece: u32) {
        let Some(pace) = self.pace else { return };
        let range = self.layout.range(piece);
        std::thread::sleep(Duration::from_secs_f64((range.end - range.start) as f64 / pace.max(1) as f64));
    }

    fn hash_one(&self, piece: u32, memory: &mut MmapMut) -> Result<Option<Cv>, StoreError> {
        let range = self.layout.range(piece);
        let drop_pages = || {
            if self.past_cache && self.reader.leaves_pages() {
                disk::drop_pages(&self.reader.cached, range.start, range.end - range.start);
            }
        };
        drop_pages();
        let mut hasher = PieceHasher::new(self.layout, piece);
        let mut at = range.start;
        while at < range.end {
            if self.stop.load(Relaxed) {
                return Err(StoreError::Stopped);
            }
            let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            let read = match self.reader.block(memory, at, wanted) {
                Ok(read) => read,
                // The disk cannot give these bytes back: to a reader they are as bad as changed ones.
                Err(error) if self.past_cache && is_media_error(&error) => {
                    tracing::warn!(path = %self.path.display(), offset = at, %error, "piece cannot be read");
                    return Ok(None);
                }
                Err(error) => return Err(StoreError::io("read", self.path, error)),
            };
            if read < wanted {
                return Ok(None);
            }
            if let Some(tap) = self.tap {
                tap(at, &memory[..wanted])?;
            }
            hasher.update(&memory[..wanted]);
            at += wanted as u64;
            self.progress.fetch_add(wanted as u64, Relaxed);
        }
        drop_pages();
        Ok(Some(hasher.finish()))
    }

    /// The SHA-256 of the whole. One thread reads while another hashes.
    ///
    /// # Errors
    ///
    /// [`StoreError::Stopped`], or the first read that failed or came up short.
    pub(super) fn sha256(&self) -> Result<Sha256Digest, StoreError> {
        let (full, filled) = sync_channel::<(MmapMut, usize)>(AHEAD_MAX);
        let (back, empty) = sync_channel::<MmapMut>(AHEAD_MAX + 2);
        for _ in 0..AHEAD_MAX + 1 {
            back.send(map()).expect("the channel has room for all of them");
        }
        std::thread::scope(|scope| {
            let hashed = scope.spawn(move || {
                let mut hasher = Sha256::new();
                for (memory, bytes) in filled {
                    hasher.update(&memory[..bytes]);
                    // The reader may have left already, having read all.
                    let _ = back.send(memory);
                }
                Sha256Digest(hasher.finalize().into())
            });
            let mut at = 0;
            while at < self.layout.bytes() {
                if self.stop.load(Relaxed) {
                    return Err(StoreError::Stopped);
                }
                let wanted = usize::try_from(self.layout.bytes() - at).unwrap_or(usize::MAX).min(BLOCK_BYTES);
                let mut memory = empty.recv().expect("the hasher returns every block");
                let read = self.reader.block(&mut memory, at, wanted).wrap("read", self.path)?;
                if read < wanted {
                    let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                    return Err(StoreError::io("read", self.path, short));
                }
                full.send((memory, wanted)).expect("the hasher takes every block");
                at += wanted as u64;
                self.progress.fetch_add(wanted as u64, Relaxed);
            }
            drop(full);
            Ok(hashed.join().expect("hashing does not panic"))
        })
    }
}

/// Whether the disk itself lost the bytes, as opposed to a failure of the moment.
fn is_media_error(error: &std::io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::IO)
}
