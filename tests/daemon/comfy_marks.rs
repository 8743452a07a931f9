//! Claims about marks and the commands around ComfyUI, with a real daemon.

use std::path::Path;

use serde_json::json;
use tierd::rpc::pb;

use crate::comfy_pack::said::post;
use crate::rig::{ComfyStub, Content, Daemon, FaultOrigin, MIB, Settings, until, within};

const A: &str = "vae/a.safetensors";
const B: &str = "loras/style/b.safetensors";

async fn origin() -> FaultOrigin {
    let origin = FaultOrigin::start().await;
    let (a, b) = (Content::model(1, MIB), Content::model(2, MIB));
    origin.put(A, &a);
    origin.put(B, &b);
    origin.put_manifest(&[(A, &a, None, None), (B, &b, None, None)]);
    origin
}

/// Whether a mark stands there.
fn is_mark(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) && !path.exists()
}

async fn until_mark(path: &Path, there: bool) {
    until("the mark", 10, || async { (is_mark(path) == there).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_had_is_marked_until_it_is_here_and_again_when_it_leaves() {
    within(60, async {
        let origin = origin().await;
        let mut daemon = Daemon::start(Settings::with_origin(&origin).set("comfy", "marks", "true")).await;
        until_mark(&daemon.model(A), true).await;
        until_mark(&daemon.model(B), true).await;
        let client = daemon.client().await;
        client.ready(&[A]).await;
        Content::model(1, MIB).assert_is(&daemon.model(A));
        assert!(is_mark(&daemon.model(B)));
        client.evict(&[A]).await.expect("evicted");
        assert!(is_mark(&daemon.model(A)), "the mark is back when the eviction is done");

        // A crash loses nothing, and the option's end takes all of them.
        daemon.kill();
        daemon.restart().await;
        until_mark(&daemon.model(A), true).await;
        daemon.stop().await;
        daemon.settings(|settings| settings.set("comfy", "marks", "false"));
        daemon.restart().await;
        until_mark(&daemon.model(A), false).await;
        until_mark(&daemon.model(B), false).await;
        assert!(!daemon.model("loras/style").exists(), "nor is an empty folder left");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_for_comfyui_need_no_daemon_but_the_status() {
    within(60, async {
        let origin = origin().await;
        let mut daemon = Daemon::start(Settings::with_origin(&origin).set("comfy", "marks", "true")).await;
        until_mark(&daemon.model(B), true).await;
        let text = daemon.cli().run(&["comfy", "status"]).await.assert_code(0).out;
        assert!(text.contains("no ComfyUI server is watched"), "{text}");
        daemon.stop().await;

        let yaml = daemon.cli().run(&["comfy", "paths"]).await.assert_code(0).out;
        let base = format!("    base_path: '{}'\n", daemon.model("").display().to_string().trim_end_matches('/'));
        assert!(yaml.contains(&base) && yaml.contains("        unet\n        diffusion_models\n"), "{yaml}");
        let json = daemon.cli().run(&["comfy", "paths", "--last", "--json"]).await.assert_code(0).json().remove(0);
        assert_eq!((&json["is_default"], &json["folders"]["text_encoders"][0]), (&false.into(), &"clip".into()));

        let comfy = daemon.dir().join("ComfyUI");
        let name = comfy.display().to_string();
        daemon.cli().run(&["comfy", "install", &name]).await.assert_code(3);
        std::fs::create_dir_all(comfy.join("custom_nodes")).expect("made");
        daemon.cli().run(&["comfy", "install", &name]).await.assert_code(0);
        assert!(comfy.join("custom_nodes/tierd/__init__.py").is_file());
        daemon.cli().run(&["comfy", "install", &name, "--uninstall"]).await.assert_code(0);
        assert!(!comfy.join("custom_nodes/tierd").exists());
        std::fs::create_dir_all(comfy.join("custom_nodes/tierd")).expect("made");
        daemon.cli().run(&["comfy", "install", &name]).await.assert_code(7);

        let json = daemon.cli().run(&["comfy", "unmark", "--json"]).await.assert_code(0).json().remove(0);
        assert_eq!(json["removed"], 2);
        assert!(!is_mark(&daemon.model(A)) && !is_mark(&daemon.model(B)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_names_what_is_only_in_the_bucket_gets_it_through_mark_queue_and_gate() {
    within(60, async {
        let (origin, comfy) = (origin().await, ComfyStub::start().await);
        let daemon = Daemon::start(Settings::with_origin(&origin).set("comfy", "marks", "true")).await;
        until_mark(&daemon.model(A), true).await;
        // Nobody configured this server: its node pack says where it listens.
        let hello = json!({ "worker": "w", "pid": 1, "pack_version": "0", "comfyui_version": "0", "address": comfy.url(),
            "argv": [], "hooks": {}, "folders": {} });
        assert_eq!(post(&daemon.socket(), "hello", &hello).await.status, 200);
        let seen = || async {
            let mut client = daemon.client().await.comfy;
            let answer = client.list_comfy_servers(pb::ListComfyServersRequest::default()).await.expect("it answers");
            answer.into_inner().servers.into_iter().find(|server| server.name == comfy.name() && server.up)
        };
        until("the announced server is watched", 15, seen).await;

        comfy.queue("p", &[A]);
        comfy.run_next();
        until("its model is asked for", 10, || async { (!origin.gets(A).is_empty()).then_some(()) }).await;
        let answer = post(&daemon.socket(), "ensure", &json!({ "worker": "w", "model": A, "prompt_id": "p" })).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let last: serde_json::Value =
            serde_json::from_str(answer.body.trim().lines().last().expect("an end")).expect("JSON");
        assert_eq!(last["ready"]["path"], daemon.model(A).display().to_string(), "{answer:?}");
        Content::model(1, MIB).assert_is(&daemon.model(A));
        assert_eq!(origin.sent(A), MIB, "queue and gate share one fetch");
    })
    .await;
}
