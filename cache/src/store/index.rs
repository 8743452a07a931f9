//! The index: one append-only log of what is stored, named, leased and has happened, and the tables that it adds up to.
//! Touches no file but its log; whether the disk agrees is for `heal` to find out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::catalog::Source;
use crate::clock::Wall;
use crate::engine::view::{LeaseView, Occurrence, Trust};
use crate::ids::{BlobId, LeaseId, ModelKey, Sha256Digest};

use super::PartialName;
use super::disk::{self, Identity};
use super::error::{StoreError, Wrap};
use super::record;

/// Format of the records.
const VERSION: u32 = 1;

/// Records that say nothing new any more (old last uses, ended leases) before the log is written anew: a few MB.
const DEAD_RECORDS_MAX: u64 = 16_384;

/// What one line of the log says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "r", rename_all = "snake_case")]
pub(super) enum Record {
    /// The format. First in the log.
    Index { version: u32 },
    /// Numbers handed out so far, for those whose record is forgotten.
    Counters { next_lease: u64, next_seq: u64 },
    /// A blob is whole, verified and durable (or its identity was blessed).
    Blob(BlobRecord),
    /// A blob is on its way out because these pieces are bad; to be finished at the next open. Its names are no longer meant.
    Withdrawn { blob: BlobId, bad: Vec<u32> },
    /// A blob has left.
    Gone { blob: BlobId },
    /// A name is meant for a blob.
    Link { model: ModelKey, blob: BlobId, source: Option<Source> },
    /// A name is no longer meant.
    Unlink { model: ModelKey },
    /// A blob was used.
    Used { blob: BlobId, at: Wall },
    /// A lease began.
    Lease(LeaseView),
    /// A lease ended.
    LeaseEnd { lease: LeaseId },
    /// Something happened.
    Event(Occurrence),
}

/// What the index knows of a blob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BlobRecord {
    pub(super) blob: BlobId,
    pub(super) bytes: u64,
    pub(super) trust: Trust,
    pub(super) sha256: Option<Sha256Digest>,
    pub(super) last_used: Wall,
    /// Of its file when its content was last known to be good.
    pub(super) identity: Identity,
    /// What it was before: its file may still lie there, if the power went before its move was durable.
    pub(super) partial: PartialName,
}

/// What the index knows of a name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LinkEntry {
    pub(super) blob: BlobId,
    pub(super) source: Option<Source>,
}

/// A blob on its way out.
#[derive(Debug, Clone)]
pub(super) struct Withdrawal {
    pub(super) record: BlobRecord,
    pub(super) names: Vec<ModelKey>,
    pub(super) bad: Vec<u32>,
}

/// What the log adds up to.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) blobs: HashMap<BlobId, BlobRecord>,
    pub(super) links: BTreeMap<ModelKey, LinkEntry>,
    pub(super) withdrawn: HashMap<BlobId, Withdrawal>,
    pub(super) leases: BTreeMap<LeaseId, LeaseView>,
    pub(super) events: VecDeque<Occurrence>,
    pub(super) next_lease: u64,
    pub(super) next_seq: u64,
}

impl Tables {
    /// What the bytes of a log add up to; `path` is for messages alone.
    pub(super) fn tell(bytes: &[u8], path: &std::path::Path, events_max: usize) -> Result<Self, StoreError> {
        let decoded = record::decode::<Record>(bytes);
        if let Some(Record::Index { version }) = decoded.records.first()
            && *version != VERSION
        {
            return Err(StoreError::Format { path: path.to_owned(), found: *version, expected: VERSION });
        }
        if decoded.tail_bytes + decoded.bad_lines > 0 {
            let (tail_bytes, bad_lines) = (decoded.tail_bytes, decoded.bad_lines);
            tracing::warn!(path = %path.display(), tail_bytes, bad_lines, "index was damaged, kept the good records");
        }
        let mut tables = Self { next_lease: 1, next_seq: 1, ..Self::default() };
        decoded.records.into_iter().for_each(|record| tables.apply(record, events_max));
        Ok(tables)
    }

