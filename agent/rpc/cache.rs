//! `CacheService`: each call is checked, put to the engine and answered. No call holds state beyond itself.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::view::{EnsureRequest, EnsureUpdate, ModelFilter, Priority, RamHold, Tier};
use tierd_cache::fault::Fault;
use tierd_cache::ids::{FlightId, LeaseId, ModelKey, OriginName, canonical_folder};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::rpc::caller::{self, ANSWER_WAIT, REFRESH_WAIT, answer};
use crate::rpc::fault::{invalid, status};
use crate::rpc::{ensure, pb};

/// Shortest time between two progress messages if the caller names none: fast enough for a person's eye.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Length of a lease if the caller names none: outlives a workflow, not a forgotten one.
const LEASE_TTL: Duration = Duration::from_secs(3600);
/// Models on a page if the caller names no number.
const PAGE_SIZE: u32 = 100;
/// Most models on a page: about 400 KiB of answer.
const PAGE_SIZE_MAX: u32 = 1000;

/// The service. One for each listener, all speak to one engine.
pub(crate) struct Cache {
    pub(crate) engine: EngineHandle,
    /// Ends streams when the daemon drains.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl pb::cache_service_server::CacheService for Cache {
    type EnsureStream = BoxStream<pb::EnsureResponse>;
    type ImportStream = BoxStream<pb::ImportResponse>;
    type VerifyStream = BoxStream<pb::VerifyResponse>;

    async fn ensure(&self, request: Request<pb::EnsureRequest>) -> Result<Response<Self::EnsureStream>, Status> {
        let timeout = caller::timeout(request.metadata());
        let client = caller::client(&request.get_ref().client, request.extensions())?;
        let request = request.into_inner();
        let request = EnsureRequest {
            models: caller::models(&request.models)?,
            priority: Priority::Demand,
            target: target(request.target)?,
            cancel_on_drop: request.cancel_on_drop,
            progress_interval: caller::span("progress_interval", request.progress_interval, PROGRESS_INTERVAL)?,
            client,
        };
        let updates = answer(ANSWER_WAIT, self.engine.ensure(request)).await?;
        Ok(Response::new(Box::pin(ensure::answers(updates, timeout, self.stop.clone()))))
    }

    async fn prefetch(&self, request: Request<pb::PrefetchRequest>) -> Result<Response<pb::PrefetchResponse>, Status> {
        let client = caller::client(&request.get_ref().client, request.extensions())?;
        let request = EnsureRequest {
            models: caller::models(&request.get_ref().models)?,
            priority: Priority::Prefetch,
            target: target(request.get_ref().target)?,
            cancel_on_drop: false,
            progress_interval: PROGRESS_INTERVAL,
            client,
        };
        let planned = async {
            let mut updates = self.engine.ensure(request).await?;
            // The plan is the first word; what follows is not waited for, and the flights go on without a listener.
            match updates.recv().await {
                Some(EnsureUpdate::Plan(plan)) => Ok(plan),
                Some(EnsureUpdate::Failed(failed)) => Err(failed.fault),
                Some(EnsureUpdate::Progress(_) | EnsureUpdate::Ready(_)) => {
                    Err(Fault::Store { detail: "the engine gave no plan".to_owned() })
                }
                None => Err(Fault::ShuttingDown),
            }
        };
        let plan = answer(ANSWER_WAIT, planned).await?;
        Ok(Response::new(pb::PrefetchResponse { plan: Some((&plan).into()) }))
    }

    async fn get_flight(
        &self,
        request: Request<pb::GetFlightRequest>,
    ) -> Result<Response<pb::GetFlightResponse>, Status> {
        let flight = answer(ANSWER_WAIT, self.engine.flight(FlightId(request.get_ref().flight))).await?;
        Ok(Response::new(pb::GetFlightResponse { flight: Some((&flight).into()) }))
    }

    async fn list_flights(
        &self,
        _: Request<pb::ListFlightsRequest>,
    ) -> Result<Response<pb::ListFlightsResponse>, Status> {
        let flights = answer(ANSWER_WAIT, self.engine.flights()).await?;
        Ok(Response::new(pb::ListFlightsResponse { flights: flights.iter().map(Into::into).collect() }))
    }

    async fn cancel_flight(
        &self,
        request: Request<pb::CancelFlightRequest>,
    ) -> Result<Response<pb::CancelFlightResponse>, Status> {
        let by = caller::client(&request.get_ref().client, request.extensions())?;
        answer(ANSWER_WAIT, self.engine.cancel_flight(FlightId(request.get_ref().flight), by)).await?;
        Ok(Response::new(pb::CancelFlightResponse {}))
    }

    async fn promote_models(
        &self,
        request: Request<pb::PromoteModelsRequest>,
    ) -> Result<Response<pb::PromoteModelsResponse>, Status> {
        let models = caller::models(&request.get_ref().models)?;
        let report = answer(ANSWER_WAIT, self.engine.promote(models)).await?;
        Ok(Response::new((&report).into()))
    }

