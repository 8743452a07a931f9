//! Claims about `comfy/v1`, the node pack's side of the daemon: JSON over HTTP/1.1 on the socket that gRPC is on, and what the
//! daemon does with it. What the pack would say is said by hand; `shipped` has the pack itself.

pub(crate) mod said;
mod shipped;

use std::path::Path;

use serde_json::json;
use tierd::rpc::pb;
use tierd::rpc::pb::hint_service_client::HintServiceClient;
use tierd::rpc::pb::occurrence::What;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use self::said::{Answer, ask_over, get, head, hello, lines, post, report, unchunked};
use crate::rig::{Client, Content, Daemon, Fault, FaultOrigin, MIB, Settings, assert_within, free_port, until, within};

const VAE: &str = "vae/ae.safetensors";
const LORA: &str = "loras/style.safetensors";

/// A daemon with an origin that has both models, the first one stored.
async fn node() -> (FaultOrigin, Daemon, Client) {
    node_with(|settings| settings).await
}

async fn node_with(change: impl FnOnce(Settings) -> Settings) -> (FaultOrigin, Daemon, Client) {
    let origin = FaultOrigin::start().await;
    origin.put(VAE, &Content::model(700, 3 * MIB));
    origin.put(LORA, &Content::model(701, 2 * MIB));
    let daemon = Daemon::start(change(Settings::with_origin(&origin))).await;
    let client = daemon.client().await;
    client.ready(&[VAE]).await;
    (origin, daemon, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_hello_and_reports_on_the_socket_that_grpc_is_on() {
    within(60, async {
        let (_origin, daemon, client) = node().await;
        let socket = daemon.socket();
        let unknown = post(&socket, "report", &report("w1", 1, &[])).await;
        assert_eq!(unknown.status, 404, "{unknown:?}");
        assert!(unknown.json()["error"].as_str().is_some_and(|error| error.contains("say hello first")));

        let welcome = post(&socket, "hello", &hello("w1")).await;
        assert_eq!(welcome.status, 200, "{welcome:?}");
        let welcome = welcome.json();
        assert_eq!((&welcome["gate"], &welcome["gate_timeout_s"]), (&json!(true), &json!(1800)));
        assert_eq!(welcome["report_interval_ms"], 1000);
        let models = daemon.store().join("models");
        assert_eq!(welcome["models_path"], json!(models));

        let told = post(&socket, "report", &report("w1", 1, &[(&daemon.model(VAE), true)])).await;
        assert_eq!((told.status, told.json()), (200, json!({})));
        let model = client.model(VAE).await.expect("known");
        assert_eq!((model.tier(), model.vram_bytes), (pb::Tier::Vram, 10));
        let node = client.node().await;
        assert_eq!(node.tiers[0].tier(), pb::Tier::Vram, "it is a tier like any");
        let worker = &node.workers[0];
        assert_eq!((worker.worker.as_str(), worker.info.as_ref().map(|info| info.pid)), ("w1", Some(4242)));
        assert_eq!(worker.devices[0].models[0].blob, model.blob);
        let device = node.devices.iter().find(|device| device.name == "card").expect("reported");
        assert_eq!(
            (device.total_bytes, device.used_bytes, device.claimed_bytes, device.other_bytes),
            (100, 50, 10, 40)
        );

        let cli = daemon.cli();
        let status = cli.run(&["status"]).await.assert_code(0);
        assert!(status.out.contains("vram") && status.out.contains("card"), "{}", status.out);
        let workers = cli.run(&["workers"]).await.assert_code(0);
        assert!(workers.out.contains("w1") && workers.out.contains("ae.safetensors"), "{}", workers.out);
        let workers = cli.run(&["workers", "--json"]).await.assert_code(0).json();
        assert_eq!(workers[0]["workers"][0]["info"]["version"], "0.33.0");
        let vram = cli.run(&["models", "--tier", "vram"]).await.assert_code(0);
        assert!(vram.out.contains(VAE) && !vram.out.contains(LORA), "{}", vram.out);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_vram_is_never_evicted_and_may_be_once_its_worker_is_gone() {
    within(60, async {
        let (_origin, daemon, client) = node_with(|settings| settings.set("comfy", "worker_expiry", "\"2s\"")).await;
        let socket = daemon.socket();
        post(&socket, "hello", &hello("w1")).await;
        post(&socket, "report", &report("w1", 1, &[(&daemon.model(VAE), false)])).await;
        let held = daemon.cli().run(&["evict", VAE]).await;
        assert!(held.code != 0 && held.err.contains("worker w1 (process 4242) has it loaded"), "{held:?}");
        assert!(daemon.model(VAE).exists());
        // Ten missed reports by default, two seconds here: nobody has to ask.
        let why = daemon.until_event("the worker is lost", |event| match &event.what {
            Some(What::WorkerLost(lost)) => Some(lost.detail.clone()),
            _ => None,
        });
        assert!(why.await.contains("it said nothing for 2"), "it says why");
        assert!(client.node().await.workers.is_empty());
        daemon.cli().run(&["evict", VAE]).await.assert_code(0);
        assert!(!daemon.model(VAE).exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_process_ends_lapses_at_once() {
    within(60, async {
        let (_origin, daemon, client) = node().await;
        let hello = hello("w1").to_string();
        // A process of its own that says hello and lives until its input ends.
        let script = format!("import socket,sys
s=socket.socket(socket.AF_UNIX); s.connect({:?})
b={hello:?}.encode(); s.sendall(b'POST /comfy/v1/hello HTTP/1.1\\r\\nHost: t\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(b)+b)
print(s.recv(99)[:15].decode(), flush=True); sys.stdin.read()", daemon.socket().display().to_string());
        let mut command = std::process::Command::new("python3");
        command.args(["-c", &script]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        // It ends with its input: with this test, however that ends.
        let Ok(mut child) = command.spawn() else {
            crate::rig::skip("a_worker_whose_process_ends_lapses_at_once", "python3 is not installed");
            return;
        };
        let mut output = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).expect("it speaks");
        assert_eq!(line.trim(), "HTTP/1.1 200 OK");
        post(&daemon.socket(), "report", &report("w1", 1, &[(&daemon.model(VAE), false)])).await;
        assert_eq!(client.node().await.workers.len(), 1);
        let begun = tokio::time::Instant::now();
        drop(child.stdin.take());
        child.wait().expect("it ends");
        until("it is lost", 8, || async { client.node().await.workers.is_empty().then_some(()) }).await;
        assert_within(begun.elapsed(), std::time::Duration::from_secs(8), "what must not wait for its ten seconds");
        let why = daemon.until_event("the worker is lost", |event| match &event.what {
            Some(What::WorkerLost(lost)) => Some(lost.detail.clone()),
            _ => None,
        });
        assert!(why.await.contains("ended"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_known_through_links_and_other_mounts_and_strangers_are_not() {
    within(60, async {
        let (_origin, daemon, client) = node().await;
        let socket = daemon.socket();
        let link = daemon.dir().join("link.safetensors");
        std::os::unix::fs::symlink(daemon.model(VAE), &link).expect("the folder can be written");
        let blob = client.model(VAE).await.expect("known").blob;
        let mut hello = hello("w1");
        hello["folders"] = json!({ "vae": ["/container/models/vae"] });
        post(&socket, "hello", &hello).await;
        let stranger = daemon.dir().join("stranger.safetensors");
        std::fs::copy(daemon.model(VAE), &stranger).expect("the folder can be written");
        let inside = Path::new("/container/models/vae/ae.safetensors");
        let dangling = Path::new("/container/models/loras/ae.safetensors");
        let files: [(&Path, bool); 5] =
            [(&link, false), (&stranger, false), (inside, false), (dangling, false), (Path::new("/dev/zero"), false)];
        post(&socket, "report", &report("w1", 1, &files)).await;
        let worker = client.node().await.workers.remove(0);
        let blobs: Vec<&str> = worker.devices[0].models.iter().map(|model| model.blob.as_str()).collect();
        assert_eq!(blobs, [blob.as_str(), "", blob.as_str(), "", ""]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_too_large_or_make_no_sense_are_refused_in_json() {
    within(60, async {
        let (_origin, daemon, _client) = node().await;
        let socket = daemon.socket();
        let large = json!({ "worker": "w1", "pack_version": "x".repeat(2 << 20) });
        let refused = post(&socket, "hello", &large).await;
        assert_eq!(refused.status, 413, "{}", refused.head);
        assert!(refused.json()["error"].as_str().is_some_and(|error| error.contains("at most 1048576 bytes")));
        post(&socket, "hello", &hello("w1")).await;
        let event = json!({ "kind": "prompt_queued", "at": 1, "prompt_id": "p" });
        let many = json!({ "worker": "w1", "seq": 1, "events": vec![event; 257] });
        for (path, body) in
            [("report", many), ("hello", json!({ "worker": "../x" })), ("hello", json!([])), ("ensure", json!({}))]
        {
            let refused = post(&socket, path, &body).await;
            assert_eq!(refused.status, 400, "{path}: {refused:?}");
            assert!(refused.json()["error"].is_string());
        }
        assert_eq!(get(&socket, "nowhere", "").await.status, 404);
        assert_eq!(get(&socket, "hello", "").await.status, 405);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_waits_for_a_model_and_tells_as_it_goes() {
    within(60, async {
        let (origin, daemon, _client) = node().await;
        let socket = daemon.socket();
        post(&socket, "hello", &hello("w1")).await;
        origin.allow(MIB);
        let body = json!({ "worker": "w1", "model": LORA }).to_string();
        let ask = [head("POST", "/comfy/v1/ensure", "", body.len()), body].concat();
        let mut stays = UnixStream::connect(&socket).await.expect("the daemon listens");
        stays.write_all(ask.as_bytes()).await.expect("it reads");
        let client = daemon.client().await;
        until("it waits", 20, || async { (client.node().await.ensures == 1).then_some(()) }).await;
        // Whoever leaves stops nothing: this one asks for the same and hangs up.
        let mut leaves = UnixStream::connect(&socket).await.expect("the daemon listens");
        leaves.write_all(ask.as_bytes()).await.expect("it reads");
        until("both wait", 20, || async { (client.node().await.ensures == 2).then_some(()) }).await;
        drop(leaves);
        until("one has left", 20, || async { (client.node().await.ensures == 1).then_some(()) }).await;
        let mut reader = BufReader::new(stays);
        let mut text = String::new();
        while !text.contains("progress") {
            assert!(reader.read_line(&mut text).await.expect("it speaks") > 0, "it hung up: {text}");
        }
        origin.heal();
        reader.read_to_string(&mut text).await.expect("it speaks");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains("application/x-ndjson"), "{head}");
        let answer = Answer { status: 200, head: head.to_owned(), body: unchunked(body) };
        let lines = lines(&answer);
        let (last, before) = lines.split_last().expect("at least an end");
        assert_eq!(last["ready"]["path"], json!(daemon.model(LORA)));
        assert!(
            !before.is_empty() && before.iter().all(|line| line["progress"]["total_bytes"] == 2 * MIB),
            "{lines:?}"
        );
        let held = daemon.cli().run(&["evict", LORA]).await;
        assert!(held.err.contains("has just read it"), "what is about to be opened stays: {held:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_had_ends_the_gate_with_words_and_advice() {
    within(60, async {
        let (origin, daemon, _client) = node_with(|settings| settings.set("fetch", "attempts_max", "1")).await;
        let socket = daemon.socket();
        let missing = post(&socket, "ensure", &json!({ "worker": "w1", "model": "vae/none.safetensors" })).await;
        let failed = &lines(&missing)[0]["failed"];
        assert_eq!((missing.status, &failed["kind"]), (200, &json!("not_found")), "{missing:?}");
        assert!(failed["message"].as_str().is_some_and(|text| text.contains("vae/none.safetensors")));
        assert!(failed["advice"].as_str().is_some_and(|text| text.contains("tierd models")));
        origin.fault(LORA, 1000, Fault::Status(500, Vec::new()));
        let broken = post(&socket, "ensure", &json!({ "worker": "w1", "model": LORA })).await;
        assert_eq!(lines(&broken).last().expect("an end")["failed"]["kind"], "origin_unavailable", "{broken:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_off_says_so_and_one_that_waits_too_long_ends() {
    within(60, async {
        let (_origin, daemon, _client) = node_with(|settings| settings.set("comfy", "gate", "false")).await;
        assert_eq!(post(&daemon.socket(), "hello", &hello("w1")).await.json()["gate"], json!(false));
        let off = post(&daemon.socket(), "ensure", &json!({ "worker": "w1", "model": LORA })).await;
        assert!(
            lines(&off)[0]["failed"]["message"].as_str().is_some_and(|text| text.contains("[comfy] gate")),
            "{off:?}"
        );

        let (origin, daemon, client) = node_with(|settings| settings.set("comfy", "gate_timeout", "\"1s\"")).await;
        origin.allow(MIB);
        let late = post(&daemon.socket(), "ensure", &json!({ "worker": "w1", "model": LORA })).await;
        assert_eq!(lines(&late).last().expect("an end")["failed"]["kind"], "deadline_exceeded");
        assert_eq!(client.node().await.flights, 1, "the fetch goes on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_here_is_listed_and_an_unchanged_list_is_not_sent_twice() {
    within(60, async {
        let folder = tempfile::tempdir().expect("a folder");
        for (seed, name) in [VAE, LORA].iter().enumerate() {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("writable");
            Content::model(710 + seed as u64, MIB).write_to(&path);
        }
        let daemon = Daemon::start(Settings::default().folder_origin("shelf", folder.path())).await;
        let client = daemon.client().await;
        until("it is listed", 20, || async { (client.node().await.models_known == 2).then_some(()) }).await;
        let all = get(&daemon.socket(), "absent", "").await;
        assert_eq!(all.json(), json!({ "models": [LORA, VAE] }));
        let tag = all.head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("tagged").to_owned();
        let same = get(&daemon.socket(), "absent", &format!("If-None-Match: {tag}\r\n")).await;
        assert_eq!((same.status, same.body.as_str()), (304, ""));
        client.ready(&[VAE]).await;
        let fewer = get(&daemon.socket(), "absent", &format!("If-None-Match: {tag}\r\n")).await;
        assert_eq!((fewer.status, fewer.json()), (200, json!({ "models": [LORA] })));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_the_token_is_asked_for_here_too() {
    within(60, async {
        let port = free_port();
        let (_origin, daemon, _client) = node_with(|settings| {
            settings
                .set("listen.tcp", "address", &format!("\"127.0.0.1:{port}\""))
                .set("listen.tcp", "token_env", "\"TIERD_TEST_PACK\"")
                .env("TIERD_TEST_PACK", "s3cret")
        })
        .await;
        let ask = |extra: &'static str| async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
            ask_over(stream, head("GET", "/comfy/v1/absent", extra, 0), b"").await
        };
        let refused = ask("").await;
        assert_eq!(refused.status, 401, "{refused:?}");
        assert!(refused.json()["error"].as_str().is_some_and(|error| error.contains("Bearer")));
        assert_eq!(ask("Authorization: Bearer wrong\r\n").await.status, 401);
        assert_eq!(ask("Authorization: Bearer s3cret\r\n").await.status, 200);
        assert!(!daemon.log().contains("s3cret"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_comes_by_grpc_and_is_carried_out_where_the_operator_allows_it() {
    within(60, async {
        // A ComfyUI that takes orders.
        let comfy = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", comfy.local_addr().expect("bound"));
        let (_origin, daemon, client) = node_with(|settings| settings.set("comfy", "free", "true")).await;
        let ordered = tokio::spawn(async move {
            let (mut stream, _) = comfy.accept().await.expect("it is called");
            let mut bytes = Vec::new();
            while !String::from_utf8_lossy(&bytes).contains("false}") {
                let mut buffer = [0; 1024];
                let count = stream.read(&mut buffer).await.expect("it speaks");
                assert!(count > 0, "it hung up: {}", String::from_utf8_lossy(&bytes));
                bytes.extend_from_slice(&buffer[..count]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("it reads");
            String::from_utf8_lossy(&bytes).into_owned()
        });

        let mut hints = HintServiceClient::new(client.channel.clone());
        let mut advice = hints.advise(pb::AdviseRequest::default()).await.expect("it begins").into_inner();
        let file = daemon.model(VAE).display().to_string();
        let model = pb::LoadedModel { file, bytes: 30, loaded_bytes: 30, ..Default::default() };
        let device = |free_bytes, models: Vec<pb::LoadedModel>| pb::WorkerDevices {
            devices: vec![pb::WorkerDevice { total_bytes: 100, free_bytes, models, ..Default::default() }],
        };
        let mut report = pb::ReportRequest {
            worker: "w1".into(),
            seq: 1,
            devices: Some(device(10, vec![model.clone()])),
            next: Some(pb::NextModels { models: vec![LORA.into()] }),
            ..Default::default()
        };
        let unknown = hints.report(report.clone()).await.expect_err("nobody introduced it");
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        report.info = Some(pb::WorkerInfo { pid: 1, address, ..Default::default() });
        hints.report(report.clone()).await.expect("accepted");
        let first = advice.message().await.expect("no status").expect("advice");
        assert_eq!((first.worker.as_str(), first.used_bytes, first.idle), ("w1", 90, true));
        assert_eq!(first.unload[0].model, VAE);
        assert!(first.load.is_empty(), "an origin that cannot be listed does not tell of it before it is asked");
        let order = ordered.await.expect("it does not panic");
        assert!(order.starts_with("POST /free HTTP/1.1"), "{order}");
        assert!(order.contains(r#"{"unload_models":true,"free_memory":false}"#), "{order}");
        daemon
            .until_event("it is written down", |event| match &event.what {
                Some(What::Freed(freed)) if freed.detail.is_empty() => Some(()),
                _ => None,
            })
            .await;

        report.seq = 2;
        report.devices = Some(device(95, Vec::new()));
        hints.report(report).await.expect("accepted");
        let second = advice.message().await.expect("no status").expect("advice");
        assert!(second.unload.is_empty(), "it was done: {second:?}");
        let events = daemon.cli().run(&["events"]).await.assert_code(0);
        assert!(events.out.contains("90 B of 100 B in use: unload vae/ae.safetensors"), "{}", events.out);
        assert!(events.out.contains("worker w1 was told to unload its models"), "{}", events.out);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_workers_read_count_as_used_and_by_tier() {
    within(60, async {
        let port = free_port();
        let (_origin, daemon, client) =
            node_with(|settings| settings.set("listen", "http", &format!("\"127.0.0.1:{port}\""))).await;
        let socket = daemon.socket();
        post(&socket, "hello", &hello("w1")).await;
        let before = client.model(VAE).await.expect("known").last_used.expect("used").to_string();
        let read = json!({ "kind": "file_read", "at": 1, "file": daemon.model(VAE), "seconds": 0.5, "bytes": 7 });
        let mut message = report("w1", 1, &[]);
        message["events"] = json!([read]);
        until("its clock moves", 20, || async {
            post(&socket, "report", &message).await;
            let after = client.model(VAE).await.expect("known").last_used.expect("used").to_string();
            (after > before).then_some(())
        })
        .await;
        let address = format!("127.0.0.1:{port}");
        let (_, metrics) = crate::rig::http::ask(&address, "GET", "/metrics", b"").await.expect("it answers");
        assert!(metrics.contains(r#"tierd_vram_uses_total{tier="nvme"}"#), "{metrics}");
        assert!(metrics.contains(r#"tierd_vram_bytes{device="0",state="total"} 100"#), "{metrics}");
        assert!(metrics.contains("tierd_hint_received_total"), "{metrics}");
    })
    .await;
}
