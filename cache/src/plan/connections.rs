//! How many connections an origin gets: found by measuring, within the configured bound.
//!
//! Doubles while more connections bring more bytes; goes back when they do not; tries again from time to time, because
//! links and servers change. An origin that fails or throttles gets fewer at once.

use std::time::Duration;

use crate::clock::Tick;

/// Connections to begin with: what most single-host origins and links fill with, or show per-connection limits by.
pub const START: u32 = 16;
/// One measurement. Shorter ones are noise on a shared machine, longer ones find the number too late for a 1 GiB file.
const WINDOW: Duration = Duration::from_millis(100);
/// Windows that are not believed after a change: new connections are still opening and growing.
const SETTLE: u32 = 1;
/// More connections must bring this much more to be kept. Below it, they only cost memory and the server's patience.
const GAIN: f64 = 1.15;
/// How long a found number is kept before more is tried.
const HOLD: Duration = Duration::from_secs(4);

/// The number of connections of one origin.
#[derive(Debug, Clone)]
pub struct Connections {
    max: u32,
    allowed: u32,
    /// The number and the rate (bytes a second) before the change that is on trial.
    before: Option<(u32, f64)>,
    unsettled: u32,
    window_start: Tick,
    window_bytes: u64,
    /// Whether all allowed connections were wanted during the whole window.
    saturated: bool,
    held_until: Tick,
    rate: f64,
    /// Whether something was being fetched when the window began.
    active: bool,
}

impl Connections {
    /// Starts with a cautious number, at most `max`.
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self::starting_at(START, max)
    }

    /// Starts with a number of the caller's, at most `max`.
    #[must_use]
    pub fn starting_at(start: u32, max: u32) -> Self {
        Self {
            max: max.max(1),
            allowed: start.clamp(1, max.max(1)),
            before: None,
            unsettled: SETTLE,
            window_start: Tick::default(),
            window_bytes: 0,
            saturated: false,
            held_until: Tick::default(),
            rate: 0.0,
            active: false,
        }
    }

    /// Connections that may be used now.
    #[must_use]
    pub fn allowed(&self) -> u32 {
        self.allowed
    }

    /// Connections that may ever be used.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.max
    }

    /// Bytes a second in the last window.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate as u64
    }

    /// Says that more connections would have been used if they had been allowed (`true`), or not.
    pub fn wanted_more(&mut self, wanted: bool) {
        self.saturated &= wanted;
    }

    /// The origin failed, or asked us to slow down: half as many, and no trial for a while.
    pub fn failed(&mut self, now: Tick) {
        self.allowed = (self.allowed / 2).max(1);
        self.before = None;
        self.unsettled = SETTLE;
        self.held_until = now.after(HOLD);
    }

    /// Takes the origin's byte counter and moves the number if a window is over. `active` says whether anything is being fetched.
    pub fn sample(&mut self, bytes: u64, active: bool, now: Tick) {
        let elapsed = now.since(self.window_start);
        if elapsed < WINDOW {
            return;
        }
        let fetched = bytes.saturating_sub(self.window_bytes);
        // After an idle spell the first window would measure the idleness.
        let believable = active && elapsed < WINDOW * 5;
        let saturated = self.saturated;
        // A slow link has windows as long as its blocks take.
        self.rate = if elapsed < WINDOW * 5 || self.active { fetched as f64 / elapsed.as_secs_f64() } else { 0.0 };
        self.active = active;
        (self.window_start, self.window_bytes, self.saturated) = (now, bytes, true);
        if !believable || !saturated {
            self.unsettled = SETTLE;
            return;
        }
        if self.unsettled > 0 {
            self.unsettled -= 1;
            return;
        }
        self.judge(now);
    }

    fn judge(&mut self, now: Tick) {
        match self.before {
            Some((number, rate)) if self.rate < rate * GAIN => {
                self.allowed = number;
                self.before = None;
                self.held_until = now.after(HOLD);
            }
            _ if self.allowed < self.max && now >= self.held_until => {
                self.before = Some((self.allowed, self.rate));
                self.allowed = (self.allowed * 2).min(self.max);
            }
            _ => {
                self.before = None;
                return;
            }
        }
        self.unsettled = SETTLE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs windows against an origin whose rate is a function of the number; returns the number found.
    fn run(max: u32, windows: u64, rate: impl Fn(u32) -> u64) -> (Connections, u32) {
        let mut connections = Connections::new(max);
        let mut bytes = 0;
        let mut most = 0;
        for n in 1..=windows {
            bytes += rate(connections.allowed()) / 10;
            connections.wanted_more(true);
            connections.sample(bytes, true, Tick(n * 100_000));
            most = most.max(connections.allowed());
        }
        (connections, most)
    }

    #[test]
    fn a_limit_on_each_connection_is_answered_with_more_of_them_within_a_second() {
        let (connections, _) = run(64, 10, |n| u64::from(n) * 40_000_000);
        assert_eq!(connections.allowed(), 64);
    }

    #[test]
    fn a_full_link_is_left_alone() {
        let (connections, _) = run(64, 30, |_| 1_000_000_000);
        assert_eq!(connections.allowed(), START);
    }

    #[test]
    fn the_bound_is_never_passed() {
        for max in [1, 3, 16, 17, 64] {
            let (_, most) = run(max, 200, |n| u64::from(n) * 1_000_000);
            assert!(most <= max, "{most} of {max}");
        }
    }

    #[test]
    fn a_slow_link_has_a_rate_and_an_idle_spell_has_none() {
        let mut connections = Connections::new(64);
        let second = |n: u64| Tick(n * 1_000_000);
        connections.sample(0, true, second(1));
        connections.sample(1_000_000, true, second(2));
        assert_eq!(connections.rate(), 1_000_000);
        connections.sample(3_000_000, false, second(3));
        assert_eq!(connections.rate(), 2_000_000);
        connections.sample(4_000_000, true, second(3600));
        assert_eq!(connections.rate(), 0, "it was idle for most of that");
    }

    #[test]
    fn a_failing_origin_gets_fewer_but_never_none() {
        let mut connections = Connections::new(64);
        for n in 0..20 {
            connections.failed(Tick(n));
        }
        assert_eq!(connections.allowed(), 1);
    }
}
