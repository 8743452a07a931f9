//! Claims about `tierd replay` as an operator runs it: text in, tables, JSON and a chart out; the same each time.

use std::path::Path;
use std::process::{Command, Output};

const MB: u64 = 1_000_000;

/// Two popular checkpoints, and a parade of files that come once.
fn trace(folder: &Path) -> String {
    let mut text = "timestamp_ms,request_id,model_key,bytes,kind\n".to_owned();
    for n in 0..300_u64 {
        let at = n * 20_000;
        text += &format!("{at},{n},base{},{},checkpoint\n", n % 2, 6000 * MB);
        if n % 3 == 0 {
            text += &format!("{at},{n},once{n},{},checkpoint\n", 3000 * MB);
        }
    }
    let file = folder.join("week.csv");
    std::fs::write(&file, text).expect("a file");
    file.to_string_lossy().into_owned()
}

fn replay(arguments: &[&str]) -> Output {
    let done = Command::new(env!("CARGO_BIN_EXE_tierd")).arg("replay").args(arguments).output().expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done
}

fn json(done: &Output) -> serde_json::Value {
    serde_json::from_slice(&done.stdout).expect("JSON")
}

#[test]
fn a_comparison_has_the_rivals_in_it_and_the_default_beats_lru_and_no_policy_the_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = trace(folder.path());
    let sizes = [trace.as_str(), "--disk", "16GB", "--ram", "7GB"];
    let told = json(&replay(&[&sizes[..], &["--compare", "--json"]].concat()));
    let mean = |report: &serde_json::Value| report["stall"]["mean"].as_f64().expect("a number");
    let rivals = told["compared"].as_array().expect("a list");
    let names: Vec<&str> = rivals.iter().filter_map(|rival| rival["policy"].as_str()).collect();
    assert_eq!((told["policy"].as_str(), &names[..]), (Some("value"), &["lru", "fifo", "bound (all-knowing)"][..]));
    assert!(mean(&told) < mean(&rivals[0]) && mean(&rivals[2]) <= mean(&told), "{told}");
    let text = replay(&[&sizes[..], &["--compare"]].concat());
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("OF LRU'S") && text.contains("bound (all-knowing)"), "{text}");
    let again = json(&replay(&[&sizes[..], &["--compare", "--json"]].concat()));
    assert_eq!(again, told, "the same trace, another answer");
}

#[test]
fn a_sweep_says_what_more_disk_brings_in_a_table_in_json_and_in_a_chart() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = trace(folder.path());
    let chart = folder.path().join("waiting.svg");
    let chart_name = chart.to_string_lossy();
    let sweep = [&trace, "--sweep", "--sweep-disk", "10GB,40GB,400GB", "--sweep-ram", "1GB,14GB"];
    let told = json(&replay(&[&sweep[..], &["--json", "--chart", &chart_name]].concat()));
    let reports = told["sweep"].as_array().expect("a list");
    assert_eq!(reports.len(), 6);
    let mean = |at: usize| reports[at]["stall"]["mean"].as_f64().expect("a number");
    assert!(mean(0) > mean(2) && mean(2) > mean(5), "more of both waits less: {reports:?}");
    assert_eq!((&reports[4]["disk"], &reports[4]["ram"]), (&40_000_000_000_u64.into(), &14_000_000_000_u64.into()));
    let svg = std::fs::read_to_string(&chart).expect("it was drawn");
    assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() == 2, "{svg}");
    let text = replay(&sweep);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("DISK") && text.contains("of RAM") || text.contains("RAM"), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with(" s")).count(), 3, "a row for each disk: {text}");
}
