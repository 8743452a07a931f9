//! Placeholder of the `rpc` branch: build, serve until a signal, drain. The `agent` branch brings the real one.

use tierd_cache::engine;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::rpc::Server;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
///
/// Whatever keeps the daemon from starting.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let server = Server::bind(&config.listen)?;
    let handle = engine::start(config.engine).await?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopping = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        handle.shutdown().await;
    };
    let (served, ()) = tokio::join!(server.run(handle.clone(), stop.clone()), stopping);
    Ok(served?)
}
