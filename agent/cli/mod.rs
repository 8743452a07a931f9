//! The command line: one binary for the daemon and for people. Each command is a client like any other, but for the few
//! that need no daemon. Knows words and exit codes; decides nothing about models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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
use out::Out;

/// tierd keeps the model files that ComfyUI needs in the fastest tier they can be in, before they are asked for.
#[derive(Debug, Parser)]
#[command(name = "tierd", version, after_help = examples(), after_long_help = long_help(), max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    reach: Reach,
    /// Configuration file [default: $TIERD_CONFIG, ~/.config/tierd/config.toml or /etc/tierd/config.toml; none is fine]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON: one document, or one object a line for streams
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but failures
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve,
    /// Make models ready on this node, and wait for them
    Ensure(ensure::EnsureArgs),
    /// Make a workflow's models ready, then become the command that needs them
    Exec(exec::ExecArgs),
    /// Say which models a workflow needs, and where they are
    Resolve(workflow::ResolveArgs),
    /// Say the same for all workflows of a folder
    Scan(scan::ScanArgs),
    /// Start to fetch models that may be wanted soon, and do not wait
    Prefetch(ensure::PrefetchArgs),
    /// Show tiers, origins and what is being fetched
    Status,
    /// Show the same live: tiers, flights, origins and what happens
    Top(top::TopArgs),
    /// Say what limits this node and what to change, with or without a daemon
    Doctor,
    /// List models, or show one: where it is and how it was verified
    Models(models::ModelsArgs),
    /// List what is being fetched, or stop it
    Flights(status::FlightsArgs),
    /// Start to hold models in RAM that are on the disk, and do not wait
    Promote(ram::PromoteArgs),
    /// Give the RAM of models back; they stay on the disk
    Demote(ram::DemoteArgs),
    /// Hold models against eviction for a time
    Pin(models::PinArgs),
    /// End leases
    Unpin(models::UnpinArgs),
    /// List leases
    Leases(models::LeasesArgs),
    /// Remove models from the disk
    Evict(models::EvictArgs),
    /// Upload models to an origin, with their digests in its manifest
    Push(push::PushArgs),
    /// Adopt model files that are on this node already
    Import(disk::ImportArgs),
    /// Read stored models and compare them with their digests
    Verify(disk::VerifyArgs),
    /// List origins again now
    Refresh(disk::RefreshArgs),
    /// Say how soon models could be ready here, and what would have to go
    Readiness(readiness::ReadinessArgs),
    /// Ask every node of a fleet how soon models could be ready there
    Fleet(fleet::FleetArgs),
    /// Say what the cache saved over some hours, and what got worse
    Report(report::ReportArgs),
    /// Say why a model is where it is: what it is worth, what goes next, what was decided
    Why(why::WhyArgs),
    /// Show which models are likely to be asked for next, and how such guesses have done here
    Predictions,
    /// List the processes that load models onto GPUs, and what they hold there
    Workers,
    /// Show what happened, and why
    Events(events::EventsArgs),
    /// Replay a trace of requests through the engine: what people would have waited
    Replay(replay::ReplayArgs),
    /// Work with ComfyUI: its queues, its folders, its node pack
    Comfy(comfy::ComfyArgs),
    /// Ask the daemon whether it serves: for container health checks
    Health,
    /// Check the configuration and print what is in force
    CheckConfig(check_config::CheckConfigArgs),
    /// Show the main job on this machine, with made-up models in a temporary folder
    Demo(demo::DemoArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell [default: that of $SHELL]
        shell: Option<clap_complete::Shell>,
    },
}

/// Global options that reach a daemon, by their names.
const REACH: [&str; 6] = ["socket", "token_file", "ca", "cert", "key", "timeout"];

impl Command {
    /// The global options that do nothing for this command. Giving one is refused, not ignored.
    fn idle_options(&self) -> Vec<&'static str> {
        match self {
            Self::Serve | Self::Completions { .. } => [&REACH[..], &["json", "quiet"]].concat(),
            Self::Push(_) | Self::CheckConfig(_) | Self::Demo(_) | Self::Fleet(_) | Self::Replay(_) => REACH.to_vec(),
            Self::Comfy(args) if !args.is_client() => REACH.to_vec(),
            Self::Ensure(args) if args.standalone => REACH.into_iter().filter(|name| *name != "timeout").collect(),
            Self::Resolve(workflow::ResolveArgs { offline: true, .. })
            | Self::Scan(scan::ScanArgs { offline: true, .. }) => REACH.to_vec(),
            Self::Ensure(_)
            | Self::Exec(_)
            | Self::Resolve(_)
            | Self::Scan(_)
            | Self::Prefetch(_)
            | Self::Status
            | Self::Workers
            | Self::Top(_)
            | Self::Doctor
            | Self::Promote(_)
            | Self::Demote(_)
            | Self::Models(_)
            | Self::Flights(_)
            | Self::Pin(_)
            | Self::Unpin(_)
            | Self::Leases(_)
            | Self::Evict(_)
            | Self::Import(_)
            | Self::Verify(_)
            | Self::Refresh(_)
            | Self::Readiness(_)
            | Self::Report(_)
            | Self::Why(_)
            | Self::Predictions
            | Self::Events(_)
            | Self::Comfy(_)
            | Self::Health => Vec::new(),
        }
    }

    /// Whether it speaks to a daemon.
    fn is_client(&self) -> bool {
        !self.idle_options().contains(&"socket")
    }
}

