//! Claims about what is written for people and for machines beside the code: commands parse, configurations load, links lead
//! somewhere, and the unit, the image and the compose file say what the binary understands. Reads files; starts nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory;
use tierd::cli::Cli;
use tierd::cli::exit::Exit;
use tierd::config::Config;
use tierd_cache::config::OriginKind;
use tierd_cache::ids::COMFY_FOLDERS;
use tierd_cache::ids::canonical_folder;

type Env = BTreeMap<String, String>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Every document: its path from the top, and its text.
fn documents() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in ["", "docs"] {
        for entry in fs::read_dir(root().join(folder)).expect("it is there") {
            let path = entry.expect("it can be read").path();
            if path.extension().is_some_and(|end| end == "md") {
                files.push(path.strip_prefix(root()).expect("below").to_str().expect("plain").to_owned());
            }
        }
    }
    assert!(files.iter().any(|file| file == "README.md") && files.len() >= 6, "{files:?}");
    files.into_iter().map(|file| (file.clone(), read(&file))).collect()
}

/// The code blocks of one language in all documents, with where they stand.
fn blocks(language: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (file, text) in documents() {
        let mut block: Option<(String, String)> = None;
        for (number, line) in text.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), &mut block) {
                (Some(_), Some(_)) => found.extend(block.take().filter(|(tag, _)| tag == language).map(|(_, code)| {
                    let place = format!("{file}, block before line {}", number + 1);
                    (place, code)
                })),
                (Some(tag), None) => block = Some((tag.to_owned(), String::new())),
                (None, Some((_, code))) => *code += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        assert!(block.is_none(), "{file} ends inside a block");
    }
    found
}

/// The words of a shell line, in the simple quoting that documents use; a comment ends it.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in line.chars() {
        match (letter, quote) {
            ('#', None) if word.is_empty() => break,
            ('\'' | '"', None) => quote = Some(letter),
            (_, Some(open)) if letter == open => quote = None,
            (' ', None) => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            _ => word.push(letter),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

/// The command lines of tierd in a shell line: `a && tierd b | c > d` has one.
fn commands(line: &str) -> Vec<Vec<String>> {
    let words = words(line);
    let simple = words.split(|word| ["&&", "||", "|", ";"].contains(&word.as_str()));
    simple
        .filter_map(|command| {
            let end = command.iter().position(|word| word.starts_with('>')).unwrap_or(command.len());
            let command = &command[..end];
            let is_run = command.starts_with(&["cargo".to_owned(), "run".to_owned()]);
            let start = match command.iter().position(|word| word == "--") {
                Some(dashes) if is_run => dashes + 1,
                _ => command
                    .iter()
                    .position(|word| !word.contains('=') && word != "sudo" && word != "exec" && word != "$")?,
            };
            let named = is_run || command.get(start).is_some_and(|word| word == "tierd");
            let rest = command.get(if is_run { start } else { start + 1 }..).unwrap_or_default();
            named.then(|| [&["tierd".to_owned()], rest].concat())
        })
        .collect()
}

#[test]
fn every_command_in_the_documents_parses() {
    let mut parsed = 0;
    for (place, block) in blocks("sh") {
        for line in block.replace("\\\n", " ").lines() {
            for command in commands(line) {
                parsed += 1;
                if let Err(error) = Cli::read(&command) {
                    panic!("{place}: {line}\n{error}");
                }
            }
        }
    }
    assert!(parsed > 15, "only {parsed} commands were found");
}

#[test]
fn every_example_in_the_help_parses() {
    let mut parsed = 0;
    for command in Cli::command().get_subcommands() {
        let Some(help) = command.get_after_help() else { continue };
        for line in help.to_string().lines().filter(|line| line.starts_with("  tierd ")) {
            for command in commands(line) {
                parsed += 1;
                assert!(Cli::read(&command).is_ok(), "{line}");
            }
        }
    }
    assert!(parsed >= 10, "only {parsed} examples were found");
}

#[test]
fn every_command_named_in_the_text_exists() {
    let known: Vec<String> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let mut named = 0;
    for (file, text) in documents() {
        let spans = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        for span in spans.filter_map(|span| span.strip_prefix("tierd ")) {
            let first = span.split(' ').next().unwrap_or_default();
            named += 1;
            assert!(known.iter().any(|known| known == first), "{file} speaks of `tierd {span}`");
        }
    }
    assert!(named > 10, "only {named} were found");
}

/// Loads a configuration in a folder where every file is that it may name, with every variable that it may name.
fn load(text: Option<&str>, mut env: Env) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let texts =
        text.unwrap_or_default().lines().map(str::to_owned).chain(env.iter().map(|(k, v)| format!("{k} = {v:?}")));
    for line in texts.collect::<Vec<_>>() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, value) = (key.trim().to_lowercase(), value.split('"').nth(1).unwrap_or_default().to_owned());
        if key.ends_with("_file") || ["certificate", "key", "client_ca"].contains(&key.as_str()) {
            let name = Path::new(&value).file_name().expect("a name");
            fs::write(folder.path().join(name), "not-a-secret").expect("a file");
            if Path::new(&value).is_absolute() {
                let moved = folder.path().join(name).to_str().expect("plain").to_owned();
                env.values_mut().filter(|other| **other == value).for_each(|other| other.clone_from(&moved));
            }
        } else if key.ends_with("_env") {
            env.insert(value, "not-a-secret".to_owned());
        }
    }
    let file = folder.path().join("config.toml");
    fs::write(&file, text.unwrap_or_default()).expect("a file");
    Config::load(Some(&file), &env).map_err(|problems| problems.to_string())
}

