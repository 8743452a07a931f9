//! Claims about whole workflows. The files are in `tests/data/workflows`, with their sources and licences.

mod hostile;
mod templates;
mod traps;

use serde_json::{Value, json};
use tierd_cache::engine::known::Known;
use tierd_cache::ids::ModelKey;

use super::*;

const STALE: &str = include_str!("../../../../tests/data/workflows/subgraph_stale_values.json");
const PROXIES: &str = include_str!("../../../../tests/data/workflows/subgraph_proxy_widgets.json");
const EXPERTS: &str = include_str!("../../../../tests/data/workflows/ui_two_experts.json");
const INSTANTID: &str = include_str!("../../../../tests/data/workflows/api_instantid.json");

fn known(names: &[&str]) -> Known {
    Known::of(names.iter().map(|name| (ModelKey::parse(name).expect("a key"), 1)))
}

fn read(text: &str, known: &Known) -> Resolution {
    resolve(&parse(text.as_bytes()).expect("JSON"), known).expect("a workflow")
}

fn of(document: &Value) -> Resolution {
    resolve(document, &Known::default()).expect("a workflow")
}

fn models(resolution: &Resolution) -> Vec<&str> {
    resolution.needs.iter().map(|need| need.model.as_str()).collect()
}

fn idle(resolution: &Resolution) -> Vec<(&str, Idle)> {
    resolution.idle.iter().map(|row| (row.need.model.as_str(), row.why)).collect()
}

#[test]
fn an_instances_own_values_override_the_stale_ones_inside() {
    let found = read(STALE, &Known::default());
    let expected = [
        "text_encoders/qwen3vl_4b_bf16.safetensors",
        "diffusion_models/mage_flow_turbo_int8_convrot.safetensors",
        "vae/mage_flow_vae_bf16.safetensors",
    ];
    assert_eq!(models_by_folder(&found), expected);
    assert_eq!((found.unresolved.len(), found.idle.len(), found.form), (0, 0, Form::Ui));
    let unet = found.needs.iter().find(|need| need.model.folder() == "diffusion_models").expect("found");
    assert_eq!(unet.places[0].node, "12:1");
    assert_eq!(unet.places[0].input, "unet_name");
    assert!(unet.candidates.is_empty(), "the stale list speaks of another file: {:?}", unet.candidates);
    let clip = found.needs.iter().find(|need| need.model.folder() == "text_encoders").expect("found");
    assert!(clip.candidates[0].url.ends_with("/qwen3vl_4b_bf16.safetensors"), "{:?}", clip.candidates);
}

/// The models in the order of text encoder, diffusion model, VAE.
fn models_by_folder(found: &Resolution) -> Vec<&str> {
    let mut all = models(found);
    all.sort_by_key(|model| order::rank(model.split('/').next().unwrap_or_default()));
    all
}

#[test]
fn where_the_instance_has_no_values_those_inside_count() {
    let found = read(PROXIES, &Known::default());
    let expected = [
        "text_encoders/clip_l.safetensors",
        "text_encoders/t5xxl_fp16.safetensors",
        "diffusion_models/flux1-krea-dev_fp8_scaled.safetensors",
        "vae/ae.safetensors",
    ];
    assert_eq!(models(&found), expected, "in the order of use");
    assert!(found.unresolved.is_empty());
    assert!(found.needs.iter().all(|need| need.candidates.len() == 1 && !need.known && need.how == How::Loader));
}

#[test]
fn two_models_used_one_after_the_other_come_in_that_order() {
    let found = read(EXPERTS, &Known::default());
    let expected = [
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
        "diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
        "vae/wan_2.1_vae.safetensors",
    ];
    assert_eq!(models(&found), expected);
    assert!(found.unresolved.is_empty(), "notes are for people: {:?}", found.unresolved);
}

