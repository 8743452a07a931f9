//! The bridge to ComfyUI: reads the queues of its servers ahead, so that what a prompt needs is on its way before the prompt
//! runs. Needs nothing installed there. Changes nothing there: it only asks.
//!
//! | file | holds |
//! | --- | --- |
//! | `client` | HTTP and the WebSocket, within limits |
//! | `queue` | `GET /queue` to prompts, models and expectations: pure |
//! | `history` | how a prompt ended: pure |
//! | `watch` | the task that follows one server |

pub mod client;
pub mod history;
pub mod queue;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tierd_cache::engine::EngineHandle;
use tierd_cache::metrics;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::comfy::free;
use crate::config::ComfyConfig;

use self::client::Server;
use self::history::Outcome;
use self::queue::Queue;
use self::watch::Watch;

/// Servers that are watched: a node has one for each GPU.
pub const SERVERS_MAX: usize = 32;

/// A server to watch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerConfig {
    /// What it is called in status and events: its `host:port`.
    pub name: String,
    /// `http://host:port`.
    pub url: String,
}

/// What is known of one server.
#[derive(Debug, Clone, Default)]
pub struct ServerView {
    /// Its address.
    pub url: String,
    /// Whether it answers.
    pub up: bool,
    /// Why it does not, or what is wrong with its answers; empty if all is well.
    pub detail: String,
    /// ComfyUI's version.
    pub version: String,
    /// Its command line.
    pub argv: Vec<String>,
    /// Whether it streams models from the disk at each use, so that RAM holds the only copy.
    pub fast_disk: bool,
    /// Whether the queue is asked for every second because it allows no WebSocket.
    pub polling: bool,
    /// Where it looks for models, by folder.
    pub folders: HashMap<String, Vec<String>>,
    /// Its queue.
    pub queue: Queue,
    /// Prompts that ended: succeeded, failed, left.
    pub ended: (u64, u64, u64),
    /// What a prompt that succeeded took lately.
    pub prompt_time: Option<Duration>,
    /// When it was last seen with a prompt that ran or waited.
    pub busy: Option<Instant>,
    looked_again: Option<Instant>,
}

impl ServerView {
    /// Notes how a prompt ended. The time is smoothed: the last prompt counts for a quarter.
    fn ended(&mut self, outcome: Outcome, took: Option<Duration>) {
        match outcome {
            Outcome::Succeeded => self.ended.0 += 1,
            Outcome::Failed => self.ended.1 += 1,
            Outcome::Left => self.ended.2 += 1,
        }
        if let (Outcome::Succeeded, Some(took)) = (outcome, took) {
            self.prompt_time = Some(self.prompt_time.map_or(took, |before| (before * 3 + took) / 4));
        }
    }

    /// Whether it has a prompt that runs or waits. One that does not answer has none that anybody knows of.
    fn is_busy(&self) -> bool {
        self.up && self.queue.running + self.queue.pending > 0
    }

    /// Whether it is time to look again at prompts with unknown models.
    fn look_again(&mut self, now: Instant, interval: Duration) -> bool {
        let due = self.looked_again.is_none_or(|last| now.duration_since(last) >= interval);
        if due {
            self.looked_again = Some(now);
        }
        due
    }
}

/// What the watches have seen, for those who ask.
#[derive(Debug, Default)]
pub struct Seen {
    servers: Mutex<BTreeMap<String, ServerView>>,
}

impl Seen {
    /// All servers, by name.
    #[must_use]
    pub fn servers(&self) -> BTreeMap<String, ServerView> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with<T>(&self, name: &str, change: impl FnOnce(&mut ServerView) -> T) -> T {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let view = servers.entry(name.to_owned()).or_default();
        let was_busy = view.is_busy();
        let out = change(view);
        if was_busy || view.is_busy() {
            view.busy = Some(Instant::now());
        }
        let up = servers.values().filter(|view| view.up).count() as u64;
        let (running, pending) = servers
            .values()
            .fold((0, 0), |sum, view| (sum.0 + view.queue.running as u64, sum.1 + view.queue.pending as u64));
        metrics::comfy(up, servers.len() as u64 - up, running, pending);
        out
    }

    /// Time since some server had a prompt that ran or waited; zero while one has. `None` if none ever had.
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |view: &ServerView| {
            if view.is_busy() { Some(Duration::ZERO) } else { view.busy.map(|busy| busy.elapsed()) }
        };
        servers.values().filter_map(idle).min()
    }

    fn remove(&self, name: &str) {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// How often the node packs' servers are asked for: a server that starts takes longer.
const ANNOUNCED_INTERVAL: Duration = Duration::from_secs(2);

/// The bridge: a watch for each server, started and stopped as servers come and go.
pub struct Bridge {
    engine: EngineHandle,
    ram_ahead: u32,
    configured: Vec<ServerConfig>,
    seen: Arc<Seen>,
    stop: CancellationToken,
    watches: BTreeMap<ServerConfig, CancellationToken>,
}

impl Bridge {
    /// Starts to watch the configured servers, and those on this machine whose node pack says where they listen. Ends with `stop`.
    ///
    /// Returns what the watches see.
    #[must_use]
    pub fn start(config: &ComfyConfig, engine: &EngineHandle, stop: &CancellationToken) -> Arc<Seen> {
        let mut bridge = Self {
            engine: engine.clone(),
            ram_ahead: config.ram_ahead,
            configured: config.servers.clone(),
            seen: Arc::default(),
            stop: stop.clone(),
            watches: BTreeMap::new(),
        };
        bridge.set(&bridge.configured.clone());
        let seen = bridge.seen.clone();
        tokio::spawn(bridge.follow());
        seen
    }

    /// Follows the servers that come and go.
    async fn follow(mut self) {
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ANNOUNCED_INTERVAL) => {}
            }
            let Ok(workers) = self.engine.workers().await else { return };
            let mut servers = self.configured.clone();
            for worker in workers {
                // The same rule as for orders: a worker may name a port of this machine, and nothing else.
                let Ok(uri) = free::target(&worker.hello.address) else { continue };
                let Some(name) = uri.authority().map(ToString::to_string) else { continue };
                if !servers.iter().any(|server| server.name == name) {
                    servers.push(ServerConfig { url: format!("http://{name}"), name });
                }
            }
            self.set(&servers);
        }
    }

    /// Watches exactly these servers from here on, at most [`SERVERS_MAX`].
    fn set(&mut self, servers: &[ServerConfig]) {
        let gone: Vec<ServerConfig> = self.watches.keys().filter(|server| !servers.contains(server)).cloned().collect();
        for server in gone {
            if let Some(stop) = self.watches.remove(&server) {
                stop.cancel();
                self.seen.remove(&server.name);
            }
        }
        for server in servers {
            if !self.watches.contains_key(server) && self.watches.len() < SERVERS_MAX {
                self.watch(server.clone());
            }
        }
    }

    fn watch(&mut self, server: ServerConfig) {
        let stop = self.stop.child_token();
        self.seen.with(&server.name, |view| view.url.clone_from(&server.url));
        let watch = Watch {
            name: server.name.clone(),
            url: server.url.clone(),
            server: Server::new(&server.url),
            engine: self.engine.clone(),
            ram_ahead: self.ram_ahead,
            seen: self.seen.clone(),
            stop: stop.clone(),
            memory: HashMap::new(),
        };
        tokio::spawn(watch.run());
        self.watches.insert(server, stop);
    }
}
