//! Traces over OTLP/HTTP in JSON, as <https://opentelemetry.io/docs/specs/otlp/> has it: small enough to be written here, where a
//! library would bring a second client. Batches, tries a few times, then drops and counts; never holds the engine up.

use std::time::Duration;

use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value as Json, json};
use tierd_cache::engine::EngineHandle;
use tierd_cache::engine::view::{Span, SpanTree, Value};
use tierd_cache::metrics;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::codegen::Bytes;

/// Traces that may wait for the receiver. At a thousand ensures a second that is a quarter of one.
const QUEUE_MAX: usize = 256;
/// Spans of one request; a trace is never parted.
const BATCH_SPANS_MAX: usize = 512;
/// How long traces are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// Longest wait for a connection, and for an answer.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Tries of one batch, and the wait after the first; each further one waits twice as long.
const TRIES_MAX: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(500);
/// Bytes of an answer that are read: it says nothing that is needed.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Longest wait for the last batch when the daemon ends.
const END_WAIT: Duration = Duration::from_secs(1);

/// The path that the specification gives, below the endpoint.
const PATH: &str = "/v1/traces";

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtlpConfig {
    /// `http://host:port`, without `/v1/traces`.
    pub endpoint: String,
}

/// Takes traces from the engine and sends them, until `stop`.
pub async fn run(config: OtlpConfig, engine: EngineHandle, stop: CancellationToken) {
    let (sink, traces) = mpsc::channel(QUEUE_MAX);
    if engine.spans_to(sink).await.is_err() {
        return;
    }
    let mut sender = match Sender::new(&config) {
        Ok(sender) => sender,
        Err(error) => {
            tracing::error!(endpoint = config.endpoint, error, "traces cannot be sent there");
            return;
        }
    };
    tracing::info!(endpoint = config.endpoint, "traces are sent");
    sender.follow(traces, &stop).await;
}

/// Sends batches.
struct Sender {
    uri: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    resource: Json,
    /// Whether the last batch arrived: a receiver that comes and goes is one line each time, not one for each batch.
    up: bool,
}

impl Sender {
    fn new(config: &OtlpConfig) -> Result<Self, String> {
        let uri = format!("{}{PATH}", config.endpoint.trim_end_matches('/'));
        let uri: Uri = uri.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_WAIT));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Ok(Self { uri, client, resource: resource(), up: true })
    }

    async fn follow(&mut self, mut traces: mpsc::Receiver<SpanTree>, stop: &CancellationToken) {
        loop {
            let first = tokio::select! {
                first = traces.recv() => first,
                () = stop.cancelled() => None,
            };
            let Some(first) = first else { break };
            let mut batch = vec![first];
            let mut spans = batch[0].spans.len();
            let gathered = tokio::time::sleep(GATHER);
            tokio::pin!(gathered);
            while spans < BATCH_SPANS_MAX {
                tokio::select! {
                    () = &mut gathered => break,
                    () = stop.cancelled() => break,
                    next = traces.recv() => {
                        let Some(next) = next else { break };
                        spans += next.spans.len();
                        batch.push(next);
                    }
                }
            }
            tokio::select! {
                () = self.send(&batch) => {}
                () = ended(stop) => metrics::spans::failed(spans),
            }
        }
        self.last(&mut traces).await;
    }

    /// What still waits when the daemon ends, in one try.
    async fn last(&mut self, traces: &mut mpsc::Receiver<SpanTree>) {
        traces.close();
        let mut batch = Vec::new();
        while let Ok(trace) = traces.try_recv() {
            batch.push(trace);
        }
        if !batch.is_empty() && tokio::time::timeout(END_WAIT, self.send(&batch)).await.is_err() {
            metrics::spans::failed(count(&batch));
        }
    }

    /// Sends a batch, with a few tries where that can help.
    async fn send(&mut self, batch: &[SpanTree]) {
        let spans = count(batch);
        let body = Bytes::from(document(&self.resource, batch).to_string());
        let mut wait = BACKOFF;
        for left in (0..TRIES_MAX).rev() {
            match self.once(body.clone()).await {
                Ok(()) => {
                    metrics::spans::sent(spans);
                    if !std::mem::replace(&mut self.up, true) {
                        tracing::info!("traces arrive again");
                    }
                    return;
                }
                Err((detail, again)) if left == 0 || !again => {
                    metrics::spans::failed(spans);
                    if std::mem::replace(&mut self.up, false) {
                        tracing::warn!(detail, endpoint = %self.uri, "traces do not arrive, they are dropped and counted");
                    }
                    return;
                }
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait *= 2;
        }
    }

    /// One request. On failure: what happened, and whether another try can help.
    async fn once(&self, body: Bytes) -> Result<(), (String, bool)> {
        let request = Request::post(self.uri.clone()).header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(body)).map_err(|error| (error.to_string(), false))?;
        let answered = tokio::time::timeout(ANSWER_WAIT, async {
            let answer = self.client.request(request).await.map_err(|error| (crate::rpc::chain(&error), true))?;
            let status = answer.status();
            // Read, so that the connection can be used again; what it says is not needed.
            let _ = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok(status)
        });
        let status = answered.await.map_err(|_| (format!("no answer within {ANSWER_WAIT:?}"), true))??;
        match status {
            status if status.is_success() => Ok(()),
            // Those for which the specification allows another try.
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err((format!("it answers {status}"), true)),
            status => Err((format!("it answers {status}"), false)),
        }
    }
}

