//! The tiered engine of tierd: origins (L4), the store (L3), and the state machine that moves models between them.
//!
//! The facade is [`engine::EngineHandle`] with the plain types of [`engine::view`]. Knows no gRPC, no CLI, no TOML and
//! no ComfyUI. Inside, decisions (`engine::state`, `plan`) are apart from actions (`origin`, `store`), and imports go
//! down only: the tiers do not know each other, nor the plan.

pub mod budget;
pub mod catalog;
pub mod clock;
pub mod config;
pub mod engine;
pub mod fault;
mod heap;
pub mod ids;
pub mod manifest;
pub mod metrics;
pub mod origin;
pub mod piece;
pub mod plan;
pub mod replay;
pub mod resident;
pub mod safetensors;
pub mod store;
pub mod units;
pub mod vram;
