//! One list a tier, each on its own: a blob that is read goes to both, and leaves each when that list says so. Weighs nothing.

use std::time::Duration;

use crate::clock::Tick;
use crate::engine::view::Tier;
use crate::ids::BlobId;
use crate::plan::{Beside, Costs, EvictionPolicy, Placement, Policy, Room, Standing};

/// Two lists of one kind.
#[derive(Debug, Default)]
pub struct Lists<L> {
    disk: L,
    ram: L,
}

impl<L> Lists<L> {
    fn list(&mut self, tier: Tier) -> &mut L {
        if tier == Tier::Ram { &mut self.ram } else { &mut self.disk }
    }
}

impl<L: EvictionPolicy> Policy for Lists<L> {
    fn name(&self) -> &'static str {
        self.disk.name()
    }

    fn inserted(&mut self, tier: Tier, blob: BlobId, bytes: u64, now: Tick) {
        self.list(tier).inserted(blob, bytes, now);
    }

    fn used(&mut self, tier: Tier, blob: BlobId, now: Tick) {
        self.list(tier).used(blob, now);
    }

    fn asked(&mut self, _blob: BlobId, _bytes: u64, _beside: Beside, _now: Tick) {}

    /// Blobs are found in the order of their last use: the list has it already.
    fn recall(&mut self, _blob: BlobId, _bytes: u64, _unused_for: Duration, _now: Tick) {}

    fn removed(&mut self, tier: Tier, blob: BlobId) {
        self.list(tier).removed(blob);
    }

    fn expect(&mut self, _blobs: &[(BlobId, u64)], _now: Tick) {}

    fn victims(&self, tier: Tier, bytes: u64, evictable: &dyn Fn(BlobId) -> Option<u64>, now: Tick) -> Vec<BlobId> {
        let list = if tier == Tier::Ram { &self.ram } else { &self.disk };
        list.victims(bytes, evictable, now)
    }

    /// To RAM, whatever goes for it; nowhere if it is larger than what may go.
    fn place(&self, _blob: BlobId, bytes: u64, room: &Room<'_>, now: Tick) -> Placement {
        if bytes > room.ram.limit {
            return Placement::default();
        }
        let needed = bytes.saturating_sub(room.ram.free);
        let from_ram = self.ram.victims(needed, room.ram.evictable, now);
        let found: u64 = from_ram.iter().filter_map(|blob| (room.ram.evictable)(*blob)).sum();
        if found < needed {
            return Placement::default();
        }
        Placement { to: Some(Tier::Ram), from_ram, ..Placement::default() }
    }

    fn measured(&mut self, _costs: Costs) {}

    fn standing(&self, _tier: Tier, _blob: BlobId, _bytes: u64, _now: Tick) -> Option<Standing> {
        None
    }

    fn places_late(&self) -> bool {
        false
    }
}

/// The first of a queue that give back `bytes` together.
pub(super) fn first(
    queue: impl Iterator<Item = BlobId>,
    bytes: u64,
    evictable: &dyn Fn(BlobId) -> Option<u64>,
) -> Vec<BlobId> {
    let mut chosen = Vec::new();
    let mut sum = 0;
    for blob in queue {
        if sum >= bytes {
            break;
        }
        if let Some(size) = evictable(blob) {
            sum += size;
            chosen.push(blob);
        }
    }
    chosen
}
