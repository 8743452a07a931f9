//! placeholder until the store lands
use crate::catalog::Source;
use crate::clock::Wall;
use crate::engine::view::*;
use crate::ids::*;
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartialName(pub [u8; 32]);
impl PartialName {
    pub fn of_blob(b: BlobId) -> Self {
        Self(b.0)
    }
    pub fn of_source(s: &Source) -> Self {
        Self(*blake3::hash(format!("{s:?}").as_bytes()).as_bytes())
    }
}
#[derive(Debug)]
pub struct StoredBlob {
    pub blob: BlobId,
    pub bytes: u64,
    pub trust: Trust,
    pub sha256: Option<Sha256Digest>,
    pub last_used: Wall,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLink {
    pub model: ModelKey,
    pub blob: BlobId,
    pub source: Option<Source>,
}
#[derive(Debug)]
pub struct StoredPartial {
    pub name: PartialName,
    pub bytes: u64,
    pub touched: Wall,
}
#[derive(Debug, Default)]
pub struct Inventory {
    pub blobs: Vec<StoredBlob>,
    pub links: Vec<StoredLink>,
    pub partials: Vec<StoredPartial>,
    pub leases: Vec<LeaseView>,
    pub events: Vec<Occurrence>,
    pub next_lease: u64,
    pub next_seq: u64,
}
