//! The two spellings of a date that origins use, to and from milliseconds since 1970 UTC. Never asks for the time.

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// 1 January 1970 was a Thursday.
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const DAY_SECONDS: i64 = 86_400;

/// Reads an HTTP date, `Sun, 06 Nov 1994 08:49:37 GMT`; `None` for anything else, the two obsolete forms included.
pub(crate) fn from_http(text: &str) -> Option<i64> {
    let (_, rest) = text.trim().split_once(", ")?;
    let mut parts = rest.split(' ');
    let day = number(parts.next()?, 2)?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as i64 + 1;
    let year = number(parts.next()?, 4)?;
    let clock = clock(parts.next()?)?;
    (parts.next()? == "GMT" && parts.next().is_none()).then_some(())?;
    Some((days(year, month, day)? * DAY_SECONDS + clock) * 1000)
}

/// Reads what S3 lists, `1994-11-06T08:49:37.000Z`, with or without a fraction.
pub(crate) fn from_iso(text: &str) -> Option<i64> {
    let (date, time) = text.trim().strip_suffix('Z')?.split_once('T')?;
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    parts.next().is_none().then_some(())?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let millis: i64 = format!("{fraction:0<3}")[..3].parse().ok()?;
    Some((days(year, month, day)? * DAY_SECONDS + clock(time)?) * 1000 + millis)
}

/// Writes an HTTP date: the first whole second that is not before `ms`, so that `If-Unmodified-Since` holds for an
/// object whose listed date has a fraction.
pub(crate) fn to_http(ms: i64) -> String {
    let seconds = ms.div_euclid(1000) + i64::from(ms.rem_euclid(1000) != 0);
    let (day, clock) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
    let (year, month, of_month) = civil(day);
    format!(
        "{}, {of_month:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[day.rem_euclid(7) as usize],
        MONTHS[month as usize - 1],
        clock / 3600,
        clock / 60 % 60,
        clock % 60
    )
}

/// A number of exactly `digits` digits.
fn number(text: &str, digits: usize) -> Option<i64> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Seconds of the day from `08:49:37`. A leap second counts as the one before.
fn clock(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let (hour, minute, second) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    (parts.next().is_none() && hour < 24 && minute < 60 && second <= 60).then_some(())?;
    Some(hour * 3600 + minute * 60 + second.min(59))
}

/// Days since 1970 of a Gregorian date (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    ((1..=12).contains(&month) && (1..=31).contains(&day)).then_some(())?;
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

/// A day since 1970 as ISO 8601 has it.
pub(crate) fn day_name(day: u64) -> String {
    let (year, month, day) = civil(day as i64);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The Gregorian year, month and day of a day since 1970: the reverse of [`days`].
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_name_the_same_moment() {
        let ms = 784_111_777_000;
        assert_eq!(from_http("Sun, 06 Nov 1994 08:49:37 GMT"), Some(ms));
        assert_eq!(from_iso("1994-11-06T08:49:37Z"), Some(ms));
        assert_eq!(from_iso("1994-11-06T08:49:37.5Z"), Some(ms + 500));
        assert_eq!(from_iso("1994-11-06T08:49:37.123456789Z"), Some(ms + 123));
        assert_eq!(to_http(ms), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn a_fraction_is_never_before_the_date_that_is_sent() {
        assert_eq!(to_http(784_111_777_001), "Sun, 06 Nov 1994 08:49:38 GMT");
    }

    #[test]
    fn leap_days_and_century_ends_survive_the_round_trip() {
        for ms in [0, 951_782_400_000, 951_868_800_000, 4_107_542_400_000, 1_732_233_599_000, -1000] {
            assert_eq!(from_http(&to_http(ms)), Some(ms), "{}", to_http(ms));
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in
            ["", "now", "Sun, 06 Nov 1994 08:49:37", "Sun, 6 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 25:49:37 GMT"]
        {
            assert_eq!(from_http(text), None, "{text}");
        }
        for text in ["", "1994-11-06", "1994-13-06T08:49:37Z", "1994-11-06T08:49:37.Z", "1994-11-06T08:49:37.ü00Z"] {
            assert_eq!(from_iso(text), None, "{text}");
        }
    }
}
