//! Watches memory: the kernel's pressure stall information (PSI) where it is on, and what is available in any case, several times
//! a second. Reports what it sees; decides nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::budget::Cgroup;
use super::limits::{self, Limits};
use super::relief::LOOK_INTERVAL_MAX;

/// The triggers that are tried, best first: microseconds of stall, in a window of microseconds. A window that is not a multiple
/// of 2 s needs `CAP_SYS_RESOURCE`.
const WINDOWS: [(u32, u32); 2] = [(150_000, 1_000_000), (150_000, 2_000_000)];

/// Where news of pressure comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The kernel tells of stalls; available memory is looked at too.
    Psi {
        /// The window in which it counts stalls.
        window: Duration,
    },
    /// Only available memory is looked at.
    Polling {
        /// Why the kernel does not tell.
        why: String,
    },
}

impl Source {
    /// For how long the kernel may tell of a stall whose cause is gone; 0 where it tells of none.
    #[must_use]
    pub fn window(&self) -> Duration {
        match self {
            Self::Psi { window } => *window,
            Self::Polling { .. } => Duration::ZERO,
        }
    }

    /// The word for status and metrics: `psi` or `polling`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Psi { .. } => "psi",
            Self::Polling { .. } => "polling",
        }
    }
}

/// What the kernel says of stalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No stall since the last look, or the kernel does not tell.
    Calm,
    /// Some tasks waited for memory.
    Some,
    /// All of them did.
    Full,
}

/// One look at the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pressure {
    /// Where the level comes from.
    pub source: Source,
    /// Stalls since the last look.
    pub level: Level,
    /// Bytes that the kernel calls available on the node.
    pub available: u64,
    /// The tightest cgroup above this process, if one limits memory.
    pub cgroup: Option<Cgroup>,
    /// Bytes that the tier had locked just before this look. Not after: what is unlocked meanwhile would count as missing twice.
    pub locked: u64,
}

/// A thread that watches, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
    source: Source,
}

impl Watch {
    /// Starts to watch. `report` is called on the watching thread after each look, and says when the next one is due; it comes
    /// sooner if something stalls. `locked` tells what the tier has locked. Neither must block.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn start(
        locked: impl Fn() -> u64 + Send + 'static,
        report: impl Fn(Pressure) -> Duration + Send + 'static,
    ) -> io::Result<Self> {
        Self::below(PathBuf::from("/"), locked, report)
    }

    fn below(
        root: PathBuf,
        locked: impl Fn() -> u64 + Send + 'static,
        report: impl Fn(Pressure) -> Duration + Send + 'static,
    ) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let (source, triggers) = triggers(&root);
        let mut eyes = Eyes { root, triggers, source: source.clone(), interval: Duration::ZERO, stop: stopped };
        let thread = std::thread::Builder::new().name("pressure".to_owned());
        let thread = thread.spawn(move || eyes.watch(&locked, &report))?;
        Ok(Self { stop, thread: Some(thread), source })
    }

    /// Where news of pressure comes from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // An eventfd takes this unless its counter is full, which one write cannot do.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A report that panicked ended the watch; there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

/// A stall that the kernel tells of.
struct Trigger {
    file: File,
    level: Level,
}

struct Eyes {
    root: PathBuf,
    triggers: Vec<Trigger>,
    source: Source,
    /// Until the next look; the first is at once.
    interval: Duration,
    stop: OwnedFd,
}

impl Eyes {
    fn watch(&mut self, locked: &dyn Fn() -> u64, report: &dyn Fn(Pressure) -> Duration) {
        loop {
            let level = match self.wait() {
                Ok(Some(level)) => level,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "memory pressure can no longer be waited for");
                    return;
                }
            };
            let locked = locked();
            match limits::read_limits_below(&self.root) {
                Ok(Limits { available, cgroup, .. }) => {
                    let cgroup = cgroup.map(|(_, group)| group);
                    let look = Pressure { source: self.source.clone(), level, available, cgroup, locked };
                    self.interval = report(look);
                }
                Err(error) => {
                    tracing::debug!(%error, "memory could not be looked at");
                    self.interval = LOOK_INTERVAL_MAX;
                }
            }
        }
    }

    /// Waits for a stall or for the interval to pass; `None` once the watch is over.
    fn wait(&mut self) -> io::Result<Option<Level>> {
        let timeout = Timespec::try_from(self.interval).map_err(io::Error::other)?;
        let mut polled = vec![PollFd::new(&self.stop, PollFlags::IN)];
        polled.extend(self.triggers.iter().map(|trigger| PollFd::new(&trigger.file, PollFlags::PRI)));
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Some(Level::Calm)),
            Err(error) => return Err(error.into()),
        }
        let answers: Vec<PollFlags> = polled.iter().map(PollFd::revents).collect();
        if answers[0].contains(PollFlags::IN) {
            return Ok(None);
        }
        let mut answers = answers[1..].iter();
        let mut level = Level::Calm;
        self.triggers.retain(|trigger| {
            let answer = answers.next().copied().unwrap_or(PollFlags::empty());
            if answer.contains(PollFlags::PRI) {
                level = level.max(trigger.level);
            }
            // Its cgroup is gone: asking on would return at once, for ever.
            !answer.intersects(PollFlags::ERR | PollFlags::NVAL)
        });
        if self.triggers.is_empty() && matches!(self.source, Source::Psi { .. }) {
            self.source = Source::Polling { why: "the kernel withdrew its triggers".to_owned() };
        }
        Ok(Some(level))
    }
}

