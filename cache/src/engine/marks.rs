//! Marks follow the catalog: what could be had is shown in the models folder, if that is wanted. One change at a time, and of
//! several that wait only the last.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::run::Engine;
use crate::ids::ModelKey;
use crate::store::{MARKS_MAX, Marked, Store};

/// The marks as the loop knows them.
#[derive(Debug)]
pub(crate) struct Marks {
    wanted: bool,
    /// Models that were listed when marks were set last; none before the first time.
    listed: Option<BTreeSet<ModelKey>>,
    /// The number of the last change; one that is older when its turn comes is passed over.
    newest: Arc<AtomicU64>,
    turn: Arc<Mutex<()>>,
    /// Whether the last change was cut short.
    failed: Arc<AtomicBool>,
}

impl Marks {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, listed: None, newest: Arc::default(), turn: Arc::default(), failed: Arc::default() }
    }
}

impl Engine {
    /// Makes the marks what the catalog says; removes those of an earlier run if they are off.
    pub(crate) fn set_marks(&mut self) {
        let listed = if self.marks.wanted { self.state.listed() } else { BTreeSet::new() };
        if self.marks.listed.as_ref() == Some(&listed) && !self.marks.failed.swap(false, Ordering::Relaxed) {
            return;
        }
        self.marks.listed = Some(listed.clone());
        let models = self.marks.wanted.then_some(listed);
        let number = self.marks.newest.fetch_add(1, Ordering::Relaxed) + 1;
        let (store, newest, turn) = (self.store.clone(), self.marks.newest.clone(), self.marks.turn.clone());
        let failed = self.marks.failed.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            if newest.load(Ordering::Relaxed) == number {
                failed.store(!set(&store, models), Ordering::Relaxed);
            }
        });
    }
}

/// Says whether all went well.
fn set(store: &Store, models: Option<BTreeSet<ModelKey>>) -> bool {
    match store.set_marks(models) {
        Ok(Marked { made, removed, left_out }) => {
            if left_out > 0 {
                tracing::warn!(
                    left_out,
                    max = MARKS_MAX,
                    "models without a mark: too many, or other files are in the way"
                );
            }
            if made + removed > 0 {
                tracing::info!(made, removed, "models that could be had are marked in the models folder");
            }
            true
        }
        Err(error) => {
            tracing::warn!(%error, "marks could not all be set, the next listing tries again");
            false
        }
    }
}