/// A moment after the stop: a batch under way may still arrive.
async fn ended(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(END_WAIT).await;
}

fn count(batch: &[SpanTree]) -> usize {
    batch.iter().map(|trace| trace.spans.len()).sum()
}

/// Who sends.
fn resource() -> Json {
    let host = sysinfo::System::host_name().unwrap_or_default();
    let mut attributes = vec![
        attribute("service.name", &Value::Text("tierd".to_owned())),
        attribute("service.version", &Value::Text(env!("CARGO_PKG_VERSION").to_owned())),
    ];
    if !host.is_empty() {
        attributes.push(attribute("host.name", &Value::Text(host)));
    }
    json!({ "attributes": attributes })
}

/// `ExportTraceServiceRequest` in its JSON form.
fn document(resource: &Json, batch: &[SpanTree]) -> Json {
    let spans: Vec<Json> =
        batch.iter().flat_map(|trace| trace.spans.iter().map(|span| message(trace.id, span))).collect();
    let scope = json!({ "scope": { "name": "tierd", "version": env!("CARGO_PKG_VERSION") }, "spans": spans });
    json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": [scope] }] })
}

/// Ids are hex and 64-bit numbers are texts: the specification's deviations from and rules of protobuf's JSON.
fn message(trace: u128, span: &Span) -> Json {
    const KIND_INTERNAL: u32 = 1;
    const KIND_SERVER: u32 = 2;
    const KIND_CLIENT: u32 = 3;
    const STATUS_UNSET: u32 = 0;
    const STATUS_ERROR: u32 = 2;
    let kind = match span.name {
        "ensure" => KIND_SERVER,
        "fetch" => KIND_CLIENT,
        _ => KIND_INTERNAL,
    };
    let status = if span.failed.is_empty() {
        json!({ "code": STATUS_UNSET })
    } else {
        json!({ "code": STATUS_ERROR, "message": span.failed })
    };
    let attributes: Vec<Json> = span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    let mut message = json!({
        "traceId": format!("{trace:032x}"),
        "spanId": format!("{:016x}", span.id),
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": span.begun.to_string(),
        "endTimeUnixNano": span.ended.to_string(),
        "attributes": attributes,
        "status": status,
    });
    if let Some(parent) = span.parent {
        message["parentSpanId"] = format!("{parent:016x}").into();
    }
    message
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({ "stringValue": text }),
        Value::Number(number) => json!({ "intValue": i64::try_from(*number).unwrap_or(i64::MAX).to_string() }),
        Value::Flag(flag) => json!({ "boolValue": flag }),
    };
    json!({ "key": key, "value": value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_byte_for_byte_what_the_specification_says() {
        let span = |id, parent, failed: &str| Span {
            id,
            parent,
            name: "flight",
            begun: 1_700_000_000_000_000_001,
            ended: 1_700_000_000_000_000_002,
            failed: failed.to_owned(),
            attributes: vec![("tierd.bytes", Value::Number(7)), ("tierd.joined", Value::Flag(true))],
        };
        let trace = SpanTree { id: 0xab, spans: vec![span(1, None, ""), span(2, Some(1), "it broke")] };
        let text = document(&json!({ "attributes": [] }), &[trace]).to_string();
        let found: Json = serde_json::from_str(&text).expect("it is JSON");
        let spans = &found["resourceSpans"][0]["scopeSpans"][0]["spans"];
        let attributes = json!([
            { "key": "tierd.bytes", "value": { "intValue": "7" } },
            { "key": "tierd.joined", "value": { "boolValue": true } },
        ]);
        assert_eq!(
            spans[0],
            json!({
                "traceId": "000000000000000000000000000000ab", "spanId": "0000000000000001", "name": "flight", "kind": 1,
                "startTimeUnixNano": "1700000000000000001", "endTimeUnixNano": "1700000000000000002",
                "attributes": attributes, "status": { "code": 0 },
            })
        );
        assert_eq!(spans[1]["parentSpanId"], "0000000000000001");
        assert_eq!(spans[1]["status"], json!({ "code": 2, "message": "it broke" }));
    }
}
