//! Knowledge of L4: each origin's last listing, kept across restarts, and what was found by asking.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::catalog::{Catalog, Listed, OriginSnapshot, Source};
use crate::clock::Wall;
use crate::engine::event::Relocated;
use crate::fault::Fault;
use crate::ids::{ModelKey, OriginName};
use crate::manifest::Manifest;
use crate::origin::{Origin, OriginError};

/// Models remembered that were found by asking origins which cannot be listed.
const FOUND_MAX: usize = 10_000;

/// What every origin is known to have.
#[derive(Debug)]
pub(crate) struct Sources {
    order: Vec<OriginName>,
    snapshots: BTreeMap<OriginName, OriginSnapshot>,
    found: Vec<(OriginName, Listed)>,
}

impl Sources {
    /// Nothing known yet; origins in order of preference.
    pub(crate) fn new(origins: &[Arc<Origin>]) -> Self {
        let unlisted = |origin: &Arc<Origin>| OriginSnapshot {
            origin: origin.name().clone(),
            at: Wall::default(),
            prefix: origin.prefix().to_owned(),
            listed: Vec::new(),
            manifest: None,
        };
        Self {
            order: origins.iter().map(|origin| origin.name().clone()).collect(),
            snapshots: origins.iter().map(|origin| (origin.name().clone(), unlisted(origin))).collect(),
            found: Vec::new(),
        }
    }

    /// A new listing replaces the last one. What was found by asking and is listed now is forgotten.
    pub(crate) fn listed(&mut self, snapshot: OriginSnapshot) {
        let listed: std::collections::BTreeSet<&ModelKey> =
            snapshot.listed.iter().map(|listed| &listed.model).collect();
        self.found.retain(|(origin, found)| *origin != snapshot.origin || !listed.contains(&found.model));
        self.snapshots.insert(snapshot.origin.clone(), snapshot);
    }

    /// An origin answered for one model: its present state replaces what was known.
    pub(crate) fn found(&mut self, origin: &OriginName, listed: Listed) {
        if let Some(snapshot) = self.snapshots.get_mut(origin) {
            snapshot.listed.retain(|known| known.model != listed.model);
        }
        self.found.retain(|(name, found)| name != origin || found.model != listed.model);
        if self.found.len() >= FOUND_MAX {
            self.found.remove(0);
        }
        self.found.push((origin.clone(), listed));
    }

    /// Whether an origin was ever listed, in this run or one before: its manifest is known then, if it has one.
    pub(crate) fn is_listed(&self, origin: &OriginName) -> bool {
        self.snapshots.get(origin).is_some_and(|snapshot| snapshot.at != Wall::default())
    }

    /// A newer manifest of an origin.
    pub(crate) fn manifest(&mut self, origin: &OriginName, manifest: Option<Manifest>) {
        if let Some(snapshot) = self.snapshots.get_mut(origin) {
            snapshot.manifest = manifest;
        }
    }

    /// The catalog of all this.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        let snapshots: Vec<OriginSnapshot> =
            self.order.iter().filter_map(|origin| self.snapshots.get(origin)).cloned().collect();
        Arc::new(Catalog::build(&snapshots, &self.found))
    }

    /// How many models an origin has, and when it was listed.
    pub(crate) fn of(&self, origin: &OriginName) -> (u64, Option<Wall>) {
        let found = self.found.iter().filter(|(name, _)| name == origin).count() as u64;
        let snapshot = self.snapshots.get(origin);
        let manifest = snapshot.and_then(|snapshot| snapshot.manifest.as_ref()).map_or(0, |m| m.models.len());
        let listed = snapshot.map_or(0, |snapshot| snapshot.listed.len().max(manifest)) as u64;
        let at = snapshot.map(|snapshot| snapshot.at).filter(|at| *at != Wall::default());
        (listed + found, at)
    }
}

/// What an origin that was asked for a model has, and its manifest if that had not been read before.
pub(crate) type Located = (OriginName, Listed, Option<Manifest>);

