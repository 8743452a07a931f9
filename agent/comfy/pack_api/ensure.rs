//! `POST ensure`: the engine's updates as one JSON object a line, up to exactly one end. A worker that leaves stops nothing: the
//! fetch goes on for whoever else wants the model, and for its own next try.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};
use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::view::{EnsureRequest, EnsureUpdate, Priority, Tier};
use tierd_cache::fault::Fault;
use tierd_cache::ids::ModelKey;
use tierd_cache::vram::WorkerId;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::PackApi;

/// Time between two lines of progress: ComfyUI's log shows them to a person.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

struct Walk {
    engine: EngineHandle,
    worker: WorkerId,
    model: ModelKey,
    updates: Option<mpsc::Receiver<EnsureUpdate>>,
    /// What ended it before it began.
    refused: Option<Fault>,
    deadline: Instant,
    stop: CancellationToken,
}

/// The lines of the answer.
pub(super) async fn lines(
    api: &PackApi,
    worker: WorkerId,
    model: ModelKey,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    let request = EnsureRequest {
        models: vec![model.clone()],
        priority: Priority::Demand,
        target: Tier::Nvme,
        cancel_on_drop: false,
        progress_interval: PROGRESS_INTERVAL,
        client: format!("worker {worker}"),
    };
    let asked = if api.comfy.gate {
        api.engine.ensure(request).await
    } else {
        Err(Fault::Cancelled { by: "the gate is off: set [comfy] gate = true".to_owned() })
    };
    let (updates, refused) = match asked {
        Ok(updates) => (Some(updates), None),
        Err(fault) => (None, Some(fault)),
    };
    let deadline = Instant::now() + api.comfy.gate_timeout;
    let walk = Walk { engine: api.engine.clone(), worker, model, updates, refused, deadline, stop: api.stop.clone() };
    futures_util::stream::unfold(walk, |mut walk| async {
        let line = walk.next().await?;
        Some((Ok(Bytes::from(format!("{line}\n"))), walk))
    })
}

impl Walk {
    /// The next line; none after the end.
    async fn next(&mut self) -> Option<Value> {
        if let Some(fault) = self.refused.take() {
            return Some(failed(&fault));
        }
        loop {
            let updates = self.updates.as_mut()?;
            let update = tokio::select! {
                biased;
                update = updates.recv() => update,
                () = tokio::time::sleep_until(self.deadline) => return self.end(&Fault::DeadlineExceeded),
                () = self.stop.cancelled() => None,
            };
            match update {
                Some(EnsureUpdate::Plan(_)) => {}
                Some(EnsureUpdate::Progress(progress)) => {
                    return Some(json!({ "progress": {
                        "done_bytes": progress.bytes_done,
                        "total_bytes": progress.bytes_total,
                        "bytes_per_second": progress.bytes_per_second,
                    }}));
                }
                Some(EnsureUpdate::Ready(ready)) => {
                    self.updates = None;
                    // From here to the worker's next report nobody else holds the file. An engine that is gone evicts nothing.
                    let _ = self.engine.worker_opens(self.worker.clone(), self.model.clone()).await;
                    let path = ready.models.first().map(|model| model.path.to_string_lossy().into_owned());
                    return Some(json!({ "ready": { "path": path.unwrap_or_default() }}));
                }
                Some(EnsureUpdate::Failed(failed)) => return self.end(&failed.fault),
                None => return self.end(&Fault::ShuttingDown),
            }
        }
    }

    fn end(&mut self, fault: &Fault) -> Option<Value> {
        self.updates = None;
        Some(failed(fault))
    }
}

fn failed(fault: &Fault) -> Value {
    json!({ "failed": { "kind": fault.kind(), "message": fault.to_string(), "advice": advice(fault) }})
}

/// What the person in front of ComfyUI can do.
fn advice(fault: &Fault) -> &'static str {
    match fault {
        Fault::NotFound { .. } => {
            "put the model into an origin, or choose another one; `tierd models` lists what there is"
        }
        Fault::NoRoom { .. } | Fault::DiskFull { .. } => {
            "make room on the node's disk: `tierd status` shows what holds it"
        }
        Fault::NoMemory { .. } => "free RAM on the node, or ask for the disk only",
        Fault::OriginUnavailable { .. } | Fault::Changed { .. } => {
            "queue the prompt again in a while; what was fetched is kept"
        }
        Fault::OriginDenied { .. } => "check the origin's credentials: `tierd doctor` tries them",
        Fault::Corrupt { .. } => "the origin's copy is damaged: upload it again with `tierd push`",
        Fault::DeadlineExceeded => "the fetch goes on: queue the prompt again later, or raise [comfy] gate_timeout",
        Fault::Busy { .. } | Fault::ShuttingDown => "queue the prompt again in a moment",
        Fault::Cancelled { .. } => "ask whoever stopped it; `tierd ensure` fetches it by hand",
        Fault::Invalid { .. } | Fault::Held { .. } | Fault::Store { .. } => {
            "see `tierd doctor` and the daemon's log on the node"
        }
    }
}
