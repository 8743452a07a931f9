//! `tierd report`: what the cache saved over some hours, and what got worse.

use std::time::Duration;

use clap::Args;
use tierd_cache::units::human_duration;

use crate::cli::exit::Outcome;
use crate::cli::out::{Out, count, rate, size};
use crate::cli::{Context, client};
use crate::rpc::{pb, time};

/// `tierd report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd report\n  tierd report --since 7d --json | jq .regressions\n\n\
    Whole hours, the present one included, beside as many before; the node remembers 31 days. Waiting is counted at the rate \
    at which this node fetched for those who waited.")]
pub(crate) struct ReportArgs {
    /// How far back: 1h to 31d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = tierd_cache::units::parse_duration)]
    pub since: Duration,
}

/// Runs `tierd report`.
pub(crate) async fn report(context: &Context, args: ReportArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let request = pb::GetReportRequest { since: Some(args.since.into()) };
    let answer = daemon.report.get_report(request).await?.into_inner();
    context.out.document(&answer)?;
    print(context.out, &answer)?;
    Ok(())
}

fn print(out: Out, answer: &pb::GetReportResponse) -> std::io::Result<()> {
    let (period, previous) = (answer.period.clone().unwrap_or_default(), answer.previous.clone().unwrap_or_default());
    let at =
        |at: &Option<time::Timestamp>| at.map(|at| at.to_string().replace(":00:00.000Z", ":00Z")).unwrap_or_default();
    out.line(format_args!("the last {}, since {}", count(answer.hours, "hour"), at(&answer.from)))?;
    if answer.recorded_from.is_some_and(|begun| answer.from.is_some_and(|from| begun.seconds > from.seconds)) {
        out.line(format_args!("(the record begins at {})", at(&answer.recorded_from)))?;
    }
    for line in saved(&answer.saved.unwrap_or_default()) {
        out.line(line)?;
    }
    out.line("")?;
    out.table(&["", "THIS TIME>", "BEFORE>"], &figures(&period, &previous))?;
    if !period.origins.is_empty() {
        out.line("")?;
        out.table(&["ORIGIN", "SPEED>", "BYTES>", "REQUESTS>", "FAILED>"], &origins(&period))?;
    }
    let left: Vec<Vec<String>> = [("disk", &period.evicted), ("RAM", &period.demoted)]
        .into_iter()
        .flat_map(|(tier, rows)| rows.iter().map(move |row| (tier, row)))
        .map(|(tier, row)| vec![tier.to_owned(), row.reason.clone(), row.models.to_string(), size(row.bytes)])
        .collect();
    if !left.is_empty() {
        out.line("")?;
        out.table(&["LEFT", "FOR", "MODELS>", "BYTES>"], &left)?;
    }
    for (at, regression) in answer.regressions.iter().enumerate() {
        if at == 0 {
            out.line("")?;
        }
        out.line(format_args!("worse: {}", worse(regression)))?;
    }
    Ok(())
}

fn span(span: Option<time::Duration>) -> Option<String> {
    span.and_then(time::Duration::to_std).map(human_duration)
}

