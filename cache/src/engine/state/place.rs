//! Where what was just read stays. The policy weighs; here its answer is carried out, one effect at a time.

use std::time::Duration;

use crate::clock::Tick;
use crate::engine::state::ensure::{Ensure, Want};
use crate::engine::state::{Fate, State};
use crate::engine::view::{DemoteReason, EvictReason, Priority, Tier};
use crate::fault::Fault;
use crate::ids::{BlobId, ModelKey};
use crate::plan::rivals::{Asked, Rivals};
use crate::plan::{Beside, Placement, Room, TierRoom};

/// Between two looks at what bytes cost.
const COSTS_INTERVAL: Duration = Duration::from_secs(60);
/// A cost that changed less than this many times is not told: nothing would be decided otherwise.
const COSTS_CHANGE: f64 = 1.2;

impl State {
    /// Tells the policy what bytes cost here, if that is another than it knows.
    pub(super) fn tell_costs(&mut self, now: Tick) {
        if !self.config.executor.measures || now < self.costs_due {
            return;
        }
        self.costs_due = now.after(COSTS_INTERVAL);
        let Some(lane) = self.lanes.iter().find(|lane| self.rates.of(&lane.origin).is_some_and(|of| !of.is_empty()))
        else {
            return;
        };
        let costs = self.rates.costs(&lane.origin, lane.connections.allowed(), self.config.costs);
        let changed = |is: f64, was: f64| is > was * COSTS_CHANGE || was > is * COSTS_CHANGE;
        if changed(costs.origin_byte, self.costs.origin_byte)
            || changed(costs.disk_byte, self.costs.disk_byte)
            || changed(costs.origin_first_byte, self.costs.origin_first_byte)
        {
            self.costs = costs;
            self.guessing.costs = costs;
            self.plan.measured(costs);
            if let Some(rivals) = &mut self.rivals {
                rivals.measured(costs);
            }
        }
    }

    /// Tells the policy what a caller wants, as far as its content is known by now. The rest is told when it is here.
    pub(super) fn count(&mut self, wants: &mut [Want], now: Tick) {
        self.counted = true;
        self.score_rivals(wants, now);
        let mut set = Beside::default();
        let mut sizes = Vec::new();
        for want in wants.iter() {
            let blob = want.hold.and_then(|blob| self.blobs.get(&blob));
            let bytes = blob.map(|blob| blob.bytes).or(self.catalog.get(&want.model).map(|entry| entry.bytes));
            set.add(want.from, bytes.unwrap_or(0));
            sizes.push((want.from, bytes.unwrap_or(0)));
        }
        for (want, (from, size)) in wants.iter_mut().zip(sizes) {
            let entry = self.catalog.get(&want.model);
            let known = want.hold.or(entry.and_then(|entry| entry.blake3));
            let bytes = want.hold.and_then(|blob| self.blobs.get(&blob)).map(|blob| blob.bytes);
            if let (Some(blob), Some(bytes)) = (known, bytes.or(entry.map(|entry| entry.bytes))) {
                self.plan.asked(blob, bytes, set.without(from, size), now);
                want.counted = true;
            }
        }
    }

    /// Tells the policies that do not act what a caller wants. Advice only: the operator chooses.
    fn score_rivals(&mut self, wants: &[Want], now: Tick) {
        let Some(mut rivals) = self.rivals.take() else { return };
        let mut set = Vec::with_capacity(wants.len());
        for want in wants {
            set.push(Asked { model: &want.model, bytes: self.model_bytes(want), here: want.from != Tier::Origin });
        }
        set.retain(|asked| asked.bytes > 0);
        for better in rivals.asked(&set, self.disk.limit(), &self.costs, now) {
            let (policy, acting, percent) = (better.policy, self.plan.name(), (better.share * 100.0).round());
            tracing::warn!(
                policy,
                acting,
                percent,
                "for days callers would have waited less for origins under another policy: see store.policy"
            );
        }
        self.rivals = Some(rivals);
    }

    /// How the policies that do not act would have done.
    #[must_use]
    pub fn rivals(&self) -> Vec<crate::plan::rivals::Standing> {
        self.rivals.as_ref().map(Rivals::standings).unwrap_or_default()
    }

    /// What is known to be wanted soon, the next first.
    pub(super) fn foresee(&mut self, models: &[ModelKey], now: Tick) {
        let blob = |model| {
            let stored = self.links.get(model).map(|link| link.blob);
            let entry = self.catalog.get(model);
            let blob = stored.or(entry.and_then(|entry| entry.blake3))?;
            let bytes = self.blobs.get(&blob).map(|blob| blob.bytes).or(entry.map(|entry| entry.bytes))?;
            Some((blob, bytes))
        };
        let blobs: Vec<(BlobId, u64)> = models.iter().filter_map(blob).collect();
        self.plan.expect(&blobs, now);
    }

