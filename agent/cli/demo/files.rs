//! Made-up models: the structure and the names of real safetensors, with pseudo-random weights, and their manifest.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::{Map, Value, json};
use tierd_cache::ids::{BlobId, ModelKey};
use tierd_cache::manifest::{Manifest, ManifestModel};
use tokio_util::sync::CancellationToken;

/// One made-up model.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) model: ModelKey,
    pub(crate) bytes: u64,
    pub(crate) blob: BlobId,
}

/// What is made: the name, its hundredths of the whole, and patterns of its tensors' names (`{}` is a block's number).
const KINDS: [(&str, u64, &[&str]); 4] = [
    (
        "diffusion_models/demo-flux-schnell.safetensors",
        60,
        &[
            "double_blocks.{}.img_attn.qkv.weight",
            "double_blocks.{}.img_attn.proj.weight",
            "double_blocks.{}.txt_mlp.0.weight",
            "single_blocks.{}.linear1.weight",
        ],
    ),
    (
        "text_encoders/demo-t5xxl.safetensors",
        25,
        &["encoder.block.{}.layer.0.SelfAttention.q.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight"],
    ),
    ("vae/demo-ae.safetensors", 10, &["decoder.up.{}.block.0.conv1.weight", "encoder.down.{}.block.0.conv1.weight"]),
    (
        "loras/demo-style.safetensors",
        5,
        &[
            "lora_unet_double_blocks_{}_img_attn_qkv.lora_down.weight",
            "lora_unet_double_blocks_{}_img_attn_qkv.lora_up.weight",
        ],
    ),
];

/// Blocks of every model.
const BLOCKS: u64 = 12;
/// Columns of every tensor, two bytes each.
const COLUMNS: u64 = 1024;

/// Makes the models and their manifest below `origin`. Blocking; ends early, with an error, once `stop` is cancelled.
///
/// # Errors
///
/// If the disk refuses.
pub(crate) fn make(origin: &Path, bytes: u64, stop: &CancellationToken) -> anyhow::Result<Vec<Made>> {
    let mut made = Vec::new();
    for (name, percent, patterns) in KINDS {
        let model = ModelKey::parse(name)?;
        let path = origin.join(name);
        fs::create_dir_all(path.parent().expect("a model lies in a folder"))?;
        let (bytes, blob) = write(&path, name, bytes * percent / 100, patterns, stop)
            .with_context(|| format!("making {}", path.display()))?;
        made.push(Made { model, bytes, blob });
    }
    let models = made.iter().map(|file| ManifestModel {
        name: file.model.clone(),
        size: file.bytes,
        blake3: Some(file.blob),
        sha256: None,
        sources: Vec::new(),
    });
    let manifest = Manifest { version: 1, models: models.collect() };
    fs::write(origin.join("tierd-manifest.json"), serde_json::to_vec_pretty(&manifest)?)?;
    Ok(made)
}

/// Writes one file of about `bytes` and returns its size and digest.
fn write(
    path: &Path,
    seed: &str,
    bytes: u64,
    patterns: &[&str],
    stop: &CancellationToken,
) -> anyhow::Result<(u64, BlobId)> {
    let header = header(bytes, patterns);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut hasher = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes)
    };
    put(&(header.text.len() as u64).to_le_bytes())?;
    put(header.text.as_bytes())?;
    // BLAKE3's own output stream is as good as random, and the same each time.
    let mut weights = blake3::Hasher::new().update(seed.as_bytes()).finalize_xof();
    let mut buffer = vec![0; 1 << 20];
    let mut left = header.data_bytes;
    while left > 0 {
        ensure!(!stop.is_cancelled(), "stopped");
        let length = usize::try_from(left.min(1 << 20)).expect("at most 1 MiB");
        weights.fill(&mut buffer[..length]);
        put(&buffer[..length])?;
        left -= length as u64;
    }
    file.flush()?;
    let whole = 8 + header.text.len() as u64 + header.data_bytes;
    Ok((whole, BlobId(*hasher.finalize().as_bytes())))
}

struct Header {
    text: String,
    data_bytes: u64,
}

/// A safetensors header whose tensors tile `bytes` or a little less, all BF16.
fn header(bytes: u64, patterns: &[&str]) -> Header {
    let row = COLUMNS * 2;
    let rows = (bytes / (BLOCKS * patterns.len() as u64) / row).max(1);
    let mut tensors = Map::new();
    tensors.insert("__metadata__".to_owned(), json!({ "format": "pt", "made_by": "tierd demo" }));
    let mut start = 0;
    for block in 0..BLOCKS {
        for pattern in patterns {
            let end = start + rows * row;
            let tensor = json!({ "dtype": "BF16", "shape": [rows, COLUMNS], "data_offsets": [start, end] });
            tensors.insert(pattern.replace("{}", &block.to_string()), tensor);
            start = end;
        }
    }
    let mut text = Value::Object(tensors).to_string();
    // The data starts at a multiple of eight, as the format's own writer has it.
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    Header { text, data_bytes: start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_models_are_real_safetensors() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = make(folder.path(), 8 << 20, &CancellationToken::new()).expect("made");
        assert_eq!(made.len(), KINDS.len());
        for file in made {
            let data = fs::read(folder.path().join(file.model.as_str())).expect("there");
            assert_eq!(data.len() as u64, file.bytes);
            assert_eq!(BlobId(*blake3::hash(&data).as_bytes()), file.blob);
            let length = u64::from_le_bytes(data[..8].try_into().expect("eight bytes"));
            let header: Map<String, Value> =
                serde_json::from_slice(&data[8..8 + length as usize]).expect("the header is JSON");
            let mut ranges: Vec<(u64, u64)> = Vec::new();
            for (_, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
                let offsets = &tensor["data_offsets"];
                let range = (offsets[0].as_u64().expect("a number"), offsets[1].as_u64().expect("a number"));
                let (rows, columns) = (&tensor["shape"][0], &tensor["shape"][1]);
                assert_eq!(range.1 - range.0, rows.as_u64().expect("rows") * columns.as_u64().expect("columns") * 2);
                ranges.push(range);
            }
            ranges.sort_unstable();
            assert_eq!(ranges[0].0, 0);
            assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "the tensors do not tile");
            assert_eq!(ranges.last().expect("some").1, data.len() as u64 - 8 - length);
        }
        let manifest: Manifest =
            serde_json::from_slice(&fs::read(folder.path().join("tierd-manifest.json")).expect("there"))
                .expect("parses");
        assert_eq!(manifest.models.len(), KINDS.len());
    }
}
