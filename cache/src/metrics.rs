//! The metrics: every one of them a constant with its unit, kind, description and closed labels, and one small function
//! for each thing that is measured. Nobody else names a metric. No label ever holds a path, an address or free text.

mod comfy;
mod outcome;
pub mod predict;
mod prime;
mod process;
mod ram;
mod seen;

use std::time::Duration;

use metrics::{Unit, counter, gauge, histogram};

use crate::engine::event::Ahead;
use crate::engine::view::{EvictReason, Phase, Tier};
use crate::ids::OriginName;

pub use self::comfy::{comfy, comfy_prompts, comfy_read, comfy_unresolved};
pub use self::outcome::{EnsureOutcome, RequestOutcome};
pub use self::prime::prime_origin;
pub use self::process::{ProcessSample, process};
pub use self::ram::{ram_bytes, ram_demoted, ram_landed, ram_locked, ram_models, ram_pressure};
pub use self::seen::{answered, estimate_compared, flight_failed, model_ready, stored};

pub mod spans;
pub mod vram;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows while the daemon runs.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution, counted in these buckets (upper bounds, in the metric's unit).
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// `tierd_<room>_<what>_<unit>[_total]`.
    pub name: &'static str,
    /// What its numbers count.
    pub unit: Unit,
    /// How it behaves.
    pub kind: Kind,
    /// What it says, and what to watch for.
    pub description: &'static str,
    /// Its labels, each with the values that it can have.
    pub labels: &'static [(&'static str, &'static str)],
}

/// Requests and short waits: 5 ms to 30 s, the default request timeout.
const REQUEST_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Answers of a loop in memory: 0.1 ms to 10 s.
const RPC_BUCKETS: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];
/// Making models ready: a hit in milliseconds, a large checkpoint over a slow link in half an hour.
const ENSURE_BUCKETS: &[f64] = &[0.005, 0.05, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0];

/// Errors of estimates, as a share of the time that it took.
const ERROR_BUCKETS: &[f64] = &[0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0];

const ORIGIN: (&str, &str) = ("origin", "the configured name");
const REASON: (&str, &str) = ("reason", "`room`, `asked`, `shrunk`, `replaced`");

const DEMOTE_REASON: (&str, &str) = ("reason", "`room`, `asked`, `pressure`, `shrunk`, `removed`, `failed`");

const FROM: (&str, &str) = ("from", "`vram`, `ram`, `nvme`, `origin`");

const fn metric(
    name: &'static str,
    unit: Unit,
    kind: Kind,
    labels: &'static [(&'static str, &'static str)],
    description: &'static str,
) -> Metric {
    Metric { name, unit, kind, description, labels }
}

