//! What happened, in order: numbered, remembered for a while, told to watchers and to the log. Writing it to the disk is the
//! store's job.

use std::collections::VecDeque;

use tokio::sync::broadcast;

use crate::clock::Wall;
use crate::engine::handle::{WATCH_MAX, Watch};
use crate::engine::view::{Change, Changed, DemoteReason, EvictReason, Occurrence, OriginState, Position, Told, What};
use crate::ids::Seq;
use crate::units::ByteSize;

/// Changes that are remembered for those who resume: minutes of a busy node.
const CHANGES_MAX: usize = 4096;

/// The last occurrences and changes, and those who watch.
#[derive(Debug)]
pub(crate) struct Chronicle {
    past: VecDeque<Occurrence>,
    max: usize,
    next: u64,
    live: broadcast::Sender<Occurrence>,
    /// Tells changes of one run from those of another.
    run: u64,
    steps: u64,
    passing: VecDeque<Changed>,
    all: broadcast::Sender<Told>,
}

impl Chronicle {
    /// Takes up where the store's record ends, `unwritten` numbers further on: so many may have been told before a crash and
    /// never written down, and a number must not be given twice, or a watcher that resumes misses what has it now.
    pub(crate) fn new(past: Vec<Occurrence>, next: u64, unwritten: u64, max: usize) -> Self {
        let next = if past.is_empty() { next } else { next + unwritten };
        let (live, all) = (broadcast::channel(WATCH_MAX).0, broadcast::channel(WATCH_MAX).0);
        Self { past: past.into(), max, next, live, run: 0, steps: 0, passing: VecDeque::new(), all }
    }

    /// The same, of a run of the daemon that no other has the number of.
    pub(crate) fn of_run(self, run: u64) -> Self {
        Self { run, ..self }
    }

    /// Numbers an occurrence, remembers it and tells the watchers.
    pub(crate) fn record(&mut self, what: What, at: Wall) -> Occurrence {
        log(&what);
        let occurrence = Occurrence { seq: Seq(self.next), at, what };
        self.next += 1;
        self.past.push_back(occurrence.clone());
        while self.past.len() > self.max {
            self.past.pop_front();
        }
        // Nobody watching is the normal case.
        let _ = self.live.send(occurrence.clone());
        if self.all.receiver_count() > 0 {
            let _ = self.all.send(Told::Happened(occurrence.clone(), self.here()));
        }
        occurrence
    }

    /// Numbers a change, remembers it and tells those who follow.
    pub(crate) fn change(&mut self, what: Change, wall: Wall) {
        self.steps += 1;
        let changed = Changed { at: self.here(), wall, what };
        if self.passing.len() == CHANGES_MAX {
            self.passing.pop_front();
        }
        self.passing.push_back(changed.clone());
        // Nobody following is the normal case.
        let _ = self.all.send(Told::Changed(changed));
    }

    /// The place behind everything that was told.
    fn here(&self) -> Position {
        Position { seq: Seq(self.next.saturating_sub(1)), run: Some(self.run), step: self.steps }
    }

    /// The present place, and what is told from there on.
    pub(crate) fn live(&self) -> (Position, broadcast::Receiver<Told>) {
        (self.here(), self.all.subscribe())
    }

    /// Everything that was told behind a place, in its order. `None` if some of it is not remembered, or of another run.
    pub(crate) fn told_since(&self, since: Position) -> Option<Vec<Told>> {
        let Seq(after) = since.seq;
        let oldest = self.past.front().map_or(self.next, |oldest| oldest.seq.0);
        let first = self.steps - self.passing.len() as u64;
        if since.run != Some(self.run) || after + 1 < oldest || after >= self.next {
            return None;
        }
        if since.step < first || since.step > self.steps {
            return None;
        }
        let mut changes = self.passing.iter().filter(|changed| changed.at.step > since.step).peekable();
        let mut told = Vec::new();
        let mut step = since.step;
        for occurrence in self.past.iter().filter(|occurrence| occurrence.seq.0 > after) {
            while let Some(changed) = changes.next_if(|changed| changed.at.seq < occurrence.seq) {
                step = changed.at.step;
                told.push(Told::Changed(changed.clone()));
            }
            let at = Position { seq: occurrence.seq, run: Some(self.run), step };
            told.push(Told::Happened(occurrence.clone(), at));
        }
        told.extend(changes.cloned().map(Told::Changed));
        Some(told)
    }

