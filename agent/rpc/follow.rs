//! Following the node's state: a snapshot or what was missed, then what happens. One who reads too slowly is told to resync and
//! starts anew; the engine's buffers are bounded, and it waits for nobody.

use std::collections::VecDeque;

use futures_util::Stream;
use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::handle::Follow;
use tierd_cache::engine::view::{Change, Changed, Position, StateView, Told};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use crate::rpc::caller::{ANSWER_WAIT, answer};
use crate::rpc::pb::watch_response::Update;
use crate::rpc::{convert, occurrence, pb};

/// Models in one part of a snapshot: some 100 KB.
const PART_MODELS_MAX: usize = 1000;

/// Adds to a node what the engine does not know of it.
pub(crate) trait Complete: Send + Sync + 'static {
    /// The whole node.
    fn complete(&self, view: &StateView) -> impl Future<Output = pb::Node> + Send;
}

/// One who follows.
struct Walk<C> {
    engine: EngineHandle,
    complete: C,
    /// What is to be told before anything else.
    ready: VecDeque<Update>,
    live: Receiver<Told>,
}

/// The steps of one who follows: everything from `since` on, or from now.
///
/// # Errors
///
/// The engine shuts down.
pub(crate) async fn steps<C: Complete>(
    engine: EngineHandle,
    complete: C,
    since: Option<Position>,
) -> Result<impl Stream<Item = Result<pb::WatchResponse, Status>> + Send + 'static, Status> {
    let follow = answer(ANSWER_WAIT, engine.follow(since)).await?;
    let mut ready = VecDeque::new();
    if since.is_some() && follow.snapshot.is_some() {
        ready.push_back(resync("what was told after the token is partly forgotten, or of another run".to_owned()));
    }
    let live = begin(follow, &complete, &mut ready).await;
    let walk = Walk { engine, complete, ready, live };
    Ok(futures_util::stream::unfold(walk, |mut walk| async {
        let update = walk.next().await?;
        Some((update.map(|update| pb::WatchResponse { update: Some(update) }), walk))
    }))
}

/// What comes first, and where the rest comes from.
async fn begin<C: Complete>(follow: Follow, complete: &C, ready: &mut VecDeque<Update>) -> Receiver<Told> {
    if let Some(view) = &follow.snapshot {
        ready.extend(parts(view, complete.complete(view).await, follow.at).into_iter().map(Update::Snapshot));
    }
    ready.extend(follow.past.iter().map(told));
    follow.live
}

impl<C: Complete> Walk<C> {
    async fn next(&mut self) -> Option<Result<Update, Status>> {
        if let Some(update) = self.ready.pop_front() {
            return Some(Ok(update));
        }
        match self.live.recv().await {
            Ok(news) => Some(Ok(told(&news))),
            Err(RecvError::Lagged(lost)) => Some(self.anew(lost).await),
            Err(RecvError::Closed) => None,
        }
    }

    async fn anew(&mut self, lost: u64) -> Result<Update, Status> {
        let follow = answer(ANSWER_WAIT, self.engine.follow(None)).await?;
        self.live = begin(follow, &self.complete, &mut self.ready).await;
        Ok(resync(format!("this watcher read too slowly and lost {lost} messages")))
    }
}

fn resync(reason: String) -> Update {
    Update::Resync(pb::Resync { reason })
}

/// A snapshot in parts. The node and its flights are in the first, the token in the last.
fn parts(view: &StateView, node: pb::Node, at: Position) -> Vec<pb::Snapshot> {
    let row = |(model, bytes, tier): &(tierd_cache::ids::ModelKey, u64, tierd_cache::engine::view::Tier)| {
        pb::Residence { model: model.to_string(), bytes: *bytes, tier: pb::Tier::from(*tier).into() }
    };
    let mut parts: Vec<pb::Snapshot> = view
        .models
        .chunks(PART_MODELS_MAX)
        .map(|models| pb::Snapshot { more: true, models: models.iter().map(row).collect(), ..Default::default() })
        .collect();
    if parts.is_empty() {
        parts.push(pb::Snapshot::default());
    }
    let (first, last) = (0, parts.len() - 1);
    parts[first].node = Some(node);
    parts[first].flights = view.flights.iter().map(Into::into).collect();
    parts[last].more = false;
    parts[last].resume_token = occurrence::place(at);
    parts
}

fn told(news: &Told) -> Update {
    match news {
        Told::Happened(happened, at) => {
            Update::Occurrence(pb::Occurrence { resume_token: occurrence::place(*at), ..happened.into() })
        }
        Told::Changed(changed) => Update::Change(changed.into()),
    }
}

impl From<&Changed> for pb::Change {
    fn from(changed: &Changed) -> Self {
        use pb::change::What;
        let what = match &changed.what {
            Change::Flight { flight, began } => What::Flight(pb::FlightChange {
                flight: Some((&**flight).into()),
                began: *began,
                ended: flight.ended.is_some(),
            }),
            Change::Pressure { tier, bytes, source } => What::Pressure(pb::PressureChange {
                tier: pb::Tier::from(*tier).into(),
                pressed: bytes.is_some(),
                bytes: bytes.unwrap_or(0),
                source: (*source).to_owned(),
            }),
            Change::Vram { models, blob, loaded } => {
                What::Vram(pb::VramChange { models: convert::keys(models), blob: blob.to_string(), loaded: *loaded })
            }
        };
        Self { resume_token: occurrence::place(changed.at), at: Some(changed.wall.into()), what: Some(what) }
    }
}
