//! What this node has measured of itself: how long a request, a commit, a lock takes for so many bytes. Arithmetic only: it
//! is told what took how long, and says what to expect.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::OriginName;
use crate::piece::PIECE_BYTES;
use crate::plan::Costs;

/// Observations that count: each new one fades the older by this share, so that about 32 are remembered. Fewer would follow
/// noise, more would not follow a link that changed.
const FADE: f64 = 1.0 - 1.0 / 32.0;
/// Sizes that differ by less than this (relative variance) say nothing about a start time: all time is then put on the bytes.
const SAME_SIZE: f64 = 1e-3;
/// Levels of concurrency that are told apart: 1, 2-3, 4-7, ... 128 and more connections.
const LEVELS: usize = 8;

/// Before anything was measured: the first byte after this long.
const UNMEASURED_START: f64 = 0.1;
/// Before anything was measured: bytes a second of one connection, what hubs and R2 give.
const UNMEASURED_CONNECTION: f64 = 40e6;
/// Before anything was measured: bytes a second from the disk into locked memory, a slow NVMe disk.
const UNMEASURED_DISK: f64 = 1.5e9;
/// Before anything was measured: seconds that a step on the disk takes (open, commit).
const UNMEASURED_STEP: f64 = 0.01;
/// Before anything was measured: seconds until models that are there have been looked at.
const UNMEASURED_LOOK: f64 = 0.001;

/// Bytes whose time is about as long as what is done once: an observation is weighed by the square of its bytes and these.
const ONCE_BYTES: f64 = PIECE_BYTES as f64;

/// Seconds as a straight line over bytes, `start + bytes / rate`: least squares over faded observations. What is least is the
/// error as a *share* of the time, since that is what an estimate is judged by: else a large file that took a third longer
/// decides what is expected of a small one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fit {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Fit {
    /// Takes one observation in.
    pub fn saw(&mut self, bytes: u64, took: Duration) {
        let (x, y) = (bytes as f64, took.as_secs_f64());
        // By bytes, not by time: what was quick by chance must not count most, nor a link that became slow hardly at all.
        let scale = 1.0 + x / ONCE_BYTES;
        let weight = 1.0 / (scale * scale);
        self.weight = self.weight * FADE + weight;
        self.x = self.x * FADE + weight * x;
        self.y = self.y * FADE + weight * y;
        self.xx = self.xx * FADE + weight * x * x;
        self.xy = self.xy * FADE + weight * x * y;
    }

    /// Whether nothing was observed yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.weight == 0.0
    }

    /// Seconds to expect for so many bytes; `None` before the first observation.
    #[must_use]
    pub fn seconds(&self, bytes: u64) -> Option<f64> {
        if self.is_empty() {
            return None;
        }
        let (start, slope) = self.line();
        Some(start + slope * bytes as f64)
    }

    /// Start in seconds, and seconds a byte. Neither is negative: a line that would be is drawn through the origin, or flat.
    fn line(&self) -> (f64, f64) {
        let (mean_x, mean_y) = (self.x / self.weight, self.y / self.weight);
        let variance = self.xx / self.weight - mean_x * mean_x;
        if variance <= SAME_SIZE * mean_x * mean_x {
            return if mean_x > 0.0 { (0.0, mean_y / mean_x) } else { (mean_y, 0.0) };
        }
        let slope = (self.xy / self.weight - mean_x * mean_y) / variance;
        if slope <= 0.0 {
            return (mean_y, 0.0);
        }
        let start = mean_y - slope * mean_x;
        if start < 0.0 { (0.0, self.xy / self.xx) } else { (start, slope) }
    }
}

/// Requests to one origin, by how many ran at once: a full link and a limit on each connection look alike in a total, and
/// different here.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    levels: [Fit; LEVELS],
}

/// The level of so many connections at once.
fn level(connections: u32) -> usize {
    (connections.max(1).ilog2() as usize).min(LEVELS - 1)
}

impl Requests {
    /// A request of `bytes` ended well, while `connections` ran, itself included.
    pub fn saw(&mut self, connections: u32, bytes: u64, took: Duration) {
        self.levels[level(connections)].saw(bytes, took);
    }

