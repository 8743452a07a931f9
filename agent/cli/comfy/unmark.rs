//! `tierd comfy unmark`: takes the marks out of the models folder. Touches nothing but tierd's own dangling links.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::Context;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::count;

/// `tierd comfy unmark`.
#[derive(Debug, Args)]
#[command(
    after_help = "Asks no daemon. One that runs with `marks = true` in [comfy] puts them back at its next look at the origins: \
    stop it first, or turn the option off, which removes them too.\n\nExample:\n  systemctl stop tierd && tierd comfy unmark"
)]
pub(crate) struct UnmarkArgs {
    /// The models folder [default: the configuration's]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
}

/// Runs `tierd comfy unmark`.
pub(crate) fn unmark(context: &Context, args: UnmarkArgs) -> Outcome {
    let models = match args.models {
        Some(models) => models,
        None => context.config()?.engine.store.models,
    };
    let marked = tierd_cache::store::remove_marks(&models).map_err(|error| Failure::new(Exit::Failed, error))?;
    context.out.document(&json!({ "models_path": models, "removed": marked.removed }))?;
    context.out.line(format_args!("removed {} from {}", count(marked.removed, "mark"), models.display()))?;
    Ok(())
}
