//! Claims about the RAM tier: what is held stays, what is not goes, and nothing of it outlives the daemon.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, fadvise};
use tierd::rpc::pb;
use tierd::rpc::pb::demoted_occurrence::Reason;
use tierd::rpc::pb::occurrence::What;
use tonic::Code;

use crate::rig::{Client, Content, Daemon, FaultOrigin, MIB, Settings, is_root, skip, until, within};

pub(crate) const NAMES: [&str; 4] =
    ["text_encoders/t5.safetensors", "diffusion_models/flux.safetensors", "vae/ae.safetensors", "loras/a.safetensors"];
/// Size of each model.
pub(crate) const BYTES: u64 = 48 * MIB;
/// The user that owns nothing.
const NOBODY: u32 = 65_534;
/// What a daemon reads from the disk beside models: its own state, and its own program where that was evicted meanwhile.
const OWN_READS: u64 = BYTES / 2;

/// A daemon with room in RAM for so many models, and an origin with four of them.
async fn node(room: u64) -> (FaultOrigin, Daemon, Client) {
    let (origin, settings) = settings(room).await;
    let daemon = Daemon::start(settings).await;
    let client = daemon.client().await;
    (origin, daemon, client)
}

/// Its settings.
pub(crate) async fn settings(room: u64) -> (FaultOrigin, Settings) {
    let origin = FaultOrigin::start().await;
    for (seed, name) in NAMES.iter().enumerate() {
        origin.put(name, &Content::model(300 + seed as u64, BYTES));
    }
    let budget = format!("\"{} B\"", room * BYTES + MIB);
    let settings = Settings::with_origin(&origin).set("ram", "budget", &budget).set("ram", "reserve", "\"64 MiB\"");
    (origin, settings)
}

/// Whether pages can be locked here; where not, the test is skipped.
pub(crate) fn may_lock(test: &str) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("there is a /proc");
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("the kernel says it").trim();
    let capable = u64::from_str_radix(mask, 16).expect("hex") & (1 << 14) != 0;
    if !capable {
        skip(test, "it needs CAP_IPC_LOCK");
    }
    capable
}

/// Bytes that a process has locked, by the kernel's count.
pub(crate) fn locked(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("the kernel says it");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

/// Waits until a process has just so many bytes locked; it must have them at once. What has just landed is mapped twice for a moment, and
/// counted so: where it landed, and where it is held.
pub(crate) async fn assert_locked(pid: u32, bytes: u64) {
    assert!(locked(pid) >= bytes, "{} of {bytes} bytes are locked", locked(pid));
    until("each page is held once", 10, || async { (locked(pid) == bytes).then_some(()) }).await;
}

/// Bytes that a process has caused to be read from the disk.
pub(crate) fn read_from_disk(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).expect("the kernel says it");
    line.parse().expect("a number")
}

/// Bytes of a file in the page cache, by the kernel's count.
fn resident(path: &Path) -> u64 {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let bytes = file.metadata().expect("an open file has a size").len();
    tierd_cache::resident::resident_bytes(&file, 0..bytes).expect("the kernel counts")
}

/// Loads a file as ComfyUI does: 8 threads, 2 MiB at a time, and each tells the kernel behind itself to forget it.
fn load_like_comfyui(path: &Path) {
    const PART: u64 = 2 * MIB;
    let file = File::open(path).expect("it is there");
    let bytes = file.metadata().expect("an open file has a size").len();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut buffer = vec![0; PART as usize];
                loop {
                    let at = next.fetch_add(PART, Ordering::Relaxed);
                    if at >= bytes {
                        return;
                    }
                    let part = &mut buffer[..PART.min(bytes - at) as usize];
                    file.read_exact_at(part, at).expect("it can be read");
                    let length = std::num::NonZeroU64::new(part.len() as u64);
                    fadvise(&file, at, length, Advice::DontNeed).expect("advice is taken");
                }
            });
        }
    });
}

