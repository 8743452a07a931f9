//! Claims about the fleet: many nodes answer one question, a node that loses NATS works on and comes back, what a node holds
//! and what happens on it can be read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tierd::fleet::message::{Inventory, Question, fingerprint};
use tierd::fleet::{FleetConfig, Node, ask};
use tierd::rpc::pb;
use tierd_cache::engine::view::Occurrence;
use tierd_cache::ids::ModelKey;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::rig::servers::{Nats, nats};
use crate::rig::{Content, Daemon, FaultOrigin, MIB, Settings, assert_within, until, within};

/// Nodes of a large fleet.
const NODES: usize = 200;

/// A node without an engine: ready in so many milliseconds.
struct Stub(u64);

impl Node for Stub {
    async fn readiness(&self, question: &Question) -> Result<pb::EstimateReadinessResponse, String> {
        question.checked(1024)?;
        let p50 = Some(Duration::from_millis(self.0).into());
        Ok(pb::EstimateReadinessResponse { p50, p95: p50, ready: self.0 == 0, ..Default::default() })
    }

    async fn inventory(&self) -> Inventory {
        Inventory::default()
    }

    async fn events(&self) -> Option<broadcast::Receiver<Occurrence>> {
        None
    }
}

fn config(server: &Nats, node: &str, labels: &[(&str, &str)]) -> FleetConfig {
    FleetConfig {
        servers: vec![server.url()],
        credentials: None,
        token: None,
        ca: None,
        node: node.to_owned(),
        address: String::new(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        prefix: "lab".to_owned(),
        inventory_interval: Duration::from_secs(2),
    }
}

/// A fleet of stubs, of which one has the set already.
fn fleet(server: &Nats, nodes: usize, has_it: usize) -> CancellationToken {
    let stop = CancellationToken::new();
    for number in 0..nodes {
        let pool = if number % 2 == 0 { "even" } else { "odd" };
        let config = config(server, &format!("node-{number:03}"), &[("pool", pool)]);
        let node = Arc::new(Stub(if number == has_it { 0 } else { 10_000 + number as u64 }));
        tokio::spawn(tierd::fleet::run(config, node, stop.child_token()));
    }
    stop
}

fn question() -> Question {
    Question { models: vec!["vae/ae.safetensors".to_owned()], ..Question::default() }
}

async fn answers(client: &async_nats::Client, question: &Question) -> Vec<ask::Heard> {
    ask::ask(client, "lab", question, Duration::from_millis(500), NODES + 1).await.expect("NATS takes it")
}

async fn until_all_answer(client: &async_nats::Client, nodes: usize) {
    until("every node answers", 60, || async { (answers(client, &question()).await.len() == nodes).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_nodes_the_one_that_has_it_is_found_at_once_and_none_is_lost_with_nats() {
    within(180, async {
        let Some(mut server) = nats("fleet_of_200").await else { return };
        let stop = fleet(&server, NODES, 137);
        let client = async_nats::connect(server.url()).await.expect("it listens");
        until_all_answer(&client, NODES).await;

        let ready = Question { within_ms: Some(100), ..question() };
        let mut times = Vec::new();
        for _ in 0..20 {
            let asked = Instant::now();
            let inbox = client.new_inbox();
            let mut heard = client.subscribe(inbox.clone()).await.expect("a subscription");
            let body = serde_json::to_vec(&ready).expect("serializes");
            client.publish_with_reply("lab.readiness", inbox, body.into()).await.expect("it is taken");
            let answer = heard.next().await.expect("the one answers");
            times.push(asked.elapsed());
            let answer: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
            assert_eq!(answer["node"], "node-137");
        }
        times.sort();
        println!("the node that has it: median {:?}, slowest {:?} of {}", times[10], times[19], times.len());
        // The goal is 50 ms; other tests share this machine.
        assert_within(times[10], Duration::from_millis(50), "the middle one");

        let odd = Question { labels: BTreeMap::from([("pool".to_owned(), "odd".to_owned())]), ..question() };
        assert_eq!(answers(&client, &odd).await.len(), NODES / 2);
        let best = answers(&client, &question()).await;
        assert_eq!((best[0].node.as_str(), best[1].node.as_str()), ("node-137", "node-000"));

        server.restart().await;
        until_all_answer(&client, NODES).await;
        stop.cancel();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_answers_tells_what_it_holds_and_works_on_without_nats() {
    within(90, async {
        let Some(mut server) = nats("fleet_of_one").await else { return };
        let model = "vae/ae.safetensors";
        let origin = FaultOrigin::start().await;
        let content = Content::model(7400, 3 * MIB);
        origin.put(model, &content);
        origin.put("vae/other.safetensors", &Content::model(7401, MIB));
        origin.put_manifest(&[(model, &content, None, None)]);
        let settings = Settings::with_origin(&origin)
            .set("fleet", "nats", &format!("\"{}\"", server.url()))
            .set("fleet", "node", "\"one\"")
            .set("fleet", "labels", "\"gpu=h100\"")
            .set("fleet", "prefix", "\"lab\"")
            .set("fleet", "inventory_interval", "\"1s\"");
        let mut daemon = Daemon::start(settings).await;
        let nats = async_nats::connect(server.url()).await.expect("it listens");
        until_all_answer(&nats, 1).await;
        let mut events = nats.subscribe("lab.events.one.>").await.expect("a subscription");
        nats.flush().await.expect("it is there");
        let client = daemon.client().await;
        client.ready(&[model]).await;
        let mut subjects = Vec::new();
        while !subjects.iter().any(|subject| subject == "lab.events.one.stored") {
            subjects.push(events.next().await.expect("events go on").subject.to_string());
        }

        let answer = answers(&nats, &question()).await.remove(0);
        assert_eq!(answer.rest["estimate"]["ready"], true, "{answer:?}");
        assert_eq!(answer.rest["labels"]["gpu"], "h100");
        let wrong = Question { models: vec!["../etc/passwd".to_owned()], ..Question::default() };
        let answer = answers(&nats, &wrong).await.remove(0);
        assert!(answer.rest["error"].as_str().is_some_and(|text| text.contains("not a model key")), "{answer:?}");

        let key = ModelKey::parse(model).expect("a key");
        let held = || async {
            let bucket = async_nats::jetstream::new(nats.clone()).get_key_value("lab_nodes").await.ok()?;
            let entry = bucket.get("one").await.ok()??;
            let inventory: Inventory = serde_json::from_slice(&entry).expect("an inventory");
            inventory.tiers["nvme"].models.contains(&fingerprint(&key)).then_some(())
        };
        until("the inventory has the model", 10, held).await;

        let done = daemon.cli().run(&["fleet", model, "--wait", "500ms"]).await.assert_code(0);
        assert!(done.out.contains("one") && done.out.contains("0.00 s"), "{}", done.out);
        daemon.cli().run(&["fleet", model, "--label", "gpu=none"]).await.assert_code(3);

        server.kill();
        client.ready(&["vae/other.safetensors"]).await;
        let log = || async { daemon.log().contains("works on alone").then_some(()) };
        until("the log says that NATS is away", 10, log).await;
        daemon.cli().run(&["fleet", model]).await.assert_code(8);
        server.restart().await;
        until("the node is back", 30, || async { held().await }).await;

        daemon.stop().await;
        let gone = || async {
            let bucket = async_nats::jetstream::new(nats.clone()).get_key_value("lab_nodes").await.ok()?;
            bucket.get("one").await.ok()?.is_none().then_some(())
        };
        until("a node that stops is forgotten at once", 5, gone).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_without_nats_and_a_password_in_the_address_is_refused_unseen() {
    within(30, async {
        let origin = FaultOrigin::start().await;
        origin.put("vae/a", &Content::raw(7410, MIB));
        let settings = Settings::with_origin(&origin).set("fleet", "nats", "\"nats://127.0.0.1:1\"");
        let daemon = Daemon::start(settings.clone()).await;
        daemon.client().await.ready(&["vae/a"]).await;

        let daemon = Daemon::prepare(settings.set("fleet", "nats", "\"nats://me:hunter2@127.0.0.1:4222\""));
        daemon.write_config();
        let config = daemon.config().display().to_string();
        let done = daemon.cli().run(&["check-config", "--config", &config]).await.assert_code(2);
        assert!(done.err.contains("fleet.nats") && !done.err.contains("hunter2"), "{}", done.err);
    })
    .await;
}
