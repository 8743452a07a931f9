//! What is measured of ComfyUI's servers and their queues.

use metrics::{counter, gauge};

use super::{COMFY_PROMPTS, COMFY_QUEUE, COMFY_READS, COMFY_SERVERS, COMFY_UNRESOLVED};

/// ComfyUI's servers and their queues as they are now.
pub fn comfy(up: u64, down: u64, running: u64, pending: u64) {
    gauge!(COMFY_SERVERS.name, "state" => "up").set(up as f64);
    gauge!(COMFY_SERVERS.name, "state" => "down").set(down as f64);
    gauge!(COMFY_QUEUE.name, "state" => "running").set(running as f64);
    gauge!(COMFY_QUEUE.name, "state" => "pending").set(pending as f64);
}

/// Prompts of a ComfyUI server: `seen`, `succeeded`, `failed` or `left`.
pub fn comfy_prompts(outcome: &'static str, prompts: u64) {
    counter!(COMFY_PROMPTS.name, "outcome" => outcome).increment(prompts);
}

/// A queued prompt needs a model that nobody knows.
pub fn comfy_unresolved() {
    counter!(COMFY_UNRESOLVED.name).increment(1);
}

/// A ComfyUI server's queue was read: `ok`, `unreachable`, `malformed` or `too_large`.
pub fn comfy_read(outcome: &'static str) {
    counter!(COMFY_READS.name, "outcome" => outcome).increment(1);
}
