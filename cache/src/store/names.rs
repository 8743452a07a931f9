//! Names: the hard links under which models appear. Makes, replaces and removes only links to blobs of this store; follows no
//! symbolic link below the models folder.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::ids::{BlobId, ModelKey};

use super::disk::{self, Identity};
use super::error::{StoreError, Wrap};
use super::index::Tables;
use super::marks;
use super::paths::Paths;

/// What stands under a model's name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    Nothing,
    /// A link to this blob's file.
    Blob(BlobId),
    /// Nothing but a mark of ours: the model could be had.
    Mark,
    /// Something that is not ours, and what it is.
    Foreign(&'static str),
}

/// Says what stands under a name, and refuses a path that leads through something that is no folder.
pub(super) fn standing(paths: &Paths, tables: &Tables, model: &ModelKey) -> Result<Standing, StoreError> {
    let mut path = paths.models.clone();
    let mut parts = model.as_str().split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        let Some(found) = disk::look(&path)? else { return Ok(Standing::Nothing) };
        let is_last = parts.peek().is_none();
        match found.file_type() {
            kind if kind.is_symlink() && is_last && marks::is_mark(&path) => return Ok(Standing::Mark),
            kind if kind.is_symlink() => return Ok(Standing::Foreign("is a symbolic link")),
            kind if kind.is_dir() && is_last => return Ok(Standing::Foreign("is a folder")),
            kind if kind.is_dir() => {}
            _ if !is_last => return Ok(Standing::Foreign("is a file where a folder should be")),
            kind if !kind.is_file() => return Ok(Standing::Foreign("is no regular file")),
            _ => {
                let owner = owner(paths, tables, &found)?;
                return Ok(owner.map_or(Standing::Foreign("is another file"), Standing::Blob));
            }
        }
    }
    Ok(Standing::Nothing)
}

/// The blob whose file this is, if it is one of ours: replacing or removing this name loses no content.
fn owner(paths: &Paths, tables: &Tables, found: &Metadata) -> Result<Option<BlobId>, StoreError> {
    let withdrawn = tables.withdrawn.values().map(|withdrawal| &withdrawal.record);
    for record in tables.blobs.values().chain(withdrawn).filter(|record| record.identity.inode == found.ino()) {
        if disk::look(&paths.blob(record.blob))?.is_some_and(|file| file.ino() == found.ino()) {
            return Ok(Some(record.blob));
        }
    }
    Ok(None)
}

/// Fails if a name for a blob cannot be put there because something foreign stands in the way.
pub(super) fn refuse_foreign(paths: &Paths, tables: &Tables, model: &ModelKey) -> Result<(), StoreError> {
    match standing(paths, tables, model)? {
        Standing::Foreign(reason) => Err(StoreError::Foreign { path: paths.model(model), reason }),
        Standing::Nothing | Standing::Blob(_) | Standing::Mark => Ok(()),
    }
}

/// Puts a name for a stored blob, atomically in place of a name for another blob. Says whether anything had to be done.
///
/// `temp` is a free path on the same file system. Nothing here is synced: the index says what is meant, and the next open
/// repeats what power loss undid. Only a replaced name is made durable, for the old blob may be removed next.
pub(super) fn put(
    paths: &Paths,
    tables: &Tables,
    (model, blob): (&ModelKey, BlobId),
    temp: &Path,
) -> Result<bool, StoreError> {
    let path = paths.model(model);
    match standing(paths, tables, model)? {
        Standing::Blob(owner) if owner == blob => Ok(false),
        // A whole file takes a mark's place in one step.
        Standing::Blob(_) | Standing::Mark => replace(paths, &path, blob, temp).map(|()| true),
        Standing::Foreign(reason) => Err(StoreError::Foreign { path, reason }),
        Standing::Nothing => {
            disk::make_dir(path.parent().expect("models lie in folders"), paths.dir_mode)?;
            fs::hard_link(paths.blob(blob), &path).wrap("name", &path)?;
            Ok(true)
        }
    }
}

/// Replaces whatever file stands at `path` by a name for the blob. The caller knows that nothing is lost by it.
pub(super) fn replace(paths: &Paths, path: &Path, blob: BlobId, temp: &Path) -> Result<(), StoreError> {
    fs::hard_link(paths.blob(blob), temp).wrap("name", path)?;
    disk::rename(temp, path)?;
    // Renaming over another link to the same file does nothing and leaves both.
    disk::unlink(temp)?;
    disk::sync_dir(path.parent().expect("models lie in folders"))
}

/// Removes a name if it is one of this blob's file (or of the file that the blob's record describes), and folders that
/// became empty, but not the top folder. Anything else that stands there stays. With a free path for it, a mark takes the
/// name's place in one step.
pub(super) fn remove(
    paths: &Paths,
    tables: &Tables,
    model: &ModelKey,
    (identity, mark): (&Identity, Option<PathBuf>),
) -> Result<(), StoreError> {
    let path = paths.model(model);
    match standing(paths, tables, model)? {
        Standing::Nothing | Standing::Mark => {}
        Standing::Blob(_) => take_away(&path, model, mark)?,
        Standing::Foreign(reason) => {
            let recorded = disk::look(&path)?.is_some_and(|found| Identity::of(&found) == *identity);
            if !recorded {
                tracing::warn!(%model, reason, "name is not ours any more and stays");
                return Ok(());
            }
            take_away(&path, model, mark)?;
        }
    }
    let top = paths.models.join(model.folder());
    let mut folder = path.parent();
    while let Some(empty) = folder.filter(|folder| **folder != top && folder.starts_with(&top)) {
        // Fails while it holds anything, which is what stops the walk.
        if fs::remove_dir(empty).is_err() {
            break;
        }
        folder = empty.parent();
    }
    Ok(())
}

/// Removes a name, or puts a mark in its place.
fn take_away(path: &Path, model: &ModelKey, mark: Option<PathBuf>) -> Result<(), StoreError> {
    match mark {
        // A disk without room for a link must not keep a name from going.
        Some(temp) if marks::put(path, model, &temp).is_ok() => Ok(()),
        _ => disk::unlink(path).map(|_| ()),
    }
}
