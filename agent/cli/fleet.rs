//! `tierd fleet`: asks every node of a fleet how soon a set could be ready there.

use std::time::Duration;

use clap::Args;

use crate::cli::Context;
use crate::cli::ensure::TargetArg;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::fleet::ask::{self, Heard};
use crate::fleet::message::Question;

/// Longest wait for a connection to NATS.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// `tierd fleet`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tierd fleet diffusion_models/flux1-schnell.safetensors vae/ae.safetensors --target ram\n  \
    tierd fleet vae/ae.safetensors --label gpu=h100 --best 3 --json\n\n\
    Asks over NATS, as [fleet] of the configuration has it, once; takes the answers that come within --wait, the soonest \
    first. Exits with 3 if no node answers."
)]
pub(crate) struct FleetArgs {
    /// Models in ComfyUI's layout: <folder>/<path>
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// Where they would be wanted
    #[arg(long, value_enum, default_value = "nvme")]
    pub target: TargetArg,
    /// Only nodes with this label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Only nodes that would be ready so soon, such as 500ms or 30s
    #[arg(long, value_name = "TIME", value_parser = tierd_cache::units::parse_duration)]
    pub within: Option<Duration>,
    /// How many answers to show
    #[arg(long, default_value_t = 10)]
    pub best: usize,
    /// How long to wait for answers
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = tierd_cache::units::parse_duration)]
    pub wait: Duration,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs `tierd fleet`.
pub(crate) async fn fleet(context: &Context, args: FleetArgs) -> Outcome {
    let config = context.config()?;
    let Some(fleet) = config.fleet else {
        return Err(Failure::new(Exit::Usage, "there is no [fleet] in the configuration: set fleet.nats"));
    };
    let unreachable = |error: String| {
        Failure::new(Exit::Unreachable, format_args!("NATS is not reached at {}: {error}", fleet.servers.join(", ")))
    };
    let mut options = async_nats::ConnectOptions::new().name("tierd fleet");
    if let Some(path) = &fleet.credentials {
        let failed = |error| Failure::new(Exit::Usage, format_args!("cannot read {}: {error}", path.display()));
        options = options.credentials_file(path).await.map_err(failed)?;
    }
    if let Some(token) = &fleet.token {
        options = options.token(token.expose().to_owned());
    }
    if let Some(ca) = &fleet.ca {
        options = options.add_root_certificates(ca.clone());
    }
    let connected = tokio::time::timeout(CONNECT_WAIT, options.connect(fleet.servers.as_slice())).await;
    let client = match connected {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable(format!("no answer within {} s", CONNECT_WAIT.as_secs()))),
    };
    let question = Question {
        models: args.models,
        target: crate::rpc::pb::Tier::from(args.target).word(),
        labels: args.labels.into_iter().collect(),
        within_ms: args.within.map(|within| within.as_millis() as u64),
    };
    let asked = ask::ask(&client, &fleet.prefix, &question, args.wait, args.best).await;
    let heard = asked.map_err(|error| Failure::new(Exit::Unreachable, error))?;
    context.out.document(&heard)?;
    let rows: Vec<Vec<String>> = heard.iter().map(row).collect();
    context.out.table(&["NODE", "READY IN>", "TO FETCH>", "TO LOCK>", "ADDRESS", "WHY NOT"], &rows)?;
    if heard.is_empty() {
        return Err(Failure::new(Exit::NotFound, "no node answers: is one connected, and has it the labels?"));
    }
    Ok(())
}

fn row(heard: &Heard) -> Vec<String> {
    let estimate = &heard.rest.get("estimate").cloned().unwrap_or_default();
    let size = |key: &str| estimate[key].as_u64().map_or_else(|| "-".to_owned(), crate::cli::out::size);
    let soon = heard.p50_seconds().map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.2} s"));
    let error = heard.rest.get("error").and_then(|error| error.as_str()).unwrap_or_default();
    let obstacles = estimate["obstacles"].as_array().into_iter().flatten();
    let kinds: Vec<&str> = obstacles.filter_map(|obstacle| obstacle["kind"].as_str()).collect();
    let why = if error.is_empty() { kinds.join(", ") } else { error.to_owned() };
    vec![heard.node.clone(), soon, size("bytes_to_fetch"), size("bytes_to_lock"), heard.address.clone(), why]
}
