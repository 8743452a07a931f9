//! `WorkflowService`: reads workflows on a thread of their own, a few at a time, looks their names up in one snapshot of
//! what is known, and hands the models to the engine as any other ensure.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::known::Known;
use tierd_cache::engine::view::{EnsureRequest, Priority};
use tierd_cache::fault::Fault;
use tierd_cache::ids::ModelKey;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::comfy::workflow::{self, Resolution, WorkflowError};
use crate::rpc::cache::{PROGRESS_INTERVAL, target};
use crate::rpc::caller::{self, ANSWER_WAIT, answer};
use crate::rpc::fault::{invalid, status};
use crate::rpc::pb::ensure_workflow_response::Update;
use crate::rpc::{ensure, pb};

/// Workflows that are read at once: each may take 200 MB for a moment, and a CPU.
const READERS_MAX: usize = 2;
/// Most workflows in one call.
const WORKFLOWS_MAX: usize = 64;
/// How often an ensure is asked again without what was not found. Each time something else was withdrawn meanwhile.
const TRIES_MAX: u32 = 4;

/// The service. One for each listener, all speak to one engine.
pub(crate) struct Workflow {
    pub(crate) engine: EngineHandle,
    /// Ends streams when the daemon drains.
    pub(crate) stop: CancellationToken,
    pub(crate) reader: Reader,
}

/// Reads workflows for all services, a few at a time.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    engine: EngineHandle,
    /// Most bytes of all workflows of a call.
    bytes_max: usize,
    /// [`READERS_MAX`] permits.
    readers: Arc<Semaphore>,
}

#[tonic::async_trait]
impl pb::workflow_service_server::WorkflowService for Workflow {
    type EnsureWorkflowStream = BoxStream<pb::EnsureWorkflowResponse>;

    async fn resolve_workflow(
        &self,
        request: Request<pb::ResolveWorkflowRequest>,
    ) -> Result<Response<pb::ResolveWorkflowResponse>, Status> {
        let (known, mut read) = self.reader.read("workflow", vec![request.into_inner().workflow]).await?;
        let resolution = read.pop().map(|resolution| message(&resolution, &known));
        Ok(Response::new(pb::ResolveWorkflowResponse { resolution }))
    }

    async fn ensure_workflow(
        &self,
        request: Request<pb::EnsureWorkflowRequest>,
    ) -> Result<Response<Self::EnsureWorkflowStream>, Status> {
        let begun = Instant::now();
        let timeout = caller::timeout(request.metadata());
        let client = caller::client(&request.get_ref().client, request.extensions())?;
        let request = request.into_inner();
        let mut wanted = EnsureRequest {
            models: caller::models_or_none(&request.models)?,
            priority: Priority::Demand,
            target: target(request.target)?,
            cancel_on_drop: request.cancel_on_drop,
            progress_interval: caller::span("progress_interval", request.progress_interval, PROGRESS_INTERVAL)?,
            client,
        };
        let (known, read) = self.reader.read("workflows", request.workflows).await?;
        let mut walk = Walk {
            engine: self.engine.clone(),
            stop: self.stop.clone(),
            partial: request.partial,
            deadline: timeout.map(|timeout| begun + timeout),
            ready: read.iter().map(|resolution| Ok(Update::Resolution(message(resolution, &known)))).collect(),
            updates: None,
            is_planned: false,
            tries: 0,
            wanted: wanted.clone(),
        };
        let missing = read.iter().find_map(incomplete).filter(|_| !request.partial);
        add(&mut wanted.models, &read);
        walk.wanted = wanted;
        match missing {
            Some(fault) => walk.fail(&fault),
            None => walk.ask().await?,
        }
        Ok(Response::new(Box::pin(walk.answers())))
    }
}

impl Reader {
    /// Reads at most so many bytes for one call.
    pub(crate) fn new(engine: EngineHandle, bytes_max: usize) -> Self {
        Self { engine, bytes_max, readers: Arc::new(Semaphore::new(READERS_MAX)) }
    }

