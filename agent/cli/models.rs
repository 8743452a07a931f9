//! `tierd models`, `pin`, `unpin`, `leases` and `evict`: what is known, what is held, what goes.

use std::time::Duration;

use clap::{Args, ValueEnum};
use tierd_cache::clock::Clock;
use tierd_cache::units::human_duration;

use crate::cli::client::Daemon;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::size;
use crate::cli::{Context, client};
use crate::rpc::pb;
use crate::rpc::time::Timestamp;

/// Models in one answer while the list is read.
const PAGE_SIZE: u32 = 1000;

/// `tierd models`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd models --folder loras --tier nvme\n  tierd models vae/ae.safetensors\n  \
    tierd models --json | jq -r '.models[] | select(.tier == \"origin\") | .model'")]
pub(crate) struct ModelsArgs {
    /// Only this model, in full
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// Only this folder
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub folder: Option<String>,
    /// Only names that contain this text
    #[arg(long, value_name = "TEXT", conflicts_with = "model")]
    pub contains: Option<String>,
    /// Only models whose fastest tier is this one
    #[arg(long, conflicts_with = "model")]
    pub tier: Option<TierArg>,
    /// Only models that a lease holds
    #[arg(long, conflicts_with = "model")]
    pub pinned: bool,
}

/// A tier, as written on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TierArg {
    /// The VRAM of this node's GPUs, as workers tell.
    Vram,
    /// The RAM of this node.
    Ram,
    /// The disk of this node.
    Nvme,
    /// Only at an origin.
    Origin,
}

/// `tierd pin`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tierd pin vae/ae.safetensors --ttl 8h --owner nightly-batch\n\n\
    A pin holds, it does not fetch: combine it with `tierd ensure`. It ends by itself after --ttl. With --ram it holds them \
    in RAM too; a hard one that cannot fit is refused with 4.")]
pub(crate) struct PinArgs {
    /// Models in ComfyUI's layout: <folder>/<path>
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// Who holds them
    #[arg(long, default_value = "cli")]
    pub owner: String,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = tierd_cache::units::parse_duration)]
    pub ttl: Duration,
    /// Hold them in RAM too
    #[arg(long, value_name = "HOW")]
    pub ram: Option<RamArg>,
}

/// How hard RAM is held, as written on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RamArg {
    /// Demoted last.
    Soft,
    /// Never demoted, not even when memory is short.
    Hard,
}

/// `tierd unpin`.
#[derive(Debug, Args)]
pub(crate) struct UnpinArgs {
    /// Leases, as `tierd leases` numbers them
    #[arg(required = true, value_name = "LEASE")]
    pub leases: Vec<u64>,
}

/// `tierd leases`.
#[derive(Debug, Args)]
pub(crate) struct LeasesArgs {
    /// Only leases of this owner
    #[arg(long)]
    pub owner: Option<String>,
}

/// `tierd evict`.
#[derive(Debug, Args)]
#[command(after_help = "Exits with 7 if something is held and stays, with 3 if something is not stored.")]
pub(crate) struct EvictArgs {
    /// Models in ComfyUI's layout: <folder>/<path>
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
}

/// Runs `tierd models`.
pub(crate) async fn models(context: &Context, args: ModelsArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    if let Some(model) = args.model {
        let answer = daemon.cache.get_model(pb::GetModelRequest { model }).await?.into_inner();
        return one(context, &answer.model.unwrap_or_default());
    }
    let filter = pb::ModelFilter {
        folder: args.folder.unwrap_or_default(),
        contains: args.contains.unwrap_or_default(),
        tier: match args.tier {
            None => pb::Tier::Unspecified,
            Some(TierArg::Vram) => pb::Tier::Vram,
            Some(TierArg::Ram) => pb::Tier::Ram,
            Some(TierArg::Nvme) => pb::Tier::Nvme,
            Some(TierArg::Origin) => pb::Tier::Origin,
        }
        .into(),
        pinned: args.pinned,
    };
    let models = all(&mut daemon, filter).await?;
    context.out.document(&serde_json::json!({ "models": models }))?;
    if models.is_empty() {
        context.out.line("no models match")?;
        return Ok(());
    }
    let row = |model: &pb::Model| {
        let pinned = if model.leases.is_empty() { "" } else { "pinned" };
        let flight = model.flight.map_or_else(String::new, |flight| format!("flight {flight}"));
        let used = model.last_used.map_or_else(String::new, ago);
        let origins: Vec<_> = model.sources.iter().map(|source| source.origin.as_str()).collect();
        let (name, trust) = (model.model.clone(), trust(model));
        vec![name, size(model.bytes), model.tier().word(), trust, used, format!("{pinned}{flight}"), origins.join(",")]
    };
    let rows: Vec<_> = models.iter().map(row).collect();
    context.out.table(&["MODEL", "SIZE>", "TIER", "VERIFIED", "USED>", "STATE", "ORIGINS"], &rows)?;
    Ok(())
}

/// Reads all pages.
pub(crate) async fn all(daemon: &mut Daemon, filter: pb::ModelFilter) -> Result<Vec<pb::Model>, Failure> {
    let mut models = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListModelsRequest { page_size: PAGE_SIZE, page_token, filter: Some(filter.clone()) };
        let page = daemon.cache.list_models(request).await?.into_inner();
        models.extend(page.models);
        if page.next_page_token.is_empty() {
            return Ok(models);
        }
        page_token = page.next_page_token;
    }
}

