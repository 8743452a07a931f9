//! Least recently used: the blob whose last use is longest ago goes first, whatever its size.

use lru::LruCache;

use crate::clock::Tick;
use crate::ids::BlobId;
use crate::plan::EvictionPolicy;

/// Evicts by last use.
#[derive(Debug)]
pub struct Lru {
    order: LruCache<BlobId, ()>,
}

impl Default for Lru {
    fn default() -> Self {
        // Bounded by the tier's budget, not by a count: a blob leaves when the tier says so.
        Self { order: LruCache::unbounded() }
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn inserted(&mut self, blob: BlobId, _bytes: u64, _now: Tick) {
        self.order.put(blob, ());
    }

    fn used(&mut self, blob: BlobId, _now: Tick) {
        self.order.promote(&blob);
    }

    fn removed(&mut self, blob: BlobId) {
        self.order.pop(&blob);
    }

    fn victims(&self, bytes: u64, evictable: &dyn Fn(BlobId) -> Option<u64>, _now: Tick) -> Vec<BlobId> {
        super::lists::first(self.order.iter().rev().map(|(blob, ())| *blob), bytes, evictable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: u8) -> BlobId {
        BlobId([n; 32])
    }

    #[test]
    fn the_longest_unused_goes_first_and_held_ones_stay() {
        let mut lru = Lru::default();
        for n in 0..4 {
            lru.inserted(blob(n), 10, Tick(u64::from(n)));
        }
        lru.used(blob(0), Tick(9));
        let evictable = |id: BlobId| (id != blob(1)).then_some(10);
        assert_eq!(lru.victims(15, &evictable, Tick(10)), [blob(2), blob(3)]);
        lru.removed(blob(2));
        assert_eq!(lru.victims(100, &evictable, Tick(10)), [blob(3), blob(0)]);
        assert!(lru.victims(0, &evictable, Tick(10)).is_empty());
    }
}
