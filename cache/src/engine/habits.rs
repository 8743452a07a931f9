//! Keeps what was learned over restarts: what guesses learned and what the policy counted, a document each in the store, whole or not at
//! all, written now and then and at the end. A crash costs what was learned since; what cannot be read is dropped, and learning begins anew.

use std::time::Duration;

use crate::clock::Tick;
use crate::engine::run::Engine;
use crate::engine::scribe::Note;
use crate::engine::state::State;
use crate::metrics;
use crate::plan::kept::Kept;
use crate::plan::predict::saved::Saved;
use crate::store::Store;

/// The documents' names in the store. Each carries its version inside.
const HABITS: &str = "habits";
const USES: &str = "uses";
/// How often they are written while something is learned: each may have a megabyte, and habits are made in days.
const WRITE_INTERVAL: Duration = Duration::from_secs(600);

/// Takes up what was kept: counts, and what guesses learned if anything is guessed at all.
pub(crate) fn recall(state: &mut State, store: &Store) {
    if let Some(kept) = kept(store, USES, Kept::from_bytes) {
        state.recall_uses(&kept);
    }
    if let Some(saved) = state.is_guessing().then(|| kept(store, HABITS, Saved::from_bytes)).flatten() {
        state.recall_guesses(saved);
    }
}

/// What was kept under a name, if there is something and it can be read.
fn kept<T>(store: &Store, name: &str, read: impl FnOnce(&[u8]) -> Result<T, String>) -> Option<T> {
    let kept = match store.get_state(name) {
        Ok(bytes) => read(&bytes?),
        Err(error) => Err(error.to_string()),
    };
    match kept {
        Ok(kept) => Some(kept),
        Err(reason) => {
            tracing::warn!(name, reason, "what was learned cannot be read, learning anew");
            None
        }
    }
}

impl Engine {
    /// Writes what was learned, if it is time.
    pub(crate) fn keep_habits(&mut self, at_once: bool) {
        let now = self.clock.now();
        if !at_once && now.since(self.habits_kept) < WRITE_INTERVAL {
            return;
        }
        self.habits_kept = now;
        if let Some(kept) = self.state.keep_uses() {
            self.write(USES, kept.to_bytes());
        }
        if let Some(saved) = self.state.keep_guesses() {
            self.write(HABITS, saved.to_bytes());
        }
    }

    fn write(&mut self, name: &str, document: Result<Vec<u8>, String>) {
        match document {
            Ok(bytes) => self.scribe.note(Note::State(name.to_owned(), bytes)),
            Err(error) => tracing::error!(name, %error, "what was learned could not be written"),
        }
    }

    /// When what was learned wants to be written.
    pub(crate) fn habits_due(&self) -> Option<Tick> {
        let changed = self.state.guesses_changed() || self.state.uses_changed();
        changed.then(|| self.habits_kept.after(WRITE_INTERVAL))
    }

    /// Shows how habits do, and how other policies would.
    pub(crate) fn gauge_habits(&self) {
        let seen = self.state.predictions(self.gauged);
        for row in &seen.habits {
            metrics::predict::habit(row.kind, row.acts, row.score.moves.share());
        }
        for rival in self.state.rivals() {
            metrics::predict::rival(rival.policy, rival.share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;
    use crate::config::StoreConfig;
    use crate::ids::BlobId;
    use crate::plan::kept::Row;
    use crate::plan::predict::saved::Learned;
    use crate::plan::predict::shadow::Shadow;

    /// A document is found again, and a newer, a torn and a meaningless one is not.
    fn is_found_again<T: PartialEq + std::fmt::Debug>(
        (name, bytes, version): (&str, Vec<u8>, u32),
        written: T,
        read: impl Fn(&[u8]) -> Result<T, String>,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, _) = Store::open(&StoreConfig::at(folder.path()), 16).expect("it opens");
        assert_eq!(kept(&store, name, &read), None);
        store.put_state(name, &bytes).expect("written");
        assert_eq!(kept(&store, name, &read), Some(written));
        let text = String::from_utf8(bytes).expect("text");
        let newer = text.replacen(&format!("\"version\":{version}"), &format!("\"version\":{}", version + 1), 1);
        for bad in [newer.as_bytes(), &text.as_bytes()[..text.len() / 2], b"{}", b"not even json", b""] {
            store.put_state(name, bad).expect("written");
            assert_eq!(kept(&store, name, &read), None, "{bad:?}");
        }
    }

    #[test]
    fn what_guesses_learned_is_found_again_and_what_cannot_be_read_is_not() {
        let saved = Saved::of(Learned { leads: [Some(7), None], ..Learned::default() }, &Shadow::default());
        let bytes = saved.to_bytes().expect("written");
        is_found_again((HABITS, bytes, crate::plan::predict::saved::VERSION), saved, Saved::from_bytes);
    }

    #[test]
    fn what_was_counted_is_found_again_and_what_cannot_be_read_is_not() {
        let row = Row { blob: BlobId([7; 32]), bytes: 1, fast: 1.0, slow: 2.0, disk_saves: 3.0, ram_saves: 4.0 };
        let counted = Kept { at: Wall(5), rows: vec![row] };
        let bytes = counted.to_bytes().expect("written");
        is_found_again((USES, bytes, crate::plan::kept::VERSION), counted, Kept::from_bytes);
    }
}
