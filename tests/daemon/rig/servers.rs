//! Servers that other people wrote: SeaweedFS, nginx, rclone. Started on free ports in folders of their own, ended by process
//! id. Where one is not installed the test is skipped, and says so.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::http::ask;
use super::{free_port, skip, until};

/// The key that the S3 servers know.
pub(crate) const KEY: &str = "AKIATESTTIERD000";
/// Its secret.
pub(crate) const SECRET: &str = "a-secret-of-the-tests";

/// Finds a server's program: in `TIERD_TEST_TOOLS`, where `tests/setup.sh` puts it, or on the path. Skips the test if it is
/// nowhere.
pub(crate) fn tool(test: &str, name: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("TIERD_TEST_TOOLS").map(PathBuf::from);
    let mut places: Vec<PathBuf> = given.into_iter().collect();
    places.push(here.join("target/test-tools/bin"));
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    places.push(PathBuf::from("/usr/sbin"));
    let found = places.iter().map(|place| place.join(name)).find(|path| path.is_file());
    if found.is_none() {
        skip(test, &format!("{name} is not installed (tests/setup.sh installs it)"));
    }
    found
}

/// A server's process and folder.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    /// `host:port` of what the test asked for.
    pub(crate) address: String,
}

impl Server {
    fn start(dir: TempDir, address: String, command: &mut Command) -> Self {
        let log = std::fs::File::create(dir.path().join("log")).expect("its folder can be written");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be duplicated")).stderr(log);
        Self { child: command.spawn().expect("the server can be started"), dir, address }
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its address as an endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it now.
    pub(crate) fn kill(&mut self) {
        // Asked first: nginx leaves its workers behind when it is killed.
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM);
        for _ in 0..400 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    async fn until_answers(&self, path: &str, good: impl Fn(u16) -> bool) {
        let what = format!("{} answers", self.address);
        until(&what, 60, || async {
            let (status, _) = ask(&self.address, "GET", path, b"").await.ok()?;
            good(status).then_some(())
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir().join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            println!("--- {}'s log\n{}\n---", self.address, lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// SeaweedFS with its S3 gateway.
#[derive(Debug)]
pub(crate) struct Weed {
    /// The S3 gateway.
    pub(crate) s3: Server,
    /// `host:port` of the filer: plain HTTP to the same objects below `/buckets`.
    pub(crate) filer: String,
}

impl Weed {
    /// Starts it, with one bucket. Skips the test if it is not installed.
    pub(crate) async fn start(test: &str, bucket: &str) -> Option<Self> {
        let weed = tool(test, "weed")?;
        let dir = TempDir::with_prefix("tierd-weed-").expect("the system's temporary folder can be written");
        let identities = serde_json::json!({ "identities": [{
            "name": "tests",
            "credentials": [{ "accessKey": KEY, "secretKey": SECRET }],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }] });
        std::fs::write(dir.path().join("s3.json"), identities.to_string()).expect("its folder can be written");
        std::fs::create_dir(dir.path().join("data")).expect("its folder can be written");
        // gRPC ports are these plus 10000 by default: told apart here, so that any free port will do.
        let [s3, master, volume, filer] = std::array::from_fn(|_| free_port());
        let [s3_grpc, master_grpc, volume_grpc, filer_grpc] = std::array::from_fn(|_| free_port());
        let mut command = Command::new(weed);
        command.args([
            "-logtostderr",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            "-s3.iam=false",
        ]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.arg(format!("-dir={}", dir.path().join("data").display()));
        command.arg(format!("-s3.config={}", dir.path().join("s3.json").display()));
        for (name, port, grpc) in [
            ("s3", s3, s3_grpc),
            ("master", master, master_grpc),
            ("volume", volume, volume_grpc),
            ("filer", filer, filer_grpc),
        ] {
            command.arg(format!("-{name}.port={port}")).arg(format!("-{name}.port.grpc={grpc}"));
        }
        command.args(["-master.volumeSizeLimitMB=1024", "-volume.max=16", "-master.telemetry=false"]);
        let s3 = Server::start(dir, format!("127.0.0.1:{s3}"), &mut command);
        let weed = Self { s3, filer: format!("127.0.0.1:{filer}") };
        weed.s3.until_answers("/", |status| status != 0).await;
        until("the filer answers", 60, || async { ask(&weed.filer, "GET", "/", b"").await.ok().map(drop) }).await;
        weed.until_bucket(bucket).await;
        Some(weed)
    }

    /// Makes a bucket and waits until objects can be stored in it: the volume server joins a little later than the rest.
    async fn until_bucket(&self, bucket: &str) {
        let path = format!("/buckets/{bucket}/probe");
        until("an object can be stored", 60, || async {
            let (status, _) = ask(&self.filer, "PUT", &path, b"probe").await.ok()?;
            (status == 201).then_some(())
        })
        .await;
        let (status, body) = ask(&self.filer, "DELETE", &path, b"").await.expect("the filer answers");
        assert_eq!(status, 204, "{body}");
    }

    /// An `[[origin]]` for one of its buckets.
    pub(crate) fn origin(&self, name: &str, bucket: &str, dir: &Path) -> String {
        s3_origin(name, &self.s3.url(), bucket, dir, KEY, SECRET)
    }
}

/// An `[[origin]]` for an S3 server, its secret in a file in `dir`.
pub(crate) fn s3_origin(name: &str, endpoint: &str, bucket: &str, dir: &Path, key: &str, secret: &str) -> String {
    let file = dir.join(format!("{name}.secret"));
    std::fs::write(&file, secret).expect("the folder can be written");
    format!(
        "name = \"{name}\"\nkind = \"s3\"\nbucket = \"{bucket}\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\n\
         access_key_id = \"{key}\"\nsecret_access_key_file = \"{}\"\nconnect_timeout = \"5s\"\nrequest_timeout = \"20s\"",
        file.display()
    )
}

/// Starts nginx over a folder; `more` goes into its server block. Skips the test if it is not installed.
pub(crate) async fn nginx(test: &str, root: &Path, more: &str) -> Option<Server> {
    let nginx = tool(test, "nginx")?;
    let dir = TempDir::with_prefix("tierd-nginx-").expect("the system's temporary folder can be written");
    let port = free_port();
    let at = dir.path().display();
    let user = if super::is_root() { "user root;" } else { "" };
    let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {at}/{kind};"))
        .collect();
    let text = format!(
        "{user} worker_processes 1; daemon off; pid {at}/pid; error_log {at}/error.log warn;
         events {{ worker_connections 1024; }}
         http {{ access_log off; sendfile on; sendfile_max_chunk 256k; default_type application/octet-stream; {temps}
           keepalive_requests 100000; client_max_body_size 0;
           server {{ listen 127.0.0.1:{port}; root {root}; {more} }} }}",
        root = root.display()
    );
    let config = dir.path().join("nginx.conf");
    std::fs::write(&config, text).expect("its folder can be written");
    let mut command = Command::new(nginx);
    command.arg("-e").arg(dir.path().join("error.log")).arg("-c").arg(&config);
    let server = Server::start(dir, format!("127.0.0.1:{port}"), &mut command);
    server.until_answers("/", |status| status != 0).await;
    Some(server)
}

/// Starts `rclone serve s3` over a folder, whose folders are buckets. Skips the test if it is not installed.
pub(crate) async fn rclone(test: &str, root: &Path) -> Option<Server> {
    let rclone = tool(test, "rclone")?;
    let dir = TempDir::with_prefix("tierd-rclone-").expect("the system's temporary folder can be written");
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(rclone);
    command.args(["serve", "s3", "--addr", &address, "--auth-key", &format!("{KEY},{SECRET}"), "--config", ""]);
    command.arg(root);
    let server = Server::start(dir, address, &mut command);
    server.until_answers("/", |status| status != 0).await;
    Some(server)
}

/// A NATS server with JetStream, which can be killed and started again on its port.
#[derive(Debug)]
pub(crate) struct Nats {
    program: PathBuf,
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Nats {
    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it if it runs, and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let log = std::fs::File::create(self.dir.path().join("log")).expect("its folder can be written");
        let mut command = Command::new(&self.program);
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-js", "-sd"]).arg(self.dir.path().join("js"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be duplicated")).stderr(log);
        self.child = Some(command.spawn().expect("the server can be started"));
        until("NATS answers", 30, || async { async_nats::connect(self.url()).await.ok().map(drop) }).await;
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts NATS. Skips the test if it is not installed.
pub(crate) async fn nats(test: &str) -> Option<Nats> {
    let program = tool(test, "nats-server")?;
    let dir = TempDir::with_prefix("tierd-nats-").expect("the system's temporary folder can be written");
    let mut server = Nats { program, dir, port: free_port(), child: None };
    server.restart().await;
    Some(server)
}