    /// Seconds that a request takes while `connections` run. A level that was not seen is taken from the nearest: the next one
    /// above, which is no faster, else the next one below.
    #[must_use]
    pub fn seconds(&self, connections: u32, bytes: u64) -> f64 {
        let wanted = level(connections);
        let above = self.levels[wanted..].iter().find_map(|fit| fit.seconds(bytes));
        let below = || self.levels[..wanted].iter().rev().find_map(|fit| fit.seconds(bytes));
        above.or_else(below).unwrap_or(UNMEASURED_START + bytes as f64 / UNMEASURED_CONNECTION)
    }

    /// Whether nothing was fetched from it yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(Fit::is_empty)
    }
}

/// Everything that was measured.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    origins: BTreeMap<OriginName, Requests>,
    /// From asking for a file to its first request: bytes are the file's.
    pub open: Fit,
    /// From the last piece to a durable, named file.
    pub commit: Fit,
    /// From the disk into locked memory; bytes are all that was being locked at that time.
    pub lock: Fit,
    /// The same for pages that were kept as they landed.
    pub settle: Fit,
    /// Answering for models that are where they are wanted; in place of bytes, how many they are.
    pub look: Fit,
}

impl Rates {
    /// A request to an origin ended well.
    pub fn request(&mut self, origin: &OriginName, connections: u32, bytes: u64, took: Duration) {
        match self.origins.get_mut(origin) {
            Some(requests) => requests.saw(connections, bytes, took),
            None => self.origins.entry(origin.clone()).or_default().saw(connections, bytes, took),
        }
    }

    /// What was measured of one origin.
    #[must_use]
    pub fn of(&self, origin: &OriginName) -> Option<&Requests> {
        self.origins.get(origin)
    }

    /// Seconds until `pieces` have arrived over `connections`, `piece_bytes` each: full rounds, then a last one that has
    /// fewer connections and so perhaps faster ones.
    #[must_use]
    pub fn fetch_seconds(&self, origin: &OriginName, connections: u32, pieces: u64, piece_bytes: u64) -> f64 {
        let unmeasured = Requests::default();
        let requests = self.of(origin).unwrap_or(&unmeasured);
        let connections = u64::from(connections.max(1));
        let (rounds, rest) = (pieces / connections, pieces % connections);
        let full = rounds as f64 * requests.seconds(connections as u32, piece_bytes);
        if rest == 0 { full } else { full + requests.seconds(rest as u32, piece_bytes) }
    }

    /// What bytes cost here, as far as it was measured, `unmeasured` for the rest: an origin by a large file over `connections`, the disk
    /// by what it takes to read a large file into RAM.
    #[must_use]
    pub fn costs(&self, origin: &OriginName, connections: u32, unmeasured: Costs) -> Costs {
        const LARGE: u64 = 128;
        let mut costs = unmeasured;
        if self.of(origin).is_some_and(|requests| !requests.is_empty()) {
            let (one, many) = (1, LARGE + 1);
            let start = self.fetch_seconds(origin, connections, one, PIECE_BYTES);
            let whole = self.fetch_seconds(origin, connections, many, PIECE_BYTES);
            costs.origin_byte = (whole - start).max(f64::MIN_POSITIVE) / (LARGE * PIECE_BYTES) as f64;
            costs.origin_first_byte = (start - costs.origin_byte * PIECE_BYTES as f64).max(0.0);
        }
        if let Some(seconds) = self.lock.seconds(LARGE * PIECE_BYTES) {
            // Reading it is never faster than having it.
            costs.disk_byte = (seconds / (LARGE * PIECE_BYTES) as f64).max(costs.ram_byte);
        }
        costs
    }

    /// Seconds to look at so many models.
    #[must_use]
    pub fn look_seconds(&self, models: usize) -> f64 {
        self.look.seconds(models as u64).unwrap_or(UNMEASURED_LOOK)
    }

    /// Seconds to open a file of so many bytes.
    #[must_use]
    pub fn open_seconds(&self, bytes: u64) -> f64 {
        self.open.seconds(bytes).unwrap_or(UNMEASURED_STEP)
    }

    /// Seconds to make a file of so many bytes durable and visible.
    #[must_use]
    pub fn commit_seconds(&self, bytes: u64) -> f64 {
        self.commit.seconds(bytes).unwrap_or(UNMEASURED_STEP)
    }

    /// Seconds to lock so many bytes from the disk.
    #[must_use]
    pub fn lock_seconds(&self, bytes: u64) -> f64 {
        if bytes == 0 { 0.0 } else { self.lock.seconds(bytes).unwrap_or(bytes as f64 / UNMEASURED_DISK) }
    }

