//! Finding model files that lie on this node already. Looks at names and headers only; what becomes of them is for `adopt`.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::ids::ModelKey;
use crate::safetensors;

use super::error::{StoreError, Wrap};
use super::{Store, check, classify, disk, names};

/// Deepest folder below the one that is scanned.
const DEPTH_MAX: usize = 16;
/// Most model files of one scan.
const FILES_MAX: usize = 100_000;
/// Endings of files that ComfyUI loads as models.
const ENDINGS: [&str; 9] = ["ckpt", "pt", "pt2", "bin", "pth", "safetensors", "pkl", "sft", "gguf"];

/// A model file that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The model that it would be and why (`path`, `safetensors header` or `file name`), or why it is none.
    pub model: Result<(ModelKey, &'static str), String>,
}

impl Store {
    /// Finds the model files at or below `path`, in the order of their paths, and says which models they would be.
    ///
    /// Symbolic links below `path` are not followed. What is this store's own already is passed over.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotImportable`] if there are more than 100 000; [`StoreError::Io`] if `path` cannot be read. A file or
    /// folder below it that cannot be read is a row with its reason, or a line in the log.
    pub fn scan_import(&self, path: &Path) -> Result<Vec<Found>, StoreError> {
        let top = fs::canonicalize(path).wrap("find", path)?;
        let is_file = fs::metadata(&top).wrap("look at", &top)?.is_file();
        let mut files = Vec::new();
        if is_file {
            files.push(top.clone());
        } else {
            fs::read_dir(&top).wrap("list", &top)?;
            self.walk(&top, 0, &mut files)?;
        }
        files.sort();
        let base = if is_file { top.parent().unwrap_or(&top).to_owned() } else { top };
        let mut taken = HashMap::new();
        let mut all = Vec::new();
        for file in files {
            if let Some(mut found) = self.row_of(&base, file)? {
                refuse_twins(&mut found, &mut taken);
                all.push(found);
            }
        }
        Ok(all)
    }

    /// Every model file below a folder, our own files and what is too deep left out.
    pub(super) fn walk(&self, dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), StoreError> {
        let ours = fs::metadata(self.paths.v1()).wrap("look at", &self.paths.v1())?;
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(path = %dir.display(), %error, "folder cannot be listed, passing it over");
                return Ok(());
            }
        };
        for entry in entries {
            let path = entry.wrap("list", dir)?.path();
            let Some(found) = disk::look(&path)? else { continue };
            if found.is_dir() {
                if (found.dev(), found.ino()) == (ours.dev(), ours.ino()) {
                    continue;
                }
                if depth == DEPTH_MAX {
                    tracing::warn!(path = %path.display(), depth_max = DEPTH_MAX, "folder is too deep, passing it over");
                    continue;
                }
                self.walk(&path, depth + 1, files)?;
            } else if is_model(&path) {
                if files.len() == FILES_MAX {
                    let reason = "there are more than 100000 model files: import its folders one by one";
                    return Err(StoreError::NotImportable { path: dir.to_owned(), reason });
                }
                files.push(path);
            }
        }
        Ok(())
    }

    /// What a file would be; none if it is one of our own names.
    fn row_of(&self, base: &Path, file: PathBuf) -> Result<Option<Found>, StoreError> {
        let Some(found) = disk::look(&file)? else { return Ok(None) };
        let bytes = found.len();
        let refused = |file, reason: &str| Ok(Some(Found { file, bytes, model: Err(reason.to_owned()) }));
        if found.is_symlink() {
            return refused(file, "it is a symbolic link: import the file that it points to");
        }
        if !found.is_file() {
            return refused(file, "it is no regular file");
        }
        if bytes == 0 {
            return refused(file, "it is empty");
        }
        if let Some(models) = fs::canonicalize(&self.paths.models).ok().filter(|models| file.starts_with(models)) {
            let index = self.index();
            let key = file.strip_prefix(&models).ok().and_then(Path::to_str).and_then(|key| ModelKey::parse(key).ok());
            let named = key.filter(|key| index.tables.links.contains_key(key));
            if let Some(model) = named
                && matches!(names::standing(&self.paths, &index.tables, &model)?, names::Standing::Blob(_))
            {
                return Ok(None);
            }
        }
        let Some(parts) = parts_of(base, &file) else { return refused(file, "its path is no UTF-8 text") };
        let tensors = match tensors_of(&file, bytes) {
            Ok(tensors) => tensors,
            Err(reason) => return refused(file, &reason),
        };
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let model = classify::classify(&parts, tensors.as_deref())
            .and_then(|(key, why)| ModelKey::parse(&key).map(|model| (model, why)).map_err(|bad| bad.to_string()));
        Ok(Some(Found { file, bytes, model }))
    }
}

