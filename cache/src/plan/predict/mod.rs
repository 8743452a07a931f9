//! What this node is likely to be asked for next, learned from what it was asked for, and whether that is worth acting on. Arithmetic
//! only: time is an argument, nothing is touched, and the same requests give the same guesses.
//!
//! | file | holds |
//! | --- | --- |
//! | `habits` | the predictor: who asked for what after what |
//! | `names` | models by number, the longest unseen forgotten first |
//! | `contexts` | what came after what: bounded, fading counts |
//! | `hours` | which hours of the day and of the week see which models |
//! | `shadow` | what each kind of guess would have done, and whether it may act |
//! | `gate` | whether one guess is worth its bytes |
//! | `saved` | what outlives a restart |
//!
//! Every event costs the same however much is known, but for a quarter of a table that is forgotten at once when it is full.

mod contexts;
pub mod gate;
mod habits;
mod hours;
mod names;
pub mod saved;
pub mod shadow;

use std::time::Duration;

use crate::clock::Wall;
use crate::ids::ModelKey;

pub use self::habits::Habits;

/// Most guesses that one question gives.
pub const GUESSES_MAX: usize = 16;
/// Guesses less likely than this are not told: nobody would act on them, and nobody reads them.
pub const PROBABILITY_MIN: f64 = 0.2;

/// Where a guess comes from. Each kind is measured on its own: a node may have regular mornings and fickle people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Habit {
    /// What this client asked for next, after the last times that it asked for this.
    Sequence,
    /// What is asked for at this hour of the day and of the week.
    Hour,
}

impl Habit {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Sequence, Self::Hour];

    /// Its name, as events, metrics and the command line have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sequence => "sequence",
            Self::Hour => "hour",
        }
    }
}

/// One guess.
#[derive(Debug, Clone, PartialEq)]
pub struct Guess {
    /// The model.
    pub model: ModelKey,
    /// How likely it is to be asked for, 0 to 1.
    pub probability: f64,
    /// How long until then at most.
    pub horizon: Duration,
    /// Where it comes from.
    pub habit: Habit,
    /// Whether it is the likeliest of its question.
    pub top: bool,
}

/// One request, as it is learned from.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Who asked. One client's requests are a session; what does not say who it is, is one client.
    pub client: &'a str,
    /// What was asked for, with sizes.
    pub models: &'a [(ModelKey, u64)],
    /// When, by the wall clock: hours of the day must mean the same after a restart.
    pub at: Wall,
}

/// Guesses what is asked for next.
pub trait Predictor: Send + std::fmt::Debug {
    /// Learns from a request. Returns what is likely to follow it, the likeliest first.
    fn seen(&mut self, seen: &Seen<'_>) -> Vec<Guess>;

    /// Time passed: what is likely because of the hour, if it is time to say so; the likeliest first. Each hour is told once.
    fn passed(&mut self, at: Wall) -> Vec<Guess>;

    /// When [`Predictor::passed`] has something to say next.
    fn due(&self) -> Option<Wall>;

    /// What should outlive a restart.
    fn saved(&self) -> Option<saved::Learned> {
        None
    }
}

/// Whether guesses are made and acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PredictMode {
    /// They are made and scored, and acted on while they have proved right on this node.
    #[default]
    Auto,
    /// They are made and scored, and never acted on.
    Shadow,
    /// Nothing is learned.
    Off,
}

impl PredictMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Shadow, Self::Off];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }

    /// The mode of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// How guesses are used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PredictConfig {
    /// Whether at all.
    pub mode: PredictMode,
    /// Guesses less likely than this are not acted on. Default 0.6: a guess that is wrong half the time costs what it saves.
    pub threshold: f64,
    /// Share of its guesses that must have come true on this node before a habit is acted on. Default 0.75.
    pub precision: f64,
}

impl Default for PredictConfig {
    fn default() -> Self {
        Self { mode: PredictMode::Auto, threshold: 0.6, precision: 0.75 }
    }
}

#[cfg(test)]
mod tests;
