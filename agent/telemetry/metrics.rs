//! The recorder behind `/metrics`, and the document of all metrics. Metrics themselves are declared in
//! `tierd_cache::metrics`.

use std::fmt::Write as _;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tierd_cache::metrics::{ALL, Kind, describe_all};

/// Why metrics could not be started.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be recorded: {0}")]
pub struct MetricsError(#[from] BuildError);

/// Starts recording for the whole process. Without this call, measuring costs next to nothing and nothing is kept.
///
/// # Errors
///
/// A recorder is installed already.
pub fn init() -> Result<PrometheusHandle, MetricsError> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| MetricsError(BuildError::from(error)))?;
    describe_all();
    Ok(handle)
}

/// A recorder that keeps each histogram in its own buckets.
fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    Ok(builder.build_recorder())
}

/// The text of docs/metrics.md.
#[must_use]
pub fn reference_markdown() -> String {
    let mut out = String::from(INTRODUCTION);
    for metric in ALL {
        let (kind, buckets) = match metric.kind {
            Kind::Counter => ("counter", None),
            Kind::Gauge => ("gauge", None),
            Kind::Histogram(buckets) => ("histogram", Some(buckets)),
        };
        let mut labels: Vec<String> =
            metric.labels.iter().map(|(label, values)| format!("`{label}`: {values}")).collect();
        if let Some(buckets) = buckets {
            let bounds: Vec<String> = buckets.iter().map(f64::to_string).collect();
            labels.push(format!("buckets: {}", bounds.join(", ")));
        }
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join("; ") };
        let unit = metric.unit.as_str();
        let _ = writeln!(out, "| `{}` | {kind} | {unit} | {labels} | {} |", metric.name, metric.description);
    }
    out
}

const INTRODUCTION: &str = "\
# Metrics

<!-- Printed from cache/src/metrics.rs. Do not edit: UPDATE_DOCS=1 cargo test prints it again. -->

The daemon serves them in Prometheus' text format at `/metrics` on the address `listen.http` (127.0.0.1:9469 unless configured).
Labels have few, known values: an origin's configured name, or a word from the lists below; never a path, a model or an address.
A metric appears once it has been measured for the first time; counters whose first step is worth an alert stand at 0 from the start.

On the same address, `/livez` answers 200 while the process and its engine answer within a second, and `/readyz` answers 200 while
models can be asked for: the store is open, gRPC listens, and the daemon is not shutting down. Otherwise both answer 503, with
the reasons as text, or as JSON to `Accept: application/json`.

| metric | kind | unit | labels | what it says |
| --- | --- | --- | --- | --- |
";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tierd_cache::engine::event::Guessed;
    use tierd_cache::engine::view::{DemoteReason, EvictReason, Phase, Tier};
    use tierd_cache::ids::OriginName;
    use tierd_cache::metrics as measured;
    use tierd_cache::plan::calibration::Class;
    use tierd_cache::plan::predict::Habit;
    use tierd_cache::plan::predict::shadow::{Kind as PredictKind, Level, Settled, Step};

    use super::*;

    #[test]
    fn the_metrics_document_is_what_the_constants_say() {
        crate::telemetry::tests::assert_document("docs/metrics.md", &reference_markdown());
    }

    #[test]
    fn every_declared_metric_can_be_measured_and_is_rendered_under_its_name() {
        let recorder = recorder().expect("good buckets");
        metrics::with_local_recorder(&recorder, || {
            describe_all();
            let origin = OriginName::new("r2");
            measured::fetched(&origin, 5);
            measured::request_ended(&origin, measured::RequestOutcome::Denied, Duration::from_millis(20));
            measured::answered(&origin, Duration::from_millis(20));
            measured::retried(&origin);
            measured::connections(&origin, 3);
            measured::origin_up(&origin, true);
            measured::origin_models(&origin, 9);
            measured::store_bytes(1, 2, 3, 4);
            measured::store_models(1);
            measured::stored(7);
            measured::evicted(&EvictReason::Asked { by: "me".to_owned() }, 7);
            measured::committed(Duration::from_millis(1));
            measured::damaged(1);
            measured::ram_bytes(1, 2, 3, 4);
            measured::ram_models(1);
            measured::ram_locked(7, Duration::from_millis(1));
            measured::ram_landed(true, 7);
            measured::ram_demoted(&DemoteReason::Removed, 7);
            measured::ram_landed(true, 1);
            measured::ram_pressure("psi");
            measured::estimate_error(0.1);
            measured::fleet_connected(true);
            measured::fleet_message();
            measured::ensure_ended(measured::EnsureOutcome::Hit, Tier::Nvme, Duration::from_millis(1));
            measured::model_ready(Tier::Ram, 7);
            measured::estimate_error(0.1);
            measured::estimate_compared(Class::Lock, 1.0, 2.5);
            measured::flight_failed("corrupt");
            measured::flights(Phase::Fetching, 2);
            measured::flights(Phase::Failed, 99);
            measured::waiters(1);
            measured::leases(1);
            measured::events_dropped(1);
            measured::trace_dropped();
            measured::vram::device(0, 3, 2, 1);
            measured::vram::workers(1);
            measured::vram::used(Some(Tier::Nvme), 7, Duration::from_millis(1));
            measured::vram::advised();
            measured::vram::received(measured::vram::Hint::Report);
            measured::vram::dropped(measured::vram::Dropped::Unknown);
            measured::ahead(tierd_cache::engine::event::Ahead::Dropped);
            let settled = Settled {
                habit: Habit::Hour,
                level: Level::Sure,
                hit: true,
                top: true,
                step: Some(Step::Fetch),
                bytes: 7,
                saved: 1.0,
                lost: 0.0,
            };
            measured::predict::guessed(&Guessed { settled, acted: true, late: false });
            let kind = PredictKind { habit: Habit::Hour, step: Step::Fetch, level: Level::Sure };
            measured::predict::habit(kind, true, 0.9);
            measured::predict::rival("lru", 0.9);
            measured::comfy(1, 0, 1, 2);
            measured::comfy_prompts("seen", 1);
            measured::comfy_unresolved();
            measured::comfy_read("ok");
            measured::spans::sent(1);
            measured::spans::dropped(1);
            measured::spans::failed(1);
            measured::rpc_ended("Ensure", "OK");
            measured::rpc_answered("Ensure", Duration::from_millis(1));
            let (resident_bytes, cpu_seconds, started) = (1, 0.5, 2);
            measured::process(measured::ProcessSample { resident_bytes, cpu_seconds, open_fds: Some(3), started });
        });
        let text = recorder.handle().render();
        for metric in ALL {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            assert!(
                text.contains(&format!("# TYPE {} {kind}\n", metric.name)),
                "{} is not there:\n{text}",
                metric.name
            );
            assert!(text.contains(&format!("# HELP {} ", metric.name)), "{} is not described", metric.name);
            for (label, _) in metric.labels {
                let found =
                    text.lines().any(|line| line.starts_with(metric.name) && line.contains(&format!("{label}=\"")));
                assert!(found, "{} has no label {label}", metric.name);
            }
        }
        assert!(text.contains("tierd_fetch_requests_total{origin=\"r2\",outcome=\"denied\"} 1"), "{text}");
        assert!(text.contains("tierd_fetch_request_seconds_bucket{origin=\"r2\",le=\"0.025\"} 1"), "{text}");
        assert!(text.contains("tierd_engine_estimates_total{class=\"lock\",verdict=\"short\"} 1"), "{text}");
        assert!(!text.contains("99"), "ended flights are counted: {text}");
    }
}
