//! What is on the disk: blobs, their names, uses, damage.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::catalog::Entry;
use crate::clock::Tick;
use crate::engine::event::Effect;
use crate::engine::state::ensure::{Step, Want, arrived};
use crate::engine::state::{Blob, Fate, Lease, State};
use crate::engine::view::{DemoteReason, EvictReason, EvictReport, Tier, Trust, What};
use crate::fault::Fault;
use crate::ids::{BlobId, ModelKey};
use crate::store::{Inventory, PartialName, StoredLink};

/// Whether an origin has another content under this name now than the one that is stored.
pub(super) fn is_outdated(link: &StoredLink, blob: &Blob, entry: &Entry) -> bool {
    if let Some(digest) = entry.blake3 {
        return digest != link.blob;
    }
    if entry.bytes != blob.bytes {
        return true;
    }
    if let (Some(expected), Some(stored)) = (entry.sha256, blob.sha256) {
        return expected != stored;
    }
    let Some(stored) = &link.source else { return false };
    let listed = entry.sources.iter().find(|source| source.origin == stored.origin && source.path == stored.path);
    listed.is_some_and(|listed| listed.validator != stored.validator)
}

impl State {
    pub(super) fn take_over(&mut self, inventory: &Inventory, now: Tick) {
        let mut blobs: Vec<_> = inventory.blobs.iter().collect();
        blobs.sort_by_key(|blob| blob.last_used);
        for found in blobs {
            let blob = Blob {
                bytes: found.bytes,
                trust: found.trust,
                sha256: found.sha256,
                last_used: found.last_used,
                models: BTreeSet::new(),
                on_disk: true,
                holds: 0,
                fate: Fate::Kept,
                patrol_due: self.patrol_spread(found.blob, now),
            };
            self.blobs.insert(found.blob, blob);
            self.disk.found(found.bytes);
            self.plan.inserted(Tier::Nvme, found.blob, found.bytes, now);
            let unused_for = Duration::from_millis(self.wall.0.saturating_sub(found.last_used.0));
            self.plan.recall(found.blob, found.bytes, unused_for, now);
        }
        for link in &inventory.links {
            if let Some(blob) = self.blobs.get_mut(&link.blob) {
                blob.models.insert(link.model.clone());
                self.links.insert(link.model.clone(), link.clone());
            }
        }
        let nameless = self.blobs.iter().filter(|(_, blob)| blob.models.is_empty()).map(|(id, _)| *id);
        self.nameless = nameless.collect();
        for partial in &inventory.partials {
            self.partials.insert(partial.name, (partial.bytes, now));
            self.disk.found(partial.bytes);
        }
        for lease in &inventory.leases {
            let left = lease.expires.0.saturating_sub(self.wall.0);
            // A wall clock that jumped back while the daemon was down must not make a lease immortal.
            let left = Duration::from_millis(left).min(self.config.limits.lease_max);
            self.leases.insert(lease.lease, Lease { view: lease.clone(), ends: now.after(left) });
        }
    }

    /// The name that a stored blob gets, with where it can be had.
    pub(super) fn link_for(&self, model: &ModelKey, blob: BlobId) -> StoredLink {
        let source = self.catalog.get(model).and_then(|entry| entry.sources.first()).cloned();
        StoredLink { model: model.clone(), blob, source }
    }

    pub(super) fn linked(&mut self, link: StoredLink, result: Result<(), Fault>, now: Tick) {
        let waiting = Step::Linking(link.blob);
        match result {
            Ok(()) => {
                self.name(link.clone(), now);
                self.named_for(&link.model, &waiting, link.blob);
            }
            Err(fault) => {
                self.each_want(|want| want.step == waiting && want.model == link.model, &Step::Failed(fault));
                self.drop_holds(link.blob);
            }
        }
    }

    /// A name stands for a blob from now on, and for no other.
    pub(super) fn name(&mut self, link: StoredLink, now: Tick) {
        let (model, blob) = (link.model.clone(), link.blob);
        self.vouched.remove(&model);
        let before = self.links.insert(model.clone(), link);
        let before = before.filter(|before| before.blob != blob);
        if let Some(before) = &before {
            self.follow(&model, before.blob, blob);
            let alone = |old: &Blob| old.models.len() == 1 && old.fate == Fate::Kept;
            if self.blobs.get(&before.blob).is_some_and(alone) {
                self.decided_to_evict(before.blob, &EvictReason::Replaced { by: blob });
            }
        }
        if let Some(before) = before
            && let Some(old) = self.blobs.get_mut(&before.blob)
        {
            old.models.remove(&model);
            if old.models.is_empty() {
                self.nameless.insert(before.blob);
            }
            if old.models.is_empty() && old.fate == Fate::Kept {
                let (bytes, last_used) = (old.bytes, old.last_used);
                let reason = EvictReason::Replaced { by: blob };
                self.out.push(Effect::Record(What::Evicted {
                    model: model.clone(),
                    blob: before.blob,
                    bytes,
                    reason,
                    last_used,
                }));
            }
        }
        if let Some(stored) = self.blobs.get_mut(&blob) {
            stored.models.insert(model);
        }
        self.touch(blob, now);
    }