/// Declares the metrics, and the list of all of them.
macro_rules! metrics {
    ($($constant:ident = $name:literal, $unit:ident, $kind:expr, $labels:expr, $description:literal;)*) => {
        $(
            #[doc = $description]
            pub const $constant: Metric = metric($name, Unit::$unit, $kind, $labels, $description);
        )*
        /// Every metric, in the order of the document.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    FETCH_RECEIVED = "tierd_fetch_received_bytes_total", Bytes, Kind::Counter, &[ORIGIN],
        "Bytes of models that arrived from an origin, retried ones included.";
    FETCH_REQUESTS = "tierd_fetch_requests_total", Count, Kind::Counter,
        &[ORIGIN, ("outcome", "`ok`, `changed`, `throttled`, `server_error`, `timeout`, `stalled`, `reset`, `truncated`, `denied`, `not_found`, `other`")],
        "Ranged requests to an origin, by how they ended. `denied` above zero means wrong credentials.";
    FETCH_RETRIES = "tierd_fetch_retries_total", Count, Kind::Counter, &[ORIGIN],
        "Pieces that were asked for again.";
    FETCH_CONNECTIONS = "tierd_fetch_connections", Count, Kind::Gauge, &[ORIGIN],
        "Requests to an origin that are under way.";
    FETCH_REQUEST_SECONDS = "tierd_fetch_request_seconds", Seconds, Kind::Histogram(REQUEST_BUCKETS), &[ORIGIN],
        "Time from a ranged request to the last byte of its answer.";
    FETCH_FIRST_BYTE_SECONDS = "tierd_fetch_first_byte_seconds", Seconds, Kind::Histogram(REQUEST_BUCKETS), &[ORIGIN],
        "Time from a ranged request to the head of a good answer: the origin's latency.";
    ORIGIN_UP = "tierd_origin_up", Count, Kind::Gauge, &[ORIGIN],
        "1 if the origin's last answer was a good one, else 0.";
    ORIGIN_MODELS = "tierd_origin_models", Count, Kind::Gauge, &[ORIGIN],
        "Models that the origin listed last.";
    STORE_BYTES = "tierd_store_bytes", Bytes, Kind::Gauge,
        &[("state", "`used`, `reserved`, `capacity`, `free_fs`")],
        "Bytes of the disk tier: used by models, promised to flights, most that both may take, and free on the file system.";
    STORE_MODELS = "tierd_store_models", Count, Kind::Gauge, &[],
        "Models on the disk.";
    STORE_STORED = "tierd_store_stored_total", Count, Kind::Counter, &[],
        "Models that became whole and visible on the disk.";
    STORE_STORED_BYTES = "tierd_store_stored_bytes_total", Bytes, Kind::Counter, &[],
        "Bytes of these models: what came into the disk tier.";
    STORE_EVICTIONS = "tierd_store_evictions_total", Count, Kind::Counter, &[REASON],
        "Models that left the disk. Many for `room` mean that the budget is smaller than what is in use.";
    STORE_EVICTED_BYTES = "tierd_store_evicted_bytes_total", Bytes, Kind::Counter, &[REASON],
        "Bytes that evictions gave back.";
    STORE_COMMIT_SECONDS = "tierd_store_commit_seconds", Seconds, Kind::Histogram(REQUEST_BUCKETS), &[],
        "Time to make a finished blob durable and visible.";
    STORE_DAMAGED_PIECES = "tierd_store_damaged_pieces_total", Count, Kind::Counter, &[],
        "Stored pieces that were not what they should be. Above zero: look at the disk.";
    RAM_BYTES = "tierd_ram_bytes", Bytes, Kind::Gauge,
        &[("state", "`used`, `reserved`, `capacity`, `resident`")],
        "Bytes of the RAM tier: held by models, promised to models on their way, most that both may take, and in RAM by the kernel's count.";
    RAM_MODELS = "tierd_ram_models", Count, Kind::Gauge, &[],
        "Models in RAM.";
    RAM_LOCKED = "tierd_ram_locked_bytes_total", Bytes, Kind::Counter, &[],
        "Bytes that were locked.";
    RAM_LOCK_SECONDS = "tierd_ram_lock_seconds", Seconds, Kind::Histogram(REQUEST_BUCKETS), &[],
        "Time to lock a model, its reading from the disk included.";
    RAM_LANDED = "tierd_ram_landed_bytes_total", Bytes, Kind::Counter, &[("way", "`through`, `behind`")],
        "Bytes that arrived for RAM: written through the page cache and kept, or past it and read back, where memory is dearer than the disk.";
    RAM_DEMOTIONS = "tierd_ram_demotions_total", Count, Kind::Counter, &[DEMOTE_REASON],
        "Models that left RAM. Many for `pressure` mean that the budget is too large for this node.";
    RAM_DEMOTED_BYTES = "tierd_ram_demoted_bytes_total", Bytes, Kind::Counter, &[DEMOTE_REASON],
        "Bytes of RAM that demotions gave back.";
    RAM_PRESSURE = "tierd_ram_pressure_total", Count, Kind::Counter, &[("source", "`psi`, `polling`")],
        "Times that the node was short of memory and the tier was told to give some back.";
    VRAM_BYTES = "tierd_vram_bytes", Bytes, Kind::Gauge,
        &[("device", "its number, at most 64 of them"), ("state", "`total`, `used`, `claimed`")],
        "Bytes of VRAM: of the device, in use by all processes, and taken by models as their workers say.";
    VRAM_WORKERS = "tierd_vram_workers", Count, Kind::Gauge, &[],
        "Workers that report what they have in VRAM.";
    VRAM_USES = "tierd_vram_uses_total", Count, Kind::Counter,
        &[("tier", "`vram`, `ram`, `nvme`, `elsewhere`: the fastest that had it; `elsewhere` is a file that is none of tierd's")],
        "Models that workers used, by where they were: those in VRAM without a read, the others by reading their files.";
    VRAM_READ_BYTES = "tierd_vram_read_bytes_total", Bytes, Kind::Counter, &[("tier", "`ram`, `nvme`, `elsewhere`")],
        "Bytes of model files that workers read.";
    VRAM_READ_SECONDS = "tierd_vram_read_seconds", Seconds, Kind::Histogram(ENSURE_BUCKETS), &[("tier", "`ram`, `nvme`, `elsewhere`")],
        "Time that workers took to read a model's file.";
    VRAM_ADVICE = "tierd_vram_advice_total", Count, Kind::Counter,
        &[("outcome", "`given`, `carried_out`, `failed`")],
        "Advice to workers that was new, and advice that was carried out by asking the worker to unload.";
    HINT_RECEIVED = "tierd_hint_received_total", Count, Kind::Counter,
        &[("kind", "`hello`, `report`, `ensure`, `absent`")],
        "Messages of workers.";
    HINT_DROPPED = "tierd_hint_dropped_total", Count, Kind::Counter,
        &[("reason", "`unknown`, `invalid`, `too_large`, `busy`")],
        "Messages of workers that were refused. Many `unknown` mean that a worker does not introduce itself.";
    TRACE_SPANS = "tierd_trace_spans_total", Count, Kind::Counter,
        &[("outcome", "`sent`, `dropped`, `failed`")],
        "Spans of traces: taken by the receiver, dropped because it is too slow, or not sent after some tries.";
    ENGINE_ENSURES = "tierd_engine_ensures_total", Count, Kind::Counter,
        &[("outcome", "`hit`, `fetched`, `joined`, `failed`")],
        "Ensures that ended: all was there, something was fetched, only flights of others were joined, or something failed.";
    ENGINE_ENSURE_SECONDS = "tierd_engine_ensure_seconds", Seconds, Kind::Histogram(ENSURE_BUCKETS),
        &[("from", "`vram`, `ram`, `nvme`, `origin`: the slowest tier that a model of the set was in")],
        "Time from an ensure to its end.";
    ENGINE_MODELS = "tierd_engine_models_total", Count, Kind::Counter, &[FROM],
        "Models that were made ready, by the tier that each was in when it was asked for: `origin` is a miss, the others are hits.";
    ENGINE_MODEL_BYTES = "tierd_engine_model_bytes_total", Bytes, Kind::Counter, &[FROM],
        "Bytes of these models. What was not `origin` did not have to be fetched again.";
    ENGINE_ESTIMATES = "tierd_engine_estimates_total", Count, Kind::Counter,
        &[("class", "`hit`, `settle` (held where the page cache has it), `lock` (read from the disk), `fetch`"), ("verdict", "`near`, `short`, `long`")],
        "Estimates that were compared with what came: within a factor of two, told less than half of it, or more than twice. Hits take a millisecond, where the scheduler of the system decides.";
    ENGINE_ESTIMATE_ERROR = "tierd_engine_estimate_error_ratio", Count, Kind::Histogram(ERROR_BUCKETS), &[],
        "How far the estimate of a set's time was off, as a share of the time that it took: 0.1 is a tenth. A median above 0.5 means that the node surprises itself.";
    FLEET_CONNECTED = "tierd_fleet_connected", Count, Kind::Gauge, &[],
        "1 while NATS is reached, else 0. Absent where no fleet is configured.";
    FLEET_MESSAGES = "tierd_fleet_messages_total", Count, Kind::Counter, &[],
        "Answers and events that NATS took.";
    ENGINE_FLIGHTS = "tierd_engine_flights", Count, Kind::Gauge,
        &[("phase", "`waiting`, `checking`, `fetching`, `finishing`")],
        "Flights under way.";
    ENGINE_FLIGHTS_FAILED = "tierd_engine_flights_failed_total", Count, Kind::Counter,
        &[("fault", "the kind of fault, as in `corrupt`, `no_room`, `origin_unavailable`")],
        "Flights that ended badly. `corrupt` means that an origin's bytes are not what their digest says.";
    ENGINE_WAITERS = "tierd_engine_waiters", Count, Kind::Gauge, &[],
        "Callers that wait for models.";
    ENGINE_LEASES = "tierd_engine_leases", Count, Kind::Gauge, &[],
        "Leases held.";
    ENGINE_EVENTS_DROPPED = "tierd_engine_events_dropped_total", Count, Kind::Counter, &[],
        "Events that a watcher was too slow for; it is told to list everything again.";
    ENGINE_TRACE_DROPPED = "tierd_engine_trace_dropped_total", Count, Kind::Counter, &[],
        "Requests that `[trace] record` could not write down: the disk hangs, or is full.";
    ENGINE_AHEAD = "tierd_engine_ahead_total", Count, Kind::Counter,
        &[("what", "`started`, `upgraded`, `dropped`, `let_finish`, `failed`")],
        "Fetches for models that only queued prompts need, or that are guessed: started, upgraded to demand as their prompt came near, dropped or let finish because it left the queue, failed. `dropped` and `let_finish` are what was fetched in vain.";
    PREDICT_GUESSES = "tierd_predict_guesses_total", Count, Kind::Counter,
        &[("habit", "`sequence`, `hour`"), ("step", "what acting on it would have done: `fetch`, `promote`, `none`"), ("outcome", "`hit`, `miss`")],
        "Confident guesses, acted on or not, by what became of them.";
    PREDICT_BYTES = "tierd_predict_bytes_total", Bytes, Kind::Counter,
        &[("step", "`fetch`, `promote`"), ("outcome", "`used`, `late`, `wasted`")],
        "Bytes of models that were moved because they were guessed: asked for in time, asked for while they were on their way, or not asked for.";
    PREDICT_ACTING = "tierd_predict_acting", Count, Kind::Gauge,
        &[("habit", "`sequence`, `hour`"), ("step", "`fetch`, `promote`"), ("level", "`likely`, `sure`")],
        "Whether guesses of this kind are acted on: they have proved right on this node.";
    PREDICT_PRECISION = "tierd_predict_precision_ratio", Count, Kind::Gauge,
        &[("habit", "`sequence`, `hour`"), ("step", "`fetch`, `promote`"), ("level", "`likely`, `sure`")],
        "Share of the last confident guesses of this kind that came true.";
    PLAN_RIVAL = "tierd_plan_rival_waited_ratio", Count, Kind::Gauge, &[("policy", "`value`, `lru`, `s3fifo`")],
        "What callers would have waited for origins under another policy, as a share of what they did wait, in the last days; 1 until that says something.";
    COMFY_SERVERS = "tierd_comfy_servers", Count, Kind::Gauge, &[("state", "`up`, `down`")],
        "ComfyUI servers whose queues are read ahead.";
    COMFY_QUEUE = "tierd_comfy_queue_prompts", Count, Kind::Gauge, &[("state", "`running`, `pending`")],
        "Prompts in the queues of all ComfyUI servers.";
    COMFY_PROMPTS = "tierd_comfy_prompts_total", Count, Kind::Counter,
        &[("outcome", "`seen`, `succeeded`, `failed`, `left`")],
        "Prompts of ComfyUI servers: seen in a queue, and how they ended; `left` without a trace in the server's history.";
    COMFY_UNRESOLVED = "tierd_comfy_unresolved_total", Count, Kind::Counter, &[],
        "Queued prompts that need a model which no origin and no tier knows.";
    COMFY_READS = "tierd_comfy_queue_reads_total", Count, Kind::Counter,
        &[("outcome", "`ok`, `unreachable`, `malformed`, `too_large`")],
        "Times that a ComfyUI server's queue was read, by how that went.";
    RPC_REQUESTS = "tierd_rpc_requests_total", Count, Kind::Counter,
        &[("method", "the name of the rpc"), ("code", "the gRPC status, as in `OK`, `NOT_FOUND`")],
        "gRPC requests that ended.";
    RPC_REQUEST_SECONDS = "tierd_rpc_request_seconds", Seconds, Kind::Histogram(RPC_BUCKETS),
        &[("method", "the name of the rpc")],
        "Time from a gRPC request to its answer; for streams, to their first message.";
    PROCESS_RESIDENT = "tierd_process_resident_bytes", Bytes, Kind::Gauge, &[],
        "Memory of the daemon (RSS), files mapped by it included.";
    PROCESS_CPU = "tierd_process_cpu_seconds", Seconds, Kind::Gauge, &[],
        "CPU time that the daemon used. Grows only; typed as a gauge because it has fractions.";
    PROCESS_OPEN_FDS = "tierd_process_open_fds", Count, Kind::Gauge, &[],
        "File descriptors that the daemon has open.";
    PROCESS_START = "tierd_process_start_time_seconds", Seconds, Kind::Gauge, &[],
        "When the daemon started, in seconds since 1970 UTC.";
}

/// Tells the recorder the units and descriptions of all metrics, and shows counters at zero where the first step matters.
/// Call once, after it is installed.
pub fn describe_all() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.description),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.description),
            Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.unit, metric.description),
        }
    }
    prime::prime();
}

