//! Claims about `tierd replay` as an operator runs it: text in, tables, JSON and a chart out; the same each time.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use tierd::rpc::time::Duration as Span;

use crate::rig::{Content, Daemon, FaultOrigin, MIB, Settings, within};

const MB: u64 = 1_000_000;

/// Two popular checkpoints, and a parade of files that come once.
fn trace(folder: &Path) -> String {
    let mut text = "timestamp_ms,request_id,model_key,bytes,kind\n".to_owned();
    for n in 0..300_u64 {
        let at = n * 20_000;
        text += &format!("{at},{n},base{},{},checkpoint\n", n % 2, 6000 * MB);
        if n % 3 == 0 {
            text += &format!("{at},{n},once{n},{},checkpoint\n", 3000 * MB);
        }
    }
    let file = folder.join("week.csv");
    std::fs::write(&file, text).expect("a file");
    file.to_string_lossy().into_owned()
}

fn replay(arguments: &[&str]) -> Output {
    let done = Command::new(env!("CARGO_BIN_EXE_tierd")).arg("replay").args(arguments).output().expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done
}

fn json(done: &Output) -> serde_json::Value {
    serde_json::from_slice(&done.stdout).expect("JSON")
}

#[test]
fn a_comparison_has_the_rivals_in_it_and_the_default_beats_lru_and_no_policy_the_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = trace(folder.path());
    let sizes = [trace.as_str(), "--disk", "16GB", "--ram", "7GB"];
    let told = json(&replay(&[&sizes[..], &["--compare", "--json"]].concat()));
    let mean = |report: &serde_json::Value| report["stall"]["mean"].as_f64().expect("a number");
    let rivals = told["compared"].as_array().expect("a list");
    let names: Vec<&str> = rivals.iter().filter_map(|rival| rival["policy"].as_str()).collect();
    assert_eq!((told["policy"].as_str(), &names[..]), (Some("value"), &["lru", "fifo", "bound (all-knowing)"][..]));
    assert!(mean(&told) < mean(&rivals[0]) && mean(&rivals[2]) <= mean(&told), "{told}");
    let text = replay(&[&sizes[..], &["--compare"]].concat());
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("OF LRU'S") && text.contains("bound (all-knowing)"), "{text}");
    let again = json(&replay(&[&sizes[..], &["--compare", "--json"]].concat()));
    assert_eq!(again, told, "the same trace, another answer");
}

#[test]
fn a_sweep_says_what_more_disk_brings_in_a_table_in_json_and_in_a_chart() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = trace(folder.path());
    let chart = folder.path().join("waiting.svg");
    let chart_name = chart.to_string_lossy();
    let sweep = [&trace, "--sweep", "--sweep-disk", "10GB,40GB,400GB", "--sweep-ram", "1GB,14GB"];
    let told = json(&replay(&[&sweep[..], &["--json", "--chart", &chart_name]].concat()));
    let reports = told["sweep"].as_array().expect("a list");
    assert_eq!(reports.len(), 6);
    let mean = |at: usize| reports[at]["stall"]["mean"].as_f64().expect("a number");
    assert!(mean(0) > mean(2) && mean(2) > mean(5), "more of both waits less: {reports:?}");
    assert_eq!((&reports[4]["disk"], &reports[4]["ram"]), (&40_000_000_000_u64.into(), &14_000_000_000_u64.into()));
    let svg = std::fs::read_to_string(&chart).expect("it was drawn");
    assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() == 2, "{svg}");
    let text = replay(&sweep);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("DISK") && text.contains("GiB RAM"), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with(" s")).count(), 3, "a row for each disk: {text}");
}

/// Requests with sizes, as a node sees them: some models are popular, sessions repeat, a few are rare.
fn live_trace(rng: &mut fastrand::Rng) -> Vec<(Duration, Vec<usize>)> {
    let mut at = Duration::ZERO;
    let mut session = 0;
    (0..LIVE_REQUESTS)
        .map(|_| {
            at += Duration::from_millis(rng.u64(50..850));
            if rng.u32(0..10) < 4 {
                // The smaller the number, the more popular.
                session = (rng.f64() * rng.f64() * LIVE_FILES as f64) as usize;
            }
            let beside = if rng.bool() { vec![session, rng.usize(0..LIVE_FILES)] } else { vec![session] };
            (at, beside)
        })
        .collect()
}

