//! `tierd scan`: many workflows at once: which of their models are here, which would be fetched, which nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::{count, size};
use crate::cli::workflow::{Resolver, read, state, tell_gaps};
use crate::rpc::pb;

/// Most files of one scan.
const FILES_MAX: usize = 20_000;
/// Deepest folder below the one named.
const DEPTH_MAX: usize = 16;

/// `tierd scan`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd scan ~/ComfyUI/user/default/workflows\n  \
    tierd scan --models workflows | grep missing       # one row for each model instead\n  \
    tierd scan --json workflows | jq '.models[] | select(.state == \"unknown\")'\n\n\
    Looks at every .json and .png below the folder; links to folders are not followed. `here` is on this node, `missing` \
    can be fetched, `unknown` is in no catalog. Files that hold no workflow are counted and passed over.")]
pub(crate) struct ScanArgs {
    /// The folder, or one file
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Print one row for each model, not for each workflow
    #[arg(long)]
    pub models: bool,
    /// Ask no daemon: the loader table alone, and nothing is known of any model
    #[arg(long)]
    pub offline: bool,
}

/// One workflow of a scan.
#[derive(Debug, Default, Serialize)]
struct Scanned {
    file: String,
    models: usize,
    here: usize,
    here_bytes: u64,
    missing: usize,
    missing_bytes: u64,
    unknown: usize,
    unresolved: usize,
}

/// One model of all workflows.
#[derive(Debug, Serialize)]
struct Wanted {
    model: String,
    state: String,
    bytes: u64,
    workflows: usize,
}

/// All that a scan found.
#[derive(Debug, Default, Serialize)]
struct Report {
    workflows: Vec<Scanned>,
    models: Vec<Wanted>,
    /// Files that hold no workflow.
    others: Vec<Other>,
    /// Whether there were more files than are looked at.
    cut: bool,
}

/// A file that holds no workflow.
#[derive(Debug, Serialize)]
struct Other {
    file: String,
    why: String,
}

/// Runs `tierd scan`.
pub(crate) async fn scan(context: &Context, args: ScanArgs) -> Outcome {
    let (files, cut) = files(&args.folder)?;
    let mut resolver = Resolver::new(context, args.offline).await?;
    let mut report = Report { cut, ..Report::default() };
    let mut models: BTreeMap<String, Wanted> = BTreeMap::new();
    for file in files {
        let name = file
            .strip_prefix(&args.folder)
            .ok()
            .filter(|rest| *rest != Path::new(""))
            .unwrap_or(&file)
            .display()
            .to_string();
        let resolved = match read(&file) {
            Ok(bytes) => resolver.resolve(bytes).await,
            Err(failure) => Err(failure),
        };
        match resolved {
            Ok(resolution) => {
                tell_gaps(context, &format!("{name}: "), &resolution);
                report.workflows.push(scanned(name, &resolution, &mut models));
            }
            // The file is wrong, not the daemon.
            Err(failure) if failure.exit == Exit::Usage => report.others.push(Other { file: name, why: failure.text }),
            Err(failure) => return Err(failure),
        }
    }
    report.models = models.into_values().collect();
    context.out.document(&report)?;
    print(context, &report, args.models)?;
    if args.offline {
        context.out.note("no daemon was asked: nothing is known of any model");
    }
    Ok(())
}

fn scanned(file: String, resolution: &pb::WorkflowResolution, models: &mut BTreeMap<String, Wanted>) -> Scanned {
    let unresolved = resolution.unresolved.len();
    let mut row = Scanned { file, models: resolution.needs.len(), unresolved, ..Scanned::default() };
    for need in &resolution.needs {
        let wanted = models.entry(need.model.clone()).or_insert_with(|| Wanted {
            model: need.model.clone(),
            state: word(need),
            bytes: need.bytes,
            workflows: 0,
        });
        wanted.workflows += 1;
        match word(need).as_str() {
            "unknown" => row.unknown += 1,
            "missing" => {
                row.missing += 1;
                row.missing_bytes += need.bytes;
            }
            _ => {
                row.here += 1;
                row.here_bytes += need.bytes;
            }
        }
    }
    row
}

/// `ram`, `nvme`, `missing` or `unknown`.
fn word(need: &pb::WorkflowNeed) -> String {
    match state(need).as_str() {
        "origin" => "missing".to_owned(),
        state => state.to_owned(),
    }
}

fn print(context: &Context, report: &Report, by_model: bool) -> Outcome {
    let out = context.out;
    if by_model {
        let row = |model: &Wanted| {
            let bytes = if model.state == "unknown" { String::new() } else { size(model.bytes) };
            vec![model.model.clone(), bytes, model.state.clone(), model.workflows.to_string()]
        };
        let rows: Vec<_> = report.models.iter().map(row).collect();
        out.table(&["MODEL", "SIZE>", "STATE", "WORKFLOWS>"], &rows)?;
    } else {
        let row = |row: &Scanned| {
            let numbers =
                [row.models, row.here, row.missing, row.unknown, row.unresolved].map(|number| number.to_string());
            let [models, here, missing, unknown, unresolved] = numbers;
            vec![row.file.clone(), models, here, missing, size(row.missing_bytes), unknown, unresolved]
        };
        let rows: Vec<_> = report.workflows.iter().map(row).collect();
        out.table(&["WORKFLOW", "MODELS>", "HERE>", "MISSING>", "TO FETCH>", "UNKNOWN>", "UNRESOLVED>"], &rows)?;
    }
    let sum = |states: &[&str]| {
        let rows: Vec<&Wanted> = report.models.iter().filter(|model| states.contains(&model.state.as_str())).collect();
        (rows.len(), size(rows.iter().map(|model| model.bytes).sum()))
    };
    let ((here, here_bytes), (missing, missing_bytes), (unknown, _)) =
        (sum(&["ram", "nvme"]), sum(&["missing"]), sum(&["unknown"]));
    out.line(format_args!(
        "\n{}, {}: {here} here ({here_bytes}), {missing} missing ({missing_bytes}), {unknown} unknown",
        count(report.workflows.len() as u64, "workflow"),
        count(report.models.len() as u64, "model"),
    ))?;
    if !report.others.is_empty() {
        let others = count(report.others.len() as u64, "file");
        out.note(format_args!("without a workflow: {others}; --json says which and why"));
    }
    if report.cut {
        out.note(format_args!(
            "there are more than {FILES_MAX} files, or folders below the {DEPTH_MAX}th: not all were looked at"
        ));
    }
    Ok(())
}

/// The files to look at, sorted; and whether there were more.
fn files(folder: &Path) -> Result<(Vec<PathBuf>, bool), Failure> {
    let failed =
        |path: &Path, error: std::io::Error| Failure::new(Exit::Usage, format_args!("{}: {error}", path.display()));
    if !std::fs::metadata(folder).map_err(|error| failed(folder, error))?.is_dir() {
        return Ok((vec![folder.to_owned()], false));
    }
    let (mut files, mut cut) = (BTreeSet::new(), false);
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| failed(&folder, error))? {
            let entry = entry.map_err(|error| failed(&folder, error))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|error| failed(&folder, error))?);
            if kind.is_dir() {
                if depth < DEPTH_MAX {
                    folders.push((path, depth + 1));
                } else {
                    cut = true;
                }
            } else if path
                .extension()
                .is_some_and(|end| end.eq_ignore_ascii_case("json") || end.eq_ignore_ascii_case("png"))
            {
                if files.len() >= FILES_MAX {
                    return Ok((files.into_iter().collect(), true));
                }
                files.insert(path);
            }
        }
    }
    Ok((files.into_iter().collect(), cut))
}
