//! The fleet: this node answers a NATS server's clients, tells what it holds and what happens. Optional, and beside the engine: a
//! node that cannot reach NATS works on alone and says so. Holds no state of the engine and decides nothing.
//!
//! | subject | what |
//! | --- | --- |
//! | `<prefix>.readiness` | a question to all nodes; each answers to the reply subject |
//! | `<prefix>.events.<node>.<kind>` | what happens here, as it happens |
//! | key-value bucket `<prefix>_nodes`, key `<node>` | what the node holds; gone when the node is |

pub mod ask;
mod inventory;
mod link;
pub mod message;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use tierd_cache::config::Secret;
use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::view::Occurrence;
use tierd_cache::metrics;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::fleet::link::Link;
use crate::fleet::message::{Answer, QUESTION_BYTES_MAX, Question};
use crate::rpc::pb;

/// Questions that may wait for this node. Each takes microseconds; what is above comes from a flood and is lost.
const QUESTIONS_MAX: usize = 1024;
/// Longest wait for NATS to take one message: a slow server must not hold up the next answer.
const PUBLISH_WAIT: Duration = Duration::from_secs(1);
/// How many inventories may be missed before the bucket forgets the node.
const MISSED_MAX: u32 = 3;

/// How a node takes part in a fleet.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// NATS servers, `nats://host:4222` or `tls://host:4222`; any of them will do.
    pub servers: Vec<String>,
    /// A file with NATS credentials (JWT and key).
    pub credentials: Option<std::path::PathBuf>,
    /// A token.
    pub token: Option<Secret>,
    /// PEM file with the authorities to trust, beside the system's.
    pub ca: Option<std::path::PathBuf>,
    /// What the node is called: letters, digits, `-` and `_`.
    pub node: String,
    /// Where schedulers reach the node's gRPC; empty if they need not.
    pub address: String,
    /// Region, GPU, pool and whatever else a scheduler filters by.
    pub labels: BTreeMap<String, String>,
    /// First part of every subject.
    pub prefix: String,
    /// How often the inventory is told.
    pub inventory_interval: Duration,
}

/// What the fleet asks of a node. The engine's handle, or a stand-in.
pub trait Node: Send + Sync + 'static {
    /// How soon a set could be ready; the text says what is wrong with the question.
    ///
    /// # Errors
    ///
    /// In words.
    fn readiness(
        &self,
        question: &Question,
    ) -> impl Future<Output = Result<pb::EstimateReadinessResponse, String>> + Send;

    /// What the node holds.
    fn inventory(&self) -> impl Future<Output = message::Inventory> + Send;

    /// What happens from now on.
    fn events(&self) -> impl Future<Output = Option<broadcast::Receiver<Occurrence>>> + Send;
}

/// Takes part until `stop`. Never fails: what does not work is logged, counted and tried again.
pub async fn run<N: Node>(config: FleetConfig, node: Arc<N>, stop: CancellationToken) {
    let link = match Link::open(&config).await {
        Ok(link) => link,
        Err(error) => {
            tracing::error!(%error, "this node takes no part in the fleet: mend [fleet] and start again");
            return;
        }
    };
    tracing::info!(node = config.node, servers = ?config.servers, "taking part in the fleet");
    tokio::select! {
        () = stop.cancelled() => {}
        () = answer(&config, &link, node.as_ref()) => {}
        () = tell_inventory(&config, &link, node.as_ref()) => {}
        () = tell_events(&config, &link, node.as_ref()) => {}
    }
    link.close(&config).await;
}

/// Answers questions, one after the other: each takes microseconds.
async fn answer<N: Node>(config: &FleetConfig, link: &Link, node: &N) {
    let subject = format!("{}.readiness", config.prefix);
    loop {
        let Ok(mut questions) = link.client.subscribe(subject.clone()).await else {
            link.until_connected().await;
            continue;
        };
        while let Some(question) = questions.next().await {
            let Some(reply) = question.reply else { continue };
            let Some(answer) = reply_to(config, node, &question.payload).await else { continue };
            publish(&link.client, reply.to_string(), answer).await;
        }
        // The subscription ends only with the connection's task.
        link.until_connected().await;
    }
}

