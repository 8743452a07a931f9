//! What is measured of the RAM tier.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::{
    RAM_BYTES, RAM_DEMOTED_BYTES, RAM_DEMOTIONS, RAM_LANDED, RAM_LOCK_SECONDS, RAM_LOCKED, RAM_MODELS, RAM_PRESSURE,
};
use crate::engine::view::DemoteReason;

/// The RAM tier as it is now, in bytes; `resident` is the kernel's count.
pub fn ram_bytes(used: u64, reserved: u64, capacity: u64, resident: u64) {
    for (state, bytes) in [("used", used), ("reserved", reserved), ("capacity", capacity), ("resident", resident)] {
        gauge!(RAM_BYTES.name, "state" => state).set(bytes as f64);
    }
}

/// So many models are in RAM.
pub fn ram_models(models: u64) {
    gauge!(RAM_MODELS.name).set(models as f64);
}

/// A model left RAM and gave `bytes` back.
pub fn ram_demoted(reason: &DemoteReason, bytes: u64) {
    let reason = match reason {
        DemoteReason::Room { .. } => "room",
        DemoteReason::Asked { .. } => "asked",
        DemoteReason::Pressure { .. } => "pressure",
        DemoteReason::Shrunk { .. } => "shrunk",
        DemoteReason::Removed => "removed",
        DemoteReason::Failed { .. } => "failed",
    };
    counter!(RAM_DEMOTIONS.name, "reason" => reason).increment(1);
    counter!(RAM_DEMOTED_BYTES.name, "reason" => reason).increment(bytes);
}

/// The kernel said that memory is short.
pub fn ram_pressure(source: &'static str) {
    counter!(RAM_PRESSURE.name, "source" => source).increment(1);
}

/// A model's pages were locked.
pub fn ram_locked(bytes: u64, elapsed: Duration) {
    counter!(RAM_LOCKED.name).increment(bytes);
    histogram!(RAM_LOCK_SECONDS.name).record(elapsed);
}

/// Bytes arrived for RAM and were kept as they passed, or not.
pub fn ram_landed(kept: bool, bytes: u64) {
    counter!(RAM_LANDED.name, "way" => if kept { "through" } else { "behind" }).increment(bytes);
}