    /// Seconds to lock what has just landed.
    #[must_use]
    pub fn settle_seconds(&self, bytes: u64) -> f64 {
        if bytes == 0 { 0.0 } else { self.settle.seconds(bytes).unwrap_or(UNMEASURED_STEP) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_start_and_a_rate_are_told_apart() {
        let mut fit = Fit::default();
        assert_eq!(fit.seconds(MIB), None);
        for n in 1..=40u64 {
            let bytes = (n % 8 + 1) * MIB;
            fit.saw(bytes, seconds(0.1 + bytes as f64 / 50e6));
        }
        let expected = 0.1 + (100 * MIB) as f64 / 50e6;
        let found = fit.seconds(100 * MIB).expect("seen");
        assert!((found - expected).abs() < 0.01 * expected, "{found} is not {expected}");
    }

    #[test]
    fn sizes_that_never_differ_put_all_time_on_the_bytes() {
        let mut fit = Fit::default();
        for _ in 0..10 {
            fit.saw(8 * MIB, seconds(0.2));
        }
        assert!((fit.seconds(8 * MIB).expect("seen") - 0.2).abs() < 1e-6);
        assert!((fit.seconds(4 * MIB).expect("seen") - 0.1).abs() < 1e-6);
    }

    #[test]
    fn a_link_that_changed_is_followed_within_a_few_dozen_requests() {
        let mut fit = Fit::default();
        for _ in 0..1000 {
            fit.saw(8 * MIB, seconds(0.1));
        }
        for _ in 0..100 {
            fit.saw(8 * MIB, seconds(0.4));
        }
        assert!(fit.seconds(8 * MIB).expect("seen") > 0.37);
    }

    #[test]
    fn nothing_is_ever_expected_to_take_less_than_no_time() {
        let mut fit = Fit::default();
        fit.saw(MIB, seconds(1.0));
        fit.saw(100 * MIB, seconds(0.5));
        assert!(fit.seconds(0).expect("seen") >= 0.0);
        assert!(fit.seconds(1000 * MIB).expect("seen") >= 0.0);
    }

    #[test]
    fn a_limit_on_each_connection_and_a_full_link_are_told_apart() {
        let (limited, full) = (OriginName::new("limited"), OriginName::new("full"));
        let mut rates = Rates::default();
        for connections in [1, 16, 64] {
            for _ in 0..8 {
                rates.request(&limited, connections, 8 * MIB, seconds(0.2));
                rates.request(&full, connections, 8 * MIB, seconds(0.01 * f64::from(connections)));
            }
        }
        let one = |origin| rates.fetch_seconds(origin, 64, 1, 8 * MIB);
        let many = |origin| rates.fetch_seconds(origin, 64, 640, 8 * MIB);
        assert!((one(&limited) - 0.2).abs() < 1e-6 && (many(&limited) - 2.0).abs() < 1e-6);
        assert!((one(&full) - 0.01).abs() < 1e-6 && (many(&full) - 6.4).abs() < 1e-6);
    }

    #[test]
    fn a_level_that_was_not_seen_is_taken_from_its_neighbour() {
        let origin = OriginName::new("o");
        let mut rates = Rates::default();
        rates.request(&origin, 16, 8 * MIB, seconds(0.5));
        assert!((rates.fetch_seconds(&origin, 4, 4, 8 * MIB) - 0.5).abs() < 1e-6);
        assert!((rates.fetch_seconds(&origin, 64, 64, 8 * MIB) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn costs_are_what_was_measured_and_the_presets_where_nothing_was() {
        let origin = OriginName::new("o");
        let mut rates = Rates::default();
        assert_eq!(rates.costs(&origin, 16, Costs::default()), Costs::default());
        for _ in 0..8 {
            rates.request(&origin, 16, 8 * MIB, seconds(0.4));
            rates.lock.saw(512 * MIB, seconds(1.0));
        }
        let costs = rates.costs(&origin, 16, Costs::default());
        // 16 pieces of 8 MiB in 0.4 s; 512 MiB a second from the disk.
        assert!((costs.origin_byte * (320 * MIB) as f64 - 1.0).abs() < 0.01, "{costs:?}");
        assert!((costs.disk_byte * (512 * MIB) as f64 - 1.0).abs() < 0.3, "{costs:?}");
        assert_eq!(costs.ram_byte, Costs::default().ram_byte);
    }
}