    async fn demote_models(
        &self,
        request: Request<pb::DemoteModelsRequest>,
    ) -> Result<Response<pb::DemoteModelsResponse>, Status> {
        let by = caller::client(&request.get_ref().client, request.extensions())?;
        let models = caller::models(&request.get_ref().models)?;
        let report = answer(ANSWER_WAIT, self.engine.demote(models, by)).await?;
        Ok(Response::new((&report).into()))
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Result<Response<pb::PinResponse>, Status> {
        let request = request.into_inner();
        let models = caller::models(&request.models)?;
        let owner = caller::owner(&request.owner)?;
        let ttl = caller::span("ttl", request.ttl, LEASE_TTL)?;
        let ram = ram_hold(request.ram)?;
        let lease = answer(ANSWER_WAIT, self.engine.pin(models, owner, ttl, ram)).await?;
        Ok(Response::new(pb::PinResponse { lease: Some((&lease).into()) }))
    }

    async fn unpin(&self, request: Request<pb::UnpinRequest>) -> Result<Response<pb::UnpinResponse>, Status> {
        let lease = answer(ANSWER_WAIT, self.engine.unpin(LeaseId(request.get_ref().lease))).await?;
        Ok(Response::new(pb::UnpinResponse { lease: Some((&lease).into()) }))
    }

    async fn list_leases(
        &self,
        request: Request<pb::ListLeasesRequest>,
    ) -> Result<Response<pb::ListLeasesResponse>, Status> {
        let owner = request.into_inner().owner;
        let leases = answer(ANSWER_WAIT, self.engine.leases()).await?;
        let wanted = leases.iter().filter(|lease| owner.is_empty() || lease.owner == owner);
        Ok(Response::new(pb::ListLeasesResponse { leases: wanted.map(Into::into).collect() }))
    }

    async fn evict(&self, request: Request<pb::EvictRequest>) -> Result<Response<pb::EvictResponse>, Status> {
        let by = caller::client(&request.get_ref().client, request.extensions())?;
        let models = caller::models(&request.get_ref().models)?;
        let report = answer(ANSWER_WAIT, self.engine.evict(models, by)).await?;
        Ok(Response::new((&report).into()))
    }

    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let after = page_start(&request.page_token)?;
        let filter = filter(request.filter.unwrap_or_default())?;
        let page = answer(ANSWER_WAIT, self.engine.models(filter, after, size)).await?;
        Ok(Response::new(pb::ListModelsResponse {
            models: page.models.iter().map(Into::into).collect(),
            next_page_token: page.next.map(|last| last.to_string()).unwrap_or_default(),
            total: page.total,
        }))
    }

    async fn get_model(&self, request: Request<pb::GetModelRequest>) -> Result<Response<pb::GetModelResponse>, Status> {
        let model = caller::model("model", &request.get_ref().model)?;
        let model = answer(ANSWER_WAIT, self.engine.model(model)).await?;
        Ok(Response::new(pb::GetModelResponse { model: Some((&model).into()) }))
    }

    async fn refresh(&self, request: Request<pb::RefreshRequest>) -> Result<Response<pb::RefreshResponse>, Status> {
        let origin = request.into_inner().origin;
        let origin = (!origin.is_empty()).then(|| OriginName::new(&origin));
        answer(REFRESH_WAIT, self.engine.refresh(origin)).await?;
        Ok(Response::new(pb::RefreshResponse {}))
    }

    async fn import(&self, request: Request<pb::ImportRequest>) -> Result<Response<Self::ImportStream>, Status> {
        let request = request.into_inner();
        let path = PathBuf::from(&request.path);
        if !path.is_absolute() || request.path.contains('\0') {
            let shown: String = request.path.chars().take(200).collect();
            return Err(invalid("path", format_args!("{shown:?} is not an absolute path on the node")));
        }
        let rows = answer(ANSWER_WAIT, self.engine.import(path, request.dry_run)).await?;
        Ok(Response::new(rows_of(rows, self.stop.clone(), |row| (&row).into())))
    }

    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let models = caller::models_or_none(&request.get_ref().models)?;
        let rows = answer(ANSWER_WAIT, self.engine.verify(models)).await?;
        Ok(Response::new(rows_of(rows, self.stop.clone(), |row| (&row).into())))
    }
}

/// The rows of a channel until it ends; a drain ends them with its status.
fn rows_of<T: Send + 'static, M: Send + 'static>(
    rows: mpsc::Receiver<T>,
    stop: CancellationToken,
    convert: fn(T) -> M,
) -> BoxStream<M> {
    let rows = futures_util::stream::unfold(rows, |mut rows| async { rows.recv().await.map(|row| (row, rows)) });
    let rows = rows.map(move |row| Ok(convert(row)));
    Box::pin(until_stopped(rows, stop))
}

