//! Reads a local file once, part by part, hashing as it goes. Notices if the file changes meanwhile.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::catalog::Validator;
use crate::ids::{BlobId, Sha256Digest};
use crate::manifest::MODEL_BYTES_MAX;
use crate::origin::OriginError;
use crate::origin::folder::validator;

/// A file being read.
pub(super) struct Reader {
    path: PathBuf,
    /// Its length when it was opened.
    pub(super) bytes: u64,
    at: u64,
    identity: Validator,
    /// Taken while a part is read on another thread.
    work: Option<Work>,
}

struct Work {
    file: File,
    blake3: blake3::Hasher,
    sha256: Sha256,
}

/// The digests of a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digests {
    pub(super) blake3: BlobId,
    pub(super) sha256: Sha256Digest,
}

impl Reader {
    /// Opens a regular file.
    pub(super) async fn open(path: &Path) -> Result<Self, OriginError> {
        let path = path.to_owned();
        blocking(move || {
            let local = |error: &std::io::Error| OriginError::local(path.display(), error);
            let file = File::open(&path).map_err(|error| local(&error))?;
            let meta = file.metadata().map_err(|error| local(&error))?;
            if !meta.is_file() || meta.len() > MODEL_BYTES_MAX {
                let detail = "it is no regular file of at most 16 TiB".to_owned();
                return Err(OriginError::Local { path: path.display().to_string(), detail });
            }
            let work = Some(Work { file, blake3: blake3::Hasher::new(), sha256: Sha256::new() });
            Ok(Self { bytes: meta.len(), at: 0, identity: validator(&meta), work, path })
        })
        .await
    }

    /// The next part, of `size` bytes or what is left; `None` at the end.
    pub(super) async fn part(&mut self, size: u64) -> Result<Option<Bytes>, OriginError> {
        let want = size.min(self.bytes - self.at);
        if want == 0 {
            return Ok(None);
        }
        let mut work = self.work.take().expect("a reader is not used again after it failed");
        let (at, path) = (self.at, self.path.clone());
        let (bytes, work) = blocking(move || {
            let mut part = vec![0; usize::try_from(want).expect("a part fits into memory")];
            work.file.read_exact_at(&mut part, at).map_err(|error| OriginError::local(path.display(), &error))?;
            work.blake3.update(&part);
            work.sha256.update(&part);
            Ok((Bytes::from(part), work))
        })
        .await?;
        self.work = Some(work);
        self.at += want;
        Ok(Some(bytes))
    }

    /// The digests, once every part was read.
    ///
    /// # Errors
    ///
    /// `Changed` if the file was written to since it was opened.
    pub(super) async fn finish(mut self) -> Result<Digests, OriginError> {
        let work = self.work.take().expect("a reader is not used again after it failed");
        let (path, identity) = (self.path, self.identity);
        blocking(move || {
            let meta = work.file.metadata().map_err(|error| OriginError::local(path.display(), &error))?;
            if validator(&meta) != identity {
                let detail = "it was written to while it was read".to_owned();
                return Err(OriginError::Changed { path: path.display().to_string(), detail });
            }
            let blake3 = BlobId(*work.blake3.finalize().as_bytes());
            Ok(Digests { blake3, sha256: Sha256Digest(work.sha256.finalize().into()) })
        })
        .await
    }

    /// Reads and hashes the whole file without sending it. Each part counts against `parts`.
    pub(super) async fn digest(mut self, parts: &Semaphore, part_bytes: u64) -> Result<Digests, OriginError> {
        loop {
            let _permit = parts.acquire().await.expect("the semaphore is never closed");
            if self.part(part_bytes).await?.is_none() {
                return self.finish().await;
            }
        }
    }
}

/// Runs file work off the async threads. Without a limit: the user watches, and may stop it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OriginError> + Send + 'static,
) -> Result<T, OriginError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(OriginError::Local { path: "a file".to_owned(), detail: error.to_string() }),
    }
}
