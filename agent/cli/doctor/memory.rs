//! What limits the RAM tier: the right to lock, the budget, and how pressure is heard.

use rustix::process::{Resource, getrlimit};
use tierd_cache::config::RamConfig;
use tierd_cache::resident::budget::{self, Binding, Inputs};
use tierd_cache::resident::limits::{Limits, read_limits};
use tierd_cache::resident::pressure::{Source, Watch};
use tierd_cache::resident::relief::{LOOK_INTERVAL_MAX, LOOK_INTERVAL_MIN};
use tierd_cache::resident::{Mode, Resident};

use super::Finding;
use crate::cli::out::size;
use crate::rpc::pb;

/// `CAP_IPC_LOCK` in the masks of `/proc/PID/status` (capabilities(7)).
const CAP_IPC_LOCK_BIT: u64 = 1 << 14;

/// Looks at what limits the RAM tier. `tier` is what the daemon says of it, which counts more than what this shell may do.
pub(super) fn look(config: &RamConfig, tier: Option<&pb::TierStatus>) -> Vec<Finding> {
    if config.budget.of(u64::MAX) == 0 {
        return vec![Finding::note("ram", "the tier is off", "give it bytes with [ram] budget")];
    }
    let mut findings = match tier {
        Some(tier) => vec![told(tier), rights()],
        None => {
            let resident = Resident::open();
            vec![tried(resident.mode()), rights(), budget(config, resident.mode(), read_limits())]
        }
    };
    findings.push(pressure());
    findings
}

/// What the daemon says of its RAM tier.
fn told(tier: &pb::TierStatus) -> Finding {
    let text =
        format!("{}: {} of {} held; {}", tier.mode, size(tier.used_bytes), size(tier.capacity_bytes), tier.detail);
    let text = text.trim_end_matches("; ");
    match (tier.mode.as_str(), tier.capacity_bytes) {
        ("off", _) => {
            Finding::note("ram", "the daemon runs with the tier off", "restart it with the present configuration")
        }
        ("locked", 0) => Finding::wrong("ram", text, "there is no memory to spare: lower [ram] reserve, or add memory"),
        ("locked", _) => Finding::good("ram", text),
        // The detail says what to change.
        _ => Finding::wrong("ram", text, ""),
    }
}

/// What this process may do.
fn tried(mode: &Mode) -> Finding {
    match mode {
        Mode::Locked { limit: None } => Finding::good("ram", "locked: this user may lock pages without limit"),
        Mode::Locked { limit: Some(limit) } => {
            Finding::good("ram", format!("locked: this user may lock {} (RLIMIT_MEMLOCK)", size(*limit)))
        }
        Mode::Warm { why, what_to_change } => {
            Finding::wrong("ram", format!("warm: pages cannot be locked: {why}"), *what_to_change)
        }
    }
}

/// The limit and the capability of this process. Information: whether they suffice is found out by trying.
fn rights() -> Finding {
    let limit = getrlimit(Resource::Memlock).current.map_or_else(|| "unlimited".to_owned(), size);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capable = if has_ipc_lock(&status) { "yes" } else { "no" };
    Finding::good("rights", format!("of this shell: RLIMIT_MEMLOCK {limit}, CAP_IPC_LOCK {capable}"))
}

/// Whether a `/proc/PID/status` says that `CAP_IPC_LOCK` is in effect.
fn has_ipc_lock(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & CAP_IPC_LOCK_BIT != 0)
}

