//! Claims about what a text means.

use super::*;

fn known(names: &[&str]) -> Known {
    Known::of(names.iter().map(|name| (ModelKey::parse(name).expect("a key"), 1)))
}

fn found(meaning: &Meaning) -> Vec<&str> {
    match meaning {
        Meaning::Models(models, _) => models.iter().map(ModelKey::as_str).collect(),
        Meaning::Nothing | Meaning::Open { .. } => Vec::new(),
    }
}

fn reason(meaning: Meaning) -> Reason {
    match meaning {
        Meaning::Open { reason, .. } => reason,
        other => panic!("{other:?} is not open"),
    }
}

#[test]
fn a_loader_reads_its_folder_by_the_whole_name_then_by_the_file_alone() {
    let known = known(&["loras/a/style.safetensors", "checkpoints/style.safetensors", "vae/x.safetensors"]);
    let lora = |text| of_loader("LoraLoader", "lora_name", "loras", text, &known);
    assert_eq!(
        lora("a/style.safetensors"),
        Meaning::one(ModelKey::parse("loras/a/style.safetensors").expect("a key"), How::Loader)
    );
    assert_eq!(found(&lora("a\\style.safetensors")), ["loras/a/style.safetensors"], "saved on Windows");
    let moved = lora("b/style.safetensors");
    assert!(matches!(&moved, Meaning::Models(_, How::LoaderFileName)), "{moved:?}");
    assert_eq!(found(&lora("x.safetensors")), ["loras/x.safetensors"], "not the one of another folder: it is unknown");
    assert_eq!(lora("None"), Meaning::Nothing);
    assert_eq!(reason(lora("../../etc/passwd.bin")), Reason::NotAName { folder: "loras" });
    assert_eq!(reason(lora("euler")), Reason::NotAName { folder: "loras" });
}

#[test]
fn a_name_that_says_nothing_is_only_that_of_its_own_folder() {
    let known = known(&["controlnet/depth/diffusion_pytorch_model.safetensors"]);
    let net = |text| of_loader("ControlNetLoader", "control_net_name", "controlnet", text, &known);
    assert_eq!(
        found(&net("canny/diffusion_pytorch_model.safetensors")),
        ["controlnet/canny/diffusion_pytorch_model.safetensors"]
    );
    assert_eq!(
        found(&net("depth/diffusion_pytorch_model.safetensors")),
        ["controlnet/depth/diffusion_pytorch_model.safetensors"]
    );
}

#[test]
fn several_of_one_name_are_told_apart_by_what_the_workflow_says_or_not_at_all() {
    let known = known(&["loras/a.safetensors", "vae/a.safetensors", "loras/x/b.pt", "loras/y/b.pt"]);
    assert_eq!(found(&of_unknown(Some("lora_2"), "a.safetensors", None, &known)), ["loras/a.safetensors"]);
    let listed = serde_json::json!([{"name": "a.safetensors", "directory": "vae"}]);
    assert_eq!(found(&of_unknown(Some("lora_2"), "a.safetensors", Some(&listed), &known)), ["vae/a.safetensors"]);
    let both = vec!["loras/a.safetensors".to_owned(), "vae/a.safetensors".to_owned()];
    assert_eq!(reason(of_unknown(Some("file"), "a.safetensors", None, &known)), Reason::Ambiguous(both));
    assert!(matches!(
        of_loader("LoraLoader", "lora_name", "loras", "b.pt", &known),
        Meaning::Open { required: true, .. }
    ));
}

#[test]
fn a_text_of_an_unknown_class_counts_if_a_model_is_called_so_and_is_told_if_it_looks_like_one() {
    let known = known(&["instantid/ip-adapter.bin", "ultralytics/bbox/face.pt", "loras/plain"]);
    assert_eq!(found(&of_unknown(None, "instantid/ip-adapter.bin", None, &known)), ["instantid/ip-adapter.bin"]);
    assert_eq!(found(&of_unknown(None, "bbox/face.pt", None, &known)), ["ultralytics/bbox/face.pt"]);
    assert_eq!(found(&of_unknown(None, "segm/face.pt", None, &known)), ["ultralytics/bbox/face.pt"], "by its file");
    assert_eq!(found(&of_unknown(None, "plain", None, &known)), ["loras/plain"], "names need no ending");
    assert_eq!(reason(of_unknown(None, "other.gguf", None, &known)), Reason::UnknownClass);
    for text in ["euler", "a.png", "https://host/a.safetensors", "one.pt\ntwo.pt", ""] {
        assert_eq!(of_unknown(None, text, None, &known), Meaning::Nothing, "{text}");
    }
    let listed = serde_json::json!([{"name": "new.safetensors", "directory": "embeddings"}]);
    let by_list = of_unknown(None, "new.safetensors", Some(&listed), &known);
    assert_eq!(by_list, Meaning::one(ModelKey::parse("embeddings/new.safetensors").expect("a key"), How::Listed));
}

#[test]
fn short_names_stand_for_sets_of_files() {
    let known = known(&[
        "vae_approx/taesd_encoder.safetensors",
        "vae_approx/taesd_decoder.pth",
        "vae_approx/taef1_decoder.pth",
        "vae_approx/taehv.safetensors",
        "diffusers/sd/model_index.json",
        "diffusers/sd/unet/w.safetensors",
        "diffusers/sdxl/model_index.json",
    ]);
    let vae = |text| of_loader("VAELoader", "vae_name", "vae", text, &known);
    assert_eq!(found(&vae("taesd")), ["vae_approx/taesd_encoder.safetensors", "vae_approx/taesd_decoder.pth"]);
    assert!(matches!(reason(vae("taef1")), Reason::EmptySet(_)), "half a pair is none");
    assert_eq!(found(&vae("taehv.safetensors")), ["vae_approx/taehv.safetensors"]);
    assert_eq!(vae("pixel_space"), Meaning::Nothing);
    let diffusers = |text| of_loader("DiffusersLoader", "model_path", "diffusers", text, &known);
    assert_eq!(found(&diffusers("sd")), ["diffusers/sd/model_index.json", "diffusers/sd/unet/w.safetensors"]);
    assert!(matches!(reason(diffusers("flux")), Reason::EmptySet(_)));
}

#[test]
fn embeddings_are_found_in_prompts_with_and_without_their_endings() {
    let text = "a (embedding:bad_hands:1.2), embedding:sub/style.pt, embedding:EasyNegative. embedding: embedding:x\\y";
    let names: Vec<&str> = embeddings(text).collect();
    assert_eq!(names, ["bad_hands", "sub/style.pt", "EasyNegative", "x\\y"]);
    let known = known(&["embeddings/EasyNegative.safetensors", "embeddings/x/y.bin"]);
    assert_eq!(found(&of_embedding("EasyNegative", &known)), ["embeddings/EasyNegative.safetensors"]);
    assert_eq!(found(&of_embedding("x\\y", &known)), ["embeddings/x/y.bin"]);
    assert_eq!(
        found(&of_embedding("sub/style.pt", &known)),
        ["embeddings/sub/style.pt"],
        "unknown, but its name is whole"
    );
    assert_eq!(reason(of_embedding("bad_hands", &known)), Reason::UnknownEmbedding);
}
