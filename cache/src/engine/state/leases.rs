//! Leases: what somebody asked to keep, for how long, and how hard RAM holds it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::{Tick, Wall};
use crate::engine::event::Effect;
use crate::engine::state::{Lease, State};
use crate::engine::view::{LeaseView, RamHold, What};
use crate::fault::Fault;
use crate::ids::{LeaseId, ModelKey};

/// Longest owner of a lease, in characters.
const OWNER_CHARS_MAX: usize = 200;

impl State {
    /// Holds models against eviction until the lease ends.
    ///
    /// # Errors
    ///
    /// [`Fault::Invalid`], [`Fault::Busy`], [`Fault::NotFound`], [`Fault::NoMemory`].
    pub fn pin(
        &mut self,
        models: &[ModelKey],
        (owner, ttl, ram): (&str, Duration, RamHold),
        now: Tick,
        wall: Wall,
    ) -> Result<(LeaseView, Vec<Effect>), Fault> {
        let limits = &self.config.limits;
        let invalid = |field, reason: &str| Err(Fault::Invalid { field, reason: reason.to_owned() });
        if models.is_empty() {
            return invalid("models", "name at least one model");
        }
        if models.len() > limits.models_per_request_max as usize {
            return invalid("models", "too many models in one request");
        }
        if owner.is_empty() || owner.chars().count() > OWNER_CHARS_MAX {
            return invalid("owner", "an owner has 1 to 200 characters");
        }
        if ttl.is_zero() || ttl > limits.lease_max {
            let most = crate::units::human_duration(limits.lease_max);
            return invalid("ttl", &format!("a lease lasts more than nothing and at most {most} (lease_max)"));
        }
        if self.leases.len() >= limits.leases_max as usize {
            return Err(Fault::Busy { limit: "leases_max", max: limits.leases_max.into() });
        }
        for model in models {
            if self.catalog.get(model).is_none() && !self.links.contains_key(model) {
                return Err(Fault::unknown_model(model, "no origin lists it and it is not on this node"));
            }
        }
        if ram == RamHold::Hard {
            self.hard_hold_fits(models)?;
        }
        let lease = LeaseId(self.next_lease);
        self.next_lease += 1;
        let models: BTreeSet<ModelKey> = models.iter().cloned().collect();
        let view = LeaseView {
            lease,
            owner: owner.to_owned(),
            models: models.into_iter().collect(),
            ram,
            expires: Wall(wall.0 + ttl.as_millis() as u64),
        };
        self.leases.insert(lease, Lease { view: view.clone(), ends: now.after(ttl) });
        let what = What::Pinned { lease, owner: view.owner.clone(), models: view.models.clone() };
        self.out.extend([Effect::PutLease(view.clone()), Effect::Record(what)]);
        self.queue_lease(&view, now);
        self.settle(now);
        Ok((view, std::mem::take(&mut self.out)))
    }

    /// Ends a lease.
    ///
    /// # Errors
    ///
    /// [`Fault::NotFound`].
    pub fn unpin(&mut self, lease: LeaseId, now: Tick) -> Result<(LeaseView, Vec<Effect>), Fault> {
        let Some(ended) = self.leases.remove(&lease) else {
            let hint = "it ended or never was; see tierd leases".to_owned();
            return Err(Fault::NotFound { what: format!("lease {lease}"), hint });
        };
        let what = What::Unpinned { lease, owner: ended.view.owner.clone(), expired: false };
        self.out.extend([Effect::EndLease(lease), Effect::Record(what)]);
        // What it held may have to go now.
        self.settle(now);
        Ok((ended.view, std::mem::take(&mut self.out)))
    }

    pub(super) fn expire_leases(&mut self, now: Tick) {
        let over: Vec<LeaseId> = self.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect();
        for lease in over {
            let Some(ended) = self.leases.remove(&lease) else { continue };
            self.out.push(Effect::EndLease(lease));
            let what = What::Unpinned { lease, owner: ended.view.owner, expired: true };
            self.out.push(Effect::Record(what));
        }
    }
}
