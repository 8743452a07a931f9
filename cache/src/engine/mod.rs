//! The engine: one task that owns the state, and the handle that others hold.

pub mod event;
pub mod handle;
pub mod state;
pub mod view;

pub use handle::EngineHandle;
