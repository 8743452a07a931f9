//! Writes the manifest after a push: read, merge, write only if nobody else wrote meanwhile. Never drops an entry that
//! another push made.

use std::fs::File;
use std::time::Duration;

use object_store::{ObjectStore, PutMode, PutOptions, PutPayload, UpdateVersion};
use rustix::fs::{FlockOperation, flock};

use super::reader::blocking;
use super::upload::{Hidden, Patience, key};
use crate::catalog::Validator;
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestModel};
use crate::origin::folder::Folder;
use crate::origin::s3::{Bucket, uploading};
use crate::origin::{Kind, Origin, OriginError};

/// How often a manifest is merged again because somebody else wrote it.
const CONFLICTS_MAX: u32 = 8;
/// How often, and with what pause, a folder's lock is tried: 10 s in all.
const LOCK_TRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How a push wrote the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestWrite {
    /// Nothing was new: it was not written.
    Unchanged,
    /// On the condition that nobody else wrote it meanwhile.
    Guarded,
    /// Without a condition: the server knows none. Two pushes at once may lose entries of one.
    Plain,
}

/// Adds `models` to the origin's manifest.
pub(super) async fn publish(origin: &Origin, models: &[ManifestModel]) -> Result<ManifestWrite, OriginError> {
    match &origin.0.kind {
        Kind::S3 { bucket, .. } => to_bucket(origin, bucket, models).await,
        Kind::Folder(folder) => to_folder(origin, folder, models).await,
        Kind::Http { .. } => Err(OriginError::Unsupported("HTTP origins take no manifest".to_owned())),
    }
}

/// The manifest with `models` in it as text, or `None` if that changes nothing.
fn merged(present: Option<&Manifest>, models: &[ManifestModel]) -> Result<Option<String>, OriginError> {
    let mut manifest = present.cloned().unwrap_or_else(Manifest::empty);
    manifest.merge(models.iter().cloned());
    if models.is_empty() || present == Some(&manifest) {
        return Ok(None);
    }
    let text = manifest.to_json();
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(OriginError::TooLong { path: "the manifest".to_owned(), want: MANIFEST_BYTES_MAX as u64 });
    }
    Ok(Some(text))
}

async fn to_bucket(origin: &Origin, bucket: &Bucket, models: &[ManifestModel]) -> Result<ManifestWrite, OriginError> {
    let path = &origin.0.manifest;
    let (key, mut patience, mut conflicts, mut is_guarded) = (key(path)?, Patience::default(), 0, true);
    loop {
        let present = origin.manifest_and_validator().await?;
        let Some(text) = merged(present.as_ref().map(|(manifest, _)| manifest), models)? else {
            return Ok(ManifestWrite::Unchanged);
        };
        let mode = match present.map(|(_, validator)| validator) {
            _ if !is_guarded => PutMode::Overwrite,
            None => PutMode::Create,
            Some(Validator { etag: Some(etag), .. }) => {
                PutMode::Update(UpdateVersion { e_tag: Some(etag), version: None })
            }
            Some(Validator { etag: None, .. }) => PutMode::Overwrite,
        };
        let write = if mode == PutMode::Overwrite { ManifestWrite::Plain } else { ManifestWrite::Guarded };
        let Err(error) = bucket.store.put_opts(&key, PutPayload::from(text), PutOptions::from(mode)).await else {
            return Ok(write);
        };
        match uploading(path, &error) {
            // Somebody wrote it, or removed it, since we read it.
            error @ (OriginError::Changed { .. } | OriginError::NotFound { .. }) => {
                conflicts += 1;
                if conflicts >= CONFLICTS_MAX {
                    return Err(error);
                }
            }
            OriginError::Refused { status: 501, .. } if is_guarded => {
                tracing::warn!(path, "the server knows no conditional writes: the manifest is written without one");
                is_guarded = false;
            }
            error => patience.after(error).await?,
        }
    }
}

async fn to_folder(origin: &Origin, folder: &Folder, models: &[ManifestModel]) -> Result<ManifestWrite, OriginError> {
    let (path, at, root) = (origin.0.manifest.clone(), folder.file(&origin.0.manifest)?, folder.root.clone());
    let models = models.to_vec();
    blocking(move || {
        let lock = File::open(&root).map_err(|error| OriginError::local(root.display(), &error))?;
        let mut tries = 0;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            tries += 1;
            if tries >= LOCK_TRIES {
                return Err(OriginError::local(root.display(), &error.into()));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        let present = match std::fs::read(&at) {
            Ok(bytes) => Some(Manifest::parse(&bytes).map_err(|source| OriginError::Manifest { path, source })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(OriginError::local(at.display(), &error)),
        };
        let Some(text) = merged(present.as_ref(), &models)? else { return Ok(ManifestWrite::Unchanged) };
        Hidden::beside(at)?.write(text.as_bytes())?.show()?;
        drop(lock);
        Ok(ManifestWrite::Guarded)
    })
    .await
}
