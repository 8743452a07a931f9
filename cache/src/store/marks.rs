//! Marks: dangling symbolic links under the names of models that could be had but are not here, so that ComfyUI lists them. Makes,
//! replaces and removes nothing but its own: a link is ours only if it points where no file can ever be.
//!
//! Marks are not in the index: the models folder itself says which there are, and setting them again after a crash at any point
//! ends the same. A whole file takes the place of its mark in one rename, and gives it back in one when it leaves.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::ids::{MODEL_KEY_PARTS_MAX, ModelKey};

use super::error::{StoreError, Wrap};
use super::names::Standing;
use super::{Store, crash, disk, names};

/// Most marks. A drop-down of more names serves nobody, and every folder with marks is read again by ComfyUI when it changes.
pub const MARKS_MAX: usize = 20_000;
/// Most entries of the models folder that are looked at for marks.
const ENTRIES_MAX: usize = 1_000_000;
/// Where marks point. Nobody can make a file below `/proc`, so that no mark ever leads anywhere.
const NOWHERE: &str = "/proc/tierd-not-here";

/// What setting marks did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marked {
    /// Marks that were made.
    pub made: u64,
    /// Marks that were removed.
    pub removed: u64,
    /// Models that got none: a file that is not ours stands in the way, or there are more than [`MARKS_MAX`].
    pub left_out: u64,
}

/// Whether what stands at `path` is a mark.
pub(super) fn is_mark(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target.starts_with(NOWHERE))
}

/// Puts a mark at `path` in place of what stands there: the caller knows that nothing is lost by it. `temp` is a free path on the
/// same file system.
pub(super) fn put(path: &Path, model: &ModelKey, temp: &Path) -> Result<(), StoreError> {
    symlink(Path::new(NOWHERE).join(model.as_str()), temp).wrap("mark", path)?;
    crash::point()?;
    disk::rename(temp, path)
}

/// Removes every mark below a models folder, and the folders that they leave empty. Needs no store: good for an uninstallation.
///
/// # Errors
///
/// [`StoreError::Io`].
pub fn remove_marks(models: &Path) -> Result<Marked, StoreError> {
    let mut marked = Marked::default();
    for (path, _) in find(models)? {
        marked.removed += u64::from(remove(models, &path)?);
    }
    Ok(marked)
}

fn remove(models: &Path, path: &Path) -> Result<bool, StoreError> {
    crash::point()?;
    let removed = disk::unlink(path)?;
    let below_top =
        |folder: &&Path| folder.parent().is_some_and(|parent| parent != models) && folder.starts_with(models);
    let mut folder = path.parent();
    while let Some(empty) = folder.filter(|folder| below_top(folder)) {
        // Fails while it holds anything, which is what stops the walk.
        if fs::remove_dir(empty).is_err() {
            break;
        }
        folder = empty.parent();
    }
    Ok(removed)
}

/// Every mark below the models folder, with the model that it stands for if its name is one.
fn find(models: &Path) -> Result<Vec<(PathBuf, Option<ModelKey>)>, StoreError> {
    let mut marks = Vec::new();
    let mut folders = vec![(models.to_owned(), String::new(), 0)];
    let mut seen = 0;
    while let Some((folder, below, depth)) = folders.pop() {
        for (name, path) in disk::list(&folder)? {
            seen += 1;
            if seen > ENTRIES_MAX {
                tracing::warn!(entries = ENTRIES_MAX, "the models folder holds more than is looked at for marks");
                return Ok(marks);
            }
            let Some(found) = disk::look(&path)? else { continue };
            let key = if below.is_empty() { name } else { format!("{below}/{name}") };
            if found.file_type().is_symlink() && is_mark(&path) {
                marks.push((path, ModelKey::parse(&key).ok().filter(|model| model.as_str() == key)));
            } else if found.is_dir() && depth < MODEL_KEY_PARTS_MAX {
                folders.push((path, key, depth + 1));
            }
        }
    }
    Ok(marks)
}

impl Store {
    /// Sets the marks: one for each of these models that is not stored, none for any other. `None` removes all, and no eviction puts one
    /// back from then on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`]; [`StoreError::Full`] if the file system has no room for a link. Some are set then, and the next call goes on.
    pub fn set_marks(&self, models: Option<BTreeSet<ModelKey>>) -> Result<Marked, StoreError> {
        let mut marked = Marked::default();
        let mut wanted = models.clone().unwrap_or_default();
        while wanted.len() > MARKS_MAX {
            wanted.pop_last();
            marked.left_out += 1;
        }
        *self.wanted_marks() = models.is_some().then(|| wanted.clone());
        for (path, model) in find(&self.paths.models)? {
            if model.is_some_and(|model| wanted.remove(&model)) {
                continue;
            }
            // A name that was given meanwhile is no mark any more: look again under the lock.
            let _index = self.index();
            if is_mark(&path) {
                marked.removed += u64::from(remove(&self.paths.models, &path)?);
            }
        }
        for model in wanted {
            // Names change under this lock only.
            let index = self.index();
            match names::standing(&self.paths, &index.tables, &model)? {
                Standing::Nothing if !index.tables.links.contains_key(&model) => {
                    let path = self.paths.model(&model);
                    disk::make_dir(path.parent().expect("models lie in folders"), self.paths.dir_mode)?;
                    put(&path, &model, &self.temp())?;
                    marked.made += 1;
                }
                Standing::Foreign(_) => marked.left_out += 1,
                Standing::Nothing | Standing::Blob(_) | Standing::Mark => {}
            }
        }
        Ok(marked)
    }

    /// A free path for the mark that a model gets when its name goes; `None` if it gets none.
    pub(super) fn mark_for(&self, model: &ModelKey) -> Option<PathBuf> {
        let wanted = self.wanted_marks();
        wanted.as_ref().is_some_and(|wanted| wanted.contains(model)).then(|| self.temp())
    }
}

/// Whether the models folder shows names as marks now, as far as can be told from outside.
#[must_use]
pub fn count_marks(models: &Path) -> usize {
    find(models).map_or(0, |marks| marks.len())
}

/// Names for the tests of this room.
#[cfg(test)]
pub(super) fn nowhere(paths: &super::paths::Paths, model: &ModelKey) -> (PathBuf, PathBuf) {
    (paths.model(model), Path::new(NOWHERE).join(model.as_str()))
}
