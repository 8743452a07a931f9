//! The official templates, some hundreds: none is an error, and what they list of their own models is found. They are
//! installed by `tests/setup.sh`; without them the test says so and is skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::*;

/// The package, as `tests/setup.sh` pins it: other versions have other numbers.
const PACKAGE: &str = "comfyui_workflow_templates_json";

/// The folder of the templates, if they are installed.
fn folder() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/venv/lib");
    let pythons = std::fs::read_dir(lib).ok()?.flatten().map(|python| python.path());
    pythons.map(|python| python.join("site-packages").join(PACKAGE).join("templates")).find(|folder| folder.is_dir())
}

/// Says that the test was skipped; fails where nothing may be skipped.
fn skip(why: &str) {
    let must = std::env::var_os("TIERD_TEST_REQUIRE_SERVERS").is_some_and(|value| !value.is_empty() && value != "0");
    assert!(!must, "{why}, and TIERD_TEST_REQUIRE_SERVERS is set");
    eprintln!("skipped templates: {why}");
}

/// What the templates came to.
#[derive(Default)]
struct Tally {
    rows: BTreeMap<&'static str, usize>,
    folders: BTreeMap<String, usize>,
    missed: Vec<String>,
    misplaced: Vec<String>,
}

impl Tally {
    fn add(&mut self, what: &'static str, count: usize) {
        *self.rows.entry(what).or_default() += count;
    }

    fn get(&self, what: &str) -> usize {
        self.rows.get(what).copied().unwrap_or(0)
    }

    /// Takes one workflow down.
    fn workflow(&mut self, name: &str, document: &Value) {
        let found = of(document);
        self.add("workflows", 1);
        self.add("without a model", usize::from(found.needs.is_empty()));
        self.add("nodes", found.nodes);
        self.add("needs", found.needs.len());
        self.add("needs by the node's own list", found.needs.iter().filter(|need| need.how == How::Listed).count());
        self.add("needs with a candidate", found.needs.iter().filter(|need| !need.candidates.is_empty()).count());
        self.add("idle", found.idle.len());
        self.add("unresolved, required", found.unresolved.iter().filter(|row| row.required).count());
        self.add("unresolved, perhaps", found.unresolved.iter().filter(|row| !row.required).count());
        assert!(found.limits.is_empty(), "{name}: {:?}", found.limits);
        for need in &found.needs {
            *self.folders.entry(need.model.folder().to_owned()).or_default() += 1;
        }
        self.listed(name, document, &found);
    }

    /// Compares with what the nodes list themselves.
    fn listed(&mut self, name: &str, document: &Value, found: &Resolution) {
        let mut listed = BTreeSet::new();
        lists(document, &mut listed);
        self.add("listed", listed.len());
        for (node, folder, file) in listed {
            let Ok(model) = ModelKey::parse(&format!("{folder}/{file}")) else { continue };
            let named_here =
                |need: &&Need| need.places.iter().any(|place| place.node.rsplit(':').next() == Some(node.as_str()));
            let instead = found.needs.iter().chain(found.idle.iter().map(|row| &row.need));
            if found.needs.iter().any(|need| need.model == model) {
                self.add("listed: found", 1);
            } else if found.idle.iter().any(|row| row.need.model == model) {
                self.add("listed: idle", 1);
            } else if let Some(other) = found.needs.iter().find(|need| need.model.base() == model.base()) {
                self.add("listed: in another folder", 1);
                self.misplaced.push(format!("{name}: {model} was found as {}", other.model));
            } else if instead.filter(named_here).any(|need| need.model.folder() == model.folder()) {
                self.add("listed: stale", 1);
            } else {
                self.add("listed: missed", 1);
                self.missed.push(format!("{name}: {model} of node {node}"));
            }
        }
    }

    fn text(&self) -> String {
        let mut text = String::from("| official templates | |\n| --- | ---: |\n");
        for (what, label) in [
            ("workflows", "workflows"),
            ("without a model", "of them need no model"),
            ("nodes", "nodes, subgraphs opened"),
            ("needs", "needs, each once a workflow"),
            ("needs by the node's own list", "of them only by the node's own list"),
            ("needs with a candidate", "of them with a source named in the workflow"),
            ("idle", "named, but muted or bypassed"),
            ("unresolved, required", "unresolved and required"),
            ("unresolved, perhaps", "unresolved, perhaps a model"),
            ("listed", "models that nodes list themselves (`properties.models`)"),
            ("listed: found", "found, in that folder"),
            ("listed: idle", "found, but idle"),
            ("listed: stale", "stale: the node's value is another"),
            ("listed: in another folder", "found in another folder"),
            ("listed: missed", "missed"),
        ] {
            let _ = writeln!(text, "| {label} | {} |", self.get(what));
        }
        text.push_str("\n| folder | needs |\n| --- | ---: |\n");
        for (folder, count) in &self.folders {
            let _ = writeln!(text, "| {folder} | {count} |");
        }
        text
    }
}

/// All that nodes list: node, folder, file.
fn lists(value: &Value, out: &mut BTreeSet<(String, String, String)>) {
    if let Some(list) = value.pointer("/properties/models").and_then(Value::as_array) {
        let node = value["id"].as_u64().map(|id| id.to_string()).unwrap_or_default();
        let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        out.extend(list.iter().map(|row| (node.clone(), text(row, "directory"), text(row, "name"))));
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| lists(item, out)),
        Value::Object(entries) => entries.values().for_each(|item| lists(item, out)),
        _ => {}
    }
}

#[test]
fn every_official_template_is_read_and_what_it_lists_is_found() {
    let Some(folder) = folder() else { return skip("the templates are not installed; run tests/setup.sh") };
    let mut tally = Tally::default();
    for entry in std::fs::read_dir(folder).expect("it is a folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // The others are lists of the templates, in many languages.
        if !name.ends_with(".json") || name.starts_with("index") {
            continue;
        }
        let document = parse(&std::fs::read(entry.path()).expect("it can be read"));
        let document = document.unwrap_or_else(|error| panic!("{name}: {error}"));
        match resolve(&document, &Known::default()) {
            Ok(_) => tally.workflow(&name, &document),
            Err(error) => {
                assert!(document.get("nodes").is_none(), "{name}: {error}");
                println!("{name}: {error}");
            }
        }
    }
    let text = tally.text();
    println!("{text}\nmissed: {:#?}\nmisplaced: {:#?}", tally.missed, tally.misplaced);
    assert!(tally.get("workflows") > 400, "{text}");
    let stale = tally.get("listed: stale");
    let there = tally.get("listed") - stale;
    let right = tally.get("listed: found") + tally.get("listed: idle");
    assert!(right * 100 >= there * 98, "{right} of {there} that are not stale\n{text}");

    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/workflows.md");
    let document = std::fs::read_to_string(&page).expect("the page is there");
    let (start, end) = ("<!-- templates -->\n", "<!-- end of templates -->");
    let (before, rest) = document.split_once(start).expect("the page has a place for the table");
    let (_, after) = rest.split_once(end).expect("and an end of it");
    let wanted = format!("{before}{start}{text}{end}{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&page, &wanted).expect("it can be written");
    }
    assert!(
        wanted == document || std::env::var_os("UPDATE_DOCS").is_some(),
        "docs/workflows.md is stale: UPDATE_DOCS=1\n{text}"
    );
}
