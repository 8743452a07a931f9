//! The scheduler's side: ask once, take the best few answers.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::fleet::message::Question;

/// Most answers that are collected.
pub const ANSWERS_MAX: usize = 10_000;

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask over NATS: {0}")]
pub struct AskError(String);

/// One node's answer, as far as it is compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heard {
    /// The node.
    pub node: String,
    /// Where its gRPC is reached.
    pub address: String,
    /// The whole answer.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl Heard {
    /// Seconds until the set is ready there, one time in two; `None` if it cannot be.
    #[must_use]
    pub fn p50_seconds(&self) -> Option<f64> {
        let estimate = self.rest.get("estimate").filter(|estimate| !estimate.is_null())?;
        if estimate["obstacles"].as_array().is_none_or(|obstacles| !obstacles.is_empty()) {
            return None;
        }
        estimate["p50"].as_str()?.strip_suffix('s')?.parse().ok()
    }
}

/// Asks every node and returns the `best` of the answers that came `within`, the soonest first. Nodes that cannot do it come
/// last.
///
/// # Errors
///
/// NATS does not take the question. No answer is no error.
pub async fn ask(
    client: &Client,
    prefix: &str,
    question: &Question,
    within: Duration,
    best: usize,
) -> Result<Vec<Heard>, AskError> {
    let failed = |error: &dyn std::error::Error| AskError(error.to_string());
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
    let body = serde_json::to_vec(question).map_err(|error| failed(&error))?;
    let sent = client.publish_with_reply(format!("{prefix}.readiness"), inbox, body.into()).await;
    sent.map_err(|error| failed(&error))?;
    client.flush().await.map_err(|error| failed(&error))?;
    let deadline = Instant::now() + within;
    let mut heard: Vec<Heard> = Vec::new();
    while heard.len() < ANSWERS_MAX {
        let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.next()).await else { break };
        match serde_json::from_slice(&answer.payload) {
            Ok(answer) => heard.push(answer),
            Err(error) => tracing::warn!(%error, "an answer is unreadable"),
        }
    }
    heard.sort_by(|a, b| {
        let seconds = |heard: &Heard| heard.p50_seconds().unwrap_or(f64::INFINITY);
        seconds(a).total_cmp(&seconds(b)).then_with(|| a.node.cmp(&b.node))
    });
    heard.truncate(best);
    Ok(heard)
}
