//! How a partial becomes a blob, and how a blob gets a name. The order of the steps is the promise: see the room's
//! documentation.

use crate::clock::Wall;
use crate::engine::view::Trust;
use crate::ids::{BlobId, ModelKey, Sha256Digest};
use crate::piece::{Cv, Layout, root};

use super::disk::Identity;
use super::error::{StoreError, Wrap};
use super::index::{BlobRecord, Index, Record};
use super::sidecar::Sidecar;
use super::{Partial, PartialName, Store, StoredLink, crash, disk, names};

/// What a partial becomes.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Its digest: what the chaining values merge into.
    pub blob: BlobId,
    /// The chaining value of each piece, in order.
    pub cvs: Vec<Cv>,
    /// How its content was checked.
    pub trust: Trust,
    /// Its SHA-256, if it was computed.
    pub sha256: Option<Sha256Digest>,
    /// The names that it gets. Each must be for `blob`.
    pub links: Vec<StoredLink>,
    /// The present: its first use.
    pub now: Wall,
}

impl Store {
    /// Makes a whole partial a durable blob and gives it its names. The partial is gone then, and its handles are closed.
    ///
    /// If the blob is stored already, the partial is discarded and only the names are added. A name that stands for
    /// another blob is replaced atomically.
    ///
    /// # Errors
    ///
    /// [`StoreError::WrongDigest`] if the pieces do not make the blob, and [`StoreError::Foreign`] if something that is
    /// not ours stands under a name: nothing has changed then. [`StoreError::Sealed`] if the partial was closed;
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn commit(&self, partial: &Partial, commit: Commit) -> Result<(), StoreError> {
        let file = &*partial.file;
        if commit.cvs.len() != file.layout.pieces() as usize || root(file.layout, &commit.cvs) != commit.blob {
            let whole = commit.cvs.len() == file.layout.pieces() as usize;
            let actual = if whole { root(file.layout, &commit.cvs) } else { BlobId([0; 32]) };
            return Err(StoreError::WrongDigest { blob: commit.blob, actual });
        }
        self.finish_withdrawal(commit.blob)?;
        {
            let index = self.index();
            commit.links.iter().try_for_each(|link| names::refuse_foreign(&self.paths, &index.tables, &link.model))?;
        }
        if !file.seal() {
            return Err(StoreError::Sealed { name: file.name });
        }
        let committed = self.commit_sealed(partial, commit);
        if committed.is_err() && disk::look(&file.path).is_ok_and(|found| found.is_some()) {
            file.unseal();
        }
        committed
    }

    fn commit_sealed(&self, partial: &Partial, commit: Commit) -> Result<(), StoreError> {
        let file = &*partial.file;
        if self.has_file(commit.blob)? {
            self.name_all(&commit.links)?;
            return self.discard(file.name).map(|_| ());
        }
        file.cached().set_len(file.layout.bytes()).wrap("cut to size", &file.path)?;
        file.cached().sync_all().wrap("make durable", &file.path)?;
        crash::point()?;
        self.publish(file.name, file.layout, &commit)?;
        self.open_partials().remove(&file.name);
        crash::point()?;
        disk::unlink(&self.paths.journal(file.name)).map(|_| ())
    }

    /// Makes the whole, verified, durable file of a partial a blob with names. The blob must not be stored yet.
    pub(super) fn publish(&self, name: PartialName, layout: Layout, commit: &Commit) -> Result<(), StoreError> {
        let blob = commit.blob;
        Sidecar::new(blob, layout, commit.cvs.clone()).write(&self.paths)?;
        crash::point()?;
        let data = self.paths.data(name);
        let found = std::fs::symlink_metadata(&data).wrap("look at", &data)?;
        let record = Record::Blob(BlobRecord {
            blob,
            bytes: layout.bytes(),
            trust: commit.trust,
            sha256: commit.sha256,
            last_used: commit.now,
            identity: Identity::of(&found),
            partial: name,
        });
        let mut index = self.index();
        mean(&mut index, vec![record], &commit.links)?;
        crash::point()?;
        self.move_in(blob, name)?;
        self.make_names(&index, &commit.links)
    }

    /// Moves the file of a partial that the index calls a blob to its place.
    pub(super) fn move_in(&self, blob: BlobId, name: PartialName) -> Result<(), StoreError> {
        let path = self.paths.blob(blob);
        disk::make_dir(path.parent().expect("blobs lie in folders"), self.paths.dir_mode)?;
        disk::rename(&self.paths.data(name), &path)
    }

    /// Whether a blob is stored, and its file is there.
    pub(super) fn has_file(&self, blob: BlobId) -> Result<bool, StoreError> {
        let known = self.index().tables.blobs.contains_key(&blob);
        Ok(known && disk::look(&self.paths.blob(blob))?.is_some())
    }

    /// Gives a stored blob names: what is meant first, durably, then the names.
    pub(super) fn name_all(&self, links: &[StoredLink]) -> Result<(), StoreError> {
        let mut index = self.index();
        mean(&mut index, Vec::new(), links)?;
        self.make_names(&index, links)
    }

    fn make_names(&self, index: &Index, links: &[StoredLink]) -> Result<(), StoreError> {
        for StoredLink { model, blob, .. } in links {
            crash::point()?;
            names::put(&self.paths, &index.tables, (model, *blob), &self.temp())?;
        }
        crash::point()
    }

    /// Gives a stored blob a name, in place of one that stands for another blob of ours.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownBlob`]; [`StoreError::Foreign`] if something that is not ours stands there;
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn link(&self, link: &StoredLink) -> Result<(), StoreError> {
        {
            let index = self.index();
            if !index.tables.blobs.contains_key(&link.blob) {
                return Err(StoreError::UnknownBlob { blob: link.blob });
            }
            names::refuse_foreign(&self.paths, &index.tables, &link.model)?;
        }
        self.name_all(std::slice::from_ref(link))
    }

    /// Takes a name away; the blob stays. Fine if there is no such name. A foreign file that stands there now stays.
    ///
    /// Folders below the top one that became empty go too.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn unlink(&self, model: &ModelKey) -> Result<(), StoreError> {
        let mut index = self.index();
        let Some(link) = index.tables.links.get(model) else { return Ok(()) };
        if let Some(record) = index.tables.blobs.get(&link.blob) {
            names::remove(&self.paths, &index.tables, model, (&record.identity, self.mark_for(model)))?;
        }
        crash::point()?;
        index.append(vec![Record::Unlink { model: model.clone() }], true)
    }
}

/// Appends records, and the names that are meant, to the index, durably.
fn mean(index: &mut Index, mut records: Vec<Record>, links: &[StoredLink]) -> Result<(), StoreError> {
    for StoredLink { model, blob, source } in links {
        records.push(Record::Link { model: model.clone(), blob: *blob, source: source.clone() });
    }
    index.append(records, true)
}
