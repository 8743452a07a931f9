//! The claim that tierd gives RAM back before the kernel has to kill anyone, and no more than is needed, in a memory cgroup of
//! its own; and the process that takes the memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{Advice, MmapMut};
use tierd::rpc::pb;
use tierd::rpc::pb::demoted_occurrence::Reason;
use tierd::rpc::pb::occurrence::What;
use tierd_cache::clock::Clock;

use crate::ram::{assert_locked, locked};
use crate::rig::{Content, Daemon, FaultOrigin, MIB, Settings, assert_within, skip, until, within};

/// Size of each model.
const BYTES: u64 = 128 * MIB;
/// Models in RAM at the start.
const MODELS: u64 = 12;
/// What daemon and hog may take together: less than the models and the hog.
const LIMIT: u64 = 3072 * MIB;
/// What of the limit is to stay free: a sixteenth, and at least this.
const HEADROOM: u64 = 256 * MIB;
/// What the hog takes.
const HOG: u64 = 2048 * MIB;
/// How fast it does, at most: bytes a second.
const HOG_RATE: u64 = 2_000_000_000;
/// What may go beyond what is needed: a step, a whole model instead of a part, and what hog and daemon need for themselves.
const GENEROUS: u64 = 256 * MIB + BYTES + 128 * MIB;
/// How long after the hog's last byte something may still go.
const LAG_MAX: Duration = Duration::from_secs(1);
/// How the test tells its own binary to be the hog.
const ROLE: &str = "TIERD_TEST_HOG_BYTES";

/// A memory cgroup, removed when this is dropped. Its processes must have ended by then.
struct Group {
    path: PathBuf,
    v2: bool,
}

impl Group {
    /// A group with this limit; `None` where this process may not make one.
    fn new(limit: u64) -> Option<Self> {
        let name = format!("tierd-test-{}", std::process::id());
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").is_file();
        let above = Path::new(if v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" });
        if v2 {
            // Where it is refused, the group has no limit to write to either.
            let _ = std::fs::write(above.join("cgroup.subtree_control"), "+memory");
        }
        let path = above.join(name);
        std::fs::create_dir(&path).ok()?;
        let group = Self { path, v2 };
        let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
        std::fs::write(group.path.join(file), limit.to_string()).ok()?;
        // Without swap, or the test would measure that.
        let swap = if v2 { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", limit) };
        // A kernel without swap accounting has no such file.
        let _ = std::fs::write(group.path.join(swap.0), swap.1.to_string());
        Some(group)
    }

    /// Words that run what follows inside the group.
    fn wrapper(&self) -> Vec<String> {
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.path.display());
        vec!["sh".to_owned(), "-c".to_owned(), enter, "sh".to_owned()]
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path.join(file)).expect("the group is there")
    }

    /// Processes that the kernel killed here.
    fn killed(&self) -> u64 {
        number(&self.read(if self.v2 { "memory.events" } else { "memory.oom_control" }), "oom_kill")
    }

    /// Bytes that can be had before the limit: by a count of the test's own.
    fn available(&self) -> u64 {
        let stat = self.read("memory.stat");
        let total = if self.v2 { "" } else { "total_" };
        let files = number(&stat, &format!("{total}inactive_file")) + number(&stat, &format!("{total}active_file"));
        let used = self.read(if self.v2 { "memory.current" } else { "memory.usage_in_bytes" });
        LIMIT + files - used.trim().parse::<u64>().expect("a number")
    }
}

/// The number behind a word at the start of a line.
fn number(text: &str, word: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {word} in {text}")).trim().parse().expect("a number")
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.path) {
            println!("{} stays: {error}", self.path.display());
        }
    }
}

/// The hog: takes memory in large pages from two threads, as fast as it is told, and says how long that took and when it had all.
#[test]
#[ignore = "a role of another test"]
fn takes_memory() {
    let Ok(bytes) = std::env::var(ROLE) else { return };
    const CHUNK: u64 = 16 * MIB;
    let bytes: u64 = bytes.parse().expect("a number");
    let (clock, taken) = (Clock::start(), AtomicU64::new(0));
    let began = clock.now();
    let hold = || {
        let mut all = Vec::new();
        loop {
            let at = taken.fetch_add(CHUNK, Ordering::Relaxed);
            if at >= bytes {
                return all;
            }
            let due = Duration::from_secs_f64(at as f64 / HOG_RATE as f64);
            std::thread::sleep(due.saturating_sub(clock.now().since(began)));
            let mut chunk = MmapMut::map_anon(CHUNK as usize).expect("there is address space");
            // Without large pages it takes its memory a little slower.
            let _ = chunk.advise(Advice::HugePage);
            chunk.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            all.push(chunk);
        }
    };
    let held = std::thread::scope(|scope| {
        let other = scope.spawn(hold);
        (hold(), other.join().expect("it does not panic"))
    });
    let (took, ended) = (clock.now().since(began).as_millis(), clock.wall().0);
    println!("hog took {took} ended {ended}");
    drop(held);
}

