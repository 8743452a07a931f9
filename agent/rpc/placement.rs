//! `PlacementService`: readiness and order, answered from the engine's last outlook. Never waits for the engine, but for the names
//! that a workflow is read against.

use std::collections::BTreeSet;
use std::time::Duration;

use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::outlook::{Estimate, ModelEstimate, Obstacle, Outlook, Victim};
use tierd_cache::engine::view::Tier;
use tierd_cache::ids::ModelKey;
use tierd_cache::plan::calibration::Class;
use tierd_cache::plan::rank::{Ranked, WORKFLOWS_MAX};
use tierd_cache::vram::audit::Audited;
use tierd_cache::vram::fit::{Fit, Place, Weights, fit};
use tonic::{Request, Response, Status};

use crate::comfy::workflow::Resolution;
use crate::gpu::{Devices, Figures};
use crate::rpc::cache::target;
use crate::rpc::fault::invalid;
use crate::rpc::workflow::{self, Reader};
use crate::rpc::{caller, pb};

/// Longest time that is told: what takes longer than a month takes for ever.
const SECONDS_MAX: f64 = 30.0 * 86_400.0;

/// The service. One for each listener, all speak to one engine.
pub(crate) struct Placement {
    pub(crate) engine: EngineHandle,
    pub(crate) reader: Reader,
    pub(crate) devices: Devices,
}

#[tonic::async_trait]
impl pb::placement_service_server::PlacementService for Placement {
    async fn estimate_readiness(
        &self,
        request: Request<pb::EstimateReadinessRequest>,
    ) -> Result<Response<pb::EstimateReadinessResponse>, Status> {
        let request = request.into_inner();
        let target = target(request.target)?;
        if request.workflow.is_empty() {
            let models = caller::models(&request.models)?;
            return Ok(Response::new(self.estimate(&models, target).await?));
        }
        let mut models = caller::models_or_none(&request.models)?;
        let (_, read) = self.reader.read("workflow", vec![request.workflow]).await?;
        workflow::add(&mut models, &read);
        let mut answer = self.estimate(&models, target).await?;
        read.iter().for_each(|resolution| add_resolution(&mut answer, resolution));
        Ok(Response::new(answer))
    }

    async fn rank_workflows(
        &self,
        request: Request<pb::RankWorkflowsRequest>,
    ) -> Result<Response<pb::RankWorkflowsResponse>, Status> {
        let workflows = request.into_inner().workflows;
        if workflows.is_empty() || workflows.len() > WORKFLOWS_MAX {
            return Err(invalid(
                "workflows",
                format_args!("{} workflows; 1 to {WORKFLOWS_MAX} are allowed", workflows.len()),
            ));
        }
        let outlook = self.engine.outlook();
        let mut sets: Vec<BTreeSet<ModelKey>> = Vec::with_capacity(workflows.len());
        for (index, workflow) in workflows.iter().enumerate() {
            caller::name(&format!("workflows[{index}].id"), &workflow.id)?;
            at_most(&format!("workflows[{index}].models"), workflow.models.len(), &outlook)?;
            sets.push(caller::models_or_none(&workflow.models)?.into_iter().collect());
        }
        Ok(Response::new(ranked(&workflows, &outlook.rank(&sets))))
    }
}

impl Placement {
    async fn estimate(&self, models: &[ModelKey], target: Tier) -> Result<pb::EstimateReadinessResponse, Status> {
        at_most("models", models.len(), &self.engine.outlook())?;
        let estimate = self.engine.estimate(models, target).await;
        let mut answer = pb::EstimateReadinessResponse::from(&estimate);
        match self.devices.figures().await {
            Some(figures) => add_devices(&mut answer, &estimate, &figures),
            None => "nothing was heard of any device yet".clone_into(&mut answer.vram_detail),
        }
        Ok(answer)
    }
}

fn at_most(field: &str, models: usize, outlook: &Outlook) -> Result<(), Status> {
    let most = outlook.models_max();
    if models > most {
        return Err(invalid(field, format_args!("{models} models in one set, at most {most} are allowed")));
    }
    Ok(())
}

/// What a workflow names and nobody can resolve.
fn add_resolution(answer: &mut pb::EstimateReadinessResponse, resolution: &Resolution) {
    let obstacle = |detail| pb::Obstacle { kind: pb::ObstacleKind::Unresolved.into(), detail, ..Default::default() };
    answer.obstacles.extend(resolution.limits.iter().map(|limit| obstacle(limit.to_string())));
    for row in &resolution.unresolved {
        if row.required {
            answer.obstacles.push(obstacle(format!("{}: {}", workflow::whereabouts(&row.place), row.reason)));
        }
        answer.unresolved.push(workflow::unresolved(row));
    }
    answer.ready &= answer.obstacles.is_empty();
}

/// Holds the set against each device.
fn add_devices(answer: &mut pb::EstimateReadinessResponse, estimate: &Estimate, figures: &Figures) {
    answer.vram_detail.clone_from(&figures.detail);
    answer.vram_age = Some(figures.age().into());
    if figures.devices.is_empty() {
        return;
    }
    let set: Vec<Weights> =
        estimate.models.iter().map(|model| Weights { blob: model.blob, bytes: model.bytes }).collect();
    answer.devices = figures.devices.iter().map(|device| vram_fit(device, &fit(&set, device))).collect();
}

