//! Push: uploads files to an origin and names them, with their digests, in its manifest. Reads every file once: it is
//! hashed while it is sent. Replaces what is there under the same names; deletes nothing.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::Semaphore;

use self::reader::{Digests, Reader};
use super::{Kind, Origin, OriginError, join};
use crate::ids::ModelKey;
use crate::manifest::{Manifest, ManifestModel};

mod plan;
mod publish;
mod reader;
mod upload;

#[cfg(test)]
mod tests;

pub use plan::plan_push;
pub use publish::ManifestWrite;

/// Files that are sent at once: small files wait for answers, not for bandwidth.
const FILES_AT_ONCE: usize = 4;
/// Smallest part that S3 takes.
const PART_BYTES_MIN: u64 = 5 << 20;
/// Largest part that we hold in memory.
const PART_BYTES_MAX: u64 = 1 << 30;
/// Most parts of one upload that S3 takes.
const PARTS_MAX: u64 = 10_000;

/// One file to upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushFile {
    /// The file on this machine.
    pub file: PathBuf,
    /// The model it becomes.
    pub model: ModelKey,
}

/// How to upload.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// Parts in memory and on their way at once, over all files. Default 8.
    pub concurrency: usize,
    /// Bytes of one part, at least 5 MiB and at most 1 GiB; files up to this size are sent in one request. Default
    /// 16 MiB. Files of more than 10,000 parts get larger ones.
    pub part_bytes: u64,
    /// Uploads what the manifest says is there already. Default false.
    pub force: bool,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { concurrency: 8, part_bytes: 16 << 20, force: false }
    }
}

/// Something that happened during a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushProgress {
    /// A file is being sent.
    Started {
        /// The model.
        model: ModelKey,
        /// Bytes of the file.
        bytes: u64,
    },
    /// A part of a file has arrived.
    Sent {
        /// The model.
        model: ModelKey,
        /// Bytes of the file that have arrived so far.
        sent: u64,
        /// Bytes of the file.
        bytes: u64,
    },
    /// The origin has the same content already.
    Skipped {
        /// The model.
        model: ModelKey,
        /// Bytes of the file.
        bytes: u64,
    },
    /// A file is there, whole.
    Done {
        /// What the manifest will say of it.
        model: ManifestModel,
    },
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushReport {
    /// What was uploaded, in the order of the names.
    pub uploaded: Vec<ManifestModel>,
    /// What was there already, in the order of the names.
    pub skipped: Vec<ModelKey>,
    /// How the manifest was written.
    pub manifest: ManifestWrite,
}

/// What became of one file.
enum Outcome {
    Uploaded(ManifestModel),
    Skipped(ModelKey),
}

/// One push in progress.
struct Push<'a, P> {
    origin: &'a Origin,
    options: PushOptions,
    /// What the manifest says now, by name.
    known: HashMap<ModelKey, ManifestModel>,
    /// One permit for each part in memory.
    parts: Arc<Semaphore>,
    progress: P,
}

/// Uploads files, then names them in the origin's manifest. Memory: at most `concurrency` parts.
///
/// A file is skipped if the manifest has its name with its size and digest and the origin still has an object of that
/// size. When a file fails, no new one is started, but those that arrived are named in the manifest: pushing again
/// continues. Dropping the future stops it; unfinished uploads are then abandoned as far as the runtime still runs.
///
/// # Errors
///
/// `Unsupported` for HTTP origins; `Config` for impossible options; otherwise what the first failing file met.
pub async fn push(
    origin: &Origin,
    mut files: Vec<PushFile>,
    options: PushOptions,
    progress: impl Fn(PushProgress) + Send + Sync,
) -> Result<PushReport, OriginError> {
    if let Kind::Http { .. } = origin.0.kind {
        let what = format!("{} is an HTTP origin: push to the S3 bucket or the folder behind it", origin.name());
        return Err(OriginError::Unsupported(what));
    }
    if options.concurrency == 0 || !(PART_BYTES_MIN..=PART_BYTES_MAX).contains(&options.part_bytes) {
        let what = "a push needs a concurrency of at least 1 and parts of 5 MiB to 1 GiB";
        return Err(OriginError::Config(what.to_owned()));
    }
    files.sort_by(|a, b| a.model.cmp(&b.model));
    if let Some(pair) = files.windows(2).find(|pair| pair[0].model == pair[1].model) {
        return Err(plan::twice(&pair[0], &pair[1]));
    }
    // Read before anything is sent: a manifest that cannot be merged is better known now.
    let manifest = origin.manifest().await?.unwrap_or_else(Manifest::empty);
    let push = Push {
        origin,
        parts: Arc::new(Semaphore::new(options.concurrency)),
        options,
        known: manifest.models.into_iter().map(|model| (model.name.clone(), model)).collect(),
        progress,
    };
    push.run(files).await
}