/// The stream up to its end, or up to the drain, which is told as a status.
pub(crate) fn until_stopped<M: Send + 'static>(
    stream: impl Stream<Item = Result<M, Status>> + Send + 'static,
    stop: CancellationToken,
) -> impl Stream<Item = Result<M, Status>> + Send + 'static {
    let walk = Some((Box::pin(stream), stop));
    futures_util::stream::unfold(walk, |walk| async {
        let (mut stream, stop) = walk?;
        tokio::select! {
            biased;
            item = stream.next() => item.map(|item| (item, Some((stream, stop)))),
            () = stop.cancelled() => Some((Err(status(&Fault::ShuttingDown)), None)),
        }
    })
}

fn page_size(given: u32) -> Result<u32, Status> {
    match given {
        0 => Ok(PAGE_SIZE),
        1..=PAGE_SIZE_MAX => Ok(given),
        _ => Err(invalid("page_size", format_args!("{given} is above {PAGE_SIZE_MAX}"))),
    }
}

fn page_start(token: &str) -> Result<Option<ModelKey>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    ModelKey::parse(token).map(Some).map_err(|_| invalid("page_token", "it is not a token that this daemon gave"))
}

/// The tier that models are wanted in: the disk if nothing is said.
pub(crate) fn target(given: i32) -> Result<Tier, Status> {
    match pb::Tier::try_from(given) {
        Ok(pb::Tier::Unspecified | pb::Tier::Nvme) => Ok(Tier::Nvme),
        Ok(pb::Tier::Ram) => Ok(Tier::Ram),
        Ok(pb::Tier::Vram) => {
            Err(invalid("target", "VRAM is filled by the workers that own it: say TIER_RAM or TIER_NVME"))
        }
        Ok(pb::Tier::Origin) => {
            Err(invalid("target", "models are at their origins already: say TIER_RAM or TIER_NVME"))
        }
        Err(_) => Err(invalid("target", format_args!("{given} is no tier"))),
    }
}

fn ram_hold(given: i32) -> Result<RamHold, Status> {
    match pb::RamHold::try_from(given) {
        Ok(pb::RamHold::Unspecified) => Ok(RamHold::None),
        Ok(pb::RamHold::Soft) => Ok(RamHold::Soft),
        Ok(pb::RamHold::Hard) => Ok(RamHold::Hard),
        Err(_) => Err(invalid("ram", format_args!("{given} is no way to hold RAM"))),
    }
}

fn filter(filter: pb::ModelFilter) -> Result<ModelFilter, Status> {
    let some = |text: String| (!text.is_empty()).then_some(text);
    let tier = match pb::Tier::try_from(filter.tier) {
        Ok(pb::Tier::Unspecified) => None,
        Ok(pb::Tier::Vram) => Some(Tier::Vram),
        Ok(pb::Tier::Ram) => Some(Tier::Ram),
        Ok(pb::Tier::Nvme) => Some(Tier::Nvme),
        Ok(pb::Tier::Origin) => Some(Tier::Origin),
        Err(_) => return Err(invalid("filter.tier", format_args!("{} is no tier", filter.tier))),
    };
    Ok(ModelFilter {
        folder: some(filter.folder).map(|folder| canonical_folder(&folder).to_owned()),
        contains: some(filter.contains),
        tier,
        pinned: filter.pinned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bounded_and_refusals_name_the_field() {
        let field = |status: Status| crate::rpc::fault::of_status(&status).field;
        assert_eq!(page_size(0).expect("the default"), PAGE_SIZE);
        assert_eq!(page_size(PAGE_SIZE_MAX).expect("accepted"), PAGE_SIZE_MAX);
        assert_eq!(field(page_size(PAGE_SIZE_MAX + 1).expect_err("refused")), "page_size");
        assert_eq!(field(page_start("../x").expect_err("refused")), "page_token");
        let odd = pb::ModelFilter { tier: 77, ..Default::default() };
        assert_eq!(field(filter(odd).expect_err("refused")), "filter.tier");
        assert_eq!(field(target(pb::Tier::Origin.into()).expect_err("refused")), "target");
        assert_eq!(target(0).expect("the default"), Tier::Nvme);
        assert_eq!(field(ram_hold(3).expect_err("refused")), "ram");
        let legacy = pb::ModelFilter { folder: "unet".into(), ..Default::default() };
        assert_eq!(filter(legacy).expect("accepted").folder.as_deref(), Some("diffusion_models"));
    }

    #[tokio::test]
    async fn a_drain_ends_a_long_stream_with_its_status() {
        let stop = CancellationToken::new();
        stop.cancel();
        let endless = futures_util::stream::pending::<Result<(), Status>>();
        let ends: Vec<_> = until_stopped(endless, stop).collect().await;
        assert_eq!(ends.len(), 1);
        assert_eq!(ends[0].as_ref().expect_err("a status").code(), tonic::Code::Unavailable);
    }
}