/// Runs the hog, in a group if one is given, to its end. Returns how long it took, and when it had all.
fn hog(group: Option<&Group>) -> (Duration, Duration) {
    let binary = std::env::current_exe().expect("a test has a binary").display().to_string();
    let words = [&binary, "--exact", "pressure::takes_memory", "--ignored", "--nocapture"].map(str::to_owned);
    let words: Vec<String> = group.map(Group::wrapper).unwrap_or_default().into_iter().chain(words).collect();
    let mut command = Command::new(&words[0]);
    let output = command.args(&words[1..]).env(ROLE, HOG.to_string()).stdin(Stdio::null()).output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stdout);
    let told =
        told.lines().find_map(|line| line.split_once("hog took ")).unwrap_or_else(|| panic!("killed: {output:?}"));
    let (took, ended) = told.1.split_once(" ended ").expect("both are told");
    let millis = |text: &str| Duration::from_millis(text.trim().parse().expect("a number"));
    (millis(took), millis(ended))
}

#[tokio::test(flavor = "multi_thread")]
async fn ram_is_given_back_before_anyone_is_killed_and_taken_again_afterwards() {
    let Some(group) = Group::new(LIMIT) else {
        return skip(
            "ram_is_given_back_before_anyone_is_killed_and_taken_again_afterwards",
            "this process may not make a memory cgroup",
        );
    };
    within(180, async {
        let origin = FaultOrigin::start().await;
        let names: Vec<_> = (0..MODELS).map(|at| format!("loras/{at:02}.safetensors")).collect();
        names.iter().zip(400..).for_each(|(name, seed)| origin.put(name, &Content::model(seed, BYTES)));
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let settings =
            Settings::with_origin(&origin).set("ram", "budget", "\"64 GiB\"").set("ram", "reserve", "\"64 MiB\"");
        let mut daemon = Daemon::prepare(settings);
        daemon.wrapper = group.wrapper();
        daemon.restart().await;
        let client = daemon.client().await;
        let tier = client.tier(pb::Tier::Ram).await;
        assert!(tier.capacity_bytes < LIMIT, "the limit of the cgroup is not seen: {tier:?}");
        client.ready_in_ram(&names).await;
        if tier.mode != "warm" {
            assert_locked(daemon.pid(), MODELS * BYTES).await;
        }
        let before = locked(daemon.pid());

        // Once outside: a virtual machine's host gives memory back slowly, and a hog that waits for it is none.
        hog(None);
        let needed = (HOG + HEADROOM).saturating_sub(group.available());
        let (took, ended) = hog(Some(&group));
        println!("the hog took {} MiB in {took:?}, {} MiB were needed", HOG / MIB, needed / MIB);
        assert_eq!(group.killed(), 0, "the kernel had to kill");
        let (mut given, mut last) = (0, Duration::ZERO);
        for event in client.events().await {
            let Some(What::Demoted(demoted)) = event.what else { continue };
            let reason = demoted.reason.expect("a demotion has a reason");
            assert!(matches!(reason, Reason::Pressure(_) | Reason::Shrunk(_)), "{reason:?}");
            let at = event.at.expect("always set");
            last = Duration::new(at.seconds as u64, at.nanos as u32);
            given += demoted.bytes;
        }
        println!("{} MiB were given back, the last {:?} after the hog", given / MIB, last.saturating_sub(ended));
        assert!(given + BYTES > needed, "{} of {} MiB were given back", given / MIB, needed / MIB);
        assert!(given <= needed + GENEROUS, "{} MiB were given back, {} were needed", given / MIB, needed / MIB);
        assert_within(last.saturating_sub(ended), LAG_MAX, "the last release behind the hog");

        // The hog is gone: what went comes back by itself, once it was calm for a while.
        until("the tier has grown back", 60, || async { (locked(daemon.pid()) == before).then_some(()) }).await;
        daemon.stop().await;
    })
    .await;
    drop(group);
}