    /// The shortest log that adds up to this, as bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.records().iter().flat_map(record::encode).collect()
    }

    /// Applies one record. Records about what is not there change nothing: the log may have lost lines.
    fn apply(&mut self, record: Record, events_max: usize) {
        match record {
            Record::Index { .. } => {}
            Record::Counters { next_lease, next_seq } => {
                self.next_lease = self.next_lease.max(next_lease);
                self.next_seq = self.next_seq.max(next_seq);
            }
            Record::Blob(record) => {
                self.withdrawn.remove(&record.blob);
                self.blobs.insert(record.blob, record);
            }
            Record::Withdrawn { blob, bad } => {
                if let Some(record) = self.blobs.remove(&blob) {
                    let names = self.names_of(blob);
                    names.iter().for_each(|model| drop(self.links.remove(model)));
                    self.withdrawn.insert(blob, Withdrawal { record, names, bad });
                }
            }
            Record::Gone { blob } => {
                self.blobs.remove(&blob);
                self.withdrawn.remove(&blob);
                self.links.retain(|_, link| link.blob != blob);
            }
            Record::Link { model, blob, source } => {
                self.links.insert(model, LinkEntry { blob, source });
            }
            Record::Unlink { model } => {
                self.links.remove(&model);
            }
            Record::Used { blob, at } => {
                if let Some(record) = self.blobs.get_mut(&blob) {
                    record.last_used = record.last_used.max(at);
                }
            }
            Record::Lease(lease) => {
                self.next_lease = self.next_lease.max(lease.lease.0.saturating_add(1));
                self.leases.insert(lease.lease, lease);
            }
            Record::LeaseEnd { lease } => {
                self.leases.remove(&lease);
            }
            Record::Event(event) => {
                self.next_seq = self.next_seq.max(event.seq.0.saturating_add(1));
                self.events.push_back(event);
                if self.events.len() > events_max {
                    self.events.pop_front();
                }
            }
        }
    }

    /// All names of a blob.
    pub(super) fn names_of(&self, blob: BlobId) -> Vec<ModelKey> {
        self.links.iter().filter(|(_, link)| link.blob == blob).map(|(model, _)| model.clone()).collect()
    }

    /// The shortest log that adds up to this.
    fn records(&self) -> Vec<Record> {
        let mut all = vec![
            Record::Index { version: VERSION },
            Record::Counters { next_lease: self.next_lease, next_seq: self.next_seq },
        ];
        for withdrawal in self.withdrawn.values() {
            let blob = withdrawal.record.blob;
            all.push(Record::Blob(withdrawal.record.clone()));
            for model in &withdrawal.names {
                all.push(Record::Link { model: model.clone(), blob, source: None });
            }
            all.push(Record::Withdrawn { blob, bad: withdrawal.bad.clone() });
        }
        all.extend(self.blobs.values().cloned().map(Record::Blob));
        for (model, link) in &self.links {
            all.push(Record::Link { model: model.clone(), blob: link.blob, source: link.source.clone() });
        }
        all.extend(self.leases.values().cloned().map(Record::Lease));
        all.extend(self.events.iter().cloned().map(Record::Event));
        all
    }
}

/// The log and its tables.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    file: File,
    /// Where the next record goes.
    end: u64,
    /// Records in the log.
    records: u64,
    file_mode: u32,
    events_max: usize,
    pub(super) tables: Tables,
}

impl Index {
    /// Reads the log (none is an empty one) and writes it anew in its shortest form.
    ///
    /// # Errors
    ///
    /// [`StoreError::Format`] if another version wrote it: nothing is touched then.
    pub(super) fn open(path: PathBuf, file_mode: u32, events_max: usize) -> Result<Self, StoreError> {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        let tables = Tables::tell(&bytes, &path, events_max)?;
        let (file, end, records) = rewrite(&path, file_mode, &tables)?;
        Ok(Self { path, file, end, records, file_mode, events_max, tables })
    }

