//! Claims about the bridge: what a queued prompt needs is on its way before it runs, in the order of the queue, whatever the
//! server does.

use std::time::Duration;

use tierd::rpc::pb;

use crate::rig::comfy::graph;
use crate::rig::{ComfyStub, Content, Daemon, FaultOrigin, MIB, Settings, assert_within, until, within};

/// Six models, of a size that takes the origin of these tests some seconds.
const MODELS: [&str; 6] = [
    "diffusion_models/a.safetensors",
    "text_encoders/b.safetensors",
    "vae/c.safetensors",
    "diffusion_models/d.safetensors",
    "checkpoints/e.safetensors",
    "vae/f.safetensors",
];

/// How soon a model's fetch must begin after its prompt was queued.
const SOON: Duration = Duration::from_millis(200);

fn origin_with(origin: &FaultOrigin, bytes: u64) -> Vec<Content> {
    let contents: Vec<Content> = (0..).zip(MODELS).map(|(seed, _)| Content::model(seed, bytes)).collect();
    let rows: Vec<_> = MODELS.iter().zip(&contents).map(|(model, content)| (*model, content, None, None)).collect();
    for (model, content) in MODELS.iter().zip(&contents) {
        origin.put(model, content);
    }
    origin.put_manifest(&rows);
    contents
}

fn settings(origin: &FaultOrigin, servers: &[&ComfyStub]) -> Settings {
    let urls: Vec<String> = servers.iter().map(|server| server.url()).collect();
    Settings::with_origin(origin).set("comfy", "servers", &format!("\"{}\"", urls.join(", "))).set(
        "comfy",
        "ram_ahead",
        "0",
    )
}

/// A daemon that follows the stubs and knows the origin's models.
async fn following(settings: Settings, servers: &[&ComfyStub]) -> Daemon {
    let daemon = Daemon::start(settings).await;
    for server in servers {
        until_server(&daemon, server, |view| view.up).await;
    }
    let client = daemon.client().await;
    until("the origin is listed", 10, || async { (client.node().await.models_known >= 6).then_some(()) }).await;
    daemon
}

async fn server(daemon: &Daemon, stub: &ComfyStub) -> Option<pb::ComfyServer> {
    let mut client = daemon.client().await.comfy;
    let answer = client.list_comfy_servers(pb::ListComfyServersRequest::default()).await.expect("it answers");
    answer.into_inner().servers.into_iter().find(|server| server.name == stub.name())
}

async fn until_server(daemon: &Daemon, stub: &ComfyStub, fits: impl Fn(&pb::ComfyServer) -> bool) -> pb::ComfyServer {
    until("the server is as expected", 15, || async { server(daemon, stub).await.filter(|view| fits(view)) }).await
}

/// Waits for the first byte that is asked of a model, and says how long that took.
async fn until_begun(origin: &FaultOrigin, model: &str) -> Duration {
    let since = tokio::time::Instant::now();
    until(&format!("{model} is asked for"), 20, || async { (!origin.gets(model).is_empty()).then_some(()) }).await;
    since.elapsed()
}

