//! What changes and is told to those who follow the node's state, but is not written down: it is over when the daemon is. What is
//! written down is in `happened`.

use std::time::Duration;

use super::{FlightView, NodeView, Occurrence, Tier};
use crate::clock::Wall;
use crate::ids::{BlobId, ModelKey, Seq};

/// A place in everything that is told: behind an occurrence, and behind a change of this run of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The last occurrence before it.
    pub seq: Seq,
    /// The run of the daemon; `None` if only occurrences are followed.
    pub run: Option<u64>,
    /// The last change before it, in that run.
    pub step: u64,
}

/// A change.
#[derive(Debug, Clone)]
pub struct Changed {
    /// Its place.
    pub at: Position,
    /// When.
    pub wall: Wall,
    /// What.
    pub what: Change,
}

/// What changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A flight began, went on to its next phase, or ended.
    Flight {
        /// The flight as it is now.
        flight: Box<FlightView>,
        /// Whether it began.
        began: bool,
    },
    /// A tier's budget came under pressure, or is out of it.
    Pressure {
        /// The tier.
        tier: Tier,
        /// Bytes that must go; `None` if it is over.
        bytes: Option<u64>,
        /// What says so; empty if it is over.
        source: &'static str,
    },
    /// A blob came whole into VRAM, or is whole in no worker's any more.
    Vram {
        /// Its names.
        models: Vec<ModelKey>,
        /// The blob.
        blob: BlobId,
        /// Whether it is there.
        loaded: bool,
    },
}

/// Something that is told to who follows the node's state.
#[derive(Debug, Clone)]
pub enum Told {
    /// It is written down. With the place behind it.
    Happened(Occurrence, Position),
    /// It is not.
    Changed(Changed),
}

/// Everything at one moment.
#[derive(Debug, Clone)]
pub struct StateView {
    /// The node.
    pub node: NodeView,
    /// Flights under way.
    pub flights: Vec<FlightView>,
    /// Models on this node, with their sizes and the fastest tiers that have them whole.
    pub models: Vec<(ModelKey, u64, Tier)>,
}

/// Who needs the node, and since when nobody does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActivityView {
    /// When somebody last asked for models or used one; `None` if not since the start.
    pub last_demand: Option<Wall>,
    /// Time since then in which nobody waited and no worker had a prompt. Zero while the node is needed.
    pub idle: Duration,
    /// Flights that somebody waits for.
    pub flights_demand: u32,
    /// Flights that are guesses, or ahead of a queue.
    pub flights_ahead: u32,
}
