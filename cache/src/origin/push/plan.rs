//! Which files a push sends, and under which names. Looks at names only; opens no file.

use std::path::{Path, PathBuf};

use super::PushFile;
use crate::ids::{COMFY_FOLDERS, FOLDER_ALIASES, MODEL_KEY_PARTS_MAX, ModelKey, canonical_folder};
use crate::origin::{LISTED_MAX, OriginError, is_model_name};

/// Whether a folder, or what it is an alias of, is one of [`COMFY_FOLDERS`].
fn is_known(folder: &str) -> bool {
    COMFY_FOLDERS.contains(&canonical_folder(folder))
}

/// Finds the files to push and their names, in the order of the names.
///
/// A folder is taken to hold ComfyUI's layout (or, if its own name is that of a ComfyUI folder, to be that one); files
/// in it that are no models are passed over. A single file is named after the folder it lies in. Links to files are
/// followed, links to folders and hidden names are not.
///
/// # Errors
///
/// `Config` that says what to do, for a model outside of a known folder, a name given twice, or nothing to push;
/// `Local` for a folder that cannot be read.
pub fn plan_push(paths: &[PathBuf]) -> Result<Vec<PushFile>, OriginError> {
    let mut files = Vec::new();
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|error| OriginError::local(path.display(), &error))?;
        if meta.is_dir() {
            folder(path, &mut files)?;
        } else {
            files.push(single(path)?);
        }
    }
    files.sort_by(|a, b| a.model.cmp(&b.model));
    if let Some(pair) = files.windows(2).find(|pair| pair[0].model == pair[1].model) {
        return Err(twice(&pair[0], &pair[1]));
    }
    if files.is_empty() {
        return Err(OriginError::Config("nothing to push: no model files there".to_owned()));
    }
    Ok(files)
}

/// Two files of one name.
pub(super) fn twice(a: &PushFile, b: &PushFile) -> OriginError {
    let (model, a, b) = (&a.model, a.file.display(), b.file.display());
    OriginError::Config(format!("{a} and {b} would both be {model}: leave one out"))
}

/// The real name of a path's last part: that of `models/.` is `models`.
fn real_name(path: &Path) -> Option<String> {
    let real = path.canonicalize().ok()?;
    Some(real.file_name()?.to_str()?.to_owned())
}

fn single(path: &Path) -> Result<PushFile, OriginError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !is_model_name(name) {
        return Err(OriginError::Config(format!(
            "{} does not end as a model does (.safetensors, .gguf, .ckpt, .pt, ...)",
            path.display()
        )));
    }
    // Not the file's own canonical path: a link is named after where it lies.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match real_name(parent) {
        Some(folder) if is_known(&folder) => named(path, &format!("{folder}/{name}")),
        other => Err(unknown(path, &other.unwrap_or_default())),
    }
}

fn folder(root: &Path, files: &mut Vec<PushFile>) -> Result<(), OriginError> {
    let own = real_name(root).filter(|name| is_known(name));
    let mut folders = vec![(root.to_owned(), own.unwrap_or_default())];
    while let Some((at, key)) = folders.pop() {
        let entries = std::fs::read_dir(&at).map_err(|error| OriginError::local(at.display(), &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| OriginError::local(at.display(), &error))?;
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let below = if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") };
            let kind = entry.file_type().map_err(|error| OriginError::local(path.display(), &error))?;
            if kind.is_dir() {
                if below.matches('/').count() < MODEL_KEY_PARTS_MAX {
                    folders.push((path, below));
                }
            } else if is_model_name(name) && (kind.is_file() || path.is_file()) {
                match below.split_once('/') {
                    Some((folder, _)) if is_known(folder) => files.push(named(&path, &below)?),
                    Some((folder, _)) => return Err(unknown(&path, folder)),
                    None => return Err(unknown(&path, "")),
                }
            }
            if files.len() + folders.len() > LISTED_MAX {
                return Err(OriginError::TooMany { max: LISTED_MAX });
            }
        }
    }
    Ok(())
}

fn named(path: &Path, key: &str) -> Result<PushFile, OriginError> {
    let model = ModelKey::parse(key).map_err(|error| OriginError::Config(format!("{}: {error}", path.display())))?;
    Ok(PushFile { file: path.to_owned(), model })
}

/// A model that lies in no folder that ComfyUI reads.
fn unknown(path: &Path, folder: &str) -> OriginError {
    let aliases: Vec<&str> = FOLDER_ALIASES.iter().map(|(alias, _)| *alias).collect();
    let place = if folder.is_empty() { "in no folder".to_owned() } else { format!("in the folder {folder:?}") };
    OriginError::Config(format!(
        "{} lies {place}, which ComfyUI does not read: move it into one of {}, {}",
        path.display(),
        COMFY_FOLDERS.join(", "),
        aliases.join(", ")
    ))
}
