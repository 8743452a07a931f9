//! Distrust of what is stored: cheap looks, full scrubs, digests and structure. Changes nothing but a name that is missing and
//! derived data that is lost.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::ids::{BlobId, ModelKey, Sha256Digest};
use crate::piece::{Cv, Layout, root};
use crate::safetensors::{self, BadSafetensors, PREFIX_BYTES};

use super::disk::Identity;
use super::error::{StoreError, Wrap};
use super::index::{BlobRecord, Record};
use super::read::{Pass, Reader};
use super::sidecar::Sidecar;
use super::{Partial, Store, disk, names};

/// What a cheap look at a stored model found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inspection {
    /// File and name are as they were stored.
    Intact,
    /// The name was missing or stood for another blob of ours. It is made again.
    LinkMissing,
    /// The file is not the one that was stored, or was written to since. Its content must be scrubbed.
    Changed {
        /// What is different.
        detail: String,
    },
    /// The file is gone.
    Missing,
}

impl Store {
    /// Looks at a stored blob and one of its names, without reading content.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownBlob`]; [`StoreError::Foreign`] if something that is not ours stands under the name;
    /// [`StoreError::Io`].
    pub fn inspect(&self, blob: BlobId, model: &ModelKey) -> Result<Inspection, StoreError> {
        let record = self.blob_record(blob)?;
        let found = match disk::look(&self.paths.blob(blob))? {
            Some(found) => found,
            None if self.restore_from_name(blob)? => return Ok(Inspection::Intact),
            None => return Ok(Inspection::Missing),
        };
        if let Some(detail) = difference(&record.identity, &Identity::of(&found)) {
            return Ok(Inspection::Changed { detail });
        }
        let mut index = self.index();
        if index.tables.links.get(model).is_none_or(|link| link.blob != blob) {
            index.append(vec![Record::Link { model: model.clone(), blob, source: None }], true)?;
        }
        let made = names::put(&self.paths, &index.tables, (model, blob), &self.temp())?;
        Ok(if made { Inspection::LinkMissing } else { Inspection::Intact })
    }

    /// Records that a blob's file is good as it is now: after a clean scrub of a changed one.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownBlob`], [`StoreError::Full`], [`StoreError::Io`].
    pub fn bless(&self, blob: BlobId) -> Result<(), StoreError> {
        let record = self.blob_record(blob)?;
        let path = self.paths.blob(blob);
        let identity = Identity::of(&std::fs::symlink_metadata(&path).wrap("look at", &path)?);
        self.index().append(vec![Record::Blob(BlobRecord { identity, ..record })], true)
    }

    /// Reads a whole blob, past the page cache, and returns its bad pieces in order. `progress` grows by the bytes read.
    ///
    /// A missing file is bad as a whole; in a short one the pieces behind its end are bad; in one that is too long, the
    /// last. A lost sidecar is made again if the content still has its digest, else every piece counts as bad.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownBlob`]; [`StoreError::Stopped`] once `stop` is set; [`StoreError::Io`] if the file cannot be
    /// read at all (a bad sector is a bad piece).
    pub fn scrub(&self, blob: BlobId, stop: &AtomicBool, progress: &AtomicU64) -> Result<Vec<u32>, StoreError> {
        self.compare(blob, stop, progress, None)
    }

    /// The same, one piece after another and at most `bytes_per_second` fast, so that nobody who reads from the disk notices.
    ///
    /// # Errors
    ///
    /// As [`Store::scrub`].
    pub fn patrol(&self, blob: BlobId, stop: &AtomicBool, bytes_per_second: u64) -> Result<Vec<u32>, StoreError> {
        self.compare(blob, stop, &AtomicU64::new(0), Some(bytes_per_second))
    }

    fn compare(
        &self,
        blob: BlobId,
        stop: &AtomicBool,
        progress: &AtomicU64,
        pace: Option<u64>,
    ) -> Result<Vec<u32>, StoreError> {
        let record = self.blob_record(blob)?;
        let layout = Layout::with_pieces_of(record.bytes, self.piece_bytes);
        let all: Vec<u32> = (0..layout.pieces()).collect();
        let path = self.paths.blob(blob);
        let Some(found) = disk::look(&path)? else { return Ok(all) };
        let reader = Reader::open(&path, self.direct)?;
        let pass = Pass { reader: &reader, path: &path, layout, stop, progress, past_cache: true, tap: None, pace };
        let hashed = pass.hash(&all)?;
        let mut bad = match Sidecar::read(&self.paths, blob, self.piece_bytes) {
            Some(sidecar) => differing(&hashed, &sidecar.cvs),
            None => self.bad_without_sidecar(blob, layout, hashed)?,
        };
        let last = layout.pieces().saturating_sub(1);
        if found.len() > record.bytes && bad.last() != Some(&last) {
            bad.push(last);
        }
        Ok(bad)
    }

