//! Knowledge of the future, for a bound: when each blob is used, read from a trace. No daemon has it.

use std::collections::HashMap;

use crate::clock::Tick;
use crate::ids::BlobId;

/// The uses of each blob, in order.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    uses: HashMap<BlobId, Vec<Tick>>,
}

impl Foresight {
    /// Takes uses in the order of time, in milliseconds.
    pub(super) fn of(uses: impl Iterator<Item = (BlobId, u64)>) -> Self {
        let mut all: HashMap<BlobId, Vec<Tick>> = HashMap::new();
        for (blob, at_ms) in uses {
            all.entry(blob).or_default().push(Tick(at_ms * 1000));
        }
        Self { uses: all }
    }

    /// One over the seconds to the next use; 0 if there is none.
    pub(super) fn rate(&self, blob: BlobId, now: Tick) -> f64 {
        let Some(uses) = self.uses.get(&blob) else { return 0.0 };
        let next = uses.partition_point(|at| *at <= now);
        uses.get(next).map_or(0.0, |at| 1.0 / at.since(now).as_secs_f64().max(0.001))
    }
}
