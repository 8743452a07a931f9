//! Claims about activity: what a node says of who needs it, and the command that runs when nobody does.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tierd::rpc::pb;

use crate::rig::{ComfyStub, Content, Daemon, FaultOrigin, MIB, Settings, until, within};

const VAE: &str = "vae/ae.safetensors";

async fn origin() -> FaultOrigin {
    let origin = FaultOrigin::start().await;
    let content = Content::model(51, 24 * MIB);
    origin.put(VAE, &content);
    origin.put_manifest(&[(VAE, &content, None, None)]);
    origin
}

fn script(dir: &Path, text: &str) -> String {
    let path = dir.join("on-idle");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("its folder can be written");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    path.display().to_string()
}

fn idle(node: &pb::Node) -> Duration {
    let activity = node.activity.as_ref().expect("always set");
    activity.idle.and_then(tierd::rpc::time::Duration::to_std).expect("always set")
}

fn hook(node: &pb::Node) -> pb::IdleHook {
    node.activity.clone().expect("always set").idle_hook.expect("it is configured")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_since_when_nobody_needs_it() {
    within(60, async {
        let origin = origin().await;
        let stub = ComfyStub::start().await;
        let settings = Settings::with_origin(&origin).set("comfy", "servers", &format!("\"{}\"", stub.url()));
        let daemon = Daemon::start(settings).await;
        let client = daemon.client().await;
        until("the manifest is read", 10, || async { client.model(VAE).await.ok() }).await;
        let fresh = client.node().await;
        assert_eq!(fresh.activity.as_ref().expect("always set").last_demand, None);
        assert!(idle(&fresh) > Duration::ZERO, "{:?}", fresh.activity);

        origin.limit_rate(8 * MIB);
        let fetch = tokio::spawn({
            let client = client.clone();
            async move { client.ready(&[VAE]).await }
        });
        until("its flight is demand", 10, || async {
            let node = client.node().await;
            (node.activity.as_ref()?.flights_demand == 1 && idle(&node).is_zero()).then_some(())
        })
        .await;
        fetch.await.expect("it ends well");
        until("it falls idle", 10, || async { (idle(&client.node().await) > Duration::ZERO).then_some(()) }).await;
        let before = client.node().await.activity.expect("always set").last_demand;
        assert!(before.is_some());

        stub.queue("p1", &[VAE]);
        stub.run_next();
        until("the queue counts", 10, || async {
            let node = client.node().await;
            let depth = node.activity.as_ref()?.queues.iter().find(|queue| queue.server == stub.name())?;
            (depth.up && depth.running == 1 && idle(&node).is_zero()).then_some(())
        })
        .await;
        let line = daemon.cli().run(&["status"]).await.assert_code(0);
        assert!(line.out.contains("needed now"), "{}", line.out);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idle_command_runs_once_each_time_that_the_node_falls_idle() {
    within(60, async {
        let origin = origin().await;
        let folder = tempfile::tempdir().expect("a folder");
        let runs = folder.path().join("runs");
        let text = format!(
            "echo run \"$1\" socket=$TIERD_SOCKET idle=$TIERD_IDLE_SECONDS secret=$TIERD_TEST_SECRET >> {}\n\
             echo said on purpose; echo and this >&2",
            runs.display()
        );
        let command = format!("[\"{}\", \"a b; $HOME\"]", script(folder.path(), &text));
        let settings = Settings::with_origin(&origin)
            .set("daemon", "idle_command", &command)
            .set("daemon", "idle_after", "\"600ms\"")
            .env("TIERD_TEST_SECRET", "hunter2");
        // A variable that begins like ours must be one of ours, or be left alone.
        let daemon = Daemon::start(settings).await;
        let client = daemon.client().await;
        let count = || std::fs::read_to_string(&runs).unwrap_or_default().lines().count();
        until("it ran", 20, || async { (count() == 1).then_some(()) }).await;
        let told = until("it is told", 10, || async {
            let told = hook(&client.node().await);
            (told.outcome == "exit 0").then_some(told)
        })
        .await;
        assert!(told.ran.is_some());
        // Three times as long as it takes to fall idle: the same idle time does not count twice.
        until("time passes", 20, || async { (idle(&client.node().await) > Duration::from_millis(2400)).then_some(()) })
            .await;
        assert_eq!(count(), 1);

        client.ready(&[VAE]).await;
        until("it ran again", 20, || async { (count() == 2).then_some(()) }).await;
        let said = std::fs::read_to_string(&runs).expect("it ran");
        let first = said.lines().next().expect("a line");
        assert!(first.starts_with("run a b; $HOME socket="), "words are not taken apart: {first}");
        assert!(first.contains(&format!("socket={} idle=0", daemon.socket().display())), "{first}");
        assert!(first.ends_with("secret="), "the daemon's environment is its own: {first}");
        assert!(daemon.log().contains("said on purpose") && daemon.log().contains("and this"), "its output is logged");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_command_that_hangs_is_killed_with_what_it_started_and_the_daemon_stays_well() {
    within(60, async {
        let origin = origin().await;
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        // The child holds the pipe and outlives its parent unless the whole group goes.
        let text = format!("sleep 300 & echo $! > {}; wait", pid.display());
        let command = format!("[\"{}\"]", script(folder.path(), &text));
        let settings = Settings::with_origin(&origin)
            .set("daemon", "idle_command", &command)
            .set("daemon", "idle_after", "\"200ms\"")
            .set("daemon", "idle_timeout", "\"500ms\"");
        let mut daemon = Daemon::start(settings).await;
        let client = daemon.client().await;
        until("it is told", 20, || async { hook(&client.node().await).outcome.contains("killed after").then_some(()) })
            .await;
        let child = std::fs::read_to_string(&pid).expect("it started");
        until("what it started is gone", 10, || async {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            (state.is_empty() || state.contains(") Z ")).then_some(())
        })
        .await;
        client.ready(&[VAE]).await;
        assert!(daemon.stop().await.success());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_command_that_is_not_there_is_told_and_a_line_for_a_shell_is_refused() {
    within(30, async {
        let settings = Settings::default().set("daemon", "idle_command", "[\"/does/not/exist\"]").set(
            "daemon",
            "idle_after",
            "\"100ms\"",
        );
        let daemon = Daemon::start(settings).await;
        let client = daemon.client().await;
        until("it is told", 20, || async {
            hook(&client.node().await).outcome.contains("could not be started").then_some(())
        })
        .await;
        let daemon = Daemon::prepare(Settings::default().set("daemon", "idle_command", "\"rm -rf /tmp/x\""));
        daemon.write_config();
        let done = daemon.cli().run(&["check-config"]).await;
        assert!(done.code != 0 && done.err.contains("no shell"), "{done:?}");
    })
    .await;
}
