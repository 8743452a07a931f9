//! Claims about what a running daemon learns: a habit brings a model before it is asked for, and what was counted decides after a restart.

use tierd::rpc::pb;
use tierd::rpc::pb::occurrence::What;

use crate::rig::{Client, Content, Daemon, MIB, Settings, until, within};

const NAMES: [&str; 3] = ["loras/a.safetensors", "loras/b.safetensors", "loras/c.safetensors"];
/// Requests after which a habit of three models must have proved itself: some rounds to be sure of it, a dozen guesses that come true.
const TURNS_MAX: usize = 60;

/// A folder with three models of 30 MiB, as an origin.
fn origin() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("loras")).expect("a folder of its own");
    for (seed, name) in NAMES.iter().enumerate() {
        Content::model(700 + seed as u64, 30 * MIB).write_to(&folder.path().join(name));
    }
    folder
}

async fn acts(client: &Client) -> bool {
    let answer = client.node.clone().get_predictions(pb::GetPredictionsRequest {}).await.expect("it answers");
    answer.into_inner().habits.iter().any(|habit| habit.acts)
}

/// Asks for one model after the other, round and round, and lets each go again, until that is believed. Returns what comes next.
async fn until_believed(client: &Client) -> Option<&'static str> {
    for turn in 0..TURNS_MAX {
        let name = NAMES[turn % NAMES.len()];
        client.ready(&[name]).await;
        client.evict(&[name]).await.expect("nothing holds it");
        if acts(client).await {
            return Some(NAMES[(turn + 1) % NAMES.len()]);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_habit_that_proved_right_brings_the_next_model_before_it_is_asked_for() {
    within(90, async {
        let folder = origin();
        let daemon = Daemon::start(Settings::default().folder_origin("disk", folder.path())).await;
        let client = daemon.client().await;
        let next = until_believed(&client).await.expect("a habit is believed");
        let told = daemon
            .until_event("what is acted on is an event", |event| match &event.what {
                Some(What::Predicts(predicts)) => Some(predicts.clone()),
                _ => None,
            })
            .await;
        assert_eq!((told.habit.as_str(), told.step.as_str(), told.acts), ("sequence", "fetch", true), "{told:?}");

        until("the next model is there and nobody asked", 20, || async { daemon.model(next).exists().then_some(()) })
            .await;
        let ready = client.ready(&[next]).await;
        assert_eq!(ready.bytes_fetched, 0, "nobody waits for what was guessed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_shadow_mode_only_keeps_the_score() {
    within(90, async {
        let folder = origin();
        let settings = Settings::default().folder_origin("disk", folder.path());
        let daemon = Daemon::start(settings.set("predict", "mode", "\"shadow\"")).await;
        let client = daemon.client().await;
        assert_eq!(until_believed(&client).await, None);
        let answer = client.node.clone().get_predictions(pb::GetPredictionsRequest {}).await.expect("it answers");
        let right: f64 = answer.into_inner().habits.iter().map(|habit| habit.guesses_right).sum();
        assert!(right >= 12.0, "it was right often enough: {right}");
        assert!(NAMES.iter().all(|name| !daemon.model(name).exists()), "nothing came that was not asked for");
    })
    .await;
}

/// Evicted models, in order.
async fn evicted(client: &Client) -> Vec<String> {
    let events = client.events().await.into_iter();
    events
        .filter_map(|event| if let Some(What::Evicted(evicted)) = event.what { Some(evicted.model) } else { None })
        .collect()
}

/// Where counts are kept.
fn kept(daemon: &Daemon) -> std::path::PathBuf {
    let is_it = |file: &std::path::PathBuf| file.file_name().is_some_and(|name| name == "uses.json");
    daemon.files("v1").into_keys().find(is_it).expect("counts are kept")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_forgets_no_use_and_a_torn_record_of_them_is_told_and_done_without() {
    within(90, async {
        let folder = origin();
        let settings = Settings::default().folder_origin("disk", folder.path()).set("store", "budget", "\"70 MiB\"");
        let mut daemon = Daemon::start(settings.set("predict", "mode", "\"off\"")).await;
        let client = daemon.client().await;
        for _ in 0..8 {
            client.ready(&[NAMES[0]]).await;
        }
        client.ready(&[NAMES[1]]).await;
        assert!(daemon.stop().await.success());
        daemon.restart().await;
        let client = daemon.client().await;
        client.ready(&[NAMES[2]]).await;
        assert_eq!(evicted(&client).await, [NAMES[1]], "the last one used, but not the most used");

        assert!(daemon.stop().await.success());
        std::fs::remove_file(kept(&daemon)).expect("it can be removed");
        daemon.restart().await;
        let client = daemon.client().await;
        client.ready(&[NAMES[1]]).await;
        assert_eq!(evicted(&client).await[1..], [NAMES[0]], "a stranger decides otherwise, or this test shows nothing");

        assert!(daemon.stop().await.success());
        let bytes = std::fs::read(kept(&daemon)).expect("it can be read");
        std::fs::write(kept(&daemon), &bytes[..bytes.len() / 2]).expect("it can be torn");
        daemon.restart().await;
        let client = daemon.client().await;
        client.ready(&[NAMES[0]]).await;
        assert!(daemon.log().contains("kept state is damaged, doing without it"));
    })
    .await;
}
