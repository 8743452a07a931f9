//! Claims about origins that misbehave: what can be mended is mended within the retry budget, what cannot is a typed fault, and
//! a bad byte is never shown.

use std::time::Duration;

use tierd::rpc::pb::FaultKind;
use tonic::Code;

use crate::rig::{Client, Content, Daemon, Fault, FaultOrigin, MIB, PIECE, Settings, assert_within, until, within};

const FLUX: &str = "diffusion_models/flux1-schnell.safetensors";
const ALWAYS: u64 = u64::MAX;

/// A daemon that tries four times, and an origin with one model of five pieces.
async fn lab() -> (FaultOrigin, Content, Daemon, Client) {
    let origin = FaultOrigin::start().await;
    let content = Content::model(400, 5 * PIECE - 4321);
    origin.put(FLUX, &content);
    let daemon = Daemon::start(Settings::with_hasty_origin(&origin).set("fetch", "attempts_max", "4")).await;
    let client = daemon.client().await;
    (origin, content, daemon, client)
}

/// The same with two connections, so that later pieces are asked for later.
async fn narrow_lab() -> (FaultOrigin, Content, Daemon, Client) {
    let (origin, content, mut daemon, _) = lab().await;
    daemon.stop().await;
    daemon.settings(|settings| settings.set("fetch", "connections_max", "2"));
    daemon.restart().await;
    let client = daemon.client().await;
    (origin, content, daemon, client)
}

/// The fault heals within the retries: the model arrives, bit-exact.
async fn heals(times: u64, fault: Fault) {
    within(60, async {
        let (origin, content, daemon, client) = lab().await;
        origin.fault_at(FLUX, PIECE + 5, times, fault.clone());
        client.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        let tries = origin.log().iter().filter(|served| served.range.contains(&(PIECE + 5))).count();
        assert!(tries as u64 > times, "{fault:?} was met {times} times: {tries} requests covered it");
    })
    .await;
}

