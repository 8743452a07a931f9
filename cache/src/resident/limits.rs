//! What the system says about memory: `/proc` and `/sys/fs/cgroup`, read and parsed. Decides nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::budget::Cgroup;

/// A v1 cgroup without a limit says a number near 2^63; no machine has that much.
const NO_LIMIT: u64 = 1 << 60;

/// What the system says now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// RAM of the node, in bytes.
    pub ram: u64,
    /// Bytes that the kernel calls available.
    pub available: u64,
    /// The cgroup above this process that leaves least, if one limits memory, and where it is.
    pub cgroup: Option<(PathBuf, Cgroup)>,
}

/// Reads the memory of the node and the limits of this process's cgroups, v2 and v1. A few small files: tens of microseconds.
///
/// # Errors
///
/// If `/proc/meminfo` cannot be read. Cgroups that cannot be read are passed over.
pub fn read_limits() -> io::Result<Limits> {
    read_limits_below(Path::new("/"))
}

/// The same in another root, for tests.
pub(super) fn read_limits_below(root: &Path) -> io::Result<Limits> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo"))?;
    let amount = |name| field(&meminfo, name).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
    let found = groups(root).into_iter().filter_map(|group| group.read().map(|numbers| (group.path, numbers)));
    // The one that leaves least is the one that will be hit.
    let cgroup = found.min_by_key(|(_, group)| group.available().saturating_sub(group.headroom()));
    Ok(Limits { ram: amount("MemTotal:")?, available: amount("MemAvailable:")?, cgroup })
}

/// The `memory.pressure` file of this process's own v2 cgroup, if there is one.
pub(super) fn cgroup_pressure(root: &Path) -> Option<PathBuf> {
    let own = groups(root).into_iter().find(|group| !group.v1)?.path.join("memory.pressure");
    own.is_file().then_some(own)
}

/// A number of `kB` after a name at the start of a line, in bytes.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A folder of the cgroup file system that may limit this process.
struct Group {
    path: PathBuf,
    v1: bool,
}

impl Group {
    fn read(&self) -> Option<Cgroup> {
        let number = |name: &str| fs::read_to_string(self.path.join(name)).ok()?.trim().parse::<u64>().ok();
        let stat = fs::read_to_string(self.path.join("memory.stat")).unwrap_or_default();
        let cached = |name: &str| -> u64 {
            let values = stat.lines().filter_map(|line| line.split_once(' ')).filter(|(key, _)| *key == name);
            values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
        };
        // Above `memory.high` a process is slowed until it stands still: as good as the limit.
        let (limits, used, cached_files) = if self.v1 {
            let files = cached("total_inactive_file") + cached("total_active_file");
            ([number("memory.limit_in_bytes"), None], number("memory.usage_in_bytes"), files)
        } else {
            let files = cached("inactive_file") + cached("active_file");
            ([number("memory.max"), number("memory.high")], number("memory.current"), files)
        };
        let limit = limits.into_iter().flatten().min().filter(|limit| *limit < NO_LIMIT)?;
        // Locked pages are on the list of what cannot be taken back, so these are not among them.
        let used = used?;
        Some(Cgroup { limit, used, reclaimable: cached_files.min(used) })
    }
}

/// The cgroups of this process, from its own up to the root of what is mounted, of both versions.
fn groups(root: &Path) -> Vec<Group> {
    let Ok(own) = fs::read_to_string(root.join("proc/self/cgroup")) else { return Vec::new() };
    let mount = root.join("sys/fs/cgroup");
    let mut all = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (base, v1) = if controllers.is_empty() {
            (if mount.join("cgroup.controllers").is_file() { mount.clone() } else { mount.join("unified") }, false)
        } else if controllers.split(',').any(|name| name == "memory") {
            (mount.join("memory"), true)
        } else {
            continue;
        };
        let path = Path::new(path.trim_start_matches('/'));
        // In a container the path may be the host's while only the container's own group is mounted: what is missing is passed over.
        if path.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
            let above = path.ancestors().map(|path| base.join(path));
            all.extend(above.filter(|path| path.is_dir()).map(|path| Group { path, v1 }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, MIB};

    const MEMINFO: &str = "MemTotal:       24684112 kB\nMemFree: 1 kB\nMemAvailable:   21513728 kB\n";

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in [("proc/meminfo", MEMINFO)].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("makes folders");
            fs::write(path, text).expect("writes");
        }
        root
    }

    fn cgroup(files: &[(&str, &str)]) -> Option<(String, Cgroup)> {
        let root = tree(files);
        let limits = read_limits_below(root.path()).expect("reads");
        assert_eq!((limits.ram, limits.available), (24_684_112 << 10, 21_513_728 << 10));
        limits
            .cgroup
            .map(|(path, group)| (path.strip_prefix(root.path()).expect("below the root").display().to_string(), group))
    }

    #[test]
    fn the_tightest_of_the_cgroups_above_binds_and_high_counts_as_a_limit() {
        let stat = "anon 5\ninactive_file 1048576\nactive_file 2097152\nunevictable 9\n";
        let found = cgroup(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
            ("sys/fs/cgroup/a/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.high", "8589934592\n"),
            ("sys/fs/cgroup/a/memory.current", "1073741824\n"),
            ("sys/fs/cgroup/a/memory.stat", stat),
            ("sys/fs/cgroup/a/b/memory.max", "17179869184\n"),
            ("sys/fs/cgroup/a/b/memory.high", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "0\n"),
        ]);
        assert_eq!(
            found,
            Some(("sys/fs/cgroup/a".to_owned(), Cgroup { limit: 8 * GIB, used: GIB, reclaimable: 3 * MIB }))
        );
    }

    #[test]
    fn a_container_that_sees_only_its_own_cgroup_finds_its_limit_in_both_versions() {
        let v2 = cgroup(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
            ("sys/fs/cgroup/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/memory.current", "4096\n"),
        ]);
        assert_eq!(v2.map(|(_, group)| group.limit), Some(4 * GIB));
        let v1 = cgroup(&[
            ("proc/self/cgroup", "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1048576\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 4096\ninactive_file 9\ntotal_active_file 0\n"),
        ]);
        let group = Cgroup { limit: 2 * GIB, used: MIB, reclaimable: 4096 };
        assert_eq!(v1, Some(("sys/fs/cgroup/memory".to_owned(), group)));
    }

    #[test]
    fn no_limit_and_no_cgroup_bind_nothing() {
        assert_eq!(cgroup(&[]), None);
        let unlimited = cgroup(&[
            ("proc/self/cgroup", "4:memory:/\n0::/../../x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n"),
        ]);
        assert_eq!(unlimited, None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let limits = read_limits().expect("reads");
        assert!(limits.available > 0 && limits.available <= limits.ram, "{limits:?}");
    }
}
