//! `cargo bench --bench placement`: readiness over the Unix socket beside an empty tonic handler on the same machine, in turns,
//! idle and while a download runs at full speed, and what that download brings, alone and beside the calls. Prints medians; judges
//! nothing. `TIERD_BENCH_DAEMON` names another build of the daemon, to be measured in place of this one.

#![allow(missing_docs, reason = "a program")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tierd::rpc::pb;
use tierd::rpc::pb::cache_service_client::CacheServiceClient;
use tierd::rpc::pb::placement_service_client::PlacementServiceClient;
use tierd::rpc::pb::placement_service_server::{PlacementService, PlacementServiceServer};
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Models in the catalog.
const MODELS: usize = 10_000;
/// Requests a second of the paced run.
const RATE: u64 = 2000;
/// One run.
const RUN: Duration = Duration::from_secs(3);
/// Turns.
const ROUNDS: usize = 3;
/// Calls under way in the unpaced run.
const IN_FLIGHT: usize = 32;
/// The download.
const LARGE: u64 = 6 << 30;

/// A handler that does nothing.
struct Empty;

#[tonic::async_trait]
impl PlacementService for Empty {
    async fn estimate_readiness(
        &self,
        _: Request<pb::EstimateReadinessRequest>,
    ) -> Result<Response<pb::EstimateReadinessResponse>, Status> {
        Ok(Response::new(pb::EstimateReadinessResponse::default()))
    }

    async fn rank_workflows(
        &self,
        _: Request<pb::RankWorkflowsRequest>,
    ) -> Result<Response<pb::RankWorkflowsResponse>, Status> {
        Ok(Response::new(pb::RankWorkflowsResponse::default()))
    }
}

/// A process that ends with its owner.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    // Cargo passes `--bench`; as a child of itself this program is the empty server.
    if let Some(socket) = std::env::args().skip_while(|word| word != "--empty").nth(1) {
        runtime().block_on(serve_empty(Path::new(&socket)));
        return;
    }
    runtime().block_on(measure());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

async fn serve_empty(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("the socket is free");
    let incoming = UnixListenerStream::new(listener).map(|stream| stream);
    let served = tonic::transport::Server::builder().add_service(PlacementServiceServer::new(Empty));
    served.serve_with_incoming(incoming).await.expect("serves");
}

async fn measure() {
    let dir = tempfile::tempdir().expect("a folder");
    let origin = dir.path().join("origin");
    fill(&origin);
    let (daemon_socket, empty_socket) = (dir.path().join("tierd.sock"), dir.path().join("empty.sock"));
    let config = dir.path().join("tierd.toml");
    let text = format!(
        "[store]\npath = \"{}\"\nkeep_free = \"0%\"\nbudget = \"16 GiB\"\n[listen]\nunix = \"{}\"\nhttp = \"off\"\n\
         client_rate_max = 10000000\n\
         [[origin]]\nname = \"lab\"\nkind = \"folder\"\npath = \"{}\"\n",
        dir.path().join("store").display(),
        daemon_socket.display(),
        origin.display()
    );
    std::fs::write(&config, text).expect("the folder can be written");
    // To hold two builds against each other in turns.
    let program = std::env::var("TIERD_BENCH_DAEMON").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tierd").to_owned());
    let _daemon = start(&program, &["serve", "--config", &config.display().to_string()]);
    let me = std::env::current_exe().expect("this program has a path").display().to_string();
    let _empty = start(&me, &["--empty", &empty_socket.display().to_string()]);
    let daemon = connect(&daemon_socket).await;
    let empty = connect(&empty_socket).await;
    until_listed(&daemon).await;

    println!(
        "{MODELS} models, sets of 6, {RATE} requests/s paced and {IN_FLIGHT} in flight unpaced; medians of {ROUNDS}\n"
    );
    let mut alone = Vec::new();
    for _ in 0..ROUNDS {
        let download = Download::start(&daemon);
        tokio::time::sleep(RUN).await;
        alone.push((download.rate(), 0.0, 0.0));
    }
    println!("a download alone: {:.0} MiB/s\n", median(&alone, |row| row.0));
    println!("| beside it | handler | p50 us | p99 us | unpaced calls/s |\n|---|---|---|---|---|");
    for beside in ["nothing", "a download at full speed"] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut fetched = Vec::new();
        for _ in 0..ROUNDS {
            for (channel, rows) in [(&daemon, &mut ours), (&empty, &mut theirs)] {
                let download = (beside != "nothing").then(|| Download::start(&daemon));
                let (p50, p99) = paced(channel).await;
                let beside_paced = download.as_ref().map_or(0.0, Download::rate);
                let rate = unpaced(channel).await;
                rows.push((p50, p99, rate));
                fetched.push((beside_paced, 0.0, 0.0));
            }
        }
        for (name, rows) in [("readiness", &ours), ("empty", &theirs)] {
            let (p50, p99, rate) = (median(rows, |row| row.0), median(rows, |row| row.1), median(rows, |row| row.2));
            println!("| {beside} | {name} | {p50:.0} | {p99:.0} | {rate:.0} |");
        }
        let share = median(&ours, |row| row.2) / median(&theirs, |row| row.2);
        let fetched = median(&fetched, |row| row.0);
        println!(
            "\nreadiness has {share:.2} of the empty handler's calls/s; a download beside paced calls: {fetched:.0} MiB/s\n"
        );
    }
}

