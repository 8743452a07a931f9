//! How a file that lies on this node becomes a blob: linked if possible, cloned or copied if not, and hashed either way.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::clock::Wall;
use crate::engine::view::{ImportHow, Trust};
use crate::ids::{BlobId, ModelKey};
use crate::piece::{Cv, Layout, root};

use super::disk::Identity;
use super::error::{StoreError, Wrap};
use super::names::Standing;
use super::read::{Pass, Reader, Tap};
use super::{Commit, PartialName, Store, StoredLink, crash, disk, names};

/// What came of an adopted file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// Its content.
    pub blob: BlobId,
    /// Its size.
    pub bytes: u64,
    /// How its bytes came in.
    pub how: ImportHow,
}

/// A file of somebody else, open: its path may lead elsewhere by now.
#[derive(Clone, Copy)]
struct Theirs<'a> {
    path: &'a Path,
    file: &'a File,
    /// As it was when it was opened.
    before: &'a Metadata,
}

/// Whose watch an adoption is under.
#[derive(Clone, Copy)]
struct Watch<'a> {
    stop: &'a AtomicBool,
    progress: &'a AtomicU64,
}

impl Store {
    /// Makes a file a blob named `model`. The file itself stays where it is, and is not changed.
    ///
    /// A hard link shares the file: if somebody writes to it later, [`Store::inspect`] says so. A file that stands under
    /// its model's name already is adopted in place. `progress` grows by the bytes read.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotImportable`] for links, folders, empty files, files that change meanwhile, and names that stand for
    /// other content; [`StoreError::Foreign`] if another file stands under the name; [`StoreError::Stopped`];
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn adopt(
        &self,
        found_file: &Path,
        model: &ModelKey,
        now: Wall,
        stop: &AtomicBool,
        progress: &AtomicU64,
    ) -> Result<Adopted, StoreError> {
        let refuse = |reason| StoreError::NotImportable { path: found_file.to_owned(), reason };
        let seen = fs::symlink_metadata(found_file).wrap("look at", found_file)?;
        if !seen.is_file() || seen.len() == 0 {
            return Err(refuse("only regular files with content are models"));
        }
        // From here on it is this file, whatever its path leads to meanwhile.
        let file = disk::open_theirs(found_file)?;
        let before = file.metadata().wrap("look at", found_file)?;
        if !same_file(&seen, &before) || !before.is_file() {
            return Err(refuse("it was replaced while it was being looked at"));
        }
        let in_place = disk::look(&self.paths.model(model))?.is_some_and(|name| same_file(&name, &before));
        if !in_place {
            names::refuse_foreign(&self.paths, &self.index().tables, model)?;
        }
        if let Some(blob) = self.is_ours(&before) {
            self.refuse_other_content(model, blob, found_file)?;
            self.name_all(&[StoredLink { model: model.clone(), blob, source: None }])?;
            return Ok(Adopted { blob, bytes: before.len(), how: ImportHow::Known });
        }
        let temp = self.temp();
        let theirs = Theirs { path: found_file, file: &file, before: &before };
        let adopted = self.adopt_through(&temp, theirs, model, now, Watch { stop, progress });
        // Gone already if all went well.
        let _ = disk::unlink(&temp);
        adopted
    }

    fn adopt_through(
        &self,
        temp: &Path,
        theirs: Theirs<'_>,
        model: &ModelKey,
        now: Wall,
        watch: Watch<'_>,
    ) -> Result<Adopted, StoreError> {
        let Theirs { path: source, file, before } = theirs;
        let layout = Layout::with_pieces_of(before.len(), self.piece_bytes);
        let (how, cvs) = self.take(temp, theirs, layout, watch)?;
        let after = file.metadata().wrap("look at", source)?;
        if Identity::of(&after) != Identity::of(before) {
            let reason = "it changed while it was being read";
            return Err(StoreError::NotImportable { path: source.to_owned(), reason });
        }
        let (blob, bytes) = (root(layout, &cvs), layout.bytes());
        self.refuse_other_content(model, blob, source)?;
        self.finish_withdrawal(blob)?;
        let link = StoredLink { model: model.clone(), blob, source: None };
        let known = self.has_file(blob)?;
        if !known {
            File::open(temp).and_then(|file| file.sync_all()).wrap("make durable", temp)?;
            let name = PartialName::of_blob(blob);
            self.discard(name)?;
            disk::rename(temp, &self.paths.data(name))?;
            crash::point()?;
            let commit = Commit { blob, cvs, trust: Trust::Imported, sha256: None, links: Vec::new(), now };
            self.publish(name, layout, &commit)?;
        }
        self.name_adopted(&link, &after)?;
        Ok(Adopted { blob, bytes, how: if known { ImportHow::Known } else { how } })
    }