/// The answer to one question; `None` if the question is not for this node.
async fn reply_to<N: Node>(config: &FleetConfig, node: &N, payload: &[u8]) -> Option<Vec<u8>> {
    let answer = |estimate, error| Answer {
        node: config.node.clone(),
        address: config.address.clone(),
        labels: config.labels.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        estimate,
        error,
    };
    if payload.len() > QUESTION_BYTES_MAX {
        let text = format!("the question has {} bytes, at most {QUESTION_BYTES_MAX} are read", payload.len());
        return Some(answer(None, Some(text)).to_bytes());
    }
    let question: Question = match serde_json::from_slice(payload) {
        Ok(question) => question,
        Err(error) => return Some(answer(None, Some(format!("the question is not readable: {error}"))).to_bytes()),
    };
    let ours = question.labels.iter().all(|(key, value)| config.labels.get(key) == Some(value));
    if !ours {
        return None;
    }
    match node.readiness(&question).await {
        Ok(estimate) if question.is_late(&estimate) => None,
        Ok(estimate) => Some(answer(Some(estimate), None).to_bytes()),
        Err(text) => Some(answer(None, Some(text)).to_bytes()),
    }
}

/// Tells what the node holds: at once when NATS is there, then at intervals.
async fn tell_inventory<N: Node>(config: &FleetConfig, link: &Link, node: &N) {
    let mut bucket = None;
    loop {
        link.until_connected().await;
        if bucket.is_none() {
            let lifetime = config.inventory_interval * MISSED_MAX;
            bucket = link.bucket(&config.prefix, lifetime).await;
        }
        if let Some(store) = &bucket {
            let mut inventory = node.inventory().await;
            inventory.node = config.node.clone();
            inventory.address = config.address.clone();
            inventory.labels = config.labels.clone();
            let told = tokio::time::timeout(PUBLISH_WAIT, store.put(config.node.as_str(), inventory.to_bytes().into()));
            match told.await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the inventory could not be told");
                    // A server that was replaced has no bucket: it is made again.
                    bucket = None;
                }
                Err(_) => bucket = None,
            }
        }
        tokio::select! {
            () = tokio::time::sleep(config.inventory_interval) => {}
            () = link.reconnected() => bucket = None,
        }
    }
}

/// Tells what happens. What happens while NATS is away is not told later: the daemon's own Watch has it.
async fn tell_events<N: Node>(config: &FleetConfig, link: &Link, node: &N) {
    let Some(mut events) = node.events().await else { return std::future::pending().await };
    loop {
        let occurrence = match events.recv().await {
            Ok(occurrence) => occurrence,
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "the fleet was not told of some occurrences: NATS takes them too slowly");
                continue;
            }
            Err(RecvError::Closed) => return std::future::pending().await,
        };
        if !link.is_connected() {
            continue;
        }
        let (kind, body) = message::event(&occurrence);
        publish(&link.client, format!("{}.events.{}.{kind}", config.prefix, config.node), body).await;
    }
}

async fn publish(client: &Client, subject: String, body: Vec<u8>) {
    match tokio::time::timeout(PUBLISH_WAIT, client.publish(subject, body.into())).await {
        Ok(Ok(())) => metrics::fleet_message(),
        Ok(Err(error)) => tracing::debug!(%error, "NATS did not take a message"),
        Err(_) => tracing::debug!("NATS did not take a message in time"),
    }
}

impl Node for EngineHandle {
    async fn readiness(&self, question: &Question) -> Result<pb::EstimateReadinessResponse, String> {
        let (models, target) = question.checked(self.outlook().models_max())?;
        Ok((&self.estimate(&models, target).await).into())
    }

    async fn inventory(&self) -> message::Inventory {
        inventory::of(self).await
    }

    async fn events(&self) -> Option<broadcast::Receiver<Occurrence>> {
        self.watch(None).await.ok().map(|watch| watch.live)
    }
}
