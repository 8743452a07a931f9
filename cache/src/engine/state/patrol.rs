//! Patrol: what was stored is not trusted for ever. While nothing else happens, the blob whose turn it is gets read again.

use std::time::Duration;

use crate::clock::Tick;
use crate::engine::event::Effect;
use crate::engine::state::{Fate, State};
use crate::ids::BlobId;

/// How long nobody must have wanted anything before a patrol starts.
const IDLE: Duration = Duration::from_secs(60);

impl State {
    /// When a blob that is stored now is read again.
    pub(super) fn patrol_after(&self, now: Tick) -> Tick {
        self.config.scrub_interval.map_or(Tick(u64::MAX), |interval| now.after(interval))
    }

    /// When a blob that was found at the start is read again: spread over the interval, so that a restart reads nothing at once.
    pub(super) fn patrol_spread(&self, blob: BlobId, now: Tick) -> Tick {
        let share = f64::from(u16::from_be_bytes([blob.0[0], blob.0[1]])) / f64::from(u16::MAX);
        self.config.scrub_interval.map_or(Tick(u64::MAX), |interval| now.after(interval.mul_f64(share)))
    }

    /// Starts to read the blob that is due the longest, if nothing else happens.
    pub(super) fn patrol(&mut self, now: Tick) {
        if self.next_patrol().is_none_or(|due| due > now) {
            return;
        }
        let due = self
            .blobs
            .iter()
            .filter(|(_, blob)| blob.fate == Fate::Kept && blob.on_disk)
            .min_by_key(|(_, blob)| blob.patrol_due);
        let Some(blob) = due.map(|(blob, _)| *blob) else { return };
        self.patrolled = Some(blob);
        self.out.push(Effect::Patrol(blob));
    }

    /// When the next patrol starts, if nothing comes between.
    pub(super) fn next_patrol(&self) -> Option<Tick> {
        let busy = self.patrolled.is_some() || !self.flights.is_empty() || !self.ensures.is_empty();
        if busy || self.config.scrub_interval.is_none() {
            return None;
        }
        let kept = self.blobs.values().filter(|blob| blob.fate == Fate::Kept && blob.on_disk);
        kept.map(|blob| blob.patrol_due).min().map(|due| due.max(self.idle_since.after(IDLE)))
    }
}