fn fill(origin: &Path) {
    std::fs::create_dir_all(origin.join("loras")).expect("a folder");
    std::fs::create_dir_all(origin.join("checkpoints")).expect("a folder");
    for number in 0..MODELS {
        std::fs::write(origin.join(format!("loras/{number:05}.pt")), number.to_le_bytes()).expect("a file");
    }
    // Sparse: it costs the origin no disk, and the daemon what any other file costs.
    let large = std::fs::File::create(origin.join("checkpoints/large.pt")).expect("a file");
    large.set_len(LARGE).expect("a sparse file");
}

fn start(program: &str, args: &[&str]) -> Owned {
    let mut command = Command::new(PathBuf::from(program));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Owned(command.spawn().expect("it starts"))
}

async fn connect(socket: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an address");
    for _ in 0..2000 {
        if let Ok(channel) = endpoint.connect().await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} does not answer", socket.display());
}

async fn until_listed(daemon: &Channel) {
    let mut placement = PlacementServiceClient::new(daemon.clone());
    for _ in 0..2000 {
        let answer = placement.estimate_readiness(request(MODELS - 6)).await.expect("answers").into_inner();
        if answer.obstacles.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the catalog does not know the models");
}

fn request(first: usize) -> pb::EstimateReadinessRequest {
    let models = (first..first + 6).map(|number| format!("loras/{:05}.pt", number % MODELS)).collect();
    pb::EstimateReadinessRequest { models, ..Default::default() }
}

/// A model that is fetched again and again until this is dropped.
struct Download {
    task: tokio::task::JoinHandle<()>,
    bytes: Arc<AtomicU64>,
    begun: Instant,
}

impl Download {
    fn start(daemon: &Channel) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        Self { task: tokio::spawn(download(daemon.clone(), bytes.clone())), bytes, begun: Instant::now() }
    }

    /// MiB a second since it began.
    fn rate(&self) -> f64 {
        self.bytes.load(Ordering::Relaxed) as f64 / (1 << 20) as f64 / self.begun.elapsed().as_secs_f64()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn download(daemon: Channel, bytes: Arc<AtomicU64>) {
    use pb::ensure_response::Update;
    let mut cache = CacheServiceClient::new(daemon);
    loop {
        let model = "checkpoints/large.pt".to_owned();
        let progress_interval = Some(Duration::from_millis(50).into());
        let models = vec![model.clone()];
        let request = pb::EnsureRequest { models, cancel_on_drop: true, progress_interval, ..Default::default() };
        let before = bytes.load(Ordering::Relaxed);
        if let Ok(stream) = cache.ensure(request).await {
            let mut stream = stream.into_inner();
            let mut first = None;
            while let Ok(Some(message)) = stream.message().await {
                let done = match message.update {
                    Some(Update::Progress(progress)) => progress.bytes_done,
                    Some(Update::Ready(_)) => LARGE,
                    _ => continue,
                };
                // Pieces of a fetch that was stopped before are not counted again.
                let first = *first.get_or_insert(done);
                bytes.store(before + done.saturating_sub(first), Ordering::Relaxed);
            }
        }
        let _ = cache.evict(pb::EvictRequest { models: vec![model], client: String::new() }).await;
    }
}

/// Microseconds of the middle and the 99th of 100 calls, sent at a steady rate whatever the answers take.
async fn paced(channel: &Channel) -> (f64, f64) {
    let (send, mut times) = tokio::sync::mpsc::unbounded_channel();
    let begun = Instant::now();
    let total = RATE * RUN.as_secs();
    for number in 0..total {
        let due = begun + Duration::from_micros(number * 1_000_000 / RATE);
        tokio::time::sleep_until(due).await;
        let (mut client, send) = (PlacementServiceClient::new(channel.clone()), send.clone());
        tokio::spawn(async move {
            let asked = Instant::now();
            client.estimate_readiness(request(number as usize)).await.expect("answers");
            let _ = send.send(asked.elapsed());
        });
    }
    drop(send);
    let mut all = Vec::new();
    while let Some(time) = times.recv().await {
        all.push(time.as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() * 99 / 100])
}

async fn unpaced(channel: &Channel) -> f64 {
    let begun = Instant::now();
    let workers: Vec<_> = (0..IN_FLIGHT)
        .map(|worker| {
            let mut client = PlacementServiceClient::new(channel.clone());
            tokio::spawn(async move {
                let mut calls = 0u64;
                while begun.elapsed() < RUN {
                    client.estimate_readiness(request(worker * 300 + calls as usize)).await.expect("answers");
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let mut calls = 0;
    for worker in workers {
        calls += worker.await.expect("ends");
    }
    calls as f64 / begun.elapsed().as_secs_f64()
}

fn median(rows: &[(f64, f64, f64)], pick: impl Fn(&(f64, f64, f64)) -> f64) -> f64 {
    let mut all: Vec<f64> = rows.iter().map(pick).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