/// Two files of one scan cannot be the same model: the first keeps the name.
fn refuse_twins(found: &mut Found, taken: &mut HashMap<ModelKey, PathBuf>) {
    if let Ok((model, _)) = &found.model {
        if let Some(first) = taken.get(model) {
            found.model = Err(format!("it would be {model}, and so would {}", first.display()));
        } else {
            taken.insert(model.clone(), found.file.clone());
        }
    }
}

fn is_model(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// The parts of a file's path from the first folder that ComfyUI knows: below what is scanned, or else as that folder itself
/// (`…/models/loras` was given), or behind a folder named `models` above it. Without one, the parts below what is scanned.
fn parts_of(base: &Path, file: &Path) -> Option<Vec<String>> {
    let texts = |path: &Path| -> Option<Vec<String>> {
        path.components().map(|part| part.as_os_str().to_str().map(str::to_owned)).collect()
    };
    let below = texts(file.strip_prefix(base).ok()?)?;
    let above = texts(base)?;
    let known = |part: &String| classify::known_folder(part).is_some();
    if below.len() > 1 && (known(&below[0])) {
        return Some(below);
    }
    let whole: Vec<String> = above.iter().chain(&below).cloned().collect();
    let behind_models = whole.windows(2).rposition(|pair| pair[0] == "models" && known(&pair[1])).map(|at| at + 1);
    let start = behind_models.or_else(|| above.last().filter(|last| known(last)).map(|_| above.len() - 1));
    Some(match start {
        Some(start) if start + 1 < whole.len() => whole[start..].to_vec(),
        _ => below,
    })
}

/// The tensors of a safetensors file; none for other files. A broken header is a reason to leave the file alone.
fn tensors_of(path: &Path, bytes: u64) -> Result<Option<Vec<safetensors::Tensor>>, String> {
    if !path.file_name().and_then(|name| name.to_str()).is_some_and(check::is_safetensors) {
        return Ok(None);
    }
    let file = disk::open_theirs(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let header = check::read_header(&file, path, bytes).map_err(|error| error.to_string())?;
    let header = header.map_err(|bad| bad.to_string())?;
    safetensors::check(&header, bytes).map_err(|bad| bad.to_string())?;
    safetensors::parse(&header).map(Some).map_err(|bad| bad.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_folder_is_found_below_at_or_above_what_is_scanned() {
        for (base, file, expected) in [
            ("/data", "/data/loras/s/a.pt", "loras/s/a.pt"),
            ("/data", "/data/comfy/models/vae/a.pt", "vae/a.pt"),
            ("/x/models/loras/s", "/x/models/loras/s/a.pt", "loras/s/a.pt"),
            ("/x/loras", "/x/loras/s/a.pt", "loras/s/a.pt"),
            ("/data", "/data/odd/a.pt", "odd/a.pt"),
            ("/data", "/data/a.pt", "a.pt"),
        ] {
            let parts = parts_of(Path::new(base), Path::new(file)).expect("text");
            assert_eq!(parts.join("/"), expected, "{base} {file}");
        }
    }
}
