//! The sidecar of a blob: the chaining values of its pieces, so that a scrub can say which piece is bad. Derived data: a
//! lost one costs a scrub its precision, never a blob.

use serde::{Deserialize, Serialize};

use crate::ids::BlobId;
use crate::piece::{Cv, Layout, root};

use super::error::{StoreError, Wrap};
use super::paths::Paths;
use super::{disk, record};

const VERSION: u32 = 1;

/// What the file holds, as one record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Sidecar {
    version: u32,
    pub(super) blob: BlobId,
    pub(super) bytes: u64,
    piece_bytes: u64,
    pub(super) cvs: Vec<Cv>,
}

impl Sidecar {
    pub(super) fn new(blob: BlobId, layout: Layout, cvs: Vec<Cv>) -> Self {
        Self { version: VERSION, blob, bytes: layout.bytes(), piece_bytes: layout.piece_bytes(), cvs }
    }

    /// Writes it, in place and unsynced: a torn one fails its checksum and counts as lost, and the next scrub makes it again.
    pub(super) fn write(&self, paths: &Paths) -> Result<(), StoreError> {
        use std::io::Write;
        let path = paths.sidecar(self.blob);
        disk::make_dir(path.parent().expect("sidecars lie in folders"), paths.dir_mode)?;
        disk::unlink(&path)?;
        let mut file = disk::create(&path, paths.file_mode)?;
        file.write_all(&record::encode(self)).wrap("write", &path)
    }

    /// Reads the sidecar of a blob; none if there is none, or it does not add up to the blob.
    pub(super) fn read(paths: &Paths, blob: BlobId, piece_bytes: u64) -> Option<Self> {
        Self::tell(&std::fs::read(paths.sidecar(blob)).ok()?, blob, piece_bytes)
    }

    /// What the bytes of a sidecar say.
    pub(super) fn tell(bytes: &[u8], blob: BlobId, piece_bytes: u64) -> Option<Self> {
        let sidecar = record::decode::<Self>(bytes).records.pop()?;
        let layout = Layout::told(sidecar.bytes, piece_bytes)?;
        let fits = sidecar.version == VERSION
            && sidecar.blob == blob
            && sidecar.piece_bytes == piece_bytes
            && sidecar.cvs.len() == layout.pieces() as usize;
        (fits && root(layout, &sidecar.cvs) == blob).then_some(sidecar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_byte_exact_so_bump_the_version_if_this_fails() {
        let layout = Layout::new(5);
        let blob = BlobId([0xaa; 32]);
        let sidecar = Sidecar::new(blob, layout, vec![Cv([0xbb; 32])]);
        assert_eq!(
            serde_json::to_string(&sidecar).expect("plain"),
            format!(
                r#"{{"version":1,"blob":"{a}","bytes":5,"piece_bytes":8388608,"cvs":["{b}"]}}"#,
                a = "aa".repeat(32),
                b = "bb".repeat(32)
            )
        );
    }
}