impl Cli {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    ///
    /// As clap tells it; options that would do nothing for the command are refused too.
    pub fn read<T: Into<std::ffi::OsString> + Clone>(line: impl IntoIterator<Item = T>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(line)?;
        let cli = Self::from_arg_matches(&matches)?;
        // `TIERD_SOCKET` may stand in the environment of any command.
        let given = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
        match cli.command.idle_options().into_iter().find(given) {
            None => Ok(cli),
            Some(name) => {
                let command = matches.subcommand_name().unwrap_or_default();
                let option = name.replace('_', "-");
                let text = format!("--{option} does nothing for `tierd {command}`, which asks no daemon");
                Err(Self::command().error(ErrorKind::ArgumentConflict, text))
            }
        }
    }

    /// Where to look for the daemon if nobody says so: where the configuration puts its socket.
    ///
    /// A file that was named must be readable; one that lies around need not concern this user.
    fn configured_socket(&self, env: &BTreeMap<String, String>) -> Result<Option<String>, Failure> {
        let file = config::find_config(self.config.as_deref(), env);
        match Config::socket(file.as_deref(), env) {
            Ok(socket) => Ok(socket.map(|socket| socket.to_string_lossy().into_owned())),
            Err(problems) if self.config.is_some() => Err(Failure::new(Exit::Usage, problems)),
            Err(_) => Ok(None),
        }
    }
}

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

fn examples() -> &'static str {
    "Examples:\n  \
     tierd demo                                                     # the main job, on made-up models\n  \
     tierd check-config --example > config.toml                     # every option with its reason\n  \
     tierd serve --config config.toml\n  \
     tierd ensure diffusion_models/flux1-schnell.safetensors        # whole and verified, or a reason\n  \
     tierd status"
}

fn long_help() -> String {
    format!("{}\n\n{}", examples(), Exit::table())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_contract_parses() {
        for line in [
            "tierd serve --config x.toml",
            "tierd ensure vae/a vae/b --json --timeout 30s --cancel",
            "tierd ensure vae/a --standalone",
            "tierd ensure vae/a --target ram",
            "tierd prefetch vae/a --target ram",
            "tierd ensure --workflow a.json --workflow b.png vae/a --target ram --partial",
            "tierd resolve a.json --json",
            "tierd resolve - --offline",
            "tierd scan dir --models",
            "tierd exec --workflow a.json --keep-going -- python main.py --listen",
            "tierd exec -m vae/a -- true",
            "tierd promote vae/a vae/b",
            "tierd demote vae/a",
            "tierd pin vae/a --ram hard",
            "tierd models --tier ram",
            "tierd top --once",
            "tierd doctor --json",
            "tierd status -q",
            "tierd models --folder loras --tier nvme --pinned",
            "tierd models vae/a",
            "tierd flights 3 --cancel",
            "tierd pin vae/a --ttl 8h --owner me",
            "tierd unpin 1 2",
            "tierd leases --owner me",
            "tierd evict vae/a",
            "tierd push dir --origin r2 --part 64MiB --force",
            "tierd import dir --dry-run",
            "tierd verify",
            "tierd refresh r2",
            "tierd fleet vae/a --label gpu=h100 --within 2s --json",
            "tierd readiness vae/a vae/b --target ram --json",
            "tierd report --since 7d --json",
            "tierd workers --json",
            "tierd predictions --json",
            "tierd models --tier vram",
            "tierd events --follow --since 7",
            "tierd health --socket https://node:7443 --ca ca.pem",
            "tierd check-config --example",
            "tierd demo --size 300MiB --keep",
            "tierd replay week.csv.gz --policy lru --ram 64GiB --disk 25% --queue 2 --json --decisions moves.csv",
            "tierd replay week.csv --predictor habits",
            "tierd comfy status --prompts 3 --json",
            "tierd comfy paths --models /m --last",
            "tierd comfy install /c --link /p",
            "tierd comfy install /c --uninstall",
            "tierd comfy unmark",
            "tierd completions bash",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).expect_err("failed"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "tierd",
            "tierd ensure",
            "tierd flights --cancel",
            "tierd models vae/a --folder vae",
            "tierd ensure vae/a --timeout 30",
            "tierd push dir",
            "tierd push dir --origin r2 --part 1MiB",
            "tierd status --cert c.pem",
            "tierd demo --size 1MiB",
            "tierd push dir --origin r2 --socket /run/x",
            "tierd --timeout 3s check-config",
            "tierd serve --json",
            "tierd ensure vae/a --target origin",
            "tierd ensure vae/a --standalone --target ram",
            "tierd ensure --workflow a.json --standalone",
            "tierd ensure vae/a --partial",
            "tierd exec --workflow a.json",
            "tierd exec -- true",
            "tierd resolve a.json --offline --socket x",
            "tierd pin vae/a --ram",
            "tierd promote",
            "tierd replay",
            "tierd replay week.csv --policy mru",
            "tierd comfy",
            "tierd comfy install",
            "tierd comfy install /c --link /p --uninstall",
            "tierd comfy paths --socket /run/x",
            "tierd comfy status --prompts 0",
            "tierd ensure vae/a --standalone --ca x.pem",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_help_lists_every_exit_code_and_so_does_the_document() {
        let help = Cli::command().render_long_help().to_string();
        let document = include_str!("../../docs/api.md");
        for exit in Exit::ALL {
            assert!(help.contains(exit.meaning()), "{exit:?} is missing in the help");
            let row = format!("| {} | {} |", exit as u8, exit.meaning());
            assert!(document.contains(&row), "docs/api.md has no row {row:?}");
        }
    }
}
