//! What became of spans.

use metrics::counter;

use super::TRACE_SPANS;

fn count(outcome: &'static str, spans: usize) {
    counter!(TRACE_SPANS.name, "outcome" => outcome).increment(spans as u64);
}

/// The receiver took so many.
pub fn sent(spans: usize) {
    count("sent", spans);
}

/// So many found no place: the receiver is too slow.
pub fn dropped(spans: usize) {
    count("dropped", spans);
}

/// So many could not be sent.
pub fn failed(spans: usize) {
    count("failed", spans);
}
