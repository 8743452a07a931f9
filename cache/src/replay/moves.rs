//! How the world does what the state asks for. Nothing but transfers takes time.

use crate::engine::event::{Commit, Effect, Event, Fetch, Found};
use crate::engine::view::{EnsurePlan, Priority, Tier, Trust, What};
use crate::ids::{BlobId, EnsureId};
use crate::replay::node::{Cargo, Node, Transfer};
use crate::replay::report::{Move, Step};

impl Node<'_> {
    /// Does one effect. Returns its answer, if it has one now.
    pub(super) fn do_effect(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Inspect { blob, .. } => Some(Event::Inspected { blob, found: Found::Intact }),
            Effect::Open { flight, .. } => Some(Event::Opened { flight, pieces: Ok(Vec::new()) }),
            Effect::Fetch(fetch) => {
                self.fetch(fetch);
                None
            }
            Effect::Commit { flight, blob, .. } => {
                if !self.state.passes(flight) {
                    self.log_move(Step::Enter, blob, Tier::Nvme, "landed");
                }
                Some(Event::Committed { flight, result: Ok(Commit { trust: Trust::Blake3, sha256: None }) })
            }
            Effect::Link(link) => Some(Event::Linked { link, result: Ok(()) }),
            Effect::Discard(name) => Some(Event::Discarded { name, result: Ok(()) }),
            Effect::Remove(blob) => {
                self.tally.removed(blob);
                self.log_move(Step::Leave, blob, Tier::Origin, "evicted");
                Some(Event::Removed { blob, result: Ok(()) })
            }
            Effect::Shed(blob) => {
                self.log_move(Step::Leave, blob, Tier::Nvme, "given up: RAM has it");
                Some(Event::Shed { blob, result: Ok(()) })
            }
            Effect::Sink(blob) => {
                self.log_move(Step::Enter, blob, Tier::Nvme, "kept");
                Some(Event::Sunk { blob, result: Ok(()) })
            }
            Effect::Lock { blob, .. } => self.lock(blob),
            Effect::Unlock(blob) => {
                self.locking.remove(&blob);
                if let Some(read) = self.reading.get(&blob).copied() {
                    self.stop(read);
                    if !self.is_under_way(read) {
                        self.reading.remove(&blob);
                    }
                }
                self.tally.demoted(blob);
                self.log_move(Step::Leave, blob, Tier::Ram, "demoted");
                Some(Event::Unlocked(blob))
            }
            Effect::TellPlan(id, plan) => {
                self.planned(id, &plan);
                None
            }
            Effect::TellReady(id, _) | Effect::TellFailed(id, _) => {
                let refused = matches!(effect, Effect::TellFailed(..));
                self.told(id, refused);
                None
            }
            Effect::Record(What::Evicted { bytes, .. }) => {
                self.tally.evicted(bytes);
                None
            }
            Effect::Abort(request) => self.abort(request),
            Effect::CountGuess(guessed) => {
                self.tally.guessed(&guessed);
                None
            }
            Effect::Record(What::Predicts { .. }) => {
                self.tally.switched();
                None
            }
            // Nothing breaks here and nothing is written down.
            Effect::Scrub(_)
            | Effect::Patrol(_)
            | Effect::Bless(_)
            | Effect::Withdraw { .. }
            | Effect::Locate(_)
            | Effect::Relocate { .. }
            | Effect::Reset(_)
            | Effect::Close(_)
            | Effect::Unlink(_)
            | Effect::Land(_)
            | Effect::NoteResident(_)
            | Effect::NoteUse(_)
            | Effect::PutLease(_)
            | Effect::EndLease(_)
            | Effect::CountUse { .. }
            | Effect::CountAhead(_)
            | Effect::Advise(_)
            | Effect::Record(_) => None,
        }
    }

    fn fetch(&mut self, fetch: Fetch) {
        let Ok(file) = fetch.source.path.parse::<u32>() else { return };
        let (request, prefetch) = (fetch.request, fetch.priority == Priority::Prefetch);
        let cargo = Cargo::Fetch(fetch);
        let started = self.now;
        let id = self.send(Transfer { cargo, file, link: Tier::Origin, started, readers: Vec::new(), prefetch });
        self.fetching.insert(request, id);
    }

    /// RAM takes a blob: at once if its bytes just went by, else when they have been read from the disk.
    fn lock(&mut self, blob: BlobId) -> Option<Event> {
        self.log_move(Step::Enter, blob, Tier::Ram, "promoted");
        if self.in_hand.contains(&blob) {
            return Some(Event::Locked { blob, found: 0, result: Ok(()) });
        }
        self.locking.insert(blob);
        if !self.reading.contains_key(&blob) {
            self.read(blob, Tier::Nvme, None);
        }
        None
    }

    fn read(&mut self, blob: BlobId, link: Tier, row: Option<usize>) {
        let Some(file) = self.blobs.get(&blob).copied() else { return };
        let (cargo, started, prefetch) = (Cargo::Read(blob), self.now, row.is_none());
        let id = self.send(Transfer { cargo, file, link, started, readers: row.into_iter().collect(), prefetch });
        if link == Tier::Nvme {
            self.reading.insert(blob, id);
        }
    }

    /// The state said where a caller's files are: those that are here are read, those that are on their way are waited for.
    fn planned(&mut self, id: EnsureId, plan: &EnsurePlan) {
        let Some(row) = self.readers.get(&id).map(|reader| reader.row) else { return };
        for model in &plan.models {
            self.tally.found(row, model.tier, model.bytes);
            let Some(blob) = model.blob else { continue };
            if model.tier == Tier::Origin {
                self.upgrade_fetches(blob);
                continue;
            }
            self.tally.wanted(blob, model.tier);
            if let Some(reader) = self.readers.get_mut(&id) {
                reader.left += 1;
            }
            match self.reading.get(&blob).copied() {
                Some(read) if model.tier == Tier::Nvme => self.join(read, Some(row)),
                _ => self.read(blob, model.tier, Some(row)),
            }
        }
    }

    /// A caller waits for what was only fetched on a guess.
    fn upgrade_fetches(&mut self, blob: BlobId) {
        let Some(file) = self.blobs.get(&blob).copied() else { return };
        let of_file = |id: &usize| self.carries(*id, file);
        let under_way: Vec<usize> = self.fetching.values().copied().filter(of_file).collect();
        for id in under_way {
            self.join(id, None);
        }
    }

    fn told(&mut self, id: EnsureId, refused: bool) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        reader.told = true;
        let row = reader.row;
        if refused {
            self.tally.refused(row);
        }
        self.finish(row);
    }

    pub(super) fn log_move(&mut self, step: Step, blob: BlobId, tier: Tier, reason: &str) {
        let Some(file) = self.blobs.get(&blob).map(|row| &self.trace.files[*row as usize]) else { return };
        let at = self.now;
        (self.log)(&Move { at, started: at, step, model: &file.model, tier, bytes: file.bytes, request: None, reason });
    }

    pub(super) fn log_transfer(&mut self, transfer: &Transfer) {
        let file = &self.trace.files[transfer.file as usize];
        let reason = if transfer.prefetch { "prefetch" } else { "demand" };
        (self.log)(&Move {
            at: self.now,
            started: transfer.started,
            step: Step::Carried,
            model: &file.model,
            tier: transfer.link,
            bytes: file.bytes,
            request: None,
            reason,
        });
    }

    pub(super) fn log_ready(&mut self, row: usize, started: f64, stall: f64) {
        let request = &self.trace.requests[row];
        let Some(first) = request.files.first() else { return };
        let file = &self.trace.files[*first as usize];
        let reason = format!("{stall:.6}");
        (self.log)(&Move {
            at: self.now,
            started,
            step: Step::Ready,
            model: &file.model,
            tier: Tier::Ram,
            bytes: 0,
            request: Some(request.id),
            reason: &reason,
        });
    }
}
