//! Counters that stand at zero from the start: an alert on a growing counter does not see one that appears at one. Counts
//! nothing else.

use metrics::counter;

use super::{
    ENGINE_ESTIMATES, ENGINE_FLIGHTS_FAILED, ENGINE_MODEL_BYTES, ENGINE_MODELS, FETCH_REQUESTS, FETCH_RETRIES,
    PREDICT_BYTES, RAM_DEMOTIONS, STORE_DAMAGED_PIECES, STORE_EVICTIONS, STORE_STORED, STORE_STORED_BYTES,
};
use crate::ids::OriginName;

/// Shows the counters whose first step matters, at zero. Call once, after the recorder is installed.
pub(super) fn prime() {
    for counter in [STORE_DAMAGED_PIECES, STORE_STORED, STORE_STORED_BYTES] {
        counter!(counter.name).increment(0);
    }
    for reason in ["room", "asked", "shrunk", "replaced"] {
        counter!(STORE_EVICTIONS.name, "reason" => reason).increment(0);
    }
    for reason in ["room", "asked", "pressure", "shrunk", "removed", "failed"] {
        counter!(RAM_DEMOTIONS.name, "reason" => reason).increment(0);
    }
    for from in ["vram", "ram", "nvme", "origin"] {
        counter!(ENGINE_MODELS.name, "from" => from).increment(0);
        counter!(ENGINE_MODEL_BYTES.name, "from" => from).increment(0);
    }
    for class in ["hit", "lock", "fetch"] {
        for verdict in ["near", "short", "long"] {
            counter!(ENGINE_ESTIMATES.name, "class" => class, "verdict" => verdict).increment(0);
        }
    }
    for step in ["fetch", "promote"] {
        for outcome in ["used", "late", "wasted"] {
            counter!(PREDICT_BYTES.name, "step" => step, "outcome" => outcome).increment(0);
        }
    }
    counter!(ENGINE_FLIGHTS_FAILED.name, "fault" => "corrupt").increment(0);
}

/// The same for one origin. Call once, at the start.
pub fn prime_origin(origin: &OriginName) {
    counter!(FETCH_RETRIES.name, "origin" => origin.0.clone()).increment(0);
    for outcome in ["ok", "denied"] {
        counter!(FETCH_REQUESTS.name, "origin" => origin.0.clone(), "outcome" => outcome).increment(0);
    }
}
