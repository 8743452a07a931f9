//! What is measured of the process.

use metrics::gauge;

use super::{PROCESS_CPU, PROCESS_OPEN_FDS, PROCESS_RESIDENT, PROCESS_START};

/// The process as it is now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessSample {
    /// Resident bytes.
    pub resident_bytes: u64,
    /// CPU seconds used so far.
    pub cpu_seconds: f64,
    /// Open file descriptors, if they can be counted.
    pub open_fds: Option<u64>,
    /// Start, in seconds since 1970 UTC.
    pub started: u64,
}

/// Records how the process is.
pub fn process(sample: ProcessSample) {
    gauge!(PROCESS_RESIDENT.name).set(sample.resident_bytes as f64);
    gauge!(PROCESS_CPU.name).set(sample.cpu_seconds);
    gauge!(PROCESS_START.name).set(sample.started as f64);
    if let Some(open_fds) = sample.open_fds {
        gauge!(PROCESS_OPEN_FDS.name).set(open_fds as f64);
    }
}
