//! What the engine may be told: plain, checked values. Reading them from a file is the daemon's business.
//!
//! Every default stands here, once, with its reason.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::ids::OriginName;
use crate::plan::predict::PredictConfig;
use crate::plan::{Costs, PolicyKind};
use crate::units::{GIB, MIB, Share};

/// Everything that the engine is told at its start.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// L3.
    pub store: StoreConfig,
    /// L2.
    pub ram: RamConfig,
    /// What stays and what goes.
    pub plan: PlanConfig,
    /// What people asked for, written down.
    pub trace: TraceConfig,
    /// What is guessed, and when that is acted on.
    pub predict: PredictConfig,
    /// L1.
    pub vram: VramConfig,
    /// L4, in order of preference.
    pub origins: Vec<OriginConfig>,
    /// How bytes are fetched.
    pub fetch: FetchConfig,
    /// How often origins are listed again. Default 5 min: a bucket changes by deployments, and a page of 1000 names is one request.
    pub refresh_interval: Duration,
    /// Named limits of queues and lists.
    pub limits: LimitsConfig,
}

/// L3: where blobs live and how many bytes they may take.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The folder that holds everything: blobs, unfinished blobs, journal, and by default the models folder.
    pub path: PathBuf,
    /// Where models appear under their names. Must be on the same file system as `path`: names are hard links.
    pub models: PathBuf,
    /// Most bytes that blobs and reservations may take. Default 90 % of the file system: a cache disk is there to be used.
    pub budget: Share,
    /// Bytes of the file system that always stay free. Default 5 %: ext4 and xfs slow down when they are nearly full.
    pub keep_free: Share,
    /// How long stored bytes are believed before they are read again, slowly, while the node is idle. Default 7 days: bit rot is
    /// rare, and a terabyte takes three hours at the pace of a patrol. `None` never reads them again.
    pub scrub_interval: Option<Duration>,
    /// Whether fetched bytes bypass the page cache. Default auto: tried per file system, buffered where it is refused.
    pub direct_io: DirectIo,
    /// Mode of blobs and models. Default 0640: readable by ComfyUI's user through the group, by no one else.
    pub file_mode: u32,
    /// Mode of folders. Default 0750, for the same reason.
    pub dir_mode: u32,
    /// Whether models that could be had but are not here appear in the models folder as dangling links. Default false.
    pub marks: bool,
}

/// L2: how much RAM may be held.
#[derive(Debug, Clone)]
pub struct RamConfig {
    /// Most bytes of RAM that models may hold. Default 50 %: the other half is ComfyUI's, whose own caches want as much again. 0 turns
    /// the tier off. Less is held where a cgroup, `RLIMIT_MEMLOCK` or the reserve says so.
    pub budget: Share,
    /// RAM that always stays available to others. Default none: an eighth more than the threshold below which ComfyUI drops its own
    /// models, min(10 GiB, max(2 GiB, 10 % of RAM)).
    pub reserve: Option<Share>,
}

impl Default for RamConfig {
    fn default() -> Self {
        Self { budget: Share::Percent(50.0), reserve: None }
    }
}

/// What stays in RAM and on the disk, and what goes when there is too little room.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PlanConfig {
    /// By what it is decided. Default `value`: it makes people wait least, see docs/policy.md.
    pub policy: PolicyKind,
    /// What bytes cost on this node, for policies that weigh.
    pub costs: Costs,
}

/// What people asked for, written down as traces that `tierd replay` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceConfig {
    /// The folder that traces are written to; `None`: nothing is recorded, the default, for it says who asked for what.
    pub record: Option<PathBuf>,
    /// Whether names of models and callers are written as hashes by a secret of the folder. Default no.
    pub hash_names: bool,
    /// Most bytes of all days; the oldest go. Default 1 GiB: a year of a busy node.
    pub bytes_max: u64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { record: None, hash_names: false, bytes_max: GIB }
    }
}

/// L1: how long workers are believed, and when advice is given.
#[derive(Debug, Clone, Copy)]
pub struct VramConfig {
    /// How long a worker's last report is believed. Default 10 s: it reports every second, so ten missed reports mean that it is gone.
    pub worker_expiry: Duration,
    /// VRAM use, in percent, above which models should leave. Default 85: the rest is for activations.
    pub high_percent: u32,
    /// VRAM use, in percent, below which models could be loaded ahead, and up to which. Default 60: far enough below `high_percent` that
    /// advice does not swing.
    pub low_percent: u32,
}

impl Default for VramConfig {
    fn default() -> Self {
        Self { worker_expiry: Duration::from_secs(10), high_percent: 85, low_percent: 60 }
    }
}

/// Whether fetched bytes bypass the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectIo {
    /// Bypass it where the file system can.
    Auto,
    /// Never bypass it.
    Off,
}

impl StoreConfig {
    /// The defaults for a store at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            models: path.join("models"),
            path,
            budget: Share::Percent(90.0),
            keep_free: Share::Percent(5.0),
            scrub_interval: Some(Duration::from_secs(7 * 86_400)),
            direct_io: DirectIo::Auto,
            file_mode: 0o640,
            dir_mode: 0o750,
            marks: false,
        }
    }
}

