//! `HintService`: what workers tell of VRAM, and what they are advised.

use std::collections::VecDeque;

use futures_util::Stream;
use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::hints::AdviceWatch;
use tierd_cache::ids::ModelKey;
use tierd_cache::vram::{
    Advice, AdvisedModel, Claim, DeviceReport, Hello, Prompt, Read, Report, WorkerId, WorkerView, audit,
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::rpc::cache::until_stopped;
use crate::rpc::caller::{ANSWER_WAIT, answer};
use crate::rpc::fault::invalid;
use crate::rpc::pb;

/// The service. One for each listener, all speak to one engine.
pub(crate) struct HintRpc {
    pub(crate) engine: EngineHandle,
    /// Ends streams when the daemon drains.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl pb::hint_service_server::HintService for HintRpc {
    type AdviseStream = BoxStream<pb::AdviseResponse>;

    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::ReportResponse>, Status> {
        let request = request.into_inner();
        let worker = worker(&request.worker)?;
        if let Some(info) = &request.info {
            answer(ANSWER_WAIT, self.engine.worker_hello(worker.clone(), info.into())).await?;
        }
        answer(ANSWER_WAIT, self.engine.worker_report(worker, report(request)?)).await?;
        Ok(Response::new(pb::ReportResponse {}))
    }

    async fn advise(&self, request: Request<pb::AdviseRequest>) -> Result<Response<Self::AdviseStream>, Status> {
        let only = request.into_inner().worker;
        let only = if only.is_empty() { None } else { Some(worker(&only)?) };
        let watch = answer(ANSWER_WAIT, self.engine.advice()).await?;
        Ok(Response::new(Box::pin(until_stopped(steps(watch, only), self.stop.clone()))))
    }
}

/// The last word for each device, then what is new.
fn steps(
    watch: AdviceWatch,
    only: Option<WorkerId>,
) -> impl Stream<Item = Result<pb::AdviseResponse, Status>> + Send + 'static {
    let walk = (VecDeque::from(watch.now), watch.live, only);
    futures_util::stream::unfold(walk, |(mut now, mut live, only)| async {
        loop {
            let advice = match now.pop_front() {
                Some(advice) => advice,
                None => match live.recv().await {
                    Ok(advice) => advice,
                    // The words behind the gap are the ones that count.
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return None,
                },
            };
            if only.as_ref().is_none_or(|only| *only == advice.worker) {
                return Some((Ok((&advice).into()), (now, live, only)));
            }
        }
    })
}

/// Bytes as a report, for the fuzzer.
pub(crate) fn hostile(bytes: &[u8]) {
    let Ok(request) = <pb::ReportRequest as prost::Message>::decode(bytes) else { return };
    let _ = worker(&request.worker);
    if let Some(info) = &request.info {
        drop(Hello::from(info));
    }
    drop(report(request));
}

fn worker(text: &str) -> Result<WorkerId, Status> {
    let wrong = || invalid("worker", "a worker's name has 1 to 64 letters, digits, - and _");
    WorkerId::parse(text).ok_or_else(wrong)
}

fn report(request: pb::ReportRequest) -> Result<Report, Status> {
    let read = |read: pb::FileRead| {
        let elapsed = read.elapsed.and_then(|elapsed| elapsed.to_std()).unwrap_or_default();
        Read { file: read.file, blob: None, bytes: read.bytes, elapsed }
    };
    let prompts = request.prompts.into_iter().map(prompt).collect::<Result<_, _>>()?;
    let parse = |(index, text): (usize, &String)| {
        ModelKey::parse(text).map_err(|bad| invalid(format!("next.models[{index}]"), bad))
    };
    let next = request.next.map(|next| next.models.iter().enumerate().map(parse).collect::<Result<_, _>>());
    Ok(Report {
        seq: request.seq,
        devices: request.devices.map(|devices| devices.devices.into_iter().map(device).collect()),
        reads: request.reads.into_iter().map(read).collect(),
        prompts,
        next: next.transpose()?,
    })
}

fn prompt(event: pb::PromptEvent) -> Result<Prompt, Status> {
    match event.state() {
        pb::PromptState::Queued => Ok(Prompt::Queued(event.prompt)),
        pb::PromptState::Started => Ok(Prompt::Started(event.prompt)),
        pb::PromptState::Ended => Ok(Prompt::Ended(event.prompt)),
        pb::PromptState::Unspecified => Err(invalid("prompts", "an event does not say what happened")),
    }
}

