//! `tierd readiness`: how soon a set could be ready here, and what it would push out.

use std::path::PathBuf;

use clap::Args;
use tierd_cache::units::human_duration;

use crate::cli::ensure::TargetArg;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::{count, size};
use crate::cli::{Context, client, workflow};
use crate::rpc::pb;

/// `tierd readiness`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tierd readiness diffusion_models/flux1-schnell.safetensors vae/ae.safetensors\n  \
    tierd readiness --workflow flux.json\n  \
    tierd readiness --target ram --json vae/ae.safetensors | jq -r .p50\n\n\
    Asks nobody and moves nothing: the answer rests on what this node has measured so far, and says how true such answers \
    turned out. Exits with 3 if a model is not known or a workflow's name cannot be resolved, with 4 if the set can never fit. VRAM is told \
    beside that: weights that do not fit there whole are loaded in parts."
)]
pub(crate) struct ReadinessArgs {
    /// Models in ComfyUI's layout: <folder>/<path>
    #[arg(required_unless_present = "workflow", value_name = "MODEL")]
    pub models: Vec<String>,
    /// A workflow whose models are wanted too: JSON, or a PNG that holds one; - for standard input
    #[arg(long, value_name = "FILE")]
    pub workflow: Option<PathBuf>,
    /// Where they would be wanted
    #[arg(long, value_enum, default_value = "nvme")]
    pub target: TargetArg,
}

/// Runs `tierd readiness`.
pub(crate) async fn readiness(context: &Context, args: ReadinessArgs) -> Outcome {
    let workflow = args.workflow.map_or_else(|| Ok(Vec::new()), |file| workflow::read(&file))?;
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let target = pb::Tier::from(args.target).into();
    let request = pb::EstimateReadinessRequest { models: args.models, target, workflow };
    let answer = daemon.placement.estimate_readiness(request).await?.into_inner();
    context.out.document(&answer)?;
    if !context.out.json {
        print(context, &answer)?;
    }
    let worst = |obstacle: &pb::Obstacle| match obstacle.kind() {
        pb::ObstacleKind::NoRoom | pb::ObstacleKind::NoMemory => Exit::NoRoom,
        pb::ObstacleKind::Unknown | pb::ObstacleKind::Unresolved | pb::ObstacleKind::Unspecified => Exit::NotFound,
    };
    answer.obstacles.first().map_or(Ok(()), |obstacle| Err(Failure::told(worst(obstacle))))
}

fn print(context: &Context, answer: &pb::EstimateReadinessResponse) -> std::io::Result<()> {
    let row = |model: &pb::ModelReadiness| {
        let tier = if model.tier() == pb::Tier::Unspecified { "unknown".to_owned() } else { model.tier().word() };
        let bytes = |bytes| if bytes == 0 { "-".to_owned() } else { size(bytes) };
        // Nobody knows the size of what nobody knows.
        let whole = if model.bytes == 0 { String::new() } else { size(model.bytes) };
        vec![model.model.clone(), whole, tier, bytes(model.bytes_to_fetch), bytes(model.bytes_to_lock)]
    };
    let rows: Vec<Vec<String>> = answer.models.iter().map(row).collect();
    context.out.table(&["MODEL", "SIZE>", "IN", "TO FETCH>", "TO LOCK>"], &rows)?;
    for (what, displaced) in [("the disk", &answer.evicts), ("RAM", &answer.demotes)] {
        for model in displaced {
            context.out.line(format_args!("would leave {what}: {} ({})", model.model, size(model.bytes)))?;
        }
    }
    for obstacle in &answer.obstacles {
        context.out.line(in_the_way(obstacle))?;
    }
    for device in &answer.devices {
        context.out.line(vram(device))?;
    }
    if answer.devices.is_empty() {
        context.out.line(format_args!("VRAM: not known ({})", answer.vram_detail))?;
    }
    if answer.obstacles.is_empty() {
        context.out.line(soon(answer))?;
    }
    Ok(())
}

fn in_the_way(obstacle: &pb::Obstacle) -> String {
    let (needed, available) = (size(obstacle.needed_bytes), size(obstacle.available_bytes));
    match obstacle.kind() {
        pb::ObstacleKind::NoRoom => format!("does not fit onto the disk: {needed} needed, {available} can be had"),
        pb::ObstacleKind::NoMemory => format!("does not fit into RAM: {needed} needed, {available} can be had"),
        pb::ObstacleKind::Unresolved => format!("cannot be resolved: {}", obstacle.detail),
        pb::ObstacleKind::Unknown | pb::ObstacleKind::Unspecified => {
            format!("not known: no origin lists {} and it is not on this node", obstacle.model)
        }
    }
}

fn vram(device: &pb::VramFit) -> String {
    let (needed, free, total) = (size(device.needed_bytes), size(device.free_bytes), size(device.total_bytes));
    let there =
        if device.loaded_bytes > 0 { format!(", {} there already", size(device.loaded_bytes)) } else { String::new() };
    let place = match device.place() {
        pb::VramPlace::Free => "fits beside what is there",
        pb::VramPlace::AfterUnload => "fits once other models leave",
        pb::VramPlace::TooLarge | pb::VramPlace::Unspecified => "does not fit whole",
    };
    format!("VRAM {}: {needed} of weights{there}, {free} of {total} free: {place}", device.index)
}

fn soon(answer: &pb::EstimateReadinessResponse) -> String {
    let span = |span: Option<crate::rpc::time::Duration>| {
        span.and_then(crate::rpc::time::Duration::to_std).map_or_else(|| "unknown".to_owned(), human_duration)
    };
    if answer.ready {
        return "ready".to_owned();
    }
    let calibration = answer.calibration.unwrap_or_default();
    let trust = if calibration.samples == 0 {
        "a guess: nothing was measured on this node yet".to_owned()
    } else {
        let off = calibration.median_error * 100.0;
        format!("half of the last {} were off by less than {off:.0} %", count(calibration.samples, "estimate"))
    };
    format!("ready in {}, at most {} in 95 of 100 ({trust})", span(answer.p50), span(answer.p95))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_guess_is_called_one_and_an_obstacle_has_its_numbers() {
        let mut answer = pb::EstimateReadinessResponse {
            p50: Some(Duration::from_secs(2).into()),
            p95: Some(Duration::from_secs(5).into()),
            ..Default::default()
        };
        assert!(soon(&answer).contains("a guess"), "{}", soon(&answer));
        answer.calibration = Some(pb::Calibration { samples: 40, median_error: 0.104, within_twice: 1.0 });
        assert!(soon(&answer).contains("10 %"), "{}", soon(&answer));
        answer.ready = true;
        assert_eq!(soon(&answer), "ready");
        let mut obstacle = pb::Obstacle { needed_bytes: 2 << 30, available_bytes: 1 << 30, ..Default::default() };
        obstacle.set_kind(pb::ObstacleKind::NoMemory);
        assert_eq!(in_the_way(&obstacle), "does not fit into RAM: 2 GiB needed, 1 GiB can be had");
    }
}
