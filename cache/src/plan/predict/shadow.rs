//! What each habit's guesses would have done, whether they are acted on or not, and whether they may be.
//!
//! A guess is settled once: it came true, or its time is over. Each counts for its habit's **precision**: of the likeliest guess of each
//! question, and of all guesses that would have moved bytes, because a model was not where it was wanted. The latter are weighed as
//! well: the seconds that they would have saved against those that they would have cost. Fetching and promoting prove themselves apart: a
//! habit that is right about what the disk has anyway says nothing about what it has not. So do guesses that are sure and those that are
//! only likely: a batch that runs every morning must not be held back by what is asked for on most afternoons.
//!
//! Only a guess that would be begun, if its kind were acted on, is counted as one that would have moved bytes, and it is right only if they would
//! still be there: those that are worth moving are not the ones that are easily guessed. And **each time that a kind steps back it must show
//! twice as much** as the time before: one that only looks right costs less and less, however long a node runs; one that is right earns its way
//! back, as it lost it.

use serde::{Deserialize, Serialize};

use crate::plan::predict::Habit;

/// What is left of a score after each further guess: the last 25 or so count, so that a habit that ends is noticed within a few.
const KEEP: f64 = 0.96;
/// Guesses that would have moved bytes, before anything is done by them.
pub const SAMPLES_MIN: f64 = 12.0;
/// Likeliest guesses, before anything is done by them.
pub const TOP_SAMPLES_MIN: f64 = 3.0;
/// Most often that the proof is doubled: 12 guesses become fifty thousand, more than a node makes in a year.
const BACKS_MAX: u32 = 12;

/// What acting on a guess does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// From an origin to the disk.
    Fetch,
    /// From the disk to RAM.
    Promote,
}

impl Step {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Fetch, Self::Promote];

    /// Its name, as events, metrics and the command line have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Promote => "promote",
        }
    }
}

/// How sure a guess is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Above the threshold.
    Likely,
    /// At least [`SURE`].
    Sure,
}

/// Probability from which a guess is sure.
pub const SURE: f64 = 0.8;

impl Level {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Likely, Self::Sure];

    /// How sure a guess of this probability is.
    #[must_use]
    pub fn of(probability: f64) -> Self {
        if probability >= SURE { Self::Sure } else { Self::Likely }
    }

    /// Its name, as events, metrics and the command line have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Likely => "likely",
            Self::Sure => "sure",
        }
    }
}

/// One kind of guess: what is measured, and acted on, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// Where it comes from.
    pub habit: Habit,
    /// What acting on it does.
    pub step: Step,
    /// How sure it is.
    pub level: Level,
}

impl Kind {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let steps = Habit::ALL.into_iter().flat_map(|habit| Step::ALL.map(|step| (habit, step)));
        steps.flat_map(|(habit, step)| Level::ALL.map(|level| Self { habit, step, level }))
    }

    fn slot(self) -> usize {
        (self.habit as usize * 2 + self.step as usize) * 2 + self.level as usize
    }

    /// Its name where it is kept: `hour.fetch.sure`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}.{}.{}", self.habit.name(), self.step.name(), self.level.name())
    }
}

/// How often something was tried and how often it was right, lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// How often it was tried.
    pub tried: f64,
    /// How often it was right.
    pub hit: f64,
}

impl Rate {
    fn add(&mut self, hit: bool) {
        self.tried = self.tried * KEEP + 1.0;
        self.hit = self.hit * KEEP + f64::from(u8::from(hit));
    }

    /// The share that was right; 0 if nothing was tried.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.tried > 0.0 { self.hit / self.tried } else { 0.0 }
    }
}

