//! What is measured of models, estimates and origins for those who watch: hits, latency, failures.

use std::time::Duration;

use metrics::{counter, histogram};

use super::{
    ENGINE_ESTIMATES, ENGINE_FLIGHTS_FAILED, ENGINE_MODEL_BYTES, ENGINE_MODELS, FETCH_FIRST_BYTE_SECONDS, STORE_STORED,
    STORE_STORED_BYTES, tier,
};
use crate::engine::view::Tier;
use crate::ids::OriginName;
use crate::plan::calibration::{Class, Kind};

/// The head of a good answer came after `elapsed`.
pub fn answered(origin: &OriginName, elapsed: Duration) {
    histogram!(FETCH_FIRST_BYTE_SECONDS.name, "origin" => origin.0.clone()).record(elapsed);
}

/// A model became whole and visible on the disk.
pub fn stored(bytes: u64) {
    counter!(STORE_STORED.name).increment(1);
    counter!(STORE_STORED_BYTES.name).increment(bytes);
}

/// A model of an ensure is ready; it was in this tier when it was asked for.
pub fn model_ready(from: Tier, bytes: u64) {
    counter!(ENGINE_MODELS.name, "from" => tier(from)).increment(1);
    counter!(ENGINE_MODEL_BYTES.name, "from" => tier(from)).increment(bytes);
}

/// A flight ended badly. `fault` is a word of the closed set of faults.
pub fn flight_failed(fault: &str) {
    counter!(ENGINE_FLIGHTS_FAILED.name, "fault" => fault.to_owned()).increment(1);
}

/// A set of this class is ready: it was told so many seconds and took so many.
pub fn estimate_compared(class: Class, told: f64, actual: f64) {
    let class = match class.kind() {
        Kind::Hit => "hit",
        Kind::Settle => "settle",
        Kind::Lock => "lock",
        Kind::Fetch => "fetch",
    };
    let verdict = match told {
        told if told * 2.0 < actual => "short",
        told if told > actual * 2.0 => "long",
        _ => "near",
    };
    counter!(ENGINE_ESTIMATES.name, "class" => class, "verdict" => verdict).increment(1);
}
