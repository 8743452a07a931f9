//! placeholder until the store lands
use std::ops::Range;
pub const PIECE_BYTES: u64 = 8 << 20;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    bytes: u64,
}
impl Layout {
    pub fn new(bytes: u64) -> Self {
        Self { bytes }
    }
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    pub fn pieces(&self) -> u32 {
        self.bytes.div_ceil(PIECE_BYTES).max(1) as u32
    }
    pub fn range(&self, piece: u32) -> Range<u64> {
        let s = u64::from(piece) * PIECE_BYTES;
        s..(s + PIECE_BYTES).min(self.bytes)
    }
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cv(pub [u8; 32]);
pub fn root(_: Layout, cvs: &[Cv]) -> crate::ids::BlobId {
    crate::ids::BlobId(cvs[0].0)
}
