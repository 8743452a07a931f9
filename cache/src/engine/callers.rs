//! Callers that wait: their channels, how often each wants to hear, and how fast their bytes come.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::Tick;
use crate::engine::handle::UPDATES_MAX;
use crate::engine::view::{EnsureProgress, EnsureUpdate};
use crate::ids::EnsureId;

/// Bounds of a caller's progress interval.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// How long the past counts in a rate: long enough to be readable, short enough to follow.
const RATE_MEMORY: Duration = Duration::from_secs(3);

/// One caller's channel.
#[derive(Debug)]
struct Caller {
    updates: mpsc::Sender<EnsureUpdate>,
    interval: Duration,
    told: Tick,
    rate: Rate,
}

/// A rate that forgets.
#[derive(Debug, Default)]
struct Rate {
    at: Tick,
    bytes: u64,
    per_second: f64,
}

impl Rate {
    fn update(&mut self, bytes: u64, now: Tick) {
        let elapsed = now.since(self.at).as_secs_f64();
        if elapsed <= 0.0 {
            return;
        }
        let present = bytes.saturating_sub(self.bytes) as f64 / elapsed;
        let weight = 1.0 - (-elapsed / RATE_MEMORY.as_secs_f64()).exp();
        let first = self.per_second == 0.0;
        self.per_second = if first { present } else { self.per_second + weight * (present - self.per_second) };
        (self.at, self.bytes) = (now, bytes);
    }
}

/// All callers that wait.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    callers: BTreeMap<EnsureId, Caller>,
}

impl Callers {
    /// A new caller; the receiver is its stream.
    pub(crate) fn add(&mut self, id: EnsureId, interval: Duration, now: Tick) -> mpsc::Receiver<EnsureUpdate> {
        // Two places more than progress may fill: for the plan and for the end.
        let (updates, stream) = mpsc::channel(UPDATES_MAX + 2);
        let interval = interval.clamp(INTERVAL.0, INTERVAL.1);
        let rate = Rate { at: now, ..Rate::default() };
        self.callers.insert(id, Caller { updates, interval, told: now, rate });
        stream
    }

    /// Tells a caller its plan.
    pub(crate) fn plan(&mut self, id: EnsureId, update: EnsureUpdate) {
        if let Some(caller) = self.callers.get(&id) {
            // A caller that left is noticed by `left`.
            let _ = caller.updates.try_send(update);
        }
    }

    /// Tells a caller how it ended; its stream ends too.
    pub(crate) fn end(&mut self, id: EnsureId, update: EnsureUpdate) {
        if let Some(caller) = self.callers.remove(&id) {
            let _ = caller.updates.try_send(update);
        }
    }

    /// Tells progress to everyone whose time has come. Progress that a caller does not read is skipped.
    pub(crate) fn progress(&mut self, now: Tick, mut look: impl FnMut(EnsureId) -> Option<EnsureProgress>) {
        for (id, caller) in &mut self.callers {
            if now.since(caller.told) < caller.interval {
                continue;
            }
            let Some(mut progress) = look(*id) else { continue };
            caller.told = now;
            caller.rate.update(progress.bytes_done, now);
            progress.bytes_per_second = caller.rate.per_second as u64;
            let left = progress.bytes_total.saturating_sub(progress.bytes_done) as f64;
            progress.remaining = (caller.rate.per_second >= 1.0)
                .then(|| Duration::from_secs_f64((left / caller.rate.per_second).min(1e9)));
            if caller.updates.capacity() > 2 {
                let _ = caller.updates.try_send(EnsureUpdate::Progress(progress));
            }
        }
    }

    /// Callers whose streams were dropped.
    pub(crate) fn left(&mut self) -> Vec<EnsureId> {
        let gone = self.callers.iter().filter(|(_, caller)| caller.updates.is_closed()).map(|(id, _)| *id);
        let gone: Vec<EnsureId> = gone.collect();
        for id in &gone {
            self.callers.remove(id);
        }
        gone
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_does_not_read_still_gets_its_end() {
        let mut callers = Callers::default();
        let mut stream = callers.add(EnsureId(1), Duration::from_millis(50), Tick(0));
        for n in 1..100 {
            callers.progress(Tick(n * 100_000), |_| {
                Some(EnsureProgress {
                    elapsed: Duration::ZERO,
                    bytes_done: n * 10,
                    bytes_total: 10_000,
                    bytes_per_second: 0,
                    remaining: None,
                    models: Vec::new(),
                })
            });
        }
        let fault = crate::fault::Fault::ShuttingDown;
        let failed = crate::engine::view::EnsureFailed { elapsed: Duration::ZERO, fault, models: Vec::new() };
        callers.end(EnsureId(1), EnsureUpdate::Failed(failed));
        let mut last = None;
        while let Ok(update) = stream.try_recv() {
            if let EnsureUpdate::Progress(progress) = &update {
                assert!((99..=101).contains(&progress.bytes_per_second), "{}", progress.bytes_per_second);
            }
            last = Some(update);
        }
        assert!(matches!(last, Some(EnsureUpdate::Failed(_))));
        assert!(callers.is_empty());
    }
}