    /// A name moved from one blob to another: who has the old one and still waits for something else gets the new one with it, for that is
    /// what the name's file holds when they are told.
    fn follow(&mut self, model: &ModelKey, old: BlobId, new: BlobId) {
        let mut moved = 0;
        for ensure in self.ensures.values_mut() {
            let has = |want: &&mut Want| {
                want.model == *model && (want.step == Step::Ready(old) || want.step == Step::Locking(old))
            };
            for want in ensure.wants.iter_mut().filter(has) {
                want.step = arrived(&self.memory, ensure.request.target, new);
                want.hold = Some(new);
                moved += 1;
            }
        }
        if let Some(blob) = self.blobs.get_mut(&old) {
            blob.holds -= moved;
        }
        if let Some(blob) = self.blobs.get_mut(&new) {
            blob.holds += moved;
        }
    }

    /// Blobs that lost their last name go once nobody holds them.
    pub(super) fn sweep_nameless(&mut self) {
        for id in std::mem::take(&mut self.nameless) {
            match self.blobs.get(&id) {
                Some(blob) if !blob.models.is_empty() => {}
                Some(blob) if blob.holds == 0 && blob.fate == Fate::Kept && !self.vram.ledger.holds(id) => {
                    self.start_removal(id);
                }
                Some(_) => {
                    self.nameless.insert(id);
                }
                None => {}
            }
        }
    }

    /// A blob was asked for.
    pub(super) fn touch(&mut self, blob: BlobId, now: Tick) {
        let wall = self.wall;
        if let Some(stored) = self.blobs.get_mut(&blob) {
            stored.last_used = wall;
            self.plan.used(Tier::Nvme, blob, now);
            self.touch_memory(blob, now);
            self.out.push(Effect::NoteUse(vec![blob]));
        }
    }

    pub(super) fn adopted(&mut self, link: StoredLink, bytes: u64, reserved: u64, now: Tick) {
        self.disk.unreserve(reserved);
        if !self.blobs.contains_key(&link.blob) {
            self.disk.found(bytes);
            self.insert_blob(link.blob, bytes, Trust::Imported, None, now);
        }
        self.name(link, now);
    }

    /// Promises room for a file that is being imported.
    ///
    /// # Errors
    ///
    /// [`Fault::NoRoom`]: an import evicts nothing.
    pub fn reserve_import(&mut self, bytes: u64) -> Result<(), Fault> {
        if self.disk.reserve(bytes) {
            return Ok(());
        }
        Err(Fault::NoRoom { needed: bytes, free: self.disk.free(), evictable: 0 })
    }

    /// Takes back what [`State::reserve_import`] promised.
    pub fn unreserve_import(&mut self, bytes: u64) {
        self.disk.unreserve(bytes);
    }

    pub(super) fn insert_blob(
        &mut self,
        blob: BlobId,
        bytes: u64,
        trust: Trust,
        sha256: Option<crate::ids::Sha256Digest>,
        now: Tick,
    ) {
        self.add_blob(blob, (bytes, trust, sha256), true, now);
        self.plan.inserted(Tier::Nvme, blob, bytes, now);
    }

    /// A whole blob that is nobody's yet, on the disk or passing by.
    pub(super) fn add_blob(
        &mut self,
        blob: BlobId,
        (bytes, trust, sha256): (u64, Trust, Option<crate::ids::Sha256Digest>),
        on_disk: bool,
        now: Tick,
    ) {
        let stored = Blob {
            bytes,
            trust,
            sha256,
            last_used: self.wall,
            models: BTreeSet::new(),
            on_disk,
            holds: 0,
            fate: Fate::Kept,
            patrol_due: self.patrol_after(now),
        };
        self.blobs.insert(blob, stored);
    }

    /// Takes a blob that is gone from the disk out of every table.
    pub(super) fn forget(&mut self, blob: BlobId) -> Option<Blob> {
        let stored = self.blobs.remove(&blob)?;
        for model in &stored.models {
            if self.links.get(model).is_some_and(|link| link.blob == blob) {
                self.links.remove(model);
            }
        }
        if stored.on_disk {
            self.plan.removed(Tier::Nvme, blob);
        }
        Some(stored)
    }