/// Asks every origin for a model, the preferred first, until one has it.
///
/// An origin that was not listed yet is asked for its manifest too: its digests hold from the first fetch on.
pub(crate) async fn locate(origins: &[(Arc<Origin>, bool)], model: &ModelKey) -> Result<Located, Fault> {
    let mut failed = None;
    for (origin, is_listed) in origins {
        match locate_at(origin, *is_listed, model).await {
            Ok(Some((listed, manifest))) => return Ok((origin.name().clone(), listed, manifest)),
            Ok(None) => {}
            Err(error) => {
                failed.get_or_insert(error.fault(origin.name(), model.as_str()));
            }
        }
    }
    let names: Vec<&str> = origins.iter().map(|(origin, _)| &*origin.name().0).collect();
    let hint = match names.as_slice() {
        [] => "no origin is configured: add an [[origin]] to the configuration".to_owned(),
        names => format!("asked {}; see tierd models for what there is", names.join(", ")),
    };
    Err(failed.unwrap_or_else(|| Fault::unknown_model(model, hint)))
}

async fn locate_at(
    origin: &Origin,
    is_listed: bool,
    model: &ModelKey,
) -> Result<Option<(Listed, Option<Manifest>)>, OriginError> {
    let Some(listed) = origin.locate(model).await? else { return Ok(None) };
    if is_listed {
        return Ok(Some((listed, None)));
    }
    match origin.manifest().await {
        Ok(manifest) => Ok(Some((listed, manifest))),
        // Servers that hide what they have say this of what they do not have; the model itself they have just shown.
        Err(OriginError::Denied { .. }) => Ok(Some((listed, None))),
        Err(error) => Err(error),
    }
}

/// What an origin has now under a model's name, with the digests of its present manifest.
pub(crate) async fn relocate(
    origin: &Origin,
    model: &ModelKey,
    with_manifest: bool,
) -> Result<Option<(Listed, Option<Manifest>, Relocated)>, OriginError> {
    let Some(listed) = origin.locate(model).await? else { return Ok(None) };
    let manifest = if with_manifest { origin.manifest().await? } else { None };
    let named = manifest.as_ref().and_then(|manifest| manifest.models.iter().find(|named| named.name == *model));
    let named = named.filter(|named| named.size == listed.bytes);
    let source = Source {
        origin: origin.name().clone(),
        path: listed.path.clone(),
        bytes: listed.bytes,
        validator: listed.validator.clone(),
    };
    let relocated = Relocated {
        source,
        blake3: named.and_then(|named| named.blake3),
        sha256: named.and_then(|named| named.sha256),
    };
    Ok(Some((listed, manifest, relocated)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OriginConfig, OriginKind};
    use crate::ids::BlobId;
    use crate::manifest::ManifestModel;

    #[tokio::test]
    async fn a_model_that_is_asked_for_before_the_first_listing_is_held_to_the_manifest() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("vae")).expect("a folder");
        std::fs::write(folder.path().join("vae/a.safetensors"), [0; 8]).expect("a file");
        let model = ModelKey::parse("vae/a.safetensors").expect("a key");
        let mut manifest = Manifest::empty();
        let digest = BlobId([7; 32]);
        let row =
            ManifestModel { name: model.clone(), size: 8, blake3: Some(digest), sha256: None, sources: Vec::new() };
        manifest.merge([row]);
        std::fs::write(folder.path().join("tierd-manifest.json"), manifest.to_json()).expect("a file");
        let config = OriginConfig::new("pool", OriginKind::Folder { path: folder.path().to_owned() });
        let origin = Arc::new(Origin::open(&config).expect("good"));

        let mut sources = Sources::new(std::slice::from_ref(&origin));
        assert!(!sources.is_listed(origin.name()));
        let (name, listed, manifest) = locate(&[(origin.clone(), false)], &model).await.expect("found");
        sources.found(&name, listed);
        sources.manifest(&name, manifest);
        assert_eq!(sources.catalog().get(&model).expect("known").blake3, Some(digest));

        sources.listed(origin.snapshot(Wall(1)).await.expect("listed"));
        assert!(sources.is_listed(origin.name()));
        let (_, _, again) = locate(&[(origin, true)], &model).await.expect("found");
        assert_eq!(again, None, "it is known already");
    }
}
