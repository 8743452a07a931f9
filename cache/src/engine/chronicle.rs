//! What happened, in order: numbered, remembered for a while, told to watchers. Writing it to the disk is the store's job.

use std::collections::VecDeque;

use tokio::sync::broadcast;

use crate::clock::Wall;
use crate::engine::handle::{WATCH_MAX, Watch};
use crate::engine::view::{Occurrence, What};
use crate::ids::Seq;

/// The last occurrences and those who watch.
#[derive(Debug)]
pub(crate) struct Chronicle {
    past: VecDeque<Occurrence>,
    max: usize,
    next: u64,
    live: broadcast::Sender<Occurrence>,
}

impl Chronicle {
    /// Takes up where the store's record ends, `unwritten` numbers further on: so many may have been told before a crash and
    /// never written down, and a number must not be given twice, or a watcher that resumes misses what has it now.
    pub(crate) fn new(past: Vec<Occurrence>, next: u64, unwritten: u64, max: usize) -> Self {
        let next = if past.is_empty() { next } else { next + unwritten };
        Self { past: past.into(), max, next, live: broadcast::channel(WATCH_MAX).0 }
    }

    /// Numbers an occurrence, remembers it and tells the watchers.
    pub(crate) fn record(&mut self, what: What, at: Wall) -> Occurrence {
        let occurrence = Occurrence { seq: Seq(self.next), at, what };
        self.next += 1;
        self.past.push_back(occurrence.clone());
        while self.past.len() > self.max {
            self.past.pop_front();
        }
        // Nobody watching is the normal case.
        let _ = self.live.send(occurrence.clone());
        occurrence
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
