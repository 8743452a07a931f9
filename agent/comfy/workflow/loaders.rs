//! The loader table: which input of which class names a model, and in which folder it is looked for. Facts about ComfyUI
//! 0.33.0 (783545f6, 2026-08-22), gathered by running it: its core nodes whose drop-down lists a folder's files.
//! Custom nodes are not here: their models are found by name in the catalog.

/// Endings of the files that ComfyUI lists as models.
pub(super) const EXTENSIONS: [&str; 8] = ["safetensors", "ckpt", "pt", "pt2", "pth", "bin", "pkl", "sft"];
/// Endings that common extensions list on top of that.
pub(super) const EXTENSIONS_MORE: [&str; 2] = ["gguf", "onnx"];

/// VAEs whose encoder and decoder are two files in `vae_approx`, named after it.
pub(super) const VAE_PAIRS: [&str; 5] = ["taesd", "taesdxl", "taesd3", "taef1", "taef2"];
/// VAEs of one file that lie in `vae_approx`, without their endings.
pub(super) const VAE_APPROX: [&str; 6] =
    ["taehv", "lighttaew2_2", "lighttaew2_1", "lighttaehy1_5", "taeltx_2", "taeh3"];
/// Entries of a drop-down that stand for no file.
pub(super) const NO_FILE: [&str; 5] = ["", "None", "none", "[None]", "pixel_space"];

/// The class whose input names a folder in `diffusers`.
pub(super) const DIFFUSERS: (&str, &str, &str) = ("DiffusersLoader", "model_path", "diffusers");

/// Class, input, folder; sorted. The inputs of one class stand in the order of its widgets.
const LOADERS: [(&str, &str, &str); 47] = [
    ("AudioEncoderLoader", "audio_encoder_name", "audio_encoders"),
    ("CLIPLoader", "clip_name", "text_encoders"),
    ("CLIPVisionLoader", "clip_name", "clip_vision"),
    ("CheckpointLoader", "config_name", "configs"),
    ("CheckpointLoader", "ckpt_name", "checkpoints"),
    ("CheckpointLoaderSimple", "ckpt_name", "checkpoints"),
    ("ControlNetLoader", "control_net_name", "controlnet"),
    ("CreateHookLora", "lora_name", "loras"),
    ("CreateHookLoraModelOnly", "lora_name", "loras"),
    ("CreateHookModelAsLora", "ckpt_name", "checkpoints"),
    ("CreateHookModelAsLoraModelOnly", "ckpt_name", "checkpoints"),
    ("DiffControlNetLoader", "control_net_name", "controlnet"),
    ("DiffusersLoader", "model_path", "diffusers"),
    ("DualCLIPLoader", "clip_name1", "text_encoders"),
    ("DualCLIPLoader", "clip_name2", "text_encoders"),
    ("FrameInterpolationModelLoader", "model_name", "frame_interpolation"),
    ("GLIGENLoader", "gligen_name", "gligen"),
    ("HypernetworkLoader", "hypernetwork_name", "hypernetworks"),
    ("ImageOnlyCheckpointLoader", "ckpt_name", "checkpoints"),
    ("LTXAVTextEncoderLoader", "text_encoder", "text_encoders"),
    ("LTXAVTextEncoderLoader", "ckpt_name", "checkpoints"),
    ("LTXVAudioVAELoader", "ckpt_name", "checkpoints"),
    ("LatentUpscaleModelLoader", "model_name", "latent_upscale_models"),
    ("LoadBackgroundRemovalModel", "bg_removal_name", "background_removal"),
    ("LoadDA3Model", "model_name", "geometry_estimation"),
    ("LoadMediaPipeFaceLandmarker", "model_name", "detection"),
    ("LoadMoGeModel", "model_name", "geometry_estimation"),
    ("LoraLoader", "lora_name", "loras"),
    ("LoraLoaderBypass", "lora_name", "loras"),
    ("LoraLoaderBypassModelOnly", "lora_name", "loras"),
    ("LoraLoaderModelOnly", "lora_name", "loras"),
    ("ModelPatchLoader", "name", "model_patches"),
    ("OpticalFlowLoader", "model_name", "optical_flow"),
    ("PhotoMakerLoader", "photomaker_model_name", "photomaker"),
    ("QuadrupleCLIPLoader", "clip_name1", "text_encoders"),
    ("QuadrupleCLIPLoader", "clip_name2", "text_encoders"),
    ("QuadrupleCLIPLoader", "clip_name3", "text_encoders"),
    ("QuadrupleCLIPLoader", "clip_name4", "text_encoders"),
    ("StyleModelLoader", "style_model_name", "style_models"),
    ("TrainLoraNode", "existing_lora", "loras"),
    ("TripleCLIPLoader", "clip_name1", "text_encoders"),
    ("TripleCLIPLoader", "clip_name2", "text_encoders"),
    ("TripleCLIPLoader", "clip_name3", "text_encoders"),
    ("UNETLoader", "unet_name", "diffusion_models"),
    ("UpscaleModelLoader", "model_name", "upscale_models"),
    ("VAELoader", "vae_name", "vae"),
    ("unCLIPCheckpointLoader", "ckpt_name", "checkpoints"),
];

