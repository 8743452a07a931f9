//! How true this node's estimates turned out: each is compared with what came, corrects the next, and gives it a spread.

use std::collections::VecDeque;

use crate::units::MIB;

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
/// Shortest time of the engine's own that is compared: below, the clock and the scheduler of the system decide.
const SECONDS_MIN: f64 = 0.0001;
/// What a question and its answer take on their way, beside what the engine sees, as a caller waits for them too. Hits over the Unix
/// socket of two cores: 0.8 ms more with Rust's gRPC (unoptimised), 1.0 ms with Python's.
const WAY: f64 = 0.0009;
/// Weight of what other classes of the same kind say, in comparisons: nothing beside a few of its own, all before the first.
const KIN_WEIGHT: f64 = 0.25;
/// Comparisons from which on one counts only for so much: a factor of 1.65, in natural logarithms.
const PULL_FROM: f64 = 3.0;
const PULL_MAX: f64 = 0.5;
/// Furthest that one comparison counts for, as a factor: a machine that slept must not spoil a week.
const RATIO_MAX: f64 = 20.0;

/// What decides how long a set takes. Each class has its own correction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Everything is where it is wanted.
    Hit,
    /// What is to be locked is in the page cache already, nothing is read or fetched.
    Settle,
    /// Less than 8 MiB is locked from the disk, nothing is fetched: what is done once decides.
    LockSmall,
    /// More is locked: the disk decides.
    Lock,
    /// Less than 8 MiB is fetched, a piece: one request decides.
    FetchPiece,
    /// Less than 64 MiB is fetched: the slowest of a few requests, and commits, decide.
    FetchSmall,
    /// Less than 1 GiB is fetched.
    FetchMedium,
    /// More is fetched: the link decides.
    FetchLarge,
}

/// How many classes there are.
const CLASSES: usize = 8;

/// What a class is compared with before it has comparisons of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing moves.
    Hit,
    /// Pages are held where they are.
    Settle,
    /// Bytes go from the disk into RAM.
    Lock,
    /// Bytes come from origins.
    Fetch,
}

impl Class {
    const ALL: [Self; CLASSES] = [
        Self::Hit,
        Self::Settle,
        Self::LockSmall,
        Self::Lock,
        Self::FetchPiece,
        Self::FetchSmall,
        Self::FetchMedium,
        Self::FetchLarge,
    ];

    /// The class of a set by what it must move.
    #[must_use]
    pub fn of(fetch_bytes: u64, lock_bytes: u64, settle_bytes: u64) -> Self {
        match fetch_bytes {
            0 if lock_bytes == 0 && settle_bytes == 0 => Self::Hit,
            0 if lock_bytes == 0 => Self::Settle,
            0 if lock_bytes < 8 * MIB => Self::LockSmall,
            0 => Self::Lock,
            bytes if bytes < 8 * MIB => Self::FetchPiece,
            bytes if bytes < 64 * MIB => Self::FetchSmall,
            bytes if bytes < 1024 * MIB => Self::FetchMedium,
            _ => Self::FetchLarge,
        }
    }

    /// What it moves.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Hit => Kind::Hit,
            Self::Settle => Kind::Settle,
            Self::LockSmall | Self::Lock => Kind::Lock,
            Self::FetchPiece | Self::FetchSmall | Self::FetchMedium | Self::FetchLarge => Kind::Fetch,
        }
    }
}

/// Seconds that a caller waits for what takes the engine so many.
#[must_use]
pub fn waited(engine: f64) -> f64 {
    engine + WAY
}

/// What is expected, before and after correction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Its class.
    pub class: Class,
    /// Seconds by the plan alone.
    pub raw: f64,
    /// Seconds, corrected, until a caller has its answer: half of the sets of this class took less.
    pub p50: f64,
    /// The same: 95 of 100 took less.
    pub p95: f64,
}

/// One class's centre and spread of `ln(actual / raw)`, faded.
#[derive(Debug, Clone, Copy, Default)]
struct Error {
    weight: f64,
    /// Each no further from the centre than [`PULL_MAX`].
    centred: f64,
    sum: f64,
    squares: f64,
}