/// The models in the order in which their first byte was asked for.
fn begun(origin: &FaultOrigin) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for served in origin.log() {
        let is_model = served.method == "GET" && MODELS.contains(&served.path.as_str());
        if is_model && !order.contains(&served.path) {
            order.push(served.path);
        }
    }
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fetch_of_ten_prompts_begins_within_200_ms_in_the_order_of_the_queue() {
    within(120, async {
        let (origin, comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        let contents = origin_with(&origin, 40 * MIB);
        let daemon = following(settings(&origin, &[&comfy]), &[&comfy]).await;
        origin.limit_rate(MIB / 2);
        origin.forget();
        let mut slowest = Duration::ZERO;
        for at in 0..10 {
            // Later prompts name models again, as people's prompts do.
            let model = MODELS[at % MODELS.len()];
            comfy.queue(&format!("p{at}"), &[model]);
            if at == 0 {
                comfy.run_next();
            }
            let took = until_begun(&origin, model).await;
            assert_within(took, SOON, &format!("the begin of {model} of prompt {at}"));
            slowest = slowest.max(took);
        }
        println!("slowest begin: {slowest:?}");
        assert_eq!(begun(&origin), MODELS, "in the order of the queue");

        // When a prompt reaches the front, its model is ready or has all the bandwidth: nothing farther is asked for anew meanwhile.
        origin.limit_rate(32 * MIB);
        for at in 0..10 {
            let (model, content) = (MODELS[at % MODELS.len()], &contents[at % MODELS.len()]);
            let client = daemon.client().await;
            let asked = origin.log().len();
            until(&format!("{model} is ready"), 60, || async { client.stored(model).await.then_some(()) }).await;
            content.assert_is(&daemon.model(model));
            let pieces = content.bytes().div_ceil(8 * MIB) as usize;
            let since: Vec<String> = origin.log()[asked..].iter().map(|served| served.path.clone()).collect();
            let last = since.iter().rposition(|path| path == model).unwrap_or(0);
            let others = since[..last].iter().filter(|path| *path != model).count();
            assert!(others <= pieces, "prompt {at}: {others} requests for others before the last one for {model}");
            comfy.finish(true);
            comfy.run_next();
        }
        let view = until_server(&daemon, &comfy, |view| view.succeeded == 10).await;
        assert_eq!((view.failed, view.left, view.running + view.pending), (0, 0, 0));
        assert_eq!(view.prompt_time.and_then(|time| time.to_std()), Some(Duration::from_secs(2)));
        assert_eq!(MODELS.iter().map(|model| origin.sent(model)).max(), Some(40 * MIB), "no byte was fetched twice");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_put_in_front_gets_the_connections_of_those_behind_it() {
    within(60, async {
        let (origin, comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        let contents = origin_with(&origin, 200 * MIB);
        let daemon = following(settings(&origin, &[&comfy]), &[&comfy]).await;
        origin.limit_rate(MIB / 4);
        comfy.queue("running", &[MODELS[0]]);
        comfy.run_next();
        for model in &MODELS[1..5] {
            comfy.queue(model, &[model]);
        }
        until_begun(&origin, MODELS[4]).await;
        comfy.queue_front("front", &[MODELS[5]]);
        assert_within(until_begun(&origin, MODELS[5]).await, SOON, "its begin");
        // The running prompt ends: the one in front is next, and takes every connection there is.
        comfy.finish(true);
        assert_eq!(comfy.run_next().as_deref(), Some("front"));
        origin.limit_rate(32 * MIB);
        let client = daemon.client().await;
        until("the front's model is ready", 40, || async { client.stored(MODELS[5]).await.then_some(()) }).await;
        contents[5].assert_is(&daemon.model(MODELS[5]));
        let flights = client.flights().await;
        let done = |model: &str| {
            flights.iter().filter(|flight| flight.models[0] == model).map(|flight| flight.bytes_done).sum::<u64>()
        };
        assert!(done(MODELS[4]) < 100 * MIB, "the farthest waited: {} MiB", done(MODELS[4]) / MIB);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_cancelled_prompt_needed_is_stopped_and_its_pieces_are_kept() {
    within(60, async {
        let (origin, comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        origin_with(&origin, 100 * MIB);
        let daemon = following(settings(&origin, &[&comfy]), &[&comfy]).await;
        origin.limit_rate(MIB / 2);
        comfy.queue("stays", &[MODELS[0]]);
        comfy.queue("goes", &[MODELS[1], MODELS[0]]);
        until_begun(&origin, MODELS[1]).await;
        comfy.cancel("goes");
        let client = daemon.client().await;
        let flying =
            || async { client.flights().await.iter().map(|flight| flight.models[0].clone()).collect::<Vec<_>>() };
        until("only the other flies", 10, || async { (flying().await == [MODELS[0]]).then_some(()) }).await;
        until_server(&daemon, &comfy, |view| view.left == 1).await;
        comfy.queue("back", &[MODELS[1]]);
        until("it flies again at once", 10, || async { (flying().await.len() == 2).then_some(()) }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_is_found_again_and_its_new_queue_counts() {
    within(60, async {
        let (origin, mut comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        origin_with(&origin, 8 * MIB);
        let daemon = following(settings(&origin, &[&comfy]), &[&comfy]).await;
        comfy.stop();
        until_server(&daemon, &comfy, |view| !view.up && !view.detail.is_empty()).await;
        comfy.restart().await;
        until_server(&daemon, &comfy, |view| view.up).await;
        comfy.queue("after", &[MODELS[2]]);
        assert_within(until_begun(&origin, MODELS[2]).await, SOON, "its begin");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_sockets_is_asked_every_second() {
    within(60, async {
        let (origin, comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        origin_with(&origin, 8 * MIB);
        comfy.refuse_sockets();
        let daemon = following(settings(&origin, &[&comfy]), &[&comfy]).await;
        assert!(until_server(&daemon, &comfy, |view| view.polling).await.up);
        comfy.queue("polled", &[MODELS[3]]);
        assert_within(until_begun(&origin, MODELS[3]).await, Duration::from_millis(1500), "its begin");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_make_no_sense_change_nothing_and_ten_megabytes_are_read() {
    within(90, async {
        let (origin, comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        origin_with(&origin, 8 * MIB);
        let daemon = following(settings(&origin, &[&comfy]), &[&comfy]).await;
        for garbage in ["", "null", "[[[[", "{\"queue_running\":1,\"queue_pending\":[]}", "<html>busy</html>"] {
            comfy.say(Some(garbage));
            until_server(&daemon, &comfy, |view| view.up && view.detail.contains("not a queue")).await;
            comfy.say(None);
            until_server(&daemon, &comfy, |view| view.up && view.detail.is_empty()).await;
        }
        comfy.queue_graph("odd", serde_json::json!("no graph"), false);
        comfy.queue("large", &[MODELS[0]]);
        comfy.pad(10 << 20);
        comfy.queue("unknown", &["vae/nobody-has-it.safetensors"]);
        until_begun(&origin, MODELS[0]).await;
        let view = until_server(&daemon, &comfy, |view| view.pending == 3).await;
        let of = |id: &str| view.prompts.iter().find(|prompt| prompt.prompt_id == id).expect("it is told").clone();
        assert!(!of("odd").unreadable.is_empty());
        assert_eq!(of("unknown").unknown, ["vae/nobody-has-it.safetensors"]);
        assert_eq!(of("large").models[0].model, MODELS[0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_share_one_fetch_and_the_nearer_turn_counts() {
    within(60, async {
        let (origin, one, two) = (FaultOrigin::start().await, ComfyStub::start().await, ComfyStub::start().await);
        let contents = origin_with(&origin, 24 * MIB);
        let daemon = following(settings(&origin, &[&one, &two]), &[&one, &two]).await;
        origin.limit_rate(2 * MIB);
        for model in &MODELS[..3] {
            one.queue(model, &[model]);
        }
        two.queue("b", &[MODELS[2]]);
        two.run_next();
        let client = daemon.client().await;
        for model in &MODELS[..3] {
            until(model, 40, || async { client.stored(model).await.then_some(()) }).await;
        }
        contents[2].assert_is(&daemon.model(MODELS[2]));
        assert_eq!(origin.sent(MODELS[2]), 24 * MIB, "once for both");
        let done = daemon.cli().run(&["comfy", "status", "--json"]).await.assert_code(0).json().remove(0);
        assert_eq!(done["servers"].as_array().map(Vec::len), Some(2), "{done}");
        let text = daemon.cli().run(&["comfy", "status"]).await.assert_code(0).out;
        assert!(text.contains(&one.name()) && text.contains("3 waiting") && text.contains("runs"), "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_of_the_next_prompts_are_in_ram_in_time() {
    within(60, async {
        let (origin, comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        origin_with(&origin, 2 * MIB);
        let daemon = following(settings(&origin, &[&comfy]).set("comfy", "ram_ahead", "2"), &[&comfy]).await;
        let client = daemon.client().await;
        let room = client.tier(pb::Tier::Ram).await.capacity_bytes;
        if room < 16 * MIB {
            crate::rig::skip(
                "the_models_of_the_next_prompts_are_in_ram_in_time",
                "this node lets too little RAM be locked",
            );
            return;
        }
        comfy.queue_graph("now", graph(&[MODELS[0], MODELS[1]]), false);
        comfy.run_next();
        comfy.queue("next", &[MODELS[2]]);
        comfy.queue("later", &[MODELS[3]]);
        let tier = |model: &'static str| {
            let client = &client;
            async move { client.model(model).await.map(|row| row.tier()).ok() }
        };
        for model in [MODELS[0], MODELS[1], MODELS[2]] {
            until(model, 20, || async { (tier(model).await == Some(pb::Tier::Ram)).then_some(()) }).await;
        }
        until("the later one is on the disk", 20, || async { client.stored(MODELS[3]).await.then_some(()) }).await;
        assert_eq!(tier(MODELS[3]).await, Some(pb::Tier::Nvme), "it is not its turn");
        comfy.finish(true);
        comfy.run_next();
        until(MODELS[3], 20, || async { (tier(MODELS[3]).await == Some(pb::Tier::Ram)).then_some(()) }).await;
    })
    .await;
}
