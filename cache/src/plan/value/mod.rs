//! The default policy: keep what saves the most seconds of waiting a byte, in RAM and on the disk weighed together.
//!
//! A blob's **value** in a tier is its rate of use times the seconds that a use waits less for having it there than at its origin. A blob
//! displaces others only if its value is more than what is lost with them; else it is read by whoever asked, and not kept. Losing a
//! blob from RAM costs little while the disk has it, or has room for it that is worth less; losing the last copy costs a fetch.
//!
//! What is known to be wanted soon counts as wanted at once, sooner before later: knowledge goes before statistics.

mod choose;
mod foresight;
mod order;
mod uses;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::clock::Tick;
use crate::engine::view::Tier;
use crate::ids::BlobId;
use crate::plan::kept::{ROWS_MAX, Row};
use crate::plan::{Beside, Costs, Placement, Policy, Room, Standing};

use self::choose::{Candidate, LOOK_AHEAD, choose};
use self::foresight::Foresight;
use self::order::Order;
use self::uses::Uses;

/// Blobs whose uses are remembered though no tier has them. Least used go first.
const REMEMBERED_MAX: usize = 65_536;
/// Seconds until the next of what is expected is wanted, the one after it twice that, and so on: about one prompt.
const EXPECTED_IN: f64 = 10.0;

/// Weight of the last use in what a use of a blob saves: its companions are mostly the same from one to the next, but may move.
const SAVES_WEIGHT: f64 = 0.3;
/// What a use saves at least, as a share of what it would save if the blob were wanted alone: companions change.
const SAVES_LEAST: f64 = 0.1;

/// What is known of one blob.
#[derive(Debug, Clone, Copy)]
struct Known {
    bytes: u64,
    uses: Uses,
    disk: bool,
    ram: bool,
    /// Seconds that a use waits less for having it on the disk, or in RAM, than at its origin: as its last uses had it.
    disk_saves: f64,
    ram_saves: f64,
    /// Where it stands in each order that it is in: by its slow count, and what a byte of it saves.
    standing: f64,
}

/// The policy. Invariant: a blob is in `disk` and `ram` if and only if its row says so, in `copies` if it is in both, in `gone` if in neither;
/// always under its row's standing.
#[derive(Debug)]
pub struct Value {
    costs: Costs,
    known: HashMap<BlobId, Known>,
    disk: Order,
    ram: Order,
    /// What is in both.
    copies: Order,
    gone: Order,
    /// What is known to be wanted, with the rate that stands for.
    expected: BTreeMap<BlobId, f64>,
    /// What is likely to be wanted, likewise.
    guessed: BTreeMap<BlobId, f64>,
    /// For a bound: when each blob is used, in place of all counts.
    foresight: Option<Foresight>,
}

impl Value {
    /// A policy that knows nothing yet.
    #[must_use]
    pub fn new(costs: Costs) -> Self {
        Self {
            costs,
            known: HashMap::new(),
            disk: Order::default(),
            ram: Order::default(),
            copies: Order::default(),
            gone: Order::default(),
            expected: BTreeMap::new(),
            guessed: BTreeMap::new(),
            foresight: None,
        }
    }

    /// The same policy with knowledge in place of statistics: a bound for others to be measured by. `uses` are blobs and milliseconds,
    /// in the order of time.
    #[must_use]
    pub fn all_knowing(costs: Costs, uses: impl Iterator<Item = (BlobId, u64)>) -> Self {
        Self { foresight: Some(Foresight::of(uses)), ..Self::new(costs) }
    }

    /// Changes a row, and its place in every order.
    fn change(&mut self, blob: BlobId, bytes: u64, change: impl FnOnce(&mut Known)) {
        let saves = |tier| self.costs.saved(tier, bytes, Beside::default());
        let (disk_saves, ram_saves) = (saves(Tier::Nvme), saves(Tier::Ram));
        let (uses, standing) = (Uses::default(), f64::NEG_INFINITY);
        let fresh = Known { bytes, uses, disk: false, ram: false, disk_saves, ram_saves, standing };
        let row = self.known.entry(blob).or_insert(fresh);
        let before = *row;
        change(row);
        // A byte of a small blob saves more: its share of the first byte's wait is larger.
        let saved = row.disk_saves / row.bytes.max(1) as f64;
        row.standing = row.uses.standing() + saved.max(f64::MIN_POSITIVE).log2();
        let after = *row;
        for (order, was, is) in [
            (&mut self.disk, before.disk, after.disk),
            (&mut self.ram, before.ram, after.ram),
            (&mut self.copies, before.disk && before.ram, after.disk && after.ram),
            (&mut self.gone, !before.disk && !before.ram, !after.disk && !after.ram),
        ] {
            if was {
                order.remove(before.standing, blob);
            }
            if is {
                order.insert(after.standing, blob);
            }
        }
        if self.gone.len() > REMEMBERED_MAX
            && let Some(least) = self.gone.first()
            && let Some(row) = self.known.remove(&least)
        {
            self.gone.remove(row.standing, least);
        }
    }

