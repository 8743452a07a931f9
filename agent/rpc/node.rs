//! `NodeService`: how the node is, and what happens on it.

use std::collections::VecDeque;

use futures_util::Stream;
use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::handle::Watch;
use tierd_cache::engine::view::{NodeView, Occurrence, StateView};
use tierd_cache::ids::Seq;
use tierd_cache::vram::audit::{Audited, audit};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::activity::ActivityMeter;
use crate::gpu::GpuMeter;
use crate::rpc::cache::until_stopped;
use crate::rpc::caller::{ANSWER_WAIT, answer};
use crate::rpc::fault::invalid;
use crate::rpc::{follow, occurrence, pb};

/// The service. One for each listener, all speak to one engine.
pub(crate) struct Node {
    pub(crate) engine: EngineHandle,
    pub(crate) gpus: GpuMeter,
    pub(crate) activity: ActivityMeter,
    /// Ends streams when the daemon drains.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl pb::node_service_server::NodeService for Node {
    type WatchStream = BoxStream<pb::WatchResponse>;

    async fn get_node(&self, _: Request<pb::GetNodeRequest>) -> Result<Response<pb::GetNodeResponse>, Status> {
        let (node, seen) = tokio::join!(answer(ANSWER_WAIT, self.engine.node()), self.gpus.seen());
        let node = node?;
        Ok(Response::new(pb::GetNodeResponse { node: Some(whole(&node, &seen, &self.activity)) }))
    }

    async fn get_predictions(
        &self,
        _: Request<pb::GetPredictionsRequest>,
    ) -> Result<Response<pb::GetPredictionsResponse>, Status> {
        let seen = answer(ANSWER_WAIT, self.engine.predictions()).await?;
        Ok(Response::new((&seen).into()))
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        if request.follow_state {
            if request.past_only {
                return Err(invalid("past_only", "who follows the node's state goes on: leave it out"));
            }
            let since = occurrence::position(&request.resume_token)?;
            let complete = Whole { gpus: self.gpus.clone(), activity: self.activity.clone() };
            let steps = follow::steps(self.engine.clone(), complete, since).await?;
            return Ok(Response::new(Box::pin(until_stopped(steps, self.stop.clone()))));
        }
        let since = occurrence::seq(&request.resume_token)?;
        let watch = answer(ANSWER_WAIT, self.engine.watch(since)).await?;
        Ok(Response::new(Box::pin(until_stopped(steps(watch, since, request.past_only), self.stop.clone()))))
    }
}

/// A node with what the engine does not know of it: devices as their driver has them, and ComfyUI's queues.
fn whole(node: &NodeView, seen: &crate::gpu::Seen, activity: &ActivityMeter) -> pb::Node {
    let mut message = pb::Node::from(node);
    add_devices(&mut message, &audit(&node.workers, &seen.gpus));
    message.driver_detail = seen.detail();
    message.activity = Some(activity.told(node));
    message
}

/// Makes a snapshot's node whole.
struct Whole {
    gpus: GpuMeter,
    activity: ActivityMeter,
}

impl follow::Complete for Whole {
    async fn complete(&self, view: &StateView) -> pb::Node {
        whole(&view.node, &self.gpus.seen().await, &self.activity)
    }
}

/// Devices, and the tier that they are together. Where the driver was asked, its figures count.
pub(crate) fn add_devices(node: &mut pb::Node, rows: &[Audited]) {
    node.devices = rows.iter().map(Into::into).collect();
    node.tiers.retain(|tier| tier.tier() != pb::Tier::Vram);
    if rows.is_empty() {
        return;
    }
    let sum = |of: fn(&Audited) -> u64| rows.iter().map(of).fold(0, u64::saturating_add);
    let by_driver = rows.iter().all(|row| row.by_driver);
    let tier = pb::TierStatus {
        tier: pb::Tier::Vram.into(),
        capacity_bytes: sum(|row| row.total),
        used_bytes: sum(|row| row.used),
        reserved_bytes: 0,
        held_bytes: sum(|row| row.claimed),
        models: sum(|row| row.models),
        mode: if by_driver { "driver" } else { "reported" }.to_owned(),
        detail: String::new(),
    };
    node.tiers.insert(0, tier);
}

