//! The node pack as it is shipped, and the daemon: they must understand each other, or neither is of use.

use std::path::Path;

use crate::rig::{Content, Daemon, MIB, Settings, until, within};

const VAE: &str = "vae/ae.safetensors";

/// What a prompt's worth of the shipped pack says, without a ComfyUI around it.
const PACK: &str = r#"
import json, sys
sys.path.insert(0, sys.argv[1])
from tierd import reporter, wire
daemon = wire.Daemon(wire.Settings())
pack = reporter.Reporter(daemon, {})
pack.hooks = {"reads": "attached"}
pack.turn()
assert pack.gate.on and pack.gate.is_absent(sys.argv[2]), "the gate knows what is not here"
lines, path = daemon.ensure(json.dumps({"worker": pack.worker, "model": sys.argv[2]}).encode()), ""
while not path:
    line = lines.next(20)
    assert isinstance(line, dict) and "failed" not in line, line
    path = line.get("ready", {}).get("path", "")
pack.event("file_read", file=path, seconds=0.1, prompt_id="p")
pack.devices([])
pack.turn()
assert pack.dropped == 0 and not pack._refusals, pack._refusals
print(path, flush=True)
sys.stdin.read()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_pack_and_the_daemon_understand_each_other() {
    within(60, async {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(VAE);
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("writable");
        Content::model(720, MIB).write_to(&path);
        let daemon = Daemon::start(Settings::default().folder_origin("shelf", folder.path())).await;
        let client = daemon.client().await;
        until("it is listed", 20, || async { (client.node().await.models_known == 1).then_some(()) }).await;
        let mut command = std::process::Command::new("python3");
        command.args(["-c", PACK, concat!(env!("CARGO_MANIFEST_DIR"), "/comfyui"), VAE]);
        command.env("TIERD_SOCKET", daemon.socket()).env("PYTHONDONTWRITEBYTECODE", "1");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        // It ends with its input: with this test, however that ends.
        let Ok(mut child) = command.spawn() else {
            crate::rig::skip("the_shipped_pack_and_the_daemon_understand_each_other", "python3 is not installed");
            return;
        };
        let mut output = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).expect("it speaks");
        assert_eq!(Path::new(line.trim()), daemon.model(VAE));
        let worker = client.node().await.workers.remove(0);
        let info = worker.info.expect("it said hello");
        assert_eq!((info.pid, info.hooks[0].state.as_str()), (child.id(), "attached"));
        drop(child.stdin.take());
        child.wait().expect("it ends");
        until("it is lost", 8, || async { client.node().await.workers.is_empty().then_some(()) }).await;
    })
    .await;
}