    /// Uses expected a second.
    fn rate(&self, blob: BlobId, now: Tick) -> f64 {
        if let Some(foresight) = &self.foresight {
            return foresight.rate(blob, now);
        }
        let counted = self.known.get(&blob).map_or(0.0, |row| row.uses.rate(now));
        let likely = self.guessed.get(&blob).copied().unwrap_or(0.0);
        counted + self.expected.get(&blob).copied().unwrap_or(0.0) + likely
    }

    /// Seconds of waiting that a blob saves a second for being in a tier.
    fn value(&self, tier: Tier, blob: BlobId, bytes: u64, now: Tick) -> f64 {
        self.rate(blob, now) * self.saved(tier, blob, bytes)
    }

    /// Seconds that a use waits less for having a blob in a tier.
    fn saved(&self, tier: Tier, blob: BlobId, bytes: u64) -> f64 {
        match (self.known.get(&blob), tier) {
            (_, Tier::Origin) => 0.0,
            (Some(row), Tier::Nvme) => row.disk_saves,
            (Some(row), Tier::Ram | Tier::Vram) => row.ram_saves,
            (None, _) => self.costs.saved(tier, bytes, Beside::default()),
        }
    }

    fn bytes(&self, blob: BlobId) -> u64 {
        self.known.get(&blob).map_or(0, |row| row.bytes)
    }

    fn is_in(&self, tier: Tier, blob: BlobId) -> bool {
        self.known.get(&blob).is_some_and(|row| if tier == Tier::Ram { row.ram } else { row.disk })
    }

    /// What may go from a tier, the cheapest a byte first: enough for `needed` bytes, and a few more to choose from.
    fn candidates(
        &self,
        tier: Tier,
        needed: u64,
        evictable: impl Fn(BlobId) -> Option<u64>,
        loss: impl Fn(BlobId, u64) -> f64,
        now: Tick,
    ) -> Vec<Candidate> {
        let order = if tier == Tier::Ram { &self.ram } else { &self.disk };
        let per_byte = |blob: BlobId| {
            let bytes = self.bytes(blob);
            self.value(Tier::Nvme, blob, bytes, now) / bytes.max(1) as f64
        };
        let (mut found, mut beyond) = (0, 0);
        let mut candidates = Vec::new();
        for blob in order.cheapest(now, per_byte) {
            if found >= needed {
                beyond += 1;
            }
            // Counts say nothing about an order that is known.
            if beyond > LOOK_AHEAD && self.foresight.is_none() {
                break;
            }
            if let Some(bytes) = evictable(blob) {
                found += bytes;
                candidates.push(Candidate { blob, bytes, loss: loss(blob, bytes) });
            }
        }
        candidates
    }

    /// To the disk, if it is worth more than what goes for it.
    fn on_disk(&self, blob: BlobId, bytes: u64, room: &Room<'_>, now: Tick) -> Option<Placement> {
        if bytes > room.disk.limit {
            return None;
        }
        let needed = bytes.saturating_sub(room.disk.free);
        let loss = |blob, bytes| {
            if room.ram_alone && self.is_in(Tier::Ram, blob) { 0.0 } else { self.value(Tier::Nvme, blob, bytes, now) }
        };
        let mut candidates = self.candidates(Tier::Nvme, needed, room.disk.evictable, loss, now);
        self.add_copies(&mut candidates, room, &[], blob);
        let (from_disk, loss) = choose(candidates, needed)?;
        let gain = self.value(Tier::Nvme, blob, bytes, now);
        Some(Placement { to: Some(Tier::Nvme), from_disk, gain, loss, ..Placement::default() })
    }

