//! How a blob leaves: removed for good, or withdrawn because pieces of it are bad and shall be fetched again.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::ids::BlobId;
use crate::piece::{Cv, Layout};
use crate::units::MIB;

use super::error::{StoreError, Wrap};
use super::index::{Record, Withdrawal};
use super::journal::Journal;
use super::sidecar::Sidecar;
use super::{PartialName, Store, crash, disk, names};

impl Store {
    /// Removes a blob and all its names, and returns the bytes given back to the disk: none if a file outside of the store
    /// shares its content (an import by hard link).
    ///
    /// Cut short by a crash, it is either done or undone at the next open. A name under which a foreign file stands now stays.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownBlob`]; [`StoreError::Io`]. A full disk is no obstacle.
    pub fn remove(&self, blob: BlobId) -> Result<u64, StoreError> {
        let mut index = self.index();
        let Some(record) = index.tables.blobs.get(&blob) else { return Err(StoreError::UnknownBlob { blob }) };
        for model in index.tables.names_of(blob) {
            names::remove(&self.paths, &index.tables, &model, (&record.identity, self.mark_for(&model)))?;
            crash::point()?;
        }
        let path = self.paths.blob(blob);
        let freed = match disk::look(&path)? {
            Some(found) if found.nlink() == 1 => found.len(),
            _ => 0,
        };
        disk::unlink(&path)?;
        crash::point()?;
        disk::unlink(&self.paths.sidecar(blob))?;
        crash::point()?;
        match index.append(vec![Record::Gone { blob }], false) {
            // Eviction must work on a full disk. The next open finds no file and draws the same conclusion.
            Err(StoreError::Full { .. }) => {
                index.forget(blob);
                Ok(freed)
            }
            appended => appended.map(|()| freed),
        }
    }

    /// Takes a damaged blob out of service: its names go at once, and what is left of it becomes a partial whose journal
    /// names the good pieces. Returns the name under which it resumes.
    ///
    /// Once decided this is finished even by a crash. A file outside of the store that shares its content is left as it is: the
    /// good pieces are copied then.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownBlob`], [`StoreError::Full`], [`StoreError::Io`].
    pub fn withdraw(&self, blob: BlobId, bad: &[u32]) -> Result<PartialName, StoreError> {
        {
            let mut index = self.index();
            if !index.tables.blobs.contains_key(&blob) {
                return Err(StoreError::UnknownBlob { blob });
            }
            index.append(vec![Record::Withdrawn { blob, bad: bad.to_vec() }], true)?;
        }
        crash::point()?;
        self.finish_withdrawal(blob)?;
        Ok(PartialName::of_blob(blob))
    }

    /// Carries out a withdrawal that is decided; does nothing if there is none. May be cut short and repeated at any point.
    pub(super) fn finish_withdrawal(&self, blob: BlobId) -> Result<(), StoreError> {
        let withdrawal = {
            let index = self.index();
            let Some(withdrawal) = index.tables.withdrawn.get(&blob) else { return Ok(()) };
            for model in &withdrawal.names {
                names::remove(&self.paths, &index.tables, model, (&withdrawal.record.identity, self.mark_for(model)))?;
                crash::point()?;
            }
            withdrawal.clone()
        };
        self.demote(&withdrawal)?;
        crash::point()?;
        disk::unlink(&self.paths.sidecar(blob))?;
        self.index().append(vec![Record::Gone { blob }], false)
    }

    /// Turns what is left of a withdrawn blob into a partial. Does nothing if its file is gone: that step is done then.
    fn demote(&self, withdrawal: &Withdrawal) -> Result<(), StoreError> {
        let blob = withdrawal.record.blob;
        let path = self.paths.blob(blob);
        if disk::look(&path)?.is_none() {
            return Ok(());
        }
        let cvs = Sidecar::read(&self.paths, blob, self.piece_bytes).map_or(Vec::new(), |sidecar| sidecar.cvs);
        let good = (0u32..).zip(&cvs).filter(|(piece, _)| !withdrawal.bad.contains(piece)).collect();
        let layout = Layout::with_pieces_of(withdrawal.record.bytes, self.piece_bytes);
        self.become_partial(&path, (PartialName::of_blob(blob), layout), good)
    }

    /// Turns a file in `blobs/` into a partial with these finished pieces, in place of any partial of that name.
    ///
    /// The file itself moves, unless it has other names: then somebody outside may read it or write to it, and the pieces are copied.
    pub(super) fn become_partial(
        &self,
        path: &Path,
        (name, layout): (PartialName, Layout),
        finished: Vec<(u32, &Cv)>,
    ) -> Result<(), StoreError> {
        self.discard(name)?;
        let data = self.paths.data(name);
        let shared = std::fs::symlink_metadata(path).wrap("look at", path)?.nlink() > 1;
        let source = if shared {
            let temp = self.temp();
            let copied = self.copy_pieces(path, &temp, layout, &finished);
            if let Err(error) = copied {
                let _ = disk::unlink(&temp);
                return Err(error);
            }
            temp
        } else {
            path.to_owned()
        };
        crash::point()?;
        let mode = self.paths.file_mode;
        drop(Journal::create(self.paths.journal(name), mode, (name, layout), finished.into_iter())?);
        crash::point()?;
        disk::rename(&source, &data)?;
        crash::point()?;
        if shared {
            disk::unlink(path)?;
        }
        disk::sync_dir(&self.paths.partial())
    }

    fn copy_pieces(&self, from: &Path, to: &Path, layout: Layout, finished: &[(u32, &Cv)]) -> Result<(), StoreError> {
        let source = File::open(from).wrap("open", from)?;
        let target = disk::create(to, self.paths.file_mode)?;
        disk::preallocate(&target, disk::aligned(layout.bytes()), to)?;
        let mut buffer = vec![0; MIB as usize];
        for (piece, _) in finished {
            let range = layout.range(*piece);
            let mut at = range.start;
            while at < range.end {
                let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
                match source.read_at(&mut buffer[..wanted], at).wrap("read", from)? {
                    // The file got shorter since: whoever resumes this finds the piece bad.
                    0 => break,
                    read => {
                        target.write_all_at(&buffer[..read], at).wrap("write", to)?;
                        at += read as u64;
                    }
                }
            }
        }
        target.sync_data().wrap("make durable", to)
    }
}
