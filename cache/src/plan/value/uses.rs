//! How often a blob is used: two counts that decay, and the rate of use that they give.
//!
//! The fast count follows sessions: a person changes a prompt and asks again within a minute or two. The slow one follows fashion:
//! what a node serves is much the same from one day to the next.

use std::f64::consts::LN_2;
use std::time::Duration;

use crate::clock::Tick;

/// Half-life of the fast count, in seconds: two or three times the gap between two prompts of one session.
const FAST: f64 = 150.0;
/// Half-life of the slow count, in seconds: two days, so that a night does not make a node forget its day.
const SLOW: f64 = 172_800.0;
/// Share of the next uses that are expected from the slow count. The rest is expected from the fast one.
const SLOW_SHARE: f64 = 0.6;

/// A blob's uses. Each count is worth what it was at `at`, halved for each half-life since.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Uses {
    fast: f64,
    slow: f64,
    at: Tick,
}

/// Seconds, exactly enough for decays.
fn seconds(tick: Tick) -> f64 {
    tick.0 as f64 / 1e6
}

impl Uses {
    /// Counts one use.
    pub(super) fn count(&mut self, now: Tick) {
        let (fast, slow) = self.counts(now);
        *self = Self { fast: fast + 1.0, slow: slow + 1.0, at: now };
    }

    /// One use, so long ago.
    pub(super) fn once(ago: Duration, now: Tick) -> Self {
        Self::kept(1.0, 1.0, ago, now)
    }

    /// Both counts as they were so long ago.
    pub(super) fn kept(fast: f64, slow: f64, ago: Duration, now: Tick) -> Self {
        let ago = ago.as_secs_f64();
        Self { fast: fast * (-ago / FAST).exp2(), slow: slow * (-ago / SLOW).exp2(), at: now }
    }

    /// Both counts as they are now, the fast one first.
    pub(super) fn counts(&self, now: Tick) -> (f64, f64) {
        let age = now.since(self.at).as_secs_f64();
        (self.fast * (-age / FAST).exp2(), self.slow * (-age / SLOW).exp2())
    }

    /// Both counts together.
    pub(super) fn and(self, other: Self, now: Tick) -> Self {
        let ((fast, slow), (more_fast, more_slow)) = (self.counts(now), other.counts(now));
        Self { fast: fast + more_fast, slow: slow + more_slow, at: now }
    }

    /// Uses expected a second from now on: each count divided by its mean life.
    pub(super) fn rate(&self, now: Tick) -> f64 {
        let (fast, slow) = self.counts(now);
        (1.0 - SLOW_SHARE) * fast * LN_2 / FAST + SLOW_SHARE * slow * LN_2 / SLOW
    }

    /// Where the blob stands by its slow count alone: an order that time does not change, because all slow counts decay alike.
    /// [`rate_of`] gives the rate back.
    pub(super) fn standing(&self) -> f64 {
        self.slow.log2() + seconds(self.at) / SLOW
    }
}

/// The rate that a standing stands for: the least that the blob's rate can be.
pub(super) fn rate_of(standing: f64, now: Tick) -> f64 {
    SLOW_SHARE * LN_2 / SLOW * (standing - seconds(now) / SLOW).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_halves_in_its_half_life_and_a_standing_never_promises_more_than_the_rate() {
        let mut uses = Uses::default();
        uses.count(Tick(0));
        let later = Tick(SLOW as u64 * 1_000_000);
        let half = SLOW_SHARE * LN_2 / SLOW / 2.0;
        assert!((uses.rate(later) / half - 1.0).abs() < 1e-6);
        let recalled = Uses::once(Duration::from_secs_f64(SLOW), later);
        assert!((recalled.rate(later) / half - 1.0).abs() < 1e-6);
        for now in [Tick(0), Tick(60_000_000), later] {
            let least = rate_of(uses.standing(), now);
            assert!(least <= uses.rate(now) * (1.0 + 1e-9), "{least} {}", uses.rate(now));
        }
        let settled = Tick(later.0 * 2);
        assert!((rate_of(uses.standing(), settled) / uses.rate(settled) - 1.0).abs() < 1e-6);
    }
}
