//! The daemon around the engine.

pub mod config;
pub mod telemetry;