fn one(context: &Context, model: &pb::Model) -> Outcome {
    let out = context.out;
    out.document(model)?;
    let mut rows =
        vec![("model", model.model.clone()), ("size", format!("{} ({} bytes)", size(model.bytes), model.bytes))];
    rows.push(("tier", model.tier().word()));
    if model.vram_bytes > 0 {
        rows.push(("vram", size(model.vram_bytes)));
    }
    for (name, value) in [("blake3", &model.blob), ("sha256", &model.sha256), ("path", &model.path)] {
        if !value.is_empty() {
            rows.push((name, value.clone()));
        }
    }
    rows.push(("verified", trust(model)));
    rows.extend(model.last_used.map(|used| ("used", used.to_string())));
    rows.extend(model.flight.map(|flight| ("flight", flight.to_string())));
    rows.extend(model.leases.iter().map(|lease| ("lease", lease.to_string())));
    rows.extend(
        model.sources.iter().map(|source| ("source", format!("{}: {} {}", source.origin, source.path, source.etag))),
    );
    for (name, value) in rows {
        out.line(format_args!("{name:<10}{value}"))?;
    }
    Ok(())
}

/// How a model was checked, in words; nothing if it is not here.
fn trust(model: &pb::Model) -> String {
    match model.trust() {
        pb::Trust::Unspecified => String::new(),
        pb::Trust::FirstUse => "on first use".to_owned(),
        trust => trust.word(),
    }
}

/// How long ago a moment was.
fn ago(then: Timestamp) -> String {
    let now = Timestamp::from(Clock::start().wall());
    match u64::try_from(now.seconds - then.seconds) {
        Ok(0) => "now".to_owned(),
        Ok(seconds) => format!("{} ago", human_duration(Duration::from_secs(seconds))),
        Err(_) => then.to_string(),
    }
}

/// Runs `tierd pin`.
pub(crate) async fn pin(context: &Context, args: PinArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let ram = match args.ram {
        None => pb::RamHold::Unspecified,
        Some(RamArg::Soft) => pb::RamHold::Soft,
        Some(RamArg::Hard) => pb::RamHold::Hard,
    };
    let ttl = Some(args.ttl.into());
    let request = pb::PinRequest { models: args.models, owner: args.owner, ttl, ram: ram.into() };
    let lease = daemon.cache.pin(request).await?.into_inner().lease.unwrap_or_default();
    context.out.document(&lease)?;
    print_leases(context, &[lease])
}

/// Runs `tierd unpin`.
pub(crate) async fn unpin(context: &Context, args: UnpinArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    for lease in args.leases {
        let ended = daemon.cache.unpin(pb::UnpinRequest { lease }).await?.into_inner().lease.unwrap_or_default();
        context.out.json_line(&ended)?;
        context.out.line(format_args!("lease {lease} of {} ended: {}", ended.owner, ended.models.join(" ")))?;
    }
    Ok(())
}

/// Runs `tierd leases`.
pub(crate) async fn leases(context: &Context, args: LeasesArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let request = pb::ListLeasesRequest { owner: args.owner.unwrap_or_default() };
    let leases = daemon.cache.list_leases(request).await?.into_inner().leases;
    context.out.document(&serde_json::json!({ "leases": leases }))?;
    if leases.is_empty() {
        context.out.line("no leases")?;
        return Ok(());
    }
    print_leases(context, &leases)
}

fn print_leases(context: &Context, leases: &[pb::Lease]) -> Outcome {
    let row = |lease: &pb::Lease| {
        let expires = lease.expires.map(|at| at.to_string()).unwrap_or_default();
        let ram = match lease.ram() {
            pb::RamHold::Unspecified => String::new(),
            hold @ (pb::RamHold::Soft | pb::RamHold::Hard) => hold.word(),
        };
        vec![lease.lease.to_string(), lease.owner.clone(), expires, ram, lease.models.join(" ")]
    };
    let rows: Vec<_> = leases.iter().map(row).collect();
    context.out.table(&["LEASE>", "OWNER", "EXPIRES", "RAM", "MODELS"], &rows)?;
    Ok(())
}

/// Runs `tierd evict`.
pub(crate) async fn evict(context: &Context, args: EvictArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let request = pb::EvictRequest { models: args.models, client: String::new() };
    let report = daemon.cache.evict(request).await?.into_inner();
    context.out.document(&report)?;
    for model in &report.evicted {
        context.out.line(format_args!("evicted {} ({})", model.model, size(model.bytes)))?;
    }
    context.out.line(format_args!("{} freed", size(report.bytes_freed)))?;
    tell_kept(context, &report.kept)
}

/// Says what stays where it is, and why; the worst of it is the exit code.
pub(crate) fn tell_kept(context: &Context, kept: &[pb::ModelFault]) -> Outcome {
    let mut worst = None;
    for kept in kept {
        let fault = kept.fault.clone().unwrap_or_default();
        // Most texts begin with their model.
        let model = if fault.text.starts_with(&kept.model) { String::new() } else { format!("{}: ", kept.model) };
        context.out.note(format_args!("kept: {model}{}", fault.text));
        // Held outweighs not stored: the bytes are still there.
        let exit = Exit::of_kind(fault.kind());
        worst = if worst == Some(Exit::Held) { worst } else { Some(exit) };
    }
    worst.map_or(Ok(()), |exit| Err(Failure::told(exit)))
}