    /// A blob's file is gone. Its record and its other names go the way of every removal.
    pub(super) fn missing(&mut self, blob: BlobId) {
        let Some(stored) = self.blobs.get(&blob).filter(|stored| stored.fate == Fate::Kept) else { return };
        let detail = "its file is gone: somebody deleted it".to_owned();
        let models = stored.models.iter().cloned().collect();
        self.out.push(Effect::Record(What::Damaged { models, blob, pieces_bad: 0, detail }));
        self.readers_lose(blob);
        self.start_removal(blob);
    }

    /// Reads a blob because somebody wants to know.
    pub fn verify(&mut self, blob: BlobId, now: Tick) -> Vec<Effect> {
        self.start_scrub(blob, "asked for");
        self.settle(now);
        std::mem::take(&mut self.out)
    }

    /// Reads a blob because something touched it, or because somebody wants to know.
    pub(super) fn start_scrub(&mut self, blob: BlobId, detail: &str) {
        let here = |stored: &&mut Blob| stored.fate == Fate::Kept && stored.on_disk;
        let Some(stored) = self.blobs.get_mut(&blob).filter(here) else { return };
        stored.fate = Fate::Scrubbing;
        tracing::info!(%blob, detail, "stored bytes are checked");
        self.out.push(Effect::Scrub(blob));
    }

    pub(super) fn scrubbed(&mut self, blob: BlobId, bad: Result<Vec<u32>, Fault>, now: Tick) {
        let due = self.patrol_after(now);
        let Some(stored) = self.blobs.get_mut(&blob).filter(|stored| stored.fate == Fate::Scrubbing) else { return };
        stored.patrol_due = due;
        stored.fate = Fate::Kept;
        let waiting = Step::Scrubbing(blob);
        match bad {
            Ok(bad) if bad.is_empty() => {
                self.out.push(Effect::Bless(blob));
                self.whole(blob, &waiting, now);
            }
            Ok(bad) => self.damaged(blob, bad),
            Err(fault) => {
                self.each_want(|want| want.step == waiting, &Step::Failed(fault));
                self.drop_holds(blob);
            }
        }
    }

    /// Stored bytes are not what they were: their names go, their good pieces stay.
    fn damaged(&mut self, blob: BlobId, bad: Vec<u32>) {
        let Some(stored) = self.blobs.get_mut(&blob) else { return };
        stored.fate = Fate::Withdrawing;
        let models = stored.models.iter().cloned().collect();
        let detail = "stored bytes do not match their digests".to_owned();
        let pieces_bad = bad.len() as u64;
        self.out.push(Effect::Record(What::Damaged { models, blob, pieces_bad, detail }));
        // Who has it already and still waits for something else must not be told that it is ready.
        let had = |want: &Want| want.step == Step::Ready(blob) || want.step == Step::Locking(blob);
        self.each_want(had, &Step::Scrubbing(blob));
        self.start_unlock(blob, DemoteReason::Removed);
        self.out.push(Effect::Withdraw { blob, bad });
    }

    pub(super) fn patrolled(&mut self, blob: BlobId, bad: Result<Vec<u32>, Fault>, now: Tick) {
        self.patrolled = None;
        let due = self.patrol_after(now);
        // What happened to it meanwhile is better news than a patrol's.
        let here = |stored: &&mut Blob| stored.fate == Fate::Kept && stored.on_disk;
        let Some(stored) = self.blobs.get_mut(&blob).filter(here) else { return };
        stored.patrol_due = due;
        match bad {
            Ok(bad) if bad.is_empty() => {}
            Ok(bad) => self.damaged(blob, bad),
            Err(fault) => tracing::warn!(%blob, %fault, "a patrol could not read it"),
        }
    }

    pub(super) fn withdrawn(&mut self, blob: BlobId, result: Result<PartialName, Fault>, now: Tick) {
        let waiting = Step::Scrubbing(blob);
        match result {
            Ok(name) => {
                let links = self.links.iter().filter(|(_, link)| link.blob == blob && link.source.is_some());
                self.vouched.extend(links.map(|(model, link)| (model.clone(), link.clone())).collect::<Vec<_>>());
                self.readers_lose(blob);
                let Some(stored) = self.forget(blob) else { return };
                self.partials.insert(name, (stored.bytes, now));
                self.each_want(|want| want.hold == Some(blob), &Step::Missing);
                self.repair(&stored, now);
            }
            Err(fault) => {
                if let Some(stored) = self.blobs.get_mut(&blob) {
                    stored.fate = Fate::Kept;
                }
                self.each_want(|want| want.step == waiting, &Step::Failed(fault));
            }
        }
        self.drop_holds(blob);
    }