/// One origin (L4).
#[derive(Debug, Clone)]
pub struct OriginConfig {
    /// What the operator calls it.
    pub name: OriginName,
    /// Where it is and how to speak to it.
    pub kind: OriginKind,
    /// Path inside the bucket or server under which ComfyUI's layout starts. Default empty: at its root.
    pub prefix: String,
    /// Most connections to this origin at once. Default 64: enough to fill 20 Gbit/s at 40 MB/s a connection,
    /// and below what S3, R2 and a default nginx allow one client.
    pub connections_max: u32,
    /// Most bytes a second from this origin. Default none.
    pub bandwidth_max: Option<u64>,
    /// Longest wait for a TCP and TLS handshake. Default 5 s.
    pub connect_timeout: Duration,
    /// Longest wait from a request to its answer's first byte. Default 30 s: some servers hash an object before they answer.
    pub request_timeout: Duration,
    /// Longest silence inside a body. Default 10 s.
    pub stall_timeout: Duration,
    /// Name of the manifest object below `prefix`. Default `tierd-manifest.json`.
    pub manifest: String,
}

impl OriginConfig {
    /// An origin with the default limits.
    #[must_use]
    pub fn new(name: &str, kind: OriginKind) -> Self {
        Self {
            name: OriginName::new(name),
            kind,
            prefix: String::new(),
            connections_max: 64,
            bandwidth_max: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(10),
            manifest: "tierd-manifest.json".to_owned(),
        }
    }
}

/// The kinds of origin.
#[derive(Debug, Clone)]
pub enum OriginKind {
    /// S3, R2, and servers that speak like them.
    S3 {
        /// The bucket.
        bucket: String,
        /// `https://…`; none means AWS itself.
        endpoint: Option<String>,
        /// AWS region, or `auto` as R2 has it. Default `us-east-1`.
        region: String,
        /// Whether the bucket is part of the host name. Default false: path style works everywhere.
        virtual_hosted: bool,
        /// How requests are signed.
        credentials: Credentials,
    },
    /// A web server. Cannot be listed: models are found by name or through the manifest.
    Http {
        /// The address under which ComfyUI's layout starts.
        url: String,
        /// Sent as `Authorization: Bearer …`.
        bearer: Option<Secret>,
    },
    /// A folder on this machine (or on a mounted file system).
    Folder {
        /// Its path.
        path: PathBuf,
    },
}

/// How S3 requests are signed.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A key pair.
    Keys {
        /// Access key id.
        id: String,
        /// Secret key.
        secret: Secret,
        /// Session token of temporary credentials.
        token: Option<Secret>,
    },
    /// What the environment gives: `AWS_*` variables, web identity, container or instance role, in that order.
    Environment,
    /// Unsigned requests, for public buckets.
    Anonymous,
}

/// A secret. Prints as `[redacted]` whatever prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// How bytes are fetched, over all origins.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// Most connections over all origins. Default 64, see `OriginConfig::connections_max`.
    pub connections_max: u32,
    /// Most bytes held in memory between the network and the disk. Default 96 MiB: 64 connections with 1 MiB each,
    /// and half as much again for what the disk is busy with.
    pub bytes_in_flight_max: u64,
    /// Most bytes a second over all origins. Default none.
    pub bandwidth_max: Option<u64>,
    /// Attempts for one piece before its flight fails. Default 8: with the back-off below it rides out a minute of 500s.
    pub attempts_max: u32,
    /// First back-off after a failed attempt; doubles up to `backoff_max`, with jitter. Default 200 ms.
    pub backoff_min: Duration,
    /// Longest back-off. Default 20 s. A `Retry-After` is obeyed up to this too.
    pub backoff_max: Duration,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            connections_max: 64,
            bytes_in_flight_max: 96 * MIB,
            bandwidth_max: None,
            attempts_max: 8,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(20),
        }
    }
}

/// Named limits: none of these lists may grow without bound.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Callers waiting at once. Default 1024.
    pub ensures_max: u32,
    /// Models in one request. Default 1024: a workflow has 3 to 40.
    pub models_per_request_max: u32,
    /// Flights at once, waiting ones included. Default 4096.
    pub flights_max: u32,
    /// Leases at once. Default 4096.
    pub leases_max: u32,
    /// Events kept for `tierd events` and for watchers that resume. Default 4096.
    pub events_max: u32,
    /// Longest lease. Default 7 days: a forgotten pin must end some day.
    pub lease_max: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            ensures_max: 1024,
            models_per_request_max: 1024,
            flights_max: 4096,
            leases_max: 4096,
            events_max: 4096,
            lease_max: Duration::from_secs(7 * 86_400),
        }
    }
}

/// Smallest disk budget that makes sense: one checkpoint.
pub const BUDGET_BYTES_MIN: u64 = GIB / 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints() {
        let config = OriginKind::S3 {
            bucket: "b".into(),
            endpoint: None,
            region: "auto".into(),
            virtual_hosted: false,
            credentials: Credentials::Keys { id: "AK".into(), secret: Secret::new("hunter2"), token: None },
        };
        let text = format!("{config:?} {}", Secret::new("hunter2"));
        assert!(!text.contains("hunter2"), "{text}");
    }
}
