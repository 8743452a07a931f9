//! Claims about the store, on a real file system, with small pieces. Here: what the claims share.

mod crashes;
mod damage;
mod imports;
mod lifecycle;
mod marks;
mod speed;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};

use tempfile::TempDir;

use super::error::Wrap;
use super::*;
use crate::config::{DirectIo, StoreConfig};
use crate::piece::{Cv, Layout, PieceHasher, root};

/// Small, but whole blocks of the disk.
const PIECE: u64 = 16 * 1024;
/// Five whole pieces and an odd rest.
const BYTES: u64 = 5 * PIECE + 777;

static NEVER: AtomicBool = AtomicBool::new(false);

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn config(dir: &TempDir) -> StoreConfig {
    StoreConfig::at(dir.path().join("store"))
}

fn try_open(dir: &TempDir) -> Result<(Store, Inventory), StoreError> {
    Store::open_with(&config(dir), 16, PIECE)
}

fn open(dir: &TempDir) -> (Store, Inventory) {
    try_open(dir).expect("the store opens")
}

fn key(text: &str) -> ModelKey {
    ModelKey::parse(text).expect("a valid key")
}

fn link(name: &str, blob: BlobId) -> StoredLink {
    StoredLink { model: key(name), blob, source: None }
}

fn content(seed: u64, bytes: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| rng.u8(..)).collect()
}

fn digest(data: &[u8]) -> BlobId {
    BlobId(*blake3::hash(data).as_bytes())
}

fn layout(data: &[u8]) -> Layout {
    Layout::with_pieces_of(data.len() as u64, PIECE)
}

fn cv(data: &[u8], piece: u32) -> Cv {
    let range = layout(data).range(piece);
    let mut hasher = PieceHasher::new(layout(data), piece);
    hasher.update(&data[range.start as usize..range.end as usize]);
    hasher.finish()
}

fn cvs(data: &[u8]) -> Vec<Cv> {
    (0..layout(data).pieces()).map(|piece| cv(data, piece)).collect()
}

fn block() -> Block {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(BlockPool::new(BLOCK_BYTES as u64).acquire())
}

fn write(partial: &Partial, data: &[u8], pieces: impl IntoIterator<Item = u32>) {
    let mut block = block();
    for piece in pieces {
        let range = layout(data).range(piece);
        block.clear();
        block.fill(&data[range.start as usize..range.end as usize]);
        partial.write(range.start, &mut block).expect("writes");
        partial.finished(piece, cv(data, piece)).expect("journals");
    }
}

fn begin(store: &Store, data: &[u8]) -> (Partial, Vec<u32>) {
    let (partial, finished) =
        store.begin(PartialName::of_blob(digest(data)), data.len() as u64, &NEVER).expect("begins");
    for (piece, told) in &finished {
        assert_eq!(*told, cv(data, *piece), "piece {piece} is believed but wrong");
    }
    (partial, finished.into_iter().map(|(piece, _)| piece).collect())
}

fn commit_of(data: &[u8], names: &[&str]) -> Commit {
    let blob = digest(data);
    let links = names.iter().map(|name| link(name, blob)).collect();
    Commit { blob, cvs: cvs(data), trust: Trust::Blake3, sha256: None, links, now: Wall(5) }
}

/// Stores content under names, going on from whatever is there.
fn store_all(store: &Store, data: &[u8], names: &[&str]) -> BlobId {
    let (partial, finished) = begin(store, data);
    write(&partial, data, (0..layout(data).pieces()).filter(|piece| !finished.contains(piece)));
    store.commit(&partial, commit_of(data, names)).expect("commits");
    digest(data)
}

fn scrub(store: &Store, blob: BlobId) -> Vec<u32> {
    store.scrub(blob, &NEVER, &AtomicU64::new(0)).expect("scrubs")
}

/// Every file below the models folder, by key.
fn visible(dir: &TempDir) -> Vec<(String, PathBuf)> {
    fn walk(top: &Path, at: &Path, all: &mut Vec<(String, PathBuf)>) {
        for entry in fs::read_dir(at).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(top, &path, all);
            } else {
                all.push((path.strip_prefix(top).expect("below").to_string_lossy().into_owned(), path));
            }
        }
    }
    let models = config(dir).models;
    let mut all = Vec::new();
    walk(&models, &models, &mut all);
    all.sort();
    all
}

/// Everything visible is whole, verified and known, and everything known is visible.
fn check_visible(dir: &TempDir, inventory: &Inventory) {
    let visible = visible(dir);
    for (name, path) in &visible {
        let link = inventory.links.iter().find(|link| link.model.as_str() == name);
        let link = link.unwrap_or_else(|| panic!("{name} is visible, but not in the inventory"));
        assert_eq!(digest(&fs::read(path).expect("readable")), link.blob, "{name} is visible but wrong");
        assert!(inventory.blobs.iter().any(|blob| blob.blob == link.blob));
    }
    assert_eq!(visible.len(), inventory.links.len());
}

/// Files of the store's own folders, without the index.
fn own_files(dir: &TempDir) -> Vec<String> {
    let mut all = Vec::new();
    let mut dirs = vec![config(dir).path.join("v1")];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).expect("readable") {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true => dirs.push(path),
                false => all.push(path.file_name().expect("named").to_string_lossy().into_owned()),
            }
        }
    }
    all.retain(|name| name != "index.log");
    all.sort();
    all
}