fn device(device: pb::WorkerDevice) -> DeviceReport {
    let claim = |model: pb::LoadedModel| Claim {
        file: model.file,
        blob: None,
        bytes: model.bytes,
        loaded: model.loaded_bytes,
        in_use: model.in_use,
    };
    DeviceReport {
        index: device.index,
        name: device.name,
        uuid: device.uuid,
        total: device.total_bytes,
        free: device.free_bytes,
        torch: device.torch_bytes,
        models: device.models.into_iter().map(claim).collect(),
    }
}

impl From<&pb::WorkerInfo> for Hello {
    fn from(info: &pb::WorkerInfo) -> Self {
        Self {
            pid: info.pid,
            watched: None,
            address: info.address.trim_end_matches('/').to_owned(),
            pack_version: info.pack_version.clone(),
            version: info.version.clone(),
            fast_disk: info.fast_disk,
            hooks: info.hooks.iter().map(|hook| (hook.hook.clone(), hook.state.clone())).collect(),
            folders: info.folders.iter().map(|folder| (folder.folder.clone(), folder.path.clone())).collect(),
        }
    }
}

impl From<&WorkerView> for pb::Worker {
    fn from(view: &WorkerView) -> Self {
        let hello = &view.hello;
        let hooks = hello.hooks.iter().map(|(hook, state)| pb::WorkerHook { hook: hook.clone(), state: state.clone() });
        let folder =
            |(folder, path): &(String, String)| pb::WorkerFolder { folder: folder.clone(), path: path.clone() };
        let model = |claim: &Claim| pb::LoadedModel {
            file: claim.file.clone(),
            bytes: claim.bytes,
            loaded_bytes: claim.loaded,
            in_use: claim.in_use,
            blob: claim.blob.map(|blob| blob.to_string()).unwrap_or_default(),
        };
        let device = |device: &DeviceReport| pb::WorkerDevice {
            index: device.index,
            name: device.name.clone(),
            uuid: device.uuid.clone(),
            total_bytes: device.total,
            free_bytes: device.free,
            torch_bytes: device.torch,
            models: device.models.iter().map(model).collect(),
        };
        Self {
            worker: view.worker.to_string(),
            info: Some(pb::WorkerInfo {
                pid: hello.pid,
                address: hello.address.clone(),
                pack_version: hello.pack_version.clone(),
                version: hello.version.clone(),
                fast_disk: hello.fast_disk,
                hooks: hooks.collect(),
                folders: hello.folders.iter().map(folder).collect(),
            }),
            age: Some(view.age.into()),
            silent: Some(view.silent.into()),
            waiting: view.waiting,
            running: view.running,
            devices: view.devices.iter().map(device).collect(),
        }
    }
}

impl From<&audit::Audited> for pb::VramDevice {
    fn from(row: &audit::Audited) -> Self {
        let process = |process: &audit::AuditedProcess| pb::VramProcess {
            pid: process.pid,
            used_bytes: process.used,
            worker: process.worker.as_ref().map(ToString::to_string).unwrap_or_default(),
            claimed_bytes: process.claimed,
        };
        Self {
            index: row.index,
            name: row.name.clone(),
            uuid: row.uuid.clone(),
            total_bytes: row.total,
            used_bytes: row.used,
            claimed_bytes: row.claimed,
            other_bytes: row.other,
            overclaimed_bytes: row.overclaimed,
            utilisation_percent: row.utilisation,
            models: row.models,
            by_driver: row.by_driver,
            processes: row.processes.iter().map(process).collect(),
        }
    }
}

impl From<&Advice> for pb::AdviseResponse {
    fn from(advice: &Advice) -> Self {
        let rows = |rows: &[AdvisedModel]| {
            let row = |row: &AdvisedModel| pb::AdvisedModel {
                model: row.model.as_ref().map(ToString::to_string).unwrap_or_default(),
                file: row.file.clone(),
                bytes: row.bytes,
            };
            rows.iter().map(row).collect()
        };
        Self {
            worker: advice.worker.to_string(),
            device: advice.device,
            total_bytes: advice.total,
            used_bytes: advice.used,
            load: rows(&advice.load),
            preload: rows(&advice.preload),
            unload: rows(&advice.unload),
            idle: advice.idle,
        }
    }
}