impl Error {
    fn saw(&mut self, log: f64) {
        // One comparison in which the machine did something else must not move what is told of the next ones; it widens the
        // spread. The first few have no centre to be far from.
        let centre = self.centred / self.weight.max(1.0);
        let pulled = if self.weight < PULL_FROM { log } else { centre + (log - centre).clamp(-PULL_MAX, PULL_MAX) };
        self.weight = self.weight * FADE + 1.0;
        self.centred = self.centred * FADE + pulled;
        self.sum = self.sum * FADE + log;
        self.squares = self.squares * FADE + log * log;
    }

    /// Centre and standard deviation, the prior included. `kin` is the centre of all classes of its kind.
    fn spread(&self, kin: f64) -> (f64, f64) {
        let weight = self.weight + PRIOR_WEIGHT;
        // The prior is about the spread, not about the centre: a wrong centre is corrected from the first comparison on.
        let mean = (self.centred + KIN_WEIGHT * kin) / (self.weight + KIN_WEIGHT);
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
    classes: [Error; CLASSES],
    /// Told and actual seconds.
    recent: VecDeque<(f64, f64)>,
}

impl Calibration {
    /// Corrects what the plan says by how it turned out before.
    #[must_use]
    pub fn correct(&self, class: Class, raw: f64) -> Prediction {
        let (mean, spread) = self.classes[class as usize].spread(self.kin(class.kind()));
        let ours = raw * mean.exp();
        Prediction { class, raw, p50: waited(ours), p95: ours * (P95 * spread).exp() + 2.0 * WAY }
    }

    /// What all classes of a kind are off by together; 0 before the first comparison.
    fn kin(&self, kind: Kind) -> f64 {
        let of_kind =
            Class::ALL.iter().filter(|class| class.kind() == kind).map(|class| &self.classes[*class as usize]);
        let (centred, weight) = of_kind.fold((0.0, 0.0), |sum, error| (sum.0 + error.centred, sum.1 + error.weight));
        if weight > 0.0 { centred / weight } else { 0.0 }
    }

    /// Compares a prediction with what it took the engine. Returns how far off it was, as a share of what a caller waited.
    pub fn compare(&mut self, told: &Prediction, actual: f64) -> f64 {
        let (raw, actual) = (told.raw.max(SECONDS_MIN), actual.max(SECONDS_MIN));
        let ratio = (actual / raw).clamp(1.0 / RATIO_MAX, RATIO_MAX);
        self.classes[told.class as usize].saw(ratio.ln());
        let (p50, actual) = (told.p50, waited(actual));
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
    fn one_comparison_that_is_far_off_hardly_moves_what_is_told_next() {
        let mut calibration = Calibration::default();
        for _ in 0..8 {
            let told = calibration.correct(Class::Lock, 1.0);
            calibration.compare(&told, 1.0);
        }
        let before = calibration.correct(Class::Lock, 1.0);
        calibration.compare(&before, 15.0);
        let after = calibration.correct(Class::Lock, 1.0);
        assert!(after.p50 < 1.1, "{after:?}");
        assert!(after.p95 > 2.0 * before.p95, "the spread has it: {before:?} {after:?}");
    }

    #[test]
    fn a_class_without_comparisons_takes_what_its_kind_has() {
        let mut calibration = Calibration::default();
        for _ in 0..8 {
            let told = calibration.correct(Class::FetchSmall, 1.0);
            calibration.compare(&told, 2.0);
        }
        assert!((calibration.correct(Class::FetchLarge, 1.0).p50 - waited(2.0)).abs() < 1e-6);
        assert!((calibration.correct(Class::Lock, 1.0).p50 - waited(1.0)).abs() < 1e-6);
    }

    #[test]
    fn classes_do_not_spoil_each_other() {
        let mut calibration = Calibration::default();
        for _ in 0..10 {
            let told = calibration.correct(Class::Hit, 1.0);
            calibration.compare(&told, 0.1);
        }
        assert!((calibration.correct(Class::Lock, 1.0).p50 - waited(1.0)).abs() < 1e-9);
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
        assert!((reliability.median_error - 0.2).abs() < 1e-3, "{reliability:?}");
        assert!((reliability.within_twice - 2.0 / 3.0).abs() < 1e-9, "{reliability:?}");
    }
}