/// Bytes arrived from an origin. Call it once a piece or chunk, not once a packet: it looks the counter up.
pub fn fetched(origin: &OriginName, bytes: u64) {
    counter!(FETCH_RECEIVED.name, "origin" => origin.0.clone()).increment(bytes);
}

/// A ranged request ended after `elapsed`.
pub fn request_ended(origin: &OriginName, outcome: RequestOutcome, elapsed: Duration) {
    counter!(FETCH_REQUESTS.name, "origin" => origin.0.clone(), "outcome" => outcome.label()).increment(1);
    histogram!(FETCH_REQUEST_SECONDS.name, "origin" => origin.0.clone()).record(elapsed);
}

/// A piece is asked for again.
pub fn retried(origin: &OriginName) {
    counter!(FETCH_RETRIES.name, "origin" => origin.0.clone()).increment(1);
}

/// So many requests to an origin are under way.
pub fn connections(origin: &OriginName, connections: u32) {
    gauge!(FETCH_CONNECTIONS.name, "origin" => origin.0.clone()).set(connections);
}

/// Whether an origin's last answer was good.
pub fn origin_up(origin: &OriginName, up: bool) {
    gauge!(ORIGIN_UP.name, "origin" => origin.0.clone()).set(u32::from(up));
}

/// An origin was listed.
pub fn origin_models(origin: &OriginName, models: u64) {
    gauge!(ORIGIN_MODELS.name, "origin" => origin.0.clone()).set(models as f64);
}

