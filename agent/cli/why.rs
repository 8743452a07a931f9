//! `tierd why`: why a model is where it is.

use clap::Args;

use crate::cli::exit::Outcome;
use crate::cli::out::{Out, count, size};
use crate::cli::{Context, client};
use crate::rpc::pb;

/// `tierd why`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd why checkpoints/flux1-dev.safetensors\n  \
    tierd why vae/ae.safetensors --json | jq .decisions\n\n\
    Worth is what the policy weighs: seconds of waiting that a model saves a day, for each GiB that it holds. What is worth \
    least goes first; what is leased or in use does not go. Decisions are remembered since the daemon started. \
    See docs/policy.md.")]
pub(crate) struct WhyArgs {
    /// The model, in ComfyUI's layout: <folder>/<path>
    #[arg(value_name = "MODEL")]
    pub model: String,
}

/// Runs `tierd why`.
pub(crate) async fn why(context: &Context, args: WhyArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let answer = daemon.report.explain(pb::ExplainRequest { model: args.model }).await?.into_inner();
    context.out.document(&answer)?;
    for line in lines(&answer) {
        context.out.line(line)?;
    }
    decisions(context.out, &answer)?;
    Ok(())
}

fn lines(answer: &pb::ExplainResponse) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", answer.model, size(answer.bytes))];
    if answer.tiers.is_empty() {
        lines.push("it is not on this node; an origin has it".to_owned());
    }
    if let Some(used) = answer.last_used {
        lines.push(format!("last used {used}"));
    }
    for tier in &answer.tiers {
        lines.push(format!("{}: {}", word(tier.tier), stands(tier, answer.bytes)));
        if let Some(standing) = &tier.standing {
            lines.push(format!("  {}", numbers(standing)));
        }
        if !tier.next.is_empty() && tier.before != Some(0) {
            let worth = tier.next_worth.map(|worth| format!(", worth {worth:.3}")).unwrap_or_default();
            lines.push(format!("  next to go is {}{worth}", tier.next));
        }
    }
    if !answer.held.is_empty() {
        lines.push(format!("it may not leave the disk: {}", answer.held));
    }
    for use_ in &answer.expected {
        let when = match use_.position {
            0 => "its running prompt".to_owned(),
            1 => "its next prompt".to_owned(),
            position => format!("a prompt with {} before it", count(position, "other")),
        };
        lines.push(format!("{} expects it for {when}", use_.source));
    }
    lines
}

fn word(tier: i32) -> String {
    pb::Tier::try_from(tier).map(pb::Tier::word).unwrap_or_default()
}

fn stands(tier: &pb::TierStanding, bytes: u64) -> String {
    let worth = tier.standing.map(|standing| format!(", worth {:.3} a GiB", standing.worth)).unwrap_or_default();
    let place = match tier.before {
        Some(0) => "it goes next".to_owned(),
        Some(before) => format!("{} would go before it", count(before, "blob")),
        None => "it may not go now".to_owned(),
    };
    format!("{place}{worth} ({})", size(bytes))
}

fn numbers(standing: &pb::Standing) -> String {
    let expected = if standing.expected { ", and a queued prompt needs it" } else { "" };
    let (uses, saved) = (standing.uses_per_day, standing.saved_seconds);
    format!("{uses:.2} uses a day expected{expected}; each waits {saved:.2} s less than from an origin")
}

fn decisions(out: Out, answer: &pb::ExplainResponse) -> std::io::Result<()> {
    if answer.decisions.is_empty() {
        return out.line("nothing was decided about it since the daemon started");
    }
    out.line("")?;
    let worth = |worth: Option<f64>| worth.map(|worth| format!("{worth:.3}")).unwrap_or_default();
    let rows: Vec<Vec<String>> = (answer.decisions.iter())
        .map(|decision| {
            let kind = pb::DecisionKind::try_from(decision.kind).map(pb::DecisionKind::word).unwrap_or_default();
            let at = decision.at.map(|at| at.to_string()).unwrap_or_default();
            vec![at, kind, worth(decision.worth), worth(decision.wanted_by_worth), decision.reason.clone()]
        })
        .collect();
    out.table(&["WHEN", "WHAT", "WORTH>", "AGAINST>", "WHY"], &rows)
}
