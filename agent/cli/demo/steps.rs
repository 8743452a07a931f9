//! The steps of the demo that speak to the daemon. Each states a claim, checks it by itself, and fails if it is not so.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt;
use tierd_cache::ids::BlobId;
use tierd_cache::units::human_duration;

use super::Place;
use super::files::Made;
use crate::cli::client::{self, Daemon, Reach};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::{rate, size};
use crate::cli::progress::Display;
use crate::cli::{Context, ensure, events, status};
use crate::rpc::pb::{self, occurrence::What, watch_response::Update};

/// Longest wait for an answer that should take a moment.
const ANSWER_WAIT: Duration = Duration::from_secs(120);
/// Bytes that are flipped: far less than a piece.
const FLIPPED_BYTES: usize = 16;
/// The longest that a hit may take: no byte is fetched or read for it.
const HIT_MAX: Duration = Duration::from_secs(1);

/// Runs the steps in order.
pub(crate) async fn run(context: &Context, place: &Place, made: &[Made]) -> Outcome {
    let out = context.out;
    let reach = Reach { socket: Some(place.socket().to_string_lossy().into_owned()), ..Reach::default() };
    let mut daemon = client::connect(&reach, &context.env).await?;
    out.line(format_args!("   it answers on {}", place.socket().display()))?;

    out.line("\n3. Ensure: fetch in parallel pieces, verify each, show a file only when it is whole")?;
    let total: u64 = made.iter().map(|file| file.bytes).sum();
    let ready = ensured(context, &mut daemon, made).await?;
    claim(ready.bytes_fetched == total, || format!("{} of {total} bytes were fetched", ready.bytes_fetched))?;
    check_files(place, made).await?;
    let elapsed = ready.elapsed.and_then(|elapsed| elapsed.to_std()).unwrap_or_default();
    let speed = (total as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
    let (bytes, elapsed) = (size(total), human_duration(elapsed));
    out.line(format_args!("   {bytes} fetched, verified and durable in {elapsed}: {}", rate(speed)))?;
    out.line("   (the demo has hashed every file in the models folder itself: all as the manifest says)")?;

    out.line("\n4. Ensure again: everything is here")?;
    let ready = ensured(context, &mut daemon, made).await?;
    let elapsed = ready.elapsed.and_then(|elapsed| elapsed.to_std()).unwrap_or_default();
    claim(ready.bytes_fetched == 0, || format!("a hit fetched {} bytes", ready.bytes_fetched))?;
    claim(elapsed < HIT_MAX, || format!("a hit took {}", human_duration(elapsed)))?;
    out.line(format_args!("   ready in {:.2} ms, nothing fetched", elapsed.as_secs_f64() * 1000.0))?;

    repair(context, place, made, &mut daemon).await?;

    out.line("\n6. What the node says of itself")?;
    let node = daemon.node.get_node(pb::GetNodeRequest {}).await?.into_inner().node.unwrap_or_default();
    status::print_node(out, &node)?;
    out.line("\n   and what happened:")?;
    for occurrence in past(&mut daemon).await? {
        out.line(events::line(&occurrence))?;
    }
    Ok(())
}

/// Breaks a stored file and lets the daemon find and repair it.
async fn repair(context: &Context, place: &Place, made: &[Made], daemon: &mut Daemon) -> Outcome {
    let out = context.out;
    let victim = made.iter().max_by_key(|file| file.bytes).context("nothing was made")?;
    let path = place.models().join(victim.model.as_str());
    out.line(format_args!(
        "\n5. Damage: {FLIPPED_BYTES} bytes in the middle of {} are flipped on the disk",
        victim.model
    ))?;
    flip(&path, victim.bytes / 2)?;
    let broken = digest(path.clone()).await?;
    claim(broken != victim.blob, || "flipping bytes changed nothing".to_owned())?;
    let ready = ensured(context, daemon, std::slice::from_ref(victim)).await?;
    claim(digest(path).await? == victim.blob, || format!("{} was called ready and is damaged", victim.model))?;
    let fetched = ready.bytes_fetched;
    claim(fetched > 0 && fetched < victim.bytes / 2, || {
        format!("the repair fetched {fetched} of {} bytes", victim.bytes)
    })?;
    let found = past(daemon).await?.into_iter().find_map(|occurrence| match occurrence.what {
        Some(What::Damaged(damaged)) => Some(damaged),
        _ => None,
    });
    let found = found.ok_or_else(|| Failure::new(Exit::Corrupt, "the damage is in no event"))?;
    claim(found.pieces_bad == 1, || format!("{} pieces were found bad, not 1", found.pieces_bad))?;
    out.line(format_args!(
        "   caught before it was called ready: {} bad piece, withdrawn; {} of {} fetched again, digest right",
        found.pieces_bad,
        size(fetched),
        size(victim.bytes)
    ))?;
    Ok(())
}

/// Ensures models, showing progress, and returns the good end.
async fn ensured(context: &Context, daemon: &mut Daemon, made: &[Made]) -> Result<pb::Ready, Failure> {
    let display = Display::new(context.out);
    let request = pb::EnsureRequest {
        models: made.iter().map(|file| file.model.to_string()).collect(),
        cancel_on_drop: false,
        progress_interval: Some(display.interval().into()),
        client: "tierd demo".to_owned(),
        target: pb::Tier::Nvme.into(),
    };
    let waited = async {
        let stream = daemon.cache.ensure(request).await?.into_inner();
        ensure::show(context, display, stream.boxed()).await
    };
    let late = |_| Failure::new(Exit::Interrupted, "the daemon did not get the models ready in time");
    tokio::time::timeout(ANSWER_WAIT, waited).await.map_err(late)?
}

/// What the daemon remembers.
async fn past(daemon: &mut Daemon) -> Result<Vec<pb::Occurrence>, Failure> {
    let request = pb::WatchRequest { resume_token: String::new(), past_only: true, ..Default::default() };
    let mut steps = daemon.node.watch(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(step) = steps.message().await? {
        if let Some(Update::Occurrence(occurrence)) = step.update {
            all.push(occurrence);
        }
    }
    Ok(all)
}

/// Hashes every file in the models folder and compares it with what was made.
async fn check_files(place: &Place, made: &[Made]) -> Outcome {
    for file in made {
        let found = digest(place.models().join(file.model.as_str())).await?;
        claim(found == file.blob, || format!("{} has the digest {found}, not {}", file.model, file.blob))?;
    }
    Ok(())
}

async fn digest(path: PathBuf) -> Result<BlobId, Failure> {
    let hashed = tokio::task::spawn_blocking(move || -> anyhow::Result<BlobId> {
        let mut hasher = blake3::Hasher::new();
        let file = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        hasher.update_reader(file)?;
        Ok(BlobId(*hasher.finalize().as_bytes()))
    });
    Ok(hashed.await.context("hashing panicked")??)
}

/// Flips bits of a file in place, as a bad disk or a careless program would.
fn flip(path: &Path, offset: u64) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = [0; FLIPPED_BYTES];
    file.read_exact_at(&mut bytes, offset)?;
    file.write_all_at(&bytes.map(|byte| byte ^ 0xff), offset)?;
    file.sync_all()?;
    Ok(())
}

/// Fails with the exit code of damage if a claim does not hold.
fn claim(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Failure::new(Exit::Corrupt, format_args!("not as claimed: {}", otherwise()))) }
}
