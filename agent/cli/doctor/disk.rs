//! What limits the disk tier: its file system, links, direct I/O, room.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, statfs};
use tierd_cache::config::{DirectIo, StoreConfig};

use super::Finding;
use crate::cli::out::size;
use crate::rpc::pb;

/// File systems by their magic numbers (statfs(2)), and what is to be said of those that do not suit.
const FILE_SYSTEMS: [(u64, &str, &str); 12] = [
    (0xEF53, "ext4", ""),
    (0x5846_5342, "xfs", ""),
    (0x9123_683E, "btrfs", ""),
    (0x2FC1_2FC1, "zfs", "its own cache keeps a second copy of what is in RAM: set primarycache=metadata"),
    (0xF2F5_2010, "f2fs", ""),
    (0x0102_1994, "tmpfs", RAM),
    (0x8584_58F6, "ramfs", RAM),
    (0x794C_7630, "overlay", "what is stored goes with the container: mount a volume there"),
    (0x6969, "nfs", NETWORK),
    (0xFF53_4D42, "cifs", NETWORK),
    (0x6573_5546, "fuse", NETWORK),
    (0x00C3_6400, "ceph", NETWORK),
];
const RAM: &str = "this is RAM, not a disk: what is stored is gone at the next start, and takes memory twice";
const NETWORK: &str = "reads are no faster than the network, and locking pages may not hold: use a local disk";

/// Looks at what limits the disk tier. `tier` is what the daemon says of it.
pub(super) fn look(config: &StoreConfig, tier: Option<&pb::TierStatus>) -> Vec<Finding> {
    let (Some(store), Some(models)) = (existing(&config.path), existing(&config.models)) else {
        return vec![Finding::wrong(
            "store",
            format!("{} cannot be looked at", config.path.display()),
            "check [store] path",
        )];
    };
    vec![
        file_system(config, &store),
        same_device(config, &store, &models),
        direct(config, &store, tier),
        room(config, &store, tier),
    ]
}

/// The folder, or the nearest one above it that is there: the daemon will make the rest.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|path| path.is_dir()).map(Path::to_owned)
}

fn file_system(config: &StoreConfig, store: &Path) -> Finding {
    let place = config.path.display();
    let made = if store == config.path { "" } else { " (to be made)" };
    // Signed and of different widths by architecture; the magic is 32 bits.
    let magic = match statfs(store) {
        Ok(answer) => answer.f_type as u64 & 0xFFFF_FFFF,
        Err(error) => return Finding::wrong("store", format!("{place}: {error}"), "check [store] path"),
    };
    match FILE_SYSTEMS.iter().find(|(known, ..)| *known == magic) {
        Some((_, name, "")) => Finding::good("store", format!("{place}{made} on {name}")),
        Some((_, name, trouble)) if *trouble == RAM => {
            Finding::wrong("store", format!("{place}{made} on {name}: {trouble}"), "put [store] path on a disk")
        }
        Some((_, name, trouble)) => Finding::note("store", format!("{place}{made} on {name}: {trouble}"), ""),
        None => {
            Finding::note("store", format!("{place}{made} on a file system that is not known here ({magic:#x})"), "")
        }
    }
}

fn same_device(config: &StoreConfig, store: &Path, models: &Path) -> Finding {
    let (store_device, models_device) = (device(store), device(models));
    if store_device.is_some() && store_device == models_device {
        return Finding::good("models", format!("{} is on the same file system", config.models.display()));
    }
    let text = format!("{} is on another file system than the store: names are hard links", config.models.display());
    Finding::wrong("models", text, "put [store] models and [store] path on one file system")
}

fn device(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|data| data.dev())
}

fn direct(config: &StoreConfig, store: &Path, tier: Option<&pb::TierStatus>) -> Finding {
    let buffered = "fetched bytes go through the page cache, and take it from models for a while";
    if config.direct_io == DirectIo::Off {
        return Finding::note("direct i/o", format!("off: {buffered}"), "[store] direct_io = \"auto\"");
    }
    let works = match tier {
        Some(tier) => Ok(tier.mode == "direct"),
        None => opens_directly(store),
    };
    match works {
        Ok(true) => Finding::good("direct i/o", "fetched bytes bypass the page cache"),
        Ok(false) => Finding::note("direct i/o", format!("the file system refuses it: {buffered}"), "use ext4 or xfs"),
        Err(error) => {
            let text = format!("cannot be tried as this user: {error}");
            Finding::note("direct i/o", text, "run this as the daemon's user")
        }
    }
}

/// Whether a file can be opened past the page cache there.
fn opens_directly(folder: &Path) -> std::io::Result<bool> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let open = |path: &Path| OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(path);
    // Removed when this is dropped.
    let probe = tempfile::Builder::new().prefix(".tierd-doctor-").make_in(folder, open);
    match probe {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

fn room(config: &StoreConfig, store: &Path, tier: Option<&pb::TierStatus>) -> Finding {
    let answer = match rustix::fs::statvfs(store) {
        Ok(answer) => answer,
        Err(error) => return Finding::wrong("room", format!("{}: {error}", store.display()), "check [store] path"),
    };
    let (total, free) = (answer.f_blocks * answer.f_frsize, answer.f_bavail * answer.f_frsize);
    let (budget, keep_free) = (config.budget.of(total), config.keep_free.of(total));
    let reach = free.saturating_sub(keep_free);
    let text = format!("{} free of {}; budget {}, of which at most", size(free), size(total), size(budget));
    let Some(tier) = tier else {
        let text = format!("{text} {} can be filled now", size(reach.min(budget)));
        return if reach == 0 { full(text) } else { Finding::good("room", text) };
    };
    let left = reach.min(budget.saturating_sub(tier.used_bytes));
    let text = format!("{text} {} can be filled beside the {} in use", size(left), size(tier.used_bytes));
    if reach == 0 {
        full(text)
    } else if reach < budget.saturating_sub(tier.used_bytes) {
        Finding::note("room", format!("{text}: others fill the rest"), "free some space, or lower [store] budget")
    } else {
        Finding::good("room", text)
    }
}

fn full(text: String) -> Finding {
    Finding::wrong(
        "room",
        format!("{text}: [store] keep_free is used up"),
        "free some space: models can only replace models now",
    )
}

#[cfg(test)]
mod tests {
    use tierd_cache::units::Share;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_store_that_is_not_there_yet_is_judged_by_the_folder_above() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = StoreConfig::at(folder.path().join("a/b"));
        let store = existing(&config.path).expect("the folder above");
        assert_eq!(store, folder.path());
        let found = look(&config, None);
        assert_eq!(found.len(), 4);
        assert_eq!(found[1].verdict, Verdict::Good, "{found:?}");
        assert!(std::fs::read_dir(folder.path()).expect("it is there").next().is_none(), "the probe was left behind");
    }

    #[test]
    fn models_on_another_file_system_are_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = StoreConfig { models: "/proc".into(), ..StoreConfig::at(folder.path()) };
        assert_eq!(same_device(&config, folder.path(), Path::new("/proc")).verdict, Verdict::Wrong);
    }

    #[test]
    fn a_disk_that_others_fill_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let all = StoreConfig { budget: Share::Percent(100.0), ..StoreConfig::at(folder.path()) };
        let tier = pb::TierStatus::default();
        assert_eq!(room(&all, folder.path(), Some(&tier)).verdict, Verdict::Note);
        let kept = StoreConfig { keep_free: Share::Percent(100.0), ..StoreConfig::at(folder.path()) };
        assert_eq!(room(&kept, folder.path(), None).verdict, Verdict::Wrong);
    }
}
