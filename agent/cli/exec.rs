//! `tierd exec`: makes everything ready, then becomes the launcher.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::cli::Context;
use crate::cli::ensure::{EnsureArgs, TargetArg, ensure};
use crate::cli::exit::{Exit, Failure, Outcome};

/// `tierd exec`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd exec --workflow flux.json -- python main.py --listen\n  \
    tierd exec --workflow a.json --workflow b.json --target ram -- ./comfyui.sh\n  \
    tierd exec --model vae/ae.safetensors --keep-going -- python main.py\n\n\
    The command replaces this process: it keeps its process id, its environment and its standard streams, and its exit \
    code is the command's. If the models cannot be made ready, the command is not started and the exit code is that of \
    `tierd ensure`; with --keep-going it is started anyway.")]
pub(crate) struct ExecArgs {
    /// A workflow whose models are wanted: JSON or PNG; - for standard input
    #[arg(long, short, value_name = "FILE", required_unless_present = "models")]
    pub workflow: Vec<PathBuf>,
    /// A model that is wanted: <folder>/<path>
    #[arg(long = "model", short, value_name = "MODEL")]
    pub models: Vec<String>,
    /// Where they are wanted
    #[arg(long, value_name = "TIER", default_value = "nvme")]
    pub target: TargetArg,
    /// Go on without models that no origin and no tier knows
    #[arg(long)]
    pub partial: bool,
    /// Start the command even if the models could not be made ready
    #[arg(long)]
    pub keep_going: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Runs `tierd exec`. Returns only if the command was not started.
pub(crate) async fn exec(context: &Context, args: ExecArgs) -> Outcome {
    let wanted = EnsureArgs {
        models: args.models,
        workflow: args.workflow,
        partial: args.partial,
        target: args.target,
        standalone: false,
        cancel: false,
    };
    match ensure(context, wanted).await {
        Ok(()) => {}
        // Whoever interrupts does not want the command either.
        Err(failure) if args.keep_going && failure.exit != Exit::Interrupted => {
            context.out.note(format_args!("not everything is ready, going on: {}", failure.text));
        }
        Err(failure) => return Err(failure),
    }
    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::new(Exit::Usage, "name a command behind --"));
    };
    let error = Command::new(program).args(rest).exec();
    Err(Failure::new(Exit::Failed, format_args!("cannot start {}: {error}", program.display())))
}