    /// Brings the bytes to `temp` in the cheapest way that works, and hashes them.
    fn take(
        &self,
        temp: &Path,
        Theirs { path: source, file, before }: Theirs<'_>,
        layout: Layout,
        watch: Watch<'_>,
    ) -> Result<(ImportHow, Vec<Cv>), StoreError> {
        // Fails across file systems, for too many links, and for other people's files where the kernel protects those.
        if fs::hard_link(source, temp).is_ok() {
            let linked = fs::symlink_metadata(temp).wrap("look at", temp)?;
            if !same_file(&linked, before) {
                let reason = "it was replaced while it was being read";
                return Err(StoreError::NotImportable { path: source.to_owned(), reason });
            }
            let reader = Reader::open(temp, self.direct)?;
            return Ok((ImportHow::HardLink, hash_file((&reader, source), layout, watch, None)?));
        }
        let to = disk::create(temp, self.paths.file_mode)?;
        if rustix::fs::ioctl_ficlone(&to, file).is_ok() {
            let reader = Reader::open(temp, self.direct)?;
            return Ok((ImportHow::Reflink, hash_file((&reader, source), layout, watch, None)?));
        }
        disk::preallocate(&to, layout.bytes(), temp)?;
        let write = |offset: u64, bytes: &[u8]| to.write_all_at(bytes, offset).wrap("write", temp);
        let reader = Reader::of(file, source, self.direct)?;
        Ok((ImportHow::Copy, hash_file((&reader, source), layout, watch, Some(&write))?))
    }

    /// Gives the blob its name. If the adopted file itself stands there, its place is taken: the content was just found to be the same.
    fn name_adopted(&self, link: &StoredLink, adopted: &Metadata) -> Result<(), StoreError> {
        let path: PathBuf = self.paths.model(&link.model);
        {
            let index = self.index();
            let foreign = matches!(names::standing(&self.paths, &index.tables, &link.model)?, Standing::Foreign(_));
            if foreign && disk::look(&path)?.is_some_and(|found| Identity::of(&found) == Identity::of(adopted)) {
                names::replace(&self.paths, &path, link.blob, &self.temp())?;
            }
        }
        self.name_all(std::slice::from_ref(link))
    }

    /// The blob that this file is already, unchanged since it was stored.
    fn is_ours(&self, found: &Metadata) -> Option<BlobId> {
        let index = self.index();
        let identity = Identity::of(found);
        let record = index.tables.blobs.values().find(|record| record.identity == identity)?;
        let file = disk::look(&self.paths.blob(record.blob)).ok()??;
        same_file(&file, found).then_some(record.blob)
    }

    fn refuse_other_content(&self, model: &ModelKey, blob: BlobId, path: &Path) -> Result<(), StoreError> {
        let other = self.index().tables.links.get(model).is_some_and(|link| link.blob != blob);
        if other {
            let reason = "its name stands for other content already: evict that first";
            return Err(StoreError::NotImportable { path: path.to_owned(), reason });
        }
        Ok(())
    }
}

fn hash_file(
    (reader, path): (&Reader, &Path),
    layout: Layout,
    Watch { stop, progress }: Watch<'_>,
    tap: Option<Tap<'_>>,
) -> Result<Vec<Cv>, StoreError> {
    let pieces: Vec<u32> = (0..layout.pieces()).collect();
    let hashed = Pass { reader, path, layout, stop, progress, past_cache: false, tap, pace: None }.hash(&pieces)?;
    let reason = "it got shorter while it was being read";
    let short = StoreError::NotImportable { path: path.to_owned(), reason };
    hashed.into_iter().collect::<Option<Vec<Cv>>>().ok_or(short)
}

fn same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}
