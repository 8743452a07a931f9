//! How true this node's estimates turned out: each is compared with what came, corrects the next, and gives it a spread.

use std::collections::VecDeque;

/// Comparisons that are remembered: what a scheduler is told about the node's reliability.
const RECENT_MAX: usize = 256;
/// Comparisons of one class that count, the latest most: about 16.
const FADE: f64 = 1.0 - 1.0 / 16.0;
/// What a class is believed to be off by before it has been compared: a factor of 1.6 each way (one standard deviation, in
/// natural logarithms), with the weight of two comparisons.
const PRIOR_SPREAD: f64 = 0.47;
const PRIOR_WEIGHT: f64 = 2.0;
/// Standard deviations between the middle and the 95th percentile of a normal distribution.
const P95: f64 = 1.645;
/// Shortest time that is compared: below, the clock and the scheduler of the system decide.
const SECONDS_MIN: f64 = 0.0005;
/// Furthest that one comparison counts for, as a factor: a machine that slept must not spoil a week.
const RATIO_MAX: f64 = 20.0;

/// What decides how long a set takes. Each class has its own correction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Everything is where it is wanted.
    Hit,
    /// Something is locked from the disk, nothing is fetched.
    Lock,
    /// Less than 64 MiB is fetched: starts and commits decide.
    FetchSmall,
    /// Less than 1 GiB is fetched.
    FetchMedium,
    /// More is fetched: the link decides.
    FetchLarge,
}

impl Class {
    /// The class of a set by what it must move.
    #[must_use]
    pub fn of(fetch_bytes: u64, lock_bytes: u64) -> Self {
        match fetch_bytes {
            0 if lock_bytes == 0 => Self::Hit,
            0 => Self::Lock,
            1..=0x3ff_ffff => Self::FetchSmall,
            0x400_0000..=0x3fff_ffff => Self::FetchMedium,
            _ => Self::FetchLarge,
        }
    }
}

/// What is expected, before and after correction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Its class.
    pub class: Class,
    /// Seconds by the plan alone.
    pub raw: f64,
    /// Seconds, corrected: half of the sets of this class took less.
    pub p50: f64,
    /// Seconds, corrected: 95 of 100 took less.
    pub p95: f64,
}

/// One class's mean and spread of `ln(actual / raw)`, faded.
#[derive(Debug, Clone, Copy, Default)]
struct Error {
    weight: f64,
    sum: f64,
    squares: f64,
}

impl Error {
    fn saw(&mut self, log: f64) {
        self.weight = self.weight * FADE + 1.0;
        self.sum = self.sum * FADE + log;
        self.squares = self.squares * FADE + log * log;
    }

    /// Mean and standard deviation, the prior included.
    fn spread(&self) -> (f64, f64) {
        let weight = self.weight + PRIOR_WEIGHT;
        // The prior is about the spread, not about the mean: a wrong mean is corrected from the first comparison on.
        let mean = if self.weight > 0.0 { self.sum / self.weight } else { 0.0 };
        let variance = (self.squares - 2.0 * mean * self.sum + mean * mean * self.weight).max(0.0);
        (mean, ((variance + PRIOR_WEIGHT * PRIOR_SPREAD * PRIOR_SPREAD) / weight).sqrt())
    }
}

/// How far estimates may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reliability {
    /// Comparisons that it rests on, at most 256.
    pub samples: u64,
    /// Half of them were off by less than this share of the time that it took.
    pub median_error: f64,
    /// Share of them within a factor of two.
    pub within_twice: f64,
}

/// The comparisons.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    classes: [Error; 5],
    /// Told and actual seconds.
    recent: VecDeque<(f64, f64)>,
}

impl Calibration {
    /// Corrects what the plan says by how it turned out before.
    #[must_use]
    pub fn correct(&self, class: Class, raw: f64) -> Prediction {
        let (mean, spread) = self.classes[class as usize].spread();
        let p50 = raw * mean.exp();
        Prediction { class, raw, p50, p95: p50 * (P95 * spread).exp() }
    }

    /// Compares a prediction with what it took. Returns how far off it was, as a share of that.
    pub fn compare(&mut self, told: &Prediction, actual: f64) -> f64 {
        let (raw, actual) = (told.raw.max(SECONDS_MIN), actual.max(SECONDS_MIN));
        let ratio = (actual / raw).clamp(1.0 / RATIO_MAX, RATIO_MAX);
        self.classes[told.class as usize].saw(ratio.ln());
        let p50 = told.p50.max(SECONDS_MIN);
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((p50, actual));
        (p50 - actual).abs() / actual
    }

    /// How far the node's estimates may be trusted.
    #[must_use]
    pub fn reliability(&self) -> Reliability {
        let samples = self.recent.len();
        if samples == 0 {
            return Reliability::default();
        }
        let mut errors: Vec<f64> = self.recent.iter().map(|(told, actual)| (told - actual).abs() / actual).collect();
        errors.sort_unstable_by(f64::total_cmp);
        let near = self.recent.iter().filter(|(told, actual)| (0.5..=2.0).contains(&(told / actual))).count();
        Reliability {
            samples: samples as u64,
            median_error: errors[samples / 2],
            within_twice: near as f64 / samples as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_is_always_off_by_a_factor_is_corrected_within_a_few_comparisons() {
        let mut calibration = Calibration::default();
        let mut last = f64::INFINITY;
        for n in 0..10 {
            let raw = 1.0 + f64::from(n);
            let told = calibration.correct(Class::FetchLarge, raw);
            last = calibration.compare(&told, raw * 3.0);
        }
        assert!(last < 0.01, "still off by {last}");
        assert!(calibration.reliability().median_error < 0.05);
    }

    #[test]
    fn classes_do_not_spoil_each_other() {
        let mut calibration = Calibration::default();
        for _ in 0..10 {
            let told = calibration.correct(Class::Hit, 1.0);
            calibration.compare(&told, 0.1);
        }
        assert!((calibration.correct(Class::Lock, 1.0).p50 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_node_that_repeats_itself_is_told_with_a_narrow_spread_and_one_that_does_not_with_a_wide_one() {
        let (mut steady, mut wild) = (Calibration::default(), Calibration::default());
        for n in 0..64 {
            let told = steady.correct(Class::Lock, 1.0);
            steady.compare(&told, 1.0);
            let told = wild.correct(Class::Lock, 1.0);
            wild.compare(&told, if n % 2 == 0 { 0.4 } else { 2.5 });
        }
        let (steady, wild) = (steady.correct(Class::Lock, 1.0), wild.correct(Class::Lock, 1.0));
        assert!(steady.p95 < 1.4 && wild.p95 > 2.5, "{steady:?} {wild:?}");
    }

    #[test]
    fn reliability_says_what_was_seen() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.reliability(), Reliability::default());
        let told = Prediction { class: Class::Hit, raw: 1.0, p50: 1.0, p95: 2.0 };
        for actual in [1.0, 1.25, 4.0] {
            calibration.compare(&told, actual);
        }
        let reliability = calibration.reliability();
        assert_eq!(reliability.samples, 3);
        assert!((reliability.median_error - 0.2).abs() < 1e-9, "{reliability:?}");
        assert!((reliability.within_twice - 2.0 / 3.0).abs() < 1e-9, "{reliability:?}");
    }
}
