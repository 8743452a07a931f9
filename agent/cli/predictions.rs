//! `tierd predictions`: what is likely to be asked for next, and how such guesses have done on this node.

use tierd_cache::units::human_duration;

use crate::cli::exit::Outcome;
use crate::cli::out::{Out, size};
use crate::cli::{Context, client};
use crate::rpc::pb;

/// Runs `tierd predictions`.
pub(crate) async fn predictions(context: &Context) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let answer = daemon.node.get_predictions(pb::GetPredictionsRequest {}).await?.into_inner();
    context.out.document(&answer)?;
    print(context.out, &answer)?;
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn print(out: Out, answer: &pb::GetPredictionsResponse) -> std::io::Result<()> {
    let (threshold, precision) = (percent(answer.threshold), percent(answer.precision));
    match answer.mode() {
        pb::PredictMode::Off => return out.line("nothing is learned here: [predict] mode is off"),
        pb::PredictMode::Shadow => out.line("guesses are scored, and never acted on: [predict] mode is shadow")?,
        _ => out.line(format_args!(
            "guesses of at least {threshold} are acted on while {precision} of their kind come true"
        ))?,
    }
    out.line("")?;
    // A kind without a guess has nothing to say; all of them are in the JSON.
    let judged: Vec<_> =
        answer.habits.iter().filter(|row| row.acts || row.guesses > 0.0 || row.likeliest > 0.0).collect();
    if judged.is_empty() {
        out.line("no guess has been judged yet")?;
    } else {
        print_habits(out, &judged)?;
    }
    out.line("")?;
    if answer.predictions.is_empty() {
        return out.line("nothing is likely enough to be told");
    }
    let rows: Vec<Vec<String>> = answer.predictions.iter().map(prediction).collect();
    out.table(&["LIKELY>", "MODEL", "WITHIN>", "HABIT", "TIER", ""], &rows)
}

fn print_habits(out: Out, rows: &[&pb::HabitScore]) -> std::io::Result<()> {
    out.table(
        &[
            "HABIT",
            "STEP",
            "LEVEL",
            "ACTS",
            "RIGHT>",
            "OF>",
            "LIKELIEST RIGHT>",
            "OF>",
            "USED>",
            "WASTED>",
            "SAVES>",
            "COSTS>",
        ],
        &rows.iter().map(|row| habit(row)).collect::<Vec<_>>(),
    )
}

fn habit(row: &pb::HabitScore) -> Vec<String> {
    let share = |right: f64, of: f64| if of > 0.0 { percent(right / of) } else { "-".to_owned() };
    vec![
        row.habit.clone(),
        row.step.clone(),
        row.level.clone(),
        if row.acts { "yes" } else { "no" }.to_owned(),
        share(row.guesses_right, row.guesses),
        format!("{:.0}", row.guesses),
        share(row.likeliest_right, row.likeliest),
        format!("{:.0}", row.likeliest),
        size(row.used_bytes),
        size(row.wasted_bytes),
        format!("{:.1} s", row.saved_seconds),
        format!("{:.1} s", row.lost_seconds),
    ]
}

fn prediction(row: &pb::Prediction) -> Vec<String> {
    let within = row.within.and_then(|within| within.to_std()).unwrap_or_default();
    vec![
        percent(row.probability),
        row.model.clone(),
        human_duration(std::time::Duration::from_secs(within.as_secs())),
        row.habit.clone(),
        row.tier().word(),
        if row.acted { "acted on" } else { "" }.to_owned(),
    ]
}
