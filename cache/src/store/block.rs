//! Blocks: aligned memory that is reused between the network and the disk, bounded as a whole. Knows nothing of what it carries.

use std::alloc::{Layout, handle_alloc_error};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::units::MIB;

/// Bytes of a block: large enough that a direct write is bound by the disk, small enough that 64 connections need 64 MiB.
pub const BLOCK_BYTES: usize = MIB as usize;

/// What direct I/O wants its memory, offsets and lengths to be multiples of. Covers 512-byte and 4096-byte disks.
pub(super) const ALIGN: usize = 4096;

/// Hands out blocks, at most so many at once. Cheap to clone; clones share the bound.
#[derive(Debug, Clone)]
pub struct BlockPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<MmapMut>>,
}

impl Shared {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<MmapMut>> {
        // A list of memory is whole whatever panicked while it was held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockPool {
    /// A pool of at most `bytes_max` bytes, and of at least one block.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        let blocks = usize::try_from(bytes_max / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        let blocks = blocks.clamp(1, Semaphore::MAX_PERMITS);
        Self { shared: Arc::new(Shared { permits: Arc::new(Semaphore::new(blocks)), idle: Mutex::new(Vec::new()) }) }
    }

    /// An empty block. Waits while all are out; first come, first served.
    pub async fn acquire(&self) -> Block {
        let permits = Arc::clone(&self.shared.permits);
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        let idle = self.shared.idle().pop();
        let memory = idle.unwrap_or_else(map);
        Block { memory: Some(memory), len: 0, shared: Arc::clone(&self.shared), _permit: permit }
    }

    /// Gives the memory of blocks that nobody holds back to the system.
    pub fn trim(&self) {
        self.shared.idle().clear();
    }
}

/// Fresh zeroed memory of a block, aligned to a page.
pub(super) fn map() -> MmapMut {
    // Running out of memory ends the process here as it does at every other allocation.
    MmapMut::map_anon(BLOCK_BYTES).unwrap_or_else(|_| handle_alloc_error(Layout::new::<[u8; BLOCK_BYTES]>()))
}

/// Up to [`BLOCK_BYTES`] bytes on their way to the disk. Goes back to its pool when dropped.
#[derive(Debug)]
pub struct Block {
    memory: Option<MmapMut>,
    len: usize,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Block {
    /// Bytes held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no more fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == BLOCK_BYTES
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn remaining(&self) -> usize {
        BLOCK_BYTES - self.len
    }

    /// Appends as much of `bytes` as fits and returns how much that was.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.remaining());
        let end = self.len + taken;
        let start = std::mem::replace(&mut self.len, end);
        self.memory_mut()[start..end].copy_from_slice(&bytes[..taken]);
        taken
    }

    /// What it holds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.memory.as_ref().expect("held until dropped")[..self.len]
    }

    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// What it holds, followed by zeros up to a multiple of [`ALIGN`].
    pub(super) fn padded(&mut self) -> &[u8] {
        let (len, end) = (self.len, self.len.next_multiple_of(ALIGN));
        let memory = self.memory_mut();
        memory[len..end].fill(0);
        &memory[..end]
    }

    fn memory_mut(&mut self) -> &mut MmapMut {
        self.memory.as_mut().expect("held until dropped")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // Before the permit goes back, so that a waiter finds this memory instead of mapping more.
        self.shared.idle().extend(self.memory.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pool_never_hands_out_more_than_its_bound_and_reuses_memory() {
        let pool = BlockPool::new(2 * BLOCK_BYTES as u64 + 5);
        let (first, second) = (pool.acquire().await, pool.acquire().await);
        assert_eq!(pool.shared.permits.available_permits(), 0);
        let address = first.bytes().as_ptr();
        assert_eq!(address.align_offset(ALIGN), 0);
        drop(first);
        assert_eq!(pool.acquire().await.bytes().as_ptr(), address);
        drop(second);
        assert_eq!(pool.shared.idle().len(), 2);
        pool.trim();
        assert_eq!(pool.shared.idle().len(), 0);
    }

    #[tokio::test]
    async fn a_block_takes_what_fits_and_pads_with_zeros() {
        let mut block = BlockPool::new(0).acquire().await;
        assert_eq!(block.fill(&vec![9; BLOCK_BYTES - 1]), BLOCK_BYTES - 1);
        assert_eq!(block.fill(&[8, 8]), 1);
        assert!(block.is_full() && block.remaining() == 0 && block.bytes()[BLOCK_BYTES - 1] == 8);
        block.clear();
        assert!(block.is_empty());
        block.fill(&[7; 5000]);
        let padded = block.padded();
        assert_eq!((padded.len(), padded[4999], &padded[5000..]), (8192, 7, &[0; 3192][..]));
        assert_eq!(block.len(), 5000);
    }
}
