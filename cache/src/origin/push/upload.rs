//! Sends one file: to a bucket in parts, to a folder through a hidden file that is renamed when it is whole. An object
//! is never visible half.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{MultipartId, ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;

use super::reader::{Digests, Reader, blocking};
use super::{PARTS_MAX, Push, PushProgress};
use crate::origin::OriginError;
use crate::origin::folder::Folder;
use crate::origin::s3::{Bucket, uploading};

/// Attempts for one request of an upload.
const ATTEMPTS_MAX: u32 = 5;
/// First wait before another attempt; doubles each time.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest wait before another attempt, whatever the origin asks for.
const BACKOFF_MAX: Duration = Duration::from_secs(20);

/// Counts the attempts of one request.
#[derive(Default)]
pub(super) struct Patience(u32);

impl Patience {
    /// Waits before another attempt, or gives the error back: it will not pass, or it was met too often.
    pub(super) async fn after(&mut self, error: OriginError) -> Result<(), OriginError> {
        self.0 += 1;
        if !error.is_transient() || self.0 >= ATTEMPTS_MAX {
            return Err(error);
        }
        let wait = error.retry_after().unwrap_or(BACKOFF_MIN * 2_u32.pow(self.0 - 1)).min(BACKOFF_MAX);
        tracing::info!(%error, attempt = self.0, ?wait, "an upload request failed, trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// An object's key as `object_store` wants it.
pub(super) fn key(path: &str) -> Result<Key, OriginError> {
    Key::parse(path).map_err(|error| OriginError::Config(format!("{path:?} cannot be uploaded: {error}")))
}

impl<P: Fn(PushProgress) + Send + Sync> Push<'_, P> {
    /// Sends a file to a bucket.
    pub(super) async fn to_bucket(
        &self,
        bucket: &Bucket,
        mut reader: Reader,
        path: &str,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Digests, OriginError> {
        let key = key(path)?;
        let part_bytes = self.options.part_bytes.max(reader.bytes.div_ceil(PARTS_MAX));
        if reader.bytes > part_bytes {
            let upload = Upload::begin(&bucket.store, key).await?;
            return self.in_parts(upload, reader, part_bytes, sent).await;
        }
        let _permit = self.parts.acquire().await.expect("the semaphore is never closed");
        let bytes = reader.part(part_bytes).await?.unwrap_or_default();
        // Before it is sent: a file that changed must not replace what is there.
        let (length, digests) = (reader.bytes, reader.finish().await?);
        let mut patience = Patience::default();
        while let Err(error) = bucket.store.put(&key, PutPayload::from(bytes.clone())).await {
            patience.after(uploading(path, &error)).await?;
        }
        sent(length);
        Ok(digests)
    }

    async fn in_parts(
        &self,
        mut upload: Upload,
        mut reader: Reader,
        part_bytes: u64,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Digests, OriginError> {
        let outcome = async {
            let (mut tasks, mut total) = (JoinSet::new(), 0);
            let mut ids: Vec<Option<PartId>> = Vec::new();
            loop {
                let permit = Arc::clone(&self.parts).acquire_owned().await.expect("the semaphore is never closed");
                let Some(bytes) = reader.part(part_bytes).await? else { break };
                let (number, part) = (ids.len(), upload.part(ids.len(), bytes));
                ids.push(None);
                tasks.spawn(async move {
                    let _permit = permit;
                    part.await.map(|(id, length)| (number, id, length))
                });
                while let Some(done) = tasks.try_join_next() {
                    take(done, &mut ids, &mut total, sent)?;
                }
            }
            let digests = reader.finish().await?;
            while let Some(done) = tasks.join_next().await {
                take(done, &mut ids, &mut total, sent)?;
            }
            upload.complete(ids.into_iter().flatten().collect()).await?;
            Ok(digests)
        }
        .await;
        if outcome.is_err() {
            upload.abort().await;
        }
        outcome
    }

    /// Sends a file to a folder.
    pub(super) async fn to_folder(
        &self,
        folder: &Folder,
        mut reader: Reader,
        path: &str,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Digests, OriginError> {
        let target = folder.file(path)?;
        let mut hidden = blocking(move || Hidden::beside(target)).await?;
        let mut total = 0;
        loop {
            let _permit = self.parts.acquire().await.expect("the semaphore is never closed");
            let Some(bytes) = reader.part(self.options.part_bytes).await? else { break };
            total += bytes.len() as u64;
            hidden = blocking(move || hidden.write(&bytes)).await?;
            sent(total);
        }
        let digests = reader.finish().await?;
        blocking(move || hidden.show()).await?;
        Ok(digests)
    }
}

type PartDone = Result<Result<(usize, PartId, u64), OriginError>, tokio::task::JoinError>;

/// Notes one part that arrived.
fn take(
    done: PartDone,
    ids: &mut [Option<PartId>],
    total: &mut u64,
    sent: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), OriginError> {
    let (number, id, length) = match done {
        Ok(outcome) => outcome?,
        Err(error) => return Err(OriginError::Local { path: "a part".to_owned(), detail: error.to_string() }),
    };
    ids[number] = Some(id);
    *total += length;
    sent(*total);
    Ok(())
}

/// A multipart upload. One that is dropped unfinished is abandoned, so that its parts cost nobody money.
struct Upload {
    store: Arc<AmazonS3>,
    key: Key,
    id: MultipartId,
    is_open: bool,
}

impl Upload {
    async fn begin(store: &Arc<AmazonS3>, key: Key) -> Result<Self, OriginError> {
        let mut patience = Patience::default();
        let id = loop {
            match store.create_multipart(&key).await {
                Ok(id) => break id,
                Err(error) => patience.after(uploading(key.as_ref(), &error)).await?,
            }
        };
        Ok(Self { store: Arc::clone(store), key, id, is_open: true })
    }

    /// Sends one part; numbers start at 0.
    fn part(
        &self,
        number: usize,
        bytes: Bytes,
    ) -> impl Future<Output = Result<(PartId, u64), OriginError>> + Send + 'static {
        let (store, key, id) = (Arc::clone(&self.store), self.key.clone(), self.id.clone());
        async move {
            let (length, mut patience) = (bytes.len() as u64, Patience::default());
            loop {
                match store.put_part(&key, &id, number, PutPayload::from(bytes.clone())).await {
                    Ok(part) => return Ok((part, length)),
                    Err(error) => patience.after(uploading(key.as_ref(), &error)).await?,
                }
            }
        }
    }

    async fn complete(&mut self, parts: Vec<PartId>) -> Result<(), OriginError> {
        let mut patience = Patience::default();
        while let Err(error) = self.store.complete_multipart(&self.key, &self.id, parts.clone()).await {
            patience.after(uploading(self.key.as_ref(), &error)).await?;
        }
        self.is_open = false;
        Ok(())
    }

    async fn abort(&mut self) {
        self.is_open = false;
        if let Err(error) = self.store.abort_multipart(&self.key, &self.id).await {
            let error = uploading(self.key.as_ref(), &error);
            tracing::warn!(%error, "an unfinished upload could not be removed; the bucket's lifecycle rules must");
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_open {
            return;
        }
        // The push was given up from outside. Nobody waits for this; at exit it may be cut short.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, key, id) = (Arc::clone(&self.store), self.key.clone(), self.id.clone());
            let mut upload = Self { store, key, id, is_open: false };
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

/// A file being written beside the one it will replace, under a name that listings skip. Removed when dropped.
pub(super) struct Hidden {
    file: File,
    at: PathBuf,
    target: PathBuf,
    is_shown: bool,
}

impl Hidden {
    /// Opens a hidden file in `target`'s folder, which is made if it is not there.
    pub(super) fn beside(target: PathBuf) -> Result<Self, OriginError> {
        let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let folder = target.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder).map_err(|error| OriginError::local(folder.display(), &error))?;
        // Short, whatever the name's length is: both must fit into 255 bytes. Random, so that two pushes never share it.
        let stem: String = name.chars().take(40).collect();
        let at = folder.join(format!(".{stem}.tierd-{:016x}", fastrand::u64(..)));
        let file = File::create_new(&at).map_err(|error| OriginError::local(at.display(), &error))?;
        Ok(Self { file, at, target, is_shown: false })
    }

    /// Appends.
    pub(super) fn write(mut self, bytes: &[u8]) -> Result<Self, OriginError> {
        self.file.write_all(bytes).map_err(|error| OriginError::local(self.at.display(), &error))?;
        Ok(self)
    }

    /// Makes it durable and puts it in its place, in this order.
    pub(super) fn show(mut self) -> Result<(), OriginError> {
        let folder = self.target.parent().unwrap_or(Path::new("/"));
        self.file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.at, &self.target))
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(|error| OriginError::local(self.target.display(), &error))?;
        self.is_shown = true;
        Ok(())
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if !self.is_shown
            && let Err(error) = std::fs::remove_file(&self.at)
        {
            tracing::warn!(path = %self.at.display(), %error, "a half-written file could not be removed");
        }
    }
}
