//! `tierd ensure` and `tierd prefetch`: through a daemon, or with an engine in this process.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use futures_util::{Stream, StreamExt};
use tierd_cache::engine::view::{self, Priority, Tier};
use tierd_cache::ids::ModelKey;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codegen::BoxStream;

use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::{rate, size};
use crate::cli::progress::Display;
use crate::cli::{Context, client, workflow};
use crate::rpc::pb::{self, ensure_response::Update, ensure_workflow_response};
use tierd_cache::units::human_duration;

/// Where models are wanted, as written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetArg {
    /// Whole and verified on the disk of this node.
    Nvme,
    /// That, and held in its RAM.
    Ram,
}

impl From<TargetArg> for pb::Tier {
    fn from(target: TargetArg) -> Self {
        match target {
            TargetArg::Nvme => Self::Nvme,
            TargetArg::Ram => Self::Ram,
        }
    }
}

/// `tierd ensure`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tierd ensure diffusion_models/flux1-schnell.safetensors vae/ae.safetensors\n  \
    tierd ensure --target ram vae/ae.safetensors      # and held in RAM, for every process on the node\n  \
    tierd ensure --workflow flux.json                 # everything that the workflow needs\n  \
    tierd ensure --json loras/style.safetensors | jq -r 'select(.ready).ready.models[].path'\n  \
    tierd ensure --standalone vae/ae.safetensors      # no daemon: image builds, one-shots\n\n\
    Progress goes to stderr, one line for each ready model to stdout. An interrupted fetch goes on in the daemon \
    unless --cancel is given; whatever was finished is kept in any case.")]
pub(crate) struct EnsureArgs {
    /// Models in ComfyUI's layout: <folder>/<path>
    #[arg(required_unless_present = "workflow", value_name = "MODEL")]
    pub models: Vec<String>,
    /// A workflow whose models are wanted, in the order of their use: JSON or PNG; - for standard input. May be repeated
    #[arg(long, short, value_name = "FILE", conflicts_with = "standalone")]
    pub workflow: Vec<PathBuf>,
    /// Go on without models of workflows that no origin and no tier knows
    #[arg(long, requires = "workflow")]
    pub partial: bool,
    /// Where they are wanted
    #[arg(long, value_name = "TIER", default_value = "nvme", conflicts_with = "standalone")]
    pub target: TargetArg,
    /// Run the engine in this process, without a daemon
    #[arg(long)]
    pub standalone: bool,
    /// Stop the fetch on ctrl-c, unless somebody else wants the models
    #[arg(long)]
    pub cancel: bool,
}

/// `tierd prefetch`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tierd prefetch loras/style.safetensors && tierd flights\n\n\
    Returns at once. A prefetch yields to every ensure, and becomes one when somebody asks for its models.")]
pub(crate) struct PrefetchArgs {
    /// Models in ComfyUI's layout: <folder>/<path>
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// Where they may be wanted
    #[arg(long, value_name = "TIER", default_value = "nvme")]
    pub target: TargetArg,
}

/// Runs `tierd ensure`.
pub(crate) async fn ensure(context: &Context, args: EnsureArgs) -> Outcome {
    if args.standalone { standalone(context, args).await } else { through_daemon(context, args).await }
}

async fn through_daemon(context: &Context, args: EnsureArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let display = Display::new(context.out);
    let target = pb::Tier::from(args.target).into();
    let progress_interval = Some(display.interval().into());
    let stream: BoxStream<pb::EnsureResponse> = if args.workflow.is_empty() {
        let request = pb::EnsureRequest {
            models: args.models,
            cancel_on_drop: args.cancel,
            progress_interval,
            client: String::new(),
            target,
        };
        Box::pin(daemon.cache.ensure(request).await?.into_inner())
    } else {
        let request = pb::EnsureWorkflowRequest {
            workflows: args.workflow.iter().map(|file| workflow::read(file)).collect::<Result<_, _>>()?,
            models: args.models,
            target,
            partial: args.partial,
            cancel_on_drop: args.cancel,
            progress_interval,
            client: String::new(),
        };
        let stream = daemon.workflow.ensure_workflow(request).await?.into_inner();
        Box::pin(plain(context.clone(), args.workflow, stream))
    };
    tokio::select! {
        shown = show(context, display, stream) => Ok(tell_ready(context, &shown?, args.target)?),
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, if args.cancel {
            "interrupted: the fetch stops unless somebody else wants it; finished pieces are kept"
        } else {
            "interrupted: the fetch goes on in the daemon; see `tierd flights`, stop it with `tierd flights ID --cancel`"
        })),
    }
}

