//! Single steps on the file system: make, open, preallocate, make durable, identify. Each wraps the system's answer with
//! what was tried and where; none decides anything.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::block::{ALIGN, map};
use super::error::{StoreError, Wrap};

/// What tells whether a file is still the one that was stored: it changes when the file is replaced or written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) inode: u64,
    pub(super) bytes: u64,
    /// Last modification: seconds and nanoseconds since 1970 UTC.
    pub(super) modified: (i64, i64),
}

impl Identity {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self { inode: metadata.ino(), bytes: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// Metadata of what stands at `path` itself (a symbolic link is not followed); none if nothing does.
pub(super) fn look(path: &Path) -> Result<Option<fs::Metadata>, StoreError> {
    absent_is_none(fs::symlink_metadata(path)).wrap("look at", path)
}

/// Removes a file and says whether there was one.
pub(super) fn unlink(path: &Path) -> Result<bool, StoreError> {
    absent_is_none(fs::remove_file(path)).map(|removed| removed.is_some()).wrap("remove", path)
}

/// Renames over whatever stands at `to`.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).wrap("rename", from)
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a folder and those above it, each new one with exactly `mode`, whatever the umask.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dir(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)).wrap("set the mode of", path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(StoreError::io("make folder", path, error)),
    }
}

/// Makes the entries of a folder durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).wrap("make durable", path)
}

/// Creates a file that must not exist, with exactly `mode`, for reading and writing.
pub(super) fn create(path: &Path, mode: u32) -> Result<File, StoreError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path);
    let file = file.wrap("create", path)?;
    file.set_permissions(Permissions::from_mode(mode)).wrap("set the mode of", path)?;
    Ok(file)
}

/// Opens an existing file for reading and writing through the page cache.
pub(super) fn open(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new().read(true).write(true).open(path).wrap("open", path)
}

/// Opens somebody else's file for reading, as it is at the end of a path without symbolic links: what is opened is what was
/// seen, also when folders on the way are being swapped. Never waits, also not for a pipe.
pub(super) fn open_theirs(path: &Path) -> Result<File, StoreError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    let opened = match opened {
        // A kernel before 5.6, or a filter of system calls: the last part at least is looked at.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(CWD, path, flags, Mode::empty()),
        opened => opened,
    };
    opened.map(File::from).map_err(std::io::Error::from).wrap("open", path)
}

/// The path under which the kernel has an open file of this process.
pub(super) fn path_of(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Opens an existing file past the page cache; none where the file system refuses.
pub(super) fn open_direct(path: &Path, write: bool) -> Result<Option<File>, StoreError> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).expect("open flags fit an i32");
    match OpenOptions::new().read(true).write(write).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if refuses_direct(&error) => Ok(None),
        Err(error) => Err(StoreError::io("open", path, error)),
    }
}

/// Whether this is how a file system says that it cannot bypass the page cache.
pub(super) fn refuses_direct(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

/// Whether files in `dir` can be written and read past the page cache: some file systems refuse only the first write.
pub(super) fn probe_direct(dir: &Path) -> Result<bool, StoreError> {
    let path = dir.join("probe.tmp");
    unlink(&path)?;
    create(&path, 0o600)?;
    let mut memory = map();
    let works = open_direct(&path, true)?.is_some_and(|file| {
        file.write_all_at(&memory[..ALIGN], 0).is_ok() && file.read_exact_at(&mut memory[..ALIGN], 0).is_ok()
    });
    unlink(&path)?;
    Ok(works)
}

/// Bytes that a file of `bytes` bytes takes while it is written in whole units of [`ALIGN`].
pub(super) fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN as u64)
}

/// Makes a file at least `bytes` bytes long, with its space allocated where the file system can.
///
/// The space is taken now, so that a full disk is met here and not in the middle; and writes past the page cache
/// that do not grow the file may run side by side.
pub(super) fn preallocate(file: &File, bytes: u64, path: &Path) -> Result<(), StoreError> {
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            let held = file.metadata().wrap("look at", path)?.len();
            file.set_len(held.max(bytes)).wrap("allocate", path)
        }
        Err(error) => Err(StoreError::io("allocate", path, error.into())),
    }
}

/// Drops a file's clean pages in a range from the page cache. A wish: what is mapped or locked stays.
pub(super) fn drop_pages(file: &File, offset: u64, bytes: u64) {
    // Nothing depends on it, so a refusal is no failure.
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(bytes), rustix::fs::Advice::DontNeed);
}

/// Writes a small file so that it is there whole or not at all, even after power loss.
pub(super) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    let temp = temp_beside(path);
    unlink(&temp)?;
    let mut file = create(&temp, mode)?;
    file.write_all(bytes).wrap("write", &temp)?;
    file.sync_all().wrap("make durable", &temp)?;
    rename(&temp, path)?;
    sync_dir(path.parent().expect("files of the store lie in folders"))
}

/// The name under which a file is written before it gets its own.
fn temp_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Names and paths of what lies in a folder; nothing if there is no such folder. Names that are not UTF-8 are never ours.
pub(super) fn list(dir: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let Some(entries) = absent_is_none(fs::read_dir(dir)).wrap("list", dir)? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.wrap("list", dir)?;
        if let Ok(name) = entry.file_name().into_string() {
            all.push((name, entry.path()));
        }
    }
    Ok(all)
}