struct Walk {
    gap: Option<&'static str>,
    past: VecDeque<Occurrence>,
    live: Option<tokio::sync::broadcast::Receiver<Occurrence>>,
    last: Option<Seq>,
}

/// The steps of a watch: a resync if something is lost, the past, then what happens.
fn steps(
    watch: Watch,
    since: Option<Seq>,
    past_only: bool,
) -> impl Stream<Item = Result<pb::WatchResponse, Status>> + Send + 'static {
    let gap = watch.gap.then_some("what happened after the token is partly forgotten");
    let live = (!past_only).then_some(watch.live);
    let walk = Walk { gap, past: watch.past.into(), live, last: since };
    futures_util::stream::unfold(walk, |mut walk| async {
        let update = walk.next().await?;
        Some((Ok(pb::WatchResponse { update: Some(update) }), walk))
    })
}

impl Walk {
    async fn next(&mut self) -> Option<pb::watch_response::Update> {
        use pb::watch_response::Update;
        if let Some(reason) = self.gap.take() {
            return Some(Update::Resync(pb::Resync { reason: reason.to_owned() }));
        }
        loop {
            let occurrence = match self.past.pop_front() {
                Some(occurrence) => occurrence,
                None => match self.live.as_mut()?.recv().await {
                    Ok(occurrence) => occurrence,
                    Err(RecvError::Lagged(lost)) => {
                        let reason = format!("this watcher read too slowly and lost {lost} occurrences");
                        return Some(Update::Resync(pb::Resync { reason }));
                    }
                    Err(RecvError::Closed) => return None,
                },
            };
            // The engine subscribes before it copies the past: what is in both is told once.
            if self.last.is_none_or(|last| occurrence.seq > last) {
                self.last = Some(occurrence.seq);
                return Some(Update::Occurrence((&occurrence).into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use tierd_cache::clock::Wall;
    use tierd_cache::engine::view::What;
    use tokio::sync::broadcast;

    fn occurrence(seq: u64) -> Occurrence {
        Occurrence { seq: Seq(seq), at: Wall(seq), what: What::Started { blobs: 0, bytes: 0 } }
    }

    async fn words(stream: impl Stream<Item = Result<pb::WatchResponse, Status>>) -> Vec<String> {
        let word = |step: Result<pb::WatchResponse, Status>| match step.expect("no status").update.expect("set") {
            pb::watch_response::Update::Occurrence(occurrence) => occurrence.resume_token,
            pb::watch_response::Update::Resync(_) => "resync".to_owned(),
            other => panic!("{other:?} without being asked for"),
        };
        stream.map(word).collect().await
    }

    #[tokio::test]
    async fn a_gap_is_told_before_the_past_and_nothing_is_told_twice() {
        let (send, live) = broadcast::channel(4);
        for seq in [8, 9] {
            send.send(occurrence(seq)).expect("a receiver");
        }
        drop(send);
        let watch = Watch { past: vec![occurrence(7), occurrence(8)], gap: true, live };
        assert_eq!(words(steps(watch, Some(Seq(3)), false)).await, ["resync", "7", "8", "9"]);
    }

    #[tokio::test]
    async fn a_watcher_that_lags_is_told_and_goes_on() {
        let (send, live) = broadcast::channel(2);
        for seq in 1..=5 {
            send.send(occurrence(seq)).expect("a receiver");
        }
        drop(send);
        let watch = Watch { past: vec![], gap: false, live };
        assert_eq!(words(steps(watch, None, false)).await, ["resync", "4", "5"]);
    }

    #[tokio::test]
    async fn past_only_ends_after_the_past() {
        let (_send, live) = broadcast::channel(2);
        let watch = Watch { past: vec![occurrence(1)], gap: false, live };
        assert_eq!(words(steps(watch, None, true)).await, ["1"]);
    }
}
