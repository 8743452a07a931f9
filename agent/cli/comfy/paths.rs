//! `tierd comfy paths`: the file that tells ComfyUI where tierd keeps models. Prints; writes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use tierd_cache::ids::{COMFY_FOLDERS, FOLDER_ALIASES};

use crate::cli::Context;
use crate::cli::exit::{Exit, Failure, Outcome};

/// `tierd comfy paths`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tierd comfy paths > ComfyUI/extra_model_paths.yaml\n  \
    python main.py --extra-model-paths-config tierd.yaml      # beside a file of your own\n\n\
    With `is_default: true` ComfyUI looks here first, so that a model which both folders have comes verified, and is already on its way to \
    RAM. It also makes this the folder that ComfyUI saves models to; with --last its own folders come first instead. \
    A mark of a model that is not here hides nothing: ComfyUI passes it over when another folder has the file.")]
pub(crate) struct PathsArgs {
    /// The models folder, as ComfyUI sees it [default: the configuration's]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Let ComfyUI look into its own folders first
    #[arg(long)]
    last: bool,
}

/// Runs `tierd comfy paths`.
pub(crate) fn paths(context: &Context, args: PathsArgs) -> Outcome {
    let models = match args.models {
        Some(models) => std::path::absolute(models)?,
        None => context.config()?.engine.store.models,
    };
    let yaml = yaml(&models, !args.last)
        .ok_or_else(|| Failure::new(Exit::Usage, format_args!("{} is no UTF-8, which YAML needs", models.display())))?;
    let folders: BTreeMap<&str, Vec<&str>> =
        COMFY_FOLDERS.into_iter().map(|folder| (folder, directories(folder))).collect();
    context
        .out
        .document(&json!({ "base_path": models, "is_default": !args.last, "folders": folders, "yaml": yaml }))?;
    context.out.line(yaml.trim_end())?;
    Ok(())
}

/// The directories of a folder below the models folder: older names first, because ComfyUI puts the last line of a default first.
fn directories(folder: &str) -> Vec<&str> {
    let aliases = FOLDER_ALIASES.iter().filter(|(_, canonical)| *canonical == folder).map(|(alias, _)| *alias);
    aliases.chain([folder]).collect()
}

/// The file. Several directories of one folder are one block text, a line each: a YAML list ends ComfyUI's start.
fn yaml(models: &Path, first: bool) -> Option<String> {
    // In single quotes, a quote is written twice and nothing else is special. A line break cannot be said at all.
    let base = models.to_str().filter(|base| !base.contains(['\n', '\r']))?.replace('\'', "''");
    let mut out = String::from("# Where tierd keeps models. Printed by `tierd comfy paths`.\n");
    out.push_str(&format!("tierd:\n    base_path: '{base}'\n"));
    if first {
        out.push_str("    is_default: true\n");
    }
    for folder in COMFY_FOLDERS {
        match directories(folder).as_slice() {
            [only] => out.push_str(&format!("    {folder}: {only}\n")),
            several => {
                out.push_str(&format!("    {folder}: |\n"));
                several.iter().for_each(|directory| out.push_str(&format!("        {directory}\n")));
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_directories_are_one_block_text_and_the_canonical_one_is_last() {
        let yaml = yaml(Path::new("/mnt/it's"), true).expect("text");
        assert!(yaml.contains("    base_path: '/mnt/it''s'\n    is_default: true\n"), "{yaml}");
        assert!(yaml.contains("    diffusion_models: |\n        unet\n        diffusion_models\n"), "{yaml}");
        assert!(yaml.contains("    text_encoders: |\n        clip\n        text_encoders\n"), "{yaml}");
        assert!(yaml.contains("    controlnet: |\n        t2i_adapter\n        controlnet\n"), "{yaml}");
        assert!(yaml.contains("    vae: vae\n"), "{yaml}");
        assert!(!yaml.contains("- "), "a list would end ComfyUI's start");
    }

    #[test]
    fn a_path_that_yaml_cannot_say_is_refused_and_the_default_is_a_choice() {
        assert!(yaml(Path::new("/a\nb"), true).is_none());
        assert!(!yaml(Path::new("/a"), false).expect("text").contains("is_default"));
    }
}