/// The disk tier as it is now, in bytes; `free_fs` is what the whole file system has left.
pub fn store_bytes(used: u64, reserved: u64, capacity: u64, free_fs: u64) {
    for (state, bytes) in [("used", used), ("reserved", reserved), ("capacity", capacity), ("free_fs", free_fs)] {
        gauge!(STORE_BYTES.name, "state" => state).set(bytes as f64);
    }
}

/// So many models are on the disk.
pub fn store_models(models: u64) {
    gauge!(STORE_MODELS.name).set(models as f64);
}

/// A model left the disk and gave `bytes` back.
pub fn evicted(reason: &EvictReason, bytes: u64) {
    let reason = match reason {
        EvictReason::Room { .. } => "room",
        EvictReason::Asked { .. } => "asked",
        EvictReason::Shrunk { .. } => "shrunk",
        EvictReason::Replaced { .. } => "replaced",
    };
    counter!(STORE_EVICTIONS.name, "reason" => reason).increment(1);
    counter!(STORE_EVICTED_BYTES.name, "reason" => reason).increment(bytes);
}

/// A finished blob became durable and visible.
pub fn committed(elapsed: Duration) {
    histogram!(STORE_COMMIT_SECONDS.name).record(elapsed);
}

/// Stored pieces were not what they should be.
pub fn damaged(pieces: u64) {
    counter!(STORE_DAMAGED_PIECES.name).increment(pieces);
}

