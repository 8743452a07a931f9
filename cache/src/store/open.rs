//! How the store is opened: one holder, folders that work, an index that agrees with the disk. What cannot work is said here,
//! not at the first commit.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use crate::config::{DirectIo, StoreConfig};
use crate::piece::PIECE_BYTES;

use super::error::{StoreError, Wrap};
use super::index::Index;
use super::paths::Paths;
use super::{Inventory, Store, disk, heal};

impl Store {
    /// Opens or makes the store, heals what a crash left, and says what is there.
    ///
    /// At most `events_max` events are kept.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if another process has it open; [`StoreError::OtherFileSystem`] and
    /// [`StoreError::NoHardLinks`] if models could not be linked into the models folder; [`StoreError::Format`];
    /// [`StoreError::Io`] and [`StoreError::Full`] with the path.
    pub fn open(config: &StoreConfig, events_max: usize) -> Result<(Self, Inventory), StoreError> {
        Self::open_with(config, events_max, PIECE_BYTES)
    }

    /// The same with another piece size, for tests.
    pub(super) fn open_with(
        config: &StoreConfig,
        events_max: usize,
        piece_bytes: u64,
    ) -> Result<(Self, Inventory), StoreError> {
        let paths = Paths {
            root: config.path.clone(),
            models: config.models.clone(),
            file_mode: config.file_mode,
            dir_mode: config.dir_mode,
        };
        disk::make_dir(&paths.root, paths.dir_mode)?;
        let lock = lock(&paths)?;
        for dir in [paths.blobs(), paths.pieces(), paths.partial(), paths.catalog(), paths.models.clone()] {
            disk::make_dir(&dir, paths.dir_mode)?;
        }
        heal::clean_temps(&paths)?;
        refuse_models_that_cannot_be_links(&paths)?;
        let direct = config.direct_io == DirectIo::Auto && disk::probe_direct(&paths.partial())?;
        let index = Index::open(paths.index(), paths.file_mode, events_max)?;
        let (index, open) = (Mutex::new(index), Mutex::default());
        let store = Self {
            paths,
            direct,
            piece_bytes,
            index,
            open,
            temps: AtomicU64::new(0),
            marks: Mutex::default(),
            _lock: lock,
        };
        let partials = store.heal()?;
        let inventory = store.inventory(partials);
        Ok((store, inventory))
    }
}

/// Mode of the lock.
const LOCK_MODE: u32 = 0o600;

/// Takes the lock, and writes who holds it for the next one to read.
fn lock(paths: &Paths) -> Result<File, StoreError> {
    let path = paths.lock();
    let mut options = File::options();
    // For the daemon alone: who can open it can hold it, and keep the daemon from starting.
    let options = options.read(true).write(true).create(true).truncate(false).mode(LOCK_MODE);
    let mut file = options.open(&path).wrap("open", &path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: a holder that has not written yet is still a holder.
            let _ = Read::by_ref(&mut file).take(20).read_to_string(&mut holder);
            let pid = holder.trim().parse::<u32>();
            let holder = pid.map_or_else(|_| "pid unknown".to_owned(), |pid| format!("pid {pid}"));
            return Err(StoreError::Locked { path, holder });
        }
        Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path, error)),
    }
    file.set_len(0).wrap("write", &path)?;
    file.seek(SeekFrom::Start(0)).wrap("write", &path)?;
    write!(file, "{}", std::process::id()).wrap("write", &path)?;
    Ok(file)
}

/// Links one file into the models folder and away again, so that a store that cannot work says so at its start.
fn refuse_models_that_cannot_be_links(paths: &Paths) -> Result<(), StoreError> {
    let device = |path: &std::path::Path| std::fs::metadata(path).map(|found| found.dev()).wrap("look at", path);
    let (store, models) = (paths.root.clone(), paths.models.clone());
    if device(&paths.partial())? != device(&models)? {
        return Err(StoreError::OtherFileSystem { store, models });
    }
    let from = paths.partial().join("link.tmp");
    let to = models.join(format!(".tierd-{}.tmp", std::process::id()));
    disk::create(&from, 0o600)?;
    let linked = std::fs::hard_link(&from, &to);
    let cleaned = disk::unlink(&to).and_then(|_| disk::unlink(&from));
    match linked {
        // Bind mounts of one file system share a device number but refuse links.
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            Err(StoreError::OtherFileSystem { store, models })
        }
        Err(source) => Err(StoreError::NoHardLinks { models, source }),
        Ok(()) => cleaned.map(|_| ()),
    }
}
