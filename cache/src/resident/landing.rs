//! How bytes that arrive for the RAM tier get into the page cache and onto the disk: through the cache, or past it and back.
//! Single steps, and the arithmetic that chooses between them. Knows no piece, no journal and no origin.
//!
//! # Two ways, and when each is the better one
//!
//! - [`Way::Through`]: written through the page cache into preallocated extents, straight from where the socket left the bytes,
//!   writing to the disk started after each piece ([`start_writeback`]), then locked ([`super::Held::extend`]). Nothing is read back.
//! - [`Way::Behind`]: written past the cache, then read back by the lock while the next pieces arrive.
//!
//! 1 GiB, 8 writers, ext4 on 2 cores, sync and lock included, a program of its own, medians: s wall, processor s of the writers.
//! "Given back" is free memory that a virtual machine has returned to its host, touched for the first time since; "some of it" is a
//! machine whose free memory lay in small areas that were not given back, between large ones that were. A dash: not measured.
//!
//! | way | memory used just before | some of it given back | all given back |
//! |---|---|---|---|
//! | past the cache alone (no RAM tier) | 0.50, 0.08 | - | 0.49, 0.08 |
//! | **through**, 256 KiB a write | **0.54, 0.40** | 0.38, 0.35 | 2.2, 3.5 |
//! | through, 128 KiB | - | 0.50, 0.36 | - |
//! | through, 64 KiB | - | 0.52, 0.41 | - |
//! | through, 16 KiB | - | 0.75, 0.60 | - |
//! | through, 8 KiB | - | 1.72, 0.91 | - |
//! | through, 1 MiB | 0.42, 0.36 | 1.33, 2.00 | 2.3, 3.9 |
//! | through, 8 MiB | - | - | 2.3 - 2.7, 2.8 |
//! | **behind**, piece by piece, asked for 512 KiB at a time | 1.15, 0.25 | 1.34, 0.43 | **1.09, 0.45** |
//! | behind, piece by piece, by the lock alone | - | - | 1.44, 0.37 |
//! | behind, all at the end | 1.16, 0.07 | - | 1.24, 0.10 |
//! | behind, one reader that follows in windows of 64 MiB | - | - | 1.25, 0.15 |
//! | asked for while still empty (zeros), then written onto | - | 0.80, 1.00 | 0.86, 1.36 |
//! | locked while still empty, then written onto | 0.63, 0.84 | - | 1.07 - 1.3, 2.1 |
//! | written through a shared map | - | - | 1.3 - 1.4, 2.4 |
//!
//! Through is best wherever memory is simply there, which is all bare metal and most virtual machines. Where free memory was given
//! back to the host (free page reporting, balloons), each first touch of a page by the processor faults into the host: some 10 us for
//! 4 KiB here, ten times the price of the copy, while a disk's DMA is served by the host in bulk. No way of writing avoids that; it
//! is the price of the memory (touching a GiB of it and nothing else: 1.84 s). Then two things help:
//!
//! - **Small writes.** The cache allocates a folio for each write, and the smaller the folio, the likelier it is memory that was
//!   used a moment ago: only large free areas are given back. Hence [`WRITE_BYTES`], tried in order.
//! - **Both at once.** Through takes processor time, behind takes the disk's; shared out, neither waits for the other. Hence the shares.
//!
//! Which memory the next write meets cannot be known, but its price can: processor time of the writing thread ([`write_through`]
//! returns it), which neither other writers nor the disk disturb. [`Ways`] follows it.
//!
//! Not used: `RWF_DONTCACHE` and `sync_file_range` with waits, which drop or stall what is to be kept; `io_uring`, which saves system
//! calls (4096 a GiB) where the price is pages, and hands buffered writes that would wait to threads: measured as a hand-over for each
//! write of 256 KiB, that alone cost 0.4 s of a processor a GiB. So the writer writes where it is, until one write had to wait.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::map;
use crate::units::{GIB, MIB};

/// Bytes of one write through the page cache, the best first where memory is simply there; see the table.
pub const WRITE_BYTES: [usize; 3] = [256 << 10, 64 << 10, 16 << 10];

/// Processor seconds for a GiB up to which everything goes through. Above, the next smaller write is tried, and after the last the
/// more goes behind, the dearer it is: whoever writes has a processor and a disk, and both are to be busy until the end.
const SHARES: [(f64, u32); 3] = [(1.2, 1), (2.0, 2), (3.0, 3)];

/// One block of so many goes through whatever it costs: or nobody would learn that memory became cheap.
const TRIED: u32 = 4;

/// Bytes over which the price is averaged: long enough that one interrupt does not decide.
const SAMPLE_BYTES: u64 = 4 * MIB;

