//! What the store does when it is opened: makes the disk agree with the index after a crash at any point. Needs no hand, removes no
//! file that is not ours, and costs one look at each file.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

use crate::clock::Wall;
use crate::ids::{BlobId, ModelKey};
use crate::piece::Layout;

use super::disk::Identity;
use super::error::{StoreError, Wrap};
use super::index::{BlobRecord, Record};
use super::paths::Paths;
use super::sidecar::Sidecar;
use super::{PartialName, Store, StoredPartial, disk, journal, names};

/// Removes what was being written when the power went: such files never had their own name.
pub(super) fn clean_temps(paths: &Paths) -> Result<(), StoreError> {
    let mut dirs = vec![paths.v1(), paths.partial(), paths.catalog()];
    // The probe for hard links lies there for a moment.
    dirs.push(paths.models.clone());
    for dir in dirs {
        for (name, path) in disk::list(&dir)? {
            let ours = dir != paths.models || name.starts_with(".tierd-");
            if ours
                && name.ends_with(".tmp")
                && disk::look(&path)?.is_some_and(|found| found.is_file() || found.is_symlink())
            {
                disk::unlink(&path)?;
            }
        }
    }
    Ok(())
}

impl Store {
    /// Makes the disk agree with the index, and returns the partials that are left.
    pub(super) fn heal(&self) -> Result<Vec<StoredPartial>, StoreError> {
        let withdrawn: Vec<BlobId> = self.index().tables.withdrawn.keys().copied().collect();
        withdrawn.into_iter().try_for_each(|blob| self.finish_withdrawal(blob))?;
        self.heal_blobs()?;
        self.heal_names()?;
        self.heal_nameless()?;
        self.heal_orphans()?;
        self.drop_orphan_sidecars()?;
        self.list_partials()
    }

    /// Finishes commits whose file was not moved yet, and drops blobs whose file is gone. A file that lost only its place in
    /// `blobs/` gets it back from one of its names.
    fn heal_blobs(&self) -> Result<(), StoreError> {
        let blobs: Vec<BlobRecord> = self.index().tables.blobs.values().cloned().collect();
        for BlobRecord { blob, partial, identity, .. } in blobs {
            if disk::look(&self.paths.blob(blob))?.is_some() {
                continue;
            }
            if disk::look(&self.paths.data(partial))?.is_some_and(|found| Identity::of(&found) == identity) {
                tracing::info!(%blob, "commit was cut short, finishing it");
                self.move_in(blob, partial)?;
            } else if !self.restore_from_name(blob)? {
                tracing::warn!(%blob, "blob's file is gone, forgetting it");
                self.index().append(vec![Record::Gone { blob }], false)?;
            }
        }
        Ok(())
    }