/// How one kind of guess has done lately. Everything fades at the same pace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The likeliest guess of each question, wherever its model was.
    pub top: Rate,
    /// Guesses for models that were not where they were wanted.
    pub moves: Rate,
    /// Bytes that they would have moved and somebody would have used.
    pub bytes_used: f64,
    /// Bytes that they would have moved for nothing.
    pub bytes_wasted: f64,
    /// Seconds of waiting that they would have saved.
    pub saved: f64,
    /// Seconds of waiting that they would have cost: what would have had to go.
    pub lost: f64,
    /// Whether it is acted on.
    pub acts: bool,
    /// While it is not acted on: guesses that would have moved bytes, since it began anew. While it is: those that came true, since then or
    /// since it was last forgiven. Does not fade.
    pub shown: u32,
    /// How often it stepped back and was not forgiven.
    pub backs: u32,
}

impl Score {
    /// Whether it has proved itself.
    #[must_use]
    pub fn proves(&self, precision: f64) -> bool {
        let enough = self.moves.tried >= SAMPLES_MIN && self.top.tried >= TOP_SAMPLES_MIN;
        enough && self.shown >= self.to_show() && self.is_right(precision)
    }

    /// Guesses that it must show before anything is done by them.
    #[must_use]
    pub fn to_show(&self) -> u32 {
        (SAMPLES_MIN as u32) << self.backs.min(BACKS_MAX)
    }

    fn count(&mut self, settled: &Settled, moves: bool) {
        if settled.top {
            self.top.add(settled.hit);
        }
        if !moves {
            return;
        }
        self.moves.add(settled.hit);
        if !self.acts || settled.hit {
            self.shown = self.shown.saturating_add(1);
        }
        if self.acts && self.backs > 0 && self.shown >= self.to_show() {
            (self.backs, self.shown) = (self.backs - 1, 0);
        }
        for sum in [&mut self.bytes_used, &mut self.bytes_wasted, &mut self.saved, &mut self.lost] {
            *sum *= KEEP;
        }
        *(if settled.hit { &mut self.bytes_used } else { &mut self.bytes_wasted }) += settled.bytes as f64;
        self.saved += settled.saved;
        self.lost += settled.lost;
    }

    fn is_right(&self, precision: f64) -> bool {
        let right = self.moves.share() >= precision && self.top.share() >= precision;
        right && self.saved > self.lost
    }

    fn begins(&mut self) {
        (self.acts, self.shown) = (true, 0);
    }

    /// It begins anew, and has more to show than the last time.
    fn steps_back(&mut self) {
        *self = Self { backs: (self.backs + 1).min(BACKS_MAX), ..Self::default() };
    }
}

/// A guess that is settled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settled {
    /// Its habit.
    pub habit: Habit,
    /// How sure it was.
    pub level: Level,
    /// Whether it came true.
    pub hit: bool,
    /// Whether it was the likeliest.
    pub top: bool,
    /// What acting on it would have done; nothing, if its model was where it was wanted, or would not have been moved for it.
    pub step: Option<Step>,
    /// Bytes of its model.
    pub bytes: u64,
    /// Seconds that it would have saved.
    pub saved: f64,
    /// Seconds that it would have cost.
    pub lost: f64,
}

/// All scores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shadow {
    scores: [Score; 8],
}

impl Shadow {
    /// How a kind of guess has done.
    #[must_use]
    pub fn score(&self, kind: Kind) -> &Score {
        &self.scores[kind.slot()]
    }

    /// Takes up how it had done.
    pub fn recall(&mut self, kind: Kind, score: Score) {
        self.scores[kind.slot()] = score;
    }

    /// Whether anything is acted on.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.scores.iter().any(|score| score.acts)
    }

    /// Counts a guess. Returns what is acted on, or not, from now on.
    ///
    /// What steps back begins anew, with more to show than the last time.
    pub fn settle(&mut self, settled: &Settled, precision: f64) -> Vec<(Kind, Score)> {
        let mut changed = Vec::new();
        for step in Step::ALL {
            let kind = Kind { habit: settled.habit, step, level: settled.level };
            let score = &mut self.scores[kind.slot()];
            score.count(settled, settled.step == Some(step));
            let acts = if score.acts { score.is_right(precision) } else { score.proves(precision) };
            if acts == score.acts {
                continue;
            }
            changed.push((kind, Score { acts, ..*score }));
            if acts { score.begins() } else { score.steps_back() }
        }
        changed
    }
}
