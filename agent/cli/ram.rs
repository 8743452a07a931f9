//! `tierd promote` and `tierd demote`: what is held in RAM beside the disk.

use clap::Args;

use crate::cli::exit::Outcome;
use crate::cli::models::tell_kept;
use crate::cli::{Context, client};
use crate::rpc::pb;

/// `tierd promote`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tierd promote text_encoders/t5xxl_fp16.safetensors vae/ae.safetensors && tierd top\n\n\
    Returns at once, and fetches nothing: `tierd ensure --target ram` does both and waits. Name the models in the order in \
    which they will be used. Exits with 3 if something is not on the disk, with 4 if it can never fit."
)]
pub(crate) struct PromoteArgs {
    /// Models in ComfyUI's layout: <folder>/<path>
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
}

/// `tierd demote`.
#[derive(Debug, Args)]
#[command(
    after_help = "They stay on the disk. Exits with 7 if something is held in RAM and stays, with 3 if it is not in RAM."
)]
pub(crate) struct DemoteArgs {
    /// Models in ComfyUI's layout: <folder>/<path>
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
}

/// Runs `tierd promote`.
pub(crate) async fn promote(context: &Context, args: PromoteArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let report = daemon.cache.promote_models(pb::PromoteModelsRequest { models: args.models }).await?.into_inner();
    context.out.document(&report)?;
    for model in &report.promoted {
        context.out.line(format_args!("{model} is in RAM or on its way"))?;
    }
    tell_kept(context, &report.kept)
}

/// Runs `tierd demote`.
pub(crate) async fn demote(context: &Context, args: DemoteArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let request = pb::DemoteModelsRequest { models: args.models, client: String::new() };
    let report = daemon.cache.demote_models(request).await?.into_inner();
    context.out.document(&report)?;
    for model in &report.demoted {
        context.out.line(format_args!("{model} left RAM"))?;
    }
    tell_kept(context, &report.kept)
}
