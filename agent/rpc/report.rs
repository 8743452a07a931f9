//! `ReportService`: what the cache did over some hours. Converts; the arithmetic is the engine's.

use std::collections::BTreeMap;
use std::time::Duration;

use tierd_cache::engine::EngineHandle;
use tierd_cache::plan::report::{Found, HOURS_MAX, Moved, Regression, RegressionKind, Report, Saved, Totals};
use tonic::{Request, Response, Status};

use crate::rpc::caller::{self, ANSWER_WAIT, answer, span};
use crate::rpc::fault::invalid;
use crate::rpc::pb;

/// What is reported on if nobody says.
const SINCE: Duration = Duration::from_secs(24 * 3600);
/// Longest time that is told.
const SECONDS_MAX: f64 = 1e12;

/// The service. One for each listener, all speak to one engine.
pub(crate) struct Reports {
    pub(crate) engine: EngineHandle,
}

#[tonic::async_trait]
impl pb::report_service_server::ReportService for Reports {
    async fn get_report(
        &self,
        request: Request<pb::GetReportRequest>,
    ) -> Result<Response<pb::GetReportResponse>, Status> {
        let since = span("since", request.into_inner().since, SINCE)?;
        let hours = since.as_secs().div_ceil(3600);
        if !(1..=HOURS_MAX).contains(&hours) {
            return Err(invalid("since", format_args!("{since:?}: 1 hour to {} days are remembered", HOURS_MAX / 24)));
        }
        let report = answer(ANSWER_WAIT, self.engine.report(hours)).await?;
        Ok(Response::new((&report).into()))
    }

    async fn explain(&self, request: Request<pb::ExplainRequest>) -> Result<Response<pb::ExplainResponse>, Status> {
        let model = caller::model("model", &request.get_ref().model)?;
        let explained = answer(ANSWER_WAIT, self.engine.explain(model)).await?;
        Ok(Response::new((&explained).into()))
    }
}

fn seconds(seconds: f64) -> crate::rpc::time::Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, SECONDS_MAX)).into()
}

impl From<&Report> for pb::GetReportResponse {
    fn from(report: &Report) -> Self {
        Self {
            from: Some(report.from.into()),
            hours: report.hours as u32,
            recorded_from: report.recorded_from.map(Into::into),
            period: Some((&report.now).into()),
            previous: Some((&report.before).into()),
            saved: Some((&report.saved).into()),
            regressions: report.regressions.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Totals> for pb::PeriodTotals {
    fn from(totals: &Totals) -> Self {
        let mut origins: Vec<pb::OriginTotals> = (totals.origins.iter())
            .map(|(origin, given)| pb::OriginTotals {
                origin: origin.to_string(),
                bytes: given.bytes,
                bytes_per_second: given.speed().unwrap_or_default() as u64,
                requests: given.requests,
                requests_failed: given.failed,
            })
            .collect();
        // Those of which too little is known come last.
        origins.sort_by_key(|row| if row.bytes_per_second == 0 { u64::MAX } else { row.bytes_per_second });
        Self {
            ram: Some(totals.ram.into()),
            nvme: Some(totals.nvme.into()),
            origin: Some(totals.origin.into()),
            hit_ratio: totals.hit_ratio(),
            byte_hit_ratio: totals.byte_hit_ratio(),
            ensures_ready: totals.ready,
            ensures_failed: totals.failed,
            evicted: left(&totals.evicted),
            demoted: left(&totals.demoted),
            damaged_pieces: totals.damaged,
            vram: Some(totals.vram.into()),
            origins,
        }
    }
}

fn left(rows: &BTreeMap<String, Moved>) -> Vec<pb::LeftModels> {
    let row = |(reason, moved): (&String, &Moved)| pb::LeftModels {
        reason: reason.clone(),
        models: moved.models,
        bytes: moved.bytes,
    };
    rows.iter().map(row).collect()
}

impl From<Found> for pb::FoundModels {
    fn from(found: Found) -> Self {
        Self { models: found.models, bytes: found.bytes, waited: Some(Duration::from_millis(found.waited_ms).into()) }
    }
}

impl From<&Saved> for pb::SavedWork {
    fn from(saved: &Saved) -> Self {
        Self {
            bytes: saved.bytes,
            waiting: saved.seconds.map(seconds),
            fetch_bytes_per_second: saved.fetch_rate.unwrap_or_default() as u64,
            ram_bytes: saved.ram_bytes,
            reading: saved.ram_seconds.map(seconds),
        }
    }
}

impl From<&Regression> for pb::Regression {
    fn from(found: &Regression) -> Self {
        let kind = match found.kind {
            RegressionKind::HitRatio => pb::RegressionKind::HitRatio,
            RegressionKind::OriginSpeed => pb::RegressionKind::OriginSpeed,
            RegressionKind::OriginFailures => pb::RegressionKind::OriginFailures,
            RegressionKind::Evictions => pb::RegressionKind::Evictions,
            RegressionKind::Pressure => pb::RegressionKind::Pressure,
            RegressionKind::Failures => pb::RegressionKind::Failures,
            RegressionKind::Damage => pb::RegressionKind::Damage,
        };
        Self { kind: kind.into(), subject: found.subject.clone(), before: found.before, now: found.now }
    }
}

#[cfg(test)]
mod tests {
    use tierd_cache::ids::OriginName;
    use tierd_cache::plan::report::Given;

    use super::*;

    #[test]
    fn the_slowest_origin_comes_first_and_one_that_was_hardly_asked_last() {
        let mut totals = Totals::default();
        for (name, bytes, busy_ms) in [("fast", 900_000, 1000), ("idle", 0, 10), ("slow", 9_000, 3000)] {
            totals.origins.insert(OriginName::new(name), Given { bytes, busy_ms, requests: 1, failed: 0 });
        }
        let message = pb::PeriodTotals::from(&totals);
        let names: Vec<&str> = message.origins.iter().map(|row| row.origin.as_str()).collect();
        assert_eq!(names, ["slow", "fast", "idle"]);
        assert_eq!(message.origins[0].bytes_per_second, 3000);
        assert_eq!(message.hit_ratio, None);
    }
}
