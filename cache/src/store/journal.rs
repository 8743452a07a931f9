//! The journal of an unfinished blob: which pieces are finished, and their chaining values. Appended to without waiting for
//! the disk: nothing in it is believed before the piece was read again, so it may run ahead of the data or lag behind it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::piece::{Cv, Layout};

use super::error::{StoreError, Wrap};
use super::{PartialName, disk, record};

const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "r", rename_all = "snake_case")]
enum Entry {
    /// What the journal is about. First in the file.
    Partial { version: u32, name: PartialName, bytes: u64, piece_bytes: u64 },
    /// A piece was written whole.
    Finished { piece: u32, cv: Cv },
    /// A piece is not good after all.
    Unfinished { piece: u32 },
    /// No piece is.
    Reset,
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    end: u64,
}

/// What a journal on the disk says.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) name: PartialName,
    pub(super) layout: Layout,
    /// Pieces that it calls finished.
    pub(super) finished: BTreeMap<u32, Cv>,
    good_bytes: u64,
}

/// Reads a journal; none if there is none, or its first record is lost or of another version.
pub(super) fn read(path: &Path) -> Option<Told> {
    tell(&std::fs::read(path).ok()?, path)
}

/// What the bytes of a journal say; `path` is for the log alone.
pub(super) fn tell(bytes: &[u8], path: &Path) -> Option<Told> {
    let decoded = record::decode::<Entry>(bytes);
    if decoded.tail_bytes + decoded.bad_lines > 0 {
        let (tail_bytes, bad_lines) = (decoded.tail_bytes, decoded.bad_lines);
        tracing::info!(path = %path.display(), tail_bytes, bad_lines, "journal was torn, kept the good records");
    }
    let mut entries = decoded.records.into_iter();
    let Some(Entry::Partial { version: VERSION, name, bytes, piece_bytes }) = entries.next() else { return None };
    let layout = Layout::told(bytes, piece_bytes)?;
    let mut finished = BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Partial { .. } => {}
            Entry::Finished { piece, cv } if piece < layout.pieces() => drop(finished.insert(piece, cv)),
            Entry::Finished { .. } => {}
            Entry::Unfinished { piece } => drop(finished.remove(&piece)),
            Entry::Reset => finished.clear(),
        }
    }
    Some(Told { name, layout, finished, good_bytes: decoded.good_bytes })
}

impl Journal {
    /// Begins a journal, in place of any that is there, with some pieces that are finished already.
    pub(super) fn create<'a>(
        path: PathBuf,
        mode: u32,
        (name, layout): (PartialName, Layout),
        finished: impl Iterator<Item = (u32, &'a Cv)>,
    ) -> Result<Self, StoreError> {
        disk::unlink(&path)?;
        let file = disk::create(&path, mode)?;
        let mut journal = Self { file, path, end: 0 };
        let (bytes, piece_bytes) = (layout.bytes(), layout.piece_bytes());
        let mut lines = record::encode(&Entry::Partial { version: VERSION, name, bytes, piece_bytes });
        for (piece, cv) in finished {
            lines.extend(record::encode(&Entry::Finished { piece, cv: *cv }));
        }
        journal.append(&lines)?;
        Ok(journal)
    }

    /// Opens the journal that `told` was read from, and cuts its torn tail.
    pub(super) fn reopen(path: PathBuf, told: &Told) -> Result<Self, StoreError> {
        let file = disk::open(&path)?;
        file.set_len(told.good_bytes).wrap("cut the tail of", &path)?;
        Ok(Self { file, path, end: told.good_bytes })
    }

    pub(super) fn finished(&mut self, piece: u32, cv: Cv) -> Result<(), StoreError> {
        self.append(&record::encode(&Entry::Finished { piece, cv }))
    }

    pub(super) fn unfinished(&mut self, piece: u32) -> Result<(), StoreError> {
        self.append(&record::encode(&Entry::Unfinished { piece }))
    }

