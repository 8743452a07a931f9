//! Claims about following a node's state: a snapshot, then every change; nothing lost and nothing twice after a reconnect; one who
//! reads too slowly is told so, and holds nobody up.

use std::collections::BTreeMap;
use std::time::Duration;

use tierd::rpc::pb;
use tierd::rpc::pb::hint_service_client::HintServiceClient;
use tierd::rpc::pb::watch_response::Update;
use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::rig::client::Milliseconds;
use crate::rig::{Client, Content, Daemon, FaultOrigin, MIB, Settings, assert_within, until, within};

const FIRST: &str = "vae/first.safetensors";
/// Leases that begin and end while a watcher does not read: more than the engine keeps for it, and the transport for a reader.
const CYCLES: usize = 2500;
const SECOND: &str = "loras/second.safetensors";

async fn node() -> (FaultOrigin, Daemon, Client) {
    node_with(24 * MIB).await
}

/// A node whose origin has the first model with 3 MiB, and the second with so many bytes.
async fn node_with(second: u64) -> (FaultOrigin, Daemon, Client) {
    let origin = FaultOrigin::start().await;
    let contents = [(FIRST, Content::model(41, 3 * MIB)), (SECOND, Content::model(42, second))];
    let rows: Vec<_> = contents.iter().map(|(model, content)| (*model, content, None, None)).collect();
    contents.iter().for_each(|(model, content)| origin.put(model, content));
    origin.put_manifest(&rows);
    let daemon = Daemon::start(Settings::with_origin(&origin)).await;
    let client = daemon.client().await;
    until("the manifest is read", 10, || async { client.model(FIRST).await.ok() }).await;
    (origin, daemon, client)
}

async fn follow(client: &Client, token: &str) -> Streaming<pb::WatchResponse> {
    let request = pb::WatchRequest { resume_token: token.to_owned(), follow_state: true, ..Default::default() };
    client.node.clone().watch(request).await.expect("it begins").into_inner()
}

async fn next(stream: &mut Streaming<pb::WatchResponse>) -> Update {
    stream.message().await.expect("it goes on").expect("it goes on").update.expect("always set")
}

fn token(update: &Update) -> &str {
    match update {
        Update::Occurrence(occurrence) => &occurrence.resume_token,
        Update::Change(change) => &change.resume_token,
        Update::Snapshot(snapshot) => &snapshot.resume_token,
        Update::Resync(_) => "",
    }
}

/// Reads until one fits, and returns all that were read.
async fn until_told(stream: &mut Streaming<pb::WatchResponse>, fits: impl Fn(&Update) -> bool) -> Vec<Update> {
    let mut told = Vec::new();
    loop {
        told.push(next(stream).await);
        if fits(told.last().expect("one was read")) {
            return told;
        }
    }
}

fn is_stored(model: &str) -> impl Fn(&Update) -> bool {
    move |update| match update {
        Update::Occurrence(pb::Occurrence { what: Some(pb::occurrence::What::Stored(stored)), .. }) => {
            stored.model == model
        }
        _ => false,
    }
}

