//! Measures VRAM when somebody asks for the metrics, never by itself: an idle daemon stays idle.

use std::sync::{Arc, OnceLock};

use tierd_cache::engine::EngineHandle;
use tierd_cache::metrics;
use tierd_cache::vram::audit::audit;

use super::health::ANSWER_WAIT;
use crate::gpu::GpuMeter;

/// The GPUs, and the engine once it runs. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct VramMeter {
    gpus: GpuMeter,
    engine: Arc<OnceLock<EngineHandle>>,
}

impl VramMeter {
    /// Asks these GPUs.
    #[must_use]
    pub fn new(gpus: GpuMeter) -> Self {
        Self { gpus, engine: Arc::default() }
    }

    /// The engine runs. Counts once.
    pub fn opened(&self, engine: EngineHandle) {
        // A second engine would be a mistake of the caller; the first one stays.
        let _ = self.engine.set(engine);
    }

    /// Measures, and records it in the metrics. Does nothing before the engine runs, or if it does not answer in time.
    pub async fn measure(&self) {
        let Some(engine) = self.engine.get() else { return };
        let Ok(Ok(workers)) = tokio::time::timeout(ANSWER_WAIT, engine.workers()).await else { return };
        let seen = self.gpus.seen().await;
        for (number, row) in (0..).zip(audit(&workers, &seen.gpus)) {
            metrics::vram::device(number, row.total, row.used, row.claimed);
        }
    }
}
