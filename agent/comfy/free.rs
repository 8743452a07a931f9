//! Carries advice out, where the operator allows it: asks an idle ComfyUI on this machine to unload its models, by
//! `POST /free`. Calls loopback and nothing else, whatever address a worker names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tierd_cache::engine::EngineHandle;
use tierd_cache::vram::{Advice, WorkerId};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Shortest time between two calls to one worker: unloading takes seconds, and the next report must have come.
const FREE_INTERVAL: Duration = Duration::from_secs(60);
/// Longest wait for the answer: ComfyUI only sets a flag.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Models leave VRAM; what ComfyUI keeps in RAM and its results stay.
const ORDER: &str = r#"{"unload_models":true,"free_memory":false}"#;

/// Why a worker was not told.
#[derive(Debug, thiserror::Error)]
pub enum FreeError {
    /// It did not say where it listens.
    #[error("it does not say where it listens")]
    NoAddress,
    /// It names another machine, or no machine at all.
    #[error("{address:?} is not http on this machine: tierd calls loopback only")]
    Elsewhere {
        /// What it named.
        address: String,
    },
    /// Nobody answers there.
    #[error("{uri} cannot be asked: {detail}")]
    NoAnswer {
        /// Where.
        uri: Uri,
        /// What happened.
        detail: String,
    },
    /// It refuses.
    #[error("{uri} answers {status}")]
    Refused {
        /// Where.
        uri: Uri,
        /// Its status.
        status: u16,
    },
}

/// Where a worker with this address takes the order: on the loopback of this machine, or nowhere.
///
/// # Errors
///
/// [`FreeError::NoAddress`], [`FreeError::Elsewhere`].
pub fn target(address: &str) -> Result<Uri, FreeError> {
    if address.is_empty() {
        return Err(FreeError::NoAddress);
    }
    let elsewhere = || FreeError::Elsewhere { address: address.chars().take(200).collect() };
    let uri: Uri = address.parse().map_err(|_| elsewhere())?;
    if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(elsewhere());
    }
    let authority = uri.authority().ok_or_else(elsewhere)?;
    if authority.as_str().contains('@') {
        return Err(elsewhere());
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    // A name is never looked up: what it leads to is somebody else's choice.
    let ip = match host {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.parse::<IpAddr>().map_err(|_| elsewhere())?.to_canonical(),
    };
    // A server that listens everywhere listens on the loopback too.
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    if !ip.is_loopback() {
        return Err(elsewhere());
    }
    let socket = std::net::SocketAddr::new(ip, authority.port_u16().unwrap_or(80));
    format!("http://{socket}/free").parse().map_err(|_| elsewhere())
}

/// Asks a worker to unload its models.
///
/// # Errors
///
/// [`FreeError`].
pub async fn free(client: &Client<HttpConnector, Body>, address: &str) -> Result<(), FreeError> {
    let uri = target(address)?;
    let no_answer = |detail: String| FreeError::NoAnswer { uri: uri.clone(), detail };
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(ORDER))
        .map_err(|error| no_answer(error.to_string()))?;
    let response = match tokio::time::timeout(ANSWER_WAIT, client.request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(no_answer(crate::rpc::chain(&error))),
        Err(_) => return Err(no_answer(format!("no answer within {} s", ANSWER_WAIT.as_secs()))),
    };
    let status = response.status();
    if status.is_success() { Ok(()) } else { Err(FreeError::Refused { uri, status: status.as_u16() }) }
}

/// Carries out advice until `stop`.
pub async fn carry_out(engine: EngineHandle, stop: CancellationToken) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let Ok(watch) = engine.advice().await else { return };
    let mut live = watch.live;
    let mut last: BTreeMap<WorkerId, Instant> = BTreeMap::new();
    let mut waiting = watch.now;
    loop {
        for advice in std::mem::take(&mut waiting) {
            last.retain(|_, at| at.elapsed() < FREE_INTERVAL);
            if !is_due(&advice) || last.contains_key(&advice.worker) {
                continue;
            }
            last.insert(advice.worker.clone(), Instant::now());
            tell(&engine, &client, &advice.worker).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            advice = live.recv() => match advice {
                Ok(advice) => waiting.push(advice),
                // The words behind the gap are the ones that count.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
        }
    }
}

/// Unloading is all or nothing: only where nothing runs and nothing that is loaded is needed next.
fn is_due(advice: &Advice) -> bool {
    advice.idle && !advice.unload.is_empty()
}

async fn tell(engine: &EngineHandle, client: &Client<HttpConnector, Body>, worker: &WorkerId) {
    let Ok(workers) = engine.workers().await else { return };
    let Some(view) = workers.into_iter().find(|view| view.worker == *worker) else { return };
    let detail = free(client, &view.hello.address).await.err().map(|error| error.to_string()).unwrap_or_default();
    // An engine that is gone writes nothing down.
    let _ = engine.worker_freed(worker.clone(), detail).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_ever_called() {
        for (address, uri) in [
            ("http://127.0.0.1:8188", "http://127.0.0.1:8188/free"),
            ("http://127.0.0.1:8188/", "http://127.0.0.1:8188/free"),
            ("http://localhost:8188", "http://127.0.0.1:8188/free"),
            ("http://0.0.0.0:8188", "http://127.0.0.1:8188/free"),
            ("http://[::1]:8188", "http://[::1]:8188/free"),
            ("http://[::ffff:127.0.0.1]:1", "http://127.0.0.1:1/free"),
        ] {
            assert_eq!(target(address).expect(address).to_string(), uri);
        }
        for address in [
            "",
            "http://10.0.0.1:8188",
            "http://169.254.169.254/",
            "http://example.com:8188",
            "http://127.0.0.1.nip.io:8188",
            "http://u@127.0.0.1:8188",
            "http://127.0.0.1:8188/x",
            "http://127.0.0.1:8188?x",
            "https://127.0.0.1:8188",
            "file:///etc/passwd",
            "127.0.0.1:8188",
        ] {
            assert!(target(address).is_err(), "{address}");
        }
    }

    #[test]
    fn only_a_worker_that_can_do_without_everything_is_told() {
        let row = || tierd_cache::vram::AdvisedModel { model: None, file: "/m".to_owned(), bytes: 1 };
        let advice = |idle, unload: Vec<_>| Advice {
            worker: WorkerId::parse("w").expect("a name"),
            device: 0,
            total: 10,
            used: 9,
            load: Vec::new(),
            preload: Vec::new(),
            unload,
            idle,
        };
        assert!(is_due(&advice(true, vec![row()])));
        assert!(!is_due(&advice(false, vec![row()])) && !is_due(&advice(true, Vec::new())));
    }
}
