//! What is measured of guesses, and of what other policies would have done.

use metrics::{counter, gauge};

use super::{PLAN_RIVAL, PREDICT_ACTING, PREDICT_BYTES, PREDICT_GUESSES, PREDICT_PRECISION};
use crate::engine::event::Guessed;
use crate::plan::predict::shadow::{Kind, Step};

/// A guess came true, or did not.
pub fn guessed(guessed: &Guessed) {
    let settled = &guessed.settled;
    let outcome = if settled.hit { "hit" } else { "miss" };
    let moves = settled.step.map_or("none", Step::name);
    counter!(PREDICT_GUESSES.name, "habit" => settled.habit.name(), "step" => moves, "outcome" => outcome).increment(1);
    if let Some(step) = settled.step.filter(|_| guessed.acted) {
        let outcome = match (settled.hit, guessed.late) {
            (true, false) => "used",
            (true, true) => "late",
            (false, _) => "wasted",
        };
        counter!(PREDICT_BYTES.name, "step" => step.name(), "outcome" => outcome).increment(settled.bytes);
    }
}

/// How one kind of guess does.
pub fn habit(kind: Kind, acts: bool, precision: f64) {
    let (habit, step, level) = (kind.habit.name(), kind.step.name(), kind.level.name());
    gauge!(PREDICT_ACTING.name, "habit" => habit, "step" => step, "level" => level).set(f64::from(u8::from(acts)));
    gauge!(PREDICT_PRECISION.name, "habit" => habit, "step" => step, "level" => level).set(precision);
}

/// How a policy that does not act would have done.
pub fn rival(policy: &'static str, share: f64) {
    gauge!(PLAN_RIVAL.name, "policy" => policy).set(share);
}
