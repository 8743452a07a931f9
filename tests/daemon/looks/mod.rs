//! The status page as people see it: a node with everything that it can show, in a headless Chromium, wide and narrow, light and dark, judged by
//! axe-core, with pictures to look at. By hand (`just looks`): a browser is larger than everything else that tests need.

mod browser;

use std::path::{Path, PathBuf};

use browser::{Browser, Screen};
use memmap2::MmapMut;
use tierd::rpc::pb;
use tierd::rpc::pb::hint_service_client::HintServiceClient;

use crate::rig::client::Milliseconds;
use crate::rig::{Client, ComfyStub, Content, Daemon, FaultOrigin, MIB, Settings, free_port, until, within};

const FLUX: &str = "diffusion_models/flux1-dev-fp8.safetensors";
const T5: &str = "text_encoders/t5xxl_fp8_e4m3fn.safetensors";
const CLIP: &str = "text_encoders/clip_l.safetensors";
const VAE: &str = "vae/ae.safetensors";
const SDXL: &str = "checkpoints/sd_xl_base_1.0.safetensors";
const REFINER: &str = "checkpoints/sd_xl_refiner_1.0.safetensors";
const HOSTILE: &str =
    "loras/<img src=x onerror=alert(1)> a name that is much longer than anybody would wish for, v2 (final).safetensors";
const WAN: &str = "diffusion_models/wan2.1_t2v_14B_fp8_e4m3fn.safetensors";
/// Models and their sizes in MiB.
const MODELS: [(&str, u64); 8] =
    [(FLUX, 119), (T5, 49), (CLIP, 3), (VAE, 2), (SDXL, 69), (REFINER, 61), (HOSTILE, 4), (WAN, 143)];
/// What of the node's memory the models of this node may take: enough that others, who take and give some, do not count as pressure.
const RAM: u64 = 4096 * MIB;
/// Most that the hog takes of it, and of what others left.
const HOG_MAX: u64 = 6144 * MIB;

/// Bytes of memory that could be had now.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("there is a /proc");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("the kernel says it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Those who look, and where their pictures go.
struct Looks {
    browser: Browser,
    axe: String,
    folder: PathBuf,
    address: String,
}

impl Looks {
    async fn start(address: &str) -> Self {
        let axe = std::env::var_os("TIERD_TEST_AXE").expect("set TIERD_TEST_AXE to axe.min.js of the package axe-core");
        let axe = std::fs::read_to_string(axe).expect("axe-core can be read");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/looks");
        std::fs::create_dir_all(&folder).expect("its folder can be made");
        let browser = Browser::start(&browser::program().await).await;
        Self { browser, axe, folder, address: format!("http://{address}/") }
    }

    /// Looks with every screen: no violation, nothing wider than the screen, a picture of each.
    async fn at(&mut self, state: &str, words: &[&str]) {
        for (name, width, dark) in
            [("wide", 1280, false), ("wide-dark", 1280, true), ("narrow", 390, false), ("narrow-dark", 390, true)]
        {
            self.browser.open(&self.address, Screen { width, dark }, words).await;
            self.browser.picture(&self.folder.join(format!("{state}-{name}.png"))).await;
            let found = self.browser.violations(&self.axe).await;
            assert_eq!(found, serde_json::json!([]), "{state}, {name}: {found:#}");
            assert_eq!(self.browser.overflow().await, 0, "{state}, {name}: the page is wider than the screen");
        }
    }
}

