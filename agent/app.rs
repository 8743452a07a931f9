//! The daemon: build, then spawn, then drain. The only file that puts the parts together. Decides nothing about models.

use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tierd_cache::config::{EngineConfig, OriginKind};
use tierd_cache::engine::{self, EngineHandle};
use tierd_cache::fault::Fault;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::activity::ActivityMeter;
use crate::comfy;
use crate::comfy::bridge::Bridge;
use crate::config::Config;
use crate::gpu::{Devices, GpuMeter};
use crate::host::{self, ProcessMeter, StopSignals};
use crate::idle::{self, Hook};
use crate::rpc::{RpcError, Served, Server};
use crate::telemetry::health::Health;
use crate::telemetry::http::{HttpError, HttpServer, HttpState};
use crate::telemetry::metrics::{self, MetricsError};
use crate::telemetry::page::{Live, Sources};
use crate::telemetry::vram::VramMeter;

/// Longest wait for answers of the HTTP listener that are under way at the very end.
const HTTP_END_WAIT: Duration = Duration::from_secs(1);

/// Longest wait for the goodbye to the fleet: without it, the node is forgotten by its age.
const FLEET_END_WAIT: Duration = Duration::from_secs(2);

/// Longest wait for the last traces.
const TRACES_END_WAIT: Duration = Duration::from_secs(3);

/// Why the daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store cannot be opened, or an origin's configuration makes no sense.
    #[error(transparent)]
    Engine(#[from] Fault),
    /// gRPC cannot listen, or ended by itself.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The HTTP listener cannot be opened, or ended by itself.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Metrics cannot be recorded.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(std::io::Error),
    /// A folder that the daemon makes for itself cannot be made.
    #[error("cannot make {path}: {source}")]
    Folder {
        /// The folder.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A task ended with a panic.
    #[error("{0} panicked")]
    Panicked(&'static str),
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    /// Everything is on the disk.
    Whole,
    /// The deadline passed first.
    Late,
    /// A second signal came first.
    Forced,
}

/// Runs the daemon until SIGTERM or SIGINT, then drains. The log must have been started.
///
/// A drain that is cut short, by its deadline or a second signal, loses no finished piece: the journal has it. That is
/// therefore a good end too.
///
/// # Errors
///
/// Whatever keeps it from starting, and listeners that end by themselves.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    // Before anything else, so that a signal during the start is not lost.
    let mut signals = StopSignals::catch().map_err(ServeError::Signals)?;
    let health = Arc::new(Health::default());
    let http_stop = CancellationToken::new();

    // Build: what can fail, fails here, before anyone is told that the daemon runs.
    let server = Server::bind(&config.listen)?;
    let page = Arc::new(Live::default());
    let gpus = GpuMeter::default();
    let vram = VramMeter::new(gpus.clone());
    let http = http(&config, &health, (&page, &vram), &http_stop).await?;
    make_own_origins(&config.engine)?;
    host::notify_status("opening the store");
    let handle = tokio::select! {
        handle = engine::start(config.engine.clone()) => handle?,
        signal = signals.next() => {
            tracing::info!(signal, "stopped while the store was opened");
            return Ok(());
        }
    };

    // Spawn.
    let stop = CancellationToken::new();
    health.opened(Box::new(handle.clone()));
    let fleet = config
        .fleet
        .clone()
        .map(|fleet| tokio::spawn(crate::fleet::run(fleet, Arc::new(handle.clone()), stop.child_token())));
    vram.opened(handle.clone());
    let seen = Bridge::start(&config.comfy, &handle, &stop);
    let devices = Devices::new(handle.clone(), gpus.clone());
    page.opened(Sources { engine: handle.clone(), devices, seen: seen.clone() });
    let hook = Hook::new(&config.idle, config.listen.unix.clone());
    let activity = ActivityMeter { seen: seen.clone(), hook: hook.clone() };
    if let Some(hook) = hook {
        tokio::spawn(idle::run(hook, handle.clone(), activity.clone(), stop.child_token()));
    }
    let traces = config
        .otlp
        .clone()
        .map(|otlp| tokio::spawn(crate::telemetry::otlp::run(otlp, handle.clone(), stop.child_token())));
    let served = Served {
        engine: handle.clone(),
        gpus,
        comfy: config.comfy.clone(),
        models: config.engine.store.models.clone(),
        seen,
        activity,
    };
    let rpc = tokio::spawn(server.run(served, stop.clone()));
    if config.comfy.free {
        tokio::spawn(comfy::free::carry_out(handle.clone(), stop.clone()));
    }
    health.listening();
    let watchdog = tokio::spawn(feed_watchdog(health.clone(), http_stop.clone()));
    let status = format!("serving on {}", config.listen.unix.display());
    tracing::info!(socket = %config.listen.unix.display(), store = %config.engine.store.path.display(), "ready");
    host::notify_ready(&status);
    let (mut rpc, mut http) = (Task::new("grpc", rpc), http);
    let ended = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "draining");
            Ok(())
        }
        ended = rpc.end() => ended,
        ended = end_of(&mut http) => ended,
    };

    // Drain.
    health.draining();
    host::notify_stopping("draining", config.drain_deadline);
    stop.cancel();
    let drained = drain(drain_parts(&handle, &mut rpc), config.drain_deadline, signals.next()).await;
    report(drained, config.drain_deadline);
    http_stop.cancel();
    // What is still unanswered after this wait is a scraper that will ask the next daemon.
    let _ = tokio::time::timeout(HTTP_END_WAIT, end_of(&mut http)).await;
    if let Some(mut traces) = traces
        && tokio::time::timeout(TRACES_END_WAIT, &mut traces).await.is_err()
    {
        traces.abort();
    }
    if let Some(mut fleet) = fleet
        && tokio::time::timeout(FLEET_END_WAIT, &mut fleet).await.is_err()
    {
        fleet.abort();
    }
    rpc.abort();
    watchdog.abort();
    ended
}

