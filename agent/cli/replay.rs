//! `tierd replay`: a trace of requests through the engine's own state machine, in virtual time. Asks no daemon and moves no model.

mod chart;
mod sweep;

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tierd_cache::plan::PolicyKind;
use tierd_cache::replay::report::{Move, Report, tier_name};
use tierd_cache::replay::trace::Trace;
use tierd_cache::replay::{Links, NodeKind, PredictorKind, Setup};
use tierd_cache::units::{ByteSize, Share};

use crate::cli::Context;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::size;

/// The first line of the decisions.
const DECISIONS_HEADER: &str = "time_us,started_us,event,tier,model,bytes,request_id,reason";
/// Largest trace that is read, unpacked: a million requests are about 200 MB.
const TRACE_BYTES_MAX: u64 = 4 << 30;

/// `tierd replay`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd replay week.csv.gz --disk 500GiB --ram 64GiB\n  \
    tierd replay week.csv.gz --disk 10% --ram 2.5% --policy lru --json\n  \
    tierd replay today.csv --warm-up yesterday.csv --disk 25% --ram 6.25% --queue 2\n  \
    tierd replay week.csv.gz --compare\n  \
    tierd replay week.csv.gz --sweep --chart waiting.svg\n\n\
    A trace is CSV, gzipped or not: timestamp_ms,request_id,model_key,bytes,kind. NAME.requests.csv[.gz] beside \
    NAME.csv[.gz] says how long a GPU worked on each request. Sizes may be shares of the distinct bytes of the trace. \
    See docs/policy.md.")]
pub(crate) struct ReplayArgs {
    /// Traces, one after the other
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,
    /// A trace that is replayed first and not counted
    #[arg(long, value_name = "FILE")]
    pub warm_up: Vec<PathBuf>,
    /// What is kept and what goes; `bound` knows the future, and is only there to be measured by
    #[arg(long, value_enum, default_value = "value")]
    pub policy: PolicyArg,
    /// Who guesses what comes next; it is acted on once it has proved right, as in the daemon
    #[arg(long, value_enum, default_value = "none")]
    pub predictor: PredictorArg,
    /// RAM that models may hold, or a share of the trace's distinct bytes
    #[arg(long, default_value = "6.25%")]
    pub ram: Share,
    /// Disk that models may hold, or a share of the trace's distinct bytes
    #[arg(long, default_value = "25%")]
    pub disk: Share,
    /// GPUs with one queue before them; 0: every request starts when it arrives
    #[arg(long, value_name = "GPUS", default_value = "0")]
    pub queue: u32,
    /// Waiting requests whose models are known and loaded ahead
    #[arg(long, value_name = "REQUESTS", default_value = "2", value_parser = clap::value_parser!(u32).range(0..=64))]
    pub visible: u32,
    /// `apart`: RAM and disk hold bytes of their own, and what is not kept passes by. `copies`: as the daemon does, every file
    /// lands on the disk and RAM holds copies
    #[arg(long, value_enum, default_value = "apart")]
    pub node: NodeArg,
    /// Bytes a second from origins
    #[arg(long, value_name = "RATE", default_value = "1GB")]
    pub origin_rate: ByteSize,
    /// Time to the first byte from origins
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = tierd_cache::units::parse_duration)]
    pub first_byte: std::time::Duration,
    /// Bytes a second from the disk
    #[arg(long, value_name = "RATE", default_value = "6GB")]
    pub disk_rate: ByteSize,
    /// Bytes a second from RAM to where it is used
    #[arg(long, value_name = "RATE", default_value = "25GB")]
    pub ram_rate: ByteSize,
    /// Write every move to this file, as CSV
    #[arg(long, value_name = "FILE", conflicts_with = "sweep")]
    pub decisions: Option<PathBuf>,
    /// Replay it under lru, fifo and the bound too, and say how they compare
    #[arg(long, conflicts_with = "sweep")]
    pub compare: bool,
    /// Waiting against sizes of disk and RAM: what a bigger one would bring
    #[arg(long)]
    pub sweep: bool,
    /// Sizes of disk to sweep over, in bytes or shares
    #[arg(
        long,
        value_name = "SIZES",
        value_delimiter = ',',
        default_value = "5%,10%,25%,50%,75%,100%",
        requires = "sweep"
    )]
    pub sweep_disk: Vec<Share>,
    /// Sizes of RAM to sweep over, in bytes or shares
    #[arg(
        long,
        value_name = "SIZES",
        value_delimiter = ',',
        default_value = "1.25%,2.5%,6.25%,12.5%,25%",
        requires = "sweep"
    )]
    pub sweep_ram: Vec<Share>,
    /// Draw the sweep into this file, as SVG
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub chart: Option<PathBuf>,
}

