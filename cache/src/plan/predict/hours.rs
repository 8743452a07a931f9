//! Which hours see which models: for each hour of the day and of the week, in how many of the last ones a model was asked for. Hours are
//! those of UTC; where clocks change twice a year, a habit moves by an hour and is learned again in days.

use std::collections::BTreeSet;

/// Milliseconds of an hour.
pub(super) const HOUR_MS: u64 = 3_600_000;
/// How long before an hour begins its models are told: long enough to fetch a terabyte at 10 Gbit/s, short enough that they are not in the
/// way for long.
const AHEAD_MS: u64 = HOUR_MS / 4;
/// Models that one hour remembers.
const ROWS_MAX: usize = 48;
/// What is left of an hour's counts after each further such hour: twenty days count for an hour of the day, five weeks for one of the week.
const DAY_KEEP: f32 = 0.95;
const WEEK_KEEP: f32 = 0.8;
/// How much the hour of the day counts beside the hour of the week, in weeks: after two the week begins to speak for itself.
const DAY_WEIGHT: f64 = 2.0;
/// Days that were not seen and count as days without: of many models some are asked for four days running by chance.
const DOUBT: f64 = 2.0;
/// Counts below this are forgotten.
const COUNT_MIN: f32 = 0.05;
/// An hour that was seen from so late on says nothing about what it is like.
const LATE_MS: u64 = HOUR_MS / 4;

/// One hour of the day or of the week.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Bucket {
    /// How many such hours were seen.
    pub(super) seen: f32,
    /// In how many of them each model was asked for.
    pub(super) rows: Vec<(u32, f32)>,
}

impl Bucket {
    fn fold(&mut self, present: &BTreeSet<u32>, keep: f32) {
        self.seen = self.seen * keep + 1.0;
        for (number, count) in &mut self.rows {
            *count = *count * keep + f32::from(u8::from(present.contains(number)));
        }
        self.rows.retain(|(_, count)| *count >= COUNT_MIN);
        for number in present {
            if self.rows.iter().all(|(other, _)| other != number) {
                self.rows.push((*number, 1.0));
            }
        }
        if self.rows.len() > ROWS_MAX {
            // The order of numbers settles ties: the older stays.
            self.rows.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            self.rows.truncate(ROWS_MAX);
        }
    }

    fn count(&self, number: u32) -> f64 {
        self.rows.iter().find(|(other, _)| *other == number).map_or(0.0, |(_, count)| f64::from(*count))
    }
}

/// All hours.
#[derive(Debug)]
pub(super) struct Hours {
    pub(super) day: Vec<Bucket>,
    pub(super) week: Vec<Bucket>,
    /// The present hour since 1970, whether it was seen from its beginning, what it saw.
    hour: Option<u64>,
    whole: bool,
    present: BTreeSet<u32>,
    /// The last hour that was told.
    told: u64,
}

impl Default for Hours {
    fn default() -> Self {
        Self::from_buckets(Vec::new(), Vec::new())
    }
}

impl Hours {
    /// Takes up what was kept.
    pub(super) fn from_buckets(mut day: Vec<Bucket>, mut week: Vec<Bucket>) -> Self {
        day.resize(24, Bucket::default());
        week.resize(7 * 24, Bucket::default());
        for bucket in day.iter_mut().chain(&mut week) {
            bucket.rows.truncate(ROWS_MAX);
        }
        Self { day, week, hour: None, whole: false, present: BTreeSet::new(), told: 0 }
    }

    /// Models were asked for.
    pub(super) fn seen(&mut self, numbers: &[u32], at_ms: u64) {
        self.turn(at_ms);
        for number in numbers {
            if self.present.len() < ROWS_MAX {
                self.present.insert(*number);
            }
        }
    }

    /// Enters hours that are over.
    fn turn(&mut self, at_ms: u64) {
        let hour = at_ms / HOUR_MS;
        let Some(before) = self.hour else {
            self.begin(hour, at_ms);
            return;
        };
        if hour <= before {
            return;
        }
        let whole = std::mem::replace(&mut self.whole, true);
        let present = std::mem::take(&mut self.present);
        if whole {
            self.day[(before % 24) as usize].fold(&present, DAY_KEEP);
            self.week[(before % (7 * 24)) as usize].fold(&present, WEEK_KEEP);
        }
        // What was not watched is not known to have been quiet.
        self.begin(hour, at_ms);
        self.whole |= hour == before + 1;
    }

    fn begin(&mut self, hour: u64, at_ms: u64) {
        self.hour = Some(hour);
        self.whole = at_ms % HOUR_MS <= LATE_MS;
    }

    /// When the next hour is told.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.hour.map(|hour| (hour.max(self.told) + 1) * HOUR_MS - AHEAD_MS)
    }

    /// The models of the next hour with their probability, likeliest first, if it is time and they were not told yet.
    pub(super) fn passed(&mut self, at_ms: u64) -> Vec<(u32, f64)> {
        self.turn(at_ms);
        let next = at_ms / HOUR_MS + 1;
        if next * HOUR_MS - at_ms > AHEAD_MS || self.told >= next {
            return Vec::new();
        }
        self.told = next;
        let (day, week) = (&self.day[(next % 24) as usize], &self.week[(next % (7 * 24)) as usize]);
        let mut rows: Vec<(u32, f64)> = Vec::new();
        for (number, count) in &day.rows {
            let of_days = f64::from(*count) / (f64::from(day.seen) + DOUBT);
            let of_weeks = (week.count(*number) + DAY_WEIGHT * of_days) / (f64::from(week.seen) + DAY_WEIGHT);
            rows.push((*number, of_weeks));
        }
        rows.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        rows
    }

    /// Time from now to the end of the next hour, in milliseconds.
    pub(super) fn horizon_ms(at_ms: u64) -> u64 {
        (at_ms / HOUR_MS + 2) * HOUR_MS - at_ms
    }
}
