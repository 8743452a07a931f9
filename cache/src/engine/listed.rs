//! Origins, as the engine has them: what they listed last, kept over restarts, and how they are.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::catalog::OriginSnapshot;
use crate::engine::done::Done;
use crate::engine::event::Event;
use crate::engine::run::Engine;
use crate::engine::scribe::Note;
use crate::engine::view::{OriginState, OriginView, What};
use crate::fault::Fault;
use crate::ids::OriginName;
use crate::origin::Origin;

impl Engine {
    /// What was known of L4 before the restart.
    pub(crate) fn recall_catalog(&mut self) {
        for origin in &self.origins {
            let Ok(Some(bytes)) = self.store.get_state(&state_name(origin.name())) else { continue };
            match serde_json::from_slice::<OriginSnapshot>(&bytes) {
                Ok(snapshot) if snapshot.origin == *origin.name() => self.sources.listed(snapshot),
                Ok(_) => {}
                Err(error) => tracing::warn!(origin = %origin.name(), %error, "the last listing is unreadable"),
            }
        }
        self.apply(Event::Catalog(self.sources.catalog()));
    }

    /// Lists origins again, all or one.
    pub(crate) fn refresh(&mut self, only: Option<OriginName>, reply: Option<oneshot::Sender<Result<(), Fault>>>) {
        if only.is_none() {
            self.refreshed = self.clock.now();
        }
        let wanted = |origin: &&Arc<Origin>| only.as_ref().is_none_or(|only| origin.name() == only);
        let origins: Vec<Arc<Origin>> = self.origins.iter().filter(wanted).cloned().collect();
        if origins.is_empty() {
            let Some(reply) = reply else { return };
            let _ = reply.send(match only {
                Some(origin) => {
                    let hint = "no such origin is configured; see tierd status".to_owned();
                    Err(Fault::NotFound { what: format!("origin {origin}"), hint })
                }
                None => Ok(()),
            });
            return;
        }
        let (sender, mut replies) = mpsc::channel(origins.len());
        for origin in origins {
            let (done, at, sender) = (self.done.clone(), self.clock.wall(), sender.clone());
            tokio::spawn(async move {
                let result = origin.snapshot(at).await.map_err(|error| error.fault(origin.name(), "listing"));
                let (told, heard) = oneshot::channel();
                let _ = done.send(Done::Listed(origin.name().clone(), result, Some(told))).await;
                let _ = sender.send(heard.await.unwrap_or(Err(Fault::ShuttingDown))).await;
            });
        }
        drop(sender);
        let Some(reply) = reply else { return };
        tokio::spawn(async move {
            let mut result = Ok(());
            while let Some(listed) = replies.recv().await {
                result = result.and(listed);
            }
            let _ = reply.send(result);
        });
    }

    pub(crate) fn listed(&mut self, origin: &OriginName, result: Result<OriginSnapshot, Fault>) -> Result<(), Fault> {
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            Err(fault) => {
                tracing::warn!(%origin, %fault, "could not be listed; what it had before stays known");
                self.origin_is(origin, OriginState::Down, &fault.to_string());
                return Err(fault);
            }
        };
        match serde_json::to_vec(&snapshot) {
            Ok(bytes) => self.scribe.note(Note::State(state_name(origin), bytes)),
            Err(error) => tracing::error!(%origin, %error, "a listing could not be written"),
        }
        let before = self.sources.of(origin).0;
        self.sources.listed(snapshot);
        self.apply(Event::Catalog(self.sources.catalog()));
        let models = self.sources.of(origin).0;
        self.origin_is(origin, OriginState::Up, "");
        if models != before {
            self.record(What::Listed { origin: origin.clone(), models });
        }
        Ok(())
    }

    /// Notes an origin's state; a change is an occurrence.
    pub(crate) fn origin_is(&mut self, origin: &OriginName, state: OriginState, detail: &str) {
        if self.origin_states.insert(origin.clone(), state) != Some(state) {
            // An idle node sets no gauges: this one must be told of all the same.
            self.stale = true;
            self.record(What::Origin { origin: origin.clone(), state, detail: detail.to_owned() });
        }
    }

    pub(crate) fn origin(&self, origin: &Origin) -> OriginView {
        let (connections, connections_allowed, bytes_per_second) = self.state.lane(origin.name());
        let (models, listed) = self.sources.of(origin.name());
        let health = origin.health();
        OriginView {
            origin: origin.name().clone(),
            kind: origin.kind().to_owned(),
            address: origin.address(),
            state: health.state,
            detail: health.detail,
            models,
            listed,
            connections,
            connections_allowed,
            bytes_per_second,
        }
    }
}

fn state_name(origin: &OriginName) -> String {
    format!("catalog-{origin}")
}