/// The fault stays: a typed fault within the retry budget, nothing shown, and a later ensure succeeds.
async fn fails_then_recovers(fault: Fault, kind: FaultKind, code: Code) {
    within(90, async {
        let (origin, content, daemon, client) = lab().await;
        origin.fault_at(FLUX, PIECE + 5, ALWAYS, fault.clone());
        let outcome = client.ensure(&[FLUX]).await;
        let (got, status, text) = outcome.fault();
        assert_eq!((got, status), (kind, code), "{fault:?}: {text}");
        assert!(!daemon.model(FLUX).exists());
        assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        let tries = origin.log().iter().filter(|served| served.range.contains(&(PIECE + 5))).count();
        assert!(tries <= 4 * 2 + 2, "{tries} requests for one piece with 4 attempts");

        origin.heal();
        let ready = client.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        assert!(ready.bytes_fetched < content.bytes(), "the good pieces were kept");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_connection_is_tried_again() {
    heals(2, Fault::Reset(MIB + 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_body_is_given_up_and_tried_again() {
    heals(2, Fault::Stall(3 * MIB)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_never_begins_is_given_up_and_tried_again() {
    heals(1, Fault::Silent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_closed_early_is_tried_again() {
    heals(2, Fault::Close(2 * MIB)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_short_by_its_own_word_is_tried_again() {
    heals(2, Fault::Short(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_errors_are_ridden_out() {
    heals(3, Fault::Status(500, vec![])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_that_do_not_end_are_an_unavailable_origin() {
    fails_then_recovers(Fault::Reset(1000), FaultKind::OriginUnavailable, Code::Unavailable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalls_that_do_not_end_are_an_unavailable_origin() {
    fails_then_recovers(Fault::Stall(1000), FaultKind::OriginUnavailable, Code::Unavailable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncations_that_do_not_end_are_an_unavailable_origin() {
    fails_then_recovers(Fault::Close(1000), FaultKind::OriginUnavailable, Code::Unavailable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_errors_that_do_not_end_are_an_unavailable_origin_with_its_status() {
    within(60, async {
        let (origin, _content, daemon, client) = lab().await;
        origin.fault_get(FLUX, ALWAYS, Fault::Status(503, vec![]));
        let outcome = client.ensure(&[FLUX]).await;
        assert_eq!(outcome.fault().0, FaultKind::OriginUnavailable);
        let fault = outcome.failed.and_then(|failed| failed.fault).expect("a failed end has a fault");
        assert_eq!((fault.http_status, fault.origin.as_str()), (Some(503), "lab"));
        let status = outcome.status.expect("a failed call has a status");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some(), "it says when to ask again");
        let done = daemon.cli().run(&["ensure", FLUX]).await.assert_code(5);
        assert!(done.err.contains("503"), "{}", done.err);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(401, MIB);
        origin.put(FLUX, &content);
        let settings = Settings::with_hasty_origin(&origin).set("fetch", "backoff_max", "\"5s\"");
        let daemon = Daemon::start(settings).await;
        origin.fault_get(FLUX, 1, Fault::Status(503, vec![("Retry-After", "2".to_owned())]));
        let start = tokio::time::Instant::now();
        daemon.client().await.ready(&[FLUX]).await;
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(1900), "it asked again after {took:?}");
        assert_within(took, Duration::from_secs(10), "a wait of two seconds");
        let statuses: Vec<_> = origin.log().iter().filter(|get| get.method == "GET").map(|get| get.status).collect();
        assert_eq!(statuses.iter().filter(|&&status| status == 503).count(), 1, "{statuses:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_no_origin_has_is_not_found() {
    within(60, async {
        let (_origin, _content, daemon, client) = lab().await;
        let (kind, code, text) = client.ensure(&["vae/none.safetensors"]).await.fault();
        assert_eq!((kind, code), (FaultKind::NotFound, Code::NotFound));
        assert!(text.contains("vae/none.safetensors"), "{text}");
        daemon.cli().run(&["ensure", "vae/none.safetensors"]).await.assert_code(3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_refuses_is_told_apart_from_one_that_is_down() {
    within(60, async {
        let (origin, _content, _daemon, client) = lab().await;
        origin.fault(FLUX, ALWAYS, Fault::Status(403, vec![]));
        let (kind, code, text) = client.ensure(&[FLUX]).await.fault();
        assert_eq!((kind, code), (FaultKind::OriginDenied, Code::FailedPrecondition), "{text}");
        assert!(text.contains("403") || text.contains("lab"), "{text}");
        assert!(origin.log().len() <= 8, "a refusal is not tried again and again: {:?}", origin.log());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_gone_is_unavailable_in_bounded_time_and_comes_back() {
    within(60, async {
        let dead = format!("http://127.0.0.1:{}/", crate::rig::free_port());
        let daemon =
            Daemon::start(Settings::default().http_origin("gone", &dead).set("fetch", "attempts_max", "3")).await;
        let client = daemon.client().await;
        let (kind, code, text) = client.ensure(&[FLUX]).await.fault();
        assert_eq!((kind, code), (FaultKind::OriginUnavailable, Code::Unavailable), "{text}");
        assert!(text.contains("gone"), "the message names the origin: {text}");
        daemon.cli().run(&["ensure", FLUX]).await.assert_code(5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_piece_against_a_known_digest_is_never_shown_and_heals() {
    within(90, async {
        let (origin, content, daemon, client) = lab().await;
        origin.put_manifest(&[(FLUX, &content, Some(content.blake3()), None)]);
        daemon.cli().run(&["refresh"]).await.assert_code(0);
        origin.fault_at(FLUX, 2 * PIECE + 77, 1, Fault::Corrupt(2 * PIECE + 77));
        client.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        assert!(origin.sent(FLUX) > content.bytes(), "the bad bytes were fetched again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_stay_corrupt_are_data_loss_and_never_shown() {
    within(90, async {
        for sha256 in [false, true] {
            let (origin, content, daemon, client) = lab().await;
            let digests = if sha256 { (None, Some(content.sha256())) } else { (Some(content.blake3()), None) };
            origin.put_manifest(&[(FLUX, &content, digests.0, digests.1)]);
            daemon.cli().run(&["refresh"]).await.assert_code(0);
            origin.fault_at(FLUX, 2 * PIECE + 77, ALWAYS, Fault::Corrupt(2 * PIECE + 77));
            let (kind, code, text) = client.ensure(&[FLUX]).await.fault();
            assert_eq!((kind, code), (FaultKind::Corrupt, Code::DataLoss), "{text}");
            assert!(!daemon.model(FLUX).exists());
            assert!(origin.sent(FLUX) <= 5 * content.bytes(), "{} bytes for {}", origin.sent(FLUX), content.bytes());
            daemon.cli().run(&["ensure", FLUX]).await.assert_code(6);

            origin.heal();
            client.ready(&[FLUX]).await;
            content.assert_is(&daemon.model(FLUX));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_safetensors_is_refused_when_no_digest_vouches_for_it() {
    within(60, async {
        let (origin, _content, daemon, client) = lab().await;
        let html = "vae/error-page.safetensors";
        origin.put(html, &Content::text(&"<html>please log in</html>".repeat(1000)));
        let (kind, code, text) = client.ensure(&[html]).await.fault();
        assert_eq!((kind, code), (FaultKind::Corrupt, Code::DataLoss), "{text}");
        assert!(!daemon.model(html).exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_ranges_is_read_in_one_stream() {
    within(60, async {
        let (origin, content, daemon, client) = lab().await;
        origin.fault_get(FLUX, ALWAYS, Fault::IgnoreRange);
        client.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        assert!(origin.sent(FLUX) <= content.bytes() * 3, "{} bytes for {}", origin.sent(FLUX), content.bytes());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_midway_restarts_cleanly() {
    within(60, async {
        for ignores_if_match in [false, true] {
            let (origin, content, daemon, client) = narrow_lab().await;
            if ignores_if_match {
                origin.fault_get(FLUX, ALWAYS, Fault::IgnoreIfMatch);
            }
            origin.allow(2 * PIECE);
            let caller = tokio::spawn({
                let client = client.clone();
                async move { client.ready(&[FLUX]).await }
            });
            origin.until_sent(FLUX, 2 * PIECE, 20).await;
            // Where conditions are ignored nothing but the ETag of the answers tells: the size is the same.
            let second = Content::model(402, if ignores_if_match { content.bytes() } else { 6 * PIECE + 1 });
            origin.put(FLUX, &second);
            origin.allow(u64::MAX);
            let ready = caller.await.expect("it ends well");
            assert_eq!(ready.models[0].blob, second.blake3(), "ignores If-Match: {ignores_if_match}");
            second.assert_is(&daemon.model(FLUX));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_by_one_of_the_same_size_without_etags_is_noticed() {
    within(60, async {
        let (origin, content, daemon, client) = narrow_lab().await;
        origin.without_etag(FLUX);
        origin.allow(2 * PIECE);
        let caller = tokio::spawn({
            let client = client.clone();
            async move { client.ready(&[FLUX]).await }
        });
        origin.until_sent(FLUX, 2 * PIECE, 20).await;
        let second = Content::model(403, content.bytes());
        origin.put(FLUX, &second);
        origin.without_etag(FLUX);
        origin.allow(u64::MAX);
        caller.await.expect("it ends well");
        second.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_never_holds_still_is_aborted() {
    within(60, async {
        let (origin, content, daemon, client) = narrow_lab().await;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let changing = async {
            let mut seen = 0;
            loop {
                until("another request", 60, || async { (origin.log().len() > seen).then_some(()) }).await;
                seen = origin.log().len();
                origin.put(FLUX, &content);
            }
        };
        origin.limit_rate(20 * MIB);
        let outcome = tokio::select! {
            outcome = client.ensure(&[FLUX]) => outcome,
            () = changing => unreachable!("it changes for ever"),
        };
        drop((stop, stopped));
        let (kind, code, text) = outcome.fault();
        assert_eq!((kind, code), (FaultKind::Changed, Code::Aborted), "{text}");
        assert!(!daemon.model(FLUX).exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_lies_about_the_length_shows_nothing() {
    within(60, async {
        let (origin, _content, daemon, client) = lab().await;
        origin.fault(FLUX, ALWAYS, Fault::Larger(PIECE));
        let outcome = client.ensure(&[FLUX]).await;
        assert!(outcome.ready.is_none(), "it cannot be whole");
        assert!(!daemon.model(FLUX).exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_followed() {
    within(60, async {
        let (elsewhere, content, _daemon, _client) = lab().await;
        let origin = FaultOrigin::start().await;
        origin.redirect(FLUX, format!("{}{FLUX}", elsewhere.url()));
        let daemon = Daemon::start(Settings::with_hasty_origin(&origin)).await;
        daemon.client().await.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_in_a_circle_end() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        origin.redirect(FLUX, format!("{}{FLUX}", origin.url()));
        let daemon = Daemon::start(Settings::with_hasty_origin(&origin).set("fetch", "attempts_max", "2")).await;
        let outcome = daemon.client().await.ensure(&[FLUX]).await;
        assert!(outcome.ready.is_none());
        assert!(origin.log().len() <= 60, "{} requests", origin.log().len());
    })
    .await;
}
