//! The command line: one binary for the daemon and for people. Each command is a client like any other, but for the few
//! that need no daemon. Knows words and exit codes; decides nothing about models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::CommandFactory;

use crate::config::{self, Config};

mod check_config;
mod client;
mod comfy;
mod demo;
mod disk;
mod doctor;
mod ensure;
pub(crate) mod events;
mod exec;
pub mod exit;
mod fleet;
mod grammar;
mod models;
mod out;
mod predictions;
mod progress;
mod push;
mod ram;
mod readiness;
mod replay;
mod report;
mod scan;
mod status;
mod top;
mod why;
mod workers;
mod workflow;

use client::Reach;
use exit::{Exit, Failure, Outcome};
pub use grammar::Cli;
use grammar::Command;
use out::Out;

/// What every command is given.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) reach: Reach,
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) out: Out,
}

impl Context {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// [`Exit::Usage`] with all mistakes at once.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let file = config::find_config(self.config_file.as_deref(), &self.env);
        Config::load(file.as_deref(), &self.env).map_err(|problems| Failure::new(Exit::Usage, problems))
    }
}

/// Runs one command to its end and says what went wrong, if anything.
///
/// Returns the exit code; ends nothing itself.
#[must_use]
pub fn main(env: BTreeMap<String, String>) -> Exit {
    let mut cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures; a closed terminal is none either.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    let out = Out { json: cli.json, quiet: cli.quiet };
    if cli.command.is_client() && cli.reach.socket.is_none() {
        match cli.configured_socket(&env) {
            Ok(socket) => cli.reach.socket = socket,
            Err(failure) => return report(out, &failure),
        }
    }
    let context = Context { reach: cli.reach, config_file: cli.config, env, out };
    match start(&context, cli.command) {
        Ok(()) => Exit::Ok,
        Err(failure) => report(out, &failure),
    }
}

fn report(out: Out, failure: &Failure) -> Exit {
    if !failure.text.is_empty() {
        eprintln!("tierd: {}", failure.text);
        if let Err(error) = out.json_line(&failure.json()) {
            eprintln!("tierd: {error}");
        }
    }
    failure.exit
}

/// Starts the runtime: the daemon uses every core, a client needs one thread.
fn start(context: &Context, command: Command) -> Outcome {
    let mut builder = match &command {
        Command::Serve | Command::Ensure(ensure::EnsureArgs { standalone: true, .. }) | Command::Push(_) => {
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build()?;
    let outcome = runtime.block_on(run(context, command));
    // What still runs is a blocked read or a lookup that nobody waits for.
    runtime.shutdown_background();
    outcome
}

async fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Serve => serve(context).await,
        Command::Ensure(args) => ensure::ensure(context, args).await,
        Command::Exec(args) => exec::exec(context, args).await,
        Command::Resolve(args) => workflow::resolve(context, args).await,
        Command::Scan(args) => scan::scan(context, args).await,
        Command::Prefetch(args) => ensure::prefetch(context, args).await,
        Command::Status => status::status(context).await,
        Command::Top(args) => top::top(context, args).await,
        Command::Doctor => doctor::doctor(context).await,
        Command::Promote(args) => ram::promote(context, args).await,
        Command::Demote(args) => ram::demote(context, args).await,
        Command::Models(args) => models::models(context, args).await,
        Command::Flights(args) => status::flights(context, args).await,
        Command::Pin(args) => models::pin(context, args).await,
        Command::Unpin(args) => models::unpin(context, args).await,
        Command::Leases(args) => models::leases(context, args).await,
        Command::Evict(args) => models::evict(context, args).await,
        Command::Push(args) => push::push(context, args).await,
        Command::Import(args) => disk::import(context, args).await,
        Command::Verify(args) => disk::verify(context, args).await,
        Command::Refresh(args) => disk::refresh(context, args).await,
        Command::Readiness(args) => readiness::readiness(context, args).await,
        Command::Fleet(args) => fleet::fleet(context, args).await,
        Command::Report(args) => report::report(context, args).await,
        Command::Why(args) => why::why(context, args).await,
        Command::Predictions => predictions::predictions(context).await,
        Command::Workers => workers::workers(context).await,
        Command::Events(args) => events::events(context, args).await,
        Command::Replay(args) => replay::replay(context, &args),
        Command::Comfy(args) => comfy::comfy(context, args).await,
        Command::Health => status::health(context).await,
        Command::CheckConfig(args) => check_config::check_config(context, args),
        Command::Demo(args) => demo::demo(context, args).await,
        Command::Completions { shell } => {
            let Some(shell) = shell.or_else(clap_complete::Shell::from_env) else {
                return Err(Failure::new(
                    Exit::Usage,
                    "$SHELL names no shell that is known here: say which, as in tierd completions bash",
                ));
            };
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tierd", &mut script);
            std::io::Write::write_all(&mut std::io::stdout().lock(), &script)?;
            Ok(())
        }
    }
}

async fn serve(context: &Context) -> Outcome {
    let config = context.config()?;
    crate::telemetry::log::init(&config.log, &context.env).map_err(|error| Failure::new(Exit::Usage, error))?;
    crate::app::serve(config).await.map_err(|error| Failure::new(Exit::Failed, error))
}