/// A policy's name, or the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyArg {
    /// Seconds saved a byte (the default)
    Value,
    /// Least recently used
    Lru,
    /// First in, first out
    Fifo,
    /// S3-FIFO by bytes
    S3fifo,
    /// Knows when each file is wanted next
    Bound,
}

/// Who guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PredictorArg {
    /// Nobody
    None,
    /// The daemon's predictor
    Habits,
    /// One that is always sure and always wrong
    #[value(hide = true)]
    Poisoned,
    /// One that is right until it is believed, and wrong from then on
    #[value(hide = true)]
    Turncoat,
}

/// What the replayed node can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeArg {
    /// RAM and disk hold bytes of their own
    Apart,
    /// RAM holds copies of what is on the disk
    Copies,
}

/// Runs `tierd replay`.
pub(crate) fn replay(context: &Context, args: &ReplayArgs) -> Outcome {
    let (trace, warm_up) = load(args)?;
    let setup = setup(args, &trace, warm_up)?;
    if args.sweep {
        return sweep(context, args, &trace, &setup);
    }
    let report = match &args.decisions {
        Some(file) => with_decisions(file, &trace, &setup)?,
        None => tierd_cache::replay::run(&trace, &setup, &mut |_| ()),
    };
    if !args.compare {
        context.out.document(&report)?;
        return print(context, &report);
    }
    let compared = sweep::replay_all(context.out, &trace, &sweep::rivals(&setup))?;
    context.out.document(&Compared { report: &report, compared: &compared })?;
    print(context, &report)?;
    print_compared(context, &report, &compared)
}

/// A report, with those of its rivals.
#[derive(Serialize)]
struct Compared<'a> {
    #[serde(flatten)]
    report: &'a Report,
    compared: &'a [Report],
}

fn print_compared(context: &Context, report: &Report, compared: &[Report]) -> Outcome {
    let rows: Vec<Vec<String>> = std::iter::once(report)
        .chain(compared)
        .map(|other| {
            let lru = compared.first().map_or(0.0, |lru| lru.stall.mean);
            let against = if lru > 0.0 { format!("{:.2}", other.stall.mean / lru) } else { String::new() };
            vec![
                other.policy.clone(),
                format!("{:.3} s", other.stall.mean),
                against,
                format!("{:.3} s", other.stall.p95),
                size(other.origin_bytes),
                other.evictions.to_string(),
            ]
        })
        .collect();
    context.out.line("")?;
    context.out.table(&["POLICY", "WAITING>", "OF LRU'S>", "P95>", "FROM THE ORIGIN>", "EVICTED>"], &rows)?;
    Ok(())
}

/// Replays under every size, prints the table and draws the chart.
fn sweep(context: &Context, args: &ReplayArgs, trace: &Trace, setup: &Setup) -> Outcome {
    let whole = trace.distinct_bytes(setup.warm_up);
    let sizes = |shares: &[Share]| -> Vec<u64> {
        let mut sizes: Vec<u64> = shares.iter().map(|share| share.of(whole)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    };
    let (disks, rams) = (sizes(&args.sweep_disk), sizes(&args.sweep_ram));
    let reports = sweep::replay_all(context.out, trace, &sweep::grid(setup, &disks, &rams))?;
    context.out.document(&serde_json::json!({ "sweep": reports }))?;
    sweep::table(context.out, &disks, &rams, &reports)?;
    if let Some(file) = &args.chart {
        let title = format!("mean waiting by size of the disk, policy {}", reports[0].policy);
        let chart = chart::svg(&title, &sweep::lines(&disks, &rams, &reports));
        let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("{}: {error}", file.display()));
        std::fs::write(file, chart).map_err(failed)?;
    }
    Ok(())
}