    /// The digest that a model's content must have, and whether it is our own of first use instead of an origin's promise:
    /// a withdrawn blob whose source has not changed keeps its good pieces.
    pub(super) fn expected(&self, model: &ModelKey, entry: &Entry) -> (Option<BlobId>, bool) {
        let unchanged = |link: &&StoredLink| link.source.as_ref() == entry.sources.first();
        match (entry.blake3, self.vouched.get(model).filter(unchanged)) {
            (Some(digest), _) => (Some(digest), false),
            (None, Some(link)) => (Some(link.blob), true),
            (None, None) => (None, false),
        }
    }

    /// Fetches the bad pieces again under every name that the blob had, if an origin still has that content.
    fn repair(&mut self, stored: &Blob, now: Tick) {
        for model in &stored.models {
            if self.catalog.get(model).is_some_and(|entry| entry.bytes == stored.bytes) {
                // Whoever waits joins this flight; a full flight table only delays the repair to the next ensure.
                let _ = self.fly(model, crate::engine::view::Priority::Prefetch, now);
            }
        }
    }

    /// Removes models from the disk. Held ones stay and are reported with who holds them.
    pub fn evict(&mut self, models: &[ModelKey], by: &str, now: Tick) -> (EvictReport, Vec<BlobId>, Vec<Effect>) {
        let mut report = EvictReport::default();
        let mut removing = Vec::new();
        let models: BTreeSet<&ModelKey> = models.iter().collect();
        for model in models {
            match self.evict_one(model, by) {
                Ok((bytes, blob)) => {
                    report.bytes_freed += bytes;
                    report.evicted.push((model.clone(), bytes));
                    removing.extend(blob);
                }
                Err(fault) => report.kept.push((model.clone(), fault)),
            }
        }
        self.settle(now);
        (report, removing, std::mem::take(&mut self.out))
    }

    fn evict_one(&mut self, model: &ModelKey, by: &str) -> Result<(u64, Option<BlobId>), Fault> {
        if let Some((flight, _)) = self.flights.iter().find(|(_, flight)| flight.models.contains_key(model)) {
            let held_by = format!("flight {flight} brings it; cancel that first");
            return Err(Fault::Held { what: model.to_string(), held_by });
        }
        let Some(link) = self.links.get(model) else {
            return Err(Fault::unknown_model(model, "it is not on this node"));
        };
        let id = link.blob;
        if let Some(held_by) = self.holder(id) {
            return Err(Fault::Held { what: model.to_string(), held_by });
        }
        let blob = self.blobs.get_mut(&id).ok_or(Fault::unknown_blob(id))?;
        let last = blob.models.len() == 1;
        let bytes = if last { blob.bytes } else { 0 };
        let reason = EvictReason::Asked { by: by.to_owned() };
        let last_used = blob.last_used;
        if last {
            self.decided_to_evict(id, &reason);
        }
        let what = What::Evicted { model: model.clone(), blob: id, bytes, reason, last_used };
        self.out.push(Effect::Record(what));
        if last {
            self.start_removal(id);
            return Ok((bytes, Some(id)));
        }
        if let Some(blob) = self.blobs.get_mut(&id) {
            blob.models.remove(model);
        }
        self.links.remove(model);
        self.out.push(Effect::Unlink(model.clone()));
        Ok((0, None))
    }

    /// Who keeps a blob from being evicted, in words; `None` if nobody does.
    pub(super) fn holder(&self, id: BlobId) -> Option<String> {
        let blob = self.blobs.get(&id)?;
        match blob.fate {
            Fate::Kept => {}
            Fate::Scrubbing => return Some("it is being checked".to_owned()),
            Fate::Withdrawing => return Some("it is being repaired".to_owned()),
            Fate::Removing => return Some("it is being removed".to_owned()),
            Fate::Shedding | Fate::Sinking => return Some("it is on its way between RAM and the disk".to_owned()),
        }
        if blob.holds > 0 {
            return Some(format!("{} callers are being served", blob.holds));
        }
        let lease =
            self.leases.values().find(|lease| lease.view.models.iter().any(|model| blob.models.contains(model)));
        let lease = lease.map(|lease| format!("lease {} of {:?}", lease.view.lease, lease.view.owner));
        lease.or_else(|| self.vram.ledger.holder(id))
    }
}