/// What an input of an unknown class is likely to name, by what such inputs are usually called. Only decides among several
/// known models of one name.
const HINTS: [(&str, &str); 8] = [
    ("ckpt", "checkpoints"),
    ("lora", "loras"),
    ("vae", "vae"),
    ("unet", "diffusion_models"),
    ("clip_vision", "clip_vision"),
    ("clip", "text_encoders"),
    ("control", "controlnet"),
    ("upscale", "upscale_models"),
];

/// The inputs of a class that name models, with their folders, in the order of its widgets. Empty for unknown classes.
pub(super) fn inputs(class: &str) -> &'static [(&'static str, &'static str, &'static str)] {
    let start = LOADERS.partition_point(|(known, ..)| *known < class);
    let end = LOADERS.partition_point(|(known, ..)| *known <= class);
    &LOADERS[start..end]
}

/// The folder of an input of a known class.
pub(super) fn folder(class: &str, input: &str) -> Option<&'static str> {
    inputs(class).iter().find(|(_, name, _)| *name == input).map(|(_, _, folder)| *folder)
}

/// The folder that an input of an unknown class is likely to mean.
pub(super) fn hint(input: &str) -> Option<&'static str> {
    let input = input.to_ascii_lowercase();
    HINTS.iter().find(|(word, _)| input.contains(word)).map(|(_, folder)| *folder)
}

/// Whether a text ends like a model's file.
pub(super) fn is_model_file(text: &str) -> bool {
    let Some((stem, extension)) = text.rsplit_once('.') else { return false };
    let known = EXTENSIONS.iter().chain(&EXTENSIONS_MORE);
    !stem.is_empty() && known.into_iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_its_folders_are_comfyuis() {
        assert!(LOADERS.is_sorted_by_key(|(class, ..)| *class));
        let odd = |folder: &&str| !tierd_cache::ids::COMFY_FOLDERS.contains(folder) && **folder != *"configs";
        assert_eq!(LOADERS.map(|(_, _, folder)| folder).iter().filter(|folder| odd(folder)).count(), 0);
        assert_eq!(folder("CLIPLoader", "clip_name"), Some("text_encoders"));
        assert_eq!(inputs("DualCLIPLoader").len(), 2);
        assert!(inputs("Nope").is_empty());
    }

    #[test]
    fn a_file_of_a_model_is_known_by_its_end() {
        assert!(is_model_file("a/b.SafeTensors") && is_model_file("x.gguf"));
        assert!(!is_model_file(".safetensors") && !is_model_file("a.png") && !is_model_file("bin"));
    }
}
