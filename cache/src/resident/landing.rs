//! How bytes that arrive for the RAM tier get into the page cache and onto the disk: through the cache, or past it and back.
//! Single steps, and the arithmetic that chooses between them. Knows no piece, no journal and no origin.
//!
//! # Two ways, and when each is the better one
//!
//! - [`Way::Through`]: written through the page cache into preallocated extents, [`WRITE_BYTES`] at a time, writing to the disk
//!   started after each piece ([`start_writeback`]), then locked ([`super::Held::extend`]). Nothing is read back.
//! - [`Way::Behind`]: written past the cache, then read back by the lock while the next pieces arrive.
//!
//! 1 GiB, 8 writers, ext4, fsync and lock included; median of at least 3, s wall and CPU s of the writers:
//!
//! | way | memory used just before | memory that a virtual machine had given back to its host |
//! |---|---|---|
//! | past the cache alone (no RAM tier) | 0.50, 0.08 | 0.56, 0.08 |
//! | **through**, 256 KiB a write | **0.54, 0.40** | 2.5 - 7.7, 1.1 - 3.6 |
//! | through, 1 MiB a write | 0.42, 0.36 | 3.1 - 4.8, 1.3 - 4.0 |
//! | **behind**, piece by piece | 1.15, 0.25 | **1.20, 0.25** |
//! | behind, all at the end | 1.16, 0.07 | 1.28, 0.08 |
//! | locked while still empty, then written onto | 0.63, 0.84 | 1.7 - 3.7, 1.3 |
//! | written through a shared map | 1.6, 1.4 | 1.9, 3.4 |
//! | **as [`Ways`] chooses**, 0.45 past the cache alone in the same run | - | 0.93 (over half of it through) |
//!
//! Through is best wherever memory is simply there, which is all bare metal and most virtual machines. Where free memory was given
//! back to the host (free page reporting, balloons), each first touch of a page by the processor faults into the host, several
//! times the price of the copy, while a disk's DMA is served by the host in bulk: then reading back is cheaper. Which memory the next
//! write meets cannot be known, but its price can: processor time of the writing thread ([`write_through`] returns it), which
//! neither other writers nor the disk disturb. [`Ways`] follows it.
//!
//! Small writes matter there: the cache allocates one folio for each write, and the larger the folio, the likelier it is memory
//! that was given back. Interleaved in one run, three rounds of 256 KiB took 0.51 - 0.78 s and of 1 MiB 3.1 - 4.2 s.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::map;
use crate::units::{GIB, MIB};

/// Bytes of one write through the page cache; see the table.
pub const WRITE_BYTES: usize = 256 << 10;

/// Processor time for a GiB above which [`Way::Behind`] is the better way: what its read of the disk costs in time, doubled because
/// writers run side by side.
pub const THROUGH_COST_MAX: Duration = Duration::from_millis(1000);

/// Bytes that go behind before through is tried again; doubles with each disappointment up to [`BEHIND_BYTES_MAX`].
pub const BEHIND_BYTES_MIN: u64 = 64 * MIB;

/// The longest stretch that goes behind: a trial of 1 MiB at 5 s/GiB then costs under 1 % of it.
pub const BEHIND_BYTES_MAX: u64 = GIB;

/// Bytes over which the price is averaged: long enough that one interrupt does not decide.
const SAMPLE_BYTES: u64 = MIB;

/// How a block of bytes lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the page cache: kept as it passes.
    Through,
    /// Past the page cache: read back when it is held.
    Behind,
}

/// Chooses a way for each block, by what the last ones cost. Pure.
#[derive(Debug, Clone)]
pub struct Ways {
    /// Of the bytes that went through since the last verdict: how many, and their price.
    sample: (u64, Duration),
    /// Bytes that still go behind.
    behind: u64,
    /// How many will after the next disappointment.
    penalty: u64,
}

