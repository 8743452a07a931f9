//! Claims about crashes: `kill -9` at any moment, torn journals, lost tails. Nothing finished is fetched again, nothing
//! unfinished is shown, nothing stored is believed unread.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use tierd::rpc::pb;

use crate::rig::client::Milliseconds;
use crate::rig::watch::Eyes;
use crate::rig::{Content, Daemon, FaultOrigin, MIB, PIECE, Settings, seed, until, within};

const FLUX: &str = "diffusion_models/flux1-schnell.safetensors";
const CONNECTIONS: u64 = 4;

/// A daemon whose downloads hold at most four pieces in flight.
fn settings(origin: &FaultOrigin) -> Settings {
    Settings::with_origin(origin).set("fetch", "connections_max", &CONNECTIONS.to_string())
}

/// Starts an ensure that nobody waits for: its daemon is about to die.
async fn ask_and_leave(daemon: &Daemon) -> tokio::task::JoinHandle<()> {
    let client = daemon.client().await;
    tokio::spawn(async move {
        // The daemon is killed under it.
        let _ = client.ensure(&[FLUX]).await;
    })
}

/// The files of the one unfinished blob: data and journal.
fn partial(daemon: &Daemon) -> Option<(PathBuf, PathBuf)> {
    let files = daemon.files("v1/partial");
    let with = |end: &str| files.keys().find(|path| path.to_string_lossy().ends_with(end)).cloned();
    Some((with(".data")?, with(".journal")?))
}

/// Pieces that the journal calls finished.
fn finished(daemon: &Daemon) -> BTreeSet<u64> {
    let Some((_, journal)) = partial(daemon) else { return BTreeSet::new() };
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    let mut pieces = BTreeSet::new();
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let record: serde_json::Value = serde_json::from_str(&line[17..]).expect("only a tail can be torn");
        let piece = || record["piece"].as_u64().expect("it has a number");
        match record["r"].as_str() {
            Some("finished") => drop(pieces.insert(piece())),
            Some("unfinished") => drop(pieces.remove(&piece())),
            Some("reset") => pieces.clear(),
            _ => {}
        }
    }
    pieces
}