    fn bad_without_sidecar(
        &self,
        blob: BlobId,
        layout: Layout,
        hashed: Vec<Option<Cv>>,
    ) -> Result<Vec<u32>, StoreError> {
        let Some(cvs) = hashed.into_iter().collect::<Option<Vec<Cv>>>() else {
            return Ok((0..layout.pieces()).collect());
        };
        if root(layout, &cvs) != blob {
            return Ok((0..layout.pieces()).collect());
        }
        tracing::warn!(%blob, "sidecar was lost, made it again");
        Sidecar::new(blob, layout, cvs).write(&self.paths)?;
        Ok(Vec::new())
    }

    /// The SHA-256 of a partial whose pieces are all finished. Reads it once, past the page cache.
    ///
    /// # Errors
    ///
    /// [`StoreError::Stopped`] once `stop` is set; [`StoreError::Io`].
    pub fn sha256(&self, partial: &Partial, stop: &AtomicBool) -> Result<Sha256Digest, StoreError> {
        let file = &*partial.file;
        let reader = Reader::open(&file.path, self.direct)?;
        let (path, layout, progress) = (&*file.path, file.layout, &AtomicU64::new(0));
        Pass { reader: &reader, path, layout, stop, progress, past_cache: true, tap: None, pace: None }.sha256()
    }

    /// Checks the structure of a partial that will be `name`, if its extension says that it is a safetensors file: the header
    /// parses, and its tensors tile the file exactly. Other files are fine.
    ///
    /// # Errors
    ///
    /// [`StoreError::Structure`] with what is wrong; [`StoreError::Io`].
    pub fn check_structure(&self, partial: &Partial, name: &ModelKey) -> Result<(), StoreError> {
        if !is_safetensors(name.as_str()) {
            return Ok(());
        }
        let (path, bytes) = (&*partial.file.path, partial.file.layout.bytes());
        let checked = match read_header(partial.file.cached(), path, bytes)? {
            Ok(header) => safetensors::check(&header, bytes),
            Err(bad) => Err(bad),
        };
        checked.map_err(|reason| StoreError::Structure { model: name.clone(), reason })
    }

    pub(super) fn blob_record(&self, blob: BlobId) -> Result<BlobRecord, StoreError> {
        self.index().tables.blobs.get(&blob).cloned().ok_or(StoreError::UnknownBlob { blob })
    }
}

/// Whether a file name says that the file is a safetensors file.
pub(super) fn is_safetensors(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".safetensors") || name.ends_with(".sft")
}

/// Reads the header of a safetensors file of `bytes` bytes.
pub(super) fn read_header(
    file: &std::fs::File,
    path: &Path,
    bytes: u64,
) -> Result<Result<Vec<u8>, BadSafetensors>, StoreError> {
    use std::os::unix::fs::FileExt;
    let mut prefix = [0; PREFIX_BYTES];
    if bytes < PREFIX_BYTES as u64 {
        return Ok(Err(BadSafetensors::TooShort { bytes }));
    }
    file.read_exact_at(&mut prefix, 0).wrap("read", path)?;
    let length = match safetensors::header_bytes(prefix, bytes) {
        Ok(length) => usize::try_from(length).expect("bounded by HEADER_BYTES_MAX"),
        Err(bad) => return Ok(Err(bad)),
    };
    let mut header = vec![0; length];
    file.read_exact_at(&mut header, PREFIX_BYTES as u64).wrap("read", path)?;
    Ok(Ok(header))
}

/// Pieces whose chaining value is not the one that it should be.
fn differing(hashed: &[Option<Cv>], expected: &[Cv]) -> Vec<u32> {
    (0u32..)
        .zip(hashed.iter().zip(expected))
        .filter(|(_, (now, then))| now.as_ref() != Some(then))
        .map(|(n, _)| n)
        .collect()
}

/// What tells two states of a file apart, in words.
fn difference(then: &Identity, now: &Identity) -> Option<String> {
    if then.bytes != now.bytes {
        return Some(format!("its size was {} bytes and is {}", then.bytes, now.bytes));
    }
    if then.inode != now.inode {
        return Some(format!("it is another file: inode was {} and is {}", then.inode, now.inode));
    }
    (then.modified != now.modified).then(|| {
        let ((then, _), (now, _)) = (then.modified, now.modified);
        format!("it was written to since: last modified at {then} then, at {now} now (seconds since 1970)")
    })
}