    /// What happened after `since`, and what will.
    pub(crate) fn watch(&self, since: Option<Seq>) -> Watch {
        let after = since.map_or(0, |seq| seq.0);
        let past: Vec<Occurrence> = self.past.iter().filter(|o| since.is_none() || o.seq.0 > after).cloned().collect();
        let oldest = self.past.front().map_or(self.next, |oldest| oldest.seq.0);
        // A number from the future belongs to another store.
        let gap = since.is_some() && (after + 1 < oldest || after >= self.next);
        Watch { past, gap, live: self.live.subscribe() }
    }
}

/// The same as a line of the log: who reads nothing else must still find out what went and why. What a regular listing found is
/// for those who look closer.
fn log(what: &What) {
    match what {
        What::Started { blobs, bytes } => tracing::info!(blobs, bytes = %ByteSize(*bytes), "store is open"),
        What::Stored { model, blob, bytes, fetched, origin, trust, elapsed_ms } => {
            let origin = origin.as_ref().map_or("none", |origin| &*origin.0);
            let (bytes, fetched) = (ByteSize(*bytes), ByteSize(*fetched));
            tracing::info!(%model, %blob, %bytes, %fetched, origin, ?trust, elapsed_ms, "stored");
        }
        What::Evicted { model, blob, bytes, reason, last_used: _ } => {
            let bytes = ByteSize(*bytes);
            tracing::info!(%model, %blob, %bytes, reason = words(reason), "evicted");
        }
        What::FlightFailed { flight, models, fault, detail } => {
            tracing::warn!(%flight, ?models, fault, detail, "flight failed");
        }
        What::Damaged { models, blob, pieces_bad, detail } => {
            tracing::warn!(?models, %blob, pieces_bad, detail, "stored bytes are damaged, withdrawn until repaired");
        }
        What::Pinned { lease, owner, models } => tracing::info!(%lease, owner, models = models.len(), "pinned"),
        What::Unpinned { lease, owner, expired } => tracing::info!(%lease, owner, expired, "lease ended"),
        What::Promoted { models, blob, bytes, elapsed_ms } => {
            tracing::info!(?models, %blob, bytes = %ByteSize(*bytes), elapsed_ms, "in RAM");
        }
        What::Demoted { models, blob, bytes, reason } => {
            tracing::info!(?models, %blob, bytes = %ByteSize(*bytes), reason = demote_words(reason), "demoted from RAM");
        }
        What::Origin { origin, state: OriginState::Up, detail: _ } => tracing::info!(%origin, "origin is up"),
        What::Origin { origin, state, detail } => tracing::warn!(%origin, ?state, detail, "origin is not up"),
        What::Listed { origin, models } => tracing::debug!(%origin, models, "origin was listed"),
        What::WorkerSeen { worker, pid, address, version } => {
            tracing::info!(%worker, pid, address, version, "worker reports its VRAM");
        }
        What::WorkerLost { worker, pid, detail } => tracing::info!(%worker, pid, detail, "worker is over"),
        What::Advised { worker, device, total, used, unload } => {
            let (total, used) = (ByteSize(*total), ByteSize(*used));
            tracing::info!(%worker, device, %used, %total, ?unload, "VRAM is short: these should be unloaded");
        }
        What::Predicts { habit, step, level, acts, precision_percent, guesses, saved_ms, lost_ms } => {
            let what =
                if *acts { "guesses have proved right, acting on them" } else { "guesses are wrong, stepping back" };
            tracing::info!(habit, step, level, precision_percent, guesses, saved_ms, lost_ms, "{what}");
        }
        What::Freed { worker, detail } if detail.is_empty() => tracing::info!(%worker, "told to unload its models"),
        What::Freed { worker, detail } => tracing::warn!(%worker, detail, "could not be told to unload its models"),
    }
}