impl<P: Fn(PushProgress) + Send + Sync> Push<'_, P> {
    async fn run(&self, files: Vec<PushFile>) -> Result<PushReport, OriginError> {
        let (mut uploaded, mut skipped, mut failed) = (Vec::new(), Vec::new(), None);
        {
            let mut outcomes =
                futures_util::stream::iter(files).map(|file| self.one(file)).buffer_unordered(FILES_AT_ONCE);
            while let Some(outcome) = outcomes.next().await {
                match outcome {
                    Ok(Outcome::Uploaded(model)) => uploaded.push(model),
                    Ok(Outcome::Skipped(model)) => skipped.push(model),
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
        }
        uploaded.sort_by(|a, b| a.name.cmp(&b.name));
        skipped.sort();
        let written = publish::publish(self.origin, &uploaded).await;
        match failed {
            Some(error) => Err(error),
            None => Ok(PushReport { uploaded, skipped, manifest: written? }),
        }
    }

    async fn one(&self, file: PushFile) -> Result<Outcome, OriginError> {
        let reader = Reader::open(&file.file).await?;
        let bytes = reader.bytes;
        if !self.options.force && self.is_there(&file, bytes).await? {
            (self.progress)(PushProgress::Skipped { model: file.model.clone(), bytes });
            return Ok(Outcome::Skipped(file.model.clone()));
        }
        (self.progress)(PushProgress::Started { model: file.model.clone(), bytes });
        let path = join(self.origin.prefix(), file.model.as_str());
        let sent = |sent| (self.progress)(PushProgress::Sent { model: file.model.clone(), sent, bytes });
        let digests = match &self.origin.0.kind {
            Kind::S3 { bucket, .. } => self.to_bucket(bucket, reader, &path, &sent).await?,
            Kind::Folder(folder) => self.to_folder(folder, reader, &path, &sent).await?,
            Kind::Http { .. } => return Err(OriginError::Unsupported("HTTP origins take no files".to_owned())),
        };
        let Digests { blake3, sha256 } = digests;
        let model = ManifestModel {
            name: file.model.clone(),
            size: bytes,
            blake3: Some(blake3),
            sha256: Some(sha256),
            sources: Vec::new(),
        };
        (self.progress)(PushProgress::Done { model: model.clone() });
        Ok(Outcome::Uploaded(model))
    }

    /// Whether the origin has this content under this name. Hashes the file only where the sizes agree.
    async fn is_there(&self, file: &PushFile, bytes: u64) -> Result<bool, OriginError> {
        let Some(known) = self.known.get(&file.model).filter(|known| known.size == bytes && known.sources.is_empty())
        else {
            return Ok(false);
        };
        match self.origin.locate(&file.model).await? {
            Some(there) if there.bytes == bytes => {}
            _ => return Ok(false),
        }
        let digests = Reader::open(&file.file).await?.digest(&self.parts, self.options.part_bytes).await?;
        Ok(match (known.blake3, known.sha256) {
            (Some(blake3), _) => blake3 == digests.blake3,
            (None, Some(sha256)) => sha256 == digests.sha256,
            (None, None) => false,
        })
    }
}
