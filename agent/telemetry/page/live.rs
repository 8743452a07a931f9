//! Tells all who look the same snapshot: one task asks the engine at most four times a second, and only while somebody looks.
//! A slow looker misses snapshots and delays nobody.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tierd_cache::engine::EngineHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::snapshot::Watcher;
use crate::comfy::bridge::Seen;
use crate::gpu::Devices;

/// Most who look at once: a handful of tabs. Each holds a connection of the listener, which has 32.
pub(super) const LOOKERS_MAX: usize = 8;
/// Shortest time between two snapshots.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long one look lasts before the browser must ask again: less than the listener gives a connection, so that a dead looker is
/// noticed like any other silent connection.
const LOOK_TIME_MAX: Duration = Duration::from_secs(9);
/// When the browser asks again.
pub(super) const RETRY: Duration = Duration::from_millis(250);
/// Longest wait for a first snapshot.
const FIRST_WAIT: Duration = Duration::from_secs(2);

/// What the page is drawn from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The engine.
    pub engine: EngineHandle,
    /// Devices as their driver has them.
    pub devices: Devices,
    /// ComfyUI's servers as the bridge has them.
    pub seen: Arc<Seen>,
}

/// The page's end of the daemon. Knows nothing until the store is open.
#[derive(Debug)]
pub struct Live {
    sources: OnceLock<Sources>,
    slots: Arc<Semaphore>,
    told: watch::Sender<Arc<str>>,
    /// Whether the task runs. Held for a moment by who comes and by the task when it wants to go.
    running: Mutex<bool>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            sources: OnceLock::new(),
            slots: Arc::new(Semaphore::new(LOOKERS_MAX)),
            told: watch::channel("".into()).0,
            running: Mutex::new(false),
        }
    }
}

/// What came of wanting to look.
pub(super) enum Look {
    /// Here is what there is to see.
    At(Told),
    /// There is nothing to see yet.
    NotYet,
    /// Too many look.
    TooMany,
}

impl Live {
    /// The store is open. Counts once.
    pub fn opened(&self, sources: Sources) {
        // A second engine would be a mistake of the caller; the first one stays.
        let _ = self.sources.set(sources);
    }

    /// Begins to look; starts the task if nobody looked before.
    pub(super) fn look(self: &Arc<Self>) -> Look {
        let Some(sources) = self.sources.get() else { return Look::NotYet };
        let Ok(slot) = self.slots.clone().try_acquire_owned() else { return Look::TooMany };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let told = self.told.subscribe();
        if !std::mem::replace(&mut *running, true) {
            tokio::spawn(tell(self.clone(), sources.clone()));
        }
        Look::At(Told { told, seen: false, end: Instant::now() + LOOK_TIME_MAX, _slot: slot })
    }

    /// Whether the task may go: nobody looks. Who looks next starts another, and must not be shown what is old by then.
    fn is_left(&self) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.told.receiver_count() > 0 {
            return false;
        }
        self.stop(&mut running);
        true
    }

    fn stop(&self, running: &mut bool) {
        *running = false;
        self.told.send_replace("".into());
    }
}

/// The task: looks at the engine until nobody looks at it.
async fn tell(live: Arc<Live>, sources: Sources) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watcher = Watcher::new(sources);
    loop {
        ticks.tick().await;
        if live.is_left() {
            return;
        }
        match watcher.look().await {
            Ok(Some(json)) => drop(live.told.send_replace(json.into())),
            Ok(None) => {}
            Err(fault) => {
                tracing::debug!(%fault, "the status page has nothing to show");
                live.stop(&mut live.running.lock().unwrap_or_else(PoisonError::into_inner));
                return;
            }
        }
    }
}

/// One who looks.
pub(super) struct Told {
    told: watch::Receiver<Arc<str>>,
    seen: bool,
    end: Instant,
    _slot: OwnedSemaphorePermit,
}

impl Told {
    /// The present snapshot, if there is one soon.
    pub(super) async fn first(&mut self) -> Option<Arc<str>> {
        let there = tokio::time::timeout(FIRST_WAIT, self.told.wait_for(|json| !json.is_empty()));
        Some(there.await.ok()?.ok()?.clone())
    }

    /// The present snapshot at first, then each newer one; none when this look is over.
    pub(super) async fn next(&mut self) -> Option<Arc<str>> {
        loop {
            if std::mem::replace(&mut self.seen, true) {
                tokio::time::timeout_at(self.end, self.told.changed()).await.ok()?.ok()?;
            }
            let json = self.told.borrow_and_update().clone();
            if !json.is_empty() {
                return Some(json);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(live: &Arc<Live>) -> Told {
        let slot = live.slots.clone().try_acquire_owned().expect("a slot");
        Told { told: live.told.subscribe(), seen: false, end: Instant::now() + LOOK_TIME_MAX, _slot: slot }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_shows_what_is_then_what_changes_and_ends_by_itself() {
        let live = Arc::new(Live::default());
        live.told.send_replace("1".into());
        let mut told = looked(&live);
        assert_eq!(told.next().await.as_deref(), Some("1"));
        live.told.send_replace("2".into());
        live.told.send_replace("3".into());
        assert_eq!(told.next().await.as_deref(), Some("3"), "a slow looker misses what is old");
        let begun = Instant::now();
        assert_eq!(told.next().await, None);
        assert_eq!(begun.elapsed(), LOOK_TIME_MAX);
    }

    #[tokio::test]
    async fn the_task_goes_only_when_nobody_looks_and_leaves_nothing_old_behind() {
        let live = Arc::new(Live::default());
        *live.running.lock().expect("not poisoned") = true;
        live.told.send_replace("old".into());
        let told = looked(&live);
        assert!(!live.is_left());
        drop(told);
        assert!(live.is_left());
        assert!(!*live.running.lock().expect("not poisoned") && live.told.borrow().is_empty());
    }

    #[tokio::test]
    async fn before_the_store_is_open_there_is_nothing_to_see() {
        assert!(matches!(Arc::new(Live::default()).look(), Look::NotYet));
    }
}