    /// Reads workflows and resolves them against one snapshot. `field` is what the request calls them.
    pub(crate) async fn read(
        &self,
        field: &'static str,
        workflows: Vec<Vec<u8>>,
    ) -> Result<(Known, Vec<Resolution>), Status> {
        if workflows.is_empty() || workflows.len() > WORKFLOWS_MAX {
            return Err(invalid(field, format_args!("{} workflows: 1 to {WORKFLOWS_MAX} are read", workflows.len())));
        }
        let (bytes, max) = (workflows.iter().map(Vec::len).sum(), self.bytes_max);
        if bytes > max {
            return Err(status(&WorkflowError::TooLarge { bytes, max }.into()));
        }
        let reading = async {
            let _permit = self.readers.acquire().await.map_err(|_| Fault::ShuttingDown)?;
            let known = self.engine.known().await?;
            let read = tokio::task::spawn_blocking(move || {
                let one = |bytes: &Vec<u8>| workflow::resolve(&workflow::parse_within(bytes, max)?, &known);
                let read: Result<Vec<Resolution>, WorkflowError> = workflows.iter().map(one).collect();
                (known, read)
            });
            let (known, read) =
                read.await.map_err(|panic| Fault::Store { detail: format!("reading a workflow panicked: {panic}") })?;
            Ok((known, read?))
        };
        answer(ANSWER_WAIT, reading).await
    }
}

/// Adds the needs of workflows that are not there yet, in the order of their use.
pub(crate) fn add(models: &mut Vec<ModelKey>, read: &[Resolution]) {
    let mut seen: BTreeSet<ModelKey> = models.iter().cloned().collect();
    let needs = read.iter().flat_map(|resolution| &resolution.needs).map(|need| &need.model);
    models.extend(needs.filter(|model| seen.insert((*model).clone())).cloned());
}

/// Why a workflow cannot be made ready as a whole, as far as its text alone tells.
fn incomplete(resolution: &Resolution) -> Option<Fault> {
    if let Some(limit) = resolution.limits.first() {
        return Some(Fault::Invalid {
            field: "workflows",
            reason: format!("{limit}; allow a partial answer to go on"),
        });
    }
    let row = resolution.unresolved.iter().find(|row| row.required)?;
    Some(Fault::NotFound { what: whereabouts(&row.place), hint: row.reason.to_string() })
}

/// A name that could not be resolved, with its place.
pub(crate) fn whereabouts(place: &workflow::Place) -> String {
    let text = if place.text.is_empty() { "a name" } else { &place.text };
    format!("{text} (node {}, {}, {})", place.node, place.class, place.input)
}

/// The answers to one ensure of workflows.
struct Walk {
    engine: EngineHandle,
    stop: CancellationToken,
    partial: bool,
    deadline: Option<Instant>,
    /// What is to be told before anything else.
    ready: VecDeque<Result<Update, Status>>,
    /// What the engine tells. `None` when nothing more is to come.
    updates: Option<BoxStream<pb::EnsureResponse>>,
    is_planned: bool,
    tries: u32,
    wanted: EnsureRequest,
}

impl Walk {
    /// Hands the models to the engine. Nothing wanted is ready at once.
    async fn ask(&mut self) -> Result<(), Status> {
        self.tries += 1;
        if self.wanted.models.is_empty() {
            self.ready
                .push_back(Ok(Update::Ready(pb::Ready { elapsed: Some(Duration::ZERO.into()), ..Default::default() })));
            self.updates = None;
            return Ok(());
        }
        let updates = answer(ANSWER_WAIT, self.engine.ensure(self.wanted.clone())).await?;
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.updates = Some(Box::pin(ensure::answers(updates, left, self.stop.clone())));
        Ok(())
    }

    fn fail(&mut self, fault: &Fault) {
        let failed = pb::Failed { elapsed: Some(Duration::ZERO.into()), fault: Some(fault.into()), models: Vec::new() };
        self.ready.push_back(Ok(Update::Failed(failed)));
        self.ready.push_back(Err(status(fault)));
    }

