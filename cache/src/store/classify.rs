//! Which of ComfyUI's folders a file belongs in: what its safetensors header says first, then where it lies, then its name. Pure:
//! opens nothing.

use crate::ids::{COMFY_FOLDERS, canonical_folder};
use crate::safetensors::Tensor;

/// Folders that a header can speak for. In any other, a file lies because somebody knows better than the header.
const TOLD_BY_HEADERS: [&str; 7] =
    ["checkpoints", "clip_vision", "controlnet", "diffusion_models", "loras", "text_encoders", "vae"];

/// Folders whose loaders take the same kind of file: lying in one while the header suggests the other is no contradiction.
const INTERCHANGEABLE: [(&str, &str); 2] = [("checkpoints", "diffusion_models"), ("text_encoders", "clip_vision")];

/// Where a file goes, and why.
pub(super) type Verdict = Result<(String, &'static str), String>;

/// The canonical name of a folder that ComfyUI knows; none for any other.
pub(super) fn known_folder(name: &str) -> Option<&'static str> {
    let name = canonical_folder(name);
    COMFY_FOLDERS.iter().find(|folder| **folder == name).copied()
}

/// Decides the model key (as text) of a file.
///
/// `parts` is its path, file name last, from a place where a known folder may come first. `tensors` is what its header
/// says, if it has one.
pub(super) fn classify(parts: &[&str], tensors: Option<&[Tensor]>) -> Verdict {
    let Some((file, _)) = parts.split_last() else { return Err("it has no name".to_owned()) };
    let location = match parts {
        [first, rest @ ..] if !rest.is_empty() => known_folder(first).map(|folder| (folder, rest.join("/"))),
        _ => None,
    };
    let told = tensors.and_then(by_tensors);
    match (told, location) {
        (Some(folder), Some((lies_in, path))) if !contradicts(folder, lies_in) => {
            let why = if folder == lies_in { "safetensors header" } else { "path" };
            Ok((format!("{lies_in}/{path}"), why))
        }
        (Some(folder), _) => Ok((format!("{folder}/{file}"), "safetensors header")),
        (None, Some((lies_in, path))) => Ok((format!("{lies_in}/{path}"), "path")),
        (None, None) => match by_name(file) {
            Some(folder) => Ok((format!("{folder}/{file}"), "file name")),
            None => {
                Err("neither its header nor its folder nor its name says what it is: move it below a folder such as \
                 loras/ or checkpoints/"
                    .to_owned())
            }
        },
    }
}

fn contradicts(told: &str, lies_in: &str) -> bool {
    let pair = |(a, b): &(&str, &str)| (*a, *b) == (told, lies_in) || (*b, *a) == (told, lies_in);
    told != lies_in && TOLD_BY_HEADERS.contains(&lies_in) && !INTERCHANGEABLE.iter().any(pair)
}

