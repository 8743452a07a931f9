//! The daemon around the engine.

pub mod activity;
pub mod app;
pub mod cli;
pub mod comfy;
pub mod config;
pub mod fleet;
pub mod gpu;
pub mod host;
pub mod hostile;
pub mod idle;
pub mod rpc;
pub mod telemetry;
