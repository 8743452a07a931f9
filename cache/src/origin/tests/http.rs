//! Claims about reads, names and redirects over HTTP.

use std::time::Duration;

use super::server::{Reply, Server};
use super::{SHORT, all, http_config, open};
use crate::catalog::Validator;
use crate::config::{OriginConfig, OriginKind};
use crate::engine::view::OriginState;
use crate::ids::ModelKey;
use crate::origin::{Origin, OriginError};

fn known() -> Validator {
    Validator { etag: Some("\"e1\"".to_owned()), modified_ms: Some(784_111_777_000) }
}

fn key(name: &str) -> ModelKey {
    ModelKey::parse(name).unwrap()
}

/// Reads bytes 10..20 of 100 from a server that answers once as told.
async fn read_of(reply: impl Fn() -> Reply + Send + Sync + 'static) -> (Result<Vec<u8>, OriginError>, Origin, Server) {
    let server = Server::start(move |_, _| reply()).await;
    let mut config = http_config(&server.url);
    (config.stall_timeout, config.request_timeout) = (SHORT, SHORT);
    let origin = open(&config);
    let result = match origin.read("loras/x.sft", 10..20, 100, &known()).await {
        Ok(body) => all(body).await,
        Err(error) => Err(error),
    };
    (result, origin, server)
}

fn part(headers: &str, body: &[u8]) -> Reply {
    Reply::new(&format!("206 Partial Content\nContent-Range: bytes 10-19/100\n{headers}"), body)
}

#[tokio::test]
async fn a_range_is_asked_for_on_the_condition_that_nothing_changed() {
    let (result, origin, server) = read_of(|| part("Content-Length: 10\nETag: \"e1\"", b"0123456789")).await;
    assert_eq!(result.unwrap(), b"0123456789");
    let asked = &server.asked()[0];
    for line in ["get /loras/x.sft http/1.1", "range: bytes=10-19", "if-match: \"e1\"", "authorization: bearer hunter2"]
    {
        assert!(asked.contains(line), "{line} is not in {asked}");
    }
    assert!(!asked.contains("if-unmodified-since"), "{asked}");
    let health = origin.health();
    assert_eq!((health.state, health.requests, health.errors), (OriginState::Up, 1, 0));
}

#[tokio::test]
async fn a_weak_etag_is_not_sent_but_the_date_is() {
    let server = Server::start(|_, _| part("Content-Length: 10", b"0123456789")).await;
    let weak = Validator { etag: Some("W/\"e1\"".to_owned()), ..known() };
    open(&http_config(&server.url)).read("x", 10..20, 100, &weak).await.unwrap();
    let asked = &server.asked()[0];
    assert!(
        asked.contains("if-unmodified-since: sun, 06 nov 1994 08:49:37 gmt") && !asked.contains("if-match"),
        "{asked}"
    );
}

