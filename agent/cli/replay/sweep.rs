//! Many replays of one trace: every size of disk with every size of RAM, or every policy at one size.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use tierd_cache::plan::PolicyKind;
use tierd_cache::replay::report::Report;
use tierd_cache::replay::trace::Trace;
use tierd_cache::replay::{Setup, run};

use crate::cli::exit::{Exit, Failure};
use crate::cli::out::{Out, size};
use crate::cli::replay::chart::Line;

/// Replays a trace under each setup, as many at once as there are cores. Reports come in the order of the setups.
pub(super) fn replay_all(out: Out, trace: &Trace, setups: &[Setup]) -> Result<Vec<Report>, Failure> {
    let bar = if out.draws() { ProgressBar::new(setups.len() as u64) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("replays {bar:30} {pos}/{len} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Report>>> = Mutex::new(vec![None; setups.len()]);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(setups.len()) {
            scope.spawn(|| {
                while let Some((at, setup)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, setups.get(at)?)))
                {
                    let report = run(trace, setup, &mut |_| ());
                    done.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(report);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let reports: Option<Vec<Report>> = done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect();
    reports.ok_or_else(|| Failure::new(Exit::Failed, "a replay did not end: this is a bug of tierd"))
}

/// The same setup under LRU, FIFO and the bound: what a policy is measured by.
pub(super) fn rivals(setup: &Setup) -> Vec<Setup> {
    let plain = Setup { foresight: false, ..*setup };
    vec![
        Setup { policy: PolicyKind::Lru, ..plain },
        Setup { policy: PolicyKind::Fifo, ..plain },
        Setup { policy: PolicyKind::Value, foresight: true, ..plain },
    ]
}

/// Each size of disk with each size of RAM.
pub(super) fn grid(setup: &Setup, disks: &[u64], rams: &[u64]) -> Vec<Setup> {
    let row = |ram: &u64| disks.iter().map(|disk| Setup { disk: *disk, ram: *ram, ..*setup }).collect::<Vec<_>>();
    rams.iter().flat_map(row).collect()
}

/// One row for each size of disk, one column for each size of RAM: mean waiting in seconds. A star where requests were refused.
pub(super) fn table(out: Out, disks: &[u64], rams: &[u64], reports: &[Report]) -> std::io::Result<()> {
    let mut names = vec!["DISK>".to_owned()];
    names.extend(rams.iter().map(|ram| format!("{} RAM>", size(*ram))));
    let rows: Vec<Vec<String>> = (disks.iter().enumerate())
        .map(|(at, disk)| {
            let mut row = vec![size(*disk)];
            row.extend((0..rams.len()).map(|ram| {
                let report = &reports[ram * disks.len() + at];
                let refused = if report.refused > 0 { "*" } else { "" };
                format!("{:.3} s{refused}", report.stall.mean)
            }));
            row
        })
        .collect();
    out.line("mean waiting, by size of the disk and of RAM")?;
    out.table(&names.iter().map(String::as_str).collect::<Vec<_>>(), &rows)?;
    if reports.iter().any(|report| report.refused > 0) {
        out.line("* some requests were refused there: a file is larger than all that may go for it")?;
    }
    Ok(())
}

/// A line for each size of RAM.
pub(super) fn lines(disks: &[u64], rams: &[u64], reports: &[Report]) -> Vec<Line> {
    let points = |ram: usize| {
        let at = |(disk, report): (&u64, &Report)| (*disk as f64, report.stall.mean);
        disks.iter().zip(&reports[ram * disks.len()..]).map(at).collect()
    };
    rams.iter()
        .enumerate()
        .map(|(at, ram)| Line { name: format!("{} of RAM", size(*ram)), points: points(at) })
        .collect()
}
