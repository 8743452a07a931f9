//! Publishes the outlook when something changed, and compares what was told with what came.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Tick;
use crate::engine::outlook::{Outlook, Shelf};
use crate::engine::page_cache::PageCache;
use crate::engine::run::Engine;
use crate::engine::view::{EnsureReady, EnsureRequest, Priority};
use crate::ids::EnsureId;
use crate::metrics;
use crate::plan::calibration::{Calibration, Class, Prediction, waited};

/// Shortest time between two outlooks while bytes move: what a scheduler reads is at most this old.
const OUTLOOK_INTERVAL: Duration = Duration::from_millis(25);
/// Shortest time between two outlooks of a changed shelf, for each model on it: some twenty times what it costs to list one.
/// So a node with few models answers for what it just did, and one with many does not spend its time on lists.
const SHELF_INTERVAL_PER_MODEL: Duration = Duration::from_micros(5);
/// Predictions that wait for their end; as many as there may be callers.
const TOLD_MAX: usize = 4096;

/// What the loop holds for estimates.
#[derive(Debug)]
pub(crate) struct Forecast {
    published: watch::Sender<Arc<Outlook>>,
    shelf: Arc<Shelf>,
    calibration: Arc<Calibration>,
    page_cache: Arc<PageCache>,
    /// Whether something moved, and whether what is stored changed, since the last outlook.
    pub(crate) moved: bool,
    pub(crate) reshaped: bool,
    at: Tick,
    told: HashMap<EnsureId, (Prediction, usize)>,
}

impl Forecast {
    /// Knows nothing yet.
    pub(crate) fn new(page_cache: PageCache) -> Self {
        Self {
            published: watch::channel(Arc::default()).0,
            shelf: Arc::default(),
            calibration: Arc::default(),
            page_cache: Arc::new(page_cache),
            moved: true,
            reshaped: true,
            at: Tick::default(),
            told: HashMap::new(),
        }
    }

    /// Where outlooks appear.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Outlook>> {
        self.published.subscribe()
    }
}

impl Engine {
    /// Publishes an outlook if something changed and the last one is old enough. Returns when it wants to be asked again.
    pub(crate) fn publish_outlook(&mut self) -> Option<Tick> {
        let now = self.clock.now();
        let interval = match (self.forecast.reshaped, self.forecast.moved) {
            (true, _) => SHELF_INTERVAL_PER_MODEL.saturating_mul(self.forecast.shelf.models.len() as u32),
            (false, true) => OUTLOOK_INTERVAL,
            (false, false) => return None,
        };
        let due = self.forecast.at.after(interval);
        if now < due {
            return Some(due);
        }
        self.publish_now(now);
        None
    }

    fn publish_now(&mut self, now: Tick) {
        if std::mem::take(&mut self.forecast.reshaped) {
            self.forecast.shelf = Arc::new(self.state.shelf(now));
        }
        self.forecast.moved = false;
        self.forecast.at = now;
        let outlook = self.state.outlook(
            self.forecast.shelf.clone(),
            self.forecast.calibration.clone(),
            self.forecast.page_cache.clone(),
        );
        self.forecast.published.send_replace(Arc::new(outlook));
    }

    /// Notes what would have been told to this caller, to compare it with what comes.
    pub(crate) fn foretell(&mut self, id: EnsureId, request: &EnsureRequest) {
        if request.priority != Priority::Demand || self.forecast.told.len() >= TOLD_MAX {
            return;
        }
        let outlook = self.forecast.published.borrow().clone();
        let estimate = outlook.estimate(&request.models, request.target);
        if estimate.obstacles.is_empty() {
            self.forecast.told.insert(id, (estimate.prediction, estimate.models.len()));
        }
    }

    /// A caller's set is ready: how true was what would have been told?
    pub(crate) fn came_true(&mut self, id: EnsureId, ready: &EnsureReady) {
        let Some((told, models)) = self.forecast.told.remove(&id) else { return };
        let actual = ready.elapsed.as_secs_f64();
        let error = Arc::make_mut(&mut self.forecast.calibration).compare(&told, actual);
        metrics::estimate_error(error);
        metrics::estimate_compared(told.class, told.p50, waited(actual));
        if told.class == Class::Hit {
            self.state.looked(models, ready.elapsed);
        }
        self.forecast.moved = true;
    }

    /// A caller ended otherwise: there is nothing to compare.
    pub(crate) fn came_to_nothing(&mut self, id: EnsureId) {
        self.forecast.told.remove(&id);
    }
}
