//! Claims about many callers: one fetch for all, nobody stops another, demand before prefetch.

use tierd::rpc::pb;
use tierd::rpc::pb::ensure_response::Update;

use crate::rig::{Client, Content, Daemon, FaultOrigin, MIB, PIECE, Settings, until, within};

const FLUX: &str = "diffusion_models/flux1-schnell.safetensors";
const VAE: &str = "vae/ae.safetensors";

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_callers_cause_one_fetch() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(3, 64 * MIB);
        origin.put(FLUX, &content);
        origin.allow(MIB);
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let client = daemon.client().await;

        let callers: Vec<_> = (0..32)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.ready(&[FLUX]).await })
            })
            .collect();
        until("all wait", 20, || async { (client.node().await.ensures == 32).then_some(()) }).await;
        assert_eq!(client.node().await.flights, 1);
        origin.heal();
        for caller in callers {
            assert_eq!(caller.await.expect("no caller panics").models[0].blob, content.blake3());
        }
        assert_eq!(origin.sent(FLUX), content.bytes(), "one fetch for all");
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_cancels_nothing_for_the_others() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(4, 32 * MIB);
        origin.put(FLUX, &content);
        origin.allow(MIB);
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let client = daemon.client().await;

        let stays = tokio::spawn({
            let client = client.clone();
            async move { client.ready(&[FLUX]).await }
        });
        let leaves = pb::EnsureRequest { cancel_on_drop: true, ..Client::request(&[FLUX]) };
        let mut stream = client.cache.clone().ensure(leaves).await.expect("it begins").into_inner();
        assert!(matches!(stream.message().await.expect("a plan").and_then(|m| m.update), Some(Update::Plan(_))));
        until("both wait", 20, || async { (client.node().await.ensures == 2).then_some(()) }).await;
        drop(stream);
        until("one has left", 20, || async { (client.node().await.ensures == 1).then_some(()) }).await;
        origin.heal();
        stays.await.expect("the other caller gets its model");
        assert_eq!(origin.sent(FLUX), content.bytes());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_stops_the_fetch_only_if_the_request_says_so() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(5, 32 * MIB);
        origin.put(FLUX, &content);
        origin.put(VAE, &content);
        origin.allow(MIB);
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let client = daemon.client().await;

        for (model, cancel_on_drop) in [(FLUX, true), (VAE, false)] {
            let request = pb::EnsureRequest { cancel_on_drop, ..Client::request(&[model]) };
            let mut stream = client.cache.clone().ensure(request).await.expect("it begins").into_inner();
            stream.message().await.expect("a plan comes first");
            until("it flies", 20, || async { (client.node().await.flights == 1).then_some(()) }).await;
            drop(stream);
            if cancel_on_drop {
                until("the flight ends", 20, || async { (client.node().await.flights == 0).then_some(()) }).await;
                assert!(!daemon.model(model).exists());
            }
        }
        origin.heal();
        until("it is stored with nobody waiting", 30, || async { client.stored(VAE).await.then_some(()) }).await;
        assert!(!client.stored(FLUX).await);
        content.assert_is(&daemon.model(VAE));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_flight_tells_everyone_and_keeps_its_finished_pieces() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(6, 6 * PIECE);
        origin.put(FLUX, &content);
        origin.allow(4 * PIECE);
        let daemon = Daemon::start(Settings::with_origin(&origin).set("fetch", "connections_max", "2")).await;
        let client = daemon.client().await;

        let caller = tokio::spawn({
            let client = client.clone();
            async move { client.ensure(&[FLUX]).await }
        });
        origin.until_sent(FLUX, 4 * PIECE, 20).await;
        let flight = until("three pieces are finished", 20, || async {
            let request = pb::ListFlightsRequest {};
            let flights = client.cache.clone().list_flights(request).await.expect("it answers").into_inner().flights;
            flights.into_iter().find(|flight| flight.bytes_done >= 3 * PIECE)
        })
        .await;
        let cancel = pb::CancelFlightRequest { flight: flight.flight, client: "an operator".to_owned() };
        client.cache.clone().cancel_flight(cancel).await.expect("it is under way");
        let (kind, code, text) = caller.await.expect("no panic").fault();
        assert_eq!((kind, code), (pb::FaultKind::Cancelled, tonic::Code::Cancelled));
        assert!(text.contains("an operator"), "{text}");

        origin.heal();
        origin.forget();
        client.ready(&[FLUX]).await;
        assert!(origin.sent(FLUX) <= 3 * PIECE, "finished pieces are kept: {} sent", origin.sent(FLUX));
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_waits_for_nobody_and_is_upgraded_when_someone_asks() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(7, 24 * MIB);
        origin.put(FLUX, &content);
        origin.allow(MIB);
        let daemon = Daemon::start(Settings::with_origin(&origin)).await;
        let client = daemon.client().await;

        let request =
            pb::PrefetchRequest { models: vec![FLUX.to_owned()], client: String::new(), ..Default::default() };
        let plan = client.cache.clone().prefetch(request).await.expect("a guess is taken").into_inner().plan;
        assert_eq!(plan.expect("always set").models[0].model, FLUX);
        let only_flight = || async {
            let request = pb::ListFlightsRequest {};
            let flights = client.cache.clone().list_flights(request).await.expect("it answers").into_inner().flights;
            flights.into_iter().next()
        };
        let guess =
            until("nobody waits", 20, || async { only_flight().await.filter(|flight| flight.waiters == 0) }).await;
        assert_eq!(guess.priority(), pb::Priority::Prefetch);

        let caller = tokio::spawn({
            let client = client.clone();
            async move { client.ready(&[FLUX]).await }
        });
        let demand =
            until("somebody waits", 20, || async { only_flight().await.filter(|flight| flight.waiters == 1) }).await;
        assert_eq!(
            (demand.flight, demand.priority()),
            (guess.flight, pb::Priority::Demand),
            "the same flight, upgraded"
        );
        origin.heal();
        caller.await.expect("no panic");
        assert_eq!(origin.sent(FLUX), content.bytes());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn demand_goes_before_prefetch() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let (guess, demand) = (Content::model(8, 16 * PIECE), Content::model(9, 2 * PIECE));
        origin.put(FLUX, &guess);
        origin.put(VAE, &demand);
        origin.limit_rate(16 * MIB);
        let daemon = Daemon::start(Settings::with_origin(&origin).set("fetch", "connections_max", "2")).await;
        let client = daemon.client().await;

        let request =
            pb::PrefetchRequest { models: vec![FLUX.to_owned()], client: String::new(), ..Default::default() };
        client.cache.clone().prefetch(request).await.expect("a guess is taken");
        origin.until_sent(FLUX, MIB, 20).await;
        client.ready(&[VAE]).await;
        let sent = origin.sent(FLUX);
        assert!(sent <= 6 * PIECE, "the guess went on at full speed beside demand: {sent} bytes");
        assert!(!client.stored(FLUX).await);
    })
    .await;
}
