//! An order for a queue of workflows in which few bytes move, and groups that share their models. Arithmetic only.

use std::collections::BTreeSet;

use crate::ids::ModelKey;

/// Two workflows are of one group if they share at least this part of all their models (Jaccard index).
pub const GROUP_SHARE: f64 = 0.7;
/// Most workflows in one question: the order costs their square.
pub const WORKFLOWS_MAX: usize = 256;

/// One workflow's place in the order.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// Its place in the question.
    pub index: usize,
    /// Bytes that must move when it runs at this place.
    pub bytes_moved: u64,
    /// Bytes that it shares with the one before it, or with what is in the fast tiers for the first.
    pub bytes_shared: u64,
    /// Its group: the place in the question of the group's first workflow.
    pub group: usize,
}

/// Orders workflows so that each next one moves the fewest bytes after the one before it; what is equal stays in the order
/// asked. `sets` are the models of each; `bytes` gives a model's size; `here` says whether a model need not move at all.
#[must_use]
pub fn rank(
    sets: &[BTreeSet<ModelKey>],
    bytes: &dyn Fn(&ModelKey) -> u64,
    here: &dyn Fn(&ModelKey) -> bool,
) -> Vec<Ranked> {
    let groups = groups(sets);
    let mut left: Vec<usize> = (0..sets.len()).collect();
    let mut order: Vec<Ranked> = Vec::with_capacity(sets.len());
    while !left.is_empty() {
        let before = order.last().map(|ranked| &sets[ranked.index]);
        let loaded = |model: &ModelKey| before.map_or_else(|| here(model), |set| set.contains(model));
        let cost = |index: usize| -> (u64, u64) {
            let mut cost = (0, 0);
            for model in &sets[index] {
                let slot = if loaded(model) { &mut cost.1 } else { &mut cost.0 };
                *slot += bytes(model);
            }
            cost
        };
        // The fewest bytes to move; among equals the most shared; then the order asked.
        let best = left.iter().enumerate().min_by_key(|(_, index)| {
            let (moved, shared) = cost(**index);
            (moved, std::cmp::Reverse(shared), **index)
        });
        let Some((place, _)) = best else { break };
        let index = left.remove(place);
        let (bytes_moved, bytes_shared) = cost(index);
        order.push(Ranked { index, bytes_moved, bytes_shared, group: groups[index] });
    }
    order
}

/// For each workflow the first one that it shares enough with.
fn groups(sets: &[BTreeSet<ModelKey>]) -> Vec<usize> {
    let mut groups: Vec<usize> = Vec::with_capacity(sets.len());
    for (index, set) in sets.iter().enumerate() {
        let first = (0..index).find(|other| groups[*other] == *other && share(&sets[*other], set) >= GROUP_SHARE);
        groups.push(first.unwrap_or(index));
    }
    groups
}

/// The Jaccard index: the part of all models of both that both have. Two empty sets are alike.
fn share(a: &BTreeSet<ModelKey>, b: &BTreeSet<ModelKey>) -> f64 {
    let both = a.intersection(b).count();
    let all = a.len() + b.len() - both;
    if all == 0 { 1.0 } else { both as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<ModelKey> {
        names.iter().map(|name| ModelKey::parse(&format!("vae/{name}")).expect("a key")).collect()
    }

    fn order(sets: &[BTreeSet<ModelKey>], here: &BTreeSet<ModelKey>) -> Vec<usize> {
        rank(sets, &|_| 10, &|model| here.contains(model)).iter().map(|ranked| ranked.index).collect()
    }

    #[test]
    fn workflows_that_share_models_follow_each_other_and_what_is_loaded_comes_first() {
        let sets = [set(&["a", "b"]), set(&["c", "d"]), set(&["a", "b", "x"]), set(&["c", "d"])];
        assert_eq!(order(&sets, &set(&["c", "d"])), [1, 3, 0, 2]);
        let ranked = rank(&sets, &|_| 10, &|_| false);
        assert_eq!(ranked.iter().map(|ranked| ranked.bytes_moved).collect::<Vec<_>>(), [20, 10, 20, 0]);
    }

    #[test]
    fn equal_workflows_keep_their_order() {
        let sets = [set(&["a"]), set(&["b"]), set(&["c"])];
        assert_eq!(order(&sets, &BTreeSet::new()), [0, 1, 2]);
    }

    #[test]
    fn groups_share_at_least_seven_tenths_with_their_first() {
        let many = set(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
        let near = set(&["a", "b", "c", "d", "e", "f", "g"]);
        let far = set(&["a", "b", "c", "d", "e", "f"]);
        assert_eq!(groups(&[many, near, far.clone(), far]), [0, 0, 2, 2]);
    }

    #[test]
    fn every_workflow_is_ranked_once_and_an_empty_one_moves_nothing() {
        let sets = [set(&["a"]), set(&[]), set(&["a"])];
        let mut found = order(&sets, &BTreeSet::new());
        assert_eq!(found[0], 1);
        found.sort_unstable();
        assert_eq!(found, [0, 1, 2]);
    }
}