    /// Links a blob's file back into `blobs/` if one of its names still is exactly the file that was stored.
    pub(super) fn restore_from_name(&self, blob: BlobId) -> Result<bool, StoreError> {
        let index = self.index();
        let Some(record) = index.tables.blobs.get(&blob) else { return Ok(false) };
        for model in index.tables.names_of(blob) {
            let name = self.paths.model(&model);
            if disk::look(&name)?.is_some_and(|found| Identity::of(&found) == record.identity) {
                let path = self.paths.blob(blob);
                disk::make_dir(path.parent().expect("blobs lie in folders"), self.paths.dir_mode)?;
                std::fs::hard_link(&name, &path).wrap("restore", &path)?;
                tracing::warn!(%blob, %model, "blob's file was gone, restored it from its name");
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes names that are missing or stand for a replaced blob; forgets those under which a foreign file stands.
    fn heal_names(&self) -> Result<(), StoreError> {
        let mut index = self.index();
        let mut forgotten = Vec::new();
        for (model, link) in &index.tables.links {
            if !index.tables.blobs.contains_key(&link.blob) {
                forgotten.push(Record::Unlink { model: model.clone() });
                continue;
            }
            match names::put(&self.paths, &index.tables, (model, link.blob), &self.temp()) {
                Ok(false) => {}
                Ok(true) => tracing::info!(%model, blob = %link.blob, "name was missing, made it again"),
                Err(StoreError::Foreign { reason, .. }) => {
                    tracing::warn!(%model, reason, "something that is not ours stands under this name, leaving it");
                    forgotten.push(Record::Unlink { model: model.clone() });
                }
                Err(error) => return Err(error),
            }
        }
        if forgotten.is_empty() { Ok(()) } else { index.append(forgotten, true) }
    }

    /// A blob whose name's record was lost gets back the names under `models/` that are its very file.
    fn heal_nameless(&self) -> Result<(), StoreError> {
        let mut nameless: BTreeMap<u64, BlobId> = BTreeMap::new();
        {
            let index = self.index();
            let named: BTreeSet<BlobId> = index.tables.links.values().map(|link| link.blob).collect();
            for (blob, record) in index.tables.blobs.iter().filter(|(blob, _)| !named.contains(blob)) {
                nameless.insert(record.identity.inode, *blob);
            }
        }
        if nameless.is_empty() {
            return Ok(());
        }
        let mut files = Vec::new();
        self.walk(&self.paths.models, 0, &mut files)?;
        let mut found = Vec::new();
        for file in files {
            let inode = disk::look(&file)?.map_or(0, |found| found.ino());
            let key = file.strip_prefix(&self.paths.models).ok().and_then(|path| path.to_str());
            let model = key.and_then(|key| ModelKey::parse(key).ok().filter(|model| model.as_str() == key));
            if let (Some(blob), Some(model)) = (nameless.get(&inode), model) {
                tracing::warn!(%blob, %model, "the record of a name was lost, found it again");
                found.push(Record::Link { model, blob: *blob, source: None });
            }
        }
        if found.is_empty() { Ok(()) } else { self.index().append(found, true) }
    }

    /// Puts files that the index does not know back to being partials: the index was lost.
    fn heal_orphans(&self) -> Result<(), StoreError> {
        for (blob, path) in self.list_fanned(&self.paths.blobs())? {
            if self.index().tables.blobs.contains_key(&blob) {
                continue;
            }
            let found = std::fs::symlink_metadata(&path).wrap("look at", &path)?;
            let sidecar = Sidecar::read(&self.paths, blob, self.piece_bytes);
            match sidecar {
                Some(sidecar) if found.nlink() == 1 => {
                    tracing::warn!(%blob, "blob is in no index, to be checked before it is one again");
                    let name = PartialName::of_blob(blob);
                    let layout = Layout::with_pieces_of(sidecar.bytes, self.piece_bytes);
                    self.become_partial(&path, (name, layout), (0u32..).zip(&sidecar.cvs).collect())?;
                }
                // Its content lives on under its other names, which are not ours.
                Some(_) | None => {
                    tracing::warn!(%blob, links = found.nlink(), "blob is in no index, dropping its file");
                    disk::unlink(&path)?;
                }
            }
        }
        Ok(())
    }

    fn drop_orphan_sidecars(&self) -> Result<(), StoreError> {
        for (blob, path) in self.list_fanned(&self.paths.pieces())? {
            if !self.index().tables.blobs.contains_key(&blob) {
                disk::unlink(&path)?;
            }
        }
        Ok(())
    }

    /// Files named by a digest, two folders deep.
    fn list_fanned(&self, dir: &std::path::Path) -> Result<Vec<(BlobId, std::path::PathBuf)>, StoreError> {
        let mut all = Vec::new();
        for (_, folder) in disk::list(dir)? {
            for (name, path) in disk::list(&folder)? {
                all.extend(BlobId::from_hex(&name).map(|blob| (blob, path)));
            }
        }
        Ok(all)
    }

    /// Lists partials that can be resumed, and drops what is left of others.
    fn list_partials(&self) -> Result<Vec<StoredPartial>, StoreError> {
        let mut partials = Vec::new();
        for (file, path) in disk::list(&self.paths.partial())? {
            let Some((hex, kind)) = file.rsplit_once('.') else { continue };
            let Some(name) = PartialName::from_hex(hex) else { continue };
            match kind {
                "data" => {
                    let told = journal::read(&self.paths.journal(name)).filter(|told| told.name == name);
                    match (told, disk::look(&path)?) {
                        (Some(told), Some(found)) => partials.push(StoredPartial {
                            name,
                            bytes: told.layout.bytes(),
                            touched: Wall(u64::try_from(found.mtime()).unwrap_or(0).saturating_mul(1000)),
                        }),
                        _ => drop(self.discard(name)?),
                    }
                }
                "journal" if disk::look(&self.paths.data(name))?.is_none() => drop(disk::unlink(&path)?),
                _ => {}
            }
        }
        Ok(partials)
    }
}
