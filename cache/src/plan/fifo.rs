//! First in, first out: uses do not matter. A baseline.

use std::collections::{BTreeMap, HashMap};

use crate::clock::Tick;
use crate::ids::BlobId;
use crate::plan::EvictionPolicy;

/// Evicts by the time of arrival. Invariant: `order` and `place` are each other's inverse.
#[derive(Debug, Default)]
pub struct Fifo {
    order: BTreeMap<u64, BlobId>,
    place: HashMap<BlobId, u64>,
    next: u64,
}

impl EvictionPolicy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn inserted(&mut self, blob: BlobId, _bytes: u64, _now: Tick) {
        self.removed(blob);
        self.order.insert(self.next, blob);
        self.place.insert(blob, self.next);
        self.next += 1;
    }

    fn used(&mut self, _blob: BlobId, _now: Tick) {}

    fn removed(&mut self, blob: BlobId) {
        if let Some(place) = self.place.remove(&blob) {
            self.order.remove(&place);
        }
    }

    fn victims(&self, bytes: u64, evictable: &dyn Fn(BlobId) -> Option<u64>, _now: Tick) -> Vec<BlobId> {
        super::lists::first(self.order.values().copied(), bytes, evictable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_in_goes_first_however_often_it_is_used() {
        let mut fifo = Fifo::default();
        for n in 0..3 {
            fifo.inserted(BlobId([n; 32]), 10, Tick(u64::from(n)));
        }
        fifo.used(BlobId([0; 32]), Tick(9));
        assert_eq!(fifo.victims(11, &|_| Some(10), Tick(9)), [BlobId([0; 32]), BlobId([1; 32])]);
        fifo.removed(BlobId([0; 32]));
        assert_eq!(fifo.victims(1, &|_| Some(10), Tick(9)), [BlobId([1; 32])]);
    }
}
