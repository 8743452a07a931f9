//! Amounts printed so that reading them again gives the same amount. For people who only look, `tierd_cache::units`
//! rounds; a configuration must not.

use std::time::Duration;

use tierd_cache::units::Share;

/// A size in the largest binary unit that divides it: `96 MiB`, `1000 B`.
pub(super) fn exact_size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.iter().find(|(scale, _)| bytes > 0 && bytes.is_multiple_of(*scale));
    unit.map_or_else(|| format!("{bytes} B"), |(scale, name)| format!("{} {name}", bytes / scale))
}

/// A duration in the largest unit that divides it: `5m`, `200ms`. Below a millisecond with decimals.
pub(super) fn exact_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return format!("{}ms", duration.as_secs_f64() * 1000.0);
    }
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = units.iter().find(|(scale, _)| millis > 0 && millis.is_multiple_of(*scale));
    unit.map_or_else(|| format!("{millis}ms"), |(scale, name)| format!("{}{name}", millis / scale))
}

/// A share, exactly.
pub(super) fn exact_share(share: Share) -> String {
    match share {
        Share::Bytes(bytes) => exact_size(bytes),
        Share::Percent(percent) => format!("{percent}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tierd_cache::units::{ByteSize, parse_duration};

    proptest! {
        #[test]
        fn what_is_printed_reads_as_the_same_amount(bytes in 0_u64..1 << 53, millis in 0_u64..1 << 40) {
            prop_assert_eq!(exact_size(bytes).parse(), Ok(ByteSize(bytes)));
            let duration = Duration::from_millis(millis);
            let read = parse_duration(&exact_duration(duration)).expect("a duration");
            // Reading goes through a float: exact to a microsecond over thirty years.
            prop_assert!(read.abs_diff(duration) < Duration::from_micros(1), "{:?} {:?}", read, duration);
        }
    }
}
