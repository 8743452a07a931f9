//! Claims about what is written for people: commands in the documents exist, and exit codes are the documented ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tierd(args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tierd")).args(args).output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// All documents for people.
fn documents() -> Vec<PathBuf> {
    let here = [root().to_owned(), root().join("docs")];
    let files = here.iter().flat_map(|dir| std::fs::read_dir(dir).expect("it is there")).flatten();
    files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "md")).collect()
}

/// Lines of code blocks, without prompts and comments, and what stands in backticks.
fn code_lines(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            let line = line.trim_start_matches("$ ").split(" #").next().unwrap_or_default();
            lines.push(line.trim().replace("cargo run --release -- ", "tierd "));
        } else {
            lines.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    lines
}

/// Codes and meanings of a table whose rows start with a number.
fn codes(text: &str) -> BTreeMap<u32, String> {
    let row = |line: &str| {
        let line = line.trim().trim_matches('|').replace('`', "");
        let (code, meaning) = line.trim().split_once([' ', '|'])?;
        let meaning = meaning.trim().trim_matches('|').trim().to_owned();
        Some((code.trim().parse().ok()?, meaning))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn every_command_in_the_documents_exists_with_its_options() {
    let mut checked = BTreeSet::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).expect("it can be read");
        for line in code_lines(&text) {
            let mut words = line.split_whitespace().skip_while(|word| word.contains('=') || *word == "sudo");
            if words.next() != Some("tierd") {
                continue;
            }
            let words: Vec<_> = words.collect();
            let Some(command) = words.iter().find(|word| {
                word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-') && !word.starts_with('-')
            }) else {
                continue;
            };
            let (known, help) = tierd(&[command, "--help"]);
            assert!(known, "{}: `{line}`: there is no `tierd {command}`", document.display());
            for option in words.iter().filter_map(|word| word.split('=').next()).filter(|word| word.starts_with("--")) {
                let option = option.trim_matches(['[', ']', '`']);
                assert!(help.contains(option), "{}: `{line}`: {command} has no {option}", document.display());
            }
            checked.insert((*command).to_owned());
        }
    }
    assert!(!checked.is_empty(), "the documents show commands");
}

#[test]
fn the_exit_codes_of_the_help_are_those_of_the_documents() {
    let (_, help) = tierd(&["--help"]);
    let help = codes(help.split_once("Exit codes:").expect("the help lists them").1);
    let api = std::fs::read_to_string(root().join("docs/api.md")).expect("it is there");
    let section = api.split_once("## Exit codes").expect("the document lists them").1;
    let written = codes(section.split("\n## ").next().unwrap_or_default());
    assert!(help.len() >= 10, "{help:?}");
    assert_eq!(help.keys().collect::<Vec<_>>(), written.keys().collect::<Vec<_>>());
}
