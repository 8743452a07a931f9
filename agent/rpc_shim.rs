//! Stands in for the gRPC server and the engine's start until their branches are merged. Delete on merge.

use std::future::Future;

use tierd_cache::config::EngineConfig;
use tierd_cache::engine::EngineHandle;
use tierd_cache::fault::Fault;
use tokio_util::sync::CancellationToken;

use crate::config::ListenConfig;

/// The error of the gRPC server.
#[derive(Debug, thiserror::Error)]
#[error("not merged")]
pub struct RpcError;

/// The gRPC server.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Binds.
    ///
    /// # Errors
    ///
    /// Always.
    pub fn bind(_: &ListenConfig) -> Result<Self, RpcError> {
        Err(RpcError)
    }

    /// Serves.
    ///
    /// # Errors
    ///
    /// Always.
    pub async fn run(self, _: EngineHandle, _: CancellationToken) -> Result<(), RpcError> {
        Err(RpcError)
    }
}

/// Starts the engine.
pub fn start(_: EngineConfig) -> impl Future<Output = Result<EngineHandle, Fault>> {
    std::future::ready(Err(Fault::ShuttingDown))
}