    /// What the policy says about a blob, wherever it is.
    fn weigh(&self, blob: BlobId, bytes: u64, in_hand: bool, now: Tick) -> Placement {
        self.weigh_in(blob, bytes, in_hand, now, |_| ())
    }

    /// The same in a room that is changed before the policy sees it.
    pub(super) fn weigh_in(
        &self,
        blob: BlobId,
        bytes: u64,
        in_hand: bool,
        now: Tick,
        change: impl FnOnce(&mut Room<'_>),
    ) -> Placement {
        let leased = self.leased();
        let may_leave_disk = |id: BlobId| {
            let may_go = self.is_evictable(id, &leased) || self.can_shed(id);
            may_go.then(|| self.blobs.get(&id).map_or(0, |blob| blob.bytes))
        };
        let may_leave_ram = |id: BlobId| self.may_leave_ram(id);
        // Room that is promised to what is on its way is not free.
        let size = |id: &BlobId| self.blobs.get(id).map_or(0, |blob| blob.bytes);
        let to_disk: u64 = self.passing.waiting.iter().map(size).sum();
        let to_ram: u64 = self.memory.queue.iter().map(size).sum();
        let mut room = Room {
            disk: TierRoom {
                limit: self.disk.limit(),
                free: (self.disk.free() + self.leaving()).saturating_sub(to_disk),
                evictable: &may_leave_disk,
            },
            ram: TierRoom {
                limit: self.memory.budget.limit(),
                free: (self.memory.budget.free() + self.memory.leaving() + self.leaving_ram()).saturating_sub(to_ram),
                evictable: &may_leave_ram,
            },
            ram_alone: self.config.executor.apart,
            in_hand: in_hand && self.config.executor.apart,
        };
        change(&mut room);
        self.plan.place(blob, bytes, &room, now)
    }

    /// Whether somebody reads a blob now and says so when that is over: it is placed then.
    pub(super) fn is_placed_later(&self, blob: BlobId) -> bool {
        let demands = |ensure: &Ensure| {
            ensure.request.priority == Priority::Demand && ensure.wants.iter().any(|want| want.hold == Some(blob))
        };
        self.config.executor.readers_hold && self.plan.places_late() && self.ensures.values().any(demands)
    }

    /// Lets the policy say where a blob stays that was just read, or just came, and does what it says.
    pub(super) fn place(&mut self, blob: BlobId, in_hand: bool, now: Tick) {
        if !self.config.executor.places || self.memory.paused {
            return;
        }
        let Some(stored) = self.blobs.get(&blob).filter(|stored| stored.fate == Fate::Kept) else { return };
        if self.memory.held.contains_key(&blob) || self.memory.queue.contains(&blob) {
            return;
        }
        let placement = self.weigh(blob, stored.bytes, in_hand, now);
        let Some(wanted_by) = stored.models.first().cloned() else { return };
        self.carry_out(blob, &wanted_by, &placement);
    }

    pub(super) fn carry_out(&mut self, blob: BlobId, wanted_by: &ModelKey, placement: &Placement) {
        let policy = self.plan.name();
        let evicted = EvictReason::Room { wanted_by: wanted_by.clone(), policy: policy.to_owned() };
        let demoted = DemoteReason::Room { wanted_by: wanted_by.clone(), policy: policy.to_owned() };
        for id in &placement.from_disk {
            if *id == blob || self.can_shed(*id) && !placement.from_ram.contains(id) {
                self.shed(*id);
            } else {
                self.record_evicted(*id, &evicted);
                self.start_removal(*id);
            }
        }
        for id in &placement.from_ram {
            let Some(stored) = self.blobs.get(id).filter(|stored| stored.fate == Fate::Kept) else { continue };
            if placement.to_disk.contains(id) {
                self.sink_later(*id, true);
            } else if stored.on_disk {
                self.start_unlock(*id, demoted.clone());
            } else {
                self.record_evicted(*id, &evicted);
                self.start_removal(*id);
            }
        }
        match placement.to {
            Some(Tier::Ram) => self.memory.queue.push_back(blob),
            Some(Tier::Nvme) => self.sink_later(blob, false),
            Some(Tier::Vram | Tier::Origin) | None => {}
        }
    }

    /// Whether a guess is worth its bytes: what would not be kept is not fetched before somebody waits for it.
    pub(super) fn worth_a_guess(&self, model: &ModelKey, now: Tick) -> Result<(), Fault> {
        let entry = self.catalog.get(model);
        let Some((blob, bytes)) = entry.and_then(|entry| Some((entry.blake3?, entry.bytes))) else { return Ok(()) };
        if !self.config.executor.places || !self.plan.places_late() || self.weigh(blob, bytes, false, now).to.is_some()
        {
            return Ok(());
        }
        Err(Fault::NoRoom { needed: bytes, free: self.disk.free(), evictable: 0 })
    }
}
