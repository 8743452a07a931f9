//! The engine: one task that owns the state, and the handle that others hold.

mod act;
mod callers;
mod changes;
mod chronicle;
mod done;
pub mod event;
mod fetch;
mod forecast;
mod gauges;
pub(crate) mod habits;
pub mod handle;
pub mod hints;
pub mod known;
mod ledger;
mod listed;
mod marks;
mod memory;
mod movers;
pub mod outlook;
mod pace;
pub(crate) mod page_cache;
mod recorder;
mod run;
mod scribe;
mod serve;
mod sources;
mod spans;
pub mod state;
pub mod view;

pub use handle::EngineHandle;
pub use run::start;
