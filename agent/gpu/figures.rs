//! Devices and what workers have on them, as they were a moment ago: for answers that must not wait for a driver. New figures are
//! fetched beside the answer that asks for them, one fetch at a time, and never while nobody asks.

use std::sync::Arc;
use std::time::Duration;

use tierd_cache::engine::EngineHandle;
use tierd_cache::vram::audit::{Audited, audit};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::GpuMeter;

/// Figures younger than this are told without looking again.
const FRESH: Duration = Duration::from_secs(1);
/// Figures younger than this are told while new ones are fetched. Older ones say nothing: then the new ones are waited for.
const USABLE: Duration = Duration::from_secs(10);
/// Longest wait for new figures, where there are none that can be told.
const ANSWER_WAIT: Duration = Duration::from_millis(100);

/// What is known of all devices.
#[derive(Debug)]
pub struct Figures {
    /// The devices, those without any memory left out.
    pub devices: Vec<Audited>,
    /// How the driver is asked, in words.
    pub detail: String,
    at: Instant,
}

impl Figures {
    /// Their age.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

/// Tells the last figures. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Devices {
    engine: EngineHandle,
    gpus: GpuMeter,
    told: watch::Sender<Option<Arc<Figures>>>,
    looking: Arc<Semaphore>,
}

impl Devices {
    /// Asks this engine for workers, and these GPUs.
    #[must_use]
    pub fn new(engine: EngineHandle, gpus: GpuMeter) -> Self {
        Self { engine, gpus, told: watch::channel(None).0, looking: Arc::new(Semaphore::new(1)) }
    }

    /// The last figures, at most some seconds old while somebody asks; `None` if none came in time.
    pub async fn figures(&self) -> Option<Arc<Figures>> {
        let last = self.told.borrow().clone();
        let age = last.as_ref().map(|figures| figures.age());
        if age.is_some_and(|age| age < FRESH) {
            return last;
        }
        let mut told = self.told.subscribe();
        told.borrow_and_update();
        self.look();
        if age.is_some_and(|age| age < USABLE) {
            return last;
        }
        // Too late is no mistake: who asks again will have them.
        let _ = tokio::time::timeout(ANSWER_WAIT, told.changed()).await;
        self.told.borrow().clone()
    }

    /// Starts a look, unless one is under way.
    fn look(&self) {
        let Ok(turn) = self.looking.clone().try_acquire_owned() else { return };
        let devices = self.clone();
        tokio::spawn(async move {
            let (workers, seen) = tokio::join!(devices.engine.workers(), devices.gpus.seen());
            // An engine that has ended has no workers.
            let mut rows = audit(&workers.unwrap_or_default(), &seen.gpus);
            rows.retain(|row| row.total > 0);
            let figures = Figures { devices: rows, detail: seen.detail(), at: Instant::now() };
            devices.told.send_replace(Some(Arc::new(figures)));
            drop(turn);
        });
    }
}
