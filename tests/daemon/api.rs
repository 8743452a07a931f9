//! Claims about the border: who may speak, what a wrong request is told, what can be discovered, what can be resumed.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tierd::rpc::pb;
use tierd::rpc::pb::watch_response::Update;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt;

use crate::rig::client::Milliseconds;
use crate::rig::http::ask;
use crate::rig::{Cli, Client, Content, Daemon, FaultOrigin, MIB, Settings, free_port, until, within};

const FLUX: &str = "diffusion_models/flux1-schnell.safetensors";

async fn node() -> (FaultOrigin, Daemon, Client) {
    let origin = FaultOrigin::start().await;
    origin.put(FLUX, &Content::model(800, 9 * MIB));
    let daemon = Daemon::start(Settings::with_origin(&origin)).await;
    let client = daemon.client().await;
    (origin, daemon, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_owner_and_group() {
    within(30, async {
        let (_origin, daemon, _client) = node().await;
        let mode = std::fs::metadata(daemon.socket()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{mode:o}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_a_dead_daemon_is_taken_over() {
    within(30, async {
        let (_origin, mut daemon, _client) = node().await;
        daemon.kill();
        assert!(daemon.socket().exists(), "a killed daemon leaves its socket");
        daemon.restart().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    within(30, async {
        let (_origin, daemon, client) = node().await;
        let mut health = HealthClient::new(client.channel.clone());
        for service in ["", "tierd.v1.CacheService", "tierd.v1.NodeService"] {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = health.check(request).await.unwrap_or_else(|status| panic!("{service}: {status}"));
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
        }
        let asked = [ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        }];
        let mut reflection = ServerReflectionClient::new(client.channel.clone());
        let mut answers =
            reflection.server_reflection_info(tokio_stream::iter(asked)).await.expect("it reflects").into_inner();
        let answer = answers.message().await.expect("an answer").and_then(|answer| answer.message_response);
        let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        for service in ["tierd.v1.CacheService", "tierd.v1.NodeService", "grpc.health.v1.Health"] {
            assert!(names.iter().any(|name| name == service), "{service} not in {names:?}");
        }
        daemon.cli().run(&["health"]).await.assert_code(0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_name_is_refused_and_the_field_is_named() {
    within(30, async {
        let (origin, daemon, client) = node().await;
        let long = format!("loras/{}.safetensors", "x".repeat(5000));
        for bad in ["../etc/passwd", "loras/../../etc/passwd", "/etc/passwd", "loras/a\0b", "loras", "", &long] {
            let outcome = client.ensure(&[FLUX, bad]).await;
            let status = outcome.status.expect("it is refused");
            assert_eq!(status.code(), Code::InvalidArgument, "{bad:?}: {status:?}");
            let details = status.get_details_bad_request().expect("it names the field");
            assert_eq!(details.field_violations[0].field, "models[1]", "{bad:?}");
        }
        let asked: Vec<_> = origin.log().into_iter().filter(|served| served.path != "tierd-manifest.json").collect();
        assert!(asked.is_empty(), "the origin was asked: {asked:?}");
        daemon.cli().run(&["ensure", "../etc/passwd"]).await.assert_code(2);
        let empty = client.ensure(&[]).await.status.expect("it is refused");
        assert_eq!(empty.code(), Code::InvalidArgument);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_call_and_the_fetch_goes_on() {
    within(60, async {
        let (origin, _daemon, client) = node().await;
        origin.allow(MIB);
        let mut request = Request::new(Client::request(&[FLUX]));
        request.set_timeout(Duration::from_millis(700));
        let mut stream = client.cache.clone().ensure(request).await.expect("it begins").into_inner();
        let status = loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(status) => break status,
            }
        };
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
        assert_eq!(client.node().await.flights, 1, "the fetch goes on");
        origin.heal();
        until("it is stored", 20, || async { client.stored(FLUX).await.then_some(()) }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_where_its_token_says() {
    within(60, async {
        let (_origin, _daemon, client) = node().await;
        let before = client.events().await;
        let token = before.last().map(|event| event.resume_token.clone()).unwrap_or_default();
        let request = pb::WatchRequest { resume_token: token.clone(), past_only: false, ..Default::default() };
        let mut live = client.node.clone().watch(request).await.expect("it begins").into_inner();
        client.ready(&[FLUX]).await;
        client.pin(&[FLUX], "watcher", Milliseconds(60_000)).await.expect("pinned");
        let mut seen = Vec::new();
        while !seen.iter().any(|event: &pb::Occurrence| matches!(event.what, Some(pb::occurrence::What::Pinned(_)))) {
            match live.message().await.expect("it goes on").expect("it goes on").update {
                Some(Update::Occurrence(occurrence)) => seen.push(occurrence),
                other => panic!("{other:?}"),
            }
        }
        let missed = client.events_after(&token).await;
        assert_eq!(missed[..seen.len()], seen, "what is watched live is what is remembered");
        let rest = client.events_after(&seen[0].resume_token).await;
        assert_eq!(rest[..seen.len() - 1], seen[1..], "a token in the middle goes on behind it");

        let unknown = pb::WatchRequest { resume_token: "999999999".to_owned(), past_only: true, ..Default::default() };
        let mut stream = client.node.clone().watch(unknown).await.expect("it begins").into_inner();
        let first = stream.message().await.expect("an answer").and_then(|message| message.update);
        assert!(matches!(first, Some(Update::Resync(_))), "a token from nowhere is told to start again: {first:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_beyond_the_loopback_without_tls_is_refused_at_the_start() {
    within(30, async {
        let address = format!("\"0.0.0.0:{}\"", free_port());
        let mut daemon = Daemon::prepare(Settings::default().set("listen.tcp", "address", &address));
        daemon.spawn();
        let status = daemon.ended(20).await;
        assert_eq!(status.code(), Some(2), "{}", daemon.log());
        assert!(daemon.log().to_lowercase().contains("tls"), "{}", daemon.log());
        let check = daemon.cli().run(&["check-config"]).await.assert_code(2);
        assert!(check.err.contains("listen.tcp") || check.out.contains("listen.tcp"), "{} {}", check.out, check.err);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_of_every_call_over_tcp() {
    within(30, async {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("token");
        std::fs::write(&file, "open-sesame\n").expect("it can be written");
        let port = free_port();
        let settings = Settings::default().set("listen.tcp", "address", &format!("\"127.0.0.1:{port}\"")).set(
            "listen.tcp",
            "token_file",
            &format!("\"{}\"", file.display()),
        );
        let daemon = Daemon::start(settings).await;
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
        let client = Client::over(endpoint.connect().await.expect("it listens"));
        for token in [None, Some("Bearer wrong"), Some("open-sesame")] {
            let mut request = Request::new(pb::GetNodeRequest {});
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", token.parse().expect("ascii"));
            }
            let status = client.node.clone().get_node(request).await.expect_err("it is refused");
            assert_eq!(status.code(), Code::Unauthenticated, "{token:?}: {status:?}");
        }
        let mut request = Request::new(pb::GetNodeRequest {});
        request.metadata_mut().insert("authorization", "Bearer open-sesame".parse().expect("ascii"));
        client.node.clone().get_node(request).await.expect("the right token opens");

        let over_tcp = Cli::at(&format!("http://127.0.0.1:{port}"), &daemon.config());
        assert_ne!(over_tcp.run(&["status"]).await.code, 0);
        over_tcp.env("TIERD_TOKEN", "open-sesame").run(&["status"]).await.assert_code(0);
        assert!(!daemon.log().contains("open-sesame"), "the token is in the log");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_probes_answer_on_their_own_listener() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        origin.put(FLUX, &Content::model(801, 9 * MIB));
        let address = format!("127.0.0.1:{}", free_port());
        let daemon =
            Daemon::start(Settings::with_origin(&origin).set("listen", "http", &format!("\"{address}\""))).await;
        daemon.client().await.ready(&[FLUX]).await;
        for probe in ["/livez", "/readyz"] {
            let (status, body) = ask(&address, "GET", probe, b"").await.expect("it listens");
            assert_eq!(status, 200, "{probe}: {body}");
        }
        let (status, body) = ask(&address, "GET", "/metrics", b"").await.expect("it listens");
        assert_eq!(status, 200);
        let value = |name: &str| {
            let lines = body.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
        };
        assert_eq!(value("tierd_fetch_received_bytes_total"), (9 * MIB) as f64, "{body}");
        assert!(value("tierd_rpc_requests_total") >= 2.0, "{body}");
        let (status, _) = ask(&address, "GET", "/nothing", b"").await.expect("it listens");
        assert_eq!(status, 404);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_without_a_daemon_says_what_to_do() {
    within(30, async {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("tierd.toml");
        std::fs::write(&config, "").expect("it can be written");
        let cli = Cli::at(&dir.path().join("no.sock").display().to_string(), &config);
        let done = cli.run(&["ensure", FLUX]).await.assert_code(8);
        assert!(done.err.contains("tierd serve") && done.err.contains("no.sock"), "{}", done.err);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_looks_for_itself_where_no_daemon_answers_and_fails_only_for_what_is_wrong() {
    within(30, async {
        let origin = FaultOrigin::start().await;
        let good = Daemon::prepare(Settings::with_origin(&origin).set("ram", "budget", "0"));
        std::fs::create_dir(good.store()).expect("its folder can be made");
        good.write_config();
        let done = good.cli().run(&["doctor"]).await.assert_code(0);
        for part in ["no daemon answers", "the tier is off", "lab answers", "same file system", "good   clock"] {
            assert!(done.out.contains(part), "{part} is missing in\n{}", done.out);
        }

        let dead = format!("http://127.0.0.1:{}", free_port());
        let bad = Daemon::prepare(Settings::default().http_origin("gone", &dead).set("ram", "budget", "0"));
        bad.write_config();
        let done = bad.cli().run(&["doctor"]).await.assert_code(1);
        let wrong: Vec<_> = done.out.lines().filter(|line| line.starts_with("WRONG")).collect();
        assert!(wrong.len() == 1 && wrong[0].contains("gone is not reachable"), "{}", done.out);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_speaks_json() {
    within(60, async {
        let (_origin, daemon, _client) = node().await;
        let cli = daemon.cli();
        let ended = cli.run(&["--json", "ensure", FLUX]).await.assert_code(0).json();
        assert!(ended.last().expect("it says something").to_string().contains(FLUX));
        for command in [
            &["status"][..],
            &["models"],
            &["flights"],
            &["leases"],
            &["pin", FLUX, "--owner", "test"],
            &["events"],
            &["verify"],
            &["promote", FLUX],
            &["top"],
            &["doctor"],
            &["evict", FLUX],
        ] {
            let words: Vec<_> = [&["--json"], command].concat();
            let done = cli.run(&words).await;
            // What they find out depends on the machine, or is held.
            let may_fail = ["evict", "promote", "doctor"].contains(&command[0]);
            assert!(done.code == 0 || may_fail, "{command:?}: {} {}", done.out, done.err);
            assert!(!done.json().is_empty(), "{command:?} says nothing");
        }
    })
    .await;
}
