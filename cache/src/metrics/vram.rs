//! What is measured of L1 and of the workers that tell of it.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::{
    HINT_DROPPED, HINT_RECEIVED, VRAM_ADVICE, VRAM_BYTES, VRAM_READ_BYTES, VRAM_READ_SECONDS, VRAM_USES, VRAM_WORKERS,
};
use crate::engine::view::Tier;

/// Devices that have gauges of their own; a node has at most 16.
pub const DEVICES_MAX: u32 = 64;

/// A device as it is now, in bytes.
pub fn device(number: u32, total: u64, used: u64, claimed: u64) {
    if number >= DEVICES_MAX {
        return;
    }
    for (state, bytes) in [("total", total), ("used", used), ("claimed", claimed)] {
        gauge!(VRAM_BYTES.name, "device" => number.to_string(), "state" => state).set(bytes as f64);
    }
}

/// So many workers report.
pub fn workers(workers: usize) {
    gauge!(VRAM_WORKERS.name).set(workers as f64);
}

/// A worker used a model: from VRAM, or by reading its file, which took `elapsed`.
pub fn used(from: Option<Tier>, bytes: u64, elapsed: Duration) {
    let tier = match from {
        Some(Tier::Vram) => "vram",
        Some(Tier::Ram) => "ram",
        Some(Tier::Nvme) => "nvme",
        Some(Tier::Origin) | None => "elsewhere",
    };
    counter!(VRAM_USES.name, "tier" => tier).increment(1);
    if from != Some(Tier::Vram) {
        counter!(VRAM_READ_BYTES.name, "tier" => tier).increment(bytes);
        histogram!(VRAM_READ_SECONDS.name, "tier" => tier).record(elapsed);
    }
}

/// New advice was given.
pub fn advised() {
    counter!(VRAM_ADVICE.name, "outcome" => "given").increment(1);
}

/// Advice was carried out, or could not be.
pub fn freed(well: bool) {
    counter!(VRAM_ADVICE.name, "outcome" => if well { "carried_out" } else { "failed" }).increment(1);
}

/// A worker's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hint {
    /// It introduces itself.
    Hello,
    /// It tells what it has.
    Report,
    /// It waits for a model.
    Ensure,
    /// It asks what is not here.
    Absent,
}

/// A message of a worker came.
pub fn received(hint: Hint) {
    let kind = match hint {
        Hint::Hello => "hello",
        Hint::Report => "report",
        Hint::Ensure => "ensure",
        Hint::Absent => "absent",
    };
    counter!(HINT_RECEIVED.name, "kind" => kind).increment(1);
}

/// Why a message of a worker was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// The worker is unknown.
    Unknown,
    /// It makes no sense, or a list in it is too long.
    Invalid,
    /// It has too many bytes.
    TooLarge,
    /// There are too many at once.
    Busy,
}

/// A message of a worker was refused.
pub fn dropped(reason: Dropped) {
    let reason = match reason {
        Dropped::Unknown => "unknown",
        Dropped::Invalid => "invalid",
        Dropped::TooLarge => "too_large",
        Dropped::Busy => "busy",
    };
    counter!(HINT_DROPPED.name, "reason" => reason).increment(1);
}
