//! What leaves RAM first, and what may not: callers of today, hard leases, soft ones.
//!
//! A model that is whole in VRAM goes before all others: its worker has a copy of its own, so its pages are read only if it is
//! unloaded and loaded again. Where the worker streams weights from the file (`--fast-disk`) the pages are its copy, and count like any.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::Tick;
use crate::engine::state::State;
use crate::engine::state::memory::Stage;
use crate::engine::view::{DemoteReason, RamHold, Tier};
use crate::fault::Fault;
use crate::ids::{BlobId, ModelKey};

impl State {
    /// Who keeps a blob in RAM, in words; `None` if it may go.
    pub(super) fn ram_holder(&self, blob: BlobId) -> Option<String> {
        if self.is_wanted_in_ram(blob) {
            return Some("callers are being served with it".to_owned());
        }
        let models = &self.blobs.get(&blob)?.models;
        let holds = |lease: &&super::Lease| {
            lease.view.ram == RamHold::Hard && lease.view.models.iter().any(|model| models.contains(model))
        };
        let lease = self.leases.values().find(holds)?;
        Some(format!("lease {} of {:?} holds it in RAM", lease.view.lease, lease.view.owner))
    }

    /// Blobs that leases hold in RAM, and how hard.
    pub(super) fn leased_in_ram(&self) -> BTreeMap<BlobId, RamHold> {
        let mut held: BTreeMap<BlobId, RamHold> = BTreeMap::new();
        for lease in self.leases.values().filter(|lease| lease.view.ram != RamHold::None) {
            for blob in lease.view.models.iter().filter_map(|model| self.links.get(model)).map(|link| link.blob) {
                let hard = lease.view.ram == RamHold::Hard || held.get(&blob) == Some(&RamHold::Hard);
                held.insert(blob, if hard { RamHold::Hard } else { RamHold::Soft });
            }
        }
        // What a queued prompt will read goes last, as what a soft lease holds.
        for blob in self.expected_in_ram() {
            held.entry(blob).or_insert(RamHold::Soft);
        }
        held
    }

    /// Whether a hard hold on these models fits beside the hard holds that there are.
    ///
    /// # Errors
    ///
    /// [`Fault::NoMemory`]; [`Fault::NotFound`] for a model that is not on the disk.
    pub(super) fn hard_hold_fits(&self, models: &[ModelKey]) -> Result<(), Fault> {
        let hard = self.leased_in_ram();
        let mut wanted: BTreeMap<BlobId, u64> = BTreeMap::new();
        for model in models {
            let unknown =
                || Fault::unknown_model(model, "only what is on the disk can be held in RAM; ensure it first");
            let (blob, bytes) = self.stored(model).ok_or_else(unknown)?;
            wanted.insert(blob, bytes);
        }
        let needed: u64 = wanted.values().sum();
        for (blob, hold) in &hard {
            if *hold == RamHold::Hard && !wanted.contains_key(blob) {
                wanted.insert(*blob, self.blobs.get(blob).map_or(0, |blob| blob.bytes));
            }
        }
        let limit = self.memory.budget.limit();
        let all: u64 = wanted.values().sum();
        if all <= limit {
            return Ok(());
        }
        let free = limit.saturating_sub(all - needed);
        Err(Fault::NoMemory { needed, free, evictable: 0 })
    }

    /// Whether a caller of today wants a blob in RAM.
    pub(super) fn is_wanted_in_ram(&self, blob: BlobId) -> bool {
        self.ensures
            .values()
            .any(|ensure| ensure.request.target == Tier::Ram && ensure.wants.iter().any(|want| want.hold == Some(blob)))
    }

    pub(super) fn demotable(&self) -> u64 {
        let leased = self.leased_in_ram();
        let held = self.memory.held.iter();
        let may_go = |blob: &BlobId| leased.get(blob) != Some(&RamHold::Hard) && !self.is_wanted_in_ram(*blob);
        held.filter(|(blob, held)| held.stage == Stage::Unlocking || may_go(blob)).map(|(_, held)| held.bytes).sum()
    }

    /// What would go so that at least `bytes` come back, the coldest first.
    pub(super) fn ram_victims(&self, bytes: u64, now: Tick) -> Vec<BlobId> {
        let wanted: BTreeSet<BlobId> = self
            .ensures
            .values()
            .filter(|ensure| ensure.request.target == Tier::Ram)
            .flat_map(|ensure| ensure.wants.iter().filter_map(|want| want.hold))
            .collect();
        let leased = self.leased_in_ram();
        let held = &self.memory.held;
        let evictable = |blob: BlobId, only: RamHold| {
            let held = held.get(&blob).filter(|held| held.stage != Stage::Unlocking)?;
            let hold = leased.get(&blob).copied().unwrap_or_default();
            (!wanted.contains(&blob) && hold == only).then_some(held.bytes)
        };
        let size = |victims: &[BlobId]| -> u64 {
            victims.iter().filter_map(|blob| held.get(blob)).map(|held| held.bytes).sum()
        };
        // What has a copy in VRAM goes first, what a soft lease holds last.
        let mut victims: Vec<BlobId> = Vec::new();
        for (copied, hold) in [(true, RamHold::None), (false, RamHold::None), (false, RamHold::Soft)] {
            let short = bytes.saturating_sub(size(&victims));
            if short == 0 {
                break;
            }
            let chosen: BTreeSet<BlobId> = victims.iter().copied().collect();
            let is_next = |blob: BlobId| {
                let fits = !chosen.contains(&blob) && (!copied || self.vram.ledger.is_copied(blob));
                evictable(blob, hold).filter(|_| fits)
            };
            let more = self.plan.victims(Tier::Ram, short, &is_next, now);
            victims.extend(more);
        }
        victims
    }

    /// Starts to give back at least `bytes`, the coldest first. Returns what will come back.
    pub(super) fn demote_coldest(&mut self, bytes: u64, reason: &DemoteReason, now: Tick) -> u64 {
        let mut found = 0;
        for blob in self.ram_victims(bytes, now) {
            found += self.memory.held.get(&blob).map_or(0, |held| held.bytes);
            self.start_unlock(blob, reason.clone());
        }
        found
    }
}