    fn answers(self) -> impl Stream<Item = Result<pb::EnsureWorkflowResponse, Status>> + Send + 'static {
        futures_util::stream::unfold(self, |mut walk| async {
            let update = walk.next().await?;
            Some((update.map(|update| pb::EnsureWorkflowResponse { update: Some(update) }), walk))
        })
    }

    async fn next(&mut self) -> Option<Result<Update, Status>> {
        loop {
            if let Some(told) = self.ready.pop_front() {
                return Some(told);
            }
            let update = match self.updates.as_mut()?.next().await? {
                Ok(response) => response.update?,
                Err(status) => return Some(Err(status)),
            };
            match update {
                pb::ensure_response::Update::Plan(_) if self.is_planned => {}
                pb::ensure_response::Update::Plan(plan) => {
                    self.is_planned = true;
                    return Some(Ok(Update::Plan(plan)));
                }
                pb::ensure_response::Update::Progress(progress) => return Some(Ok(Update::Progress(progress))),
                pb::ensure_response::Update::Ready(ready) => return Some(Ok(Update::Ready(ready))),
                pb::ensure_response::Update::Failed(failed) if self.goes_on_without(&failed) => {
                    let missing: BTreeSet<&str> = failed.models.iter().map(|row| row.model.as_str()).collect();
                    self.wanted.models.retain(|model| !missing.contains(model.as_str()));
                    if let Err(status) = self.ask().await {
                        self.updates = None;
                        self.ready.push_back(Err(status));
                    }
                    self.ready.push_front(Ok(Update::LeftOut(pb::LeftOut { models: failed.models })));
                }
                pb::ensure_response::Update::Failed(failed) => return Some(Ok(Update::Failed(failed))),
            }
        }
    }

    /// Whether a bad end is only that some models are not found, and the caller can do without them.
    fn goes_on_without(&self, failed: &pb::Failed) -> bool {
        let is_missing =
            |row: &pb::ModelFault| row.fault.as_ref().is_some_and(|fault| fault.kind() == pb::FaultKind::NotFound);
        self.partial && self.tries < TRIES_MAX && !failed.models.is_empty() && failed.models.iter().all(is_missing)
    }
}

/// A resolution as a message, with sizes and tiers.
pub(crate) fn message(resolution: &Resolution, known: &Known) -> pb::WorkflowResolution {
    let needs: Vec<pb::WorkflowNeed> = resolution.needs.iter().map(|row| need(row, known)).collect();
    let is_here = |need: &&pb::WorkflowNeed| matches!(need.tier(), pb::Tier::Ram | pb::Tier::Nvme);
    pb::WorkflowResolution {
        form: match resolution.form {
            workflow::Form::Api => pb::WorkflowForm::Api,
            workflow::Form::Ui => pb::WorkflowForm::Ui,
        }
        .into(),
        nodes: u32::try_from(resolution.nodes).unwrap_or(u32::MAX),
        bytes_total: needs.iter().map(|need| need.bytes).sum(),
        bytes_here: needs.iter().filter(is_here).map(|need| need.bytes).sum(),
        needs,
        idle: resolution.idle.iter().map(|row| idle(row, known)).collect(),
        unresolved: resolution.unresolved.iter().map(unresolved).collect(),
        limits: resolution.limits.iter().map(ToString::to_string).collect(),
    }
}

fn need(need: &workflow::Need, known: &Known) -> pb::WorkflowNeed {
    use workflow::How;
    pb::WorkflowNeed {
        model: need.model.to_string(),
        known: need.known,
        bytes: known.bytes(&need.model).unwrap_or(0),
        tier: known.tier(&need.model).map_or(pb::Tier::Unspecified, Into::into).into(),
        how: match need.how {
            How::Loader => pb::NeedMatch::Loader,
            How::LoaderFileName => pb::NeedMatch::LoaderFileName,
            How::FullName => pb::NeedMatch::FullName,
            How::FileName => pb::NeedMatch::FileName,
            How::Listed => pb::NeedMatch::Listed,
            How::Embedding => pb::NeedMatch::Embedding,
            How::Set => pb::NeedMatch::Set,
        }
        .into(),
        places: need.places.iter().map(place).collect(),
        candidates: need.candidates.iter().map(candidate).collect(),
    }
}

fn idle(row: &workflow::IdleNeed, known: &Known) -> pb::IdleNeed {
    let why = match row.why {
        workflow::Idle::Muted => pb::IdleReason::Muted,
        workflow::Idle::Bypassed => pb::IdleReason::Bypassed,
        workflow::Idle::Off => pb::IdleReason::Off,
    };
    pb::IdleNeed { need: Some(need(&row.need, known)), why: why.into() }
}

pub(crate) fn unresolved(row: &workflow::Unresolved) -> pb::UnresolvedName {
    pb::UnresolvedName {
        place: Some(place(&row.place)),
        reason: row.reason.to_string(),
        required: row.required,
        candidates: row.candidates.iter().map(candidate).collect(),
    }
}

fn place(place: &workflow::Place) -> pb::WorkflowPlace {
    let workflow::Place { node, class, input, text } = place.clone();
    pb::WorkflowPlace { node, class, input, text }
}

fn candidate(candidate: &workflow::Candidate) -> pb::ModelCandidate {
    let workflow::Candidate { name, directory, url, hash, hash_type } = candidate.clone();
    pb::ModelCandidate { name, directory, url, hash, hash_type }
}