/// A ComfyUI that has these in VRAM, and says so each second, as the node pack would.
fn report(daemon: &Daemon, client: &Client, address: &str, models: &[&str]) -> tokio::task::JoinHandle<()> {
    let row = |model: &&str| {
        let bytes = MODELS.iter().find(|row| row.0 == *model).expect("one of them").1 * MIB;
        let file = daemon.model(model).display().to_string();
        pb::LoadedModel { file, bytes, loaded_bytes: bytes, in_use: true, ..Default::default() }
    };
    let device = pb::WorkerDevice {
        name: "NVIDIA H100 80GB HBM3".into(),
        uuid: "GPU-0000".into(),
        total_bytes: 80 << 30,
        free_bytes: 19 << 30,
        models: models.iter().map(row).collect(),
        ..Default::default()
    };
    let info = pb::WorkerInfo {
        pid: std::process::id(),
        address: address.to_owned(),
        version: "0.3.62".into(),
        ..Default::default()
    };
    let mut report = pb::ReportRequest {
        worker: "comfyui-0".into(),
        seq: 1,
        info: Some(info),
        devices: Some(pb::WorkerDevices { devices: vec![device] }),
        ..Default::default()
    };
    let mut hints = HintServiceClient::new(client.channel.clone());
    tokio::spawn(async move {
        loop {
            hints.report(report.clone()).await.expect("accepted");
            report.seq += 1;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "by hand: it needs Chromium, axe-core and a C compiler (just looks)"]
async fn the_page_is_readable_light_fetching_and_under_pressure() {
    within(300, async {
        let (origin, comfy) = (FaultOrigin::start().await, ComfyStub::start().await);
        let contents = MODELS.map(|(name, size)| (name, Content::model(9000 + size, size * MIB)));
        contents.iter().for_each(|(name, content)| origin.put(name, content));
        let rows: Vec<_> = contents.iter().map(|(name, content)| (*name, content, None, None)).collect();
        origin.put_manifest(&rows);
        let address = format!("127.0.0.1:{}", free_port());
        let settings = Settings::with_origin(&origin)
            .set("listen", "http", &format!("\"{address}\""))
            .set("store", "budget", "\"400 MiB\"")
            .set("ram", "reserve", &format!("\"{} B\"", available().saturating_sub(RAM)))
            .set("fetch", "connections_max", "4")
            .set("comfy", "servers", &format!("\"{}\"", comfy.url()));
        let mut daemon = Daemon::prepare(settings);
        daemon.give_gpus();
        daemon.restart().await;
        let client = daemon.client().await;
        until("the manifest is read", 10, || async { client.model(FLUX).await.ok() }).await;
        let mut looks = Looks::start(&address).await;

        // A morning: one set is used again and again, the other one now and then.
        for _ in 0..8 {
            for set in [[CLIP, VAE].as_slice(), &[HOSTILE]] {
                client.ready(set).await;
            }
        }
        client.ready_in_ram(&[FLUX, CLIP, VAE]).await;
        client.ready(&[T5, SDXL]).await;
        client.pin(&[FLUX, T5, CLIP, VAE], "the morning's batch", Milliseconds(3_600_000)).await.expect("pinned");
        let reports = report(&daemon, &client, &comfy.url(), &[FLUX, VAE]);
        comfy.queue("5f0c2a1e-running", &[FLUX, CLIP, VAE]);
        comfy.run_next();
        comfy.queue("77ab01d2-warm", &[SDXL]);
        looks
            .at("light", &["Likely next", "GPUs", "H100", "87 %", "5f0c2a1e-running", "Models in VRAM", "(RAM)"])
            .await;

        // Two prompts wait for what is only in the bucket, a caller as well.
        origin.limit_rate(3 * MIB);
        comfy.queue("9c33e0b4-cold", &[WAN, VAE]);
        comfy.queue("c0ffee00-missing", &["vae/nobody-has-this-one.safetensors"]);
        let waits = tokio::spawn({
            let client = client.clone();
            async move { client.ensure(&[WAN]).await }
        });
        until("it flies", 20, || async {
            client.flights().await.first().filter(|flight| flight.bytes_done > 0).map(drop)
        })
        .await;
        looks.at("fetching", &["not here", "nobody has it", WAN, "MiB/s"]).await;
        waits.abort();

        // The disk is full, and something else wants the memory.
        origin.heal();
        until("it is here", 40, || async { client.stored(WAN).await.then_some(()) }).await;
        client.ready_in_ram(&[SDXL]).await;
        for lease in client
            .cache
            .clone()
            .list_leases(pb::ListLeasesRequest::default())
            .await
            .expect("listed")
            .into_inner()
            .leases
        {
            client.cache.clone().unpin(pb::UnpinRequest { lease: lease.lease }).await.expect("ended");
        }
        client.ready(&[REFINER]).await;
        let held = client.tier(pb::Tier::Ram).await.models;
        let mut taken = Vec::new();
        while client.tier(pb::Tier::Ram).await.models >= held && (taken.len() as u64) < HOG_MAX / (64 * MIB) {
            let mut chunk = MmapMut::map_anon(64 << 20).expect("there is address space");
            chunk.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            taken.push(chunk);
        }
        looks.at("pressure", &["What left, and why", "demoted", "evicted"]).await;
        reports.abort();
        println!("look at {}", looks.folder.display());
    })
    .await;
}
