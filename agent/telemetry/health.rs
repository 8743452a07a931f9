//! How the daemon is: alive while its engine answers, ready while models can be asked for. Watches; changes nothing.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tierd_cache::engine::EngineHandle;

/// Longest time in which a healthy engine answers: it needs microseconds, so this is a hang and no load.
pub const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Something that answers while it is well.
pub trait Pulse: Send + Sync + fmt::Debug {
    /// Whether it answers. The caller bounds the wait.
    fn beat(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

impl Pulse for EngineHandle {
    fn beat(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        // The number of flights: the cheapest question that goes through the engine's loop.
        Box::pin(async { self.flights().await.is_ok() })
    }
}

/// What the parts of the daemon say of themselves. Shared by the HTTP endpoints and the watchdog.
#[derive(Debug, Default)]
pub struct Health {
    engine: OnceLock<Box<dyn Pulse>>,
    listening: AtomicBool,
    draining: AtomicBool,
}

/// Whether models can be asked for, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Readiness {
    /// Whether everything below is well.
    pub ready: bool,
    /// The store is open.
    pub store: bool,
    /// gRPC listens.
    pub grpc: bool,
    /// The engine answers.
    pub engine: bool,
    /// The daemon is shutting down.
    pub draining: bool,
}

impl Health {
    /// The store is open, and the engine runs. Counts once.
    pub fn opened(&self, engine: Box<dyn Pulse>) {
        // A second engine would be a mistake of the caller; the first one stays.
        let _ = self.engine.set(engine);
    }

    /// gRPC listens.
    pub fn listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// The daemon is shutting down.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the process is alive: its engine answers, or is not there yet (opening a large store takes time), or no more.
    pub async fn is_alive(&self) -> bool {
        if self.draining.load(Ordering::Acquire) {
            return true;
        }
        match self.engine.get() {
            None => true,
            Some(engine) => answers(engine.as_ref()).await,
        }
    }

    /// Whether models can be asked for.
    pub async fn readiness(&self) -> Readiness {
        let (store, engine) = match self.engine.get() {
            None => (false, false),
            Some(engine) => (true, answers(engine.as_ref()).await),
        };
        let grpc = self.listening.load(Ordering::Acquire);
        let draining = self.draining.load(Ordering::Acquire);
        Readiness { ready: store && engine && grpc && !draining, store, grpc, engine, draining }
    }
}

async fn answers(engine: &dyn Pulse) -> bool {
    tokio::time::timeout(ANSWER_WAIT, engine.beat()).await.unwrap_or(false)
}

impl fmt::Display for Readiness {
    /// One line for each reason: `store: open`, `grpc: not listening`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |good: bool, yes: &'static str, no: &'static str| if good { yes } else { no };
        writeln!(f, "{}", words(self.ready, "ready", "not ready"))?;
        writeln!(f, "store: {}", words(self.store, "open", "opening"))?;
        writeln!(f, "engine: {}", words(self.engine, "answers", "does not answer"))?;
        writeln!(f, "grpc: {}", words(self.grpc, "listening", "not listening"))?;
        writeln!(f, "draining: {}", words(self.draining, "yes", "no"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// An engine that hangs when told so.
    #[derive(Debug, Default, Clone)]
    pub(crate) struct Fake {
        pub(crate) hangs: Arc<AtomicBool>,
    }

    impl Pulse for Fake {
        fn beat(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
            Box::pin(async {
                if self.hangs.load(Ordering::Acquire) {
                    std::future::pending::<()>().await;
                }
                true
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ready_means_open_listening_answering_and_not_draining() {
        let health = Health::default();
        assert!(health.is_alive().await && !health.readiness().await.ready);
        let engine = Fake::default();
        health.opened(Box::new(engine.clone()));
        assert!(!health.readiness().await.ready);
        health.listening();
        assert!(health.readiness().await.ready);
        engine.hangs.store(true, Ordering::Release);
        assert!(!health.is_alive().await);
        assert!(!health.readiness().await.ready);
        engine.hangs.store(false, Ordering::Release);
        health.draining();
        assert!(health.is_alive().await, "a drain is no reason to be killed");
        assert!(!health.readiness().await.ready);
    }
}
