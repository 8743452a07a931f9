//! Claims about the main job: a model goes from an origin to ComfyUI's folder, once, however many ask.

use std::time::Duration;

use tierd::rpc::pb;

use crate::rig::{Content, Daemon, FaultOrigin, MIB, PIECE, Settings, within};

const FLUX: &str = "diffusion_models/flux1-schnell.safetensors";
const VAE: &str = "vae/ae.safetensors";

#[tokio::test(flavor = "multi_thread")]
async fn a_first_ensure_brings_the_file_and_the_second_asks_nobody() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(1, 40 * MIB + 4321);
        origin.put(FLUX, &content);
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let client = daemon.client().await;

        let outcome = client.ensure(&[FLUX]).await;
        let plan = outcome.plan.as_ref().expect("a plan comes first");
        assert_eq!((plan.bytes_total, plan.bytes_to_fetch), (content.bytes(), content.bytes()));
        let ready = outcome.ready();
        assert_eq!(ready.bytes_fetched, content.bytes());
        let model = &ready.models[0];
        assert_eq!(model.path, daemon.model(FLUX).display().to_string());
        assert_eq!(
            (model.blob.as_str(), model.from(), model.trust()),
            (&*content.blake3(), pb::Tier::Origin, pb::Trust::FirstUse)
        );
        content.assert_is(&daemon.model(FLUX));
        assert_eq!(origin.sent(FLUX), content.bytes(), "every byte is fetched once");

        origin.forget();
        let again = client.ready(&[FLUX]).await;
        assert_eq!((again.bytes_fetched, again.models[0].from()), (0, pb::Tier::Nvme));
        assert!(origin.gets(FLUX).is_empty(), "a hit reads nothing from the origin: {:?}", origin.log());
        assert!(daemon.files("v1/partial").is_empty(), "nothing unfinished is left: {:?}", daemon.files("v1/partial"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_mixed_sizes_arrives_whole() {
    within(90, async {
        let origin = FaultOrigin::start().await;
        let sizes = [4096, 5000, MIB, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 33 * MIB + 7];
        let models: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(at, &bytes)| (format!("loras/set/model {at}.safetensors"), Content::model(at as u64, bytes)))
            .collect();
        models.iter().for_each(|(name, content)| origin.put(name, content));
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let names: Vec<_> = models.iter().map(|(name, _)| name.as_str()).collect();

        let ready = daemon.client().await.ready(&names).await;
        let order: Vec<_> = ready.models.iter().map(|model| model.model.as_str()).collect();
        assert_eq!(order, names, "rows come in the order asked");
        for (name, content) in &models {
            content.assert_is(&daemon.model(name));
            assert_eq!(origin.sent(name), content.bytes(), "{name}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_only_grows_and_ends_at_the_whole() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(2, 48 * MIB);
        origin.put(FLUX, &content);
        origin.limit_rate(16 * MIB);
        let daemon = Daemon::start(Settings::with_origin(&origin).set("fetch", "connections_max", "2")).await;

        let outcome = daemon.client().await.ensure(&[FLUX]).await;
        outcome.ready();
        assert!(outcome.progress.len() >= 3, "{} messages in more than a second", outcome.progress.len());
        let done: Vec<_> = outcome.progress.iter().map(|progress| progress.bytes_done).collect();
        assert!(done.is_sorted(), "{done:?}");
        assert!(outcome.progress.iter().all(|progress| progress.bytes_total == content.bytes()));
        assert!(outcome.progress.iter().any(|progress| progress.bytes_per_second > 4 * MIB), "a rate is known");
        assert!(origin.connections_peak() <= 3, "2 connections and one for a HEAD: {}", origin.connections_peak());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_digest_is_what_the_content_is_held_to() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let (a, b) = (Content::model(10, 17 * MIB), Content::model(11, 18 * MIB));
        origin.put(FLUX, &a);
        origin.put(VAE, &b);
        origin.put_manifest(&[(FLUX, &a, Some(a.blake3()), None), (VAE, &b, None, Some(b.sha256()))]);
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let client = daemon.client().await;
        client.cache.clone().refresh(pb::RefreshRequest::default()).await.expect("the manifest is read");
        assert_eq!(client.model(FLUX).await.expect("the manifest names it").blob, a.blake3());

        let ready = client.ready(&[FLUX, VAE]).await;
        let trust: Vec<_> = ready.models.iter().map(pb::ReadyModel::trust).collect();
        assert_eq!(trust, [pb::Trust::Blake3, pb::Trust::Sha256]);
        assert_eq!(client.model(VAE).await.expect("stored").sha256, b.sha256());
        a.assert_is(&daemon.model(FLUX));
        b.assert_is(&daemon.model(VAE));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_under_two_names_is_stored_once() {
    within(60, async {
        use std::os::unix::fs::MetadataExt;
        let origin = FaultOrigin::start().await;
        let content = Content::model(12, 12 * MIB);
        let other = "checkpoints/deep/er/same.safetensors";
        origin.put(FLUX, &content);
        origin.put(other, &content);
        origin.put_manifest(&[
            (FLUX, &content, Some(content.blake3()), None),
            (other, &content, Some(content.blake3()), None),
        ]);
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let client = daemon.client().await;
        client.cache.clone().refresh(pb::RefreshRequest::default()).await.expect("the manifest is read");

        client.ready(&[FLUX, other]).await;
        let inode = |model| std::fs::metadata(daemon.model(model)).expect("it is there").ino();
        assert_eq!(inode(FLUX), inode(other));
        assert_eq!(origin.sent(FLUX) + origin.sent(other), content.bytes(), "fetched once");
        let used = client.tier(tierd::rpc::pb::Tier::Nvme).await.used_bytes;
        assert_eq!(used, content.bytes(), "stored once");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_folder_is_an_alias_in_requests_and_at_the_origin() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(13, MIB);
        origin.put("unet/old.safetensors", &content);
        origin.put("text_encoders/new.safetensors", &content);
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let client = daemon.client().await;

        let ready = client.ready(&["diffusion_models/old.safetensors", "clip/new.safetensors"]).await;
        let names: Vec<_> = ready.models.iter().map(|model| model.model.as_str()).collect();
        assert_eq!(names, ["diffusion_models/old.safetensors", "text_encoders/new.safetensors"]);
        names.iter().for_each(|name| content.assert_is(&daemon.model(name)));
        assert!(!daemon.store().join("models/clip").exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_with_odd_characters_arrive_from_an_http_origin() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(14, MIB);
        let names = [
            "loras/a b.safetensors",
            "loras/a+b.safetensors",
            "loras/50%.safetensors",
            "loras/#1 ?.safetensors",
            "loras/été 模型.safetensors",
        ];
        names.iter().for_each(|name| origin.put(name, &content));
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        daemon.client().await.ready(&names).await;
        names.iter().for_each(|name| content.assert_is(&daemon.model(name)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed_in_pages_that_miss_nothing() {
    within(60, async {
        let folder = tempfile::tempdir().expect("a folder");
        let content = Content::model(15, 4096);
        let mut names: Vec<_> = (0..25).map(|at| format!("loras/model-{at:03}.safetensors")).collect();
        names.push("vae/ae.safetensors".to_owned());
        names.iter().for_each(|name| content.write_to(&folder.path().join(name)));
        let daemon = Daemon::start(Settings::default().folder_origin("disk", folder.path())).await;
        let client = daemon.client().await;
        client.cache.clone().refresh(pb::RefreshRequest::default()).await.expect("it is listed");

        let mut seen = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = pb::ListModelsRequest { page_size: 7, page_token, filter: None };
            let page = client.cache.clone().list_models(request).await.expect("a page").into_inner();
            assert!(page.models.len() <= 7);
            assert_eq!(page.total, 26);
            seen.extend(page.models.into_iter().map(|model| model.model));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, names);
        let filter =
            pb::ModelFilter { contains: "MODEL-01".to_owned(), folder: "loras".to_owned(), ..Default::default() };
        let request = pb::ListModelsRequest { filter: Some(filter), ..Default::default() };
        let page = client.cache.clone().list_models(request).await.expect("a page").into_inner();
        assert_eq!((page.total, page.models.len()), (10, 10));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_an_origin_like_any_other() {
    within(60, async {
        let folder = tempfile::tempdir().expect("a folder");
        let content = Content::model(16, 20 * MIB + 1);
        content.write_to(&folder.path().join(FLUX));
        let daemon = Daemon::start(Settings::default().folder_origin("disk", folder.path())).await;
        daemon.client().await.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bandwidth_cap_holds() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(17, 24 * MIB);
        origin.put(FLUX, &content);
        let daemon = Daemon::start(Settings::with_origin(&origin).set("fetch", "bandwidth_max", "\"8 MiB\"")).await;
        let start = tokio::time::Instant::now();
        daemon.client().await.ready(&[FLUX]).await;
        let took = start.elapsed();
        assert!(took > Duration::from_millis(1800), "24 MiB at 8 MiB/s in {took:?}");
        assert!(took < Duration::from_secs(8), "24 MiB at 8 MiB/s in {took:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_origin_serves_what_the_first_does_not_have() {
    within(60, async {
        let (first, second) = (FaultOrigin::start().await, FaultOrigin::start().await);
        let content = Content::model(18, 10 * MIB);
        second.put(FLUX, &content);
        let settings = Settings::default().http_origin("first", &first.url()).http_origin("second", &second.url());
        let daemon = Daemon::start(settings).await;
        daemon.client().await.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_can_be_ensured_after_a_refresh() {
    within(90, async {
        let (bucket, source) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let (a, b) = (Content::model(19, 20 * MIB), Content::model(20, MIB));
        a.write_to(&source.path().join("unet/a.safetensors"));
        b.write_to(&source.path().join("vae/b.safetensors"));
        let daemon = Daemon::start(Settings::default().folder_origin("bucket", bucket.path())).await;
        let cli = daemon.cli();
        let from = source.path().display().to_string();
        cli.run(&["push", &from, "--origin", "bucket", "--json"]).await.assert_code(0);
        cli.run(&["refresh"]).await.assert_code(0);
        let client = daemon.client().await;
        let known = client.model("diffusion_models/a.safetensors").await.expect("it is listed");
        assert_eq!((known.blob, known.sha256), (a.blake3(), a.sha256()), "push writes both digests");
        let ready = client.ready(&["diffusion_models/a.safetensors", "vae/b.safetensors"]).await;
        assert!(ready.models.iter().all(|model| model.trust() == pb::Trust::Blake3));
        a.assert_is(&daemon.model("diffusion_models/a.safetensors"));
        b.assert_is(&daemon.model("vae/b.safetensors"));
    })
    .await;
}
