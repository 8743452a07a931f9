//! Claims about what the daemon takes: memory that does not grow with what it fetches, nothing while it idles.

use std::time::Duration;

use crate::rig::{Content, Daemon, FaultOrigin, MIB, Settings, within};

const FLUX: &str = "diffusion_models/flux1-dev.safetensors";

/// A field of `/proc/PID/status`, in bytes.
fn memory(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find(|line| line.starts_with(field)).expect("the kernel says it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

/// Memory of the process that counts against an idle daemon. In a debug build the binary itself is not what is installed: its
/// pages are left out there.
fn resident(pid: u32) -> u64 {
    if cfg!(debug_assertions) { memory(pid, "RssAnon:") } else { memory(pid, "VmRSS:") }
}

/// CPU time that the process took so far.
fn cpu(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<_> = text.rsplit_once(") ").expect("the name is in brackets").1.split(' ').collect();
    let ticks: u64 = [fields[11], fields[12]].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

/// GiB that the memory test fetches: 3, or `TIERD_TEST_FETCH_GIB`.
fn fetch_gib() -> u64 {
    std::env::var("TIERD_TEST_FETCH_GIB").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_below_200_mib_while_gigabytes_arrive() {
    let gib = fetch_gib();
    within(120 + 30 * gib, async {
        let origin = FaultOrigin::start().await;
        let content = Content::model(700, gib * 1024 * MIB);
        origin.put(FLUX, &content);
        let small: Vec<_> = (0..50).map(|at| format!("loras/{at:02}.safetensors")).collect();
        small.iter().for_each(|name| origin.put(name, &Content::model(701, 3 * MIB)));
        let budget = format!("\"{} GiB\"", gib + 2);
        let daemon = Daemon::start(Settings::with_origin(&origin).set("store", "budget", &budget)).await;
        let names: Vec<_> = small.iter().map(String::as_str).chain([FLUX]).collect();

        let before = cpu(daemon.pid());
        let start = tokio::time::Instant::now();
        let ready = daemon.client().await.ready(&names).await;
        assert!(ready.bytes_fetched >= content.bytes());
        let peak = memory(daemon.pid(), "VmHWM:");
        let spent = cpu(daemon.pid()).saturating_sub(before);
        println!("{gib} GiB in {:?}, {spent:?} of CPU, at most {} MiB of memory", start.elapsed(), peak / MIB);
        assert!(peak < 200 * MIB, "{} MiB", peak / MIB);
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_takes_no_cpu_and_little_memory() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        origin.put(FLUX, &Content::model(702, 9 * MIB));
        // As it is installed: the defaults of the log, and nobody connected.
        let daemon = Daemon::start(Settings::with_origin(&origin).set("log", "filter", "\"info\"")).await;
        let fresh = resident(daemon.pid());
        assert!(fresh < 25 * MIB, "{} MiB after its start", fresh / MIB);
        // What a start still has to do (listing, first ticks) is done within a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = cpu(daemon.pid());
        tokio::time::sleep(Duration::from_secs(5)).await;
        let spent = cpu(daemon.pid()).saturating_sub(before);
        assert!(spent <= Duration::from_millis(20), "{spent:?} of CPU in 5 idle seconds");
        let idle = resident(daemon.pid());
        println!("idle: {spent:?} of CPU in 5 s, {:.1} MiB", idle as f64 / MIB as f64);
        assert!(idle < 25 * MIB, "{} MiB while idle", idle / MIB);
    })
    .await;
}
