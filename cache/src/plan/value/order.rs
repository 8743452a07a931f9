//! The blobs of a tier in the order of their value, the cheapest to lose first, without looking at all of them.
//!
//! Kept sorted by what the slow count alone makes them worth, which time does not reorder. That is a lower bound of the true value; so
//! the cheapest is known as soon as the bound of the next one in line is above the value of the best one seen. Only blobs in recent use
//! are looked at in vain.

use std::cmp::Ordering;
use std::collections::btree_set::Iter;
use std::collections::{BTreeSet, BinaryHeap};
use std::iter::Peekable;

use crate::clock::Tick;
use crate::ids::BlobId;

/// A number that sorts. Never NaN here; if it were, it would sort last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Number(pub(super) f64);

impl Eq for Number {}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The standings of a tier's blobs.
#[derive(Debug, Default)]
pub(super) struct Order {
    sorted: BTreeSet<(Number, BlobId)>,
}

impl Order {
    pub(super) fn insert(&mut self, standing: f64, blob: BlobId) {
        self.sorted.insert((Number(standing), blob));
    }

    pub(super) fn remove(&mut self, standing: f64, blob: BlobId) {
        self.sorted.remove(&(Number(standing), blob));
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    pub(super) fn blobs(&self) -> impl DoubleEndedIterator<Item = BlobId> {
        self.sorted.iter().map(|(_, blob)| *blob)
    }

    pub(super) fn first(&self) -> Option<BlobId> {
        self.sorted.first().map(|(_, blob)| *blob)
    }

    /// Goes through the tier, the lowest value a byte first. `value` is what a blob is truly worth a byte.
    pub(super) fn cheapest<V: Fn(BlobId) -> f64>(&self, now: Tick, value: V) -> Cheapest<'_, V> {
        Cheapest { line: self.sorted.iter().peekable(), seen: BinaryHeap::new(), now, value }
    }
}

/// See [`Order::cheapest`].
pub(super) struct Cheapest<'a, V> {
    line: Peekable<Iter<'a, (Number, BlobId)>>,
    /// Looked at and not given out, the cheapest on top.
    seen: BinaryHeap<std::cmp::Reverse<(Number, BlobId)>>,
    now: Tick,
    value: V,
}

impl<V: Fn(BlobId) -> f64> Iterator for Cheapest<'_, V> {
    type Item = BlobId;

    fn next(&mut self) -> Option<BlobId> {
        loop {
            let bound = self.line.peek().map(|(standing, _)| super::uses::rate_of(standing.0, self.now));
            if let Some(std::cmp::Reverse((least, blob))) = self.seen.peek().copied()
                && bound.is_none_or(|bound| least.0 <= bound)
            {
                self.seen.pop();
                return Some(blob);
            }
            let (_, blob) = self.line.next()?;
            self.seen.push(std::cmp::Reverse((Number((self.value)(*blob)), *blob)));
        }
    }
}
