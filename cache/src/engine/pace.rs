//! Bandwidth caps: how long a reader waits so that a rate is kept. A bucket that holds a quarter of a second.

use std::sync::Mutex;
use std::time::Duration;

use crate::clock::{Clock, Tick};

/// How much may be spent at once after a pause.
const BURST: Duration = Duration::from_millis(250);

/// A rate in bytes a second, shared by all who read against it.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When everything spent so far is paid for.
    paid_until: Mutex<Tick>,
}

impl Pace {
    /// A cap; `None` caps nothing.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Option<Self> {
        bytes_per_second.map(|rate| Self { bytes_per_second: rate.max(1), paid_until: Mutex::new(Tick::default()) })
    }

    /// Spends bytes and returns how long to wait for them.
    fn spend(&self, bytes: u64, now: Tick) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut paid = self.paid_until.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let earliest = Tick(now.0.saturating_sub(BURST.as_micros() as u64));
        *paid = (*paid).max(earliest).after(cost);
        paid.since(now)
    }

    /// Spends bytes and waits until the rate allows them.
    pub(crate) async fn keep(&self, bytes: u64, clock: &Clock) {
        let wait = self.spend(bytes, clock.now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_keeps_the_rate_and_a_pause_saves_only_the_burst() {
        let pace = Pace::new(Some(1000)).expect("a cap");
        let start = Tick(10_000_000);
        for _ in 0..10 {
            let _ = pace.spend(1000, start);
        }
        // 10 s worth was spent at once, a quarter of a second of it was saved up.
        assert_eq!(pace.spend(0, start), Duration::from_millis(9750));
        let later = Tick(100_000_000);
        assert_eq!(pace.spend(250, later), Duration::ZERO);
        assert_eq!(pace.spend(1000, later), Duration::from_secs(1));
        assert!(Pace::new(None).is_none());
    }
}
