//! The record of what the cache did, hour by hour, and the arithmetic of a report: what it saved, and what got worse. Pure: no
//! clock, no file.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::ids::OriginName;

/// Hours that are remembered: 31 days, so that a month can be looked at.
pub const HOURS_MAX: u64 = 31 * 24;
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;
/// Models, requests or seconds below which a period says nothing about a ratio.
const SAMPLES_MIN: u64 = 10;
/// Busy time of an origin below which its speed says nothing, in milliseconds.
const BUSY_MS_MIN: u64 = 1000;
/// A hit ratio that falls by so much is told.
const RATIO_DROP: f64 = 0.1;
/// A share of failed requests that grows by so much is told.
const FAILED_GROWTH: f64 = 0.05;
/// A speed that falls below this share of what it was is told.
const SPEED_SHARE: f64 = 0.7;
/// Something that leaves or fails more than so many times as often is told.
const TIMES_MORE: f64 = 2.0;

/// Models of ensures that were in one tier when they were asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Found {
    /// Models.
    pub models: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Time that callers waited whose slowest model was in this tier, in milliseconds.
    pub waited_ms: u64,
}

/// What left a tier for one reason, or went into it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moved {
    /// Models.
    pub models: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// How long that took, in milliseconds; 0 for what leaves.
    pub ms: u64,
}

/// What one origin gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Given {
    /// Bytes that arrived.
    pub bytes: u64,
    /// Time in which at least one request was under way, in milliseconds.
    pub busy_ms: u64,
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that the origin let down.
    pub failed: u64,
}

impl Given {
    /// Bytes a second while something was asked for.
    #[must_use]
    pub fn speed(&self) -> Option<f64> {
        (self.busy_ms >= BUSY_MS_MIN).then(|| self.bytes as f64 * 1000.0 / self.busy_ms as f64)
    }

    /// Share of requests that failed.
    #[must_use]
    pub fn failed_share(&self) -> Option<f64> {
        (self.requests >= SAMPLES_MIN).then(|| self.failed as f64 / self.requests as f64)
    }
}

/// What some time saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Models that a worker had in VRAM.
    pub vram: Found,
    /// Models that were in RAM.
    pub ram: Found,
    /// Models that were on the disk.
    pub nvme: Found,
    /// Models that had to be fetched.
    pub origin: Found,
    /// Ensures that ended well.
    pub ready: u64,
    /// Ensures that ended badly.
    pub failed: u64,
    /// Models that went into RAM.
    pub locked: Moved,
    /// What left the disk, by reason.
    pub evicted: BTreeMap<String, Moved>,
    /// What left RAM, by reason.
    pub demoted: BTreeMap<String, Moved>,
    /// Pieces that were not what they should be.
    pub damaged: u64,
    /// By origin.
    pub origins: BTreeMap<OriginName, Given>,
}

impl Totals {
    /// Adds another time's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.vram, other.vram),
            (&mut self.ram, other.ram),
            (&mut self.nvme, other.nvme),
            (&mut self.origin, other.origin),
        ] {
            mine.models += theirs.models;
            mine.bytes += theirs.bytes;
            mine.waited_ms += theirs.waited_ms;
        }
        self.ready += other.ready;
        self.failed += other.failed;
        self.damaged += other.damaged;
        add_moved(&mut self.locked, &other.locked);
        for (mine, theirs) in [(&mut self.evicted, &other.evicted), (&mut self.demoted, &other.demoted)] {
            for (reason, moved) in theirs {
                add_moved(mine.entry(reason.clone()).or_default(), moved);
            }
        }
        for (origin, given) in &other.origins {
            let mine = self.origins.entry(origin.clone()).or_default();
            mine.bytes += given.bytes;
            mine.busy_ms += given.busy_ms;
            mine.requests += given.requests;
            mine.failed += given.failed;
        }
    }

    /// Models that were made ready.
    #[must_use]
    pub fn models(&self) -> u64 {
        self.hits().models + self.origin.models
    }

    /// Models that were on the node, whatever the tier.
    fn hits(&self) -> Found {
        let tiers = [self.vram, self.ram, self.nvme];
        Found {
            models: tiers.iter().map(|found| found.models).sum(),
            bytes: tiers.iter().map(|found| found.bytes).sum(),
            waited_ms: tiers.iter().map(|found| found.waited_ms).sum(),
        }
    }

    /// Share of the models that were on the node when they were asked for.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let all = self.models();
        (all > 0).then(|| self.hits().models as f64 / all as f64)
    }

    /// The same by bytes.
    #[must_use]
    pub fn byte_hit_ratio(&self) -> Option<f64> {
        let hits = self.hits().bytes;
        let all = hits + self.origin.bytes;
        (all > 0).then(|| hits as f64 / all as f64)
    }

    /// Bytes a second that arrive for one who waits: what fetched sets weighed, over what their callers waited.
    fn fetch_rate(&self) -> Option<f64> {
        rate(self.origin.bytes, self.origin.waited_ms)
    }

    /// Bytes a second at which models go from the disk into RAM.
    fn lock_rate(&self) -> Option<f64> {
        rate(self.locked.bytes, self.locked.ms)
    }
}