#[tokio::test]
async fn a_replaced_object_is_noticed_before_a_byte_of_it_is_given() {
    let (result, ..) = read_of(|| Reply::status("412 Precondition Failed", "", b"")).await;
    assert!(matches!(result, Err(OriginError::Changed { .. })), "{result:?}");
    let (result, ..) = read_of(|| part("Content-Length: 10\nETag: \"e2\"", b"0123456789")).await;
    assert!(matches!(result, Err(OriginError::Changed { .. })), "{result:?}");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_whole() {
    let server = Server::start(|_, _| Reply::status("200 OK", "", &[7; 100])).await;
    let origin = open(&http_config(&server.url));
    let error = origin.read("x", 10..20, 100, &known()).await.unwrap_err();
    assert!(matches!(error, OriginError::RangeIgnored { .. }), "{error}");
    assert_eq!(all(origin.read_whole("x", 100, &known()).await.unwrap()).await.unwrap(), [7; 100]);
    let asked = server.asked();
    assert!(asked[0].contains("range: ") && !asked[1].contains("range: "), "{asked:?}");
    let error = origin.read_whole("x", 99, &known()).await.unwrap_err();
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
}

#[tokio::test]
async fn a_body_that_ends_early_is_truncated_wherever_the_lie_is() {
    let expected = OriginError::Truncated { path: "loras/x.sft".into(), got: 4, want: 10 };
    let (result, ..) = read_of(|| part("Content-Length: 10", b"0123").then_close()).await;
    assert_eq!(result.unwrap_err(), expected);
    let (result, ..) = read_of(|| part("Connection: close", b"0123").then_close()).await;
    assert_eq!(result.unwrap_err(), expected);
    let (result, ..) = read_of(|| part("Transfer-Encoding: chunked", b"4\r\n0123\r\n0\r\n\r\n")).await;
    assert_eq!(result.unwrap_err(), expected);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let expected = OriginError::TooLong { path: "loras/x.sft".into(), want: 10 };
    let (result, ..) = read_of(|| part("Content-Length: 11", b"0123456789a")).await;
    assert_eq!(result.unwrap_err(), expected);
    let (result, ..) = read_of(|| part("Transfer-Encoding: chunked", b"b\r\n0123456789a\r\n0\r\n\r\n")).await;
    assert_eq!(result.unwrap_err(), expected);
}

#[tokio::test]
async fn silence_ends_by_its_own_limit() {
    let (result, origin, _server) = read_of(|| part("Content-Length: 10", b"0123").then_hang()).await;
    assert!(matches!(result, Err(OriginError::Stalled { got: 4, want: 10, after: SHORT, .. })), "{result:?}");
    assert_eq!(origin.health().state, OriginState::Down);
    let (result, ..) = read_of(Reply::silence).await;
    assert!(matches!(result, Err(OriginError::Timeout { what: "the first byte of the answer", .. })), "{result:?}");
}

#[tokio::test]
async fn a_reset_and_a_refused_connection_are_told_apart() {
    let (result, ..) = read_of(|| part("Content-Length: 10", b"0123").then_reset()).await;
    assert!(matches!(result, Err(OriginError::Reset { .. })), "{result:?}");
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let error = open(&http_config(&url)).read("x", 0..1, 1, &known()).await.unwrap_err();
    assert!(matches!(error, OriginError::Connect { .. }) && error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_wait_that_the_server_asks_for_reaches_the_engine() {
    let headers = "Date: Sun, 06 Nov 1994 08:49:37 GMT\nRetry-After: Sun, 06 Nov 1994 08:49:49 GMT";
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        let (result, origin, _server) = read_of(move || Reply::status(status, headers, b"later")).await;
        let error = result.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(12)), "{error}");
        assert_eq!(origin.health().state, OriginState::Throttled);
    }
}

#[tokio::test]
async fn errors_never_repeat_what_the_server_says_or_what_we_send() {
    let body = b"<html>token hunter2 is bad</html>";
    let (result, origin, _server) = read_of(|| Reply::status("403 Forbidden", "", body)).await;
    let error = result.unwrap_err();
    let text = format!("{error} {error:?} {origin:?} {:?}", origin.health());
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(error.to_string(), "loras/x.sft: refused with status 403 (Forbidden)");
}

#[tokio::test]
async fn pieces_share_connections_and_a_dropped_body_closes_its_own() {
    let server = Server::start(|_, _| part("Content-Length: 10\nETag: \"e1\"", b"0123456789")).await;
    let origin = open(&http_config(&server.url));
    for _ in 0..3 {
        all(origin.read("x", 10..20, 100, &known()).await.unwrap()).await.unwrap();
    }
    assert_eq!((server.accepted(), origin.health().connections_open), (1, 1));

    let server = Server::start(|_, _| part("Content-Length: 10", b"0123").then_hang()).await;
    let origin = open(&http_config(&server.url));
    let mut body = origin.read("x", 10..20, 100, &known()).await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), &b"0123"[..]);
    drop(body);
    server.closed.notified().await;
}

#[tokio::test]
async fn a_redirect_keeps_the_range_and_loses_the_credentials_at_another_host() {
    let other = Server::start(|_, _| part("Content-Length: 10", b"0123456789")).await;
    let to = other.url.clone();
    let server = Server::start(move |number, _| match number {
        0 => Reply::status("301 Moved", "Location: /elsewhere", b"moved"),
        _ => Reply::status("302 Found", &format!("Location: {to}/signed?sig=hunter3"), b"found"),
    })
    .await;
    let origin = open(&http_config(&server.url));
    let body = origin.read("x", 10..20, 100, &known()).await.unwrap();
    assert_eq!(all(body).await.unwrap(), b"0123456789");
    let (first, second) = (server.asked(), other.asked());
    assert!(first[1].contains("get /elsewhere") && first[1].contains("bearer hunter2"), "{first:?}");
    assert!(second[0].contains("range: bytes=10-19") && !second[0].contains("authorization"), "{second:?}");
    assert_eq!(server.accepted(), 1, "the redirect's connection is used again");
}

