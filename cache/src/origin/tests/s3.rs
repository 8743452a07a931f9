//! Claims about S3 that a real server does not show at will.

use super::server::{Reply, Server};
use super::{SHORT, open};
use crate::config::{Credentials, OriginConfig, OriginKind, Secret};
use crate::engine::view::OriginState;
use crate::origin::push::{ManifestWrite, PushFile, PushOptions, push};
use crate::origin::{Origin, OriginError};

fn s3_config(url: &str) -> OriginConfig {
    let credentials = Credentials::Keys {
        id: "AKID".to_owned(),
        secret: Secret::new("hunter2"),
        token: Some(Secret::new("hunter3")),
    };
    let kind = OriginKind::S3 {
        bucket: "bkt".to_owned(),
        endpoint: Some(url.to_owned()),
        region: "auto".to_owned(),
        virtual_hosted: false,
        credentials,
    };
    OriginConfig { prefix: "m".to_owned(), request_timeout: SHORT * 10, ..OriginConfig::new("s3", kind) }
}

fn page(keys: &[&str], next: Option<&str>) -> Reply {
    let mut body = "<ListBucketResult>".to_owned();
    for key in keys {
        body += &format!("<Contents><Key>{key}</Key><Size>1</Size><ETag>\"e\"</ETag></Contents>");
    }
    if let Some(next) = next {
        body += &format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>");
    }
    Reply::status("200 OK", "", (body + "</ListBucketResult>").as_bytes())
}

#[tokio::test]
async fn a_listing_goes_through_all_its_pages() {
    let server = Server::start(|number, _| match number {
        0 => page(&["m/vae/a.sft", "m//odd", "m/vae/"], Some("t+1/=")),
        _ => page(&["m/vae/b.sft"], None),
    })
    .await;
    let origin = open(&s3_config(&server.url));
    let keys: Vec<String> = origin.list().await.unwrap().iter().map(|listed| listed.model.to_string()).collect();
    assert_eq!(keys, ["vae/a.sft", "vae/b.sft"]);
    let asked = server.asked();
    assert!(asked[0].starts_with("get /bkt?list-type=2&max-keys=1000&prefix=m%2f "), "{asked:?}");
    assert!(asked[1].contains("continuation-token=t%2b1%2f%3d "), "{asked:?}");
    assert!(asked[0].contains("authorization: aws4-hmac-sha256 credential=akid/"), "{asked:?}");
}

