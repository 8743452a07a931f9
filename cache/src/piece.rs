//! Pieces: the aligned ranges of a blob, their chaining values, and how these merge into the blob's digest. Pure
//! arithmetic: reads no file and keeps no payload.

use std::ops::Range;

use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::BlobId;
use crate::units::MIB;

/// Bytes of a piece; the last one of a blob may be shorter.
///
/// A power of two times the 1 KiB chunk of BLAKE3: every piece is then a whole subtree, whose chaining value needs no
/// byte of its neighbours. 8 MiB keeps the journal at 128 records a GiB and a refetch after a crash below a second.
pub const PIECE_BYTES: u64 = 8 * MIB;

/// How a blob of some size is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    bytes: u64,
    piece_bytes: u64,
}

impl Layout {
    /// The layout of a blob of `bytes` bytes, in pieces of [`PIECE_BYTES`].
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self::with_pieces_of(bytes, PIECE_BYTES)
    }

    /// The same with another piece size, a power of two of at least 1 KiB: small enough for tests.
    pub(crate) fn with_pieces_of(bytes: u64, piece_bytes: u64) -> Self {
        debug_assert!(piece_bytes.is_power_of_two() && piece_bytes >= 1024, "{piece_bytes} is no whole subtree");
        Self { bytes, piece_bytes }
    }

    /// The layout that a file of the store speaks of; none if no blob has such a one.
    pub(crate) fn told(bytes: u64, piece_bytes: u64) -> Option<Self> {
        let is_subtree = piece_bytes.is_power_of_two() && (1024..=PIECE_BYTES).contains(&piece_bytes);
        (is_subtree && bytes.div_ceil(piece_bytes) <= u64::from(u32::MAX)).then_some(Self { bytes, piece_bytes })
    }

    /// Bytes of the blob.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of every piece but the last.
    #[must_use]
    pub fn piece_bytes(&self) -> u64 {
        self.piece_bytes
    }

    /// How many pieces; 0 for an empty blob.
    #[must_use]
    pub fn pieces(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(self.piece_bytes)).expect("a blob is far smaller than 2^32 pieces (32 PiB)")
    }

    /// The bytes of a piece; empty if the blob has no such piece.
    #[must_use]
    pub fn range(&self, piece: u32) -> Range<u64> {
        let start = (u64::from(piece) * self.piece_bytes).min(self.bytes);
        start..(start + self.piece_bytes).min(self.bytes)
    }
}

/// The chaining value of a piece. If the blob has only one piece, it is the blob's digest itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cv(pub [u8; 32]);

impl std::fmt::Debug for Cv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        BlobId(self.0).fmt(f)
    }
}

impl Serialize for Cv {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        BlobId(self.0).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Cv {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        BlobId::deserialize(d).map(|BlobId(bytes)| Self(bytes))
    }
}

/// Computes the chaining value of one piece as its bytes arrive, in order.
#[derive(Debug, Clone)]
pub struct PieceHasher {
    hasher: blake3::Hasher,
    whole: bool,
}

impl PieceHasher {
    /// Starts at the first byte of `piece`.
    #[must_use]
    pub fn new(layout: Layout, piece: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(layout.range(piece).start);
        Self { hasher, whole: layout.pieces() <= 1 }
    }

    /// Takes the next bytes of the piece. More bytes than the piece has are a mistake of the caller.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The chaining value of what was taken.
    #[must_use]
    pub fn finish(&self) -> Cv {
        if self.whole { Cv(*self.hasher.finalize().as_bytes()) } else { Cv(self.hasher.finalize_non_root()) }
    }
}

/// Merges the chaining values of all pieces, in their order, into the blob's digest.
///
/// # Panics
///
/// If `cvs` has not exactly one value for each piece of `layout`.
#[must_use]
pub fn root(layout: Layout, cvs: &[Cv]) -> BlobId {
    assert_eq!(cvs.len(), layout.pieces() as usize, "one chaining value for each piece");
    match cvs {
        [] => BlobId(*blake3::hash(b"").as_bytes()),
        [only] => BlobId(only.0),
        _ => {
            let (left, right) = halves(layout.bytes, layout.piece_bytes, cvs);
            BlobId(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
        }
    }
}

/// The chaining value of a subtree of `bytes` bytes.
fn merge(bytes: u64, piece_bytes: u64, cvs: &[Cv]) -> [u8; 32] {
    if let [only] = cvs {
        return only.0;
    }
    let (left, right) = halves(bytes, piece_bytes, cvs);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// The chaining values of the two halves of a subtree of more than one piece, cut where BLAKE3 cuts it.
fn halves(bytes: u64, piece_bytes: u64, cvs: &[Cv]) -> ([u8; 32], [u8; 32]) {
    let left_bytes = left_subtree_len(bytes);
    let (left, right) = cvs.split_at((left_bytes / piece_bytes) as usize);
    (merge(left_bytes, piece_bytes, left), merge(bytes - left_bytes, piece_bytes, right))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest_by_pieces(data: &[u8], piece_bytes: u64, order: &[usize]) -> BlobId {
        let layout = Layout::with_pieces_of(data.len() as u64, piece_bytes);
        let mut cvs = vec![Cv([0; 32]); layout.pieces() as usize];
        for &piece in order {
            let range = layout.range(piece as u32);
            let mut hasher = PieceHasher::new(layout, piece as u32);
            for part in data[range.start as usize..range.end as usize].chunks(700) {
                hasher.update(part);
            }
            cvs[piece] = hasher.finish();
        }
        root(layout, &cvs)
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_give_the_digest_of_the_whole(
            bytes in 0usize..70_000, power in 10u32..15, seed in any::<u64>(),
        ) {
            let data: Vec<u8> = (0..bytes).map(|i| (i as u64 ^ seed).wrapping_mul(31) as u8).collect();
            let mut order: Vec<usize> = (0..bytes.div_ceil(1 << power)).collect();
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
            let whole = BlobId(*blake3::hash(&data).as_bytes());
            prop_assert_eq!(digest_by_pieces(&data, 1 << power, &order), whole);
        }
    }

    #[test]
    fn sizes_at_the_borders_give_the_digest_of_the_whole() {
        for bytes in [0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 5 * 1024, 8191, 8192, 8193] {
            let data = vec![7u8; bytes];
            let order: Vec<usize> = (0..bytes.div_ceil(1024)).collect();
            assert_eq!(digest_by_pieces(&data, 1024, &order), BlobId(*blake3::hash(&data).as_bytes()), "{bytes}");
        }
    }

    #[test]
    fn a_layout_covers_every_byte_once() {
        for (bytes, pieces) in [(0, 0), (1, 1), (PIECE_BYTES, 1), (PIECE_BYTES + 1, 2), (3 * PIECE_BYTES, 3)] {
            let layout = Layout::new(bytes);
            assert_eq!(layout.pieces(), pieces);
            let mut end = 0;
            for piece in 0..pieces {
                let range = layout.range(piece);
                assert!(range.start == end && range.end > end);
                end = range.end;
            }
            assert_eq!(end, bytes);
            assert!(layout.range(pieces).is_empty());
        }
    }

    #[test]
    fn a_chaining_value_is_written_as_hex() {
        let text = serde_json::to_string(&Cv([0xab; 32])).expect("plain");
        assert_eq!(text, format!("\"{}\"", "ab".repeat(32)));
        assert_eq!(serde_json::from_str::<Cv>(&text).expect("valid"), Cv([0xab; 32]));
    }
}