/// An ensure ended. `from` is the slowest tier that a model of the set was in when it was asked for.
pub fn ensure_ended(outcome: EnsureOutcome, from: Tier, elapsed: Duration) {
    counter!(ENGINE_ENSURES.name, "outcome" => outcome.label()).increment(1);
    histogram!(ENGINE_ENSURE_SECONDS.name, "from" => tier(from)).record(elapsed);
}

fn tier(tier: Tier) -> &'static str {
    match tier {
        Tier::Vram => "vram",
        Tier::Ram => "ram",
        Tier::Nvme => "nvme",
        Tier::Origin => "origin",
    }
}

/// So many flights are in a phase. Flights that ended are not counted: `Locking`, `Ready` and `Failed` do nothing.
pub fn flights(phase: Phase, flights: u64) {
    let phase = match phase {
        Phase::Waiting => "waiting",
        Phase::Checking => "checking",
        Phase::Fetching => "fetching",
        Phase::Finishing => "finishing",
        Phase::Locking | Phase::Ready | Phase::Failed => return,
    };
    gauge!(ENGINE_FLIGHTS.name, "phase" => phase).set(flights as f64);
}

/// So many callers wait.
pub fn waiters(waiters: u64) {
    gauge!(ENGINE_WAITERS.name).set(waiters as f64);
}

