//! Why a model is where it is: the last decisions in a bounded ring, with the numbers that decided, and where it stands now.

use std::collections::VecDeque;

use crate::clock::Tick;
use crate::engine::state::State;
use crate::engine::state::memory::Stage;
use crate::engine::view::{Decided, Decision, DemoteReason, EvictReason, Explanation, Tier, TierStanding};
use crate::fault::Fault;
use crate::ids::{BlobId, ModelKey};

/// Decisions that are remembered, of all models together. About a day of a busy node.
const DECISIONS_MAX: usize = 2048;

/// The last decisions. Invariant: at most [`DECISIONS_MAX`], the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    ring: VecDeque<Decision>,
}

impl Decisions {
    fn push(&mut self, decision: Decision) {
        if self.ring.len() >= DECISIONS_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back(decision);
    }
}

impl State {
    /// Remembers what was decided about a stored blob, under each of its names, before it happens.
    pub(super) fn decided(&mut self, blob: BlobId, what: Decided, reason: String, wanted_by: Option<&ModelKey>) {
        let Some(stored) = self.blobs.get(&blob) else { return };
        let tier = if matches!(what, Decided::Promoted | Decided::Demoted) { Tier::Ram } else { Tier::Nvme };
        let worth = |id, bytes| self.plan.standing(tier, id, bytes, self.now).map(|standing| standing.worth());
        let of_model = |model: &ModelKey| {
            let stored = self.links.get(model).map(|link| link.blob);
            let entry = self.catalog.get(model)?;
            worth(stored.or(entry.blake3)?, entry.bytes)
        };
        let against = wanted_by.map(|model| (model.clone(), of_model(model)));
        let worth = worth(blob, stored.bytes);
        for model in &stored.models {
            let (model, reason, against) = (model.clone(), reason.clone(), against.clone());
            self.decisions.push(Decision { at: self.wall, model, what, reason, worth, against });
        }
    }

    pub(super) fn decided_to_evict(&mut self, blob: BlobId, reason: &EvictReason) {
        let (text, wanted_by) = match reason {
            EvictReason::Room { wanted_by, policy } => {
                (format!("{wanted_by} needed the room, and {policy} chose this one"), Some(wanted_by))
            }
            EvictReason::Asked { by } => (format!("{by} asked for it"), None),
            EvictReason::Shrunk { over } => (format!("the disk budget shrank: {over} bytes too many"), None),
            EvictReason::Replaced { by } => (format!("its origin has other bytes now: {by}"), None),
        };
        self.decided(blob, Decided::Evicted, text, wanted_by);
    }

    pub(super) fn decided_to_demote(&mut self, blob: BlobId, reason: &DemoteReason) {
        let (text, wanted_by) = match reason {
            DemoteReason::Room { wanted_by, policy } => {
                (format!("{wanted_by} needed the room, and {policy} chose this one"), Some(wanted_by))
            }
            DemoteReason::Asked { by } => (format!("{by} asked for it"), None),
            DemoteReason::Pressure { source } => (format!("the node ran short of memory: {source}"), None),
            DemoteReason::Shrunk { over } => (format!("the RAM budget shrank: {over} bytes too many"), None),
            DemoteReason::Removed => ("it leaves the disk".to_owned(), None),
            DemoteReason::Failed { detail } => (format!("its pages could not be locked: {detail}"), None),
        };
        self.decided(blob, Decided::Demoted, text, wanted_by);
    }

    pub(super) fn decided_to_promote(&mut self, blob: BlobId, demanded: bool) {
        let reason = if demanded {
            "a caller waits for it in RAM"
        } else if self.memory.placed.contains(&blob) {
            "a queued prompt will read it"
        } else if self.leased_in_ram().contains_key(&blob) {
            "a lease holds it in RAM"
        } else {
            "it was asked for, or was there before, and there is room"
        };
        self.decided(blob, Decided::Promoted, reason.to_owned(), None);
    }

    /// Why a model is where it is.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`] for a name that neither the node nor an origin has, and nothing was decided about.
    pub fn explain(&self, model: &ModelKey, now: Tick) -> Result<Explanation, Fault> {
        let link = self.links.get(model);
        let entry = self.catalog.get(model);
        let decisions: Vec<Decision> =
            self.decisions.ring.iter().filter(|decision| decision.model == *model).cloned().collect();
        if link.is_none() && entry.is_none() && decisions.is_empty() {
            return Err(Fault::unknown_model(model, "no origin lists it; see tierd ls"));
        }
        let stored = link.and_then(|link| Some((link.blob, self.blobs.get(&link.blob)?)));
        let mut tiers = Vec::new();
        if let Some((blob, stored)) = stored {
            tiers.push(self.disk_standing(blob, stored.bytes, now));
            if self.memory.held.get(&blob).is_some_and(|held| held.stage != Stage::Unlocking) {
                tiers.push(self.ram_standing(blob, stored.bytes, now));
            }
        }
        Ok(Explanation {
            model: model.clone(),
            policy: self.plan.name(),
            blob: stored.map(|(blob, _)| blob).or(entry.and_then(|entry| entry.blake3)),
            bytes: stored.map(|(_, stored)| stored.bytes).or(entry.map(|entry| entry.bytes)),
            last_used: stored.map(|(_, stored)| stored.last_used),
            tiers,
            held: stored.and_then(|(blob, _)| self.holder(blob)),
            expected: self.expected.uses(model).map(|(source, use_)| (source.to_owned(), use_.rank.position)).collect(),
            decisions,
        })
    }

    fn disk_standing(&self, blob: BlobId, bytes: u64, now: Tick) -> TierStanding {
        let order = self.disk_victims(u64::MAX, None, now);
        self.stands(Tier::Nvme, blob, bytes, &order, now)
    }

    fn ram_standing(&self, blob: BlobId, bytes: u64, now: Tick) -> TierStanding {
        let order = self.ram_victims(u64::MAX, now);
        self.stands(Tier::Ram, blob, bytes, &order, now)
    }

    fn stands(&self, tier: Tier, blob: BlobId, bytes: u64, order: &[BlobId], now: Tick) -> TierStanding {
        let next = order.first().and_then(|next| {
            let stored = self.blobs.get(next)?;
            let worth = self.plan.standing(tier, *next, stored.bytes, now).map(|standing| standing.worth());
            Some((stored.models.first()?.clone(), worth))
        });
        TierStanding {
            tier,
            standing: self.plan.standing(tier, blob, bytes, now),
            before: order.iter().position(|other| *other == blob).map(|place| place as u64),
            next,
        }
    }
}
