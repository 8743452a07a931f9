//! Claims about the status page: what it shows, that hostile names stay text, who may ask, and that looking is bounded.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::rig::client::Milliseconds;
use crate::rig::http::ask;
use crate::rig::{ComfyStub, Content, Daemon, FaultOrigin, MIB, Settings, free_port, until, within};

const HOSTILE: &str = "loras/<img src=x onerror=alert(1)>.safetensors";
const LARGE: &str = "checkpoints/large.safetensors";

async fn node() -> (FaultOrigin, Daemon, String) {
    let origin = FaultOrigin::start().await;
    let (small, large) = (Content::model(900, 2 * MIB), Content::model(901, 64 * MIB));
    origin.put(HOSTILE, &small);
    origin.put(LARGE, &large);
    let address = format!("127.0.0.1:{}", free_port());
    let settings = Settings::with_origin(&origin).set("listen", "http", &format!("\"{address}\""));
    let daemon = Daemon::start(settings).await;
    (origin, daemon, address)
}

/// Sends a GET and returns the connection, nothing read yet.
async fn get(address: &str, host: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

/// The whole answer, head and all.
async fn whole(address: &str, host: &str, path: &str) -> String {
    let mut answer = String::new();
    get(address, host, path).await.read_to_string(&mut answer).await.expect("it ends");
    answer
}

async fn snapshot(address: &str) -> serde_json::Value {
    let (status, body) = ask(address, "GET", "/v1/snapshot", b"").await.expect("it listens");
    assert_eq!(status, 200, "{body}");
    let told: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    told["snapshot"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_the_node_holds_and_hostile_names_stay_text() {
    within(60, async {
        let (_origin, daemon, address) = node().await;
        let client = daemon.client().await;
        client.ready(&[HOSTILE]).await;
        client.pin(&[HOSTILE], "<script>owner</script>", Milliseconds(60_000)).await.expect("pinned");

        let page = whole(&address, &address, "/").await;
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("text/html"), "{page}");
        let head = page.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
        for header in ["content-security-policy: default-src 'none';", "frame-ancestors 'none'", "nosniff", "no-store"]
        {
            assert!(head.contains(header), "no {header} in {head}");
        }
        assert!(page.contains("\\u003cimg src=x"), "the first snapshot is in the page");
        assert!(!page.contains("<img") && !page.contains("<script>owner"), "a name became markup");

        let shown = snapshot(&address).await;
        assert_eq!(shown["disk"]["total"], 1, "{shown}");
        assert_eq!(shown["disk"]["models"][0]["model"], HOSTILE);
        assert_eq!(shown["leases"][0]["owner"], "<script>owner</script>");
        assert_eq!(shown["node"]["origins"][0]["state"], "up");

        daemon.cli().run(&["unpin", "1"]).await.assert_code(0);
        client.evict(&[HOSTILE]).await.expect("it may go");
        let why = until("what left is shown", 5, || async {
            snapshot(&address).await["left"][0]["text"].as_str().map(str::to_owned)
        })
        .await;
        assert!(why.starts_with("evicted loras/<img") && why.contains("asked by"), "{why}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_and_what_comfyui_has_queued_are_shown_as_they_are_told() {
    within(60, async {
        let (origin, comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        let content = Content::model(902, 2 * MIB);
        origin.put(LARGE, &content);
        origin.put_manifest(&[(LARGE, &content, None, None)]);
        let address = format!("127.0.0.1:{}", free_port());
        let settings = Settings::with_origin(&origin).set("listen", "http", &format!("\"{address}\"")).set(
            "comfy",
            "servers",
            &format!("\"{}\"", comfy.url()),
        );
        let mut daemon = Daemon::prepare(settings.set("comfy", "ram_ahead", "0"));
        daemon.give_gpus();
        daemon.restart().await;
        until("the GPUs are shown", 20, || async {
            let node = snapshot(&address).await["node"].clone();
            let (busy, idle) = (&node["devices"][0], &node["devices"][1]);
            let told =
                busy["utilisation_percent"] == 87 && busy["by_driver"] == true && idle["used_bytes"] == 3_u64 << 30;
            (told && node["tiers"][0]["capacity_bytes"] == 160_u64 << 30).then_some(())
        })
        .await;
        comfy.queue("first", &[LARGE, "vae/nobody-has-it.safetensors"]);
        let shown = until("the prompt is shown with what is here", 20, || async {
            let server = snapshot(&address).await["servers"][0].clone();
            (server["prompts"][0]["models"][0]["tier"] == "nvme").then_some(server)
        })
        .await;
        assert_eq!((&shown["name"], &shown["pending"]), (&comfy.name().into(), &1.into()), "{shown}");
        assert_eq!(shown["prompts"][0]["unknown"][0], "vae/nobody-has-it.safetensors", "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_is_live_bounded_and_at_most_four_times_a_second() {
    within(60, async {
        let (origin, daemon, address) = node().await;
        origin.limit_rate(2 * MIB);
        daemon.cli().run(&["prefetch", LARGE]).await.assert_code(0);
        let mut lines = BufReader::new(get(&address, &address, "/v1/live").await).lines();
        let begun = Instant::now();
        let mut told = 0;
        // Elapsed time changes always while something flies: so does the snapshot. The look ends by itself after nine seconds.
        while told < 2 || begun.elapsed() < Duration::from_secs(2) {
            let line = lines.next_line().await.expect("it can be read").expect("two snapshots come before its end");
            let Some(json) = line.strip_prefix("data:") else { continue };
            let told_now: serde_json::Value = serde_json::from_str(json.trim()).expect("JSON");
            assert_eq!(told_now["snapshot"]["flights"][0]["models"][0], LARGE, "{json}");
            told += 1;
        }
        let most = 1.0 + 4.0 * begun.elapsed().as_secs_f64();
        assert!(f64::from(told) <= most, "{told} snapshots in {:?}", begun.elapsed());
        drop(lines);

        let mut lookers = Vec::new();
        let status = loop {
            let mut stream = get(&address, &address, "/v1/live").await;
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.expect("a head");
            let status = String::from_utf8_lossy(&head[9..]).into_owned();
            if status != "200" {
                break status;
            }
            lookers.push(stream);
            assert!(lookers.len() <= 8, "nobody is refused");
        };
        assert_eq!(status, "503");
        // Who leaves makes room, and who watches health is never in their way.
        let (status, _) = ask(&address, "GET", "/livez", b"").await.expect("it listens");
        assert_eq!(status, 200);
        drop(lookers);
        until("there is room again", 20, || async {
            whole(&address, &address, "/v1/snapshot").await.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_page_whose_name_points_here_is_refused() {
    within(30, async {
        let (_origin, _daemon, address) = node().await;
        for path in ["/", "/v1/snapshot", "/v1/live"] {
            let answer = whole(&address, "rebound.example.com", path).await;
            assert!(answer.starts_with("HTTP/1.1 421"), "{path}: {answer}");
        }
        assert!(whole(&address, "localhost", "/v1/snapshot").await.starts_with("HTTP/1.1 200"));
        // Scrapers and probes may use any name.
        assert!(whole(&address, "node.example.com", "/metrics").await.starts_with("HTTP/1.1 200"));
    })
    .await;
}