#[test]
fn every_configuration_in_the_documents_loads() {
    let mut origins = Vec::new();
    for (place, block) in blocks("toml") {
        let env = Env::from([("HOME".to_owned(), "/home/a".to_owned())]);
        let config = load(Some(&block), env).unwrap_or_else(|problems| panic!("{place}:\n{problems}"));
        origins.extend(config.engine.origins);
    }
    let has = |wanted: fn(&OriginKind) -> bool| origins.iter().any(|origin| wanted(&origin.kind));
    assert!(has(|kind| matches!(kind, OriginKind::S3 { region, .. } if region == "auto")), "R2 is shown");
    assert!(has(|kind| matches!(kind, OriginKind::Http { .. })), "HTTP is shown");
    assert!(has(|kind| matches!(kind, OriginKind::Folder { .. })), "a folder is shown");
}

#[test]
fn a_wrong_configuration_in_a_document_would_be_found() {
    assert!(load(Some("[store]\nbudgt = 1\n"), Env::new()).is_err());
    assert!(load(None, Env::from([("TIERD_STORE__BUDGT".to_owned(), "1".to_owned())])).is_err());
    let line = "FOO=1 tierd ensure --nonsense vae/a && exec python main.py # tierd";
    let found = commands(line);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(Cli::read(&found[0]).is_err());
}

/// The anchors that GitHub makes of a document's headings.
fn anchors(text: &str) -> Vec<String> {
    let heading = |line: &str| line.starts_with('#').then(|| line.trim_start_matches('#').trim().to_lowercase());
    let plain = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    text.lines()
        .filter_map(heading)
        .map(|text| text.chars().filter(plain).collect::<String>().replace(' ', "-"))
        .collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut followed = 0;
    for (file, text) in documents() {
        let folder = root().join(&file).parent().expect("a file").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            followed += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target: PathBuf = if path.is_empty() { root().join(&file) } else { folder.join(path) };
            if path.ends_with(".png") {
                let bytes = fs::metadata(&target).unwrap_or_else(|error| panic!("{file}: {link}: {error}")).len();
                assert!(bytes < 150_000, "{file}: {link} has {bytes} bytes");
                continue;
            }
            let target = fs::read_to_string(&target).unwrap_or_else(|error| panic!("{file}: {link}: {error}"));
            assert!(anchor.is_empty() || anchors(&target).iter().any(|known| known == anchor), "{file}: {link}");
        }
    }
    assert!(followed > 8, "only {followed} links were found");
}

#[test]
fn every_file_and_folder_that_the_documents_name_is_there() {
    let mut found = 0;
    for (file, text) in documents() {
        for span in text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let first = span.split('/').next().unwrap_or_default();
            let ours = ["agent", "cache", "proto", "tests", "benches", "deploy", "systemd", ".ci"].contains(&first);
            if ours && span.contains('/') && !span.contains(['*', ' ']) {
                found += 1;
                assert!(root().join(span.trim_end_matches('/')).exists(), "{file} names {span}");
            }
        }
    }
    assert!(found > 4, "only {found} were found");
}

#[test]
fn the_exit_codes_in_the_documents_are_those_of_the_code() {
    for file in ["README.md", "docs/api.md"] {
        let text = read(file);
        let rows: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        let codes: Vec<String> = Exit::ALL.map(|exit| format!("| {} | {} |", exit as u8, exit.meaning())).into();
        assert_eq!(rows, codes, "{file}");
    }
}