/// Sets the triggers that the kernel grants: for the node, and for our own cgroup.
fn triggers(root: &Path) -> (Source, Vec<Trigger>) {
    let node = root.join("proc/pressure/memory");
    let mut refusal = None;
    for (stall, window) in WINDOWS {
        let mut set = Vec::new();
        for path in std::iter::once(node.clone()).chain(limits::cgroup_pressure(root)) {
            for (word, level) in [("some", Level::Some), ("full", Level::Full)] {
                match trigger(&path, &format!("{word} {stall} {window}\0")) {
                    Ok(file) => set.push(Trigger { file, level }),
                    Err(error) => {
                        tracing::debug!(path = %path.display(), word, window, %error, "no memory pressure trigger");
                        refusal.get_or_insert(error);
                    }
                }
            }
        }
        if !set.is_empty() {
            return (Source::Psi { window: Duration::from_micros(u64::from(window)) }, set);
        }
    }
    let why = refusal.map_or_else(|| "no file to ask".to_owned(), |error| error.to_string());
    (Source::Polling { why: format!("{}: {why} (a kernel with psi=1 tells)", node.display()) }, Vec::new())
}

fn trigger(path: &Path, words: &str) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("open flags fit an i32");
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    file.write_all(words.as_bytes())?;
    // Anything accepts a write; only the kernel's own file is worth waiting for.
    let kernel = rustix::fs::fstatfs(file.as_fd())?.f_type;
    if matches!(kernel.cast_unsigned() as u32, PROC_MAGIC | CGROUP2_MAGIC) {
        Ok(file)
    } else {
        Err(Errno::NOTSUP.into())
    }
}

/// File systems whose pressure files can be waited for.
const PROC_MAGIC: u32 = 0x9fa0;
const CGROUP2_MAGIC: u32 = 0x6367_7270;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::units::GIB;

    const LONG: Duration = Duration::from_secs(20);

    /// Looks every millisecond, and tells of each.
    fn report(tell: mpsc::Sender<Pressure>) -> impl Fn(Pressure) -> Duration {
        move |look| {
            // Nobody listens once the test has seen enough.
            let _ = tell.send(look);
            Duration::from_millis(1)
        }
    }

    #[test]
    fn a_watch_reports_and_stops_when_dropped() {
        let (tell, told) = mpsc::channel();
        let watch = Watch::start(|| 7, report(tell)).expect("starts");
        let look = told.recv_timeout(LONG).expect("a look");
        println!("{:?}", watch.source());
        assert_eq!(&look.source, watch.source());
        assert!(look.available > 0 && look.locked == 7);
        drop(watch);
        // The sender lived on the thread: it is gone, so the list ends.
        assert!(told.iter().count() < 1_000_000);
    }

    #[test]
    fn the_limit_of_a_v2_cgroup_is_part_of_each_look() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("makes folders");
            std::fs::write(path, text).expect("writes");
        };
        write("proc/meminfo", "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n");
        write("proc/self/cgroup", "0::/kubepods/pod1\n");
        write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        write("sys/fs/cgroup/kubepods/pod1/memory.max", "1073741824\n");
        write("sys/fs/cgroup/kubepods/pod1/memory.high", "max\n");
        write("sys/fs/cgroup/kubepods/pod1/memory.stat", "inactive_file 1048576\nactive_file 0\nunevictable 4096\n");
        write("sys/fs/cgroup/kubepods/pod1/memory.current", "2097152\n");
        let (tell, told) = mpsc::channel();
        let watch = Watch::below(root.path().to_owned(), || 0, report(tell)).expect("starts");
        let cgroup = |used| Some(Cgroup { limit: GIB, used, reclaimable: 1 << 20 });
        assert_eq!(told.recv_timeout(LONG).expect("a look").cgroup, cgroup(2 << 20));
        // Somebody takes memory: a look soon tells. One may meet the file between two writes.
        write("sys/fs/cgroup/kubepods/pod1/memory.current", "1072693248\n");
        let seen = std::iter::from_fn(|| told.recv_timeout(LONG).ok()).any(|look| look.cgroup == cgroup(1023 << 20));
        assert!(seen, "no look tells");
        drop(watch);
    }

    #[test]
    fn where_the_kernel_does_not_tell_the_watch_polls_and_says_why() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(root.path().join("proc")).expect("makes folders");
        let meminfo = "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n";
        std::fs::write(root.path().join("proc/meminfo"), meminfo).expect("writes");
        let (tell, told) = mpsc::channel();
        let watch = Watch::below(root.path().to_owned(), || 0, report(tell)).expect("starts");
        let Source::Polling { why } = watch.source() else { panic!("{watch:?}") };
        assert!(why.contains("proc/pressure/memory") && why.contains("psi=1"), "{why}");
        let look = told.recv_timeout(LONG).expect("a look");
        assert_eq!((look.level, look.available, look.cgroup), (Level::Calm, GIB, None));
    }
}
