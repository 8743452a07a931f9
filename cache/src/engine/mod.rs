//! The engine: one task that owns the state, and the handle that others hold.

pub mod handle;
pub mod view;

pub use handle::EngineHandle;
