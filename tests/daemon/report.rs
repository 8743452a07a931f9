//! Claims about reports: they add up what a real daemon did, survive restarts and kills, and refuse what makes no sense.

use tierd::rpc::pb;
use tierd::rpc::pb::report_service_client::ReportServiceClient;
use tierd::rpc::time::Duration;

use crate::rig::{Client, Content, Daemon, FaultOrigin, MIB, Settings, within};

const A: &str = "loras/a.safetensors";
const B: &str = "loras/b.safetensors";

async fn report(client: &Client, since: Option<Duration>) -> Result<pb::GetReportResponse, tonic::Status> {
    let mut reports = ReportServiceClient::new(client.channel.clone());
    Ok(reports.get_report(pb::GetReportRequest { since }).await?.into_inner())
}

async fn node() -> (FaultOrigin, Daemon) {
    let origin = FaultOrigin::start().await;
    origin.put(A, &Content::model(950, 6 * MIB));
    origin.put(B, &Content::model(951, 10 * MIB));
    let daemon = Daemon::start(Settings::with_origin(&origin)).await;
    (origin, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_adds_up_what_happened_and_survives_a_restart() {
    within(60, async {
        let (origin, mut daemon) = node().await;
        let client = daemon.client().await;
        origin.limit_rate(8 * MIB);
        client.ready(&[A, B]).await;
        for _ in 0..3 {
            client.ready(&[A]).await;
        }
        client.evict(&[B]).await.expect("it may go");
        assert!(client.ensure(&["loras/none.safetensors"]).await.ready.is_none());

        let told = report(&client, None).await.expect("a report");
        let period = told.period.clone().expect("always set");
        let models = |found: &Option<pb::FoundModels>| found.map(|found| (found.models, found.bytes));
        assert_eq!(models(&period.origin), Some((2, 16 * MIB)), "{period:?}");
        assert_eq!(models(&period.nvme), Some((3, 18 * MIB)));
        assert_eq!((period.ensures_ready, period.ensures_failed), (4, 1));
        assert!((period.hit_ratio.expect("known") - 0.6).abs() < 1e-9);
        assert_eq!(period.evicted.len(), 1);
        assert_eq!((period.evicted[0].reason.as_str(), period.evicted[0].models), ("asked", 1));
        let lab = period.origins.iter().find(|row| row.origin == "lab").expect("it gave all of it");
        assert!(lab.bytes >= 16 * MIB && lab.requests >= 2 && lab.requests_failed == 0, "{lab:?}");
        let saved = told.saved.expect("always set");
        assert_eq!(saved.bytes, 18 * MIB);
        // 16 MiB took a second or more for who waited; 18 MiB more would have as well.
        let waiting = saved.waiting.and_then(Duration::to_std).expect("there is a rate").as_secs_f64();
        let expected = (18 * MIB) as f64 / saved.fetch_bytes_per_second as f64;
        assert!(saved.fetch_bytes_per_second > 0 && waiting > 0.0 && waiting <= expected + 0.1, "{saved:?}");
        assert!(told.regressions.is_empty(), "{told:?}");

        daemon.stop().await;
        daemon.restart().await;
        let again = report(&daemon.client().await, None).await.expect("a report");
        assert_eq!(again.period.and_then(|period| period.nvme), period.nvme, "the restart lost it");
        assert_eq!(again.recorded_from, told.recorded_from);

        let done = daemon.cli().run(&["report"]).await.assert_code(0);
        for line in ["saved: 18 MiB not fetched again", "60.0 %", "lab", "asked"] {
            assert!(done.out.contains(line), "no {line} in {}", done.out);
        }
        let json = daemon.cli().run(&["report", "--since", "7d", "--json"]).await.assert_code(0).json();
        assert_eq!((&json[0]["hours"], &json[0]["saved"]["bytes"]), (&168.into(), &(18 * MIB).into()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_goes_on_with_the_record_that_it_wrote() {
    within(60, async {
        let (_origin, mut daemon) = node().await;
        daemon.client().await.ready(&[A]).await;
        daemon.stop().await;
        daemon.restart().await;
        daemon.client().await.ready(&[A]).await;
        daemon.kill();
        daemon.restart().await;
        let told = report(&daemon.client().await, None).await.expect("a report");
        let period = told.period.expect("always set");
        assert_eq!(period.origin.map(|found| found.models), Some(1), "what was written before the kill: {period:?}");
        // A record that is damaged is begun again, and stops nobody.
        daemon.stop().await;
        let damaged = daemon.store().join("v1/catalog/report-1-present.json");
        std::fs::write(&damaged, b"tierd state 1 nonsense").expect("it is there to be damaged");
        daemon.restart().await;
        let told = report(&daemon.client().await, None).await.expect("a report");
        assert_eq!(told.period.expect("always set").ensures_ready, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_are_not_remembered_are_refused_by_field() {
    within(30, async {
        let (_origin, daemon) = node().await;
        let client = daemon.client().await;
        for seconds in [0, -5, 32 * 86_400] {
            let status = report(&client, Some(Duration { seconds, nanos: 0 })).await.expect_err("refused");
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{seconds}: {status}");
        }
        let told =
            report(&client, Some(Duration { seconds: 1, nanos: 0 })).await.expect("a part of an hour is an hour");
        assert_eq!(told.hours, 1);
        daemon.cli().run(&["report", "--since", "40d"]).await.assert_code(2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_says_what_a_model_is_worth_who_goes_next_and_what_was_decided_with_its_numbers() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let names: Vec<String> = (0..4).map(|n| format!("loras/{n}.safetensors")).collect();
        for (n, name) in names.iter().enumerate() {
            origin.put(name, &Content::model(960 + n as u64, 20 * MIB));
        }
        let settings = Settings::with_origin(&origin).set("store", "budget", "\"64 MiB\"");
        let daemon = Daemon::start(settings).await;
        let client = daemon.client().await;
        for _ in 0..4 {
            client.ready(&[&names[0]]).await;
        }
        client.ready(&[&names[1]]).await;
        client.ready(&[&names[2]]).await;
        client.ready(&[&names[2]]).await;
        let mut reports = ReportServiceClient::new(client.channel.clone());
        let mut explain = async |model: &str| {
            reports.explain(pb::ExplainRequest { model: model.to_owned() }).await.map(tonic::Response::into_inner)
        };
        let popular = explain(&names[0]).await.expect("it is there");
        let disk = popular.tiers.first().expect("it is on the disk");
        assert_eq!((popular.policy.as_str(), disk.before, disk.next.as_str()), ("value", Some(2), names[1].as_str()));
        let standing = disk.standing.expect("value weighs");
        assert!(standing.worth > disk.next_worth.expect("value weighs") && standing.uses_per_day > 1.0, "{standing:?}");
        assert_eq!(popular.decisions[0].kind(), pb::DecisionKind::Fetched);

        client.ready(&[&names[3]]).await;
        let gone = explain(&names[1]).await.expect("an origin has it");
        assert!(gone.tiers.is_empty() && gone.last_used.is_none(), "{gone:?}");
        let last = gone.decisions.last().expect("it was evicted");
        assert_eq!((last.kind(), last.wanted_by.as_str()), (pb::DecisionKind::Evicted, names[3].as_str()));
        assert!(last.reason.contains("value chose this one") && last.worth.is_some(), "{last:?}");
        client.evict(&[&names[3]]).await.expect("it may go");
        let asked = explain(&names[3]).await.expect("an origin has it");
        let last = asked.decisions.last().expect("it was evicted");
        assert!(last.kind() == pb::DecisionKind::Evicted && last.reason.ends_with("asked for it"), "{last:?}");
        let nobody = explain("loras/none.safetensors").await.expect_err("nobody knows it");
        assert_eq!(nobody.code(), tonic::Code::NotFound);

        let done = daemon.cli().run(&["why", &names[1]]).await.assert_code(0);
        for line in ["it is not on this node", "evicted", "fetched", "needed the room"] {
            assert!(done.out.contains(line), "no {line} in {}", done.out);
        }
        let done = daemon.cli().run(&["why", &names[0]]).await.assert_code(0);
        assert!(done.out.contains("would go before it") && done.out.contains("uses a day"), "{}", done.out);
        daemon.cli().run(&["why", "loras/none.safetensors"]).await.assert_code(3);
    })
    .await;
}
