//! `tierd comfy status`: the watched servers, their queues, and what is ready of each prompt.

use clap::Args;
use tierd_cache::units::human_duration;

use crate::cli::exit::Outcome;
use crate::cli::out::{aligned, size};
use crate::cli::{Context, client};
use crate::rpc::pb;

/// `tierd comfy status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd comfy status\n  tierd comfy status --prompts 3 --json\n\n\
    READY counts the bytes that are on the disk or in RAM; what is missing is fetched in the order of the queue.")]
pub(crate) struct StatusArgs {
    /// Most prompts shown for each server
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    prompts: u32,
}

/// Runs `tierd comfy status`.
pub(crate) async fn status(context: &Context, args: StatusArgs) -> Outcome {
    let mut comfy = client::comfy(&context.reach, &context.env).await?;
    let request = pb::ListComfyServersRequest { prompts_max: args.prompts };
    let answer = comfy.list_comfy_servers(request).await?.into_inner();
    context.out.document(&answer)?;
    if answer.servers.is_empty() {
        context
            .out
            .line("no ComfyUI server is watched: name one in [comfy] servers, or install the node pack there")?;
    }
    for (at, server) in answer.servers.iter().enumerate() {
        if at > 0 {
            context.out.line("")?;
        }
        for line in lines(server) {
            context.out.line(line)?;
        }
    }
    Ok(())
}

fn lines(server: &pb::ComfyServer) -> Vec<String> {
    let mut about = vec![if server.up { "up".to_owned() } else { "down".to_owned() }];
    if !server.version.is_empty() {
        about.push(format!("ComfyUI {}", server.version));
    }
    about.push(format!("{} running, {} waiting", server.running, server.pending));
    about.push(format!("{} succeeded, {} failed", server.succeeded, server.failed));
    if let Some(time) = server.prompt_time.and_then(|time| time.to_std()) {
        about.push(format!("{} a prompt", human_duration(time)));
    }
    if server.fast_disk {
        about.push("streams from the disk".to_owned());
    }
    if server.polling {
        about.push("asked every second".to_owned());
    }
    let mut lines = vec![format!("{}: {}", server.name, about.join(", "))];
    if !server.detail.is_empty() {
        lines.push(format!("  {}", server.detail));
    }
    if !server.prompts.is_empty() {
        let rows: Vec<Vec<String>> = server.prompts.iter().map(row).collect();
        lines.extend(aligned(&["  TURN>", "PROMPT", "READY>", "TOTAL>", "MISSING"], &rows));
    }
    lines
}

fn row(prompt: &pb::ComfyPrompt) -> Vec<String> {
    let here = |model: &&pb::ComfyNeed| matches!(model.tier(), pb::Tier::Ram | pb::Tier::Nvme);
    let ready: u64 = prompt.models.iter().filter(here).map(|model| model.bytes).sum();
    let total: u64 = prompt.models.iter().map(|model| model.bytes).sum();
    let mut missing: Vec<String> =
        prompt.models.iter().filter(|model| !here(model)).map(|model| model.model.clone()).collect();
    missing.extend(prompt.unknown.iter().map(|model| format!("{model} (nobody has it)")));
    if !prompt.unreadable.is_empty() {
        missing.push(prompt.unreadable.clone());
    }
    let turn = if prompt.position == 0 { "runs".to_owned() } else { prompt.position.to_string() };
    vec![turn, prompt.prompt_id.clone(), size(ready), size(total), missing.join(", ")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_reads_on_one_line_and_each_prompt_on_another() {
        let need =
            |model: &str, tier: pb::Tier| pb::ComfyNeed { model: model.into(), bytes: 1 << 20, tier: tier.into() };
        let prompt = pb::ComfyPrompt {
            prompt_id: "abc".into(),
            position: 0,
            models: vec![need("vae/a", pb::Tier::Nvme), need("vae/b", pb::Tier::Origin)],
            unknown: vec!["vae/c".into()],
            unreadable: String::new(),
        };
        let server =
            pb::ComfyServer { name: "h:1".into(), up: true, running: 1, prompts: vec![prompt], ..Default::default() };
        let lines = lines(&server);
        assert_eq!(lines[0], "h:1: up, 1 running, 0 waiting, 0 succeeded, 0 failed");
        assert!(lines[2].contains("runs") && lines[2].contains("1 MiB") && lines[2].contains("2 MiB"), "{lines:?}");
        assert!(lines[2].ends_with("vae/b, vae/c (nobody has it)"), "{lines:?}");
    }
}
