//! The clock. The only file that asks the system for the time; everything else is told.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment on the monotonic clock, in microseconds since the daemon started. Never jumps; means nothing after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(pub u64);

impl Tick {
    /// The tick `wait` after this one.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is not in the past.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A moment on the wall clock, in milliseconds since 1970 UTC. May jump: good for records, never for waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wall(pub u64);

/// Both clocks of one process.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at tick zero.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this file is the one door to the clock")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The present tick.
    #[must_use]
    pub fn now(&self) -> Tick {
        Tick(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The present wall time; 1970 if the clock stands before it.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this file is the one door to the clock")]
    pub fn wall(&self) -> Wall {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Wall(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The tokio instant at which `tick` falls, for timers.
    #[must_use]
    pub fn instant(&self, tick: Tick) -> tokio::time::Instant {
        (self.start + Duration::from_micros(tick.0)).into()
    }
}