/// What the names of the tensors say; none if they are like no kind of file known here.
fn by_tensors(tensors: &[Tensor]) -> Option<&'static str> {
    let contains = |parts: &[&str]| tensors.iter().any(|t| parts.iter().any(|part| t.name.contains(part)));
    let starts = |parts: &[&str]| tensors.iter().any(|t| parts.iter().any(|part| t.name.starts_with(part)));
    if contains(&["lora_up", "lora_down", "lora_A.", "lora_B.", "lora.up.", "lora.down.", "hada_w1", "lokr_w1"]) {
        return Some("loras");
    }
    if starts(&["image_proj."]) && starts(&["ip_adapter."]) {
        return Some("ipadapter");
    }
    if starts(&["redux_up.", "redux_down."]) {
        return Some("style_models");
    }
    if starts(&["control_model.", "controlnet_", "adapter.body."])
        || contains(&["input_hint_block.", "controlnet_cond_embedding.", "controlnet_blocks.", "zero_convs."])
    {
        return Some("controlnet");
    }
    if starts(&["model.diffusion_model."]) {
        let has_more = starts(&["first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders."]);
        return Some(if has_more { "checkpoints" } else { "diffusion_models" });
    }
    if starts(&["diffusion_model.", "double_blocks.", "single_blocks.", "transformer_blocks.", "joint_blocks."])
        || (starts(&["input_blocks."]) && starts(&["output_blocks."]))
        || (starts(&["down_blocks."]) && starts(&["up_blocks."]) && starts(&["time_embedding.", "conv_in."]))
        || (starts(&["blocks."]) && starts(&["patch_embedding.", "x_embedder."]))
        || (starts(&["layers."]) && starts(&["x_embedder.", "cap_embedder."]))
    {
        return Some("diffusion_models");
    }
    if starts(&[
        "text_model.",
        "encoder.block.",
        "transformer.resblocks.",
        "transformer.text_model.",
        "model.embed_tokens.",
    ]) || (starts(&["model.layers."]) && contains(&["self_attn."]))
    {
        return Some("text_encoders");
    }
    if starts(&["vision_model.", "visual.transformer."]) {
        return Some("clip_vision");
    }
    if starts(&["decoder.up.", "encoder.down.", "decoder.up_blocks.", "encoder.down_blocks.", "quant_conv."])
        || starts(&["post_quant_conv."])
        || (starts(&["encoder.conv1.", "encoder.downsamples."]) && starts(&["decoder.conv1.", "decoder.upsamples."]))
    {
        return Some("vae");
    }
    if starts(&["wav2vec2."]) {
        return Some("audio_encoders");
    }
    if starts(&["conv_first."]) || (starts(&["model.0."]) && starts(&["model.1.sub."])) {
        return Some("upscale_models");
    }
    let embedding = |t: &Tensor| matches!(t.name.as_str(), "emb_params" | "clip_l" | "clip_g") && t.dimensions <= 2;
    (!tensors.is_empty() && tensors.iter().all(embedding)).then_some("embeddings")
}

/// Words in a file's name, and the folder that they hint at. The first that fits counts, so the particular come first.
const HINTS: [(&str, &str); 26] = [
    ("controlnet", "controlnet"),
    ("control_", "controlnet"),
    ("t2iadapter", "controlnet"),
    ("ip-adapter", "ipadapter"),
    ("ip_adapter", "ipadapter"),
    ("clip_vision", "clip_vision"),
    ("clip-vision", "clip_vision"),
    ("image_encoder", "clip_vision"),
    ("lora", "loras"),
    ("lycoris", "loras"),
    ("taesd", "vae_approx"),
    ("vae", "vae"),
    ("t5xxl", "text_encoders"),
    ("t5-", "text_encoders"),
    ("umt5", "text_encoders"),
    ("clip_l", "text_encoders"),
    ("clip_g", "text_encoders"),
    ("text_encoder", "text_encoders"),
    ("esrgan", "upscale_models"),
    ("upscale", "upscale_models"),
    ("swinir", "upscale_models"),
    ("sam_vit", "sams"),
    ("hypernetwork", "hypernetworks"),
    ("embedding", "embeddings"),
    ("unet", "diffusion_models"),
    ("checkpoint", "checkpoints"),
];

