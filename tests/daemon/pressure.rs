//! The claim that tierd gives RAM back before the kernel has to kill anyone, in a memory cgroup of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tierd::rpc::pb;
use tierd::rpc::pb::demoted_occurrence::Reason;
use tierd::rpc::pb::occurrence::What;

use crate::ram::locked;
use crate::rig::{Content, Daemon, FaultOrigin, MIB, Settings, within};

/// Size of each model.
const BYTES: u64 = 128 * MIB;
/// Models in RAM at the start.
const MODELS: u64 = 12;
/// What daemon and hog may take together: less than the models and the hog.
const LIMIT: u64 = 3072 * MIB;
/// What the hog takes.
const HOG: u64 = 2048 * MIB;
/// What else may happen after the hog's last byte: one look at the memory, and a step.
const LAG_SECONDS_MAX: i64 = 1;

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

    /// Processes that the kernel killed here.
    fn killed(&self) -> u64 {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(self.path.join(file)).expect("the group is there");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("the kernel counts them");
        line.parse().expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.path) {
            println!("{} stays: {error}", self.path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ram_is_given_back_before_anyone_is_killed_and_taken_again_afterwards() {
    let Some(group) = Group::new(LIMIT) else {
        println!("skipped: this process may not make a memory cgroup");
        return;
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
        let before = locked(daemon.pid());
        assert!(before == MODELS * BYTES || tier.mode == "warm", "{before}");

        // `tail` keeps all that it was given until the end: memory as fast as a pipe.
        let hog = format!("head -c {HOG} /dev/zero | tail -c {HOG} | wc -c");
        let wrapper = group.wrapper();
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).args(["sh", "-c", &hog]).stdin(Stdio::null());
        let began = tokio::time::Instant::now();
        let run = tokio::task::spawn_blocking(move || command.output());
        let output = run.await.expect("it does not panic").expect("a shell is there");
        let ended = tierd::rpc::time::Timestamp::from(tierd_cache::clock::Clock::start().wall());
        println!("the hog took {} MiB in {:?}", HOG / MIB, began.elapsed());
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), HOG.to_string(), "the hog was not served");
        assert_eq!(group.killed(), 0, "the kernel had to kill");

        let after = locked(daemon.pid());
        assert!(after < before, "nothing was given back");
        let mut given = 0;
        for event in client.events().await {
            let Some(What::Demoted(demoted)) = event.what else { continue };
            let reason = demoted.reason.expect("a demotion has a reason");
            assert!(matches!(reason, Reason::Pressure(_) | Reason::Shrunk(_)), "{reason:?}");
            let late = event.at.expect("always set").seconds - ended.seconds;
            assert!(late <= LAG_SECONDS_MAX, "a release lags by {late} s");
            given += demoted.bytes;
        }
        println!("{} of {} MiB were given back", given / MIB, before / MIB);

        // The hog is gone: there is room again.
        client.ready_in_ram(&names).await;
        assert_eq!(locked(daemon.pid()), before);
        daemon.stop().await;
    })
    .await;
    drop(group);
}
