//! An origin that is a folder: on this machine or mounted. The one place of this room that opens files to read them.
//! Never leaves its folder: a link to a file is followed only where its target is inside, a link to a folder never.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::error::OriginError;
use super::listing::{LISTED_MAX, Object};
use crate::catalog::Validator;
use crate::ids::MODEL_KEY_PARTS_MAX;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;
/// Longest walk through a folder: minutes for a million files on a slow mount.
const LIST_TIMEOUT: Duration = Duration::from_secs(300);

/// A folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// Its path, as the operator wrote it.
    pub(crate) root: PathBuf,
}

/// Runs file work off the async threads, within a limit: a dead mount blocks for ever.
pub(crate) async fn off_thread<T: Send + 'static>(
    limit: Duration,
    path: &str,
    what: &'static str,
    work: impl FnOnce() -> Result<T, OriginError> + Send + 'static,
) -> Result<T, OriginError> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(OriginError::Local { path: path.to_owned(), detail: "the read was given up".to_owned() }),
        Err(_) => Err(OriginError::Timeout { path: path.to_owned(), what, after: limit }),
    }
}

impl Folder {
    /// The file of a path below the root, which may only have plain parts.
    pub(crate) fn file(&self, path: &str) -> Result<PathBuf, OriginError> {
        let plain = !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if plain { Ok(self.root.join(path)) } else { Err(OriginError::NotFound { path: path.to_owned() }) }
    }

    /// All files below `prefix`. A missing prefix holds nothing; a missing root is an error.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<Object>, OriginError> {
        let (folder, prefix) = (self.clone(), prefix.to_owned());
        let shown = self.root.display().to_string();
        off_thread(LIST_TIMEOUT, &shown, "listing", move || folder.walk(&prefix)).await
    }

    fn walk(&self, prefix: &str) -> Result<Vec<Object>, OriginError> {
        let local = |path: &Path, error: &io::Error| OriginError::local(path.display(), error);
        let root = self.root.canonicalize().map_err(|error| local(&self.root, &error))?;
        let mut objects = Vec::new();
        let mut folders = vec![prefix.to_owned()];
        while let Some(folder) = folders.pop() {
            let at = if folder.is_empty() { self.root.clone() } else { self.file(&folder)? };
            let entries = match std::fs::read_dir(&at) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(local(&at, &error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| local(&at, &error))?;
                let name = entry.file_name();
                let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
                let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                let kind = entry.file_type().map_err(|error| local(&entry.path(), &error))?;
                if kind.is_dir() && path.matches('/').count() < MODEL_KEY_PARTS_MAX + prefix.matches('/').count() {
                    folders.push(path);
                } else if let Some(meta) = inside(&root, &entry.path(), kind.is_symlink()) {
                    objects.push(Object { path, bytes: meta.len(), validator: validator(&meta) });
                }
                if objects.len() + folders.len() > LISTED_MAX {
                    return Err(OriginError::TooMany { max: LISTED_MAX });
                }
            }
        }
        Ok(objects)
    }

    /// Size and identity of one file; `None` if it is not there.
    pub(crate) async fn stat(&self, path: &str, limit: Duration) -> Result<Option<Object>, OriginError> {
        match self.open(path, limit).await {
            Ok((_, meta)) => Ok(Some(Object { path: path.to_owned(), bytes: meta.len(), validator: validator(&meta) })),
            Err(OriginError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens one file for reading.
    pub(crate) async fn open(&self, path: &str, limit: Duration) -> Result<(File, Metadata), OriginError> {
        let (at, root, shown) = (self.file(path)?, self.root.clone(), path.to_owned());
        off_thread(limit, path, "opening", move || {
            let outcome = (|| {
                let real = at.canonicalize()?;
                if !real.starts_with(root.canonicalize()?) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let file = File::open(real)?;
                let meta = file.metadata()?;
                if meta.is_file() { Ok((file, meta)) } else { Err(io::ErrorKind::NotFound.into()) }
            })();
            outcome.map_err(|error: io::Error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OriginError::NotFound { path: shown },
                _ => OriginError::local(shown, &error),
            })
        })
        .await
    }
}

/// The metadata of a regular file, of a link's target if that is inside `root`; `None` for anything else.
fn inside(root: &Path, path: &Path, is_link: bool) -> Option<Metadata> {
    if is_link && !path.canonicalize().ok()?.starts_with(root) {
        tracing::debug!(path = %path.display(), "a link that leads outside of its origin is skipped");
        return None;
    }
    std::fs::metadata(path).ok().filter(Metadata::is_file)
}

/// A file's identity: which file, how long, changed when.
pub(crate) fn validator(meta: &Metadata) -> Validator {
    Validator {
        etag: Some(format!("\"{:x}-{:x}-{:x}.{:x}\"", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())),
        modified_ms: Some(meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000),
    }
}

/// A range of a file, read in order.
#[derive(Debug)]
pub(crate) struct FileRead {
    file: Arc<File>,
    identity: Validator,
    at: u64,
    end: u64,
    buffer: BytesMut,
}

impl FileRead {
    /// The bytes `at..end` of an open file.
    pub(crate) fn new(file: File, meta: &Metadata, at: u64, end: u64) -> Self {
        Self { file: Arc::new(file), identity: validator(meta), at, end, buffer: BytesMut::new() }
    }

    /// The next bytes; `None` at the end of the range or of the file. The last chunk comes only if the file was not
    /// written to meanwhile.
    pub(crate) async fn next(&mut self, path: &str) -> Option<Result<Bytes, OriginError>> {
        let want = usize::try_from(self.end - self.at).map_or(READ_BYTES, |left| left.min(READ_BYTES));
        if want == 0 {
            return None;
        }
        let (file, at, mut buffer) = (Arc::clone(&self.file), self.at, std::mem::take(&mut self.buffer));
        let is_last = at + want as u64 == self.end;
        let read = tokio::task::spawn_blocking(move || {
            buffer.resize(want, 0);
            let got = file.read_at(&mut buffer, at)?;
            let now = if is_last { Some(validator(&file.metadata()?)) } else { None };
            io::Result::Ok((buffer.split_to(got).freeze(), buffer, now))
        });
        let outcome = match read.await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::other("the read was given up")),
        };
        match outcome {
            Err(error) => Some(Err(OriginError::local(path, &error))),
            Ok((_, _, Some(now))) if now != self.identity => Some(Err(OriginError::Changed {
                path: path.to_owned(),
                detail: "it was written to while it was read".to_owned(),
            })),
            Ok((bytes, _, _)) if bytes.is_empty() => None,
            Ok((bytes, mut rest, _)) => {
                rest.clear();
                self.buffer = rest;
                self.at += bytes.len() as u64;
                Some(Ok(bytes))
            }
        }
    }
}
