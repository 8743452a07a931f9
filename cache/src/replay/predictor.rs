//! Predictors of a replay. `habits` is the daemon's own; the others know the trace and lie about it, to show what a lie costs.

use std::time::Duration;

use crate::clock::Wall;
use crate::ids::ModelKey;
use crate::plan::predict::{Guess, Habit, Habits, Predictor, Seen};
use crate::replay::trace::Trace;

/// Probability of what is told by one that knows better.
const SURE: f64 = 0.99;
/// How long a lie stands, in milliseconds: its model is not asked for until then.
const HORIZON_MS: u64 = 3_600_000;
/// Requests about which the turncoat tells the truth: enough to be believed.
const HONEST: usize = 200;
/// Files that are looked at for a lie.
const LOOKS_MAX: usize = 512;

/// Who guesses in a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PredictorKind {
    /// Nobody.
    #[default]
    None,
    /// The daemon's predictor.
    Habits,
    /// One that is sure each time, and wrong each time.
    Poisoned,
    /// One that is sure each time, right until it is believed, and wrong from then on.
    Turncoat,
}

impl PredictorKind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Habits => "habits",
            Self::Poisoned => "poisoned",
            Self::Turncoat => "turncoat",
        }
    }

    /// A predictor of this kind for a trace.
    pub(super) fn build(self, trace: &Trace) -> Option<Box<dyn Predictor>> {
        match self {
            Self::None => None,
            Self::Habits => Some(Box::new(Habits::default())),
            Self::Poisoned => Some(Box::new(Liar::new(trace, 0))),
            Self::Turncoat => Some(Box::new(Liar::new(trace, HONEST))),
        }
    }
}

/// Knows what comes, and says so, or the opposite.
#[derive(Debug)]
struct Liar {
    /// Each file, with when it is asked for, in milliseconds since the first request.
    files: Vec<(ModelKey, Vec<u64>)>,
    requests: Vec<Vec<ModelKey>>,
    asked: usize,
    honest: usize,
    next: usize,
}

impl Liar {
    fn new(trace: &Trace, honest: usize) -> Self {
        let start = trace.requests.first().map_or(0, |request| request.at_ms);
        let mut files: Vec<(ModelKey, Vec<u64>)> =
            trace.files.iter().map(|file| (file.model.clone(), Vec::new())).collect();
        let mut requests = Vec::new();
        for request in &trace.requests {
            for file in &request.files {
                files[*file as usize].1.push(request.at_ms - start);
            }
            requests.push(request.files.iter().map(|file| trace.files[*file as usize].model.clone()).collect());
        }
        Self { files, requests, asked: 0, honest, next: 0 }
    }

    fn guess(model: ModelKey, top: bool) -> Guess {
        Guess { model, probability: SURE, horizon: Duration::from_millis(HORIZON_MS), habit: Habit::Sequence, top }
    }

    /// A file that nobody asks for in the next hour.
    fn lie(&mut self, at_ms: u64) -> Option<ModelKey> {
        for _ in 0..self.files.len().min(LOOKS_MAX) {
            let (model, uses) = &self.files[self.next % self.files.len()];
            self.next += 1;
            let next = uses.partition_point(|at| *at < at_ms);
            if uses.get(next).is_none_or(|at| *at > at_ms + HORIZON_MS) {
                return Some(model.clone());
            }
        }
        None
    }
}

impl Predictor for Liar {
    fn seen(&mut self, seen: &Seen<'_>) -> Vec<Guess> {
        self.asked += 1;
        if self.asked <= self.honest {
            let next = self.requests.get(self.asked).into_iter().flatten();
            return next.enumerate().map(|(at, model)| Self::guess(model.clone(), at == 0)).collect();
        }
        self.lie(seen.at.0).map(|model| Self::guess(model, true)).into_iter().collect()
    }

    fn passed(&mut self, _at: Wall) -> Vec<Guess> {
        Vec::new()
    }

    fn due(&self) -> Option<Wall> {
        None
    }
}