/// What a flight went through, as told.
fn flights(told: &[Update]) -> Vec<(bool, bool, String)> {
    let flight = |update: &Update| match update {
        Update::Change(pb::Change { what: Some(pb::change::What::Flight(change)), .. }) => {
            let flight = change.flight.as_ref().expect("always set");
            Some((change.began, change.ended, flight.phase().word()))
        }
        _ => None,
    };
    told.iter().filter_map(flight).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_comes_first_and_then_every_state_of_a_flight() {
    within(60, async {
        let (_origin, _daemon, client) = node().await;
        client.ready(&[FIRST]).await;
        let mut stream = follow(&client, "").await;
        let Update::Snapshot(snapshot) = next(&mut stream).await else { panic!("a snapshot comes first") };
        assert!(!snapshot.more && !snapshot.resume_token.is_empty());
        let node = snapshot.node.expect("in the first part");
        assert!(node.activity.is_some() && !node.driver_detail.is_empty(), "{node:?}");
        assert_eq!(snapshot.models.len(), 1, "{:?}", snapshot.models);
        assert_eq!((snapshot.models[0].model.as_str(), snapshot.models[0].tier()), (FIRST, pb::Tier::Nvme));

        client.ready(&[SECOND]).await;
        let mut told = until_told(&mut stream, is_stored(SECOND)).await;
        let ended = |update: &Update| matches!(flights(std::slice::from_ref(update))[..], [(_, true, _)]);
        if !told.iter().any(ended) {
            told.extend(until_told(&mut stream, ended).await);
        }
        let states = flights(&told);
        assert!(states.first().is_some_and(|(began, ended, _)| *began && !ended), "{states:?}");
        let last = states.last().expect("it ended");
        assert_eq!((last.1, last.2.as_str()), (true, "ready"), "{states:?}");
        assert!(states.iter().any(|(.., phase)| phase == "fetching"), "{states:?}");
        assert_eq!(states.iter().filter(|(began, ..)| *began).count(), 1, "{states:?}");
        assert!(states.len() <= 8, "states, not bytes: {states:?}");

        let both = pb::WatchRequest { past_only: true, follow_state: true, ..Default::default() };
        let status = client.node.clone().watch(both).await.expect_err("they exclude each other");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_reconnects_gets_what_it_missed_and_a_restart_is_told() {
    within(90, async {
        let (_origin, mut daemon, client) = node().await;
        let mut stream = follow(&client, "").await;
        let Update::Snapshot(snapshot) = next(&mut stream).await else { panic!("a snapshot comes first") };
        client.ready(&[FIRST, SECOND]).await;
        client.evict(&[FIRST]).await.expect("evicted");
        let is_evicted = |update: &Update| {
            matches!(update, Update::Occurrence(pb::Occurrence { what: Some(pb::occurrence::What::Evicted(_)), .. }))
        };
        let whole = until_told(&mut stream, is_evicted).await;
        assert!(whole.iter().any(|update| matches!(update, Update::Change(_))));
        drop(stream);

        // Whatever was seen last, the rest comes, in the same order, and nothing else.
        let starts = std::iter::once(snapshot.resume_token.as_str()).chain(whole.iter().map(token));
        for (seen, start) in starts.enumerate() {
            let mut again = follow(&client, start).await;
            for missed in &whole[seen..] {
                assert_eq!(next(&mut again).await, *missed, "behind {start}");
            }
        }

        let last = token(whole.last().expect("something happened")).to_owned();
        daemon.stop().await;
        daemon.restart().await;
        let client = daemon.client().await;
        let mut stream = follow(&client, &last).await;
        assert!(matches!(next(&mut stream).await, Update::Resync(_)), "states of another run cannot be told exactly");
        let Update::Snapshot(snapshot) = next(&mut stream).await else { panic!("a snapshot follows") };
        assert_eq!(snapshot.models.iter().map(|row| row.model.as_str()).collect::<Vec<_>>(), [SECOND]);
        let bad = pb::WatchRequest { resume_token: "1.2".to_owned(), follow_state: true, ..Default::default() };
        let status = client.node.clone().watch(bad).await.expect_err("no token of ours");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_reads_too_slowly_is_told_to_resync_and_holds_nobody_up() {
    within(120, async {
        let (_origin, daemon, client) = node().await;
        client.ready(&[FIRST]).await;
        // The least that HTTP/2 lets a reader leave unread, instead of the megabytes that it would by default.
        let endpoint = Endpoint::from_shared(format!("unix://{}", daemon.socket().display())).expect("an address");
        let slow = Client::over(endpoint.initial_stream_window_size(65_535).connect().await.expect("it listens"));
        let mut stream = follow(&slow, "").await;
        let Update::Snapshot(_) = next(&mut stream).await else { panic!("a snapshot comes first") };

        let mut slowest = Duration::ZERO;
        let owner = "o".repeat(190);
        for number in 0..CYCLES {
            let begun = Instant::now();
            let lease = client.pin(&[FIRST], &format!("{owner}{number}"), Milliseconds(60_000)).await.expect("pinned");
            client.cache.clone().unpin(pb::UnpinRequest { lease: lease.lease }).await.expect("ended");
            slowest = slowest.max(begun.elapsed());
        }
        assert_within(slowest, Duration::from_secs(2), "what a watcher that does not read could hold up");

        let told = until_told(&mut stream, |update| matches!(update, Update::Resync(_))).await;
        assert!(told.len() < 2 * CYCLES, "it was told everything: {}", told.len());
        let Update::Snapshot(snapshot) = next(&mut stream).await else { panic!("a snapshot follows") };
        assert_eq!(snapshot.models.len(), 1);
        client.pin(&[FIRST], "after", Milliseconds(60_000)).await.expect("pinned");
        let is_pinned = |update: &Update| match update {
            Update::Occurrence(pb::Occurrence { what: Some(pb::occurrence::What::Pinned(pinned)), .. }) => {
                pinned.owner == "after"
            }
            _ => false,
        };
        until_told(&mut stream, is_pinned).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_and_go_and_their_models_move_into_vram_and_out() {
    within(60, async {
        let (_origin, daemon, client) = node().await;
        client.ready(&[FIRST]).await;
        let mut stream = follow(&client, "").await;
        let Update::Snapshot(_) = next(&mut stream).await else { panic!("a snapshot comes first") };
        let mut hints = HintServiceClient::new(client.channel.clone());
        let file = daemon.model(FIRST).display().to_string();
        let model = pb::LoadedModel { file, bytes: 3 * MIB, loaded_bytes: 3 * MIB, ..Default::default() };
        let mut report = pb::ReportRequest {
            worker: "w1".into(),
            seq: 1,
            info: Some(pb::WorkerInfo { pid: 1, ..Default::default() }),
            devices: Some(pb::WorkerDevices {
                devices: vec![pb::WorkerDevice {
                    total_bytes: 64 * MIB,
                    free_bytes: 32 * MIB,
                    models: vec![model],
                    ..Default::default()
                }],
            }),
            ..Default::default()
        };
        hints.report(report.clone()).await.expect("accepted");
        let is_vram = |loaded: bool| {
            move |update: &Update| match update {
                Update::Change(pb::Change { what: Some(pb::change::What::Vram(change)), .. }) => {
                    assert_eq!(change.models, [FIRST]);
                    change.loaded == loaded
                }
                _ => false,
            }
        };
        let told = until_told(&mut stream, is_vram(true)).await;
        let is_seen = |update: &Update| {
            matches!(update, Update::Occurrence(pb::Occurrence { what: Some(pb::occurrence::What::WorkerSeen(_)), .. }))
        };
        assert!(told.iter().any(is_seen), "{told:?}");
        report.seq = 2;
        report.devices = Some(pb::WorkerDevices::default());
        hints.report(report).await.expect("accepted");
        until_told(&mut stream, is_vram(false)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_shrinks_below_what_is_held_is_told_as_pressure() {
    within(60, async {
        let (_origin, mut daemon, client) = node_with(80 * MIB).await;
        client.ready(&[FIRST, SECOND]).await;
        client.pin(&[SECOND], "holder", Milliseconds(600_000)).await.expect("pinned");
        daemon.stop().await;
        daemon.settings(|settings| settings.set("store", "budget", "\"64 MiB\""));
        daemon.restart().await;
        let client = daemon.client().await;
        // Told at the start of the run, before anybody could follow: what is remembered has it.
        let mut stream = follow(&client, "").await;
        let Update::Snapshot(snapshot) = next(&mut stream).await else { panic!("a snapshot comes first") };
        let parts: Vec<&str> = snapshot.resume_token.split('.').collect();
        let start = format!("{}.{}.0", parts[0], parts[1]);
        let mut past = follow(&client, &start).await;
        let is_pressure = |update: &Update| match update {
            Update::Change(pb::Change { what: Some(pb::change::What::Pressure(change)), .. }) => {
                change.tier() == pb::Tier::Nvme && change.pressed && change.bytes > 0
            }
            _ => false,
        };
        until_told(&mut past, is_pressure).await;
        let leases: BTreeMap<u64, String> = client
            .cache
            .clone()
            .list_leases(pb::ListLeasesRequest::default())
            .await
            .expect("listed")
            .into_inner()
            .leases
            .into_iter()
            .map(|lease| (lease.lease, lease.owner))
            .collect();
        for lease in leases.into_keys() {
            client.cache.clone().unpin(pb::UnpinRequest { lease }).await.expect("ended");
        }
        let is_over = |update: &Update| match update {
            Update::Change(pb::Change { what: Some(pb::change::What::Pressure(change)), .. }) => !change.pressed,
            _ => false,
        };
        until_told(&mut stream, is_over).await;
    })
    .await;
}