/// Reads all traces. Returns how many requests are not counted.
fn load(args: &ReplayArgs) -> Result<(Trace, usize), Failure> {
    let mut trace = Trace::default();
    let mut warm_up = 0;
    for (file, counts) in
        args.warm_up.iter().map(|file| (file, false)).chain(args.traces.iter().map(|file| (file, true)))
    {
        let wrong =
            |bad: tierd_cache::replay::trace::BadTrace| Failure::new(Exit::Usage, format!("{}: {bad}", file.display()));
        let first = trace.requests.len();
        trace.read(&text(file)?).map_err(wrong)?;
        if let Some(beside) = beside(file) {
            let text = text(&beside)?;
            let bad = |bad| Failure::new(Exit::Usage, format!("{}: {bad}", beside.display()));
            trace.read_requests(&text, first).map_err(bad)?;
        }
        if !counts {
            warm_up = trace.requests.len();
        }
    }
    if trace.requests.len() == warm_up {
        return Err(Failure::new(Exit::Usage, "there is no request to replay"));
    }
    Ok((trace, warm_up))
}

/// `NAME.requests.csv[.gz]` beside `NAME.csv[.gz]`, if it is there.
fn beside(file: &Path) -> Option<PathBuf> {
    let name = file.file_name()?.to_str()?;
    let stem = name.strip_suffix(".gz").unwrap_or(name);
    let stem = stem.strip_suffix(".csv").unwrap_or(stem);
    let names = [format!("{stem}.requests.csv.gz"), format!("{stem}.requests.csv")];
    names.into_iter().map(|name| file.with_file_name(name)).find(|path| path.is_file())
}

/// A file's text, unpacked if it is packed.
fn text(file: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Usage, format!("{}: {error}", file.display()));
    let packed = File::open(file).map_err(failed)?;
    let mut text = String::new();
    if file.extension().is_some_and(|ending| ending == "gz") {
        let unpacked = flate2::read::MultiGzDecoder::new(packed);
        unpacked.take(TRACE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    } else {
        packed.take(TRACE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    }
    Ok(text)
}

fn setup(args: &ReplayArgs, trace: &Trace, warm_up: usize) -> Result<Setup, Failure> {
    let whole = trace.distinct_bytes(warm_up);
    let policy = match args.policy {
        PolicyArg::Value | PolicyArg::Bound => PolicyKind::Value,
        PolicyArg::Lru => PolicyKind::Lru,
        PolicyArg::Fifo => PolicyKind::Fifo,
        PolicyArg::S3fifo => PolicyKind::S3Fifo,
    };
    let rates = [args.origin_rate, args.disk_rate, args.ram_rate];
    if rates.contains(&ByteSize(0)) {
        return Err(Failure::new(Exit::Usage, "a rate of 0 bytes a second never ends: name more"));
    }
    let [origin, disk, ram] = rates.map(|rate| rate.0 as f64);
    Ok(Setup {
        policy,
        ram: args.ram.of(whole),
        disk: args.disk.of(whole),
        gpus: args.queue,
        visible: if args.queue == 0 { 0 } else { args.visible },
        predictor: match args.predictor {
            PredictorArg::None => PredictorKind::None,
            PredictorArg::Habits => PredictorKind::Habits,
            PredictorArg::Poisoned => PredictorKind::Poisoned,
            PredictorArg::Turncoat => PredictorKind::Turncoat,
        },
        node: if args.node == NodeArg::Apart { NodeKind::Apart } else { NodeKind::Copies },
        links: Links { origin, disk, ram, first_byte: args.first_byte.as_secs_f64() },
        foresight: args.policy == PolicyArg::Bound,
        warm_up,
    })
}

/// Replays, and writes every move down as it happens.
fn with_decisions(file: &Path, trace: &Trace, setup: &Setup) -> Result<Report, Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("{}: {error}", file.display()));
    let mut lines = BufWriter::new(File::create(file).map_err(failed)?);
    let mut written = writeln!(lines, "{DECISIONS_HEADER}");
    let micros = |seconds: f64| (seconds * 1e6).round() as u64;
    let report = tierd_cache::replay::run(trace, setup, &mut |made: &Move<'_>| {
        if written.is_ok() {
            let request = made.request.map(|id| id.to_string()).unwrap_or_default();
            let (at, started) = (micros(made.at), micros(made.started));
            let (what, tier) = (made.step.name(), tier_name(made.tier));
            let (model, bytes, reason) = (made.model, made.bytes, made.reason);
            written = writeln!(lines, "{at},{started},{what},{tier},{model},{bytes},{request},{reason}");
        }
    });
    written.and_then(|()| lines.flush()).map_err(failed)?;
    Ok(report)
}

