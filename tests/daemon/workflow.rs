//! Claims about workflows at the border: resolved, made ready, scanned, and handed on to a launcher.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tierd::rpc::pb;
use tierd::rpc::pb::ensure_workflow_response::Update;
use tierd::rpc::pb::workflow_service_client::WorkflowServiceClient;
use tonic::{Code, Status};

use super::rig::{Client, Content, Daemon, FaultOrigin, MIB, Settings, within};

const CLIP: &str = "text_encoders/umt5.safetensors";
const HIGH: &str = "diffusion_models/wan/high.safetensors";
const LOW: &str = "diffusion_models/wan/low.safetensors";
const VAE: &str = "vae/wan.safetensors";
const ALL: [&str; 4] = [CLIP, HIGH, LOW, VAE];

/// A prompt that uses four models, one after the other, and mutes nothing.
fn prompt() -> Value {
    json!({
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "wan.safetensors"}},
        "2": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan\\low.safetensors"}},
        "3": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan\\high.safetensors"}},
        "4": {"class_type": "CLIPLoader", "inputs": {"clip_name": "umt5.safetensors", "type": "wan"}},
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 0], "text": "a robot"}},
        "6": {"class_type": "KSampler", "inputs": {"model": ["3", 0], "positive": ["5", 0]}},
        "7": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "positive": ["5", 0], "latent_image": ["6", 0]}},
        "8": {"class_type": "VAEDecode", "inputs": {"vae": ["1", 0], "samples": ["7", 0]}},
    })
}

/// A daemon with the models of [`prompt`], but for those named.
async fn daemon(origin: &FaultOrigin, without: &[&str]) -> Daemon {
    for (seed, model) in (900..).zip(ALL).filter(|(_, model)| !without.contains(model)) {
        origin.put(model, &Content::model(seed, MIB));
    }
    Daemon::start(Settings::with_origin(origin)).await
}

fn file(daemon: &Daemon, name: &str, document: &Value) -> PathBuf {
    let path = daemon.dir().join(name);
    std::fs::create_dir_all(path.parent().expect("below a folder")).expect("it can be made");
    std::fs::write(&path, document.to_string()).expect("it can be written");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain")
}

/// Ensures workflows; all that was said, and how it ended.
async fn ensure(client: &Client, request: pb::EnsureWorkflowRequest) -> (Vec<Update>, Option<Status>) {
    let mut service = WorkflowServiceClient::new(client.channel.clone());
    let mut stream = match service.ensure_workflow(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return (Vec::new(), Some(status)),
    };
    let mut told = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(message)) => told.push(message.update.expect("always set")),
            Ok(None) => return (told, None),
            Err(status) => return (told, Some(status)),
        }
    }
}

fn request(document: &Value) -> pb::EnsureWorkflowRequest {
    pb::EnsureWorkflowRequest { workflows: vec![document.to_string().into_bytes()], ..Default::default() }
}

