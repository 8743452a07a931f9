//! An unfinished blob that is being written: its data file and its journal. Knows no digest of the whole and no name; what it
//! holds is believed by nobody until it is committed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::piece::{Cv, Layout};

use super::block::{ALIGN, Block};
use super::error::{StoreError, Wrap};
use super::journal::Journal;
use super::{PartialName, disk};

/// An unfinished blob, open for writing from many threads.
///
/// Closed for good once it is committed or discarded, or the same name is begun again: a straggler's write then fails with
/// [`StoreError::Sealed`] instead of reaching a file that is somebody else's now.
#[derive(Debug)]
pub struct Partial {
    pub(super) file: Arc<OpenFile>,
}

/// What the store and the handle share.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) name: PartialName,
    pub(super) layout: Layout,
    pub(super) path: PathBuf,
    direct: Option<File>,
    refused: AtomicBool,
    cached: File,
    journal: Mutex<Journal>,
    dir_synced: AtomicBool,
    /// Written to while a write is allowed to be under way; true once none is.
    sealed: RwLock<bool>,
}

impl OpenFile {
    pub(super) fn new(
        (name, layout): (PartialName, Layout),
        path: PathBuf,
        direct: bool,
        journal: Journal,
    ) -> Result<Self, StoreError> {
        let cached = disk::open(&path)?;
        let direct = if direct { disk::open_direct(&path, true)? } else { None };
        Ok(Self {
            name,
            layout,
            path,
            direct,
            refused: AtomicBool::new(false),
            cached,
            journal: Mutex::new(journal),
            dir_synced: AtomicBool::new(false),
            sealed: RwLock::new(false),
        })
    }

    /// Ends all writing: waits for writes under way, and refuses those to come. Says whether it was open.
    pub(super) fn seal(&self) -> bool {
        let mut sealed = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut *sealed, true)
    }

    /// Undoes a seal, after a commit that did not come to its end.
    pub(super) fn unseal(&self) {
        *self.sealed.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Its file, read and written through the page cache.
    pub(super) fn cached(&self) -> &File {
        &self.cached
    }

    fn while_open<T>(&self, act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let sealed = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        if *sealed {
            return Err(StoreError::Sealed { name: self.name });
        }
        act()
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        // A journal is a file and a length, and both are whole between any two steps.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partial {
    /// Its name in the store.
    #[must_use]
    pub fn name(&self) -> PartialName {
        self.file.name
    }

    /// How it is cut into pieces.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.file.layout
    }

    /// Writes a block at `offset`, a multiple of 4096. The block's length is a multiple of 4096 too, unless it ends the blob.
    ///
    /// Past the page cache where the file system can: the block is padded with zeros then, and the file cut to its size at
    /// commit. The block's content stays.
    ///
    /// # Errors
    ///
    /// [`StoreError::Misplaced`] for a block off the grid or behind the end, [`StoreError::Sealed`],
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn write(&self, offset: u64, block: &mut Block) -> Result<(), StoreError> {
        let file = &*self.file;
        let (bytes, whole) = (block.len() as u64, file.layout.bytes());
        let end = offset.saturating_add(bytes);
        let on_grid = offset.is_multiple_of(ALIGN as u64) && (end == whole || bytes.is_multiple_of(ALIGN as u64));
        if !on_grid || end > whole {
            return Err(StoreError::Misplaced { offset, bytes, whole });
        }
        if bytes == 0 {
            return Ok(());
        }
        file.while_open(|| {
            if let Some(direct) = file.direct.as_ref().filter(|_| !file.refused.load(Relaxed)) {
                match direct.write_all_at(block.padded(), offset) {
                    Err(error) if disk::refuses_direct(&error) => {
                        tracing::info!(path = %file.path.display(), "direct write refused, writing buffered");
                        file.refused.store(true, Relaxed);
                    }
                    written => return written.wrap("write", &file.path),
                }
            }
            file.cached.write_all_at(block.bytes(), offset).wrap("write", &file.path)
        })
    }

    /// Where its data is, for a tier that keeps its pages as they land. Not for writing.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Writes through the page cache, in the caller's way: for a tier that wants to keep what passes.
    ///
    /// # Errors
    ///
    /// [`StoreError::Sealed`], [`StoreError::Full`], [`StoreError::Io`].
    pub fn through<T>(&self, write: impl FnOnce(&File) -> std::io::Result<T>) -> Result<T, StoreError> {
        let file = &*self.file;
        file.while_open(|| write(&file.cached).wrap("write", &file.path))
    }

    /// Journals a piece whose bytes were all written and whose chaining value is `cv`. Not durable before [`Partial::sync`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Sealed`], [`StoreError::Full`], [`StoreError::Io`].
    pub fn finished(&self, piece: u32, cv: Cv) -> Result<(), StoreError> {
        self.file.while_open(|| self.file.journal().finished(piece, cv))
    }

    /// Journals that a piece is not good after all.
    ///
    /// # Errors
    ///
    /// As [`Partial::finished`].
    pub fn unfinish(&self, piece: u32) -> Result<(), StoreError> {
        self.file.while_open(|| self.file.journal().unfinished(piece))
    }

    /// Journals that no piece is good: for when the whole does not match and nobody knows which part of it is wrong.
    ///
    /// # Errors
    ///
    /// As [`Partial::finished`].
    pub fn reset(&self) -> Result<(), StoreError> {
        self.file.while_open(|| self.file.journal().reset())
    }

    /// Makes what was written and journalled before the call survive power loss. In buffered mode it also lets the
    /// page cache forget it. Writes go on meanwhile. Does nothing once sealed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn sync(&self) -> Result<(), StoreError> {
        let file = &*self.file;
        if *file.sealed.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(());
        }
        let (journal, journal_path) = {
            let journal = file.journal();
            (journal.descriptor()?, journal.path().to_owned())
        };
        file.cached.sync_data().wrap("make durable", &file.path)?;
        journal.sync_data().wrap("make durable", &journal_path)?;
        if !file.dir_synced.load(Relaxed) {
            disk::sync_dir(file.path.parent().unwrap_or(Path::new(".")))?;
            file.dir_synced.store(true, Relaxed);
        }
        if file.direct.is_none() || file.refused.load(Relaxed) {
            disk::drop_pages(&file.cached, 0, disk::aligned(file.layout.bytes()));
        }
        Ok(())
    }
}
