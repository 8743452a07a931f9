//! Which ranges of a file are held. Arithmetic only.

use std::ops::Range;

/// Ranges in ascending order that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a range and returns how many of its bytes were not there before.
    pub(super) fn add(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.bytes();
        let first = self.0.partition_point(|held| held.end < range.start);
        let last = self.0.partition_point(|held| held.start <= range.end);
        let merged = match self.0.get(first..last) {
            Some([only]) => only.start.min(range.start)..only.end.max(range.end),
            Some([low, .., high]) => low.start.min(range.start)..high.end.max(range.end),
            _ => range,
        };
        self.0.splice(first..last, [merged]);
        self.bytes() - before
    }

    /// Bytes of all ranges.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|held| held.end - held.start).sum()
    }

    /// The ranges.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_hold_exactly_the_bytes_that_were_added_and_stay_apart(
            added in prop::collection::vec((0_u64..60, 0_u64..12), 0..20)
        ) {
            let (mut ranges, mut naive) = (Ranges::default(), std::collections::BTreeSet::new());
            for (start, bytes) in added {
                let before = naive.len();
                naive.extend(start..start + bytes);
                prop_assert_eq!(ranges.add(start..start + bytes), (naive.len() - before) as u64);
            }
            let held: Vec<u64> = ranges.iter().flat_map(Clone::clone).collect();
            prop_assert_eq!(held, naive.into_iter().collect::<Vec<_>>());
            prop_assert!(ranges.0.windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
