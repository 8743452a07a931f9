//! Guesses as messages.

use tierd_cache::engine::view::{GuessView, HabitView, PredictView};
use tierd_cache::plan::predict::PredictMode;

use crate::rpc::pb;

impl From<&PredictView> for pb::GetPredictionsResponse {
    fn from(seen: &PredictView) -> Self {
        let mode = match seen.mode {
            PredictMode::Auto => pb::PredictMode::Auto,
            PredictMode::Shadow => pb::PredictMode::Shadow,
            PredictMode::Off => pb::PredictMode::Off,
        };
        Self {
            mode: mode.into(),
            threshold: seen.threshold,
            precision: seen.precision,
            habits: seen.habits.iter().map(Into::into).collect(),
            predictions: seen.guesses.iter().map(Into::into).collect(),
        }
    }
}

impl From<&HabitView> for pb::HabitScore {
    fn from(row: &HabitView) -> Self {
        let score = &row.score;
        Self {
            habit: row.kind.habit.name().to_owned(),
            step: row.kind.step.name().to_owned(),
            level: row.kind.level.name().to_owned(),
            acts: row.acts,
            guesses: score.moves.tried,
            guesses_right: score.moves.hit,
            likeliest: score.top.tried,
            likeliest_right: score.top.hit,
            used_bytes: score.bytes_used as u64,
            wasted_bytes: score.bytes_wasted as u64,
            saved_seconds: score.saved,
            lost_seconds: score.lost,
        }
    }
}

impl From<&GuessView> for pb::Prediction {
    fn from(row: &GuessView) -> Self {
        Self {
            model: row.model.to_string(),
            probability: row.probability,
            within: Some(row.within.into()),
            habit: row.habit.name().to_owned(),
            tier: pb::Tier::from(row.tier).into(),
            acted: row.acted,
        }
    }
}
