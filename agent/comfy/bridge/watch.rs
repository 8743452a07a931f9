//! The watch over one server: holds its WebSocket, reads its queue when that changes, tells the engine what it will need, and
//! comes back after every restart. One task for each server; it ends when it is stopped, and takes its expectations along.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tierd_cache::engine::EngineHandle;
use tierd_cache::metrics;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{Server, ServerError, Socket};
use super::history::{self, HISTORY_BYTES_MAX, Outcome};
use super::queue::{self, Memory, QUEUE_BYTES_MAX, Queue};
use super::{Seen, ServerView};

/// First wait after a server could not be reached; doubles.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// Longest wait between two tries: a server that starts takes half a minute, and shall be seen when it listens.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often the queue is read where no WebSocket is allowed.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often the queue is read although nobody said that it changed: models that nobody knew may be listed by now.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// How long the queue of a server that is away is still believed: one that crashed comes back empty, one that hangs does not.
const BELIEVED: Duration = Duration::from_secs(30);
/// Shortest time between two readings: a client that queues a thousand prompts changes the queue a thousand times.
const READ_SPACING: Duration = Duration::from_millis(25);
/// Ended prompts that the history is asked for after one reading; of more, only that they left is known.
const HISTORIES_MAX: usize = 16;
/// Largest answer about the server itself.
const ABOUT_BYTES_MAX: usize = 1 << 20;

/// What a server says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
struct Stats {
    #[serde(default)]
    system: System,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct System {
    #[serde(default)]
    comfyui_version: String,
    #[serde(default)]
    argv: Vec<String>,
}

/// A watch that runs.
pub(super) struct Watch {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) server: Server,
    pub(super) engine: EngineHandle,
    pub(super) ram_ahead: u32,
    pub(super) seen: Arc<Seen>,
    pub(super) stop: CancellationToken,
    /// What is known of the prompts in the queue.
    pub(super) memory: Memory,
}

