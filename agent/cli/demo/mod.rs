//! `tierd demo`: the main job on this machine. A real daemon, a real origin, made-up models of real structure; every
//! claim it prints is checked, and a claim that does not hold is the exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tierd_cache::units::ByteSize;
use tokio_util::sync::CancellationToken;

use crate::cli::Context;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::size;

mod daemon;
mod files;
mod steps;

/// Times that the demo's folder is tried to be removed.
const REMOVE_TRIES: u32 = 5;
/// Between two tries.
const REMOVE_PAUSE: Duration = Duration::from_millis(100);

/// `tierd demo`.
#[derive(Debug, Args)]
#[command(
    after_help = "Takes twice --size on the disk, in a temporary folder that is removed at the end, also on ctrl-c. \
    Exits with 0 only if everything was as it says."
)]
pub(crate) struct DemoArgs {
    /// Bytes of all models together, 32 MiB to 64 GiB
    #[arg(long, default_value = "300 MiB", value_parser = demo_size)]
    pub size: ByteSize,
    /// Keep the folder
    #[arg(long)]
    pub keep: bool,
}

/// Below 32 MiB the largest model is a piece or two, and nothing can be shown of repair by pieces.
fn demo_size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|bad| format!("{bad}"))?;
    if (32 << 20..=64 << 30).contains(&size.0) { Ok(size) } else { Err(format!("{size} is not in 32 MiB to 64 GiB")) }
}

/// Where everything of one demo lies.
#[derive(Debug)]
struct Place {
    root: PathBuf,
}

impl Place {
    fn origin(&self) -> PathBuf {
        self.root.join("origin")
    }
    fn state(&self) -> PathBuf {
        self.root.join("node")
    }
    fn models(&self) -> PathBuf {
        self.root.join("node/models")
    }
    fn socket(&self) -> PathBuf {
        self.root.join("tierd.sock")
    }
    fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }
    fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }
}

/// Runs `tierd demo`.
pub(crate) async fn demo(context: &Context, args: DemoArgs) -> Outcome {
    let folder = tempfile::Builder::new().prefix("tierd-demo-").tempdir().context("no temporary folder can be made")?;
    let place = Place { root: folder.path().to_owned() };
    let shown = tokio::select! {
        shown = show(context, &place, args.size.0) => shown,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, "interrupted")),
    };
    if args.keep {
        context.out.note(format_args!("kept: {}", folder.keep().display()));
    } else {
        remove(&folder.keep()).await?;
        context.out.note("\nThe daemon is stopped and the folder is removed.");
    }
    shown
}

/// Removes the folder. A thread that was interrupted may add a last file meanwhile, so a second try is not too much.
async fn remove(folder: &Path) -> anyhow::Result<()> {
    for _ in 1..REMOVE_TRIES {
        if fs::remove_dir_all(folder).is_ok() {
            return Ok(());
        }
        tokio::time::sleep(REMOVE_PAUSE).await;
    }
    fs::remove_dir_all(folder).with_context(|| format!("{} could not be removed", folder.display()))
}

async fn show(context: &Context, place: &Place, bytes: u64) -> Outcome {
    let out = context.out;
    out.line(format_args!("This is the main job of tierd, in {}, with made-up models.\n", place.root.display()))?;
    out.line(format_args!(
        "1. An origin: a folder with {} of models in ComfyUI's layout, and a manifest",
        size(bytes)
    ))?;
    let origin = place.origin();
    let stop = CancellationToken::new();
    // Ctrl-c drops this function, and with it the guard.
    let _guard = stop.clone().drop_guard();
    let made = tokio::task::spawn_blocking(move || files::make(&origin, bytes, &stop))
        .await
        .context("making models panicked")??;
    for file in &made {
        out.line(format_args!("   {}  {}  blake3 {}", file.model, size(file.bytes), file.blob.short()))?;
    }

    out.line("\n2. A daemon on this node, with an empty store")?;
    write_config(place, bytes)?;
    let mut daemon = daemon::start(place, &context.env).await?;
    let told = steps::run(context, place, &made).await;
    let told = match told {
        Ok(()) => {
            out.line("\n7. The daemon stops: it drains and leaves no socket behind")?;
            daemon.stop().await
        }
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &told
        && failure.exit != Exit::Ok
    {
        let log = fs::read_to_string(place.log()).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        for line in tail.iter().rev() {
            out.note(format_args!("   daemon: {line}"));
        }
    }
    told?;
    out.line("\nEverything was as told.")?;
    out.json_line(&serde_json::json!({ "demo": "as told" }))?;
    Ok(())
}

/// Writes the daemon's configuration: as short as one that an operator writes.
fn write_config(place: &Place, bytes: u64) -> anyhow::Result<()> {
    let text = format!(
        "[store]\npath = {state}\nmodels = {models}\nbudget = \"{budget}\"\nkeep_free = \"16 MiB\"\n\n\
         [[origin]]\nname = \"demo\"\nkind = \"folder\"\npath = {origin}\n\n\
         [listen]\nunix = {socket}\nhttp = \"off\"\n",
        state = quoted(&place.state())?,
        models = quoted(&place.models())?,
        // Room for the set and for a repair beside it.
        budget = ByteSize(bytes.saturating_mul(2).max(256 << 20)).0,
        origin = quoted(&place.origin())?,
        socket = quoted(&place.socket())?,
    );
    fs::write(place.config(), text).with_context(|| format!("cannot write {}", place.config().display()))
}

/// A path as a TOML string; JSON's escapes are TOML's.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(serde_json::to_string(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::collections::BTreeMap;

    #[test]
    fn the_demos_configuration_is_a_good_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place { root: folder.path().to_owned() };
        fs::create_dir(place.origin()).expect("a folder");
        write_config(&place, 300 << 20).expect("written");
        let config =
            Config::load(Some(&place.config()), &BTreeMap::new()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(config.listen.unix, place.socket());
        assert_eq!(config.engine.store.models, place.models());
        assert_eq!(config.engine.origins.len(), 1);
        assert!(config.listen.http.is_none());
    }
}