fn saved(saved: &pb::SavedWork) -> Vec<String> {
    let fetched = format!("saved: {} not fetched again", size(saved.bytes));
    let waiting = match span(saved.waiting) {
        Some(waiting) => format!("{fetched}, {waiting} of waiting at {}", rate(saved.fetch_bytes_per_second)),
        None => format!("{fetched}; nothing was fetched here yet that would say how long that takes"),
    };
    let ram = span(saved.reading)
        .filter(|_| saved.ram_bytes > 0)
        .map(|reading| format!("       {} of it from RAM, {reading} of reading from the disk", size(saved.ram_bytes)));
    [Some(waiting), ram].into_iter().flatten().collect()
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn figures(period: &pb::PeriodTotals, previous: &pb::PeriodTotals) -> Vec<Vec<String>> {
    type Figure = fn(&pb::PeriodTotals) -> String;
    let rows: [(&str, Figure); 8] = [
        ("hit ratio, by models", |p| percent(p.hit_ratio)),
        ("hit ratio, by bytes", |p| percent(p.byte_hit_ratio)),
        ("models in VRAM", |p| models(p.vram)),
        ("models from RAM", |p| models(p.ram)),
        ("models from the disk", |p| models(p.nvme)),
        ("models from origins", |p| models(p.origin)),
        ("waited for origins", |p| span(p.origin.and_then(|found| found.waited)).unwrap_or_default()),
        ("ensures, failed ones", |p| format!("{}, {}", p.ensures_ready + p.ensures_failed, p.ensures_failed)),
    ];
    rows.iter().map(|(name, figure)| vec![(*name).to_owned(), figure(period), figure(previous)]).collect()
}

fn models(found: Option<pb::FoundModels>) -> String {
    let found = found.unwrap_or_default();
    format!("{} ({})", found.models, size(found.bytes))
}

fn origins(period: &pb::PeriodTotals) -> Vec<Vec<String>> {
    let row = |row: &pb::OriginTotals| {
        let speed = if row.bytes_per_second == 0 { "-".to_owned() } else { rate(row.bytes_per_second) };
        vec![row.origin.clone(), speed, size(row.bytes), row.requests.to_string(), row.requests_failed.to_string()]
    };
    period.origins.iter().map(row).collect()
}

fn worse(found: &pb::Regression) -> String {
    let (before, now) = (found.before, found.now);
    let shares = format!("{:.1} %, before {:.1} %", now * 100.0, before * 100.0);
    let numbers = format!("{now:.0}, before {before:.0}");
    match found.kind() {
        pb::RegressionKind::HitRatio => format!("fewer models were there: {shares}"),
        pb::RegressionKind::OriginSpeed => {
            format!("origin {} is slower: {}, before {}", found.subject, rate(now as u64), rate(before as u64))
        }
        pb::RegressionKind::OriginFailures => format!("origin {} fails more often: {shares}", found.subject),
        pb::RegressionKind::Evictions => format!("more models leave the disk ({}): {numbers}", found.subject),
        pb::RegressionKind::Pressure => format!("more models leave RAM for want of memory: {numbers}"),
        pb::RegressionKind::Failures => format!("more ensures fail: {numbers}"),
        pb::RegressionKind::Damage => format!("more stored pieces are damaged: {numbers}; look at the disk"),
        pb::RegressionKind::Unspecified => "something newer than this tool".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_told_with_its_rate_or_with_why_there_is_none() {
        let none = pb::SavedWork { bytes: 3 << 30, ..Default::default() };
        assert!(
            saved(&none)[0].contains("3 GiB not fetched again; nothing was fetched here yet"),
            "{:?}",
            saved(&none)
        );
        let some = pb::SavedWork {
            waiting: Some(Duration::from_secs(90).into()),
            fetch_bytes_per_second: 100 << 20,
            ram_bytes: 1 << 30,
            reading: Some(Duration::from_secs(2).into()),
            ..none
        };
        let lines = saved(&some);
        assert!(lines[0].contains("of waiting at 100 MiB/s") && lines[1].contains("1 GiB of it from RAM"), "{lines:?}");
    }

    #[test]
    fn what_got_worse_reads_as_a_sentence_with_both_figures() {
        let found = |kind: pb::RegressionKind, before, now| pb::Regression {
            kind: kind.into(),
            subject: "r2".to_owned(),
            before,
            now,
        };
        assert_eq!(
            worse(&found(pb::RegressionKind::HitRatio, 0.9, 0.5)),
            "fewer models were there: 50.0 %, before 90.0 %"
        );
        let slower = worse(&found(pb::RegressionKind::OriginSpeed, 2048.0, 1024.0));
        assert_eq!(slower, "origin r2 is slower: 1 KiB/s, before 2 KiB/s");
    }
}