impl Watch {
    /// Watches until it is stopped.
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch() => {}
        }
        self.expect_nothing().await;
    }

    fn source(&self) -> String {
        format!("comfy:{}", self.name)
    }

    async fn watch(&mut self) {
        let mut wait = BACKOFF_MIN;
        let mut lost: Option<Instant> = None;
        loop {
            let since = Instant::now();
            let error = match self.visit().await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if self.seen.with(&self.name, |view| std::mem::replace(&mut view.up, false)) {
                tracing::warn!(server = %self.name, %error, "ComfyUI is away, its queue is believed for a while");
                lost = Some(Instant::now());
                wait = BACKOFF_MIN;
            } else {
                tracing::debug!(server = %self.name, %error, "ComfyUI does not answer");
            }
            self.seen.with(&self.name, |view| view.detail = error.to_string());
            if lost.is_some_and(|lost| lost.elapsed() >= BELIEVED) {
                lost = None;
                self.forget().await;
            }
            if since.elapsed() > BACKOFF_MAX {
                wait = BACKOFF_MIN;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    /// The server is away for too long: nothing of its queue is expected any more.
    async fn forget(&mut self) {
        self.memory.clear();
        self.seen.with(&self.name, |view| view.queue = Queue::default());
        self.expect_nothing().await;
    }

    async fn expect_nothing(&self) {
        // The engine may be gone already; then nobody expects anything.
        let _ = self.engine.expect(self.source(), Vec::new()).await;
        let _ = self.engine.expect_models(self.url.clone(), Vec::new()).await;
    }

    /// Connects, learns who answers, and follows its queue until it goes away.
    async fn visit(&mut self) -> Result<std::convert::Infallible, ServerError> {
        let stats: Stats = self.server.json("/system_stats", ABOUT_BYTES_MAX).await?;
        // Older servers do not have it.
        let folders: HashMap<String, Vec<String>> =
            self.server.json("/internal/folder_paths", ABOUT_BYTES_MAX).await.unwrap_or_default();
        let client =
            format!("tierd-{}-{}", std::process::id(), self.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        let socket = match self.server.socket(&client).await {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::info!(server = %self.name, %error, "no WebSocket there, its queue is read every second");
                None
            }
        };
        let System { comfyui_version: version, argv } = stats.system;
        tracing::info!(server = %self.name, version, polling = socket.is_none(), "ComfyUI answers");
        self.seen.with(&self.name, |view| {
            view.up = true;
            view.detail.clear();
            view.polling = socket.is_none();
            view.fast_disk = argv.iter().any(|word| word == "--fast-disk");
            view.version = version;
            view.argv = argv;
            view.folders = folders;
        });
        self.follow(socket).await
    }

    async fn follow(&mut self, mut socket: Option<Socket>) -> Result<std::convert::Infallible, ServerError> {
        loop {
            let read = Instant::now();
            self.look().await?;
            match &mut socket {
                Some(socket) => {
                    tokio::time::sleep_until(read + READ_SPACING).await;
                    tokio::select! {
                        changed = socket.changed() => changed?,
                        () = tokio::time::sleep_until(read + LOOK_AGAIN) => {}
                    }
                }
                None => tokio::time::sleep_until(read + POLL_INTERVAL).await,
            }
        }
    }

    /// Reads the queue once and tells the engine what changed. A queue that makes no sense leaves things as they are.
    async fn look(&mut self) -> Result<(), ServerError> {
        let body = match self.server.get("/queue", QUEUE_BYTES_MAX).await {
            Ok(body) => body,
            Err(error @ (ServerError::TooLarge { .. } | ServerError::Malformed { .. })) => {
                metrics::comfy_read("too_large");
                self.complain(&error);
                return Ok(());
            }
            Err(error) => {
                metrics::comfy_read("unreachable");
                return Err(error);
            }
        };
        let Ok(known) = self.engine.known().await else { return Ok(()) };
        let memory = std::mem::take(&mut self.memory);
        let known_before: HashSet<String> = memory.keys().cloned().collect();
        // Megabytes of JSON are not for a thread that others wait for.
        let read = tokio::task::spawn_blocking(move || (queue::read(&body, &memory, &known), memory)).await;
        let Ok((read, memory)) = read else { return Ok(()) };
        self.memory = memory;
        match read {
            Ok(queue) => {
                metrics::comfy_read("ok");
                self.take(queue, &known_before).await;
            }
            Err(error) => {
                metrics::comfy_read("malformed");
                self.complain(&error);
            }
        }
        Ok(())
    }

    fn complain(&self, error: &dyn std::error::Error) {
        let text = error.to_string();
        let new = self.seen.with(&self.name, |view| {
            let new = view.detail != text;
            view.detail.clone_from(&text);
            new
        });
        if new {
            tracing::warn!(server = %self.name, error = text, "the queue cannot be read, what was known of it stays");
        }
    }

    async fn take(&mut self, queue: Queue, known_before: &HashSet<String>) {
        let wants = queue::wants(&queue, self.ram_ahead);
        if self.engine.expect(self.source(), wants).await.is_err() {
            return;
        }
        // For the GPU's side: what its server will load next. An engine that is gone needs no word.
        let _ = self.engine.expect_models(self.url.clone(), queue::next(&queue)).await;
        let now: HashSet<&str> = queue.prompts.iter().map(|prompt| prompt.id.as_str()).collect();
        let gone: Vec<String> = known_before.iter().filter(|id| !now.contains(id.as_str())).cloned().collect();
        let fresh: Vec<_> = queue.prompts.iter().filter(|prompt| !known_before.contains(&prompt.id)).collect();
        metrics::comfy_prompts("seen", fresh.len() as u64);
        for prompt in fresh {
            if !prompt.needs.unknown.is_empty() {
                metrics::comfy_unresolved();
                tracing::warn!(
                    server = %self.name, prompt = prompt.id, unknown = prompt.needs.unknown.join(", "),
                    "a queued prompt needs models that nobody knows"
                );
            }
        }
        // What was incomplete is looked at again with the next reading: its models may be listed by then.
        self.memory = queue.prompts.iter().map(|prompt| (prompt.id.clone(), prompt.needs.clone())).collect();
        let incomplete: Vec<String> = queue
            .prompts
            .iter()
            .filter(|prompt| !prompt.needs.unknown.is_empty())
            .map(|prompt| prompt.id.clone())
            .collect();
        self.seen.with(&self.name, |view| {
            view.queue = queue;
            view.detail.clear();
        });
        self.learn(gone).await;
        if !incomplete.is_empty() && self.seen.with(&self.name, |view| view.look_again(Instant::now(), LOOK_AGAIN)) {
            for id in incomplete {
                self.memory.remove(&id);
            }
        }
    }

    /// Asks the history how prompts ended that left the queue.
    async fn learn(&self, gone: Vec<String>) {
        let unasked = gone.len().saturating_sub(HISTORIES_MAX) as u64;
        metrics::comfy_prompts(Outcome::Left.label(), unasked);
        for id in gone.into_iter().take(HISTORIES_MAX) {
            // It goes into a path: an id that is no plain word is nobody's.
            let plain = id.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            let body = match plain {
                true => self.server.get(&format!("/history/{id}"), HISTORY_BYTES_MAX).await.unwrap_or_default(),
                false => Default::default(),
            };
            let (outcome, took) = history::outcome(&body, &id);
            metrics::comfy_prompts(outcome.label(), 1);
            self.seen.with(&self.name, |view: &mut ServerView| view.ended(outcome, took));
        }
    }
}
