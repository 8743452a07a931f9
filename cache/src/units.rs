//! Amounts as people write them: sizes, shares of a disk, durations. Parsing and printing only.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// A number of bytes, written by people as `500 GiB`, `64MB` or `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ByteSize(pub u64);

/// Why a text is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct BadUnit {
    /// What was given.
    pub text: String,
    /// What would have been right, with an example.
    pub expected: &'static str,
}

const SIZES: [(&str, u64); 14] = [
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("", 1),
];

const DURATIONS: [(&str, f64); 8] = [
    ("ms", 0.001),
    ("s", 1.0),
    ("sec", 1.0),
    ("m", 60.0),
    ("min", 60.0),
    ("h", 3600.0),
    ("d", 86_400.0),
    ("w", 604_800.0),
];

/// Splits `12.5 GiB` into its number and its unit in lower case.
fn split(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let number: f64 = text[..end].replace('_', "").parse().ok()?;
    Some((number, text[end..].trim().to_ascii_lowercase()))
}

impl FromStr for ByteSize {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit { text: text.to_owned(), expected: "a size such as \"500 GiB\", \"64MB\" or 4096" };
        let (number, unit) = split(text).ok_or_else(bad)?;
        let (_, scale) = SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let bytes = number * *scale as f64;
        // 2^63 keeps sums of sizes inside u64.
        if !(0.0..9.2e18).contains(&bytes) {
            return Err(bad());
        }
        Ok(Self(bytes.round() as u64))
    }
}

impl fmt::Display for ByteSize {
    /// Prints with a binary unit and at most two decimals: `22.17 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < names.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if unit == 0 || value.fract() == 0.0 { 0 } else { 2 };
        f.pad(&format!("{value:.digits$} {}", names[unit]))
    }
}

/// A size, or a share of what there is: `500 GiB` or `80%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the whole, 0 to 100.
    Percent(f64),
}

impl Share {
    /// The share in bytes of `whole` bytes.
    #[must_use]
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (whole as f64 * percent / 100.0) as u64,
        }
    }
}

impl FromStr for Share {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit { text: text.to_owned(), expected: "a size or a share such as \"500 GiB\" or \"80%\"" };
        match split(text) {
            Some((percent, unit)) if unit == "%" => {
                if percent > 100.0 {
                    Err(bad())
                } else {
                    Ok(Self::Percent(percent))
                }
            }
            _ => text.parse().map(|ByteSize(bytes)| Self::Bytes(bytes)).map_err(|_| bad()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => ByteSize(*bytes).fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Parses `30s`, `5 min`, `250ms`, `1.5h`, `7d`.
///
/// # Errors
///
/// Says what would have been right. A bare number is refused: its unit would be a guess.
pub fn parse_duration(text: &str) -> Result<Duration, BadUnit> {
    let bad = || BadUnit { text: text.to_owned(), expected: "a duration such as \"30s\", \"250ms\" or \"5 min\"" };
    let (number, unit) = split(text).ok_or_else(bad)?;
    let (_, scale) = DURATIONS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| bad())
}

/// Prints a duration for people: `850 ms`, `12.3 s`, `4m10s`, `3h05m`, `6d04h`.
#[must_use]
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("500 GiB", 500 * GIB),
            ("1.5MiB", 1_572_864),
            ("64MB", 64_000_000),
            ("4096", 4096),
            ("0", 0),
            ("2 t", 2 << 40),
            ("1_000", 1000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "1 parsec", "1e400", "99999999999 TiB", "1.2.3"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn shares_are_bytes_or_percent() {
        assert_eq!("80%".parse(), Ok(Share::Percent(80.0)));
        assert_eq!("1 GiB".parse(), Ok(Share::Bytes(GIB)));
        assert!("101%".parse::<Share>().is_err());
        assert_eq!(Share::Percent(25.0).of(400), 100);
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("30").is_err());
        assert!(parse_duration("-3s").is_err());
    }

    #[test]
    fn amounts_print_for_people() {
        assert_eq!(ByteSize(23_802_932_552).to_string(), "22.17 GiB");
        assert_eq!(ByteSize(512).to_string(), "512 B");
        assert_eq!(ByteSize(2 * GIB).to_string(), "2 GiB");
        assert_eq!(human_duration(Duration::from_secs(250)), "4m10s");
    }
}
