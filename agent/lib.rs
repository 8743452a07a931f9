//! The daemon around the engine.

pub mod app;
pub mod config;
pub mod host;
#[path = "rpc_shim.rs"]
pub mod rpc;
pub mod telemetry;