#[tokio::test]
async fn half_a_listing_is_an_error_and_so_is_one_that_never_ends() {
    let server = Server::start(|number, _| match number {
        0 => page(&["m/vae/a.sft"], Some("t")),
        _ => Reply::status("200 OK", "", b"<html>captive portal</html>"),
    })
    .await;
    assert!(matches!(open(&s3_config(&server.url)).list().await, Err(OriginError::BadAnswer { .. })));
    let server = Server::start(|_, _| page(&[], Some("t"))).await;
    assert!(matches!(open(&s3_config(&server.url)).list().await, Err(OriginError::BadAnswer { .. })));
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn the_servers_code_is_said_and_the_keys_are_not() {
    let server = Server::start(|_, _| {
        let body = b"<Error><Code>NoSuchBucket</Code><Message>hunter2</Message></Error>";
        Reply::status("404 Not Found", "", body)
    })
    .await;
    let origin = open(&s3_config(&server.url));
    let error = origin.list().await.unwrap_err();
    assert!(matches!(error, OriginError::Denied { status: 404, .. }), "{error}");
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    assert_eq!(origin.health().state, OriginState::Down);
    let text = format!("{error:?} {origin:?}");
    assert!(!text.contains("hunter"), "{text}");
}

#[test]
fn impossible_buckets_are_refused_when_they_are_opened() {
    let with = |change: fn(&mut OriginKind)| {
        let mut config = s3_config("http://h");
        change(&mut config.kind);
        Origin::open(&config).map(|origin| origin.address()).map_err(|error| error.to_string())
    };
    let no_endpoint = |kind: &mut OriginKind| {
        if let OriginKind::S3 { endpoint, .. } = kind {
            *endpoint = None;
        }
    };
    assert!(with(no_endpoint).unwrap_err().contains("needs an endpoint"));
    let bad_bucket = |kind: &mut OriginKind| {
        if let OriginKind::S3 { bucket, .. } = kind {
            *bucket = "a/b".to_owned();
        }
    };
    assert!(with(bad_bucket).unwrap_err().contains("not a bucket name"));
    let hosted = |kind: &mut OriginKind| {
        if let OriginKind::S3 { virtual_hosted, .. } = kind {
            *virtual_hosted = true;
        }
    };
    assert_eq!(with(hosted).unwrap(), "http://bkt.h/m");
    assert_eq!(with(|_| ()).unwrap(), "http://h/bkt/m");
}

/// Pushes one small file to a server; `put` answers writes of the manifest, which starts as `before`.
async fn push_to(
    before: Option<&'static str>,
    put: impl Fn(usize, &str) -> Reply + Send + Sync + 'static,
) -> (Result<ManifestWrite, OriginError>, Vec<String>) {
    let puts = std::sync::Mutex::new(0);
    let server = Server::start(move |_, head| {
        if head.starts_with("put /bkt/m/tierd-manifest.json") {
            let mut puts = puts.lock().unwrap();
            *puts += 1;
            return put(*puts, head);
        }
        if head.starts_with("put ") {
            return Reply::status("200 OK", "ETag: \"x\"", b"");
        }
        match before {
            Some(text) => Reply::status("200 OK", "ETag: \"m1\"", text.as_bytes()),
            None => Reply::status("404 Not Found", "", b""),
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.sft");
    std::fs::write(&file, b"abc").unwrap();
    let files = vec![PushFile { file, model: "vae/x.sft".parse().unwrap() }];
    let report = push(&open(&s3_config(&server.url)), files, PushOptions::default(), |_| ()).await;
    (report.map(|report| report.manifest), server.asked())
}

#[tokio::test]
async fn the_manifest_is_written_on_the_condition_that_it_is_the_one_that_was_read() {
    let (written, asked) = push_to(None, |_, _| Reply::status("200 OK", "ETag: \"m2\"", b"")).await;
    assert_eq!(written, Ok(ManifestWrite::Guarded));
    assert!(asked.last().unwrap().contains("if-none-match: *"), "{asked:?}");
    let old = "{\"version\":1,\"models\":[]}";
    let (written, asked) = push_to(Some(old), |_, _| Reply::status("200 OK", "ETag: \"m2\"", b"")).await;
    assert_eq!(written, Ok(ManifestWrite::Guarded));
    assert!(asked.last().unwrap().contains("if-match: \"m1\""), "{asked:?}");
}

#[tokio::test]
async fn a_manifest_that_somebody_else_wrote_is_read_and_merged_again_but_not_for_ever() {
    let conflict = || Reply::status("412 Precondition Failed", "", b"<Code>PreconditionFailed</Code>");
    let (written, asked) = push_to(None, move |number, _| match number {
        1 => conflict(),
        _ => Reply::status("200 OK", "ETag: \"m2\"", b""),
    })
    .await;
    assert_eq!(written, Ok(ManifestWrite::Guarded));
    let reads = asked.iter().filter(|head| head.starts_with("get /bkt/m/tierd-manifest.json")).count();
    assert_eq!(reads, 3, "once before the upload, once before each write");
    let (written, asked) = push_to(None, move |_, _| conflict()).await;
    assert!(matches!(written, Err(OriginError::Changed { .. })), "{written:?}");
    assert_eq!(asked.iter().filter(|head| head.starts_with("put /bkt/m/tierd")).count(), 8);
}

#[tokio::test]
async fn a_server_without_conditional_writes_is_written_plainly_and_it_is_said() {
    let (written, asked) = push_to(None, |_, head| match head.contains("if-none-match") {
        true => Reply::status("501 Not Implemented", "", b"<Code>NotImplemented</Code>"),
        false => Reply::status("200 OK", "ETag: \"m2\"", b""),
    })
    .await;
    assert_eq!(written, Ok(ManifestWrite::Plain));
    assert!(!asked.last().unwrap().contains("if-none-match"), "{asked:?}");
}

#[tokio::test]
async fn an_upload_that_fails_in_the_middle_is_abandoned_at_the_server() {
    let server = Server::start(|_, head| {
        if head.starts_with("post ") {
            let body = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>";
            return Reply::status("200 OK", "", body);
        }
        match head.starts_with("put ") && head.contains("partnumber=2") {
            true => Reply::status("403 Forbidden", "", b"<Code>AccessDenied</Code>"),
            false if head.starts_with("get ") => Reply::status("404 Not Found", "", b""),
            false => Reply::status("200 OK", "ETag: \"x\"", b""),
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.sft");
    std::fs::write(&file, vec![1; 12 << 20]).unwrap();
    let files = vec![PushFile { file, model: "vae/x.sft".parse().unwrap() }];
    let options = PushOptions { part_bytes: 5 << 20, ..PushOptions::default() };
    let error = push(&open(&s3_config(&server.url)), files, options, |_| ()).await.unwrap_err();
    assert!(matches!(error, OriginError::Denied { status: 403, .. }), "{error}");
    let asked = server.asked();
    assert!(asked.iter().any(|head| head.starts_with("delete /bkt/m/vae/x.sft?uploadid=u1")), "{asked:?}");
    assert!(!asked.iter().any(|head| head.starts_with("put /bkt/m/tierd")), "nothing arrived, nothing is named");
}
