//! `tierd comfy install`: puts the node pack, which is part of this binary, into a ComfyUI; or takes it out. Replaces and removes only
//! what an earlier call put there.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::Context;
use crate::cli::exit::{Exit, Failure, Outcome};

/// The pack's folder below `custom_nodes`.
const FOLDER: &str = "tierd";
/// What says that a folder is ours: the files that were written, one a line.
const RECEIPT: &str = ".installed-by-tierd";
/// The files of the pack.
const FILES: [(&str, &str); 8] = [
    ("README.md", include_str!("../../../comfyui/tierd/README.md")),
    ("__init__.py", include_str!("../../../comfyui/tierd/__init__.py")),
    ("gate.py", include_str!("../../../comfyui/tierd/gate.py")),
    ("hooks.py", include_str!("../../../comfyui/tierd/hooks.py")),
    ("pyproject.toml", include_str!("../../../comfyui/tierd/pyproject.toml")),
    ("reporter.py", include_str!("../../../comfyui/tierd/reporter.py")),
    ("vram.py", include_str!("../../../comfyui/tierd/vram.py")),
    ("wire.py", include_str!("../../../comfyui/tierd/wire.py")),
];

/// `tierd comfy install`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tierd comfy install ~/ComfyUI\n  tierd comfy install ~/ComfyUI --link ~/src/tierd/comfyui/tierd\n  \
    tierd comfy install ~/ComfyUI --uninstall\n\n\
    Restart ComfyUI afterwards. The queue is read ahead without the pack too; with it, ComfyUI waits for a model that is still on its way, \
    and tierd knows what is in VRAM. Exits with 7 if something stands in the way that tierd did not put there."
)]
pub(crate) struct InstallArgs {
    /// ComfyUI's folder: the one with custom_nodes in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Link to this copy of the pack instead of writing one, to follow a checkout
    #[arg(long, value_name = "PACK", conflicts_with = "uninstall")]
    link: Option<PathBuf>,
    /// Take the pack out again
    #[arg(long)]
    uninstall: bool,
}

/// Runs `tierd comfy install`.
pub(crate) fn install(context: &Context, args: InstallArgs) -> Outcome {
    let nodes = args.dir.join("custom_nodes");
    if !nodes.is_dir() {
        let text = format!("{} holds no custom_nodes: name ComfyUI's own folder", args.dir.display());
        return Err(Failure::new(Exit::NotFound, text));
    }
    let target = nodes.join(FOLDER);
    let before = standing(&target)?;
    if before == Standing::Foreign {
        let text = format!("{} was not put there by tierd: move it away first", target.display());
        return Err(Failure::new(Exit::Held, text));
    }
    let done = match (&args.link, args.uninstall) {
        (_, true) => {
            remove(&target, before)?;
            if before == Standing::Nothing { "was not there" } else { "removed" }
        }
        (Some(pack), false) => {
            let pack = pack.canonicalize()?;
            if !pack.join("__init__.py").is_file() {
                let text = format!("{} is no node pack: it has no __init__.py", pack.display());
                return Err(Failure::new(Exit::Usage, text));
            }
            remove(&target, before)?;
            std::os::unix::fs::symlink(&pack, &target)?;
            "linked"
        }
        (None, false) => {
            write(&nodes, &target, before)?;
            "written"
        }
    };
    context.out.document(&json!({ "path": target, "done": done }))?;
    context.out.line(format_args!("{}: {done}; restart ComfyUI", target.display()))?;
    Ok(())
}

/// What stands where the pack goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Nothing,
    /// A link to some copy of the pack.
    Link,
    /// A folder that an earlier call wrote.
    Written,
    /// Something else.
    Foreign,
}

fn standing(target: &Path) -> io::Result<Standing> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Standing::Nothing),
        Err(error) => Err(error),
        Ok(found) if found.is_symlink() => Ok(Standing::Link),
        Ok(_) if target.join(RECEIPT).is_file() => Ok(Standing::Written),
        Ok(_) => Ok(Standing::Foreign),
    }
}

/// Writes the pack beside its place, then moves it there: ComfyUI never finds half of it.
fn write(nodes: &Path, target: &Path, before: Standing) -> io::Result<()> {
    let new = nodes.join(format!(".{FOLDER}-new-{}", std::process::id()));
    fs::create_dir(&new)?;
    let written = FILES.iter().try_for_each(|(name, text)| fs::write(new.join(name), text));
    let receipt: String = FILES.iter().map(|(name, _)| format!("{name}\n")).collect();
    let moved = written
        .and_then(|()| fs::write(new.join(RECEIPT), receipt))
        .and_then(|()| remove(target, before))
        .and_then(|()| fs::rename(&new, target));
    if moved.is_err() {
        // What is left of it is ours alone; the first error is the one to tell.
        let _ = fs::remove_dir_all(&new);
    }
    moved
}

/// Removes what an earlier call put there. A file that somebody added to the folder keeps it.
fn remove(target: &Path, before: Standing) -> io::Result<()> {
    match before {
        Standing::Nothing | Standing::Foreign => return Ok(()),
        Standing::Link => return fs::remove_file(target),
        Standing::Written => {}
    }
    let receipt = fs::read_to_string(target.join(RECEIPT))?;
    let plain = |name: &&str| !name.contains('/') && !matches!(*name, "" | "." | "..");
    for name in receipt.lines().filter(plain).chain([RECEIPT]) {
        match fs::remove_file(target.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match fs::remove_dir_all(target.join("__pycache__")) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::remove_dir(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let nodes = dir.path().join("custom_nodes");
        fs::create_dir(&nodes).expect("made");
        (dir, nodes)
    }

    #[test]
    fn the_binary_holds_every_file_of_the_pack() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("comfyui/tierd");
        let mut there: Vec<String> = fs::read_dir(folder)
            .expect("shipped")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .filter(|name| name != "__pycache__")
            .collect();
        there.sort();
        let mut embedded = FILES.map(|(name, _)| name).to_vec();
        embedded.sort_unstable();
        assert_eq!(there, embedded);
    }

    #[test]
    fn the_pack_is_written_replaced_and_removed_without_a_trace() {
        let (_dir, nodes) = nodes();
        let target = nodes.join(FOLDER);
        for before in [Standing::Nothing, Standing::Written] {
            assert_eq!(standing(&target).expect("looked"), before);
            write(&nodes, &target, before).expect("written");
            assert!(target.join("__init__.py").is_file());
            fs::create_dir_all(target.join("__pycache__")).expect("made");
        }
        remove(&target, Standing::Written).expect("removed");
        assert_eq!(fs::read_dir(&nodes).expect("readable").count(), 0);
    }

    #[test]
    fn what_somebody_else_put_there_stays() {
        let (_dir, nodes) = nodes();
        let target = nodes.join(FOLDER);
        fs::create_dir(&target).expect("made");
        fs::write(target.join("__init__.py"), "mine").expect("written");
        assert_eq!(standing(&target).expect("looked"), Standing::Foreign);
        fs::remove_dir_all(&target).expect("removed");
        write(&nodes, &target, Standing::Nothing).expect("written");
        fs::write(target.join("notes.txt"), "mine").expect("written");
        assert!(remove(&target, Standing::Written).is_err(), "the folder is not empty");
        assert_eq!(fs::read_to_string(target.join("notes.txt")).expect("kept"), "mine");
    }
}
