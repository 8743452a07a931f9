//! S3-FIFO (Yang et al., SOSP '23), by bytes: a small queue for what is new, a main queue for what was used again, and a list of
//! names that left the small one. A scan passes through the small queue and moves nothing else. A baseline.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::clock::Tick;
use crate::ids::BlobId;
use crate::plan::EvictionPolicy;

/// Share of the bytes that the small queue should have: the paper's tenth.
const SMALL_SHARE: f64 = 0.1;
/// Uses that are counted, as in the paper.
const USES_MAX: u8 = 3;
/// Names that are remembered after they left the small queue.
const GHOSTS_MAX: usize = 4096;

/// Where a blob is.
#[derive(Debug, Clone, Copy)]
struct Place {
    main: bool,
    order: u64,
    bytes: u64,
    uses: u8,
}

/// The two queues. Invariant: each blob of `places` is in the queue that its place says, and in no other.
#[derive(Debug, Default)]
pub struct S3Fifo {
    places: HashMap<BlobId, Place>,
    small: BTreeMap<u64, BlobId>,
    main: BTreeMap<u64, BlobId>,
    small_bytes: u64,
    main_bytes: u64,
    ghosts: VecDeque<BlobId>,
    next: u64,
}

impl S3Fifo {
    /// What was passed over for one that leaves: used ones of the small queue go to the main one, those of the main queue to its end, with
    /// one use less.
    fn pass_over(&mut self, main: bool, order: u64) {
        let queue = if main { &self.main } else { &self.small };
        let ahead: Vec<BlobId> = queue.range(..order).map(|(_, blob)| *blob).collect();
        for blob in ahead {
            let Some(place) = self.places.get(&blob).copied().filter(|place| place.uses > 0) else { continue };
            self.take(blob);
            self.put(blob, place.bytes, true, if main { place.uses - 1 } else { 0 });
        }
    }

    fn take(&mut self, blob: BlobId) -> Option<Place> {
        let place = self.places.remove(&blob)?;
        if place.main {
            self.main.remove(&place.order);
            self.main_bytes -= place.bytes;
        } else {
            self.small.remove(&place.order);
            self.small_bytes -= place.bytes;
        }
        Some(place)
    }

    fn put(&mut self, blob: BlobId, bytes: u64, main: bool, uses: u8) {
        let order = self.next;
        self.next += 1;
        self.places.insert(blob, Place { main, order, bytes, uses });
        if main {
            self.main.insert(order, blob);
            self.main_bytes += bytes;
        } else {
            self.small.insert(order, blob);
            self.small_bytes += bytes;
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3fifo"
    }

    fn inserted(&mut self, blob: BlobId, bytes: u64, _now: Tick) {
        self.take(blob);
        let known = self.ghosts.iter().position(|ghost| *ghost == blob);
        if let Some(at) = known {
            self.ghosts.remove(at);
        }
        self.put(blob, bytes, known.is_some(), 0);
    }

    fn used(&mut self, blob: BlobId, _now: Tick) {
        if let Some(place) = self.places.get_mut(&blob) {
            place.uses = (place.uses + 1).min(USES_MAX);
        }
    }

    fn removed(&mut self, blob: BlobId) {
        let Some(place) = self.take(blob) else { return };
        self.pass_over(place.main, place.order);
        if place.main {
            return;
        }
        self.ghosts.push_back(blob);
        if self.ghosts.len() > GHOSTS_MAX {
            self.ghosts.pop_front();
        }
    }

    /// The paper moves used blobs while it looks for a victim; a policy here changes nothing when it is asked, so they are moved when
    /// the victim is gone. Chosen are: the unused of the queue whose turn it is, then the unused of the other, then the least used.
    fn victims(&self, bytes: u64, evictable: &dyn Fn(BlobId) -> Option<u64>, _now: Tick) -> Vec<BlobId> {
        let all = (self.small_bytes + self.main_bytes) as f64;
        let small_first = self.small_bytes as f64 >= all * SMALL_SHARE;
        let (first, second) = if small_first { (&self.small, &self.main) } else { (&self.main, &self.small) };
        let queue = || first.values().chain(second.values()).copied();
        let uses = |blob: &BlobId| self.places.get(blob).map_or(0, |place| place.uses);
        let in_turn = (0..=USES_MAX).flat_map(|round| queue().filter(move |blob| uses(blob) == round));
        super::lists::first(in_turn, bytes, evictable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: u8) -> BlobId {
        BlobId([n; 32])
    }

    #[test]
    fn a_scan_passes_through_and_what_was_used_stays() {
        let mut s3 = S3Fifo::default();
        s3.inserted(blob(0), 10, Tick(0));
        s3.used(blob(0), Tick(1));
        for n in 1..5 {
            s3.inserted(blob(n), 10, Tick(2));
        }
        assert_eq!(s3.victims(40, &|_| Some(10), Tick(3)), [blob(1), blob(2), blob(3), blob(4)]);
    }

    #[test]
    fn what_comes_back_goes_to_the_main_queue() {
        let mut s3 = S3Fifo::default();
        s3.inserted(blob(0), 10, Tick(0));
        s3.removed(blob(0));
        s3.inserted(blob(0), 10, Tick(1));
        s3.inserted(blob(1), 10, Tick(2));
        assert_eq!(s3.victims(10, &|_| Some(10), Tick(3)), [blob(1)]);
    }
}