impl Default for Ways {
    fn default() -> Self {
        Self { sample: (0, Duration::ZERO), behind: 0, penalty: BEHIND_BYTES_MIN }
    }
}

impl Ways {
    /// The way for the next `bytes` bytes.
    pub fn choose(&mut self, bytes: u64) -> Way {
        if self.behind == 0 {
            return Way::Through;
        }
        self.behind = self.behind.saturating_sub(bytes);
        Way::Behind
    }

    /// `bytes` bytes went through and took the writing thread `cost` of processor time.
    pub fn took(&mut self, bytes: u64, cost: Duration) {
        self.sample.0 += bytes;
        self.sample.1 += cost;
        let (bytes, cost) = self.sample;
        if bytes < SAMPLE_BYTES {
            return;
        }
        self.sample = (0, Duration::ZERO);
        if cost.as_secs_f64() * GIB as f64 <= THROUGH_COST_MAX.as_secs_f64() * bytes as f64 {
            self.penalty = BEHIND_BYTES_MIN;
        } else if self.behind == 0 {
            // Blocks that were on their way at the verdict tell of the same memory: they are not punished again.
            self.behind = self.penalty;
            self.penalty = (self.penalty * 2).min(BEHIND_BYTES_MAX);
        }
    }
}

/// Writes through the page cache, and returns the processor time that it took this thread.
///
/// # Errors
///
/// What the system says.
pub fn write_through(file: &File, offset: u64, bytes: &[u8]) -> io::Result<Duration> {
    let start = spent();
    let mut at = offset;
    for part in bytes.chunks(WRITE_BYTES) {
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(spent().saturating_sub(start))
}

/// Starts writing what went through in a range to the disk, and waits for none of it, so that neither the last sync nor the
/// limit on dirty pages stalls anyone.
///
/// # Errors
///
/// What the system says. A file system without it (`ESPIPE`, `ENOSYS`) loses nothing but time.
pub fn start_writeback(file: &File, range: Range<u64>) -> io::Result<()> {
    map::start_writeback(file, &range)
}

/// Processor time of this thread so far.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lands `bytes` in blocks of 1 MiB, each at `price` seconds a GiB; returns how many bytes went through.
    fn land(ways: &mut Ways, bytes: u64, price: f64) -> u64 {
        let mut through = 0;
        for _ in 0..bytes / MIB {
            if ways.choose(MIB) == Way::Through {
                through += MIB;
                ways.took(MIB, Duration::from_secs_f64(price / 1024.0));
            }
        }
        through
    }

    #[test]
    fn cheap_memory_is_written_through_and_dear_memory_is_only_tried() {
        assert_eq!(land(&mut Ways::default(), 4 * GIB, 0.4), 4 * GIB);
        let mut ways = Ways::default();
        assert!(land(&mut ways, 4 * GIB, 3.0) <= 8 * MIB);
        // It becomes cheap again: found out after one stretch at most.
        assert!(land(&mut ways, 4 * GIB, 0.4) >= 3 * GIB);
    }

    #[test]
    fn many_writers_that_meet_dear_memory_at_once_cause_one_stretch() {
        let mut ways = Ways::default();
        for _ in 0..16 {
            assert_eq!(ways.choose(MIB), Way::Through);
        }
        for _ in 0..16 {
            ways.took(MIB, Duration::from_millis(5));
        }
        let stretch = (0..).take_while(|_| ways.choose(MIB) == Way::Behind).count() as u64;
        assert_eq!(stretch * MIB, BEHIND_BYTES_MIN);
    }

    proptest! {
        #[test]
        fn through_is_tried_again_within_the_longest_stretch(prices in prop::collection::vec(0.0_f64..10.0, 1..40)) {
            let mut ways = Ways::default();
            for price in prices {
                let through = land(&mut ways, BEHIND_BYTES_MAX + MIB, price);
                prop_assert!(through > 0);
            }
        }
    }
}