fn add_moved(mine: &mut Moved, theirs: &Moved) {
    mine.models += theirs.models;
    mine.bytes += theirs.bytes;
    mine.ms += theirs.ms;
}

fn rate(bytes: u64, ms: u64) -> Option<f64> {
    (bytes > 0 && ms > 0).then(|| bytes as f64 * 1000.0 / ms as f64)
}

/// What was saved, because models were here.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Saved {
    /// Bytes that did not have to be fetched again.
    pub bytes: u64,
    /// Seconds that callers would have waited for them at this node's own rate, less what they did wait. None: nothing was ever
    /// fetched here, so that there is no rate.
    pub seconds: Option<f64>,
    /// The rate, in bytes a second.
    pub fetch_rate: Option<f64>,
    /// Bytes of them that were in RAM.
    pub ram_bytes: u64,
    /// Seconds of reading from the disk that this saved, at the rate at which this node fills its RAM.
    pub ram_seconds: Option<f64>,
}

/// Something that got worse.
#[derive(Debug, Clone, PartialEq)]
pub struct Regression {
    /// What.
    pub kind: RegressionKind,
    /// The origin or the reason that it is about; empty if it is about the node.
    pub subject: String,
    /// The figure before: a share, bytes a second, or a number.
    pub before: f64,
    /// The figure now.
    pub now: f64,
}

/// What can get worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegressionKind {
    /// Fewer of the models were there. Figures are shares.
    HitRatio,
    /// An origin is slower. Bytes a second.
    OriginSpeed,
    /// An origin fails more often. Shares of its requests.
    OriginFailures,
    /// More leaves the disk for this reason. Models.
    Evictions,
    /// More RAM is given back for want of memory. Models.
    Pressure,
    /// More ensures fail. Numbers.
    Failures,
    /// Stored bytes were damaged. Pieces.
    Damage,
}

/// A period and the one of the same length before it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Whole hours of each period; the last one of this period may not be over.
    pub hours: u64,
    /// When this period begins.
    pub from: Wall,
    /// When the record begins; none if it is empty.
    pub recorded_from: Option<Wall>,
    /// This period.
    pub now: Totals,
    /// The one before; empty where the record does not reach back.
    pub before: Totals,
    /// What was saved in this period.
    pub saved: Saved,
    /// What got worse against the one before. Empty if that one saw too little to compare.
    pub regressions: Vec<Regression>,
}

/// One hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hour {
    /// Hours since 1970 UTC.
    pub hour: u64,
    /// What it saw.
    pub totals: Totals,
}

/// The hours, oldest first; each at most once, at most [`HOURS_MAX`] of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record(VecDeque<Hour>);

impl Record {
    /// A record from rows that were stored: those that are out of order are left out.
    #[must_use]
    pub fn from_rows(rows: Vec<Hour>) -> Self {
        let mut record = Self::default();
        for row in rows {
            if record.0.back().is_none_or(|last| last.hour < row.hour) {
                record.0.push_back(row);
            }
        }
        record.cut();
        record
    }

    /// The rows before the last one, which does not change any more, and the last one.
    #[must_use]
    pub fn split_last(&self) -> (Vec<&Hour>, Option<&Hour>) {
        (self.0.iter().take(self.0.len().saturating_sub(1)).collect(), self.0.back())
    }

    /// The present hour's row. Returns whether it is a new one, too. A clock that was set back goes on in the last hour.
    pub fn at(&mut self, now: Wall) -> (&mut Totals, bool) {
        let hour = now.0 / HOUR_MS;
        let new = self.0.back().is_none_or(|last| last.hour < hour);
        if new {
            self.0.push_back(Hour { hour, totals: Totals::default() });
            self.cut();
        }
        (&mut self.0.back_mut().expect("one was pushed if there was none").totals, new)
    }

