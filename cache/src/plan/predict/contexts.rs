//! What came after what. A context is "this client, after these two models" or less than that; it counts what came then. Counts fade,
//! few are kept of each context, and of contexts the longest untouched are forgotten first.

use std::collections::HashMap;

/// Contexts that are kept.
pub(super) const CONTEXTS_MAX: usize = 4096;
/// Counts that one context keeps: what is less common than the twelfth is not likely.
pub(super) const ROWS_MAX: usize = 12;
/// Half-life of a count, in milliseconds: a week, so that a habit given up last month is not a habit.
const HALF_LIFE_MS: f64 = 7.0 * 86_400_000.0;

/// A context's name: a hash of what it is about. Two that meet would blur each other, once in 10^12.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key(pub(super) u64);

impl Key {
    /// The context of a kind with these parts.
    pub(super) fn of(kind: u64, parts: &[u64]) -> Self {
        let mut hash = mix(kind);
        for part in parts {
            hash = mix(hash ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        Self(hash)
    }
}

/// Spreads the bits of a number (the finalizer of SplitMix64, Steele et al. 2014).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One context's counts, as they were at `at_ms`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Context {
    pub(super) at_ms: u64,
    /// How often anything came.
    pub(super) total: f32,
    pub(super) rows: Vec<(u32, f32)>,
}

impl Context {
    fn fade(&mut self, at_ms: u64) {
        let age = at_ms.saturating_sub(self.at_ms) as f64;
        let left = (-age / HALF_LIFE_MS).exp2() as f32;
        self.total *= left;
        for (_, count) in &mut self.rows {
            *count *= left;
        }
        self.at_ms = self.at_ms.max(at_ms);
    }

    /// Counts one; if there is no place, the least common counts less instead (Misra and Gries), so that what is common stays.
    fn count(&mut self, number: u32) {
        if let Some((_, count)) = self.rows.iter_mut().find(|(other, _)| *other == number) {
            *count += 1.0;
            return;
        }
        if self.rows.len() < ROWS_MAX {
            self.rows.push((number, 1.0));
            return;
        }
        let least = self.rows.iter_mut().min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some(least) = least {
            least.1 -= 1.0;
            if least.1 <= 0.0 {
                *least = (number, 1.0);
            }
        }
    }

    /// The share of one.
    pub(super) fn share(&self, number: u32) -> f64 {
        let count = self.rows.iter().find(|(other, _)| *other == number).map_or(0.0, |(_, count)| *count);
        f64::from(count) / f64::from(self.total).max(f64::from(count)).max(1e-9)
    }
}

/// All contexts.
#[derive(Debug, Default)]
pub(super) struct Contexts {
    all: HashMap<Key, Context>,
}

impl Contexts {
    /// Takes up what was kept.
    pub(super) fn from_rows(rows: impl IntoIterator<Item = (Key, Context)>) -> Self {
        let mut all: HashMap<Key, Context> = rows.into_iter().take(CONTEXTS_MAX).collect();
        for context in all.values_mut() {
            context.rows.truncate(ROWS_MAX);
        }
        Self { all }
    }

    /// Something came in this context, all of it at once.
    pub(super) fn came(&mut self, key: Key, numbers: &[u32], at_ms: u64) {
        if self.all.len() >= CONTEXTS_MAX && !self.all.contains_key(&key) {
            self.forget();
        }
        let context = self.all.entry(key).or_default();
        context.fade(at_ms);
        context.total += 1.0;
        for number in numbers {
            context.count(*number);
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&Context> {
        self.all.get(&key)
    }

    /// Forgets the quarter that was touched longest ago.
    fn forget(&mut self) {
        let mut oldest: Vec<(u64, Key)> = self.all.iter().map(|(key, context)| (context.at_ms, *key)).collect();
        let (gone, ..) = oldest.select_nth_unstable(CONTEXTS_MAX / 4);
        for (_, key) in gone {
            self.all.remove(key);
        }
    }

    /// All of them, by key.
    pub(super) fn rows(&self) -> Vec<(Key, &Context)> {
        let mut rows: Vec<(Key, &Context)> = self.all.iter().map(|(key, context)| (*key, context)).collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        rows
    }
}
