//! Claims about room on the disk: leases, eviction and its reasons, sets that cannot fit.

use tierd::rpc::pb;
use tierd::rpc::pb::occurrence::What;
use tonic::Code;

use crate::rig::client::Milliseconds;
use crate::rig::{Client, Content, Daemon, FaultOrigin, MIB, Settings, until, within};

const NAMES: [&str; 5] =
    ["loras/a.safetensors", "loras/b.safetensors", "loras/c.safetensors", "loras/d.safetensors", "loras/e.safetensors"];

/// A daemon with room for 100 MiB, and an origin with five models of 30 MiB.
async fn small_node() -> (FaultOrigin, Daemon, Client) {
    let origin = FaultOrigin::start().await;
    for (seed, name) in NAMES.iter().enumerate() {
        origin.put(name, &Content::model(100 + seed as u64, 30 * MIB));
    }
    let daemon = Daemon::start(Settings::with_origin(&origin).set("store", "budget", "\"100 MiB\"")).await;
    let client = daemon.client().await;
    (origin, daemon, client)
}

/// Models that were evicted, in order, with the model that wanted their room (or who asked).
async fn evictions(client: &Client) -> Vec<(String, String)> {
    let events = client.events().await.into_iter();
    events
        .filter_map(|event| match event.what {
            Some(What::Evicted(evicted)) => {
                let why = match evicted.reason.expect("an eviction has a reason") {
                    pb::evicted_occurrence::Reason::Room(room) => room.wanted_by,
                    pb::evicted_occurrence::Reason::Asked(asked) => asked.by,
                    other => format!("{other:?}"),
                };
                Some((evicted.model, why))
            }
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_model_goes_first_and_the_reason_is_recorded() {
    within(60, async {
        let (_origin, daemon, client) = small_node().await;
        for name in &NAMES[..3] {
            client.ready(&[name]).await;
        }
        client.ready(&[NAMES[0]]).await;
        client.ready(&[NAMES[3]]).await;
        assert_eq!(evictions(&client).await, [(NAMES[1].to_owned(), NAMES[3].to_owned())]);
        assert!(!daemon.model(NAMES[1]).exists(), "its name is gone");
        assert!(daemon.model(NAMES[0]).exists(), "what was used since stays");
        let used: u64 = daemon.files("v1/blobs").values().sum();
        assert!(used <= 100 * MIB, "{used}");

        let listed = daemon.cli().run(&["events", "--json"]).await.assert_code(0);
        assert!(listed.out.contains("evicted") && listed.out.contains(NAMES[1]), "{}", listed.out);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_model_is_never_evicted_until_its_lease_ends() {
    within(60, async {
        let (_origin, daemon, client) = small_node().await;
        for name in &NAMES[..3] {
            client.ready(&[name]).await;
        }
        let lease = client.pin(&[NAMES[0], NAMES[1]], "launcher", Milliseconds(600_000)).await.expect("pinned");
        client.ready(&[NAMES[3]]).await;
        assert_eq!(evictions(&client).await[0].0, NAMES[2], "the only one that nothing holds");
        let kept = client.evict(&[NAMES[0]]).await.expect("the call itself is good").kept;
        assert_eq!(kept[0].fault.as_ref().expect("always set").kind(), pb::FaultKind::Held);

        let (kind, code, _) = client.ensure(&[NAMES[2], NAMES[4]]).await.fault();
        assert_eq!((kind, code), (pb::FaultKind::NoRoom, Code::ResourceExhausted), "60 MiB are pinned");
        let unpin = pb::UnpinRequest { lease: lease.lease };
        client.cache.clone().unpin(unpin).await.expect("it is held");
        client.ready(&[NAMES[2], NAMES[4]]).await;
        assert!(daemon.model(NAMES[4]).exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_by_itself() {
    within(60, async {
        let (_origin, daemon, client) = small_node().await;
        client.ready(&[NAMES[0]]).await;
        client.pin(&[NAMES[0]], "dead client", Milliseconds(700)).await.expect("pinned");
        assert_eq!(client.node().await.leases, 1);
        let expired = daemon
            .until_event("the lease expires", |event| match &event.what {
                Some(What::Unpinned(unpinned)) => Some(unpinned.clone()),
                _ => None,
            })
            .await;
        assert_eq!((expired.owner.as_str(), expired.expired), ("dead client", true));
        assert_eq!(client.node().await.leases, 0);
        assert_eq!(client.evict(&[NAMES[0]]).await.expect("it is free").evicted.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_cannot_fit_is_refused_at_once_with_the_numbers() {
    within(60, async {
        let (origin, _daemon, client) = small_node().await;
        client.ready(&[NAMES[0]]).await;
        origin.forget();
        let outcome = client.ensure(&NAMES[1..]).await;
        let (kind, code, _) = outcome.fault();
        assert_eq!((kind, code), (pb::FaultKind::NoRoom, Code::ResourceExhausted));
        let fault = outcome.failed.and_then(|failed| failed.fault).expect("a failed end has a fault");
        assert_eq!(fault.needed_bytes, Some(120 * MIB));
        assert_eq!((fault.free_bytes, fault.evictable_bytes), (Some(70 * MIB), Some(30 * MIB)));
        assert!(origin.log().iter().all(|served| served.method == "HEAD"), "not a byte was fetched");
        assert!(evictions(&client).await.is_empty(), "nothing was evicted for it");

        let status = outcome.status.expect("a failed call has a status");
        let info = tonic_types::StatusExt::get_details_error_info(&status).expect("it has details");
        assert_eq!(info.reason, "NO_ROOM");
        assert_eq!(info.metadata.get("needed_bytes").map(String::as_str), Some("125829120"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_holds_while_a_download_runs() {
    within(60, async {
        let (origin, _daemon, client) = small_node().await;
        origin.allow(50 * MIB);
        let running = tokio::spawn({
            let client = client.clone();
            async move { client.ready(&NAMES[..3]).await }
        });
        until("room is reserved for all", 20, || async {
            let tier = client.tier(pb::Tier::Nvme).await;
            (tier.used_bytes + tier.reserved_bytes == 90 * MIB).then_some(())
        })
        .await;
        let (kind, ..) = client.ensure(&[NAMES[4]]).await.fault();
        assert_eq!(kind, pb::FaultKind::NoRoom, "what is in flight is not evictable");
        origin.heal();
        running.await.expect("the first set arrives");
        client.ready(&[NAMES[4]]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_on_request_names_who_asked() {
    within(60, async {
        let (_origin, daemon, client) = small_node().await;
        client.ready(&[NAMES[0]]).await;
        let report = client.evict(&[NAMES[0], NAMES[1]]).await.expect("the call is good");
        assert_eq!((report.evicted.len(), report.bytes_freed), (1, 30 * MIB));
        assert_eq!(report.kept[0].model, NAMES[1]);
        assert_eq!(evictions(&client).await, [(NAMES[0].to_owned(), "test".to_owned())]);
        assert!(!daemon.model(NAMES[0]).exists());
        assert!(daemon.files("v1/blobs").is_empty());
        let tier = client.tier(pb::Tier::Nvme).await;
        assert_eq!((tier.used_bytes, tier.reserved_bytes), (0, 0));
    })
    .await;
}
