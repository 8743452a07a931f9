//! A pair of eyes on the models folder: fails the test if a name was ever seen with anything but its whole content.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Content, MIB};

/// Looks at one name again and again, in a thread of its own.
pub(crate) struct Eyes {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<Option<String>>>,
}

impl Eyes {
    /// Starts to look at `path`, which may only ever show `content`.
    pub(crate) fn on(path: PathBuf, content: Content) -> Self {
        let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, looked) = (Arc::clone(&stop), Arc::clone(&looks));
        let thread = std::thread::spawn(move || {
            let mut inode_seen = None;
            while !stopped.load(SeqCst) {
                if let Some(bad) = look(&path, &content, &mut inode_seen) {
                    return Some(bad);
                }
                looked.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        });
        Self { stop, looks, thread: Some(thread) }
    }

    /// How often it looked so far.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(SeqCst)
    }

    /// Whether it has seen enough and ended.
    pub(crate) fn has_seen_bad(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Stops, and fails if anything but the whole content was ever seen. Says how often it looked.
    pub(crate) fn assert_clean(mut self) -> u64 {
        self.stop.store(true, SeqCst);
        let seen = self.thread.take().expect("it is joined once").join().expect("eyes do not panic");
        assert_eq!(seen, None, "a file that is not whole was visible");
        self.looks.load(SeqCst)
    }
}

impl Drop for Eyes {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// What is wrong with the file, if it is there. Each new inode is compared at the head of every MiB, later looks at its size.
fn look(path: &Path, content: &Content, inode_seen: &mut Option<u64>) -> Option<String> {
    let file = File::open(path).ok()?;
    let meta = file.metadata().ok()?;
    if meta.len() != content.bytes() {
        return Some(format!("{} has {} bytes of {}", path.display(), meta.len(), content.bytes()));
    }
    if inode_seen.replace(meta.ino()) == Some(meta.ino()) {
        return None;
    }
    let mut buffer = [0; 4096];
    let mut at = 0;
    while at < content.bytes() {
        let want = content.slice(at..content.bytes(), buffer.len());
        let read = &mut buffer[..want.len()];
        if file.read_exact_at(read, at).is_err() || read != &want[..] {
            return Some(format!("{} differs at {at}", path.display()));
        }
        at += MIB;
    }
    None
}
