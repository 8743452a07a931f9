//! What the node knows by name: a snapshot for those who look many names up at once, such as the models of a workflow. Asks
//! nobody and does not change; take a new one to see what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::{Catalog, Names};
use crate::engine::view::Tier;
use crate::ids::ModelKey;

/// A model that is on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// Its size.
    pub bytes: u64,
    /// The fastest tier that has it.
    pub tier: Tier,
}

/// The catalog and what is on the node, as they were when it was taken. Cheap to take: the catalog is shared, and its index
/// is built once, by whoever looks first.
#[derive(Debug, Clone, Default)]
pub struct Known {
    catalog: Arc<Catalog>,
    here: BTreeMap<ModelKey, Here>,
    /// Names that are on the node and in no catalog.
    extra: Names,
}

impl Known {
    /// A snapshot of a catalog and of what is on the node.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, here: BTreeMap<ModelKey, Here>) -> Self {
        let extra = Names::new(here.keys().filter(|model| catalog.get(model).is_none()).cloned());
        Self { catalog, here, extra }
    }

    /// Models that are on the node and nowhere else: a snapshot without any origin.
    #[must_use]
    pub fn of(models: impl IntoIterator<Item = (ModelKey, u64)>) -> Self {
        let here = models.into_iter().map(|(model, bytes)| (model, Here { bytes, tier: Tier::Nvme })).collect();
        Self::new(Arc::default(), here)
    }

    /// Whether some origin or tier knows the model.
    #[must_use]
    pub fn contains(&self, model: &ModelKey) -> bool {
        self.here.contains_key(model) || self.catalog.get(model).is_some()
    }

    /// The model's size.
    #[must_use]
    pub fn bytes(&self, model: &ModelKey) -> Option<u64> {
        self.here.get(model).map(|here| here.bytes).or_else(|| self.catalog.get(model).map(|entry| entry.bytes))
    }

    /// The fastest tier that has the model.
    #[must_use]
    pub fn tier(&self, model: &ModelKey) -> Option<Tier> {
        let listed = || self.catalog.get(model).map(|_| Tier::Origin);
        self.here.get(model).map(|here| here.tier).or_else(listed)
    }

    /// The models with this path below their folder, whatever the folder; in the order of their keys.
    #[must_use]
    pub fn at_path(&self, path: &str) -> Vec<ModelKey> {
        merged(self.catalog.names().at_path(path), self.extra.at_path(path))
    }

    /// The models whose file has this name, wherever it lies; in the order of their keys.
    #[must_use]
    pub fn at_base(&self, base: &str) -> Vec<ModelKey> {
        merged(self.catalog.names().at_base(base), self.extra.at_base(base))
    }

    /// The models below `<folder>/<path>/`, at most `max`, in the order of their keys.
    #[must_use]
    pub fn below(&self, prefix: &ModelKey, max: usize) -> Vec<ModelKey> {
        let inside =
            |model: &&ModelKey| model.as_str().strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('/'));
        // Names that only begin alike (`a-b` for `a`) may stand between: they are passed over, not an end.
        let begins = |model: &&ModelKey| model.as_str().starts_with(prefix.as_str());
        let listed = self.catalog.from(prefix).map(|(model, _)| model).take_while(begins).filter(inside).take(max);
        let here = self.here.range(prefix..).map(|(model, _)| model).take_while(begins).filter(inside).take(max);
        let all: BTreeSet<&ModelKey> = listed.chain(here).collect();
        all.into_iter().take(max).cloned().collect()
    }

    /// How many models some origin or tier knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.catalog.len() + self.extra.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn merged(listed: &[ModelKey], extra: &[ModelKey]) -> Vec<ModelKey> {
    let mut all = [listed, extra].concat();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Entry;

    fn key(text: &str) -> ModelKey {
        ModelKey::parse(text).expect("a key")
    }

    fn known() -> Known {
        let entry = |bytes| Entry { bytes, blake3: None, sha256: None, sources: Vec::new() };
        let listed = ["vae/a.safetensors", "loras/x/a.safetensors", "diffusers/sd/unet/m.bin", "diffusers/sd-2/m.bin"];
        let catalog = Catalog::from_entries(listed.map(|name| (key(name), entry(5))));
        let here = [("vae/a.safetensors", 7), ("loras/own.safetensors", 9), ("diffusers/sd/index.json", 1)];
        let here = here.map(|(name, bytes)| (key(name), Here { bytes, tier: Tier::Ram }));
        Known::new(Arc::new(catalog), here.into_iter().collect())
    }

    #[test]
    fn what_is_here_counts_before_what_is_listed_and_nothing_is_told_twice() {
        let known = known();
        assert_eq!(known.len(), 6);
        assert_eq!(
            (known.bytes(&key("vae/a.safetensors")), known.tier(&key("vae/a.safetensors"))),
            (Some(7), Some(Tier::Ram))
        );
        assert_eq!(known.tier(&key("loras/x/a.safetensors")), Some(Tier::Origin));
        assert!(!known.contains(&key("vae/b.safetensors")));
        assert_eq!(known.at_base("a.safetensors"), [key("loras/x/a.safetensors"), key("vae/a.safetensors")]);
        assert_eq!(known.at_path("a.safetensors"), [key("vae/a.safetensors")]);
        assert_eq!(known.at_path("x/a.safetensors"), [key("loras/x/a.safetensors")]);
        assert_eq!(known.at_path("own.safetensors"), [key("loras/own.safetensors")]);
        assert_eq!(known.at_path("a"), [], "no prefix");
    }

    #[test]
    fn a_folder_holds_what_is_below_it_and_not_what_begins_alike() {
        let known = known();
        let below = [key("diffusers/sd/index.json"), key("diffusers/sd/unet/m.bin")];
        assert_eq!(known.below(&key("diffusers/sd"), 10), below);
        assert_eq!(known.below(&key("diffusers/sd"), 1), below[..1]);
        assert_eq!(known.below(&key("diffusers/s"), 10), []);
    }
}
