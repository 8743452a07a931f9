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

/// Asks every origin for a model, the preferred first, until one has it.
pub(crate) async fn locate(origins: &[Arc<Origin>], model: &ModelKey) -> Result<(OriginName, Listed), Fault> {
    let mut failed = None;
    for origin in origins {
        match origin.locate(model).await {
            Ok(Some(listed)) => return Ok((origin.name().clone(), listed)),
            Ok(None) => {}
            Err(error) => {
                failed.get_or_insert(error.fault(origin.name(), model.as_str()));
            }
        }
    }
    let names: Vec<&str> = origins.iter().map(|origin| &*origin.name().0).collect();
    let hint = match names.as_slice() {
        [] => "no origin is configured: add an [[origin]] to the configuration".to_owned(),
        names => format!("asked {}; see tierd models for what there is", names.join(", ")),
    };
    Err(failed.unwrap_or_else(|| Fault::unknown_model(model, hint)))
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
