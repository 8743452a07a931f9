//! The connection to NATS: opened without waiting for it, kept by the client library, and known to be there or not.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, kv};
use async_nats::{Client, ConnectOptions, Event};
use tierd_cache::metrics;
use tokio::sync::watch;

use crate::fleet::{FleetConfig, PUBLISH_WAIT, QUESTIONS_MAX};

/// Longest pause between two tries to reach NATS.
const RECONNECT_MAX: Duration = Duration::from_secs(8);
/// Longest wait for an answer of JetStream.
const JETSTREAM_WAIT: Duration = Duration::from_secs(5);
/// Largest value of the bucket: NATS' own default for a message.
const VALUE_BYTES_MAX: i32 = 1 << 20;

/// Why a node can take no part.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The credentials file cannot be read.
    #[error("cannot read the NATS credentials {path}: {source}")]
    Credentials {
        /// The file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The client library refuses.
    #[error("cannot set up NATS: {0}")]
    Connect(#[from] async_nats::ConnectError),
}

/// The connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: Client,
    /// How often it was connected, and whether it is.
    state: watch::Receiver<(u64, bool)>,
}

impl Link {
    /// Starts to connect; returns at once, whether NATS is there or not.
    pub(super) async fn open(config: &FleetConfig) -> Result<Self, LinkError> {
        let (told, state) = watch::channel((0, false));
        let told = Arc::new(told);
        let mut options = ConnectOptions::new()
            .name(format!("tierd {}", config.node))
            .retry_on_initial_connect()
            .subscription_capacity(QUESTIONS_MAX)
            .reconnect_delay_callback(|tries| {
                let pause = Duration::from_millis(100 << tries.min(10));
                pause.min(RECONNECT_MAX)
            })
            .event_callback(move |event| {
                let told = told.clone();
                async move { note(&told, &event) }
            });
        if let Some(path) = &config.credentials {
            let failed = |source| LinkError::Credentials { path: path.display().to_string(), source };
            options = options.credentials_file(path).await.map_err(failed)?;
        }
        if let Some(token) = &config.token {
            options = options.token(token.expose().to_owned());
        }
        if let Some(ca) = &config.ca {
            options = options.add_root_certificates(ca.clone());
        }
        let client = options.connect(config.servers.as_slice()).await?;
        Ok(Self { client, state })
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state.borrow().1
    }

    /// Waits until NATS is there.
    pub(super) async fn until_connected(&self) {
        // The sender lives as long as the client.
        let _ = self.state.clone().wait_for(|(_, connected)| *connected).await;
    }

    /// Waits until NATS is there again after it was away.
    pub(super) async fn reconnected(&self) {
        let mut state = self.state.clone();
        let before = state.borrow().0;
        let _ = state.wait_for(|(times, connected)| *connected && *times > before).await;
    }

    /// The bucket of all nodes, made if it is not there. `None` if JetStream is not to be had: said once a try.
    pub(super) async fn bucket(&self, prefix: &str, lifetime: Duration) -> Option<kv::Store> {
        let jetstream = jetstream::new(self.client.clone());
        let name = format!("{prefix}_nodes");
        let config = kv::Config {
            bucket: name.clone(),
            description: "what each tierd node holds; an entry ends when its node is silent".to_owned(),
            max_age: lifetime,
            max_value_size: VALUE_BYTES_MAX,
            history: 1,
            // It is told again within seconds: nothing is worth a disk.
            storage: jetstream::stream::StorageType::Memory,
            ..kv::Config::default()
        };
        let made = async {
            match jetstream.get_key_value(name).await {
                Ok(store) => Ok(store),
                Err(_) => jetstream.create_key_value(config).await,
            }
        };
        match tokio::time::timeout(JETSTREAM_WAIT, made).await {
            Ok(Ok(store)) => Some(store),
            Ok(Err(error)) => {
                tracing::warn!(%error, "no inventory is told: JetStream is not to be had");
                None
            }
            Err(_) => {
                tracing::warn!("no inventory is told: JetStream does not answer");
                None
            }
        }
    }

    /// Says goodbye: the inventory goes at once instead of by its age.
    pub(super) async fn close(self, config: &FleetConfig) {
        metrics::fleet_connected(false);
        if !self.is_connected() {
            return;
        }
        let goodbye = async {
            let jetstream = jetstream::new(self.client.clone());
            if let Ok(store) = jetstream.get_key_value(format!("{}_nodes", config.prefix)).await {
                // An entry that stays is forgotten by its age.
                let _ = store.delete(config.node.as_str()).await;
            }
            let _ = self.client.flush().await;
        };
        let _ = tokio::time::timeout(PUBLISH_WAIT, goodbye).await;
    }
}

fn note(told: &watch::Sender<(u64, bool)>, event: &Event) {
    match event {
        Event::Connected => {
            tracing::info!("NATS is there");
            told.send_modify(|(times, connected)| {
                *times += 1;
                *connected = true;
            });
            metrics::fleet_connected(true);
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!("NATS is away: this node works on alone");
            told.send_modify(|(_, connected)| *connected = false);
            metrics::fleet_connected(false);
        }
        other => tracing::debug!(event = %other, "NATS"),
    }
}