    pub(super) fn reset(&mut self) -> Result<(), StoreError> {
        self.append(&record::encode(&Entry::Reset))
    }

    /// Another descriptor of its file, to make it durable without holding the journal.
    pub(super) fn descriptor(&self) -> Result<File, StoreError> {
        self.file.try_clone().wrap("open", &self.path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        use std::io::{Seek, SeekFrom};
        let written = self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(lines));
        if let Err(error) = written {
            // A half line must not swallow the next one. If this fails too, the next record is lost with it, and its piece fetched again.
            let _ = self.file.set_len(self.end);
            return Err(StoreError::io("append to", &self.path, error));
        }
        self.end += lines.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> PartialName {
        PartialName([0xaa; 32])
    }

    #[test]
    fn the_records_are_byte_exact_so_bump_the_version_if_this_fails() {
        let json = |entry: &Entry| serde_json::to_string(entry).expect("plain");
        let (a, b) = ("aa".repeat(32), "bb".repeat(32));
        assert_eq!(
            json(&Entry::Partial { version: VERSION, name: name(), bytes: 9, piece_bytes: 1024 }),
            format!(r#"{{"r":"partial","version":1,"name":"{a}","bytes":9,"piece_bytes":1024}}"#)
        );
        let finished = Entry::Finished { piece: 3, cv: Cv([0xbb; 32]) };
        assert_eq!(json(&finished), format!(r#"{{"r":"finished","piece":3,"cv":"{b}"}}"#));
        assert_eq!(json(&Entry::Unfinished { piece: 3 }), r#"{"r":"unfinished","piece":3}"#);
        assert_eq!(json(&Entry::Reset), r#"{"r":"reset"}"#);
    }

    #[test]
    fn a_journal_torn_at_any_byte_of_its_last_record_keeps_the_others_and_takes_new_ones() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.journal");
        let layout = Layout::with_pieces_of(10_000, 1024);
        let cvs = [Cv([1; 32]), Cv([2; 32])];
        let finished = || cvs.iter().enumerate().map(|(n, cv)| (n as u32, cv));
        drop(Journal::create(path.clone(), 0o600, (name(), layout), finished()).expect("made"));
        let whole = std::fs::read(&path).expect("readable");
        let last = record::encode(&Entry::Finished { piece: 1, cv: cvs[1] }).len();
        for cut in 1..=last {
            std::fs::write(&path, &whole[..whole.len() - cut]).expect("writable");
            let told = read(&path).expect("its header is whole");
            assert_eq!(told.finished.keys().copied().collect::<Vec<_>>(), [0], "cut by {cut}");
            let mut journal = Journal::reopen(path.clone(), &told).expect("opens");
            journal.finished(5, cvs[0]).expect("appends");
            journal.unfinished(0).expect("appends");
            let told = read(&path).expect("readable");
            assert_eq!(told.finished.keys().copied().collect::<Vec<_>>(), [5], "cut by {cut}");
        }
    }

    #[test]
    fn a_journal_of_an_impossible_blob_is_no_journal() {
        for (bytes, piece_bytes) in [(u64::MAX, 1024), (9, 1000), (9, 512), (u64::MAX, 1 << 63), (9, 0)] {
            let line = record::encode(&Entry::Partial { version: VERSION, name: name(), bytes, piece_bytes });
            assert!(tell(&line, Path::new("x")).is_none(), "{bytes} in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn a_reset_forgets_all_pieces_and_pieces_out_of_range_are_no_pieces() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.journal");
        let layout = Layout::with_pieces_of(2000, 1024);
        let mut journal = Journal::create(path.clone(), 0o600, (name(), layout), std::iter::empty()).expect("made");
        for piece in [0, 1, 2] {
            journal.finished(piece, Cv([0; 32])).expect("appends");
        }
        assert_eq!(read(&path).expect("readable").finished.len(), 2);
        journal.reset().expect("appends");
        assert!(read(&path).expect("readable").finished.is_empty());
    }
}
