//! `tierd check-config`: the same reading as the daemon's, all mistakes at once.

use clap::Args;

use crate::cli::Context;
use crate::cli::exit::Outcome;
use crate::config;

/// `tierd check-config`.
#[derive(Debug, Args)]
#[command(after_help = "Exits with 2 and lists every mistake if something is wrong. Secrets are never printed.")]
pub(crate) struct CheckConfigArgs {
    /// Print an example file with every option, its default and the reason for it
    #[arg(long)]
    pub example: bool,
}

/// Runs `tierd check-config`.
pub(crate) fn check_config(context: &Context, args: CheckConfigArgs) -> Outcome {
    if args.example {
        let example = config::reference_toml();
        context.out.document(&serde_json::json!({ "example": example }))?;
        context.out.line(example.trim_end())?;
        return Ok(());
    }
    let file = config::find_config(context.config_file.as_deref(), &context.env);
    let config = context.config()?;
    context.out.document(&serde_json::json!({ "file": file, "effective": config.to_string() }))?;
    match &file {
        Some(file) => context
            .out
            .line(format_args!("# {} is good; with defaults and the environment it means:", file.display()))?,
        None => context.out.line("# no configuration file; these defaults are in force:")?,
    }
    context.out.line(config.to_string().trim_end())?;
    Ok(())
}