fn by_name(file: &str) -> Option<&'static str> {
    let name = file.to_ascii_lowercase();
    let hint = HINTS.iter().find(|(word, _)| name.contains(word)).map(|(_, folder)| *folder);
    // Pickled checkpoints carry their kind in the ending; a GGUF that is no text encoder is a diffusion model.
    hint.or_else(|| name.ends_with(".ckpt").then_some("checkpoints"))
        .or_else(|| name.ends_with(".gguf").then_some("diffusion_models"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(names: &[&str]) -> Vec<Tensor> {
        names.iter().map(|name| Tensor { name: (*name).to_owned(), bytes: 0..0, dimensions: 2 }).collect()
    }

    fn verdict(path: &str, names: &[&str]) -> (String, &'static str) {
        let parts: Vec<&str> = path.split('/').collect();
        classify(&parts, Some(&tensors(names))).expect("classified")
    }

    #[test]
    fn headers_of_real_files_are_told_apart() {
        for (folder, names) in [
            ("loras", &["lora_unet_down_blocks_0.lora_up.weight", "lora_unet_down_blocks_0.alpha"][..]),
            ("loras", &["transformer.double_blocks.0.attn.lora_A.weight"]),
            (
                "checkpoints",
                &["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.bias"],
            ),
            ("diffusion_models", &["model.diffusion_model.joint_blocks.0.x"]),
            ("diffusion_models", &["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.bias"]),
            ("diffusion_models", &["blocks.0.self_attn.k.bias", "patch_embedding.weight", "head.modulation"]),
            (
                "diffusion_models",
                &["down_blocks.0.resnets.0.x", "up_blocks.0.resnets.0.x", "time_embedding.linear_1.x"],
            ),
            ("text_encoders", &["encoder.block.0.layer.0.SelfAttention.k.weight", "shared.weight"]),
            ("text_encoders", &["text_model.encoder.layers.0.mlp.fc1.bias"]),
            ("text_encoders", &["model.layers.0.self_attn.q_proj.weight", "visual.blocks.0.attn.qkv.weight"]),
            ("clip_vision", &["vision_model.encoder.layers.0.mlp.fc1.bias", "visual_projection.weight"]),
            ("vae", &["decoder.up.0.block.0.conv1.bias", "encoder.down.0.block.0.conv1.bias"]),
            ("controlnet", &["control_model.zero_convs.0.0.weight"]),
            ("controlnet", &["controlnet_blocks.0.weight", "transformer_blocks.0.attn.x"]),
            ("ipadapter", &["image_proj.norm.bias", "ip_adapter.1.to_k_ip.weight"]),
            ("style_models", &["redux_down.weight", "redux_up.weight"]),
            ("upscale_models", &["conv_first.weight", "body.0.rdb1.conv1.bias"]),
            ("embeddings", &["clip_l", "clip_g"]),
        ] {
            assert_eq!(verdict("x.safetensors", names), (format!("{folder}/x.safetensors"), "safetensors header"));
        }
    }

    #[test]
    fn the_header_wins_over_folder_and_name_when_they_contradict() {
        let lora = ["a.lora_up.weight"];
        assert_eq!(verdict("checkpoints/sub/vae.safetensors", &lora).0, "loras/vae.safetensors");
        assert_eq!(verdict("loras/sub/a.safetensors", &lora).0, "loras/sub/a.safetensors");
    }

    #[test]
    fn a_folder_that_the_header_does_not_contradict_is_kept_with_its_path() {
        let flux = ["double_blocks.0.x"];
        assert_eq!(verdict("checkpoints/f/a.safetensors", &flux), ("checkpoints/f/a.safetensors".into(), "path"));
        assert_eq!(verdict("unet/f/a.safetensors", &flux).0, "diffusion_models/f/a.safetensors");
        assert_eq!(verdict("model_patches/a.safetensors", &flux).0, "model_patches/a.safetensors");
        assert_eq!(verdict("vae/a.safetensors", &["something.else"]), ("vae/a.safetensors".into(), "path"));
    }

    #[test]
    fn names_are_the_last_resort_and_an_unknown_file_stays_outside() {
        for (file, folder) in [
            ("4x-UltraSharp-ESRGAN.pth", "upscale_models"),
            ("sd15-vae.pt", "vae"),
            ("my.ckpt", "checkpoints"),
            ("umt5-xxl-Q4.gguf", "text_encoders"),
            ("flux1-dev-Q4.gguf", "diffusion_models"),
        ] {
            assert_eq!(classify(&["odd", file], None), Ok((format!("{folder}/{file}"), "file name")));
        }
        assert!(classify(&["mystery.bin"], None).is_err());
    }
}
