//! Claims about traces: one tree for each ensure, in the form that OTLP/HTTP receivers take, and a receiver that fails costs nobody
//! anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tierd::rpc::pb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::rig::http::{ask, read_request};
use crate::rig::{Client, Content, Daemon, FaultOrigin, MIB, Settings, assert_within, free_port, until, within};

const FIRST: &str = "vae/first.safetensors";
const SECOND: &str = "loras/second.safetensors";

/// How a receiver answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Well,
    /// Not at first.
    Unavailable(u32),
    /// It reads and says nothing.
    Never,
}

/// A receiver of OTLP/HTTP: keeps what it was sent.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<Value>>>,
    serving: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has free ports");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let got = Arc::new(Mutex::new(Vec::new()));
        let (kept, left) = (got.clone(), Arc::new(Mutex::new(answers)));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, kept.clone(), left.clone()));
            }
        });
        Self { url, got, serving }
    }

    /// All spans so far, by trace.
    fn traces(&self) -> BTreeMap<String, Vec<Value>> {
        let mut traces: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for document in &*self.got.lock().expect("no holder panics") {
            let resource = &document["resourceSpans"][0];
            let service = &resource["resource"]["attributes"][0];
            assert_eq!(
                (service["key"].as_str(), service["value"]["stringValue"].as_str()),
                (Some("service.name"), Some("tierd"))
            );
            for span in resource["scopeSpans"][0]["spans"].as_array().expect("a list") {
                traces.entry(text(span, "traceId")).or_default().push(span.clone());
            }
        }
        traces
    }

    /// The trace of the ensure of so many bytes, once it is there.
    async fn trace(&self, client: &str) -> Vec<Value> {
        until("its trace arrives", 20, || async {
            self.traces().into_values().find(|spans| attribute(&spans[0], "tierd.client") == Some(client.to_owned()))
        })
        .await
    }
}

async fn converse(mut stream: TcpStream, got: Arc<Mutex<Vec<Value>>>, answers: Arc<Mutex<Answers>>) {
    let mut rest = Vec::new();
    while let Ok(Some(request)) = read_request(&mut stream, &mut rest).await {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "v1/traces"));
        assert_eq!(request.headers["content-type"], "application/json");
        let length: usize = request.headers["content-length"].parse().expect("a number");
        while rest.len() < length {
            let mut buffer = [0; 8192];
            let count = stream.read(&mut buffer).await.expect("it speaks");
            assert!(count > 0, "it hung up");
            rest.extend_from_slice(&buffer[..count]);
        }
        let body: Vec<u8> = rest.drain(..length).collect();
        let how = {
            let mut answers = answers.lock().expect("no holder panics");
            let now = *answers;
            if let Answers::Unavailable(left) = now {
                *answers = if left > 1 { Answers::Unavailable(left - 1) } else { Answers::Well };
            }
            now
        };
        let status = match how {
            Answers::Never => std::future::pending().await,
            Answers::Unavailable(_) => "503 Service Unavailable",
            Answers::Well => {
                got.lock().expect("no holder panics").push(serde_json::from_slice(&body).expect("it is JSON"));
                "200 OK"
            }
        };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}");
        stream.write_all(answer.as_bytes()).await.expect("it reads");
    }
}

fn text(span: &Value, key: &str) -> String {
    span[key].as_str().unwrap_or_else(|| panic!("{key} is no text in {span}")).to_owned()
}

fn nanos(span: &Value, key: &str) -> u64 {
    text(span, key).parse().expect("64 bits as a text")
}

fn attribute(span: &Value, key: &str) -> Option<String> {
    let found = span["attributes"].as_array()?.iter().find(|row| row["key"] == key)?;
    let value = found["value"].as_object()?.values().next()?;
    Some(value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned))
}

fn named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

/// One root, every parent is there, ids are hex and distinct, and times are in order.
fn assert_is_tree(spans: &[Value]) {
    let ids: BTreeSet<String> = spans.iter().map(|span| text(span, "spanId")).collect();
    assert_eq!(ids.len(), spans.len(), "ids are distinct");
    let hex = |id: &str, digits: usize| id.len() == digits && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let roots = spans.iter().filter(|span| span.get("parentSpanId").is_none()).count();
    assert_eq!(roots, 1);
    for span in spans {
        assert!(hex(&text(span, "traceId"), 32) && hex(&text(span, "spanId"), 16), "{span}");
        assert!(text(span, "spanId") != "0".repeat(16), "{span}");
        assert!(nanos(span, "startTimeUnixNano") <= nanos(span, "endTimeUnixNano"), "{span}");
        assert!(nanos(span, "startTimeUnixNano") > 1_600_000_000_000_000_000, "{span}");
        if span.get("parentSpanId").is_some() {
            assert!(ids.contains(&text(span, "parentSpanId")), "{span}");
        }
    }
}

