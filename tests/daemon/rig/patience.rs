//! Time in tests. What merely ends a test that hangs is generous; what claims how fast the daemon is holds on a machine that has
//! the time for it, and stretches by what else runs there.

use std::time::Duration;

/// How much longer than they say waits may take before a test is given up: they end what hangs, and claim nothing.
pub(crate) const PATIENCE: u32 = 4;

/// How crowded the machine is: how many want a processor, for each that it has. 1 where the daemon has one to itself.
pub(crate) fn crowd() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut words = text.split([' ', '/']);
    let minute: f64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let now: f64 = words.nth(2).and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    (minute.max(now) / cores).max(1.0)
}

/// Whether so much else runs here that how long something takes says nothing of the daemon.
pub(crate) fn is_crowded() -> bool {
    crowd() > 2.0
}

/// Fails unless it took less than this, on a machine that has the time: each turn that a crowded one takes to come round is not
/// held against the daemon.
#[track_caller]
pub(crate) fn assert_within(took: Duration, bound: Duration, what: &str) {
    if took < bound {
        return;
    }
    let crowd = crowd();
    let stretched = if crowd > 1.0 { bound.mul_f64(2.0 * crowd) } else { bound };
    assert!(took < stretched, "{what} took {took:?}, more than {bound:?}; {crowd:.1} want each processor");
}
