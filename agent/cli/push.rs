//! `tierd push`: fills an origin with models, without a daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tierd_cache::ids::OriginName;
use tierd_cache::origin::Origin;
use tierd_cache::origin::push::{self, PushFile, PushOptions, PushProgress};
use tierd_cache::units::ByteSize;

use crate::cli::Context;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::size;

/// `tierd push`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd push ~/ComfyUI/models --origin r2\n  \
    tierd push --dry-run diffusion_models/flux1-schnell.safetensors --origin r2\n\n\
    A DIR is in ComfyUI's layout; a FILE lies in a folder of that name. Files are read once, hashed as they go, and the \
    origin's manifest is extended with their digests. What it has already is skipped. Needs no daemon.")]
pub(crate) struct PushArgs {
    /// Folders in ComfyUI's layout, or model files
    #[arg(required = true, value_name = "DIR|FILE")]
    pub paths: Vec<PathBuf>,
    /// Name of the origin, as the configuration has it
    #[arg(long, value_name = "NAME")]
    pub origin: String,
    /// Parts in memory and on their way at once, over all files
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub concurrency: u32,
    /// Size of one part of an upload, 5 MiB to 1 GiB
    #[arg(long, default_value = "16 MiB", value_parser = part_size)]
    pub part: ByteSize,
    /// Upload also what the manifest has already
    #[arg(long)]
    pub force: bool,
    /// Only say what would be uploaded
    #[arg(long)]
    pub dry_run: bool,
}

/// S3 takes no smaller parts but the last; more than 1 GiB is memory for nothing.
fn part_size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|bad| format!("{bad}"))?;
    if (5 << 20..=1 << 30).contains(&size.0) { Ok(size) } else { Err(format!("{size} is not in 5 MiB to 1 GiB")) }
}

/// Runs `tierd push`.
pub(crate) async fn push(context: &Context, args: PushArgs) -> Outcome {
    let config = context.config()?;
    let wanted = OriginName::new(&args.origin);
    let Some(origin) = config.engine.origins.iter().find(|origin| origin.name == wanted) else {
        let known: Vec<_> = config.engine.origins.iter().map(|origin| origin.name.to_string()).collect();
        let text = format!("no origin is called {wanted}; the configuration has: {}", known.join(", "));
        return Err(Failure::new(Exit::NotFound, text));
    };
    let fault = |error: tierd_cache::origin::OriginError| Failure::from(error.fault(&wanted, "push"));
    // What is wrong here is wrong with the files that were named: no origin has been asked yet.
    let files = push::plan_push(&args.paths).map_err(|error| Failure::new(Exit::Usage, error))?;
    if args.dry_run {
        for file in &files {
            context.out.json_line(&serde_json::json!({ "file": file.file, "model": file.model }))?;
            context.out.line(format_args!("{} -> {}", file.file.display(), file.model))?;
        }
        return Ok(());
    }
    let origin = Origin::open(origin).map_err(fault)?;
    let bar = progress_bar(context, &files)?;
    let options = PushOptions { concurrency: args.concurrency as usize, part_bytes: args.part.0, force: args.force };
    let sent = Mutex::new(BTreeMap::new());
    let progress = |progress: PushProgress| {
        let (model, bytes) = match progress {
            PushProgress::Started { .. } => return,
            PushProgress::Sent { model, sent, .. } => (model, sent),
            PushProgress::Skipped { model, bytes } => (model, bytes),
            PushProgress::Done { model } => (model.name, model.size),
        };
        let mut sent = sent.lock().expect("nothing panics while it is held");
        sent.insert(model, bytes);
        bar.set_position(sent.values().sum());
    };
    let pushed = tokio::select! {
        pushed = push::push(&origin, files, options, progress) => pushed.map_err(fault),
        _ = tokio::signal::ctrl_c() => {
            Err(Failure::new(Exit::Interrupted, "interrupted: what is not in the manifest yet is sent again next time"))
        }
    };
    bar.finish_and_clear();
    let report = pushed?;
    context.out.document(&serde_json::json!({ "uploaded": report.uploaded, "skipped": report.skipped }))?;
    for model in &report.uploaded {
        context.out.line(format_args!("uploaded {} ({})", model.name, size(model.size)))?;
    }
    let bytes: u64 = report.uploaded.iter().map(|model| model.size).sum();
    let (files, skipped) = (report.uploaded.len(), report.skipped.len());
    context
        .out
        .line(format_args!("{files} uploaded ({}), {skipped} skipped: {wanted} has them already", size(bytes)))?;
    Ok(())
}

fn progress_bar(context: &Context, files: &[PushFile]) -> Result<ProgressBar, Failure> {
    if !context.out.draws() {
        return Ok(ProgressBar::hidden());
    }
    let mut total = 0;
    for file in files {
        total += std::fs::metadata(&file.file)?.len();
    }
    let template = "push [{bar:40}] {bytes:>11}/{total_bytes:<11} {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).expect("the template is a constant").progress_chars("=> ");
    Ok(ProgressBar::new(total).with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_s3_refuses_are_refused_here() {
        assert_eq!(part_size("16 MiB"), Ok(ByteSize(16 << 20)));
        for text in ["1 MiB", "2 GiB", "many"] {
            assert!(part_size(text).is_err(), "{text}");
        }
    }
}