fn words(reason: &EvictReason) -> String {
    match reason {
        EvictReason::Room { wanted_by, policy } => format!("room for {wanted_by} ({policy})"),
        EvictReason::Asked { by } => format!("asked by {by}"),
        EvictReason::Shrunk { over } => format!("the budget shrank, {} over", ByteSize(*over)),
        EvictReason::Replaced { by } => format!("replaced by {by}"),
    }
}

fn demote_words(reason: &DemoteReason) -> String {
    match reason {
        DemoteReason::Room { wanted_by, policy } => format!("room for {wanted_by} ({policy})"),
        DemoteReason::Asked { by } => format!("asked by {by}"),
        DemoteReason::Pressure { source } => format!("memory pressure ({source})"),
        DemoteReason::Shrunk { over } => format!("the budget shrank, {} over", ByteSize(*over)),
        DemoteReason::Removed => "it leaves the disk".to_owned(),
        DemoteReason::Failed { detail } => detail.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::view::Tier;

    fn filled(max: usize, count: u64) -> Chronicle {
        let mut chronicle = Chronicle::new(Vec::new(), 1, 0, max);
        for n in 0..count {
            chronicle.record(What::Started { blobs: n, bytes: 0 }, Wall(n));
        }
        chronicle
    }

    #[test]
    fn a_watcher_resumes_where_it_stopped() {
        let watch = filled(10, 5).watch(Some(Seq(3)));
        assert_eq!(watch.past.iter().map(|o| o.seq.0).collect::<Vec<_>>(), [4, 5]);
        assert!(!watch.gap);
    }

    #[test]
    fn a_watcher_that_missed_something_is_told() {
        let chronicle = filled(3, 10);
        assert!(chronicle.watch(Some(Seq(6))).gap);
        assert!(!chronicle.watch(Some(Seq(7))).gap);
        assert!(!chronicle.watch(None).gap);
        assert!(chronicle.watch(Some(Seq(99))).gap);
    }

    fn mixed() -> Chronicle {
        let mut chronicle = Chronicle::new(Vec::new(), 1, 0, 100).of_run(7);
        for n in 0..6 {
            if n % 3 == 0 {
                chronicle.record(What::Started { blobs: n, bytes: 0 }, Wall(n));
            } else {
                chronicle.change(Change::Pressure { tier: Tier::Ram, bytes: Some(n), source: "test" }, Wall(n));
            }
        }
        chronicle
    }

    /// When each was told, which is its number in [`mixed`].
    fn order(told: &[Told]) -> Vec<u64> {
        let wall = |told: &Told| match told {
            Told::Happened(occurrence, _) => occurrence.at.0,
            Told::Changed(changed) => changed.wall.0,
        };
        told.iter().map(wall).collect()
    }

    #[test]
    fn who_follows_resumes_behind_any_place_with_nothing_lost_and_nothing_twice() {
        let chronicle = mixed();
        let start = Position { seq: Seq(0), run: Some(7), step: 0 };
        let all = chronicle.told_since(start).expect("remembered");
        assert_eq!(order(&all), [0, 1, 2, 3, 4, 5]);
        for (number, told) in all.iter().enumerate() {
            let at = match told {
                Told::Happened(_, at) => *at,
                Told::Changed(changed) => changed.at,
            };
            let rest = chronicle.told_since(at).expect("remembered");
            assert_eq!(order(&rest), (number as u64 + 1..6).collect::<Vec<_>>(), "behind {at:?}");
        }
    }

    #[test]
    fn places_of_another_run_and_places_that_are_forgotten_are_no_places() {
        let mut chronicle = mixed();
        let at = |run, step| Position { seq: Seq(1), run, step };
        assert!(chronicle.told_since(at(Some(8), 0)).is_none());
        assert!(chronicle.told_since(at(None, 0)).is_none());
        assert!(chronicle.told_since(at(Some(7), 99)).is_none());
        for n in 0..CHANGES_MAX as u64 {
            chronicle.change(Change::Pressure { tier: Tier::Ram, bytes: Some(n), source: "test" }, Wall(n));
        }
        assert!(chronicle.told_since(at(Some(7), 3)).is_none(), "the fourth is forgotten");
        assert!(chronicle.told_since(at(Some(7), 4)).is_some());
    }
}