/// Binds and serves the HTTP listener, if there is to be one. It answers while the store is still being opened.
async fn http(
    config: &Config,
    health: &Arc<Health>,
    (page, vram): (&Arc<Live>, &VramMeter),
    stop: &CancellationToken,
) -> Result<Option<Task<HttpError>>, ServeError> {
    let Some(address) = config.listen.http else { return Ok(None) };
    let server = HttpServer::bind(address).await?;
    let state = HttpState {
        health: health.clone(),
        metrics: metrics::init()?,
        process: Arc::new(ProcessMeter::default()),
        page: page.clone(),
        vram: vram.clone(),
    };
    if let Some(address) = server.address() {
        tracing::info!(%address, "status page, metrics and health");
    }
    Ok(Some(Task::new("http", tokio::spawn(server.run(state, stop.clone())))))
}

/// Makes the folders of origins that lie inside the store's own: the embedded default has one. Others are the operator's.
fn make_own_origins(config: &EngineConfig) -> Result<(), ServeError> {
    for origin in &config.origins {
        if let OriginKind::Folder { path } = &origin.kind
            && is_own(path, &config.store.path)
        {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(config.store.dir_mode)
                .create(path)
                .map_err(|source| ServeError::Folder { path: path.display().to_string(), source })?;
        }
    }
    Ok(())
}

fn is_own(path: &Path, store: &Path) -> bool {
    path.starts_with(store)
}

async fn feed_watchdog(health: Arc<Health>, stop: CancellationToken) {
    host::watchdog(&health, &stop).await;
}

/// Ends streams and puts everything on the disk. Both at once: streams end because the engine stops, and the other way round.
async fn drain_parts(handle: &EngineHandle, rpc: &mut Task<RpcError>) {
    let (ended, ()) = tokio::join!(rpc.end(), handle.shutdown());
    if let Err(error) = ended {
        tracing::warn!(%error, "grpc ended badly");
    }
}

/// Waits for `work`, but not beyond `deadline` nor a second signal.
async fn drain(
    work: impl Future<Output = ()>,
    deadline: Duration,
    second_signal: impl Future<Output = &'static str>,
) -> Drained {
    tokio::select! {
        ended = tokio::time::timeout(deadline, work) => match ended {
            Ok(()) => Drained::Whole,
            Err(_) => Drained::Late,
        },
        _ = second_signal => Drained::Forced,
    }
}

fn report(drained: Drained, deadline: Duration) {
    match drained {
        Drained::Whole => tracing::info!("drained"),
        Drained::Late => tracing::warn!(?deadline, "the drain took too long: unfinished pieces will be fetched again"),
        Drained::Forced => tracing::warn!("stopped at once: unfinished pieces will be fetched again"),
    }
}

/// A part that runs until it is stopped. Remembers how it ended, so that its end can be awaited twice.
struct Task<E> {
    name: &'static str,
    running: Option<JoinHandle<Result<(), E>>>,
}

impl<E> Task<E>
where
    ServeError: From<E>,
{
    fn new(name: &'static str, running: JoinHandle<Result<(), E>>) -> Self {
        Self { name, running: Some(running) }
    }

    /// Waits for its end. `Ok` if it has ended before.
    async fn end(&mut self) -> Result<(), ServeError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let ended = running.await;
        self.running = None;
        ended.map_err(|_| ServeError::Panicked(self.name))?.map_err(ServeError::from)
    }

    fn abort(&self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// The end of a part that may not be there at all: then never.
async fn end_of<E>(task: &mut Option<Task<E>>) -> Result<(), ServeError>
where
    ServeError: From<E>,
{
    match task {
        Some(task) => task.end().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_work_its_deadline_or_a_second_signal() {
        let second = Duration::from_secs(1);
        let never = std::future::pending::<&'static str>;
        assert_eq!(drain(tokio::time::sleep(second), 2 * second, never()).await, Drained::Whole);
        assert_eq!(drain(std::future::pending(), 2 * second, never()).await, Drained::Late);
        let signal = async {
            tokio::time::sleep(second).await;
            "SIGINT"
        };
        assert_eq!(drain(std::future::pending(), 20 * second, signal).await, Drained::Forced);
    }

    #[tokio::test]
    async fn a_part_that_panics_is_reported_by_name_and_only_once() {
        let mut task: Task<HttpError> = Task::new("http", tokio::spawn(async { panic!("planted") }));
        assert!(matches!(task.end().await, Err(ServeError::Panicked("http"))));
        assert!(task.end().await.is_ok());
    }

    #[test]
    fn only_folders_inside_the_store_are_made() {
        let store = Path::new("/var/lib/tierd");
        assert!(is_own(Path::new("/var/lib/tierd/origin"), store));
        assert!(!is_own(Path::new("/mnt/nas"), store));
    }
}
