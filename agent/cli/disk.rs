//! `tierd import`, `verify` and `refresh`: files that are here already, and what origins have.

use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::out::{count, size};
use crate::cli::{Context, client};
use crate::rpc::pb::{self, import_response::Outcome as Imported};

/// `tierd import`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd import --dry-run ~/ComfyUI/models\n  tierd import ~/ComfyUI/models\n\n\
    The daemon reads the path, so its user must be able to. Files stay where they are: they are hard-linked where they \
    can be, and cloned or copied from another file system. Loose files are put into ComfyUI's folders by their safetensors header first, and by their name second. Exits with 1 if everything was skipped.")]
pub(crate) struct ImportArgs {
    /// A file, or a folder with model files
    pub path: PathBuf,
    /// Only say what would happen
    #[arg(long)]
    pub dry_run: bool,
}

/// `tierd verify`.
#[derive(Debug, Args)]
#[command(after_help = "Reads every byte of what it verifies. Exits with 6 if something does not match; that is \
    withdrawn at once and its bad pieces are fetched again.")]
pub(crate) struct VerifyArgs {
    /// Models in ComfyUI's layout [default: everything that is stored]
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
}

/// `tierd refresh`.
#[derive(Debug, Args)]
pub(crate) struct RefreshArgs {
    /// Name of an origin [default: all of them]
    #[arg(value_name = "ORIGIN")]
    pub origin: Option<String>,
}

/// Runs `tierd import`.
pub(crate) async fn import(context: &Context, args: ImportArgs) -> Outcome {
    // The daemon has another working folder than we do.
    let path = std::path::absolute(&args.path)?;
    let path = path.to_str().ok_or_else(|| Failure::new(Exit::Usage, "the path is not UTF-8"))?.to_owned();
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let request = pb::ImportRequest { path, dry_run: args.dry_run };
    let mut rows = daemon.cache.import(request).await?.into_inner();
    let (mut adopted, mut bytes, mut skipped) = (0_u64, 0_u64, 0_u64);
    while let Some(row) = rows.message().await? {
        context.out.json_line(&row)?;
        match &row.outcome {
            Some(Imported::Adopted(file)) => {
                adopted += 1;
                bytes += file.bytes;
                let (how, by) = (file.how().word().replace('_', " "), &file.classified_by);
                context.out.line(format_args!(
                    "{} -> {} ({}, {how}, by {by})",
                    row.file,
                    file.model,
                    size(file.bytes)
                ))?;
            }
            Some(Imported::Skipped(file)) => {
                skipped += 1;
                let skipped = if args.dry_run { "" } else { "skipped: " };
                context.out.line(format_args!("{}: {skipped}{}", row.file, file.reason))?;
            }
            None => {}
        }
    }
    if args.dry_run {
        context.out.note(format_args!("{} looked at, nothing changed", count(skipped, "file")));
        return Ok(());
    }
    context.out.note(format_args!("{adopted} adopted ({}), {skipped} skipped", size(bytes)));
    if adopted == 0 && skipped > 0 {
        // A script that meant to adopt something must hear that nothing was.
        return Err(Failure::told(Exit::Failed));
    }
    Ok(())
}

/// Runs `tierd verify`.
pub(crate) async fn verify(context: &Context, args: VerifyArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let mut rows = daemon.cache.verify(pb::VerifyRequest { models: args.models }).await?.into_inner();
    let (mut good, mut bad) = (0_u64, 0_u64);
    let mut failed = None;
    while let Some(row) = rows.message().await? {
        context.out.json_line(&row)?;
        match row.fault {
            Some(fault) => {
                context.out.line(format_args!("{}: {}", row.model, fault.text))?;
                failed = Some(Exit::of_kind(fault.kind()));
            }
            None if row.pieces_bad > 0 => {
                bad += 1;
                context.out.line(format_args!(
                    "{}: {}, fetched again",
                    row.model,
                    count(row.pieces_bad, "bad piece")
                ))?;
            }
            None => {
                good += 1;
                context.out.line(format_args!("{}: good ({})", row.model, size(row.bytes)))?;
            }
        }
    }
    context.out.note(format_args!("{good} good, {bad} bad"));
    if bad > 0 {
        return Err(Failure::told(Exit::Corrupt));
    }
    failed.map_or(Ok(()), |exit| Err(Failure::told(exit)))
}

/// Runs `tierd refresh`.
pub(crate) async fn refresh(context: &Context, args: RefreshArgs) -> Outcome {
    let mut daemon = client::connect(&context.reach, &context.env).await?;
    let origin = args.origin.unwrap_or_default();
    daemon.cache.refresh(pb::RefreshRequest { origin: origin.clone() }).await?;
    context.out.document(&serde_json::json!({ "refreshed": origin }))?;
    context.out.line(if origin.is_empty() {
        "all origins were listed".to_owned()
    } else {
        format!("{origin} was listed")
    })?;
    Ok(())
}
