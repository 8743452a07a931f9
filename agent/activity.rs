//! Whether the node is needed: what the engine says of callers and workers, and what the bridge sees of ComfyUI's queues, put
//! together. Decides nothing; `idle` acts on it.

use std::sync::Arc;
use std::time::Duration;

use tierd_cache::clock::{Clock, Wall};
use tierd_cache::engine::view::NodeView;

use crate::comfy::bridge::Seen;
use crate::idle::Hook;
use crate::rpc::pb;

/// Puts the two together. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ActivityMeter {
    /// ComfyUI's servers, as the bridge has them.
    pub seen: Arc<Seen>,
    /// The idle command, if there is one.
    pub hook: Option<Arc<Hook>>,
}

impl ActivityMeter {
    /// Time since the node was needed last; zero while it is.
    #[must_use]
    pub fn idle(&self, node: &NodeView) -> Duration {
        let queues = self.seen.idle().unwrap_or(Duration::MAX);
        node.activity.idle.min(queues)
    }

    /// The same as a message.
    #[must_use]
    pub fn told(&self, node: &NodeView) -> pb::Activity {
        let idle = self.idle(node);
        // A prompt that the bridge alone saw is demand too: it was last needed when it fell idle.
        let ago = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        let queued = (idle < node.activity.idle).then(|| Wall(Clock::start().wall().0.saturating_sub(ago)));
        let last_demand = node.activity.last_demand.max(queued);
        pb::Activity {
            last_demand: last_demand.map(Into::into),
            idle: Some(idle.into()),
            flights_demand: node.activity.flights_demand,
            flights_ahead: node.activity.flights_ahead,
            queues: self.queues(node),
            idle_hook: self.hook.as_ref().map(|hook| hook.told()),
        }
    }

    /// Every queue that is known: those that the bridge reads, and those of workers that it does not.
    fn queues(&self, node: &NodeView) -> Vec<pb::QueueDepth> {
        let count = |prompts: usize| u32::try_from(prompts).unwrap_or(u32::MAX);
        let watched = self.seen.servers().into_iter().map(|(server, view)| pb::QueueDepth {
            server,
            up: view.up,
            running: count(view.queue.running),
            pending: count(view.queue.pending),
        });
        let mut queues: Vec<pb::QueueDepth> = watched.collect();
        for worker in &node.workers {
            let address = worker.hello.address.trim_start_matches("http://").trim_end_matches('/');
            let server = if address.is_empty() { worker.worker.to_string() } else { address.to_owned() };
            if !queues.iter().any(|queue| queue.server == server) {
                let (running, pending) = (worker.running, worker.waiting);
                queues.push(pb::QueueDepth { server, up: true, running, pending });
            }
        }
        queues.sort_by(|left, right| left.server.cmp(&right.server));
        queues
    }
}