/// Fails if a piece that was finished is asked for again.
#[track_caller]
fn assert_not_asked_again(origin: &FaultOrigin, kept: &BTreeSet<u64>) {
    for get in origin.gets(FLUX) {
        let pieces = get.range.start / PIECE..get.range.end.div_ceil(PIECE);
        let again: Vec<_> = pieces.filter(|piece| kept.contains(piece)).collect();
        assert!(again.is_empty(), "pieces {again:?} were finished, and fetched again by {get:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_in_one_download_lose_no_finished_piece_and_show_no_unfinished_file() {
    within(240, async {
        const KILLS: u64 = 50;
        let mut random = fastrand::Rng::with_seed(seed("fifty_kills"));
        let origin = FaultOrigin::start().await;
        let content = Content::model(200, 400 * MIB + 12_345);
        origin.put(FLUX, &content);
        let mut daemon = Daemon::prepare(settings(&origin));
        let eyes = Eyes::on(daemon.model(FLUX), content.clone());
        let (mut sent, mut lives_that_fetched) = (0, 0);

        for kill in 0..KILLS {
            let kept = finished(&daemon);
            let left = content.bytes() - (kept.len() as u64 * PIECE).min(content.bytes());
            // Enough to move on, too little to come to the end: the last piece can never be whole in this life.
            let share = 2 * left / (KILLS - kill) + 2 * CONNECTIONS * PIECE;
            let allowance = random.u64(0..=share.min(left - 1));
            origin.forget();
            origin.allow(allowance);
            daemon.spawn();
            if random.u32(0..10) == 0 {
                // Now and then before it has even opened its store.
                tokio::time::sleep(Duration::from_millis(random.u64(0..50))).await;
            } else {
                daemon.until_ready().await;
                let caller = ask_and_leave(&daemon).await;
                let moment = random.u64(0..=allowance);
                let give_up = tokio::time::Instant::now() + Duration::from_secs(10);
                while origin.sent(FLUX) < moment && tokio::time::Instant::now() < give_up {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                assert!(origin.sent(FLUX) >= moment, "life {kill}: {} of {moment} bytes were asked for", origin.sent(FLUX));
                tokio::time::sleep(Duration::from_micros(random.u64(0..20_000))).await;
                daemon.kill();
                caller.abort();
                assert_not_asked_again(&origin, &kept);
                lives_that_fetched += u64::from(origin.sent(FLUX) > 0);
                sent += origin.sent(FLUX);
                assert!(finished(&daemon).is_superset(&kept), "life {kill} lost finished pieces");
                continue;
            }
            daemon.kill();
        }

        let kept = finished(&daemon);
        assert!(!daemon.model(FLUX).exists(), "it cannot be whole yet");
        origin.forget();
        origin.heal();
        daemon.restart().await;
        daemon.client().await.ready(&[FLUX]).await;
        assert_not_asked_again(&origin, &kept);
        sent += origin.sent(FLUX);
        content.assert_is(&daemon.model(FLUX));
        let bound = content.bytes() + lives_that_fetched * CONNECTIONS * PIECE;
        assert!(sent <= bound, "{sent} bytes sent, {bound} allowed for {lives_that_fetched} lives");
        assert!(daemon.files("v1/partial").is_empty(), "nothing unfinished is left");
        let looks = eyes.assert_clean();
        println!("{KILLS} kills, {} of {} MiB sent, {looks} looks", sent / MIB, content.bytes() / MIB);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_around_the_commit_leaves_nothing_or_the_whole_file() {
    within(120, async {
        let mut random = fastrand::Rng::with_seed(seed("kill_around_the_commit"));
        for round in 0..12 {
            let origin = FaultOrigin::start().await;
            let content = Content::model(300 + round, 2 * PIECE + 17);
            origin.put(FLUX, &content);
            let mut daemon = Daemon::prepare(settings(&origin));
            let eyes = Eyes::on(daemon.model(FLUX), content.clone());
            daemon.restart().await;
            let caller = ask_and_leave(&daemon).await;
            origin.until_sent(FLUX, content.bytes(), 20).await;
            tokio::time::sleep(Duration::from_micros(random.u64(0..25_000))).await;
            daemon.kill();
            caller.abort();
            let visible = daemon.model(FLUX).exists();
            if visible {
                content.assert_is(&daemon.model(FLUX));
            }
            let kept = finished(&daemon);

            origin.forget();
            daemon.restart().await;
            daemon.client().await.ready(&[FLUX]).await;
            content.assert_is(&daemon.model(FLUX));
            assert_not_asked_again(&origin, &kept);
            assert!(!visible || origin.sent(FLUX) == 0, "round {round}: it was whole, and was fetched again");
            assert!(daemon.files("v1/partial").is_empty());
            eyes.assert_clean();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_events_and_models_outlive_a_kill() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(201, 9 * MIB);
        let unpinned = "vae/ae.safetensors";
        origin.put(FLUX, &content);
        origin.put(unpinned, &Content::model(205, 9 * MIB));
        let mut daemon = Daemon::start(settings(&origin)).await;
        let client = daemon.client().await;
        client.ready(&[FLUX, unpinned]).await;
        let lease = client.pin(&[FLUX], "launcher", Milliseconds(3_600_000)).await.expect("pinned");
        let events = client.events().await;
        let index = daemon.store().join("v1/index.log");
        until("the last event is written", 10, || async {
            std::fs::read_to_string(&index).is_ok_and(|text| text.contains("\"pinned\"")).then_some(())
        })
        .await;
        daemon.kill();

        origin.forget();
        daemon.restart().await;
        let client = daemon.client().await;
        let leases = client.cache.clone().list_leases(pb::ListLeasesRequest::default()).await.expect("it answers");
        assert_eq!(leases.into_inner().leases, [lease]);
        let after = client.events().await;
        assert_eq!(after[..events.len()], events, "what happened is remembered, in order");
        let missed = client.events_after(&events.last().expect("something happened").resume_token).await;
        assert_eq!(missed, after[events.len()..], "a token of the life before still resumes");
        client.ready(&[FLUX, unpinned]).await;
        assert!(origin.gets(FLUX).is_empty(), "a stored model is believed after a restart");
        assert!(origin.gets(unpinned).is_empty(), "a restart evicts nothing");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_token_means_the_same_after_a_kill_that_lost_events() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        origin.put(FLUX, &Content::model(206, MIB));
        let mut daemon = Daemon::start(settings(&origin)).await;
        let client = daemon.client().await;
        client.ready(&[FLUX]).await;
        for owner in 0..20 {
            client.pin(&[FLUX], &format!("owner {owner}"), Milliseconds(60_000)).await.expect("pinned");
        }
        let told = client.events().await;
        daemon.kill();
        daemon.restart().await;
        let client = daemon.client().await;
        for event in client.events().await {
            if let Some(same) = told.iter().find(|told| told.resume_token == event.resume_token) {
                assert_eq!(*same, event, "a token was given twice");
            }
        }
        let last = &told.last().expect("something happened").resume_token;
        let missed = client.events_after(last).await;
        let started = |event: &pb::Occurrence| matches!(event.what, Some(pb::occurrence::What::Started(_)));
        assert!(missed.iter().any(started), "who saw everything before the kill is told of the restart: {missed:?}");
    })
    .await;
}

/// Brings a download to at least five finished pieces of twelve, then kills the daemon.
async fn half_a_download() -> (FaultOrigin, Content, Daemon) {
    let origin = FaultOrigin::start().await;
    let content = Content::model(202, 12 * PIECE - 99);
    origin.put(FLUX, &content);
    origin.allow(9 * PIECE);
    let mut daemon = Daemon::start(settings(&origin)).await;
    let caller = ask_and_leave(&daemon).await;
    until("five pieces are finished", 20, || async { (finished(&daemon).len() >= 5).then_some(()) }).await;
    daemon.kill();
    caller.abort();
    origin.heal();
    origin.forget();
    (origin, content, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_lost_its_tail_costs_only_what_the_tail_said() {
    within(60, async {
        let (origin, content, mut daemon) = half_a_download().await;
        let (_, journal) = partial(&daemon).expect("it is half done");
        let text = std::fs::read(&journal).expect("it can be read");
        std::fs::write(&journal, &text[..text.len() - 40]).expect("it can be written");
        let kept = finished(&daemon);
        assert!(kept.len() >= 4);
        daemon.restart().await;
        daemon.client().await.ready(&[FLUX]).await;
        assert_not_asked_again(&origin, &kept);
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_behind_a_journal_is_not_believed() {
    within(60, async {
        let (origin, content, mut daemon) = half_a_download().await;
        let (_, journal) = partial(&daemon).expect("it is half done");
        let kept = finished(&daemon);
        let mut file = std::fs::File::options().append(true).open(&journal).expect("it can be opened");
        file.write_all(b"0123456789abcdef {\"r\":\"finished\",\"piece\":11,\"cv\":\"00\"}\n\xff\x00\xfe garbage").expect("it is written");
        daemon.restart().await;
        daemon.client().await.ready(&[FLUX]).await;
        assert_not_asked_again(&origin, &kept);
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_piece_whose_bytes_are_lost_is_fetched_again_alone() {
    within(60, async {
        let (origin, content, mut daemon) = half_a_download().await;
        let (data, _) = partial(&daemon).expect("it is half done");
        let mut kept = finished(&daemon);
        // As a power loss does it: the journal reached the disk, the data did not.
        let lost = *kept.iter().nth(1).expect("there are five");
        kept.remove(&lost);
        let file = std::fs::File::options().write(true).open(&data).expect("it can be opened");
        file.write_all_at(&[0; 4096], lost * PIECE + 3 * 4096).expect("it can be written");
        daemon.restart().await;
        daemon.client().await.ready(&[FLUX]).await;
        assert_not_asked_again(&origin, &kept);
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_deletes_no_file_and_is_mended_by_an_import() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(203, 3 * PIECE);
        origin.put(FLUX, &content);
        let mut daemon = Daemon::start(settings(&origin)).await;
        daemon.client().await.ready(&[FLUX]).await;
        daemon.kill();
        let index = daemon.store().join("v1/index.log");
        let text = std::fs::read(&index).expect("it can be read");
        // A torn last record costs nothing.
        std::fs::write(&index, &text[..text.len() - 1]).expect("it can be written");
        daemon.restart().await;
        daemon.client().await.ready(&[FLUX]).await;
        daemon.kill();

        // Without an index nobody knows whose file that is: it stays, it is not believed, and the refusal says what to do.
        std::fs::write(&index, "").expect("it can be written");
        daemon.restart().await;
        let (kind, _, said) = daemon.client().await.ensure(&[FLUX]).await.fault();
        assert_eq!(kind, pb::FaultKind::Store, "{said}");
        assert!(said.contains(FLUX) && said.contains("import"), "{said}");
        content.assert_is(&daemon.model(FLUX));
        origin.forget();
        let models = daemon.store().join("models").display().to_string();
        daemon.cli().run(&["import", &models]).await.assert_code(0);
        daemon.client().await.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        assert_eq!(origin.sent(FLUX), 0, "an import moves no byte");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_termination_drains_and_the_rest_is_resumed() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(204, 12 * PIECE);
        origin.put(FLUX, &content);
        origin.limit_rate(8 * MIB);
        let mut daemon = Daemon::start(settings(&origin)).await;
        let caller = ask_and_leave(&daemon).await;
        until("two pieces are finished", 30, || async { (finished(&daemon).len() >= 2).then_some(()) }).await;
        let status = daemon.stop().await;
        assert!(status.success(), "a drain ends with 0: {status}");
        caller.await.expect("the caller is told, not cut off");
        let kept = finished(&daemon);
        assert!(kept.len() >= 2);
        assert!(!daemon.model(FLUX).exists());

        origin.heal();
        origin.forget();
        daemon.restart().await;
        daemon.client().await.ready(&[FLUX]).await;
        assert_not_asked_again(&origin, &kept);
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}