/// The messages of a plain ensure among those of an ensure of workflows; the others are told as they pass.
fn plain(
    context: Context,
    files: Vec<PathBuf>,
    stream: tonic::Streaming<pb::EnsureWorkflowResponse>,
) -> impl Stream<Item = Result<pb::EnsureResponse, Status>> {
    let mut files = files.into_iter();
    stream.filter_map(move |response| {
        let passed = response.map(|response| pass(&context, &mut files, response)).transpose();
        std::future::ready(passed)
    })
}

fn pass(
    context: &Context,
    files: &mut impl Iterator<Item = PathBuf>,
    response: pb::EnsureWorkflowResponse,
) -> Option<pb::EnsureResponse> {
    use ensure_workflow_response::Update as Told;
    let update = match response.update.clone()? {
        Told::Plan(plan) => Update::Plan(plan),
        Told::Progress(progress) => Update::Progress(progress),
        Told::Ready(ready) => Update::Ready(ready),
        Told::Failed(failed) => Update::Failed(failed),
        Told::Resolution(resolution) => {
            let file = files.next().map(|file| format!("{}: ", file.display())).unwrap_or_default();
            workflow::tell_gaps(context, &file, &resolution);
            return tell(context, &response);
        }
        Told::LeftOut(left) => {
            for row in &left.models {
                let why = row.fault.as_ref().map_or("", |fault| &fault.text);
                context.out.note(format_args!("left out: {why}"));
            }
            return tell(context, &response);
        }
    };
    Some(pb::EnsureResponse { update: Some(update) })
}

/// Prints a message that a plain ensure does not have.
fn tell(context: &Context, response: &pb::EnsureWorkflowResponse) -> Option<pb::EnsureResponse> {
    // A reader that went away is noticed at the next line.
    let _: std::io::Result<()> = context.out.json_line(response);
    None
}

async fn standalone(context: &Context, args: EnsureArgs) -> Outcome {
    let models = parse(&args.models)?;
    let config = context.config()?;
    let display = Display::new(context.out);
    let request = view::EnsureRequest {
        models,
        priority: Priority::Demand,
        // What this process holds in RAM goes with it.
        target: Tier::Nvme,
        cancel_on_drop: false,
        progress_interval: display.interval(),
        client: "tierd ensure --standalone".to_owned(),
    };
    let engine = tierd_cache::engine::start(config.engine).await?;
    let shown = async {
        let updates = engine.ensure(request).await?;
        let stream = crate::rpc::ensure::answers(updates, context.reach.timeout, CancellationToken::new());
        let ready = show(context, display, Box::pin(stream)).await?;
        Ok(tell_ready(context, &ready, TargetArg::Nvme)?)
    };
    let outcome = tokio::select! {
        outcome = shown => outcome,
        _ = tokio::signal::ctrl_c() => {
            Err(Failure::new(Exit::Interrupted, "interrupted: finished pieces are kept; the same command goes on from there"))
        }
    };
    engine.shutdown().await;
    outcome
}

/// Parses model keys here, where no daemon does it.
fn parse(texts: &[String]) -> Result<Vec<ModelKey>, Failure> {
    texts.iter().map(|text| ModelKey::parse(text).map_err(|bad| Failure::new(Exit::Usage, bad))).collect()
}

