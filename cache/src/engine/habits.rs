//! Keeps what was learned over restarts: one document in the store, whole or not at all, written now and then and at the end. A crash costs
//! what was learned since; what cannot be read is dropped, and learning begins anew.

use std::time::Duration;

use crate::clock::Tick;
use crate::engine::run::Engine;
use crate::engine::scribe::Note;
use crate::engine::state::State;
use crate::metrics;
use crate::plan::predict::saved::Saved;
use crate::store::Store;

/// The document's name in the store. It carries its version inside.
const NAME: &str = "habits";
/// How often it is written while something is learned: it may have a megabyte, and habits are made in days.
const WRITE_INTERVAL: Duration = Duration::from_secs(600);

/// Takes up what was kept, if anything is guessed at all.
pub(crate) fn recall(state: &mut State, store: &Store) {
    if let Some(saved) = state.is_guessing().then(|| kept(store)).flatten() {
        state.recall_guesses(saved);
    }
}

/// What was kept, if there is something and it can be read.
fn kept(store: &Store) -> Option<Saved> {
    let kept = match store.get_state(NAME) {
        Ok(bytes) => Saved::from_bytes(&bytes?),
        Err(error) => Err(error.to_string()),
    };
    match kept {
        Ok(saved) => Some(saved),
        Err(reason) => {
            tracing::warn!(reason, "what was learned cannot be read, learning anew");
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
        let Some(saved) = self.state.keep_guesses() else { return };
        match saved.to_bytes() {
            Ok(bytes) => self.scribe.note(Note::State(NAME.to_owned(), bytes)),
            Err(error) => tracing::error!(%error, "what was learned could not be written"),
        }
    }

    /// When what was learned wants to be written.
    pub(crate) fn habits_due(&self) -> Option<Tick> {
        self.state.guesses_changed().then(|| self.habits_kept.after(WRITE_INTERVAL))
    }

    /// Shows how habits do.
    pub(crate) fn gauge_habits(&self) {
        let seen = self.state.predictions(self.gauged);
        for row in &seen.habits {
            metrics::predict::habit(row.kind, row.acts, row.score.moves.share());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use crate::plan::predict::saved::Learned;
    use crate::plan::predict::shadow::Shadow;

    #[test]
    fn what_was_learned_is_found_again_and_what_cannot_be_read_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, _) = Store::open(&StoreConfig::at(folder.path()), 16).expect("it opens");
        assert_eq!(kept(&store), None);
        let saved = Saved::of(Learned { leads: [Some(7), None], ..Learned::default() }, &Shadow::default());
        let bytes = saved.to_bytes().expect("written");
        store.put_state(NAME, &bytes).expect("written");
        assert_eq!(kept(&store), Some(saved));
        let newer = String::from_utf8(bytes).expect("text").replacen("\"version\":1", "\"version\":2", 1);
        for bad in [newer.as_bytes(), b"{}", b"not even json", b""] {
            store.put_state(NAME, bad).expect("written");
            assert_eq!(kept(&store), None, "{bad:?}");
        }
    }
}
