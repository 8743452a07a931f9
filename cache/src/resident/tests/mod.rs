//! Tests of the RAM tier against the real kernel: files on a real disk, readers like ComfyUI's, processes that are killed or
//! may not lock. A test that needs what this machine refuses says so and passes.

mod locks;
mod roles;
mod speed;
mod warm;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::fs::Advice;
use tempfile::TempDir;

use super::*;

static NEVER: AtomicBool = AtomicBool::new(false);

/// Names the file that a role works on.
const FILE: &str = "TIERD_TEST_FILE";

/// A folder on a file system that has a disk below it: pages of a tmpfs are always resident.
fn folder() -> TempDir {
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    let dir = tempfile::tempdir().expect("a folder");
    let kind = rustix::fs::statfs(dir.path()).expect("a file system").f_type;
    if kind as u32 == TMPFS_MAGIC { tempfile::tempdir_in("/var/tmp").expect("a folder") } else { dir }
}

/// Makes a file of `bytes` bytes that differ, and evicts it.
fn file(dir: &TempDir, name: &str, bytes: u64) -> PathBuf {
    let path = dir.path().join(name);
    let mut file = File::create(&path).expect("creates");
    let block: Vec<u8> = (0..MIB as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(MIB);
        file.write_all(&block[..part as usize]).expect("writes");
        left -= part;
    }
    file.sync_all().expect("syncs");
    evict(&path);
    path
}

/// Asks the kernel to forget a file. What is locked or mapped stays.
fn evict(path: &Path) {
    let file = File::open(path).expect("opens");
    file.sync_all().expect("syncs");
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("advises");
}

/// Bytes of a file that are in the page cache.
fn cached(path: &Path) -> u64 {
    let file = File::open(path).expect("opens");
    let bytes = file.metadata().expect("is there").len();
    resident_bytes(&file, 0..bytes).expect("counts").min(bytes)
}

/// Opens a file for writing past the page cache.
fn open_direct(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("open flags fit an i32");
    File::options().write(true).custom_flags(flags).open(path)
}

fn hold(resident: &Resident, path: &Path) -> Result<Held, ResidentError> {
    let bytes = fs::metadata(path).expect("is there").len();
    let progress = AtomicU64::new(0);
    let held = resident.hold(path, bytes, &NEVER, &progress)?;
    assert_eq!(progress.load(Relaxed), bytes);
    Ok(held)
}

/// The room, if this machine lets tests lock.
fn locking() -> Option<Resident> {
    let resident = Resident::open();
    if matches!(resident.mode(), Mode::Locked { limit: None }) {
        return Some(resident);
    }
    println!("skipped: {:?}", resident.mode());
    None
}

/// Loads a file as ComfyUI does: 2 MiB at a time from 8 threads, dropped from the page cache behind the reader.
fn load_like_comfyui(path: &Path) {
    const PART: u64 = 2 * MIB;
    let file = File::open(path).expect("opens");
    let bytes = file.metadata().expect("is there").len();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut buffer = vec![0; PART as usize];
                loop {
                    let at = next.fetch_add(PART, Relaxed);
                    if at >= bytes {
                        break;
                    }
                    let part = PART.min(bytes - at);
                    file.read_exact_at(&mut buffer[..part as usize], at).expect("reads");
                    let part = std::num::NonZeroU64::new(part);
                    rustix::fs::fadvise(&file, at, part, Advice::DontNeed).expect("advises");
                }
            });
        }
    });
}

/// This test program again, as a process of its own that plays a role of `roles.rs`.
fn process(role: &str, file: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    let role = format!("resident::tests::roles::{role}");
    command.args([&role, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(FILE, file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Plays a role to its end, which must be a good one.
fn play(role: &str, file: &Path) {
    let output = process(role, file).output().expect("runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{told}");
    assert!(output.status.success() && told.contains("1 passed"), "{role} failed");
}