fn vram_fit(device: &Audited, fit: &Fit) -> pb::VramFit {
    let place = match fit.place {
        Place::Free => pb::VramPlace::Free,
        Place::AfterUnload => pb::VramPlace::AfterUnload,
        Place::TooLarge => pb::VramPlace::TooLarge,
    };
    pb::VramFit {
        index: device.index,
        name: device.name.clone(),
        uuid: device.uuid.clone(),
        total_bytes: device.total,
        free_bytes: fit.free,
        needed_bytes: fit.needed,
        loaded_bytes: fit.loaded,
        place: place.into(),
        by_driver: device.by_driver,
    }
}

fn ranked(workflows: &[pb::WorkflowModels], order: &[Ranked]) -> pb::RankWorkflowsResponse {
    let firsts: Vec<usize> = order.iter().map(|ranked| ranked.group).collect::<BTreeSet<usize>>().into_iter().collect();
    let place = |first: usize| firsts.binary_search(&first).unwrap_or_default() as u32;
    let mut groups: Vec<pb::WorkflowGroup> = firsts.iter().map(|_| pb::WorkflowGroup::default()).collect();
    let mut answer = Vec::with_capacity(order.len());
    for ranked in order {
        let group = place(ranked.group);
        groups[group as usize].indexes.push(ranked.index as u32);
        answer.push(pb::RankedWorkflow {
            index: ranked.index as u32,
            id: workflows[ranked.index].id.clone(),
            bytes_moved: ranked.bytes_moved,
            bytes_shared: ranked.bytes_shared,
            group,
        });
    }
    for group in &mut groups {
        group.indexes.sort_unstable();
    }
    pb::RankWorkflowsResponse { workflows: answer, groups }
}

fn seconds(seconds: f64) -> Option<crate::rpc::time::Duration> {
    Some(Duration::from_secs_f64(seconds.clamp(0.0, SECONDS_MAX)).into())
}

impl From<&Estimate> for pb::EstimateReadinessResponse {
    fn from(estimate: &Estimate) -> Self {
        let bytes_to_fetch = estimate.models.iter().map(|model| model.fetch_bytes).sum();
        let bytes_to_lock = estimate.models.iter().map(|model| model.lock_bytes).sum();
        Self {
            ready: estimate.obstacles.is_empty() && estimate.prediction.class == Class::Hit,
            p50: seconds(estimate.prediction.p50),
            p95: seconds(estimate.prediction.p95),
            models: estimate.models.iter().map(Into::into).collect(),
            bytes_to_fetch,
            bytes_to_lock,
            evicts: estimate.evicts.iter().map(Into::into).collect(),
            demotes: estimate.demotes.iter().map(Into::into).collect(),
            obstacles: estimate.obstacles.iter().map(Into::into).collect(),
            calibration: Some(pb::Calibration {
                samples: estimate.reliability.samples,
                median_error: estimate.reliability.median_error,
                within_twice: estimate.reliability.within_twice,
            }),
            // What devices have is not the engine's outlook, and a workflow's text not the engine's at all: the service adds both.
            ..Self::default()
        }
    }
}

impl From<&ModelEstimate> for pb::ModelReadiness {
    fn from(model: &ModelEstimate) -> Self {
        Self {
            model: model.model.to_string(),
            bytes: model.bytes,
            tier: model.tier.map_or(pb::Tier::Unspecified, Into::into).into(),
            bytes_to_fetch: model.fetch_bytes,
            bytes_to_lock: model.lock_bytes,
            flight: model.flight.map(|flight| flight.0),
            origin: model.origin.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl From<&Victim> for pb::Displaced {
    fn from(victim: &Victim) -> Self {
        Self { model: victim.model.to_string(), bytes: victim.bytes }
    }
}

impl From<&Obstacle> for pb::Obstacle {
    fn from(obstacle: &Obstacle) -> Self {
        use pb::ObstacleKind as Kind;
        let (kind, model, needed_bytes, available_bytes) = match obstacle {
            Obstacle::Unknown(model) => (Kind::Unknown, model.to_string(), 0, 0),
            Obstacle::NoRoom { needed, available } => (Kind::NoRoom, String::new(), *needed, *available),
            Obstacle::NoMemory { needed, available } => (Kind::NoMemory, String::new(), *needed, *available),
        };
        Self { kind: kind.into(), model, needed_bytes, available_bytes, detail: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_numbered_in_the_order_asked_and_list_their_members() {
        let workflows: Vec<pb::WorkflowModels> =
            ["a", "b", "c"].iter().map(|id| pb::WorkflowModels { id: (*id).to_owned(), models: Vec::new() }).collect();
        let row = |index, group| Ranked { index, bytes_moved: 0, bytes_shared: 0, group };
        let answer = ranked(&workflows, &[row(1, 1), row(2, 0), row(0, 0)]);
        let found: Vec<(&str, u32)> = answer.workflows.iter().map(|row| (row.id.as_str(), row.group)).collect();
        assert_eq!(found, [("b", 1), ("c", 0), ("a", 0)]);
        let groups: Vec<&[u32]> = answer.groups.iter().map(|group| group.indexes.as_slice()).collect();
        assert_eq!(groups, [&[0, 2][..], &[1]]);
    }
}
