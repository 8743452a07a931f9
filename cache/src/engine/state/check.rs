//! The invariants of the state, written once: tests, models and debug builds share them.

use crate::engine::state::memory::Stage;
use crate::engine::state::{Fate, State};

impl State {
    /// What is wrong with the state. Empty, always.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut claim = |holds: bool, what: &dyn Fn() -> String| {
            if !holds {
                wrong.push(what());
            }
        };
        let blobs: u64 = self.blobs.values().filter(|blob| blob.on_disk).map(|blob| blob.bytes).sum();
        let partials: u64 = self.partials.values().map(|(bytes, _)| bytes).sum();
        let held = blobs + partials + self.discarding.values().sum::<u64>();
        claim(self.disk.used() == held, &|| format!("{} bytes used, {held} found", self.disk.used()));
        let reserved: u64 = self.flights.values().map(|flight| flight.reserved).sum();
        claim(self.disk.reserved() >= reserved, &|| format!("{} reserved, {reserved} held", self.disk.reserved()));
        for (model, link) in &self.links {
            let named = self.blobs.get(&link.blob).is_some_and(|blob| blob.models.contains(model));
            claim(named, &|| format!("{model} names a blob that does not know it"));
        }
        for (id, blob) in &self.blobs {
            let linked = blob.models.iter().all(|model| self.links.get(model).is_some_and(|link| link.blob == *id));
            claim(linked, &|| format!("{id} claims a name that is not its own"));
            let wants = self.ensures.values().flat_map(|ensure| &ensure.wants).filter(|want| want.hold == Some(*id));
            let reading = self.passing.readers.values().flatten().filter(|blob| *blob == id);
            let holds = (wants.count() + reading.count()) as u32;
            claim(blob.holds == holds, &|| format!("{id} has {} holds, {holds} wants hold it", blob.holds));
            let served = blob.fate == Fate::Removing && blob.holds > 0;
            claim(!served, &|| format!("{id} is removed under {} callers", blob.holds));
        }
        for (id, flight) in &self.flights {
            for request in &flight.requests {
                let known = self.requests.get(request).is_some_and(|request| request.flight == *id);
                claim(known, &|| format!("flight {id} has a request that is not under way"));
            }
            let opened = self.flights.values().filter(|other| other.is_open && other.name == flight.name).count();
            claim(opened <= 1, &|| format!("{opened} flights have the file of flight {id} open"));
        }
        let ram = |stages: &[Stage]| -> u64 {
            self.memory.held.values().filter(|held| stages.contains(&held.stage)).map(|held| held.bytes).sum()
        };
        let landing: u64 = self.flights.values().map(|flight| flight.landing).sum();
        let (used, reserved) = (ram(&[Stage::Locked, Stage::Unlocking]), ram(&[Stage::Locking]) + landing);
        let books = (self.memory.budget.used(), self.memory.budget.reserved());
        claim(books == (used, reserved), &|| format!("RAM books {books:?}, held {used} and {reserved}"));
        let (over, leaving) = (self.memory.budget.over(), ram(&[Stage::Unlocking]));
        let rest = self.demotable() - leaving;
        claim(over <= leaving || rest == 0, &|| {
            format!("{over} bytes over the RAM limit, {leaving} leave, {rest} stay")
        });
        for (id, held) in &self.memory.held {
            let gone = |fate| matches!(fate, Fate::Removing | Fate::Withdrawing);
            let stored = self.blobs.get(id).is_some_and(|blob| !gone(blob.fate));
            claim(stored || held.stage == Stage::Unlocking, &|| format!("{id} is in RAM and leaves the node"));
            let known = self.blobs.get(id).is_none_or(|blob| blob.on_disk || self.config.executor.apart);
            claim(known, &|| format!("RAM alone holds {id}"));
        }
        for lane in &self.lanes {
            let running = self.requests.values().filter(|request| request.source.origin == lane.origin).count() as u32;
            claim(lane.running == running, &|| format!("{} counts {} of {running}", lane.origin, lane.running));
        }
        wrong.extend(self.vram.ledger.check());
        wrong
    }
}