/// How many bytes may be held now, and what says so.
fn budget(config: &RamConfig, mode: &Mode, limits: std::io::Result<Limits>) -> Finding {
    let limits = match limits {
        Ok(limits) => limits,
        Err(error) => {
            return Finding::wrong(
                "ram budget",
                format!("the system does not tell its memory: {error}"),
                "mount /proc",
            );
        }
    };
    let lock_limit = match mode {
        Mode::Locked { limit } => *limit,
        Mode::Warm { .. } => None,
    };
    let Limits { ram, available, cgroup } = limits;
    let reserve = config.reserve.map_or_else(|| budget::default_reserve(ram), |share| share.of(ram));
    let cgroup = cgroup.map(|(_, group)| group);
    let inputs = Inputs { configured: config.budget, reserve, ram, available, locked: 0, cgroup, lock_limit };
    let effective = budget::effective(&inputs);
    let may = format!("{} of {} may be held", size(effective.bytes), size(ram));
    let (why, change) = match effective.binding {
        Binding::Configured => return Finding::good("ram budget", format!("{may}: what [ram] budget says")),
        Binding::CgroupLimit => ("the limit of the cgroup", "raise the container's or the service's memory limit"),
        Binding::CgroupUse => {
            ("what others use in the cgroup", "raise its memory limit, or give tierd a cgroup of its own")
        }
        Binding::LockLimit => ("RLIMIT_MEMLOCK", "systemd: LimitMEMLOCK=infinity; container: ulimits memlock -1"),
        Binding::Reserve => ("the memory that must stay available to others", "lower [ram] reserve, or add memory"),
    };
    let text = format!("{may}, less than [ram] budget ({}): {why}", size(config.budget.of(ram)));
    if effective.bytes == 0 {
        Finding::wrong("ram budget", text, change)
    } else {
        Finding::note("ram budget", text, change)
    }
}

/// Whether the kernel tells of stalls.
fn pressure() -> Finding {
    match Watch::start(|| 0, |_| LOOK_INTERVAL_MAX) {
        Ok(watch) => heard(watch.source()),
        Err(error) => {
            Finding::wrong("pressure", format!("memory cannot be watched: {error}"), "raise the limit of threads")
        }
    }
}

fn heard(source: &Source) -> Finding {
    match source {
        Source::Psi { window } => {
            Finding::good("pressure", format!("psi: the kernel tells of stalls, in windows of {} s", window.as_secs()))
        }
        Source::Polling { why } => {
            let (least, most) = (LOOK_INTERVAL_MIN.as_millis(), LOOK_INTERVAL_MAX.as_millis());
            let text = format!("polling: available memory is looked at every {least} to {most} ms, since {why}");
            Finding::note("pressure", text, "boot with psi=1 to hear of stalls sooner")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tierd_cache::resident::budget::Cgroup;
    use tierd_cache::units::{GIB, Share};

    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_capability_is_found_in_the_mask() {
        assert!(has_ipc_lock("CapPrm:\t0\nCapEff:\t0000000000004000\n"));
        assert!(!has_ipc_lock("CapEff:\t000001fffeffbfff\n"));
        assert!(!has_ipc_lock("CapPrm:\t0000000000004000\n"));
    }

    #[test]
    fn warm_is_wrong_with_what_to_change_and_locked_is_good() {
        let warm = tried(&Mode::Warm { why: "RLIMIT_MEMLOCK is 8 MiB".into(), what_to_change: "ulimit -l unlimited" });
        assert_eq!((warm.verdict, warm.change.as_str()), (Verdict::Wrong, "ulimit -l unlimited"));
        assert_eq!(tried(&Mode::Locked { limit: None }).verdict, Verdict::Good);
        let row =
            |mode: &str, capacity_bytes| pb::TierStatus { mode: mode.into(), capacity_bytes, ..Default::default() };
        assert_eq!(told(&row("locked", 1)).verdict, Verdict::Good);
        assert_eq!(told(&row("locked", 0)).verdict, Verdict::Wrong);
        assert_eq!(told(&row("warm", 1)).verdict, Verdict::Wrong);
    }

    #[test]
    fn the_budget_names_the_limit_that_binds() {
        let config = RamConfig { budget: Share::Percent(50.0), reserve: Some(Share::Bytes(2 * GIB)) };
        let found = |available, cgroup| {
            budget(&config, &Mode::Locked { limit: None }, Ok(Limits { ram: 32 * GIB, available, cgroup }))
        };
        assert_eq!(found(30 * GIB, None).verdict, Verdict::Good);
        assert!(found(3 * GIB, None).text.contains("1 GiB of 32 GiB may be held, less than [ram] budget (16 GiB)"));
        assert_eq!(found(GIB, None).verdict, Verdict::Wrong);
        let group = Cgroup { limit: 4 * GIB, used: 0, reclaimable: 0 };
        assert!(found(30 * GIB, Some(("/a".into(), group))).text.contains("the limit of the cgroup"));
    }

    #[test]
    fn polling_is_worth_a_note() {
        assert_eq!(heard(&Source::Psi { window: Duration::from_secs(1) }).verdict, Verdict::Good);
        assert_eq!(heard(&Source::Polling { why: "no such file".into() }).verdict, Verdict::Note);
    }
}