fn print(context: &Context, report: &Report) -> Outcome {
    let out = context.out;
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let seconds = |times: &tierd_cache::replay::report::Times| {
        format!("mean {:.3} s, p50 {:.3}, p95 {:.3}, p99 {:.3}", times.mean, times.p50, times.p95, times.p99)
    };
    out.line(format_args!(
        "{} requests, policy {}, {} of RAM, {} of disk",
        report.requests,
        report.policy,
        size(report.ram),
        size(report.disk)
    ))?;
    out.line(format_args!("waiting     {}", seconds(&report.stall)))?;
    out.line(format_args!("to ready    {}", seconds(&report.ready)))?;
    out.line(format_args!(
        "hits        {} in RAM, {} on the disk; by bytes {} and {}",
        percent(report.hits.ram),
        percent(report.hits.disk),
        percent(report.byte_hits.ram),
        percent(report.byte_hits.disk)
    ))?;
    out.line(format_args!("origin      {}", size(report.origin_bytes)))?;
    out.line(format_args!("evicted     {} files, {}", report.evictions, size(report.evicted_bytes)))?;
    if report.prefetch.bytes > 0 {
        let prefetch = report.prefetch;
        out.line(format_args!(
            "prefetched  {}, {} used, {} left unused",
            size(prefetch.bytes),
            size(prefetch.used),
            size(prefetch.wasted)
        ))?;
    }
    let guesses = report.guesses;
    if guesses.predictor != PredictorKind::None.name() {
        out.line(format_args!(
            "guesses     by {}: likeliest right {} of {} ({}); of those that would move bytes {} of {}; acted on {}, right {}; switched {} times",
            guesses.predictor,
            guesses.top_right,
            guesses.top,
            percent(guesses.precision()),
            guesses.moves_right,
            guesses.moves,
            guesses.acted,
            guesses.acted_right,
            guesses.switched
        ))?;
    }
    if report.refused > 0 {
        out.line(format_args!(
            "refused     {} requests: a file is larger than all that may go for it",
            report.refused
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_never_cost_more_than_a_hundredth_of_the_waiting_on_any_budget() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces/synthetic.csv.gz");
        let mut trace = Trace::default();
        trace.read(&text(&file).expect("it is there")).expect("a good trace");
        let beside = beside(&file).expect("it is there too");
        trace.read_requests(&text(&beside).expect("readable"), 0).expect("good too");
        let whole = trace.distinct_bytes(0);
        for percent in [5, 10, 25, 50] {
            let disk = whole / 100 * percent;
            let mean = |predictor| {
                let setup = Setup {
                    policy: PolicyKind::Value,
                    ram: disk / 4,
                    disk,
                    gpus: 0,
                    visible: 0,
                    predictor,
                    node: NodeKind::Apart,
                    links: Links::default(),
                    foresight: false,
                    warm_up: 0,
                };
                tierd_cache::replay::run(&trace, &setup, &mut |_| ()).stall.mean
            };
            let [blind, guessed] = [PredictorKind::None, PredictorKind::Habits].map(mean);
            assert!(guessed <= blind * 1.01, "{percent} %: {guessed} against {blind}");
        }
    }
}