/// So many leases are held.
pub fn leases(leases: u64) {
    gauge!(ENGINE_LEASES.name).set(leases as f64);
}

/// What became of a fetch that nobody asked for.
pub fn ahead(ahead: Ahead) {
    let what = match ahead {
        Ahead::Started => "started",
        Ahead::Upgraded => "upgraded",
        Ahead::Dropped => "dropped",
        Ahead::LetFinish => "let_finish",
        Ahead::Failed => "failed",
    };
    counter!(ENGINE_AHEAD.name, "what" => what).increment(1);
}

/// A watcher was too slow for so many events.
pub fn events_dropped(events: u64) {
    counter!(ENGINE_EVENTS_DROPPED.name).increment(events);
}

/// A request could not be recorded.
pub fn trace_dropped() {
    counter!(ENGINE_TRACE_DROPPED.name).increment(1);
}

/// A set is ready: its estimate was off by this share of the time that it took.
pub fn estimate_error(share: f64) {
    histogram!(ENGINE_ESTIMATE_ERROR.name).record(share);
}

/// Whether NATS is reached.
pub fn fleet_connected(connected: bool) {
    gauge!(FLEET_CONNECTED.name).set(f64::from(u8::from(connected)));
}

/// NATS took an answer or an event.
pub fn fleet_message() {
    counter!(FLEET_MESSAGES.name).increment(1);
}

/// A gRPC request ended. `method` is the rpc's name, `code` the status's; both from the program, never from the caller.
pub fn rpc_ended(method: &'static str, code: &'static str) {
    counter!(RPC_REQUESTS.name, "method" => method, "code" => code).increment(1);
}

/// A gRPC request was answered (a stream: began to be).
pub fn rpc_answered(method: &'static str, elapsed: Duration) {
    histogram!(RPC_REQUEST_SECONDS.name, "method" => method).record(elapsed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMS: [&str; 14] = [
        "fetch", "origin", "store", "ram", "vram", "hint", "engine", "predict", "plan", "trace", "comfy", "fleet",
        "rpc", "process",
    ];

    #[test]
    fn every_name_follows_the_rule_and_is_there_once() {
        for (at, metric) in ALL.iter().enumerate() {
            let name = metric.name;
            let rest = name.strip_prefix("tierd_").unwrap_or_else(|| panic!("{name}"));
            assert!(ROOMS.iter().any(|room| rest.starts_with(&format!("{room}_"))), "{name} has no room");
            assert!(ALL[..at].iter().all(|other| other.name != name), "{name} is there twice");
            if metric.kind == Kind::Counter {
                assert!(name.ends_with("_total"), "{name} is a counter");
            }
            let unit = match metric.unit {
                Unit::Bytes => "_bytes",
                Unit::Seconds => "_seconds",
                _ => "",
            };
            assert!(name.trim_end_matches("_total").ends_with(unit), "{name} does not name its unit");
            if let Kind::Histogram(buckets) = metric.kind {
                assert!(buckets.is_sorted_by(|a, b| a < b), "{name}: buckets");
            }
            assert!(metric.description.ends_with('.'), "{name}: describe it in a sentence");
        }
    }
}