#[test]
fn a_custom_nodes_model_is_told_and_found_once_the_catalog_has_it() {
    let found = read(INSTANTID, &Known::default());
    let expected =
        ["checkpoints/RealVisXL_V3.0.safetensors", "controlnet/instantid/diffusion_pytorch_model.safetensors"];
    assert_eq!(models(&found), expected);
    let [row] = found.unresolved.as_slice() else { panic!("{:?}", found.unresolved) };
    assert_eq!((row.place.node.as_str(), row.place.text.as_str()), ("11", "instantid-ip-adapter.bin"));
    assert_eq!((&row.reason, row.required), (&Reason::UnknownClass, false));

    let all = known(&["instantid/instantid-ip-adapter.bin", expected[0], expected[1]]);
    let found = read(INSTANTID, &all);
    assert!(found.is_complete() && found.unresolved.is_empty());
    assert_eq!(found.needs.len(), 3);
    assert!(found.needs.iter().all(|need| need.known));
}

#[test]
fn the_wrappers_of_requests_and_pictures_are_seen_through() {
    let graph: Value = serde_json::from_str(INSTANTID).expect("JSON");
    let bare = models(&of(&graph)).len();
    assert_eq!(models(&of(&json!({ "prompt": graph, "client_id": "x" }))).len(), bare);
    assert_eq!(models(&of(&json!({ "output": graph, "workflow": {"nodes": []} }))).len(), bare);
    let drawn: Value = serde_json::from_str(STALE).expect("JSON");
    assert_eq!(of(&json!({ "workflow": drawn })).needs.len(), 3);
    // What the browser sends along says where models could be had.
    let prompt = json!({"1": {"class_type": "CLIPLoader", "inputs": {"clip_name": "qwen3vl_4b_bf16.safetensors"}}});
    let sent = json!({"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": drawn}}});
    assert_eq!(of(&sent).needs[0].candidates.len(), 1);
}

#[test]
fn a_picture_that_comfyui_saved_is_a_workflow() {
    fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).expect("short").to_be_bytes();
        [&length[..], kind, content, &[0; 4]].concat()
    }
    let prompt = br#"{"1": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}}}"#;
    let drawn = br#"{"nodes": [{"id": 1, "type": "VAELoader", "widgets_values": ["old.safetensors"]}], "links": []}"#;
    let head = [b"\x89PNG\r\n\x1a\n".as_slice(), &chunk(b"IHDR", &[0; 13])].concat();
    let plain = [
        head.clone(),
        chunk(b"tEXt", &[b"workflow\0", &drawn[..]].concat()),
        chunk(b"tEXt", &[b"prompt\0", &prompt[..]].concat()),
    ]
    .concat();
    assert_eq!(models(&of(&parse(&plain).expect("found"))), ["vae/ae.safetensors"], "what was run counts");
    let utf8 = [head.clone(), chunk(b"iTXt", &[b"workflow\0\0\0\0\0", &drawn[..]].concat())].concat();
    assert_eq!(models(&of(&parse(&utf8).expect("found"))), ["vae/old.safetensors"]);
    for cut in 0..plain.len() {
        // Whatever is left of it: an answer or a refusal.
        let _ = parse(&plain[..cut]);
    }
    let none = [head, chunk(b"IDAT", &[0; 9]), chunk(b"IEND", b"")].concat();
    assert!(matches!(parse(&none), Err(WorkflowError::NotInPng { .. })));
}

#[test]
fn numbers_that_only_python_knows_are_no_hindrance() {
    let text =
        r#"{"1": {"class_type": "VAELoader", "is_changed": [NaN, -Infinity], "inputs": {"vae_name": "NaN \"NaN.pt"}}}"#;
    let found = read(text, &Known::default());
    assert_eq!(models(&found), ["vae/NaN \"NaN.pt"], "in texts they stay");
}

#[test]
fn what_is_no_workflow_is_refused_with_what_it_is() {
    for text in ["[]", "{}", "3", r#"{"a": 1}"#, r#"{"prompt": {"1": {}}}"#, r#"{"nodes": 3}"#] {
        let error = resolve(&parse(text.as_bytes()).expect("JSON"), &Known::default()).expect_err(text);
        assert!(matches!(error, WorkflowError::NotAWorkflow { .. }), "{text}: {error}");
    }
    for text in ["", "{", "nonsense", "{} {}", "\u{feff}{"] {
        assert!(matches!(parse(text.as_bytes()), Err(WorkflowError::NotJson { .. })), "{text}");
    }
    assert!(parse("\u{feff}{}".as_bytes()).is_ok(), "a byte order mark is no error");
}
