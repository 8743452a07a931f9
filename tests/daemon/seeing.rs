//! Claims about what machines see: the metrics of a real daemon, and the alerts and the dashboard that are built on them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use tierd_cache::metrics::{ALL, Kind, Metric};

use crate::rig::http::ask;
use crate::rig::servers::tool;
use crate::rig::{Content, Daemon, Fault, FaultOrigin, MIB, Settings, free_port, until, within};

const RULES: &str = "deploy/prometheus/tierd.rules.yml";
const RULE_TESTS: &str = "deploy/prometheus/tierd.rules.test.yml";
const DASHBOARD: &str = "deploy/grafana/tierd.json";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs promtool and fails with what it says.
fn promtool(promtool: &Path, args: &[&str], input: Option<&Path>) {
    let mut command = Command::new(promtool);
    command.args(args);
    if let Some(input) = input {
        command.stdin(std::fs::File::open(input).expect("it was written"));
    }
    let output = command.output().expect("promtool runs");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "promtool {args:?}: {said}");
}

/// Every query of the dashboard.
fn queries() -> Vec<String> {
    fn walk(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                found.extend(map.get("expr").and_then(|expr| expr.as_str()).map(str::to_owned));
                map.values().for_each(|value| walk(value, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&serde_json::from_str(&read(DASHBOARD)).expect("the dashboard is JSON"), &mut found);
    assert!(found.len() > 30, "only {} queries were found", found.len());
    found
}

/// A query as Prometheus takes it: with Grafana's variables filled in.
fn filled(query: &str) -> String {
    let spans = query.replace("$__rate_interval", "5m").replace("$__range", "6h");
    spans.replace("$job", ".*").replace("$instance", ".*")
}

/// The metrics that a text names: each with what stands in its braces, if it has any.
fn named(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("tierd_") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_ascii_alphanumeric() || "_:.".contains(letter)) {
            continue;
        }
        let end = text[at..].find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let (name, rest) = text[at..].split_at(end.unwrap_or(text.len() - at));
        let braces = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        found.push((name.to_owned(), braces.to_owned()));
    }
    found
}

/// The metric that a name in a query is a series of.
fn metric(name: &str) -> Option<&'static Metric> {
    ALL.iter().find(|metric| match metric.kind {
        Kind::Histogram(_) => {
            ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(metric.name))
        }
        Kind::Counter | Kind::Gauge => metric.name == name,
    })
}

/// What is wrong with the labels that a query asks a metric for. Values are held against the metric's own list.
fn wrong_label(metric: &Metric, braces: &str) -> Option<String> {
    for matcher in braces.split(", ").filter(|matcher| !matcher.is_empty()) {
        let (label, value) = matcher.split_once(['=', '!'])?;
        if ["job", "instance"].contains(&label) {
            continue;
        }
        let Some((_, values)) = metric.labels.iter().find(|(known, _)| *known == label) else {
            return Some(format!("no label {label}"));
        };
        let words = value.trim_start_matches(['=', '~']).trim_matches('"').split('|');
        let unknown = |word: &&str| values.contains('`') && !values.contains(&format!("`{word}`"));
        if let Some(word) = words.into_iter().find(|word| !word.is_empty() && unknown(word)) {
            return Some(format!("{label} is never {word}"));
        }
    }
    None
}

#[test]
fn every_metric_and_label_in_the_dashboard_and_the_rules_exists() {
    let rules = read(RULES).lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let tests = read(RULE_TESTS);
    let mut names = BTreeSet::new();
    for text in queries().into_iter().chain([rules, tests]) {
        for (name, braces) in named(&text) {
            let Some(metric) = metric(&name) else { panic!("{name} is no metric of tierd: {text}") };
            if let Some(wrong) = wrong_label(metric, &braces) {
                panic!("{name}{{{braces}}}: {wrong}");
            }
            names.insert(metric.name);
        }
    }
    assert!(names.len() > 30, "only {names:?} were found");
    assert!(wrong_label(&tierd_cache::metrics::STORE_EVICTIONS, "reason=\"rom\"").is_some());
    assert!(metric("tierd_rpc_request_seconds").is_none() && metric("tierd_nothing").is_none());
}

