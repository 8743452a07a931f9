//! Contents of models: structured as safetensors, the same for the same seed, different in every piece, of any size without
//! taking its memory.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use sha2::Digest;

/// A prime, so that no two pieces of one content are alike.
const BLOCK: usize = 1_048_583;

/// A model's bytes: a head, then a block again and again.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    head: Bytes,
    block: Bytes,
    bytes: u64,
}

impl Content {
    /// A valid safetensors file of exactly `bytes` (at least 4096).
    pub(crate) fn model(seed: u64, bytes: u64) -> Self {
        Self { head: head(bytes), block: block(seed), bytes }
    }

    /// A file without structure.
    pub(crate) fn raw(seed: u64, bytes: u64) -> Self {
        Self { head: Bytes::new(), block: block(seed), bytes }
    }

    /// A text.
    pub(crate) fn text(text: &str) -> Self {
        Self { head: Bytes::copy_from_slice(text.as_bytes()), block: block(0), bytes: text.len() as u64 }
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of `range` from its start on: at least one if it is not empty, at most `max`. Copies nothing.
    pub(crate) fn slice(&self, range: Range<u64>, max: usize) -> Bytes {
        let end = range.end.min(self.bytes);
        if range.start >= end {
            return Bytes::new();
        }
        let want = usize::try_from(end - range.start).unwrap_or(usize::MAX).min(max);
        let head = self.head.len() as u64;
        let (from, at) = if range.start < head {
            (&self.head, range.start as usize)
        } else {
            (&self.block, ((range.start - head) % BLOCK as u64) as usize)
        };
        from.slice(at..(at + want).min(from.len()))
    }

    fn each(&self, mut take: impl FnMut(&[u8])) {
        let mut at = 0;
        while at < self.bytes {
            let part = self.slice(at..self.bytes, BLOCK);
            take(&part);
            at += part.len() as u64;
        }
    }

    /// BLAKE3, 64 hex digits.
    pub(crate) fn blake3(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.each(|part| {
            hasher.update(part);
        });
        hasher.finalize().to_hex().to_string()
    }

    /// SHA-256, 64 hex digits.
    pub(crate) fn sha256(&self) -> String {
        let mut hasher = sha2::Sha256::new();
        self.each(|part| hasher.update(part));
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Writes it to a file, and makes the folders above.
    pub(crate) fn write_to(&self, path: &Path) {
        std::fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("the folder can be made");
        let mut file = File::create(path).expect("the file can be made");
        self.each(|part| file.write_all(part).expect("the file can be written"));
    }

    /// Everything in memory, for small contents.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::new();
        self.each(|part| all.extend_from_slice(part));
        all
    }

    /// Fails unless the file is this content, byte for byte.
    #[track_caller]
    pub(crate) fn assert_is(&self, path: &Path) {
        let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(file.metadata().expect("an open file has a size").len(), self.bytes, "size of {}", path.display());
        let mut buffer = vec![0; BLOCK];
        let mut at = 0;
        self.each(|part| {
            let read = &mut buffer[..part.len()];
            file.read_exact(read).expect("the file can be read");
            assert!(read == part, "{} differs within {at}..{}", path.display(), at + part.len() as u64);
            at += part.len() as u64;
        });
    }
}

fn block(seed: u64) -> Bytes {
    let mut block = vec![0; BLOCK];
    fastrand::Rng::with_seed(seed).fill(&mut block);
    block.into()
}

/// A header whose tensors tile what follows it exactly.
fn head(bytes: u64) -> Bytes {
    const HEAD: u64 = 2048;
    assert!(bytes >= 2 * HEAD, "a model has a header and something behind it");
    let body = bytes - HEAD;
    let first = body / 2;
    let json = format!(
        concat!(
            r#"{{"__metadata__":{{"format":"pt"}},"double_blocks.0.img_attn.qkv.weight":{{"dtype":"U8","shape":[{}],"#,
            r#""data_offsets":[0,{}]}},"double_blocks.0.txt_attn.qkv.weight":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}}"#
        ),
        first,
        first,
        body - first,
        first,
        body
    );
    let mut head = (HEAD - 8).to_le_bytes().to_vec();
    head.extend_from_slice(json.as_bytes());
    head.resize(HEAD as usize, b' ');
    head.into()
}
