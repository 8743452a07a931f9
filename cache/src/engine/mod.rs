//! The engine: one task that owns the state, and the handle that others hold.

pub mod handle;
pub mod view;

pub use handle::EngineHandle;

/// Placeholder of the `rpc` branch: dropped when the engine is merged.
///
/// # Errors
///
/// Always.
pub async fn start(_: crate::config::EngineConfig) -> Result<EngineHandle, crate::fault::Fault> {
    Err(crate::fault::Fault::ShuttingDown)
}