async fn node(receiver: &Receiver, metrics: u16) -> (FaultOrigin, Daemon, Client) {
    let origin = FaultOrigin::start().await;
    let contents = [(FIRST, Content::model(61, 3 * MIB)), (SECOND, Content::model(62, 40 * MIB))];
    let rows: Vec<_> = contents.iter().map(|(model, content)| (*model, content, None, None)).collect();
    contents.iter().for_each(|(model, content)| origin.put(model, content));
    origin.put_manifest(&rows);
    let settings = Settings::with_origin(&origin)
        .set("telemetry", "otlp_endpoint", &format!("\"{}\"", receiver.url))
        .set("ram", "reserve", "\"1 GiB\"")
        .set("listen", "http", &format!("\"127.0.0.1:{metrics}\""));
    let daemon = Daemon::start(settings).await;
    let client = daemon.client().await;
    until("the manifest is read", 10, || async { client.model(FIRST).await.ok() }).await;
    (origin, daemon, client)
}

fn request(models: &[&str], client: &str, target: pb::Tier) -> pb::EnsureRequest {
    pb::EnsureRequest { target: target.into(), client: client.to_owned(), ..Client::request(models) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensure_is_one_tree_of_its_flights_their_requests_and_locks() {
    within(60, async {
        let receiver = Receiver::start(Answers::Unavailable(1)).await;
        let (origin, daemon, client) = node(&receiver, free_port()).await;
        origin.limit_rate(60 * MIB);
        let begun = Instant::now();
        let other = tokio::spawn({
            let client = client.clone();
            async move { client.ensure_with(request(&[SECOND], "first asks", pb::Tier::Nvme)).await }
        });
        until("its flight is under way", 10, || async { client.flights().await.first().map(drop) }).await;
        client.ensure_with(request(&[FIRST, SECOND], "then both", pb::Tier::Ram)).await.ready();
        other.await.expect("it does not panic").ready();
        let took = begun.elapsed();

        let both = receiver.trace("then both").await;
        assert_is_tree(&both);
        let root = named(&both, "ensure")[0].clone();
        let number = |span: &Value, key: &str| attribute(span, key).unwrap_or_default();
        assert_eq!(
            (number(&root, "tierd.target").as_str(), number(&root, "tierd.bytes")),
            ("ram", (43 * MIB).to_string())
        );
        assert_eq!(root["kind"], 2);
        let length = nanos(&root, "endTimeUnixNano") - nanos(&root, "startTimeUnixNano");
        assert!(Duration::from_nanos(length) <= took, "{length} ns of {took:?}");
        let flights = named(&both, "flight");
        assert_eq!(flights.len(), 2, "{flights:?}");
        let joined: BTreeMap<String, String> =
            flights.iter().map(|span| (number(span, "tierd.models"), number(span, "tierd.joined"))).collect();
        assert_eq!(joined, [(FIRST.to_owned(), "false".to_owned()), (SECOND.to_owned(), "true".to_owned())].into());
        for flight in &flights {
            assert_eq!(text(flight, "parentSpanId"), text(&root, "spanId"));
            let id = text(flight, "spanId");
            let children: Vec<String> = both
                .iter()
                .filter(|span| span.get("parentSpanId").is_some_and(|parent| *parent == id))
                .map(|span| text(span, "name"))
                .collect();
            for part in ["open", "fetch", "commit"] {
                assert!(children.iter().any(|child| child == part), "{part} is missing in {children:?}");
            }
        }
        let pieces: u64 = named(&both, "fetch")
            .iter()
            .map(|span| number(span, "tierd.pieces").parse::<u64>().expect("a number"))
            .sum();
        assert!(pieces >= 6, "five pieces of 8 MiB and one of 3: {pieces}");
        assert!(named(&both, "fetch").iter().all(|span| number(span, "tierd.origin") == "lab"));
        assert!(!named(&both, "lock").is_empty(), "it was wanted in RAM");

        let first = receiver.trace("first asks").await;
        assert_is_tree(&first);
        assert_ne!(text(&first[0], "traceId"), text(&both[0], "traceId"));
        assert_eq!(attribute(named(&first, "flight")[0], "tierd.joined"), Some("false".to_owned()));

        client.ensure_with(request(&["vae/nowhere.safetensors"], "in vain", pb::Tier::Nvme)).await.fault();
        let failed = receiver.trace("in vain").await;
        assert_eq!((failed.len(), &failed[0]["status"]["code"]), (1, &Value::from(2)));
        assert!(failed[0]["status"]["message"].as_str().is_some_and(|text| text.contains("nowhere")), "{failed:?}");
        drop(daemon);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_holds_nobody_up_and_what_it_misses_is_counted() {
    within(90, async {
        let receiver = Receiver::start(Answers::Never).await;
        let port = free_port();
        let (_origin, mut daemon, client) = node(&receiver, port).await;
        client.ready(&[FIRST]).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..600 {
            let begun = Instant::now();
            client.ready(&[FIRST]).await;
            slowest = slowest.max(begun.elapsed());
        }
        assert_within(slowest, Duration::from_secs(2), "an ensure");
        let address = format!("127.0.0.1:{port}");
        until("what found no place is counted", 20, || async {
            client.ready(&[FIRST]).await;
            let (_, metrics) = ask(&address, "GET", "/metrics", b"").await.ok()?;
            let line = metrics.lines().find(|line| line.starts_with("tierd_trace_spans_total{outcome=\"dropped\"}"))?;
            line.rsplit(' ').next()?.parse::<f64>().ok().filter(|count| *count > 0.0)
        })
        .await;
        let begun = Instant::now();
        assert!(daemon.stop().await.success());
        assert_within(begun.elapsed(), Duration::from_secs(10), "the end");
    })
    .await;
}