    /// To RAM, if that is worth more than what is lost in both tiers.
    fn in_ram(&self, blob: BlobId, bytes: u64, room: &Room<'_>, now: Tick) -> Option<Placement> {
        if bytes > room.ram.limit {
            return None;
        }
        let needed = bytes.saturating_sub(room.ram.free);
        let speed = |blob, bytes| self.value(Tier::Ram, blob, bytes, now) - self.value(Tier::Nvme, blob, bytes, now);
        let candidates = self.candidates(Tier::Ram, needed, room.ram.evictable, speed, now);
        let (from_ram, slower) = choose(candidates, needed)?;
        let before = if self.is_in(Tier::Nvme, blob) { self.value(Tier::Nvme, blob, bytes, now) } else { 0.0 };
        let gain = self.value(Tier::Ram, blob, bytes, now) - before;
        if !room.ram_alone {
            return Some(Placement { to: Some(Tier::Ram), from_ram, gain, loss: slower, ..Placement::default() });
        }
        // What leaves RAM moves to the disk, unless something there, or itself, is worth less.
        let moving: Vec<BlobId> = from_ram.iter().copied().filter(|blob| !self.is_in(Tier::Nvme, *blob)).collect();
        let needed = moving.iter().map(|blob| self.bytes(*blob)).sum::<u64>().saturating_sub(room.disk.free);
        let loss = |blob, bytes| self.value(Tier::Nvme, blob, bytes, now);
        let stays_in_ram = |other: BlobId| self.is_in(Tier::Ram, other) && !from_ram.contains(&other);
        let on_disk = |other: BlobId| {
            if other == blob || stays_in_ram(other) { None } else { (room.disk.evictable)(other) }
        };
        let mut candidates = self.candidates(Tier::Nvme, needed, on_disk, loss, now);
        self.add_copies(&mut candidates, room, &from_ram, blob);
        if room.in_hand && self.is_in(Tier::Nvme, blob) {
            candidates.push(Candidate { blob, bytes, loss: 0.0 });
        }
        candidates.extend(moving.iter().map(|blob| {
            let bytes = self.bytes(*blob);
            Candidate { blob: *blob, bytes, loss: loss(*blob, bytes) }
        }));
        let (mut from_disk, lost) = choose(candidates, needed)?;
        let to_disk = moving.iter().copied().filter(|blob| !from_disk.contains(blob)).collect();
        from_disk.retain(|blob| !moving.contains(blob));
        Some(Placement { to: Some(Tier::Ram), from_ram, to_disk, from_disk, gain, loss: slower + lost })
    }

    /// Copies on the disk of what RAM keeps: nothing is lost with them.
    fn add_copies(&self, candidates: &mut Vec<Candidate>, room: &Room<'_>, leaving: &[BlobId], but: BlobId) {
        if !room.ram_alone {
            return;
        }
        candidates.retain(|candidate| leaving.contains(&candidate.blob) || !self.is_in(Tier::Ram, candidate.blob));
        let copies = self.copies.blobs().filter(|blob| !leaving.contains(blob) && *blob != but);
        let may_go =
            copies.filter_map(|blob| (room.disk.evictable)(blob).map(|bytes| Candidate { blob, bytes, loss: 0.0 }));
        candidates.extend(may_go);
    }
}

