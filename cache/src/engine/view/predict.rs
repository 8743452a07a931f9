//! What is guessed, and how guesses have done.

use std::time::Duration;

use super::Tier;
use crate::ids::ModelKey;
use crate::plan::predict::shadow::{Kind, Score};
use crate::plan::predict::{Habit, PredictMode};

/// Guesses, as seen from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictView {
    /// Whether guesses are made and acted on.
    pub mode: PredictMode,
    /// Guesses less likely than this are not acted on.
    pub threshold: f64,
    /// The precision from which a habit is acted on.
    pub precision: f64,
    /// One row for each kind of guess.
    pub habits: Vec<HabitView>,
    /// What is likely to be asked for next, the likeliest first.
    pub guesses: Vec<GuessView>,
}

/// One kind of guess.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HabitView {
    /// Which.
    pub kind: Kind,
    /// Whether it is acted on.
    pub acts: bool,
    /// How it has done lately.
    pub score: Score,
}

/// One guess.
#[derive(Debug, Clone, PartialEq)]
pub struct GuessView {
    /// The model.
    pub model: ModelKey,
    /// How likely it is to be asked for, 0 to 1.
    pub probability: f64,
    /// Time until then at most.
    pub within: Duration,
    /// Where the guess comes from.
    pub habit: Habit,
    /// The fastest tier that has the model now.
    pub tier: Tier,
    /// Whether the guess was acted on.
    pub acted: bool,
}
