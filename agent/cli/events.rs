//! `tierd events`: what happened on the node, and why.

use clap::Args;
use tierd_cache::units::human_duration;

use crate::cli::exit::Outcome;
use crate::cli::out::{count, size};
use crate::cli::{Context, client};
use crate::rpc::pb::{self, demoted_occurrence, evicted_occurrence::Reason, occurrence::What, watch_response::Update};

/// `tierd events`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd events\n  tierd events --follow --json | jq 'select(.occurrence.evicted)'")]
pub(crate) struct EventsArgs {
    /// Go on with what happens, until interrupted
    #[arg(long, short)]
    pub follow: bool,
    /// Only what happened after this place in the order: the first column, or `resume_token` in JSON
    #[arg(long, value_name = "SEQ")]
    pub since: Option<String>,
}

/// Runs `tierd events`.
pub(crate) async fn events(context: &Context, args: EventsArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let request = pb::WatchRequest {
        resume_token: args.since.unwrap_or_default(),
        past_only: !args.follow,
        ..Default::default()
    };
    let mut steps = daemon.node.watch(request).await?.into_inner();
    while let Some(step) = steps.message().await? {
        context.out.json_line(&step)?;
        match &step.update {
            Some(Update::Occurrence(occurrence)) => context.out.line(line(occurrence))?,
            Some(Update::Resync(resync)) => {
                context.out.note(format_args!("-- some events are lost: {}", resync.reason))
            }
            // Only who follows the node's state is told of those.
            Some(Update::Snapshot(_) | Update::Change(_)) | None => {}
        }
    }
    Ok(())
}

/// One occurrence on one line.
pub(crate) fn line(occurrence: &pb::Occurrence) -> String {
    let at = occurrence.at.map(|at| at.to_string()).unwrap_or_default();
    let what = occurrence.what.as_ref().map_or_else(|| "something newer than this tool".to_owned(), words);
    format!("{:>6}  {at}  {what}", occurrence.resume_token)
}

/// What happened, in words.
pub(crate) fn words(what: &What) -> String {
    match what {
        What::Started(started) => format!("started with {}, {}", count(started.blobs, "blob"), size(started.bytes)),
        What::Stored(stored) => stored_words(stored),
        What::Evicted(evicted) => {
            let why = evicted.reason.as_ref().map_or_else(|| "unknown".to_owned(), reason);
            format!("evicted {} ({} freed): {why}", evicted.model, size(evicted.bytes))
        }
        What::FlightFailed(failed) => {
            format!("flight {} failed ({}): {}", failed.flight, failed.models.join(" "), failed.detail)
        }
        What::Damaged(damaged) => {
            let (models, pieces) = (damaged.models.join(" "), count(damaged.pieces_bad, "bad piece"));
            format!("damaged {models}: {pieces}, withdrawn until repaired ({})", damaged.detail)
        }
        What::Pinned(pinned) => {
            format!("pinned by {} (lease {}): {}", pinned.owner, pinned.lease, pinned.models.join(" "))
        }
        What::Unpinned(unpinned) => {
            let how = if unpinned.expired { "expired" } else { "ended" };
            format!("lease {} of {} {how}", unpinned.lease, unpinned.owner)
        }
        What::Promoted(promoted) => {
            let elapsed = promoted.elapsed.and_then(|elapsed| elapsed.to_std()).unwrap_or_default();
            let (bytes, elapsed) = (size(promoted.bytes), human_duration(elapsed));
            format!("promoted {} ({bytes} in RAM, in {elapsed})", promoted.models.join(" "))
        }
        What::Demoted(demoted) => {
            let why = demoted.reason.as_ref().map_or_else(|| "unknown".to_owned(), demote_reason);
            format!("demoted {} ({} of RAM freed): {why}", demoted.models.join(" "), size(demoted.bytes))
        }
        What::Origin(origin) => {
            let dash = if origin.detail.is_empty() { "" } else { ": " };
            format!("origin {} is {}{dash}{}", origin.origin, origin.state().word(), origin.detail)
        }
        What::Listed(listed) => format!("origin {} was listed: {}", listed.origin, count(listed.models, "model")),
        What::WorkerSeen(seen) => {
            let at = if seen.address.is_empty() { String::new() } else { format!(" at {}", seen.address) };
            format!("worker {} (process {}, {}){at} reports its VRAM", seen.worker, seen.pid, seen.version)
        }
        What::WorkerLost(lost) => format!("worker {} (process {}) is over: {}", lost.worker, lost.pid, lost.detail),
        What::Advised(advised) => format!(
            "device {} of worker {} has {} of {} in use: unload {}",
            advised.device,
            advised.worker,
            size(advised.used_bytes),
            size(advised.total_bytes),
            advised.unload.join(", ")
        ),
        What::Predicts(predicts) => {
            let (habit, step, percent) = (&predicts.habit, &predicts.step, predicts.precision_percent);
            let what = if predicts.acts { "are acted on" } else { "are not acted on any more" };
            let level = &predicts.level;
            format!(
                "{level} guesses by {habit} ({step}) {what}: {percent}% of the last {} were right",
                predicts.guesses
            )
        }
        What::Freed(freed) if freed.detail.is_empty() => {
            format!("worker {} was told to unload its models", freed.worker)
        }
        What::Freed(freed) => {
            format!("worker {} could not be told to unload its models: {}", freed.worker, freed.detail)
        }
    }
}

fn stored_words(stored: &pb::StoredOccurrence) -> String {
    let elapsed = stored.elapsed.and_then(|elapsed| elapsed.to_std()).unwrap_or_default();
    let from = if stored.origin.is_empty() { String::new() } else { format!(" from {}", stored.origin) };
    format!(
        "stored {} ({}, {} fetched{from}, {}, in {})",
        stored.model,
        size(stored.bytes),
        size(stored.bytes_fetched),
        stored.trust().word().replace('_', " "),
        human_duration(elapsed)
    )
}

fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Room(room) => format!("room for {} ({})", room.wanted_by, room.policy),
        Reason::Asked(asked) => format!("asked by {}", asked.by),
        Reason::Shrunk(shrunk) => format!("the budget shrank, {} over", size(shrunk.bytes_over)),
        Reason::Replaced(replaced) => format!("replaced by {}", replaced.by.get(..12).unwrap_or(&replaced.by)),
    }
}

fn demote_reason(reason: &demoted_occurrence::Reason) -> String {
    use demoted_occurrence::Reason;
    match reason {
        Reason::Room(room) => format!("room for {} ({})", room.wanted_by, room.policy),
        Reason::Asked(asked) => format!("asked by {}", asked.by),
        Reason::Pressure(pressure) => format!("the node is short of memory ({})", pressure.source),
        Reason::Shrunk(shrunk) => format!("the budget shrank, {} over", size(shrunk.bytes_over)),
        Reason::Removed(_) => "it leaves the disk".to_owned(),
        Reason::Failed(failed) => failed.detail.clone(),
    }
}