impl Policy for Value {
    fn name(&self) -> &'static str {
        "value"
    }

    fn inserted(&mut self, tier: Tier, blob: BlobId, bytes: u64, _now: Tick) {
        self.change(blob, bytes, |row| if tier == Tier::Ram { row.ram = true } else { row.disk = true });
    }

    fn used(&mut self, _tier: Tier, _blob: BlobId, _now: Tick) {}

    fn asked(&mut self, blob: BlobId, bytes: u64, beside: Beside, now: Tick) {
        let saves = |tier| {
            let alone = self.costs.saved(tier, bytes, Beside::default());
            self.costs.saved(tier, bytes, beside).max(alone * SAVES_LEAST)
        };
        let (disk, ram) = (saves(Tier::Nvme), saves(Tier::Ram));
        let first = self.known.get(&blob).is_none_or(|row| row.uses == Uses::default());
        let weight = if first { 1.0 } else { SAVES_WEIGHT };
        self.change(blob, bytes, |row| {
            row.uses.count(now);
            row.disk_saves += (disk - row.disk_saves) * weight;
            row.ram_saves += (ram - row.ram_saves) * weight;
        });
    }

    fn recall(&mut self, blob: BlobId, bytes: u64, unused_for: Duration, now: Tick) {
        self.change(blob, bytes, |row| row.uses = Uses::once(unused_for, now));
    }

    fn kept(&self, now: Tick) -> Vec<Row> {
        let in_ram = self.ram.blobs().filter(|blob| !self.is_in(Tier::Nvme, *blob));
        let most_used_first = self.disk.blobs().rev().chain(in_ram.rev()).chain(self.gone.blobs().rev());
        let row = |blob: BlobId| {
            let known = self.known.get(&blob).filter(|known| known.uses != Uses::default())?;
            let (fast, slow) = known.uses.counts(now);
            Some(Row {
                blob,
                bytes: known.bytes,
                fast: fast as f32,
                slow: slow as f32,
                disk_saves: known.disk_saves as f32,
                ram_saves: known.ram_saves as f32,
            })
        };
        most_used_first.filter_map(row).take(ROWS_MAX).collect()
    }

    fn recall_kept(&mut self, row: &Row, age: Duration, unused_for: Option<Duration>, now: Tick) {
        let mut uses = Uses::kept(row.fast.into(), row.slow.into(), age, now);
        if let Some(unused_for) = unused_for {
            uses = uses.and(Uses::once(unused_for, now), now);
        }
        self.change(row.blob, row.bytes, |known| {
            known.uses = uses;
            (known.disk_saves, known.ram_saves) = (row.disk_saves.into(), row.ram_saves.into());
        });
    }

    fn removed(&mut self, tier: Tier, blob: BlobId) {
        let bytes = self.bytes(blob);
        self.change(blob, bytes, |row| if tier == Tier::Ram { row.ram = false } else { row.disk = false });
    }

    fn measured(&mut self, costs: Costs) {
        let alone = |costs: &Costs, tier, bytes| costs.saved(tier, bytes, Beside::default());
        let scale = |tier, bytes| alone(&costs, tier, bytes) / alone(&self.costs, tier, bytes).max(f64::MIN_POSITIVE);
        let scales: Vec<(BlobId, u64, f64, f64)> = (self.known.iter())
            .map(|(blob, row)| (*blob, row.bytes, scale(Tier::Nvme, row.bytes), scale(Tier::Ram, row.bytes)))
            .collect();
        self.costs = costs;
        for (blob, bytes, disk, ram) in scales {
            self.change(blob, bytes, |row| {
                row.disk_saves *= disk;
                row.ram_saves *= ram;
            });
        }
    }

    fn expect(&mut self, blobs: &[(BlobId, u64)], _now: Tick) {
        self.expected.clear();
        for (place, (blob, bytes)) in blobs.iter().enumerate() {
            self.change(*blob, *bytes, |_| ());
            self.expected.entry(*blob).or_insert(1.0 / (EXPECTED_IN * (place + 1) as f64));
        }
    }

    fn guess(&mut self, blobs: &[(BlobId, u64, f64)]) {
        self.guessed.clear();
        for (blob, bytes, rate) in blobs {
            self.change(*blob, *bytes, |_| ());
            self.guessed.insert(*blob, *rate);
        }
    }

    fn victims(&self, tier: Tier, bytes: u64, evictable: &dyn Fn(BlobId) -> Option<u64>, now: Tick) -> Vec<BlobId> {
        let loss = |blob, bytes| self.value(Tier::Nvme, blob, bytes, now);
        let candidates = self.candidates(tier, bytes, evictable, loss, now);
        let all = || candidates.iter().map(|candidate| candidate.blob).collect();
        choose(candidates.clone(), bytes).map_or_else(all, |(chosen, _)| chosen)
    }

    fn place(&self, blob: BlobId, bytes: u64, room: &Room<'_>, now: Tick) -> Placement {
        if self.is_in(Tier::Ram, blob) {
            return Placement::default();
        }
        let ram = self.in_ram(blob, bytes, room, now);
        let disk = if self.is_in(Tier::Nvme, blob) { None } else { self.on_disk(blob, bytes, room, now) };
        let net = |placement: &Placement| placement.gain - placement.loss;
        let best = [ram, disk].into_iter().flatten().max_by(|a, b| net(a).total_cmp(&net(b)));
        match best {
            Some(best) if net(&best) > 0.0 => best,
            Some(best) => Placement { gain: best.gain, loss: best.loss, ..Placement::default() },
            None => Placement::default(),
        }
    }

    fn standing(&self, tier: Tier, blob: BlobId, bytes: u64, now: Tick) -> Option<Standing> {
        let expected_rate = self.expected.get(&blob).copied().unwrap_or(0.0);
        let counted_rate = self.rate(blob, now) - expected_rate;
        Some(Standing { counted_rate, expected_rate, saved_seconds: self.saved(tier, blob, bytes), bytes })
    }

    fn places_late(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
