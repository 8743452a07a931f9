//! `google.protobuf.Timestamp` and `Duration` on the wire, as types of our own: they convert to the engine's clock and
//! print in JSON as the protobuf specification says. Must never read a clock.

use std::fmt;

use serde::{Serialize, Serializer};
use tierd_cache::clock::Wall;

const DAY_SECONDS: i64 = 86_400;

/// A moment: seconds since 1970 UTC, and nanoseconds on top.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970 UTC; negative before.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds within the second, 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<Wall> for Timestamp {
    fn from(Wall(ms): Wall) -> Self {
        let seconds = i64::try_from(ms / 1000).expect("milliseconds over 1000 fit into 63 bits");
        Self { seconds, nanos: i32::try_from(ms % 1000).expect("below 1000") * 1_000_000 }
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds: `2026-05-04T03:02:01.250Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.seconds.div_euclid(DAY_SECONDS));
        let second = self.seconds.rem_euclid(DAY_SECONDS);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let ms = self.nanos / 1_000_000;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

/// The Gregorian date of a day counted from 1970-01-01.
///
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil(days: i64) -> (i64, i64, i64) {
    // Eras of 400 years that start on a 1st of March, so that the leap day is the last of its year.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A span of time: seconds, and nanoseconds on top, both of the same sign.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Duration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds, -999,999,999 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Duration {
    /// The span as the standard library has it; `None` if it is negative or not normal.
    #[must_use]
    pub fn to_std(self) -> Option<std::time::Duration> {
        let seconds = u64::try_from(self.seconds).ok()?;
        let nanos = u32::try_from(self.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
        Some(std::time::Duration::new(seconds, nanos))
    }
}

impl From<std::time::Duration> for Duration {
    /// Spans above 292 billion years are cut.
    fn from(span: std::time::Duration) -> Self {
        let nanos = i32::try_from(span.subsec_nanos()).expect("below 1e9");
        Self { seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX), nanos }
    }
}

impl Serialize for Duration {
    /// `"1.500s"`, as protobuf's JSON has it, cut to microseconds.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let sign = if self.seconds < 0 || self.nanos < 0 { "-" } else { "" };
        let (seconds, micros) = (self.seconds.unsigned_abs(), self.nanos.unsigned_abs() / 1000);
        s.collect_str(&format_args!("{sign}{seconds}.{micros:06}s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_print_as_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_250, "2000-02-29T00:00:00.250Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp::from(Wall(ms)).to_string(), text);
        }
    }

    #[test]
    fn spans_round_trip_and_negative_ones_are_refused() {
        let span = std::time::Duration::from_millis(1500);
        assert_eq!(Duration::from(span).to_std(), Some(span));
        assert_eq!(Duration { seconds: -1, nanos: 0 }.to_std(), None);
        assert_eq!(Duration { seconds: 1, nanos: 1_000_000_000 }.to_std(), None);
        assert_eq!(serde_json::to_string(&Duration::from(span)).expect("serializes"), "\"1.500000s\"");
    }
}
