//! What may be typed: the commands, and the options that stand before each. Refuses what would do nothing; runs nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use super::client::Reach;
use super::exit::{Exit, Failure};
use super::{
    check_config, comfy, demo, disk, ensure, events, exec, fleet, models, push, ram, readiness, replay, report, scan,
    status, top, why, workflow,
};
use crate::config::{self, Config};

/// tierd keeps the model files that ComfyUI needs in the fastest tier they can be in, before they are asked for.
#[derive(Debug, Parser)]
#[command(name = "tierd", version, after_help = examples(), after_long_help = long_help(), max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub(super) reach: Reach,
    /// Configuration file [default: $TIERD_CONFIG, ~/.config/tierd/config.toml or /etc/tierd/config.toml; none is fine]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print JSON: one document, or one object a line for streams
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Print nothing but failures
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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
    pub(super) fn is_client(&self) -> bool {
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
    pub(super) fn configured_socket(&self, env: &BTreeMap<String, String>) -> Result<Option<String>, Failure> {
        let file = config::find_config(self.config.as_deref(), env);
        match Config::socket(file.as_deref(), env) {
            Ok(socket) => Ok(socket.map(|socket| socket.to_string_lossy().into_owned())),
            Err(problems) if self.config.is_some() => Err(Failure::new(Exit::Usage, problems)),
            Err(_) => Ok(None),
        }
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
