//! A text to a model: what a known loader says, what any input says that is called like a known model, and texts that
//! stand for several files.

use serde_json::Value;
use tierd_cache::engine::known::Known;
use tierd_cache::ids::{MODEL_KEY_BYTES_MAX, ModelKey, canonical_folder};

use super::{How, Reason, loaders};

/// Most files that one short name stands for: a diffusers folder has a dozen.
const SET_MAX: usize = 256;
/// Most models told when several are called alike.
const ALIKE_MAX: usize = 8;
/// Most rows of a node's own list that are looked at.
const LISTED_MAX: usize = 256;
/// Most embeddings that are looked for in one text.
const EMBEDDINGS_MAX: usize = 64;

/// Names that say nothing about what is in the file: they only mean a model together with the folder that it lies in.
const PLAIN: [&str; 5] = ["diffusion_pytorch_model", "pytorch_model", "model", "pytorch_lora_weights", "adapter_model"];

/// What a text turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// One model, or the files that it stands for.
    Models(Vec<ModelKey>, How),
    /// No model.
    Nothing,
    /// Something that should be one.
    Open { reason: Reason, required: bool },
}

impl Meaning {
    fn one(model: ModelKey, how: How) -> Self {
        Self::Models(vec![model], how)
    }
}

/// What a known loader's input means.
pub(super) fn of_loader(class: &str, input: &str, folder: &'static str, text: &str, known: &Known) -> Meaning {
    if loaders::NO_FILE.contains(&text) {
        return Meaning::Nothing;
    }
    if (class, input) == (loaders::DIFFUSERS.0, loaders::DIFFUSERS.1) {
        return folder_of_files(text, known);
    }
    if class == "VAELoader" {
        if loaders::VAE_PAIRS.contains(&text) {
            return pair(text, known);
        }
        let stem = text.rsplit_once('.').map_or(text, |(stem, _)| stem);
        if loaders::VAE_APPROX.contains(&stem) {
            return in_folder("vae_approx", text, known);
        }
    }
    in_folder(folder, text, known)
}

/// A text that names a file of one folder.
fn in_folder(folder: &'static str, text: &str, known: &Known) -> Meaning {
    let path = normal(text);
    let open = |reason| Meaning::Open { reason, required: true };
    let Ok(model) = ModelKey::parse(&format!("{folder}/{path}")) else {
        return open(Reason::NotAName { folder });
    };
    if known.contains(&model) {
        return Meaning::one(model, How::Loader);
    }
    // ComfyUI opens what it is told and nothing else; but a file that moved to another subfolder is the same file.
    if path == model.base() || !is_plain(model.base()) {
        let alike: Vec<ModelKey> =
            known.at_base(model.base()).into_iter().filter(|alike| alike.folder() == model.folder()).collect();
        match alike.as_slice() {
            [] => {}
            [one] => return Meaning::one(one.clone(), How::LoaderFileName),
            several => return open(ambiguous(several)),
        }
    }
    if loaders::is_model_file(&path) {
        return Meaning::one(model, How::Loader);
    }
    if folder == "configs" {
        // Configurations come with ComfyUI.
        return Meaning::Nothing;
    }
    open(Reason::NotAName { folder })
}

/// What an input of an unknown class means. `listed` is the node's own list of models.
pub(super) fn of_unknown(input: Option<&str>, text: &str, listed: Option<&Value>, known: &Known) -> Meaning {
    if text.is_empty() || text.len() > MODEL_KEY_BYTES_MAX || text.contains(['\n', '\r']) || text.contains("://") {
        return Meaning::Nothing;
    }
    let path = normal(text);
    let looks = loaders::is_model_file(&path);
    // `loras/style.safetensors`: with its folder.
    if let Ok(model) = ModelKey::parse(&path)
        && known.contains(&model)
    {
        return Meaning::one(model, How::FullName);
    }
    if let Some(meaning) = pick(&known.at_path(&path), input, listed, &path, How::FullName) {
        return meaning;
    }
    let base = path.rsplit('/').next().unwrap_or(&path);
    if looks
        && (base == path || !is_plain(base))
        && let Some(meaning) = pick(&known.at_base(base), input, listed, &path, How::FileName)
    {
        return meaning;
    }
    if let Some(folder) = listed_folder(listed, &path)
        && let Ok(model) = ModelKey::parse(&format!("{folder}/{path}"))
    {
        return Meaning::one(model, How::Listed);
    }
    if looks { Meaning::Open { reason: Reason::UnknownClass, required: false } } else { Meaning::Nothing }
}

