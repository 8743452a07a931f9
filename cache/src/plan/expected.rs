//! What is expected to be used soon, by whom, in which order: the queues of ComfyUI's servers as the engine sees them. Plain data: each
//! source's list is its whole truth and replaces the one before. Decides nothing; never counts as a use.

use std::collections::BTreeMap;

use crate::clock::Tick;
use crate::ids::ModelKey;

/// Sources that may expect something at once: a node has a server for each GPU, and a few people.
pub const SOURCES_MAX: usize = 64;
/// Models that one source may expect. A hundred queued prompts name some hundred; what is farther away is not worth a place.
pub const WANTS_MAX: usize = 1024;

/// How near a use is. The smaller is the nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// Prompts before it: 0 is the one that runs.
    pub position: u32,
    /// Models that the same prompt uses before this one.
    pub order: u32,
}

impl Rank {
    /// The nearest: somebody waits already.
    pub const NOW: Self = Self { position: 0, order: 0 };
    /// The last use of the prompt that runs.
    pub const RUNNING: Self = Self { position: 0, order: u32::MAX };
    /// Nobody expects it.
    pub const NEVER: Self = Self { position: u32::MAX, order: u32::MAX };
}

/// One model that a source expects to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The model.
    pub model: ModelKey,
    /// When, in the order of the source's own queue.
    pub rank: Rank,
    /// Whether it should be in RAM by then. Not for what its reader has already, or keeps a copy of.
    pub ram: bool,
}

/// An expected use, with when it became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Future {
    /// How near it is.
    pub rank: Rank,
    /// Since when this source has expected this model without a break.
    pub since: Tick,
    /// Whether it should be in RAM by then.
    pub ram: bool,
}

/// All expected uses, by source.
///
/// Invariant: a source has at most one use of each model, its nearest.
#[derive(Debug, Default)]
pub struct Expected {
    sources: BTreeMap<String, BTreeMap<ModelKey, Future>>,
}

impl Expected {
    /// Replaces what a source expects by its whole new list; an empty one ends the source. Of a model that is listed twice the nearest
    /// use counts. Returns the models that it does not expect any more.
    ///
    /// Beyond [`WANTS_MAX`] the farthest are left out; a source beyond [`SOURCES_MAX`] is not heard.
    pub fn replace(&mut self, source: &str, mut wants: Vec<Want>, now: Tick) -> Vec<ModelKey> {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(source) {
            return Vec::new();
        }
        let before = self.sources.remove(source).unwrap_or_default();
        wants.sort_by_key(|want| want.rank);
        let mut after: BTreeMap<ModelKey, Future> = BTreeMap::new();
        for want in wants {
            if after.len() >= WANTS_MAX {
                break;
            }
            let since = before.get(&want.model).map_or(now, |future| future.since);
            let future = Future { rank: want.rank, since, ram: want.ram };
            // A later use of the same model may still want its pages.
            after.entry(want.model).and_modify(|nearest| nearest.ram |= want.ram).or_insert(future);
        }
        let gone = before.into_keys().filter(|model| !after.contains_key(model)).collect();
        if !after.is_empty() {
            self.sources.insert(source.to_owned(), after);
        }
        gone
    }

    /// Whether nothing is expected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The nearest use of a model; `None` if nobody expects one.
    #[must_use]
    pub fn rank(&self, model: &ModelKey) -> Option<Rank> {
        self.uses(model).map(|(_, future)| future.rank).min()
    }

    /// What a source's running prompt uses.
    pub fn running(&self, source: &str) -> impl Iterator<Item = &ModelKey> {
        let wants = self.sources.get(source).into_iter().flatten();
        wants.filter(|(_, future)| future.rank.position == 0).map(|(model, _)| model)
    }

    /// Whether somebody expects to read this model from RAM.
    #[must_use]
    pub fn wants_ram(&self, model: &ModelKey) -> bool {
        self.uses(model).any(|(_, future)| future.ram)
    }

    /// Who expects to use a model, and when.
    pub fn uses<'a>(&'a self, model: &'a ModelKey) -> impl Iterator<Item = (&'a str, Future)> {
        self.sources.iter().filter_map(move |(source, wants)| Some((source.as_str(), *wants.get(model)?)))
    }

    /// Every expected model with its nearest use, the nearest first; of equals the one that was known first.
    #[must_use]
    pub fn nearest(&self) -> Vec<(ModelKey, Future)> {
        let mut all: BTreeMap<&ModelKey, Future> = BTreeMap::new();
        for (model, future) in self.sources.values().flatten() {
            let nearest = all.entry(model).or_insert(*future);
            let ram = nearest.ram || future.ram;
            if (future.rank, future.since) < (nearest.rank, nearest.since) {
                *nearest = *future;
            }
            nearest.ram = ram;
        }
        let mut rows: Vec<(ModelKey, Future)> = all.into_iter().map(|(model, at)| (model.clone(), at)).collect();
        rows.sort_by(|(a, x), (b, y)| (x.rank, x.since, a).cmp(&(y.rank, y.since, b)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(model: &str, position: u32, order: u32) -> Want {
        Want { model: ModelKey::parse(model).expect("a key"), rank: Rank { position, order }, ram: false }
    }

    fn names(expected: &Expected) -> Vec<String> {
        expected.nearest().into_iter().map(|(model, _)| model.to_string()).collect()
    }

    #[test]
    fn a_list_replaces_the_one_before_and_keeps_since_when_a_model_is_expected() {
        let mut expected = Expected::default();
        expected.replace("a", vec![want("vae/1", 0, 0), want("vae/2", 1, 0)], Tick(1));
        let gone = expected.replace("a", vec![want("vae/2", 0, 0), want("vae/3", 1, 0)], Tick(2));
        assert_eq!(gone, [ModelKey::parse("vae/1").expect("a key")]);
        let since: Vec<u64> = expected.nearest().into_iter().map(|(_, future)| future.since.0).collect();
        assert_eq!((names(&expected), since), (vec!["vae/2".to_owned(), "vae/3".to_owned()], vec![1, 2]));
        expected.replace("a", Vec::new(), Tick(3));
        assert!(expected.is_empty());
    }

    #[test]
    fn of_several_uses_the_nearest_counts_over_all_sources() {
        let mut expected = Expected::default();
        expected.replace("a", vec![want("vae/1", 3, 1), want("vae/1", 2, 5), want("vae/2", 2, 0)], Tick(1));
        expected.replace("b", vec![want("vae/2", 4, 0), want("vae/3", 1, 0)], Tick(2));
        assert_eq!(names(&expected), ["vae/3", "vae/2", "vae/1"]);
        let key = ModelKey::parse("vae/1").expect("a key");
        assert_eq!(expected.rank(&key), Some(Rank { position: 2, order: 5 }));
    }

    #[test]
    fn neither_lists_nor_sources_grow_without_bound() {
        let mut expected = Expected::default();
        let many = (0..2 * WANTS_MAX as u32).rev().map(|at| want(&format!("vae/{at}"), at, 0)).collect();
        expected.replace("a", many, Tick(1));
        assert_eq!(expected.nearest().len(), WANTS_MAX);
        assert_eq!(names(&expected)[0], "vae/0", "the nearest are kept");
        for source in 0..2 * SOURCES_MAX {
            expected.replace(&format!("s{source}"), vec![want("vae/x", 9, 0)], Tick(2));
        }
        assert_eq!(expected.sources.len(), SOURCES_MAX);
    }
}
