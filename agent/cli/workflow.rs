//! `tierd resolve`, and what other commands need of workflows: reading their files, resolving them with or without a daemon,
//! telling what they need.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use tierd_cache::engine::known::Known;

use crate::cli::client::Daemon;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::{count, size};
use crate::cli::{Context, client};
use crate::comfy::workflow;
use crate::rpc::pb;
use crate::rpc::workflow::message;

/// Most bytes of a file that is read: a picture may hold a workflow and be large by itself.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// `tierd resolve`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tierd resolve flux.json\n  tierd resolve picture.png            # a PNG that ComfyUI saved\n  \
    tierd resolve --json flux.json | jq -r '.needs[] | select(.known | not) | .model'\n  \
    curl -s localhost:8188/history | jq 'first(.[]).prompt[2]' | tierd resolve -\n\n\
    Reads what ComfyUI saves (with subgraphs) and what it exports for its API. Models are told in the order in which \
    they are first used. Fetches nothing: see `tierd ensure --workflow`."
)]
pub(crate) struct ResolveArgs {
    /// The workflow: JSON, or a PNG that holds one; - for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Ask no daemon: only what ComfyUI's own loaders name is told, and nothing is known of it
    #[arg(long)]
    pub offline: bool,
}

/// Runs `tierd resolve`.
pub(crate) async fn resolve(context: &Context, args: ResolveArgs) -> Outcome {
    let bytes = read(&args.file)?;
    let mut resolver = Resolver::new(context, args.offline).await?;
    let resolution = resolver.resolve(bytes).await?;
    context.out.document(&resolution)?;
    table(context, &resolution)?;
    if args.offline {
        context.out.note("no daemon was asked: the loader table alone, and nothing is known of any model");
    }
    Ok(())
}

/// Resolves workflows: through a daemon, or with the loader table alone.
pub(crate) enum Resolver {
    Daemon(Box<Daemon>),
    Offline,
}

impl Resolver {
    /// Connects, unless that is not wanted.
    pub(crate) async fn new(context: &Context, offline: bool) -> Result<Self, Failure> {
        if offline {
            return Ok(Self::Offline);
        }
        Ok(Self::Daemon(Box::new(client::connect(&context.reach, &context.env).await?)))
    }

    /// Resolves one workflow.
    pub(crate) async fn resolve(&mut self, workflow: Vec<u8>) -> Result<pb::WorkflowResolution, Failure> {
        match self {
            Self::Daemon(daemon) => {
                let request = pb::ResolveWorkflowRequest { workflow };
                Ok(daemon.workflow.resolve_workflow(request).await?.into_inner().resolution.unwrap_or_default())
            }
            Self::Offline => {
                let known = Known::default();
                let read = workflow::parse(&workflow).and_then(|document| workflow::resolve(&document, &known));
                read.map(|resolution| message(&resolution, &known)).map_err(|error| Failure::new(Exit::Usage, error))
            }
        }
    }
}

/// The JSON of a workflow's file; `-` is standard input.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::new(Exit::Usage, format_args!("{}: {why}", file.display()));
    let mut bytes = Vec::new();
    let mut read = |from: &mut dyn Read| from.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    let done = if file == Path::new("-") {
        read(&mut std::io::stdin().lock())
    } else {
        std::fs::File::open(file).and_then(|mut file| read(&mut file))
    };
    done.map_err(|error| failed(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(&format_args!("it is larger than {}", size(FILE_BYTES_MAX))));
    }
    // Of a picture only the workflow travels.
    workflow::extract(&bytes).map(<[u8]>::to_vec).map_err(|error| failed(&error))
}

fn table(context: &Context, resolution: &pb::WorkflowResolution) -> Outcome {
    let out = context.out;
    if resolution.needs.is_empty() {
        out.line("no models are needed")?;
    } else {
        let rows: Vec<Vec<String>> = resolution.needs.iter().map(|need| row(need, state(need))).collect();
        out.table(&["MODEL", "SIZE>", "STATE", "NODE>", "CLASS", "INPUT"], &rows)?;
    }
    for need in resolution.needs.iter().filter(|need| !need.known) {
        for candidate in need.candidates.iter().filter(|candidate| !candidate.url.is_empty()) {
            out.line(format_args!("  {} could be had from {}", need.model, candidate.url))?;
        }
    }
    if !resolution.idle.is_empty() {
        out.line("\nnamed, but not used:")?;
        let rows: Vec<Vec<String>> =
            resolution.idle.iter().map(|idle| row(&idle.need.clone().unwrap_or_default(), idle.why().word())).collect();
        out.table(&["MODEL", "SIZE>", "WHY", "NODE>", "CLASS", "INPUT"], &rows)?;
    }
    tell_gaps(context, "", resolution);
    let (here, total) = (size(resolution.bytes_here), size(resolution.bytes_total));
    out.note(format_args!("{}: {here} of {total} are on this node", count(resolution.needs.len() as u64, "model")));
    Ok(())
}

/// What is not resolved, and limits that were reached, on stderr.
pub(crate) fn tell_gaps(context: &Context, file: &str, resolution: &pb::WorkflowResolution) {
    for row in &resolution.unresolved {
        let place = row.place.clone().unwrap_or_default();
        let text = if place.text.is_empty() { "a name" } else { &place.text };
        let weight = if row.required { "unresolved" } else { "perhaps a model" };
        context.out.note(format_args!(
            "{file}{weight}: {text} (node {}, {}, {}): {}",
            place.node, place.class, place.input, row.reason
        ));
        for candidate in row.candidates.iter().filter(|candidate| !candidate.url.is_empty()) {
            context
                .out
                .note(format_args!("  {}/{} could be had from {}", candidate.directory, candidate.name, candidate.url));
        }
    }
    for limit in &resolution.limits {
        context.out.note(format_args!("{file}{limit}"));
    }
}

fn row(need: &pb::WorkflowNeed, state: String) -> Vec<String> {
    let place = need.places.first().cloned().unwrap_or_default();
    let bytes = if need.known { size(need.bytes) } else { String::new() };
    vec![need.model.clone(), bytes, state, place.node, place.class, place.input]
}

/// Where a model is, in a word.
pub(crate) fn state(need: &pb::WorkflowNeed) -> String {
    if need.known { need.tier().word() } else { "unknown".to_owned() }
}