    fn cut(&mut self) {
        let Some(last) = self.0.back().map(|last| last.hour) else { return };
        while self.0.front().is_some_and(|first| first.hour + HOURS_MAX <= last) {
            self.0.pop_front();
        }
    }

    fn sum(&self, hours: std::ops::Range<u64>) -> Totals {
        let mut sum = Totals::default();
        self.0.iter().filter(|row| hours.contains(&row.hour)).for_each(|row| sum.add(&row.totals));
        sum
    }

    /// Reports on the last `hours` hours, the present one included. 1 to [`HOURS_MAX`].
    #[must_use]
    pub fn report(&self, hours: u64, now: Wall) -> Report {
        let hours = hours.clamp(1, HOURS_MAX);
        let end = (now.0 / HOUR_MS + 1).max(self.0.back().map_or(0, |last| last.hour + 1));
        let start = end.saturating_sub(hours);
        let (this, before) = (self.sum(start..end), self.sum(start.saturating_sub(hours)..start));
        let mut ever = this.clone();
        ever.add(&before);
        Report {
            hours,
            from: Wall(start * HOUR_MS),
            recorded_from: self.0.front().map(|first| Wall(first.hour * HOUR_MS)),
            saved: saved(&this, &ever),
            regressions: regressions(&before, &this),
            now: this,
            before,
        }
    }
}

/// `ever` has the rates, where the period itself fetched or locked nothing.
fn saved(this: &Totals, ever: &Totals) -> Saved {
    let Found { bytes, waited_ms, .. } = this.hits();
    let waited = waited_ms as f64 / 1000.0;
    let fetch_rate = this.fetch_rate().or(ever.fetch_rate());
    let lock_rate = this.lock_rate().or(ever.lock_rate());
    Saved {
        bytes,
        seconds: fetch_rate.map(|rate| (bytes as f64 / rate - waited).max(0.0)),
        fetch_rate,
        ram_bytes: this.ram.bytes,
        ram_seconds: lock_rate.map(|rate| this.ram.bytes as f64 / rate),
    }
}

fn regressions(before: &Totals, now: &Totals) -> Vec<Regression> {
    let mut found = Vec::new();
    if before.models() < SAMPLES_MIN || now.models() < SAMPLES_MIN {
        return found;
    }
    let mut tell = |kind, subject: &str, before, now| {
        found.push(Regression { kind, subject: subject.to_owned(), before, now });
    };
    if let (Some(was), Some(is)) = (before.hit_ratio(), now.hit_ratio())
        && was - is >= RATIO_DROP
    {
        tell(RegressionKind::HitRatio, "", was, is);
    }
    for (origin, is) in &now.origins {
        let Some(was) = before.origins.get(origin) else { continue };
        if let (Some(was), Some(is)) = (was.speed(), is.speed())
            && is < was * SPEED_SHARE
        {
            tell(RegressionKind::OriginSpeed, &origin.0, was, is);
        }
        if let (Some(was), Some(is)) = (was.failed_share(), is.failed_share())
            && is - was >= FAILED_GROWTH
        {
            tell(RegressionKind::OriginFailures, &origin.0, was, is);
        }
    }
    let more = |was: u64, is: u64| is >= SAMPLES_MIN && is as f64 > was as f64 * TIMES_MORE;
    let left = |side: &BTreeMap<String, Moved>, reason: &str| side.get(reason).map_or(0, |moved| moved.models);
    for reason in ["room", "shrunk"] {
        let (was, is) = (left(&before.evicted, reason), left(&now.evicted, reason));
        if more(was, is) {
            tell(RegressionKind::Evictions, reason, was as f64, is as f64);
        }
    }
    let (was, is) = (left(&before.demoted, "pressure"), left(&now.demoted, "pressure"));
    if more(was, is) {
        tell(RegressionKind::Pressure, "", was as f64, is as f64);
    }
    if more(before.failed, now.failed) {
        tell(RegressionKind::Failures, "", before.failed as f64, now.failed as f64);
    }
    if now.damaged > before.damaged {
        tell(RegressionKind::Damage, "", before.damaged as f64, now.damaged as f64);
    }
    found
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