#[test]
fn comfyui_would_find_the_folders_under_the_names_that_tierd_gives_them() {
    let mut keys = 0;
    for (place, block) in blocks("yaml") {
        assert!(!block.lines().any(|line| line.trim_start().starts_with("- ")), "{place}: ComfyUI takes no lists");
        for line in block.lines() {
            let Some((key, value)) = line.trim().split_once(':') else { continue };
            if value.is_empty() || ["base_path", "is_default"].contains(&key) {
                continue;
            }
            keys += 1;
            assert!(COMFY_FOLDERS.contains(&key), "{place}: {key}");
            assert_eq!(canonical_folder(key), key, "{place}: tierd keeps it under another name");
            assert!(value.trim() == key || value.trim() == "|", "{place}: {line}");
        }
    }
    assert!(keys > 8, "only {keys} folders are named");
}

/// `KEY=value` lines of a unit, without comments.
fn settings(text: &str) -> Vec<(&str, &str)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.trim().trim_end_matches('s').parse().expect("seconds"))
}

#[test]
fn the_unit_runs_a_command_that_exists_and_waits_for_the_drain() {
    let text = read("systemd/tierd.service");
    let unit = settings(&text);
    let get = |name: &str| unit.iter().find(|(key, _)| *key == name).unwrap_or_else(|| panic!("no {name}")).1;
    let command = get("ExecStart").strip_prefix("/usr/bin/").expect("the binary's place");
    assert!(Cli::read(command.split(' ')).is_ok(), "{command}");
    let env = ["State", "Runtime"].map(|kind| {
        let base = if kind == "State" { "/var/lib" } else { "/run" };
        (format!("{}_DIRECTORY", kind.to_uppercase()), format!("{base}/{}", get(&format!("{kind}Directory"))))
    });
    let config = load(None, Env::from(env)).expect("the defaults are good");
    assert_eq!(config.listen.unix, Path::new("/run/tierd/tierd.sock"));
    assert_eq!(config.engine.store.models, Path::new("/var/lib/tierd/models"));
    assert!(read("systemd/tierd.tmpfiles.conf").contains("d /var/lib/tierd/models"));
    assert!(seconds(get("TimeoutStopSec")) > config.drain_deadline);
}

#[test]
fn the_image_runs_commands_that_exist_with_variables_that_are_understood() {
    let text = read("Dockerfile").replace("\\\n", " ");
    let line =
        |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_else(|| panic!("{start}"));
    let env: Env = words(line("ENV ")).iter().filter_map(|pair| pair.split_once('=')).map(own).collect();
    let config = load(None, env).expect("the variables are understood");
    assert_eq!(config.engine.store.path, Path::new("/var/lib/tierd"));
    assert_eq!(config.listen.unix, Path::new("/run/tierd/tierd.sock"));
    assert_eq!(line("EXPOSE "), config.listen.http.expect("on").port().to_string());
    let list = |json: &str| serde_json::from_str::<Vec<String>>(json).expect("a list");
    let health = line("HEALTHCHECK ").split_once("CMD ").expect("a command").1;
    let served = [list(line("ENTRYPOINT ")), list(line("CMD "))].concat();
    for command in [served, list(health)] {
        assert_eq!(command[0], "/usr/bin/tierd");
        assert!(Cli::read(&command).is_ok(), "{command:?}");
    }
}

fn own((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn the_compose_file_configures_an_origin_and_waits_for_the_drain() {
    let text = read("compose.yaml");
    let mut env = Env::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some((key, value)) = line.trim().split_once(": ") else { continue };
        if key.starts_with("TIERD_") {
            // What `${NAME:-default}` and `${NAME:?why}` become where somebody has set the name.
            let value = match value.strip_prefix("${").and_then(|rest| rest.split_once([':', '}'])) {
                Some(("R2_ENDPOINT", _)) => "https://ACCOUNT.r2.cloudflarestorage.com",
                Some((_, rest)) if rest.starts_with('-') => rest[1..].trim_end_matches('}'),
                Some(_) => "models",
                None => value,
            };
            env.insert(key.to_owned(), value.to_owned());
        }
    }
    assert!(env.len() >= 6, "{env:?}");
    let config = load(None, env).unwrap_or_else(|problems| panic!("{problems}"));
    let [origin] = config.engine.origins.as_slice() else { panic!("one origin") };
    assert!(matches!(&origin.kind, OriginKind::S3 { bucket, region, .. } if bucket == "models" && region == "auto"));
    let grace = text.lines().find_map(|line| line.trim().strip_prefix("stop_grace_period: ")).expect("it is set");
    assert!(seconds(grace) > config.drain_deadline);
    for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("#   docker compose exec tierd ")) {
        assert!(Cli::read(line.split(' ')).is_ok(), "{line}");
    }
}