async fn resolve(client: &Client, workflow: Vec<u8>) -> Result<pb::WorkflowResolution, Status> {
    let mut service = WorkflowServiceClient::new(client.channel.clone());
    let answer = service.resolve_workflow(pb::ResolveWorkflowRequest { workflow }).await?;
    Ok(answer.into_inner().resolution.expect("always set"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflows_models_are_told_in_the_order_of_use_and_made_ready() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let daemon = daemon(&origin, &[]).await;
        let client = daemon.client().await;
        // The origin cannot be listed: nothing is known before it was asked for by name.
        let before = resolve(&client, prompt().to_string().into_bytes()).await.expect("a workflow");
        assert_eq!(before.needs.iter().map(|need| need.model.as_str()).collect::<Vec<_>>(), ALL);
        assert!(before.needs.iter().all(|need| !need.known && need.tier() == pb::Tier::Unspecified));

        let (told, status) = ensure(&client, request(&prompt())).await;
        assert!(status.is_none(), "{status:?}");
        assert!(matches!(&told[0], Update::Resolution(told) if told.needs.len() == 4), "{told:?}");
        assert!(matches!(&told[1], Update::Plan(plan) if plan.models.len() == 4), "{told:?}");
        let Some(Update::Ready(ready)) = told.last() else { panic!("{told:?}") };
        assert_eq!(ready.models.iter().map(|model| model.model.as_str()).collect::<Vec<_>>(), ALL);

        let after = resolve(&client, prompt().to_string().into_bytes()).await.expect("a workflow");
        assert!(after.needs.iter().all(|need| need.known && need.tier() == pb::Tier::Nvme));
        assert_eq!((after.bytes_here, after.bytes_total), (4 * MIB, 4 * MIB));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_nobody_has_ends_it_by_name_unless_the_rest_is_enough() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let daemon = daemon(&origin, &[LOW]).await;
        let client = daemon.client().await;
        let (told, status) = ensure(&client, request(&prompt())).await;
        let status = status.expect("it fails");
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains(LOW), "{}", status.message());
        assert!(matches!(told.last(), Some(Update::Failed(_))), "{told:?}");

        let (told, status) = ensure(&client, pb::EnsureWorkflowRequest { partial: true, ..request(&prompt()) }).await;
        assert!(status.is_none(), "{status:?}");
        let left: Vec<&str> = told
            .iter()
            .filter_map(|update| match update {
                Update::LeftOut(left) => Some(left.models.iter().map(|row| row.model.as_str())),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(left, [LOW]);
        assert_eq!(told.iter().filter(|update| matches!(update, Update::Plan(_))).count(), 1);
        let Some(Update::Ready(ready)) = told.last() else { panic!("{told:?}") };
        assert_eq!(ready.models.len(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_name_that_is_no_model_ends_it_before_anything_is_fetched() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let daemon = daemon(&origin, &[]).await;
        let client = daemon.client().await;
        let mut graph = prompt();
        graph["9"] = json!({"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}});
        let (told, status) = ensure(&client, request(&graph)).await;
        assert_eq!(status.expect("it fails").code(), Code::NotFound);
        assert!(matches!(told.as_slice(), [Update::Resolution(_), Update::Failed(_)]), "{told:?}");
        let (told, status) = ensure(&client, pb::EnsureWorkflowRequest { partial: true, ..request(&graph) }).await;
        assert!(status.is_none() && matches!(told.last(), Some(Update::Ready(_))), "{told:?}");
        // Nothing wanted is ready at once.
        let (told, status) = ensure(&client, request(&json!({"1": {"class_type": "LoadImage", "inputs": {}}}))).await;
        assert!(status.is_none() && matches!(told.as_slice(), [Update::Resolution(_), Update::Ready(_)]), "{told:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_workflow_is_refused_and_ten_megabytes_are_read() {
    within(120, async {
        let settings = Settings::default().set("listen", "workflow_bytes_max", "\"11 MiB\"");
        let daemon = Daemon::start(settings).await;
        let client = daemon.client().await;
        let refused = |bytes: Vec<u8>| resolve(&client, bytes);
        for bytes in [b"{".to_vec(), b"{}".to_vec(), vec![b'['; 1 << 20], vec![b' '; 12 << 20]] {
            let status = refused(bytes).await.expect_err("refused");
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            assert!(status.message().starts_with("workflow: "), "{}", status.message());
        }
        assert_ne!(refused(vec![b' '; 20 << 20]).await.expect_err("refused").code(), Code::Ok);
        let node = |id: usize| json!({"class_type": "CLIPTextEncode", "inputs": {"text": format!("{id}{}", "x".repeat(1000))}});
        let mut graph: serde_json::Map<String, Value> = (10..10_010).map(|id| (id.to_string(), node(id))).collect();
        graph.extend(prompt().as_object().expect("an object").clone());
        let bytes = Value::Object(graph).to_string().into_bytes();
        assert!(bytes.len() > 10 << 20, "{}", bytes.len());
        let found = resolve(&client, bytes).await.expect("it is read");
        assert_eq!((found.needs.len(), found.limits.len()), (4, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_resolves_ensures_and_scans() {
    within(120, async {
        let origin = FaultOrigin::start().await;
        let daemon = daemon(&origin, &[LOW]).await;
        let cli = daemon.cli();
        let flow = file(&daemon, "flows/wan.json", &prompt());
        let small = json!({"1": {"class_type": "VAELoader", "inputs": {"vae_name": "wan.safetensors"}}});
        let vae = file(&daemon, "flows/deep/vae.json", &small);
        file(&daemon, "flows/other.json", &json!({"a": 1}));

        let done = cli.run(&["resolve", text(&flow)]).await.assert_code(0);
        assert!(done.out.contains("unknown") && done.out.contains(HIGH), "{}", done.out);
        let found = cli.run(&["resolve", "--json", text(&flow)]).await.assert_code(0).json();
        assert_eq!(found[0]["needs"][0]["model"], CLIP);
        assert_eq!(found[0]["needs"][0]["how"], "loader");
        let offline = cli.run(&["resolve", "--offline", text(&flow)]).await.assert_code(0);
        assert!(offline.err.contains("no daemon was asked"), "{}", offline.err);

        let done = cli.run(&["ensure", "--workflow", text(&vae)]).await.assert_code(0);
        assert!(done.out.contains(VAE), "{}", done.out);
        let failed = cli.run(&["ensure", "--workflow", text(&flow)]).await.assert_code(3);
        assert!(failed.err.contains(LOW), "{}", failed.err);
        let done = cli.run(&["ensure", "--json", "--partial", "--workflow", text(&flow), VAE]).await.assert_code(0);
        let lines = done.json();
        assert_eq!(lines[0]["resolution"]["form"], "api");
        assert_eq!(lines.last().expect("an end")["ready"]["models"].as_array().expect("a list").len(), 3);
        assert!(lines.iter().any(|line| line["left_out"]["models"][0]["model"] == LOW), "{}", done.out);

        let scan = cli.run(&["scan", "--json", text(flow.parent().expect("a folder"))]).await.assert_code(0).json();
        assert_eq!(scan[0]["workflows"][0]["file"], "deep/vae.json");
        assert_eq!(scan[0]["workflows"][1]["here"], 3);
        assert_eq!(scan[0]["workflows"][1]["unknown"], 1);
        assert_eq!(scan[0]["others"][0]["file"], "other.json");
        assert_eq!(scan[0]["models"].as_array().expect("a list").len(), 4);
        let table = cli.run(&["scan", text(flow.parent().expect("a folder"))]).await.assert_code(0);
        assert!(
            table.out.contains("2 workflows, 4 models: 3 here (3 MiB), 0 missing (0 B), 1 unknown"),
            "{}",
            table.out
        );
        cli.run(&["resolve", "nothing.json"]).await.assert_code(2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_becomes_the_command_once_all_is_ready() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let daemon = daemon(&origin, &[LOW]).await;
        let cli = daemon.cli();
        let small = file(
            &daemon,
            "vae.json",
            &json!({"1": {"class_type": "VAELoader", "inputs": {"vae_name": "wan.safetensors"}}}),
        );
        let whole = file(&daemon, "wan.json", &prompt());
        let model = daemon.model(VAE);
        let script = format!("test -s {} && echo started $1; exit 7", model.display());
        let done = cli
            .run(&["exec", "--workflow", text(&small), "--", "sh", "-c", &script, "sh", "--listen"])
            .await
            .assert_code(7);
        assert!(done.out.ends_with("started --listen\n"), "{}", done.out);

        let refused = cli.run(&["exec", "--workflow", text(&whole), "--", "echo", "started"]).await.assert_code(3);
        assert!(!refused.out.contains("started") && refused.err.contains(LOW), "{}", refused.err);
        let going = cli
            .run(&["exec", "--keep-going", "--workflow", text(&whole), "--", "echo", "started"])
            .await
            .assert_code(0);
        assert!(going.out.ends_with("started\n"), "{}", going.out);
        let missing = cli.run(&["exec", "--workflow", text(&small), "--", "/no/such/program"]).await.assert_code(1);
        assert!(missing.err.contains("/no/such/program"), "{}", missing.err);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_a_workflow_names_is_never_asked_for_anything() {
    within(60, async {
        let (origin, inside) = (FaultOrigin::start().await, FaultOrigin::start().await);
        inside.put("vae/evil.safetensors", &Content::model(950, MIB));
        let daemon = daemon(&origin, &[]).await;
        let models: Vec<Value> = ["", "unused/../"]
            .iter()
            .map(|way| {
                let url = format!("{}/{way}vae/evil.safetensors", inside.url());
                json!({"name": "evil.safetensors", "url": url, "directory": "vae"})
            })
            .collect();
        let document = json!({
            "version": 0.4, "links": [], "models": models,
            "nodes": [{"id": 1, "type": "VAELoader", "mode": 0, "inputs": [], "outputs": [],
                       "properties": {"models": models}, "widgets_values": ["evil.safetensors"]}],
        });
        let client = daemon.client().await;
        let resolution = resolve(&client, document.to_string().into_bytes()).await.expect("it is a workflow");
        assert_eq!(resolution.needs.len(), 1, "{resolution:?}");
        let (_, status) = ensure(&client, request(&document)).await;
        assert_eq!(status.expect("nobody has it").code(), Code::NotFound);
        assert_eq!(inside.connections_peak(), 0, "somebody asked the address in the workflow");
    })
    .await;
}
