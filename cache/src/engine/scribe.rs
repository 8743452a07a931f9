//! The scribe: one thread that writes small records (uses, leases, occurrences) to the store's index, in order, so that
//! the loop never waits for the disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Wall;
use crate::engine::view::{LeaseView, Occurrence};
use crate::ids::{BlobId, LeaseId};
use crate::store::Store;

/// Notes that may wait for the disk. More than this means that the disk hangs: uses and occurrences are dropped then.
pub(crate) const NOTES_MAX: usize = 16_384;
/// How long uses are gathered: a model used a hundred times in this time is written once.
const USES_INTERVAL: Duration = Duration::from_secs(5);

/// Something to write down.
#[derive(Debug)]
pub(crate) enum Note {
    Uses(Vec<BlobId>, Wall),
    PutLease(LeaseView),
    EndLease(LeaseId),
    Occurrence(Occurrence),
    State(String, Vec<u8>),
    /// Tell this number: all that was noted before is on the disk, or could not be written.
    Mark(u64),
}

/// Speaks to the scribe's thread.
#[derive(Debug)]
pub(crate) struct Scribe {
    notes: SyncSender<Note>,
    thread: JoinHandle<()>,
}

impl Scribe {
    /// Starts the thread. `passed` is called on it with the number of each [`Note::Mark`].
    pub(crate) fn start(store: Arc<Store>, passed: impl Fn(u64) + Send + 'static) -> Self {
        let (notes, inbox) = sync_channel(NOTES_MAX);
        let thread = std::thread::spawn(move || write(&store, &inbox, &passed));
        Self { notes, thread }
    }

    /// Hands a note over. Never waits: a note that finds no place is dropped and said so.
    pub(crate) fn note(&self, note: Note) {
        match self.notes.try_send(note) {
            Ok(()) => {}
            Err(TrySendError::Full(note)) => {
                crate::metrics::events_dropped(1);
                tracing::error!(?note, "the disk hangs: a note is dropped");
            }
            Err(TrySendError::Disconnected(_)) => tracing::error!("the scribe is gone: a note is dropped"),
        }
    }

    /// Asks to be told `number` once all earlier notes are on the disk. False if it will never be told: the disk hangs.
    pub(crate) fn mark(&self, number: u64) -> bool {
        self.notes.try_send(Note::Mark(number)).is_ok()
    }

    /// Writes everything that waits, and ends.
    pub(crate) fn finish(self) {
        drop(self.notes);
        if self.thread.join().is_err() {
            tracing::error!("the scribe panicked");
        }
    }
}

fn write(store: &Store, inbox: &Receiver<Note>, passed: &dyn Fn(u64)) {
    let mut uses: BTreeMap<BlobId, Wall> = BTreeMap::new();
    loop {
        let wait = if uses.is_empty() { Duration::from_secs(3600) } else { USES_INTERVAL };
        let written = match inbox.recv_timeout(wait) {
            Ok(Note::Uses(blobs, at)) => {
                uses.extend(blobs.into_iter().map(|blob| (blob, at)));
                continue;
            }
            Ok(Note::PutLease(lease)) => store.put_lease(&lease),
            Ok(Note::EndLease(lease)) => store.end_lease(lease),
            Ok(Note::Occurrence(occurrence)) => store.record(&occurrence),
            Ok(Note::State(name, bytes)) => store.put_state(&name, &bytes),
            Ok(Note::Mark(number)) => {
                passed(number);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => flush(store, &mut uses),
            Err(RecvTimeoutError::Disconnected) => {
                if let Err(error) = flush(store, &mut uses) {
                    tracing::error!(%error, "the last uses could not be written");
                }
                return;
            }
        };
        if let Err(error) = written {
            tracing::error!(%error, "a note could not be written");
        }
    }
}

fn flush(store: &Store, uses: &mut BTreeMap<BlobId, Wall>) -> Result<(), crate::store::StoreError> {
    if uses.is_empty() {
        return Ok(());
    }
    let notes: Vec<(BlobId, Wall)> = std::mem::take(uses).into_iter().collect();
    store.note_uses(&notes)
}