/// How a block of bytes lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the page cache, in writes of so many bytes: kept as it passes.
    Through(usize),
    /// Past the page cache: read back when it is held.
    Behind,
}

/// Chooses a way for each block of a file, by what the last ones cost. Pure.
#[derive(Debug, Clone, Default)]
pub struct Ways {
    /// Which of [`WRITE_BYTES`] is in use.
    rung: usize,
    /// Of the bytes that went through so since the last verdict: how many, and their price.
    sample: (u64, Duration),
    /// Processor seconds for a GiB at the last verdict.
    price: f64,
    /// Blocks since one went through.
    turn: u32,
}

impl Ways {
    /// The way for the next block.
    pub fn choose(&mut self) -> Way {
        let dear = SHARES.iter().find(|(price, _)| self.price <= *price);
        let every = dear.map_or(TRIED, |(_, every)| *every);
        self.turn += 1;
        if self.turn < every {
            return Way::Behind;
        }
        self.turn = 0;
        Way::Through(WRITE_BYTES[self.rung])
    }

    /// `bytes` bytes went through in writes of `write` and took the writing thread `cost` of processor time.
    pub fn took(&mut self, write: usize, bytes: u64, cost: Duration) {
        if WRITE_BYTES[self.rung] != write {
            // On its way at the last verdict: it tells of what was judged already.
            return;
        }
        self.sample.0 += bytes;
        self.sample.1 += cost;
        let (bytes, cost) = self.sample;
        if bytes < SAMPLE_BYTES {
            return;
        }
        self.sample = (0, Duration::ZERO);
        self.price = cost.as_secs_f64() * GIB as f64 / bytes as f64;
        if self.price > SHARES[0].0 && self.rung + 1 < WRITE_BYTES.len() {
            self.rung += 1;
            self.price = 0.0;
        }
    }
}

/// Writes through the page cache, `write` bytes at a time, and returns the processor time that it took this thread.
///
/// # Errors
///
/// What the system says.
pub fn write_through(file: &File, offset: u64, bytes: &[u8], write: usize) -> io::Result<Duration> {
    let start = spent();
    let mut at = offset;
    for part in bytes.chunks(write) {
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

    /// Lands `bytes` in blocks of 1 MiB, each at `price` seconds a GiB for its size of write; returns how many bytes went through.
    fn land(ways: &mut Ways, bytes: u64, price: impl Fn(usize) -> f64) -> u64 {
        let mut through = 0;
        for _ in 0..bytes / MIB {
            if let Way::Through(write) = ways.choose() {
                through += MIB;
                ways.took(write, MIB, Duration::from_secs_f64(price(write) / 1024.0));
            }
        }
        through
    }

    #[test]
    fn cheap_memory_is_written_through_and_the_dearer_it_is_the_more_goes_behind() {
        assert_eq!(land(&mut Ways::default(), 4 * GIB, |_| 0.4), 4 * GIB);
        let mut before = u64::MAX;
        for price in [1.5, 2.5, 4.0] {
            let mut ways = Ways::default();
            let through = land(&mut ways, 4 * GIB, |_| price);
            assert!(through < before && through >= GIB, "{} MiB at {price}", through / MIB);
            before = through;
            // It becomes cheap: found out at once.
            assert!(land(&mut ways, GIB, |_| 0.4) >= GIB - 16 * MIB);
        }
    }

    #[test]
    fn where_only_small_pieces_of_memory_are_cheap_small_writes_find_them() {
        let mut ways = Ways::default();
        assert_eq!(land(&mut ways, 4 * GIB, |write| if write > 16 << 10 { 3.0 } else { 0.7 }), 4 * GIB);
        assert_eq!(ways.choose(), Way::Through(16 << 10));
    }

    #[test]
    fn blocks_on_their_way_at_a_verdict_are_not_counted_again() {
        let mut ways = Ways::default();
        for write in WRITE_BYTES {
            for _ in 0..16 {
                assert_eq!(ways.choose(), Way::Through(write));
            }
            for _ in 0..16 {
                ways.took(write, MIB, Duration::from_millis(5));
            }
        }
        assert_eq!([ways.choose(), ways.choose(), ways.choose()], [Way::Behind; 3]);
    }

    proptest! {
        #[test]
        fn one_of_four_blocks_is_tried_whatever_it_costs(prices in prop::collection::vec(0.0_f64..10.0, 1..40)) {
            let mut ways = Ways::default();
            for price in prices {
                prop_assert!(land(&mut ways, 16 * MIB, |_| price) >= 4 * MIB);
            }
        }
    }
}