/// One of several known models of that name: what the node's own list or the input's name says decides.
fn pick(found: &[ModelKey], input: Option<&str>, listed: Option<&Value>, path: &str, how: How) -> Option<Meaning> {
    match found {
        [] => None,
        [one] => Some(Meaning::one(one.clone(), how)),
        several => {
            let folders = [listed_folder(listed, path), input.and_then(loaders::hint)];
            let fits = |folder: &str| {
                let mut fitting = several.iter().filter(|model| model.folder() == canonical_folder(folder));
                fitting.next().filter(|_| fitting.next().is_none())
            };
            let one = folders.into_iter().flatten().find_map(fits);
            Some(one.map_or_else(
                || Meaning::Open { reason: ambiguous(several), required: false },
                |model| Meaning::one(model.clone(), how),
            ))
        }
    }
}

/// The folder that a node's own list gives a file.
fn listed_folder<'a>(listed: Option<&'a Value>, path: &str) -> Option<&'a str> {
    let rows = listed?.as_array()?;
    let named = |row: &&Value| row.get("name").and_then(Value::as_str).is_some_and(|name| normal(name) == path);
    rows.iter().take(LISTED_MAX).find(named)?.get("directory")?.as_str().filter(|folder| !folder.is_empty())
}

fn ambiguous(several: &[ModelKey]) -> Reason {
    Reason::Ambiguous(several.iter().take(ALIKE_MAX).map(ToString::to_string).collect())
}

/// A diffusers model: everything below its folder.
fn folder_of_files(text: &str, known: &Known) -> Meaning {
    let path = normal(text);
    let open = |reason| Meaning::Open { reason, required: true };
    let Ok(folder) = ModelKey::parse(&format!("{}/{path}", loaders::DIFFUSERS.2)) else {
        return open(Reason::NotAName { folder: loaders::DIFFUSERS.2 });
    };
    let files = known.below(&folder, SET_MAX);
    if files.is_empty() {
        return open(Reason::EmptySet(format!("all files below {folder}")));
    }
    Meaning::Models(files, How::Set)
}

/// A VAE whose encoder and decoder are two files. ComfyUI takes the first in its listing that begins with the name.
fn pair(stem: &str, known: &Known) -> Meaning {
    let part = |what: &str| {
        loaders::EXTENSIONS.iter().find_map(|extension| {
            let model = ModelKey::parse(&format!("vae_approx/{stem}_{what}.{extension}")).ok()?;
            known.contains(&model).then_some(model)
        })
    };
    // With one of them missing ComfyUI does not offer the name at all.
    match (part("encoder"), part("decoder")) {
        (Some(encoder), Some(decoder)) => Meaning::Models(vec![encoder, decoder], How::Set),
        (_, _) => {
            let what =
                format!("vae_approx/{stem}_encoder and vae_approx/{stem}_decoder, with an ending such as .safetensors");
            Meaning::Open { reason: Reason::EmptySet(what), required: true }
        }
    }
}

/// The embeddings that a text names: `embedding:NAME`, each as far as it reaches.
pub(super) fn embeddings(text: &str) -> impl Iterator<Item = &str> {
    let ends =
        |letter: char| letter.is_whitespace() || matches!(letter, ',' | ':' | '(' | ')' | '[' | ']' | '<' | '>' | '|');
    let name = move |rest: &'_ str| rest.find(ends).unwrap_or(rest.len());
    text.split("embedding:")
        .skip(1)
        .take(EMBEDDINGS_MAX)
        .map(move |rest| rest[..name(rest)].trim_end_matches(['.', ';', '"', '\'']))
        .filter(|name| !name.is_empty())
}

/// What an embedding's name means, with or without its ending.
pub(super) fn of_embedding(name: &str, known: &Known) -> Meaning {
    let path = normal(name);
    let spelled = |ending: &str| ModelKey::parse(&format!("embeddings/{path}{ending}")).ok();
    let there = ["", ".safetensors", ".pt", ".bin"].into_iter().filter_map(spelled);
    if let Some(model) = there.into_iter().find(|model| known.contains(model)) {
        return Meaning::one(model, How::Embedding);
    }
    if loaders::is_model_file(&path)
        && let Some(model) = spelled("")
    {
        return Meaning::one(model, How::Embedding);
    }
    Meaning::Open { reason: Reason::UnknownEmbedding, required: false }
}

/// A path as Linux writes it: workflows that were saved on Windows have backslashes.
fn normal(text: &str) -> String {
    let text = text.trim().replace('\\', "/");
    text.strip_prefix("./").map(str::to_owned).unwrap_or(text)
}

fn is_plain(base: &str) -> bool {
    let stem = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
    // `model.fp16`, `diffusion_pytorch_model-00001-of-00002`.
    PLAIN
        .iter()
        .any(|plain| stem.strip_prefix(plain).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-'])))
}

#[cfg(test)]
#[path = "name_tests.rs"]
mod tests;
