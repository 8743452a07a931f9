//! Claims about servers that other people wrote: SeaweedFS, nginx, rclone.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tierd::rpc::pb;
use tierd::rpc::pb::FaultKind;

use crate::rig::http::ask;
use crate::rig::servers::{KEY, SECRET, Weed, nginx, rclone, s3_origin};
use crate::rig::{Content, Daemon, MIB, Settings, assert_within, until, within};

const FLUX: &str = "diffusion_models/flux1-schnell.safetensors";
const ODD: [&str; 6] = [
    "loras/a b.safetensors",
    "loras/a+b&c=d.safetensors",
    "loras/50%25 off.safetensors",
    "loras/#1.safetensors",
    "loras/(x) [y] {z} ~!$',;@.safetensors",
    "loras/été/模型.safetensors",
];

#[tokio::test(flavor = "multi_thread")]
async fn seaweed_what_was_pushed_is_listed_ranged_and_verified() {
    within(150, async {
        let Some(weed) = Weed::start("seaweed_push", "models").await else { return };
        let source = tempfile::tempdir().expect("a folder");
        let big = Content::model(600, 70 * MIB + 1);
        big.write_to(&source.path().join(FLUX));
        let small = Content::model(601, 300_000);
        ODD.iter().for_each(|name| small.write_to(&source.path().join(name)));
        let daemon = Daemon::prepare(Settings::default());
        let origin = weed.origin("weed", "models", daemon.dir());
        let mut daemon = daemon;
        daemon.settings(|settings| settings.origin(&origin));
        daemon.restart().await;
        let cli = daemon.cli();
        let from = source.path().display().to_string();
        cli.run(&["push", &from, "--origin", "weed"]).await.assert_code(0);
        cli.run(&["refresh"]).await.assert_code(0);

        let client = daemon.client().await;
        let names: Vec<_> = ODD.into_iter().chain([FLUX]).collect();
        let ready = client.ready(&names).await;
        assert!(ready.models.iter().all(|model| model.trust() == pb::Trust::Blake3));
        big.assert_is(&daemon.model(FLUX));
        ODD.iter().for_each(|name| small.assert_is(&daemon.model(name)));
        assert_eq!(client.node().await.origins[0].state(), pb::OriginState::Up);

        let again = cli.run(&["push", &from, "--origin", "weed", "--json"]).await.assert_code(0);
        assert!(!again.out.is_empty(), "a second push says that it sent nothing");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweed_an_object_replaced_midway_is_never_mixed() {
    within(150, async {
        let Some(weed) = Weed::start("seaweed_replaced", "models").await else { return };
        let path = format!("/buckets/models/{FLUX}");
        let (first, second) = (Content::model(602, 40 * MIB), Content::model(603, 40 * MIB));
        let (status, body) = ask(&weed.filer, "PUT", &path, &first.to_vec()).await.expect("the filer answers");
        assert_eq!(status, 201, "{body}");
        let mut daemon = Daemon::prepare(Settings::default());
        let origin = weed.origin("weed", "models", daemon.dir());
        daemon.settings(|settings| {
            let slow = settings.set("fetch", "bandwidth_max", "\"5 MiB\"").set("fetch", "connections_max", "2");
            slow.origin(&origin)
        });
        daemon.restart().await;
        let client = daemon.client().await;
        let caller = tokio::spawn({
            let client = client.clone();
            async move { client.ready(&[FLUX]).await }
        });
        until("it is half way", 30, || async {
            let request = pb::ListFlightsRequest {};
            let flights = client.cache.clone().list_flights(request).await.expect("it answers").into_inner().flights;
            flights.first().is_some_and(|flight| flight.bytes_done >= 8 * MIB).then_some(())
        })
        .await;
        // Asleep while it is replaced, however long that takes here: it must not be done with the first one before.
        daemon.signal(Signal::STOP);
        let replaced = ask(&weed.filer, "PUT", &path, &second.to_vec()).await;
        daemon.signal(Signal::CONT);
        let (status, body) = replaced.expect("the filer answers");
        assert_eq!(status, 201, "{body}");
        let ready = caller.await.expect("it ends well");
        assert_eq!(ready.models[0].blob, second.blake3());
        second.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweed_wrong_keys_a_missing_bucket_and_a_dead_server_are_told_apart() {
    within(150, async {
        let Some(mut weed) = Weed::start("seaweed_refusals", "models").await else { return };
        let content = Content::model(604, 9 * MIB);
        for name in [FLUX, "vae/ae.safetensors"] {
            let path = format!("/buckets/models/{name}");
            ask(&weed.filer, "PUT", &path, &content.to_vec()).await.expect("the filer answers");
        }
        let dir = tempfile::tempdir().expect("a folder");
        let secret = "not-the-secret-of-anyone";
        let wrong = s3_origin("wrong", &weed.s3.url(), "models", dir.path(), KEY, secret);
        let missing = s3_origin("missing", &weed.s3.url(), "no-such-bucket", dir.path(), KEY, SECRET);
        for (origin, word) in [(wrong, "SignatureDoesNotMatch"), (missing, "NoSuchBucket")] {
            let daemon = Daemon::start(Settings::default().origin(&origin)).await;
            let (kind, _, text) = daemon.client().await.ensure(&[FLUX]).await.fault();
            assert_eq!(kind, FaultKind::OriginDenied, "{text}");
            assert!(text.contains(word), "{text}");
            let done = daemon.cli().run(&["ensure", FLUX]).await;
            assert_ne!(done.code, 0);
            assert!(done.err.contains(word), "{}", done.err);
            assert!(!daemon.log().contains(secret) && !daemon.log().contains(SECRET), "a secret is in the log");
        }

        let mut daemon = Daemon::start(Settings::default().origin(&weed.origin("weed", "models", dir.path()))).await;
        daemon.client().await.ready(&[FLUX]).await;
        daemon.stop().await;
        weed.s3.kill();
        daemon.settings(|settings| settings.set("fetch", "attempts_max", "3"));
        daemon.restart().await;
        let client = daemon.client().await;
        let known = client.model("vae/ae.safetensors").await.expect("the catalog outlives a restart");
        assert_eq!(known.bytes, content.bytes());
        client.ready(&[FLUX]).await;
        let (kind, _, text) = client.ensure(&["vae/ae.safetensors"]).await.fault();
        assert_eq!(kind, FaultKind::OriginUnavailable, "{text}");
        daemon.cli().run(&["ensure", "vae/ae.safetensors"]).await.assert_code(5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweed_ten_thousand_objects_are_listed_in_bounded_time() {
    within(200, async {
        const OBJECTS: usize = 10_000;
        let Some(weed) = Weed::start("seaweed_ten_thousand", "models").await else { return };
        let filer = Arc::new(weed.filer.clone());
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..16 {
            let filer = Arc::clone(&filer);
            writers.spawn(async move {
                for object in (writer..OBJECTS).step_by(16) {
                    let path = format!("/buckets/models/loras/set-{:02}/model-{object:05}.safetensors", object % 40);
                    let (status, body) = ask(&filer, "PUT", &path, b"tiny").await.expect("the filer answers");
                    assert_eq!(status, 201, "{body}");
                }
            });
        }
        while let Some(done) = writers.join_next().await {
            done.expect("all are written");
        }
        let mut daemon = Daemon::prepare(Settings::default());
        let origin = weed.origin("weed", "models", daemon.dir());
        daemon.settings(|settings| settings.origin(&origin));
        daemon.restart().await;
        let client = daemon.client().await;
        let start = tokio::time::Instant::now();
        client.cache.clone().refresh(pb::RefreshRequest::default()).await.expect("it is listed");
        let took = start.elapsed();
        assert_eq!(client.node().await.models_known, OBJECTS as u64);
        println!("{OBJECTS} objects listed in {took:?}");
        assert_within(took, Duration::from_secs(30), "the list");
        let request = pb::ListModelsRequest { page_size: 1000, ..Default::default() };
        let page = client.cache.clone().list_models(request).await.expect("a page").into_inner();
        assert_eq!((page.models.len(), page.total), (1000, OBJECTS as u64));
    })
    .await;
}

/// Fetches a model of 64 MiB at 4 MiB a second for each connection: one alone would take 16 s.
async fn assert_read_by_several(daemon: &Daemon) {
    let client = daemon.client().await;
    let start = tokio::time::Instant::now();
    let fetch = tokio::spawn({
        let client = client.clone();
        async move { client.ready(&[FLUX]).await }
    });
    let mut most = 0;
    while !fetch.is_finished() {
        most = most.max(client.node().await.origins[0].connections);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fetch.await.expect("it ends well");
    assert!(most > 1, "one connection at a time");
    assert_within(start.elapsed(), Duration::from_secs(8), "what one connection gets in 16 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweed_behind_nginx_that_throttles_each_connection_is_read_by_several() {
    within(150, async {
        let Some(weed) = Weed::start("seaweed_behind_nginx", "models").await else { return };
        let root = tempfile::tempdir().expect("a folder");
        let more = format!(
            "location / {{ proxy_pass {}; proxy_http_version 1.1; proxy_set_header Host $http_host;
             proxy_set_header Connection \"\"; proxy_max_temp_file_size 0; limit_rate 4m; }}",
            weed.s3.url()
        );
        let Some(proxy) = nginx("seaweed_behind_nginx", root.path(), &more).await else { return };
        let content = Content::model(605, 64 * MIB);
        let path = format!("/buckets/models/{FLUX}");
        let (status, body) = ask(&weed.filer, "PUT", &path, &content.to_vec()).await.expect("the filer answers");
        assert_eq!(status, 201, "{body}");
        let mut daemon = Daemon::prepare(Settings::default());
        let origin = s3_origin("proxied", &proxy.url(), "models", daemon.dir(), KEY, SECRET);
        daemon.settings(|settings| settings.origin(&origin));
        daemon.restart().await;
        assert_read_by_several(&daemon).await;
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_serves_odd_names_and_says_404() {
    within(90, async {
        let root = tempfile::tempdir().expect("a folder");
        let content = Content::model(606, MIB + 3);
        ODD.iter().chain([&FLUX]).for_each(|name| content.write_to(&root.path().join(name)));
        let Some(server) = nginx("nginx_odd_names", root.path(), "").await else { return };
        let daemon = Daemon::start(Settings::default().http_origin("nginx", &server.url())).await;
        let client = daemon.client().await;
        client.ready(&ODD).await;
        ODD.iter().for_each(|name| content.assert_is(&daemon.model(name)));
        assert_eq!(client.ensure(&["vae/none.safetensors"]).await.fault().0, FaultKind::NotFound);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_that_throttles_each_connection_is_read_by_several() {
    within(90, async {
        let root = tempfile::tempdir().expect("a folder");
        let content = Content::model(607, 64 * MIB);
        content.write_to(&root.path().join(FLUX));
        let Some(server) = nginx("nginx_throttled", root.path(), "limit_rate 4m;").await else { return };
        let daemon = Daemon::start(Settings::default().http_origin("nginx", &server.url())).await;
        assert_read_by_several(&daemon).await;
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_that_answers_ranges_with_everything_still_gives_the_right_bytes() {
    within(120, async {
        let root = tempfile::tempdir().expect("a folder");
        let content = Content::model(608, 40 * MIB + 9);
        content.write_to(&root.path().join("models").join(FLUX));
        let Some(server) = rclone("rclone_hostile", root.path()).await else { return };
        let mut daemon = Daemon::prepare(Settings::default());
        let origin = s3_origin("rclone", &server.url(), "models", daemon.dir(), KEY, SECRET);
        daemon.settings(|settings| settings.origin(&origin));
        daemon.restart().await;
        let client = daemon.client().await;
        client.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}
