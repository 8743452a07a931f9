//! How an unfinished blob begins, or goes on where it was: nothing that was journalled is believed before it was read again.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::piece::{Cv, Layout};

use super::error::{StoreError, Wrap};
use super::journal::{self, Journal, Told};
use super::partial::OpenFile;
use super::read::{Pass, Reader};
use super::{Partial, PartialName, Store, disk};

impl Store {
    /// Begins an unfinished blob of `bytes` bytes, or resumes it, and returns its finished pieces.
    ///
    /// Every piece that the journal names is read back and hashed; one that does not match is not finished. A partial of
    /// another size is discarded and begun anew. A handle from an earlier begin of the same name is closed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] if the space cannot be allocated (nothing is left behind then); [`StoreError::Stopped`]
    /// once `stop` is set; [`StoreError::Io`].
    pub fn begin(
        &self,
        name: PartialName,
        bytes: u64,
        stop: &AtomicBool,
    ) -> Result<(Partial, Vec<(u32, Cv)>), StoreError> {
        self.close(name);
        let layout = Layout::with_pieces_of(bytes, self.piece_bytes);
        let told = journal::read(&self.paths.journal(name)).filter(|told| told.name == name && told.layout == layout);
        let (open, finished) = match told {
            // A file that somebody shares is never written to.
            Some(told) if disk::look(&self.paths.data(name))?.is_some_and(|found| found.nlink() == 1) => {
                self.resume(told, stop)?
            }
            _ => (self.begin_anew(name, layout)?, Vec::new()),
        };
        let file = Arc::new(open);
        let mut open_partials = self.open_partials();
        open_partials.retain(|_, open| open.strong_count() > 0);
        open_partials.insert(name, Arc::downgrade(&file));
        Ok((Partial { file }, finished))
    }

    /// Removes an unfinished blob, and returns the bytes that its file had. Fine if there is none. Open handles are closed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn discard(&self, name: PartialName) -> Result<u64, StoreError> {
        self.close(name);
        let data = self.paths.data(name);
        let bytes = disk::look(&data)?.map_or(0, |found| found.len());
        disk::unlink(&data)?;
        disk::unlink(&self.paths.journal(name))?;
        Ok(bytes)
    }

    /// Ends all writing through earlier handles of a partial.
    pub(super) fn close(&self, name: PartialName) {
        let open = self.open_partials().remove(&name).and_then(|open| open.upgrade());
        if let Some(open) = open {
            open.seal();
        }
    }

    fn begin_anew(&self, name: PartialName, layout: Layout) -> Result<OpenFile, StoreError> {
        let data = self.paths.data(name);
        disk::unlink(&data)?;
        disk::unlink(&self.paths.journal(name))?;
        let made = self.make(name, layout);
        if made.is_err() {
            // Half a file helps nobody, least of all on a full disk. What cannot be removed now is found at the next open.
            let _ = disk::unlink(&data);
            let _ = disk::unlink(&self.paths.journal(name));
        }
        made
    }

    fn make(&self, name: PartialName, layout: Layout) -> Result<OpenFile, StoreError> {
        let data = self.paths.data(name);
        let file = disk::create(&data, self.paths.file_mode)?;
        disk::preallocate(&file, disk::aligned(layout.bytes()), &data)?;
        let journal_path = self.paths.journal(name);
        let journal = Journal::create(journal_path, self.paths.file_mode, (name, layout), std::iter::empty())?;
        OpenFile::new((name, layout), data, self.direct, journal)
    }

    fn resume(&self, told: Told, stop: &AtomicBool) -> Result<(OpenFile, Vec<(u32, Cv)>), StoreError> {
        let (name, layout) = (told.name, told.layout);
        let data = self.paths.data(name);
        // A commit cut short left the file at its exact size; a torn one may be shorter.
        let file = disk::open(&data)?;
        if file.metadata().wrap("look at", &data)?.len() != disk::aligned(layout.bytes()) {
            disk::preallocate(&file, disk::aligned(layout.bytes()), &data)?;
            file.set_len(disk::aligned(layout.bytes())).wrap("resize", &data)?;
        }
        let pieces: Vec<u32> = told.finished.keys().copied().collect();
        let reader = Reader::open(&data, self.direct)?;
        let progress = AtomicU64::new(0);
        let (path, past_cache) = (&*data, true);
        let pass = Pass { reader: &reader, path, layout, stop, progress: &progress, past_cache, tap: None, pace: None };
        let hashed = pass.hash(&pieces)?;
        let mut journal = Journal::reopen(self.paths.journal(name), &told)?;
        let mut finished = Vec::new();
        for (piece, hashed) in pieces.into_iter().zip(hashed) {
            let told = told.finished[&piece];
            if hashed == Some(told) {
                finished.push((piece, told));
            } else {
                journal.unfinished(piece)?;
            }
        }
        let journalled = told.finished.len();
        tracing::info!(partial = %name, journalled, good = finished.len(), "unfinished blob resumed");
        Ok((OpenFile::new((name, layout), data, self.direct, journal)?, finished))
    }
}