const LIVE_REQUESTS: usize = 300;
const LIVE_FILES: usize = 40;
/// Bytes a second of the origin's link.
const LIVE_RATE: u64 = 48 * MIB;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of two minutes, not a claim about a busy machine"]
async fn a_live_run_takes_as_long_as_its_replay_says() {
    let origin = FaultOrigin::start().await;
    let mut rng = fastrand::Rng::with_seed(11);
    let sizes: Vec<u64> = (0..LIVE_FILES).map(|_| rng.u64(6..48) * MIB).collect();
    let names: Vec<String> = (0..LIVE_FILES).map(|n| format!("loras/live{n}.safetensors")).collect();
    for (n, (name, bytes)) in names.iter().zip(&sizes).enumerate() {
        origin.put(name, &Content::model(3000 + n as u64, *bytes));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let traces = folder.path().join("traces");
    let disk = sizes.iter().sum::<u64>() / 2;
    let settings = Settings::with_origin(&origin)
        .set("store", "budget", &format!("\"{disk} B\""))
        .set("ram", "budget", "\"0\"")
        .set("fetch", "bandwidth_max", &format!("\"{LIVE_RATE} B\""))
        .set("trace", "record", &format!("\"{}\"", traces.display()));
    let mut daemon = Daemon::start(settings).await;
    let client = daemon.client().await;
    let begun = tokio::time::Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for (at, wanted) in live_trace(&mut rng) {
        tokio::time::sleep_until(begun + at).await;
        let (client, models) = (client.clone(), wanted.iter().map(|n| names[*n].clone()).collect::<Vec<_>>());
        running.spawn(async move {
            let models: Vec<&str> = models.iter().map(String::as_str).collect();
            let ready = client.ready(&models).await;
            let elapsed = ready.elapsed.and_then(Span::to_std).expect("always set").as_secs_f64();
            let missed = ready.models.iter().filter(|model| model.from() == tierd::rpc::pb::Tier::Origin);
            (elapsed, missed.map(|model| model.bytes).sum::<u64>())
        });
    }
    let waited = running.join_all().await;
    let live = waited.iter().map(|(elapsed, _)| elapsed).sum::<f64>() / waited.len() as f64;
    let missed = waited.iter().map(|(_, missed)| missed / MIB).sum::<u64>();
    daemon.stop().await;
    let trace = std::fs::read_dir(&traces)
        .expect("it was recorded")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| !path.to_string_lossy().ends_with(".requests.csv"))
        .expect("a trace");
    // What is on the disk is ready: only the origin's link counts.
    let (disk, rate) = (disk.to_string(), LIVE_RATE.to_string());
    let sizes = ["--disk", &disk, "--ram", "0", "--node", "copies", "--origin-rate", &rate, "--first-byte", "2ms"];
    let links = ["--disk-rate", "1000GB", "--ram-rate", "1000GB", "--json"];
    let told = json(&replay(&[&[&*trace.to_string_lossy()], &sizes[..], &links].concat()));
    assert_eq!(told["requests"], LIVE_REQUESTS, "each request was recorded");
    let replayed = told["ready"]["mean"].as_f64().expect("a number");
    println!("waited for {missed} MiB; the replay fetched {} B", told["origin_bytes"]);
    println!("mean time to ready: live {live:.3} s, replayed {replayed:.3} s, ratio {:.3}", live / replayed);
    assert!((0.8..=1.2).contains(&(live / replayed)), "live {live:.3} s, replayed {replayed:.3} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_asked_for_is_recorded_and_replays_with_names_hashed_if_asked() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        origin.put("loras/a.safetensors", &Content::model(2900, 2 * MIB));
        origin.put("vae/b.safetensors", &Content::model(2901, 3 * MIB));
        for hash in ["false", "true"] {
            let folder = tempfile::tempdir().expect("a folder");
            let record = format!("\"{}\"", folder.path().display());
            let settings =
                Settings::with_origin(&origin).set("trace", "record", &record).set("trace", "hash_names", hash);
            let mut daemon = Daemon::start(settings).await;
            let client = daemon.client().await;
            client.ready(&["loras/a.safetensors", "vae/b.safetensors"]).await;
            client.ready(&["vae/b.safetensors"]).await;
            daemon.stop().await;
            let trace = std::fs::read_dir(folder.path())
                .expect("a folder")
                .map(|entry| entry.expect("an entry").path())
                .find(|path| {
                    path.extension().is_some_and(|end| end == "csv") && !path.to_string_lossy().contains("requests")
                })
                .expect("it was recorded");
            let text = std::fs::read_to_string(&trace).expect("text");
            assert_eq!(text.contains("loras/a.safetensors"), hash == "false", "{text}");
            assert_eq!((text.lines().count(), text.contains(",3145728,vae")), (4, true), "{text}");
            let told = json(&replay(&[&*trace.to_string_lossy(), "--json"]));
            assert_eq!(told["requests"], 2);
        }
    })
    .await;
}