#[test]
fn the_alerts_fire_when_they_should_and_the_dashboard_asks_what_can_be_asked() {
    let Some(tool) = tool("seeing_rules", "promtool") else { return };
    promtool(&tool, &["check", "rules", file(RULES).to_str().expect("plain")], None);
    promtool(&tool, &["test", "rules", file(RULE_TESTS).to_str().expect("plain")], None);
    let rules: Vec<_> = (queries().iter().enumerate())
        .map(|(at, query)| serde_json::json!({ "record": format!("q:{at}"), "expr": filled(query) }))
        .collect();
    // JSON is YAML.
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("dashboard.yml");
    std::fs::write(&path, rules.to_string()).expect("its folder can be written");
    promtool(&tool, &["check", "rules", path.to_str().expect("plain")], None);
}

/// The value of one series of a scrape.
fn series(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_daemon_counts_what_it_does_and_its_scrape_is_in_order() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        let (here, wrong) = ("loras/a.safetensors", "loras/b.safetensors");
        let (content, other) = (Content::model(1, 3 * MIB), Content::model(2, 3 * MIB));
        origin.put(here, &content);
        origin.put(wrong, &other);
        // The manifest promises another content for one of them.
        let promised = Content::model(3, 3 * MIB).blake3();
        origin.put_manifest(&[(here, &content, Some(content.blake3()), None), (wrong, &other, Some(promised), None)]);
        let address = format!("127.0.0.1:{}", free_port());
        let settings = Settings::with_origin(&origin).set("listen", "http", &format!("\"{address}\""));
        let daemon = Daemon::start(settings).await;
        let client = daemon.client().await;
        let scrape = || async {
            let (status, text) = ask(&address, "GET", "/metrics", b"").await.expect("it listens");
            assert_eq!(status, 200, "{text}");
            text
        };

        // What alerts look at stands at zero before anything happened.
        let before = scrape().await;
        for name in [
            "tierd_store_damaged_pieces_total",
            "tierd_engine_flights_failed_total{fault=\"corrupt\"}",
            "tierd_engine_models_total{from=\"nvme\"}",
            "tierd_ram_demotions_total{reason=\"pressure\"}",
            "tierd_fetch_requests_total{origin=\"lab\",outcome=\"denied\"}",
        ] {
            assert_eq!(series(&before, name), Some(0.0), "{name} in {before}");
        }

        client.ready(&[here]).await;
        client.ready(&[here]).await;
        assert!(client.ensure(&[wrong]).await.ready.is_none(), "its bytes are not what was promised");
        client.evict(&[here]).await.expect("nobody holds it");
        let after = scrape().await;
        for (name, value) in [
            ("tierd_engine_models_total{from=\"origin\"}", 1.0),
            ("tierd_engine_models_total{from=\"nvme\"}", 1.0),
            ("tierd_engine_model_bytes_total{from=\"nvme\"}", (3 * MIB) as f64),
            ("tierd_store_stored_total", 1.0),
            ("tierd_store_evictions_total{reason=\"asked\"}", 1.0),
            ("tierd_engine_flights_failed_total{fault=\"corrupt\"}", 1.0),
        ] {
            assert_eq!(series(&after, name), Some(value), "{name} in {after}");
        }
        let compared: f64 = after
            .lines()
            .filter(|line| line.starts_with("tierd_engine_estimates_total"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum();
        assert!((compared - 2.0).abs() < 0.5, "two sets came true: {after}");
        assert!(after.contains("tierd_fetch_first_byte_seconds_bucket{origin=\"lab\""), "{after}");

        // An idle daemon tells of an origin that goes and comes back too.
        until("the gauges have caught up, and rest", 10, || async {
            (series(&scrape().await, "tierd_store_models") == Some(0.0)).then_some(())
        })
        .await;
        origin.fault("tierd-manifest.json", 1000, Fault::Status(500, Vec::new()));
        daemon.cli().run(&["refresh", "lab"]).await;
        let is = |up: f64| {
            let scrape = &scrape;
            async move { (series(&scrape().await, "tierd_origin_up{origin=\"lab\"}") == Some(up)).then_some(()) }
        };
        until("the origin is shown as down", 10, || is(0.0)).await;
        origin.heal();
        daemon.cli().run(&["refresh", "lab"]).await.assert_code(0);
        until("the origin is shown as up", 10, || is(1.0)).await;

        let Some(tool) = tool("seeing_scrape", "promtool") else { return };
        let path = daemon.dir().join("scrape");
        std::fs::write(&path, scrape().await).expect("its folder can be written");
        promtool(&tool, &["check", "metrics"], Some(&path));
    })
    .await;
}