#[tokio::test]
async fn a_redirect_never_leads_into_this_node_unless_the_origin_is_there_itself() {
    let secret = Server::start(|_, _| part("Content-Length: 10", b"0123456789")).await;
    let port = secret.url.rsplit(':').next().expect("a port").to_owned();
    for to in [secret.url.clone(), format!("http://127.1:{port}"), "http://169.254.169.254/latest".to_owned()] {
        let answer = format!("Location: {to}/x");
        let server = Server::start(move |_, _| Reply::status("302 Found", &answer, b"")).await;
        // Not written as an address, so that nobody can know before it is looked up.
        let url = server.url.replace("127.0.0.1", "127.1");
        let error = open(&http_config(&url)).read("x", 10..20, 100, &known()).await.unwrap_err();
        assert!(error.to_string().contains("a redirect leads to 1"), "{to}: {error}");
    }
    assert_eq!(secret.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(|_, _| Reply::status("302 Found", "Location: /x?sig=hunter3", b"")).await;
    let error = open(&http_config(&server.url)).read("x", 0..1, 1, &known()).await.unwrap_err();
    assert_eq!(error.to_string(), "x: unusable answer: more than 5 redirects");
    assert_eq!(server.asked().len(), 6);
}

#[tokio::test]
async fn a_model_is_located_by_head_under_each_spelling() {
    let server = Server::start(|_, head| match head.contains(" /p/unet/a%20b.sft ") {
        true => {
            Reply::new("200 OK\nContent-Length: 100\nETag: \"e1\"\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT", b"")
        }
        false => Reply::new("404 Not Found\nContent-Length: 9", b""),
    })
    .await;
    let mut config = http_config(&server.url);
    config.prefix = "/p/".to_owned();
    let origin = open(&config);
    let found = origin.locate(&key("diffusion_models/a b.sft")).await.unwrap().unwrap();
    assert_eq!((found.path.as_str(), found.bytes, found.validator), ("p/unet/a b.sft", 100, known()));
    assert_eq!(origin.locate(&key("vae/x.sft")).await.unwrap(), None);
    assert!(server.asked().iter().all(|head| head.starts_with("head ")));
    assert_eq!(origin.health().errors, 0, "an absent object is no failure");
}

#[tokio::test]
async fn a_server_without_head_is_asked_for_one_byte() {
    for head in ["405 Method Not Allowed\nContent-Length: 0", "200 OK\nTransfer-Encoding: chunked"] {
        let server = Server::start(move |number, _| match number {
            0 => Reply::new(head, b""),
            _ => Reply::new("206 Partial Content\nContent-Length: 1\nContent-Range: bytes 0-0/100", b"x"),
        })
        .await;
        let found = open(&http_config(&server.url)).locate(&key("vae/x.sft")).await.unwrap().unwrap();
        assert_eq!(found.bytes, 100);
        assert!(server.asked()[1].contains("range: bytes=0-0"));
    }
}

#[tokio::test]
async fn an_absent_manifest_is_none_and_a_wrong_one_says_where() {
    let server = Server::start(|number, head| {
        assert!(head.starts_with("get /tierd-manifest.json "), "{head}");
        match number {
            0 => Reply::status("404 Not Found", "", b"no"),
            1 => Reply::status("200 OK", "", b"{\"version\": 1,\n \"models\": 7}"),
            _ => Reply::status("200 OK", "", br#"{"version": 1, "models": [{"name": "vae/x.sft", "size": 5}]}"#),
        }
    })
    .await;
    let origin = open(&http_config(&server.url));
    assert_eq!(origin.manifest().await.unwrap(), None);
    let error = origin.manifest().await.unwrap_err().to_string();
    assert!(error.contains("line 2, column"), "{error}");
    assert_eq!(origin.manifest().await.unwrap().unwrap().models[0].size, 5);
}

#[tokio::test]
async fn impossible_ranges_and_empty_ones_ask_nobody() {
    let server = Server::start(|_, _| Reply::silence()).await;
    let origin = open(&http_config(&server.url));
    assert!(matches!(origin.read("x", 5..11, 10, &known()).await, Err(OriginError::Config(_))));
    assert_eq!(all(origin.read("x", 10..10, 10, &known()).await.unwrap()).await.unwrap(), b"");
    assert!(matches!(origin.list().await, Err(OriginError::Unsupported(_))));
    assert!(server.asked().is_empty());
}

#[test]
fn what_cannot_work_is_refused_when_it_is_opened() {
    let http = |url: &str| OriginKind::Http { url: url.to_owned(), bearer: None };
    let mut prefix = OriginConfig::new("a", http("http://h"));
    prefix.prefix = "a/../b".to_owned();
    let mut manifest = OriginConfig::new("a", http("http://h"));
    manifest.manifest = String::new();
    for config in [OriginConfig::new("a", http("h/x")), prefix, manifest] {
        assert!(matches!(Origin::open(&config), Err(OriginError::Config(_))), "{config:?}");
    }
    let origin = open(&OriginConfig::new("a", http("http://u:hunter2@h:8/x/?k=hunter2")));
    assert_eq!((origin.address().as_str(), origin.kind(), origin.lists()), ("http://h:8/x", "http", false));
}
