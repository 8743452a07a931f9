//! Replay: a trace of requests goes through the engine's own state machine in virtual time, and what people would have waited is added up.
//!
//! Only the world around the state is simulated: links that transfers share, an origin that answers after a while, readers. What is kept,
//! fetched first and thrown out is decided by [`State`](crate::engine::state::State), as in the daemon. The same trace gives the same
//! output, byte for byte. Reads and writes no file.
//!
//! | file | holds |
//! | --- | --- |
//! | `trace` | requests, as text and as values |
//! | `link` | one link: fair shares, demand before prefetch |
//! | `node` | the node: the state, and the world that does what it asks |
//! | `moves` | how the world does each effect |
//! | `predictor` | who guesses: nobody, the daemon's predictor, or one that lies |
//! | `queue` | which request starts when: open arrivals, or some GPUs and a queue before them |
//! | `report` | what comes out |
//! | `bound` | what an all-knowing policy would have done, as a bound |

pub mod bound;
#[cfg(test)]
mod guess_tests;
mod link;
mod moves;
mod node;
mod predictor;
mod queue;
pub mod report;
#[cfg(test)]
mod tests;
pub mod trace;

use crate::plan::{Costs, PolicyKind};

pub use self::node::run;
pub use self::predictor::PredictorKind;

/// What is assumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setup {
    /// What is kept and what goes.
    pub policy: PolicyKind,
    /// Bytes of RAM that models may hold.
    pub ram: u64,
    /// Bytes of disk that models may hold.
    pub disk: u64,
    /// GPUs with one queue before them; 0 means that every request starts when it arrives.
    pub gpus: u32,
    /// Waiting requests whose models are known. They are loaded ahead, the next one first.
    pub visible: u32,
    /// Who guesses what comes next. What is guessed is acted on as in the daemon: once it has proved right.
    pub predictor: PredictorKind,
    /// What the node can do.
    pub node: NodeKind,
    /// How fast the links are.
    pub links: Links,
    /// Whether the policy knows the future: a bound, whatever `policy` says.
    pub foresight: bool,
    /// Requests at the beginning that are replayed and not counted.
    pub warm_up: usize,
}

/// What a replayed node can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// The model of cache papers: RAM and disk hold bytes of their own, and what is not kept passes by whoever reads it.
    Apart,
    /// What the daemon does: a file lands on the disk before it is read, RAM holds copies of what is there, and what is read stays in RAM if
    /// there is room.
    Copies,
}

/// Bytes a second, and the wait for a first byte.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Links {
    /// From origins.
    pub origin: f64,
    /// From the disk.
    pub disk: f64,
    /// From RAM to where it is used.
    pub ram: f64,
    /// Seconds to the first byte from an origin.
    pub first_byte: f64,
}

impl Default for Links {
    fn default() -> Self {
        Self { origin: 1e9, disk: 6e9, ram: 25e9, first_byte: 0.1 }
    }
}

impl Links {
    /// The same, as a policy weighs it.
    #[must_use]
    pub fn costs(&self) -> Costs {
        Costs {
            origin_first_byte: self.first_byte,
            origin_byte: 1.0 / self.origin,
            disk_byte: 1.0 / self.disk,
            ram_byte: 1.0 / self.ram,
        }
    }
}