    /// Appends records and applies them to the tables; `durable` makes them (and all before them) survive power loss.
    ///
    /// All or none: a failed append is cut off again, and the tables stay as they were.
    pub(super) fn append(&mut self, records: Vec<Record>, durable: bool) -> Result<(), StoreError> {
        let lines: Vec<u8> = records.iter().flat_map(record::encode).collect();
        let written = self.file.write_all(&lines).wrap("append to", &self.path);
        let written = written.and_then(|()| match durable {
            true => self.file.sync_data().wrap("make durable", &self.path),
            false => Ok(()),
        });
        if let Err(error) = written {
            // If this fails too, the next open finds the records, and they are true or healed.
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        self.end += lines.len() as u64;
        self.records += records.len() as u64;
        records.into_iter().for_each(|record| self.tables.apply(record, self.events_max));
        self.compact_if_mostly_dead();
        Ok(())
    }

    /// Forgets a blob without a record, when the disk has no room for one: the next open finds its file gone.
    pub(super) fn forget(&mut self, blob: BlobId) {
        self.tables.apply(Record::Gone { blob }, self.events_max);
    }

    fn compact_if_mostly_dead(&mut self) {
        let tables = &self.tables;
        let live = tables.blobs.len() + tables.links.len() + tables.leases.len() + tables.events.len();
        if self.records <= 2 * live as u64 + DEAD_RECORDS_MAX {
            return;
        }
        match rewrite(&self.path, self.file_mode, &self.tables) {
            Ok((file, end, records)) => (self.file, self.end, self.records) = (file, end, records),
            // The old log is whole and goes on; the next append tries again.
            Err(error) => tracing::warn!(%error, "index could not be compacted"),
        }
    }
}

/// Replaces the log by its shortest form and opens it for appending.
fn rewrite(path: &std::path::Path, mode: u32, tables: &Tables) -> Result<(File, u64, u64), StoreError> {
    let records = tables.records();
    let lines: Vec<u8> = records.iter().flat_map(record::encode).collect();
    disk::write_whole(path, &lines, mode)?;
    let file = File::options().append(true).open(path).wrap("open", path)?;
    Ok((file, lines.len() as u64, records.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::view::What;
    use crate::ids::Seq;

    fn blob(n: u8) -> Record {
        Record::Blob(BlobRecord {
            blob: BlobId([n; 32]),
            bytes: 5,
            trust: Trust::FirstUse,
            sha256: None,
            last_used: Wall(7),
            identity: Identity { inode: 11, bytes: 5, modified: (3, 4) },
            partial: PartialName([0xbb; 32]),
        })
    }

    fn link(name: &str, n: u8) -> Record {
        Record::Link { model: ModelKey::parse(name).expect("valid"), blob: BlobId([n; 32]), source: None }
    }

    fn event(seq: u64) -> Record {
        Record::Event(Occurrence { seq: Seq(seq), at: Wall(1), what: What::Started { blobs: 1, bytes: 2 } })
    }

    fn fresh(dir: &tempfile::TempDir, events_max: usize) -> Index {
        Index::open(dir.path().join("index.log"), 0o600, events_max).expect("opens")
    }

    #[test]
    fn the_records_are_byte_exact_so_bump_the_version_if_this_fails() {
        let (a, b) = ("aa".repeat(32), "bb".repeat(32));
        let json = |record: &Record| serde_json::to_string(record).expect("plain");
        assert_eq!(json(&Record::Index { version: VERSION }), r#"{"r":"index","version":1}"#);
        assert_eq!(
            json(&blob(0xaa)),
            format!(
                r#"{{"r":"blob","blob":"{a}","bytes":5,"trust":"first_use","sha256":null,"last_used":7,"identity":{{"inode":11,"bytes":5,"modified":[3,4]}},"partial":"{b}"}}"#
            )
        );
        assert_eq!(json(&link("vae/x", 0xaa)), format!(r#"{{"r":"link","model":"vae/x","blob":"{a}","source":null}}"#));
        let withdrawn = Record::Withdrawn { blob: BlobId([0xaa; 32]), bad: vec![1, 2] };
        assert_eq!(json(&withdrawn), format!(r#"{{"r":"withdrawn","blob":"{a}","bad":[1,2]}}"#));
        let lease = LeaseView {
            lease: LeaseId(3),
            owner: "o".into(),
            models: vec![],
            ram: crate::engine::view::RamHold::None,
            expires: Wall(9),
        };
        assert_eq!(json(&Record::Lease(lease)), r#"{"r":"lease","lease":3,"owner":"o","models":[],"expires":9}"#);
        assert_eq!(json(&event(4)), r#"{"r":"event","seq":4,"at":1,"what":{"kind":"started","blobs":1,"bytes":2}}"#);
    }

    #[test]
    fn what_was_appended_is_there_after_reopening_and_numbers_are_never_reused() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut index = fresh(&dir, 2);
        let lease = LeaseView {
            lease: LeaseId(7),
            owner: "o".into(),
            models: vec![],
            ram: crate::engine::view::RamHold::None,
            expires: Wall(9),
        };
        let mut records = vec![blob(1), blob(2), link("vae/x", 1), link("vae/y", 2), Record::Lease(lease)];
        records.extend([Record::LeaseEnd { lease: LeaseId(7) }, Record::Gone { blob: BlobId([2; 32]) }]);
        records.extend((1..=5).map(event));
        records.push(Record::Used { blob: BlobId([1; 32]), at: Wall(70) });
        index.append(records, true).expect("appends");
        for _ in 0..2 {
            let index = fresh(&dir, 2);
            let tables = &index.tables;
            assert_eq!(tables.blobs.len(), 1);
            assert_eq!(tables.blobs[&BlobId([1; 32])].last_used, Wall(70));
            assert_eq!(tables.links.keys().map(ModelKey::as_str).collect::<Vec<_>>(), ["vae/x"]);
            assert_eq!(tables.events.iter().map(|event| event.seq.0).collect::<Vec<_>>(), [4, 5]);
            assert_eq!((tables.leases.len(), tables.next_lease, tables.next_seq), (0, 8, 6));
        }
    }

    #[test]
    fn a_log_torn_at_any_byte_of_its_last_record_keeps_the_others_and_takes_new_ones() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("index.log");
        fresh(&dir, 8).append(vec![blob(1), link("vae/x", 1)], true).expect("appends");
        let whole = std::fs::read(&path).expect("readable");
        let last = record::encode(&link("vae/x", 1)).len();
        for cut in 1..=last {
            std::fs::write(&path, &whole[..whole.len() - cut]).expect("writable");
            let mut index = fresh(&dir, 8);
            assert_eq!((index.tables.blobs.len(), index.tables.links.len()), (1, 0), "cut by {cut}");
            index.append(vec![link("vae/z", 1)], true).expect("appends");
            assert_eq!(fresh(&dir, 8).tables.links.len(), 1, "cut by {cut}");
        }
    }

    #[test]
    fn a_withdrawal_in_progress_survives_compaction() {
        let dir = tempfile::tempdir().expect("a folder");
        let id = BlobId([1; 32]);
        let bad = vec![4];
        fresh(&dir, 8)
            .append(vec![blob(1), link("vae/x", 1), Record::Withdrawn { blob: id, bad }], true)
            .expect("appends");
        drop(fresh(&dir, 8));
        let index = fresh(&dir, 8);
        assert!(index.tables.blobs.is_empty() && index.tables.links.is_empty());
        let withdrawal = &index.tables.withdrawn[&id];
        assert_eq!((withdrawal.names.len(), &withdrawal.bad[..]), (1, &[4][..]));
    }

    #[test]
    fn a_log_of_another_version_is_refused_and_not_touched() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("index.log");
        let line = record::encode(&Record::Index { version: 2 });
        std::fs::write(&path, &line).expect("writable");
        let opened = Index::open(path.clone(), 0o600, 8);
        assert!(matches!(opened, Err(StoreError::Format { found: 2, expected: 1, .. })), "{opened:?}");
        assert_eq!(std::fs::read(&path).expect("readable"), line);
    }

    #[test]
    fn a_log_of_dead_records_stays_bounded() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut index = fresh(&dir, 8);
        index.append(vec![blob(1)], false).expect("appends");
        for round in 0..40 {
            let uses = (0..1000).map(|n| Record::Used { blob: BlobId([1; 32]), at: Wall(round * 1000 + n) });
            index.append(uses.collect(), false).expect("appends");
        }
        assert!(index.records < DEAD_RECORDS_MAX + 1100, "{}", index.records);
        assert_eq!(fresh(&dir, 8).tables.blobs[&BlobId([1; 32])].last_used, Wall(39_999));
    }
}