/// Shows the updates of an ensure up to its good end, which it returns untold.
pub(crate) async fn show(
    context: &Context,
    mut display: Display,
    mut stream: BoxStream<pb::EnsureResponse>,
) -> Result<pb::Ready, Failure> {
    while let Some(response) = stream.next().await {
        let response = match response {
            Ok(response) => response,
            Err(status) => {
                display.end();
                return Err(status.into());
            }
        };
        context.out.json_line(&response)?;
        match response.update {
            Some(Update::Plan(plan)) => display.plan(&plan),
            Some(Update::Progress(progress)) => display.progress(&progress),
            Some(Update::Ready(ready)) => {
                display.end();
                return Ok(ready);
            }
            Some(Update::Failed(failed)) => {
                display.end();
                return Err(tell_failed(context, failed));
            }
            // A newer daemon says something that we do not know.
            None => {}
        }
    }
    display.end();
    Err(Failure::new(Exit::Unreachable, "the daemon hung up before the end; the fetch may go on: ask again"))
}

fn tell_ready(context: &Context, ready: &pb::Ready, target: TargetArg) -> std::io::Result<()> {
    for model in &ready.models {
        context.out.line(format_args!("{}\t{}\t{}", model.model, size(model.bytes), model.path))?;
    }
    let elapsed = ready.elapsed.and_then(|elapsed| elapsed.to_std()).unwrap_or_default();
    let brought = ready.models.iter().filter(|model| model.from() != pb::Tier::Ram).map(|model| model.bytes).sum();
    if ready.bytes_fetched == 0 && target == TargetArg::Ram && brought > 0 {
        let speed = (brought as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
        let (brought, elapsed, speed) = (size(brought), human_duration(elapsed), rate(speed));
        context.out.note(format_args!("ready in {elapsed}: {brought} brought into RAM ({speed})"));
    } else if ready.bytes_fetched == 0 {
        context.out.note(format_args!("ready in {}: everything was here", human_duration(elapsed)));
    } else {
        let speed = (ready.bytes_fetched as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
        let (fetched, elapsed, speed) = (size(ready.bytes_fetched), human_duration(elapsed), rate(speed));
        context.out.note(format_args!("ready in {elapsed}: {fetched} fetched and verified ({speed})"));
    }
    Ok(())
}

/// Says what failed, model by model, and gives the failure of the whole.
fn tell_failed(context: &Context, failed: pb::Failed) -> Failure {
    let fault = failed.fault.unwrap_or_default();
    for model in &failed.models {
        let text = model.fault.as_ref().map_or("", |fault| &fault.text);
        // The first fault is the failure's own text; most texts begin with their model.
        if text != fault.text {
            let model = if text.starts_with(&model.model) { String::new() } else { format!("{}: ", model.model) };
            context.out.note(format_args!("{model}{text}"));
        }
    }
    let late = fault.kind() == pb::FaultKind::DeadlineExceeded;
    let mut failure = Failure::from(fault);
    if late {
        failure.text += ": finished pieces are kept, and a daemon goes on with the rest";
    }
    if context.out.json {
        // The stream's last object has said it.
        failure.text.clear();
        failure.fault = None;
    }
    failure
}

/// Runs `tierd prefetch`.
pub(crate) async fn prefetch(context: &Context, args: PrefetchArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let request =
        pb::PrefetchRequest { models: args.models, client: String::new(), target: pb::Tier::from(args.target).into() };
    let plan = daemon.cache.prefetch(request).await?.into_inner().plan.unwrap_or_default();
    context.out.document(&plan)?;
    let row = |model: &pb::PlannedModel| {
        let flight = model.flight.map_or_else(|| "ready".to_owned(), |flight| format!("flight {flight}"));
        vec![model.model.clone(), size(model.bytes), flight, model.origin.clone()]
    };
    let rows: Vec<_> = plan.models.iter().map(row).collect();
    context.out.table(&["MODEL", "SIZE>", "STATE", "ORIGIN"], &rows)?;
    Ok(())
}
