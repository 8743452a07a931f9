//! `tierd comfy`: what ComfyUI is told of tierd, and what tierd knows of ComfyUI.

mod install;
mod paths;
mod status;
mod unmark;

use clap::{Args, Subcommand};

use crate::cli::Context;
use crate::cli::exit::Outcome;

/// `tierd comfy`.
#[derive(Debug, Args)]
pub(crate) struct ComfyArgs {
    #[command(subcommand)]
    command: ComfyCommand,
}

#[derive(Debug, Subcommand)]
enum ComfyCommand {
    /// Show the watched ComfyUI servers, their queues, and what is ready of each prompt
    Status(status::StatusArgs),
    /// Print the extra_model_paths.yaml with which ComfyUI finds tierd's models
    Paths(paths::PathsArgs),
    /// Put the node pack into a ComfyUI, or take it out again
    Install(install::InstallArgs),
    /// Remove the marks of models that are not here from the models folder, as before an uninstallation
    Unmark(unmark::UnmarkArgs),
}

impl ComfyArgs {
    /// Whether it asks a daemon.
    pub(crate) fn is_client(&self) -> bool {
        matches!(self.command, ComfyCommand::Status(_))
    }
}

/// Runs `tierd comfy`.
pub(crate) async fn comfy(context: &Context, args: ComfyArgs) -> Outcome {
    match args.command {
        ComfyCommand::Status(args) => status::status(context, args).await,
        ComfyCommand::Paths(args) => paths::paths(context, args),
        ComfyCommand::Install(args) => install::install(context, args),
        ComfyCommand::Unmark(args) => unmark::unmark(context, args),
    }
}
