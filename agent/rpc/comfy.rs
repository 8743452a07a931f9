//! `ComfyService`: what the bridge has seen, with what is ready of each prompt now.

use std::sync::Arc;

use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::known::Known;
use tierd_cache::engine::view::Tier;
use tierd_cache::ids::ModelKey;
use tonic::{Request, Response, Status};

use crate::comfy::bridge::queue::Prompt;
use crate::comfy::bridge::{Seen, ServerView};
use crate::rpc::caller::{ANSWER_WAIT, answer};
use crate::rpc::pb;

/// Prompts told for each server if the caller names no number.
const PROMPTS: usize = 20;
/// Most prompts told for each server.
const PROMPTS_MAX: usize = 100;

/// The service.
pub(crate) struct Comfy {
    pub(crate) engine: EngineHandle,
    pub(crate) seen: Arc<Seen>,
}

#[tonic::async_trait]
impl pb::comfy_service_server::ComfyService for Comfy {
    async fn list_comfy_servers(
        &self,
        request: Request<pb::ListComfyServersRequest>,
    ) -> Result<Response<pb::ListComfyServersResponse>, Status> {
        let prompts = match request.into_inner().prompts_max as usize {
            0 => PROMPTS,
            given => given.min(PROMPTS_MAX),
        };
        let known = answer(ANSWER_WAIT, self.engine.known()).await?;
        let servers = self.seen.servers();
        let servers = servers.iter().map(|(name, view)| server(name, view, &known, prompts)).collect();
        Ok(Response::new(pb::ListComfyServersResponse { servers }))
    }
}

/// A server with the first of its prompts, and where their models are now.
pub(crate) fn server(name: &str, view: &ServerView, known: &Known, prompts: usize) -> pb::ComfyServer {
    let (succeeded, failed, left) = view.ended;
    pb::ComfyServer {
        name: name.to_owned(),
        url: view.url.clone(),
        up: view.up,
        detail: view.detail.clone(),
        version: view.version.clone(),
        fast_disk: view.fast_disk,
        polling: view.polling,
        running: number(view.queue.running),
        pending: number(view.queue.pending),
        prompts: view.queue.prompts.iter().take(prompts).map(|row| prompt(row, known)).collect(),
        succeeded,
        failed,
        left,
        prompt_time: view.prompt_time.map(Into::into),
    }
}

fn prompt(row: &Prompt, known: &Known) -> pb::ComfyPrompt {
    pb::ComfyPrompt {
        prompt_id: row.id.clone(),
        position: row.position,
        models: row.needs.models.iter().map(|model| need(model, known)).collect(),
        unknown: row.needs.unknown.clone(),
        unreadable: row.needs.unreadable.clone().unwrap_or_default(),
    }
}

fn need(model: &ModelKey, known: &Known) -> pb::ComfyNeed {
    let tier = known.tier(model).unwrap_or(Tier::Origin);
    pb::ComfyNeed {
        model: model.to_string(),
        bytes: known.bytes(model).unwrap_or(0),
        tier: pb::Tier::from(tier).into(),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