/// Why models left RAM, in order.
async fn demotions(client: &Client) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for event in client.events().await {
        if let Some(What::Demoted(demoted)) = event.what {
            let why = match demoted.reason.expect("a demotion has a reason") {
                Reason::Room(room) => room.wanted_by,
                Reason::Asked(asked) => asked.by,
                Reason::Removed(_) => "removed".to_owned(),
                other => format!("{other:?}"),
            };
            all.push((demoted.models.join(" "), why));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_model_survives_ten_loads_and_an_unlocked_one_none() {
    if !may_lock("a_locked_model_survives_ten_loads_and_an_unlocked_one_none") {
        return;
    }
    within(60, async {
        let (_origin, daemon, client) = node(4).await;
        client.ready_in_ram(&NAMES[..1]).await;
        client.ready(&NAMES[1..2]).await;
        let (held, loose) = (daemon.model(NAMES[0]), daemon.model(NAMES[1]));
        for _ in 0..10 {
            load_like_comfyui(&held);
            load_like_comfyui(&loose);
        }
        assert_eq!(resident(&held), BYTES, "a load took locked pages away");
        // Read-ahead (4 MiB here, for each reader that waits for its turn) may bring pages of a part that its reader is done with.
        until("a load takes pages that nobody holds", 20, || async {
            load_like_comfyui(&loose);
            (resident(&loose) < BYTES / 4).then_some(())
        })
        .await;
        assert_eq!(resident(&held), BYTES, "a load took locked pages away");
        assert_locked(daemon.pid(), BYTES).await;
        assert_eq!(client.model(NAMES[0]).await.expect("known").tier(), pb::Tier::Ram);
        assert_eq!(client.model(NAMES[1]).await.expect("known").tier(), pb::Tier::Nvme);
        let ram = client.tier(pb::Tier::Ram).await;
        assert_eq!((ram.mode.as_str(), ram.used_bytes, ram.models), ("locked", BYTES, 1));
        Content::model(300, BYTES).assert_is(&held);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_locks_the_same_set_again_and_reads_only_what_was_evicted() {
    if !may_lock("a_restart_locks_the_same_set_again_and_reads_only_what_was_evicted") {
        return;
    }
    within(60, async {
        let (_origin, mut daemon, client) = node(4).await;
        client.ready_in_ram(&NAMES[..3]).await;
        client.ready(&NAMES[3..]).await;
        client.demote(&NAMES[2..3]).await.expect("the call is good");
        until("it is demoted", 10, || async { (locked(daemon.pid()) == 2 * BYTES).then_some(()) }).await;
        assert!(daemon.stop().await.success());
        // Nothing holds them now, and this machine may take some back at any time.
        let kept: u64 = NAMES[..2].iter().map(|name| resident(&daemon.model(name))).sum();
        daemon.restart().await;
        let client = daemon.client().await;
        until("the set is locked again", 20, || async { (locked(daemon.pid()) == 2 * BYTES).then_some(()) }).await;
        let read = read_from_disk(daemon.pid());
        assert!(read < 2 * BYTES - kept + OWN_READS, "{} MiB were read, {} were kept", read / MIB, kept / MIB);
        for (name, tier) in NAMES.iter().zip([pb::Tier::Ram, pb::Tier::Ram, pb::Tier::Nvme, pb::Tier::Nvme]) {
            until("the books say the same", 10, || async {
                (client.model(name).await.expect("known").tier() == tier).then_some(())
            })
            .await;
        }
        let events = client.events().await;
        let start = events.iter().rposition(|event| matches!(event.what, Some(What::Started(_)))).expect("it started");
        let promoted = events[start..].iter().filter(|event| matches!(event.what, Some(What::Promoted(_)))).count();
        assert_eq!(promoted, 2, "{events:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_leaves_no_lock_behind() {
    if !may_lock("a_killed_daemon_leaves_no_lock_behind") {
        return;
    }
    within(60, async {
        let (_origin, mut daemon, client) = node(4).await;
        client.ready_in_ram(&NAMES[..1]).await;
        let path = daemon.model(NAMES[0]);
        let forget = || {
            let file = File::open(&path).expect("it is there");
            fadvise(&file, 0, None, Advice::DontNeed).expect("advice is taken");
            resident(&path)
        };
        assert_eq!(forget(), BYTES, "locked pages are not forgotten");
        daemon.kill();
        until("the pages can be taken", 10, || async { (forget() == 0).then_some(()) }).await;
        daemon.restart().await;
        until("a killed daemon's set is locked again", 20, || async { (locked(daemon.pid()) == BYTES).then_some(()) })
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_to_be_ready_in_ram_is_locked_again_after_a_kill_right_then() {
    if !may_lock("what_was_told_to_be_ready_in_ram_is_locked_again_after_a_kill_right_then") {
        return;
    }
    within(60, async {
        let (_origin, mut daemon, client) = node(4).await;
        client.ready(&NAMES).await;
        // One at a time: each set is one more to lose.
        for count in 1..=NAMES.len() as u64 {
            let client = daemon.client().await;
            client.ready_in_ram(&NAMES[..count as usize]).await;
            daemon.kill();
            daemon.restart().await;
            until("the set that was told is locked again", 20, || async {
                (locked(daemon.pid()) == count * BYTES).then_some(())
            })
            .await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_lock_the_tier_is_warm_and_says_why() {
    let test = "without_the_right_to_lock_the_tier_is_warm_and_says_why";
    if !is_root() {
        return skip(test, "only root has a capability to give away");
    }
    within(60, async {
        let (_origin, settings) = settings(4).await;
        let mut daemon = Daemon::prepare(settings);
        let unable = "prlimit --memlock=8388608:8388608 setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock";
        daemon.wrapper = unable.split(' ').map(str::to_owned).collect();
        daemon.restart().await;
        let client = daemon.client().await;
        client.ready_in_ram(&NAMES[..1]).await;
        let ram = client.tier(pb::Tier::Ram).await;
        assert_eq!((ram.mode.as_str(), ram.used_bytes), ("warm", BYTES));
        for part in ["RLIMIT_MEMLOCK is 8 MiB", "CAP_IPC_LOCK is missing", "LimitMEMLOCK=infinity"] {
            assert!(ram.detail.contains(part), "{part} is missing in {}", ram.detail);
        }
        assert_eq!(locked(daemon.pid()), 0);
        assert_eq!(resident(&daemon.model(NAMES[0])), BYTES);

        // Everything else works.
        client.ready(&NAMES[1..2]).await;
        Content::model(301, BYTES).assert_is(&daemon.model(NAMES[1]));
        assert_eq!(client.demote(&NAMES[..1]).await.expect("the call is good").demoted, NAMES[..1]);
        assert_eq!(client.evict(&NAMES[..2]).await.expect("the call is good").evicted.len(), 2);
        let doctor = daemon.cli().run(&["doctor"]).await.assert_code(1);
        let wrong: Vec<_> = doctor.out.lines().filter(|line| line.starts_with("WRONG")).collect();
        assert!(wrong.len() == 1 && wrong[0].contains("ram") && wrong[0].contains("warm"), "{}", doctor.out);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_is_not_root_locks_pages_with_the_units_capability() {
    let test = "a_user_that_is_not_root_locks_pages_with_the_units_capability";
    if !may_lock(test) || !is_root() {
        return skip(test, "only root has a capability to give");
    }
    within(60, async {
        let (_origin, settings) = settings(4).await;
        let mut daemon = Daemon::prepare(settings);
        // Nobody may not enter every folder that a program is built in.
        let program = daemon.dir().join("tierd");
        std::fs::copy(env!("CARGO_BIN_EXE_tierd"), &program).expect("the binary can be copied");
        std::os::unix::fs::chown(daemon.dir(), Some(NOBODY), Some(NOBODY)).expect("root may");
        let with = "prlimit --memlock=8388608:8388608 setpriv --reuid 65534 --regid 65534 --clear-groups \
                    --inh-caps=-all,+ipc_lock --ambient-caps=-all,+ipc_lock --bounding-set=-all,+ipc_lock";
        let run = format!("shift; exec {with} {} \"$@\"", program.display());
        daemon.wrapper = vec!["sh".to_owned(), "-c".to_owned(), run, "sh".to_owned()];
        daemon.restart().await;
        let client = daemon.client().await;
        client.ready_in_ram(&NAMES[..1]).await;
        let ram = client.tier(pb::Tier::Ram).await;
        assert_eq!((ram.mode.as_str(), ram.used_bytes), ("locked", BYTES), "{}", ram.detail);
        assert_locked(daemon.pid(), BYTES).await;
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
        assert!(status.contains("CapEff:\t0000000000004000") && status.contains("Uid:\t65534"), "{status}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_beyond_the_ram_budget_is_refused_with_numbers_and_fits_on_the_disk() {
    within(60, async {
        let (origin, daemon, client) = node(2).await;
        let outcome = client.ensure_in_ram(&NAMES[..3]).await;
        let (kind, code, _) = outcome.fault();
        assert_eq!((kind, code), (pb::FaultKind::NoMemory, Code::ResourceExhausted));
        let fault = outcome.failed.and_then(|failed| failed.fault).expect("a failed end has a fault");
        assert_eq!(fault.needed_bytes, Some(3 * BYTES));
        assert_eq!((fault.free_bytes, fault.evictable_bytes), (Some(2 * BYTES + MIB), Some(0)));
        let status = outcome.status.expect("a failed call has a status");
        let info = tonic_types::StatusExt::get_details_error_info(&status).expect("it has details");
        assert_eq!((info.reason.as_str(), info.metadata["tier"].as_str()), ("NO_MEMORY", "ram"));
        assert_eq!(info.metadata["needed_bytes"], (3 * BYTES).to_string());
        assert_eq!(NAMES.map(|name| origin.sent(name)), [0; 4], "not a byte was fetched");

        let mut words = vec!["ensure", "--target", "ram"];
        words.extend(&NAMES[..3]);
        let done = daemon.cli().run(&words).await.assert_code(4);
        assert!(done.err.contains("144 MiB of RAM needed"), "{}", done.err);
        words[2] = "nvme";
        daemon.cli().run(&words).await.assert_code(0);
        assert_eq!(client.tier(pb::Tier::Ram).await.used_bytes, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn demotion_frees_ram_and_leaves_the_disk_as_it_is() {
    if !may_lock("demotion_frees_ram_and_leaves_the_disk_as_it_is") {
        return;
    }
    within(60, async {
        let (_origin, daemon, client) = node(4).await;
        client.ready(&NAMES[..2]).await;
        let cli = daemon.cli();
        cli.run(&["promote", NAMES[0], NAMES[1]]).await.assert_code(0);
        until("both are locked", 20, || async { (locked(daemon.pid()) == 2 * BYTES).then_some(()) }).await;
        cli.run(&["promote", NAMES[2]]).await.assert_code(3);
        cli.run(&["demote", NAMES[0]]).await.assert_code(0);
        until("one is unlocked", 20, || async { (locked(daemon.pid()) == BYTES).then_some(()) }).await;
        until("its bytes are free", 20, || async {
            (client.tier(pb::Tier::Ram).await.used_bytes == BYTES).then_some(())
        })
        .await;
        assert_eq!(client.model(NAMES[0]).await.expect("known").tier(), pb::Tier::Nvme);
        Content::model(300, BYTES).assert_is(&daemon.model(NAMES[0]));
        cli.run(&["demote", NAMES[0]]).await.assert_code(3);
        let listed = cli.run(&["events"]).await.assert_code(0);
        assert!(listed.out.contains(&format!("demoted {}", NAMES[0])), "{}", listed.out);
        let shown = cli.run(&["models", "--tier", "ram"]).await.assert_code(0);
        assert!(shown.out.contains(NAMES[1]) && !shown.out.contains(NAMES[0]), "{}", shown.out);
        assert!(demotions(&client).await[0].1.starts_with("uid:"), "who asked is recorded");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_lease_is_never_demoted_and_a_soft_one_last() {
    within(60, async {
        let (_origin, _daemon, client) = node(3).await;
        client.ready(&NAMES).await;
        client.ready_in_ram(&NAMES[..1]).await;
        let hard = client.pin_in_ram(&NAMES[..1], pb::RamHold::Hard).await.expect("it fits");
        assert_eq!(hard.ram(), pb::RamHold::Hard);
        client.ready_in_ram(&NAMES[1..2]).await;
        client.pin_in_ram(&NAMES[1..2], pb::RamHold::Soft).await.expect("it fits");
        client.ready_in_ram(&NAMES[2..3]).await;

        // The newest goes: what came before it is held.
        client.ready_in_ram(&NAMES[3..]).await;
        assert_eq!(demotions(&client).await, [(NAMES[2].to_owned(), NAMES[3].to_owned())]);
        let kept = client.demote(&NAMES[..1]).await.expect("the call is good").kept;
        assert_eq!(kept[0].fault.as_ref().expect("always set").kind(), pb::FaultKind::Held);
        let refused = client.pin_in_ram(&NAMES, pb::RamHold::Hard).await.expect_err("three fit, not four");
        assert_eq!(tierd::rpc::fault::of_status(&refused).kind(), pb::FaultKind::NoMemory);

        // A soft hold gives way when nothing else is left, a hard one does not.
        client.pin_in_ram(&NAMES[3..], pb::RamHold::Hard).await.expect("it fits");
        client.ready_in_ram(&NAMES[2..3]).await;
        assert_eq!(demotions(&client).await[1..], [(NAMES[1].to_owned(), NAMES[2].to_owned())]);
        let (kind, ..) = client.ensure_in_ram(&NAMES[1..3]).await.fault();
        assert_eq!(kind, pb::FaultKind::NoMemory, "two of three are held hard");
        assert_eq!(client.model(NAMES[0]).await.expect("known").tier(), pb::Tier::Ram);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_leaves_the_disk_leaves_ram_first() {
    if !may_lock("a_model_that_leaves_the_disk_leaves_ram_first") {
        return;
    }
    within(60, async {
        let (_origin, daemon, client) = node(4).await;
        client.ready_in_ram(&NAMES[..2]).await;
        let report = client.evict(&NAMES[..1]).await.expect("the call is good");
        assert_eq!((report.evicted.len(), report.bytes_freed), (1, BYTES), "{report:?}");
        until("its pages are given back", 10, || async { (locked(daemon.pid()) == BYTES).then_some(()) }).await;
        assert_eq!(demotions(&client).await, [(NAMES[0].to_owned(), "removed".to_owned())]);
        assert!(!daemon.model(NAMES[0]).exists());
        until("its bytes are free", 10, || async {
            (client.tier(pb::Tier::Ram).await.used_bytes == BYTES).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_that_is_off_holds_nothing_and_says_so() {
    within(60, async {
        let (_origin, settings) = settings(4).await;
        let daemon = Daemon::start(settings.set("ram", "budget", "0")).await;
        let client = daemon.client().await;
        let ram = client.tier(pb::Tier::Ram).await;
        assert_eq!((ram.mode.as_str(), ram.capacity_bytes), ("off", 0));
        assert_eq!(client.ensure_in_ram(&NAMES[..1]).await.fault().0, pb::FaultKind::NoMemory);
        client.ready(&NAMES[..1]).await;
    })
    .await;
}
