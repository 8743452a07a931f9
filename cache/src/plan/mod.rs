//! Policy: what to evict, how many connections to use. Arithmetic only: time is an argument, nothing is touched.

pub mod calibration;
pub mod connections;
pub mod expected;
pub mod lru;
pub mod rank;
pub mod rates;
pub mod readiness;
pub mod report;

use crate::clock::Tick;
use crate::ids::BlobId;

/// Chooses what leaves a tier. Told of everything that happens to the tier's blobs; deletes nothing itself.
pub trait EvictionPolicy: Send + std::fmt::Debug {
    /// The policy's name, as the configuration and the events have it.
    fn name(&self) -> &'static str;

    /// A blob is in the tier now.
    fn inserted(&mut self, blob: BlobId, bytes: u64, now: Tick);

    /// A blob was asked for or used.
    fn used(&mut self, blob: BlobId, now: Tick);

    /// A blob left the tier.
    fn removed(&mut self, blob: BlobId);

    /// Chooses blobs that give back at least `bytes` together, worst first. `evictable` gives a blob's bytes, or `None`
    /// if it is held. Returns what there is if that is not enough: the caller decides whether to go on.
    fn victims(&self, bytes: u64, evictable: &dyn Fn(BlobId) -> Option<u64>, now: Tick) -> Vec<BlobId>;
}
