//! Claims about origins, against a server that answers exactly what a test tells it to.

mod folder;
mod http;
mod s3;
mod server;

use std::time::Duration;

use super::Origin;
use crate::config::{OriginConfig, OriginKind, Secret};

/// Short enough for a test to wait for, long enough for a loaded machine to answer within.
const SHORT: Duration = Duration::from_millis(300);

fn http_config(url: &str) -> OriginConfig {
    OriginConfig::new("web", OriginKind::Http { url: url.to_owned(), bearer: Some(Secret::new("hunter2")) })
}

fn open(config: &OriginConfig) -> Origin {
    Origin::open(config).expect("a good configuration")
}

/// All bytes of a body, or its error.
async fn all(mut body: super::Body) -> Result<Vec<u8>, super::OriginError> {
    let mut all = Vec::new();
    while let Some(bytes) = body.next().await {
        all.extend_from_slice(&bytes?);
    }
    Ok(all)
}
