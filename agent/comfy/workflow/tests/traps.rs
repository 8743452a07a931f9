//! Claims about what makes workflows hard: stale values, switches, links where a value stood, texts inside lists.

use super::*;

/// A drawn node.
fn node(id: u64, class: &str, values: Value, inputs: Value) -> Value {
    json!({"id": id, "type": class, "mode": 0, "widgets_values": values, "inputs": inputs})
}

fn drawn(nodes: Value, links: Value) -> Value {
    json!({"nodes": nodes, "links": links, "version": 0.4})
}

fn with_mode(mut node: Value, mode: u64) -> Value {
    node["mode"] = json!(mode);
    node
}

#[test]
fn what_is_muted_or_bypassed_is_told_apart_from_what_is_needed() {
    let lora = |id, name: &str, mode| with_mode(node(id, "LoraLoaderModelOnly", json!([name, 1.0]), json!([])), mode);
    let found = of(&drawn(
        json!([
            lora(1, "a.safetensors", 2),
            lora(2, "b.safetensors", 4),
            lora(3, "c.safetensors", 0),
            lora(4, "c.safetensors", 4)
        ]),
        json!([]),
    ));
    assert_eq!(models(&found), ["loras/c.safetensors"]);
    assert_eq!(idle(&found), [("loras/a.safetensors", Idle::Muted), ("loras/b.safetensors", Idle::Bypassed)]);
}

#[test]
fn a_muted_instance_mutes_what_is_inside() {
    let inner = json!({"id": "sub", "inputs": [], "nodes": [node(1, "VAELoader", json!(["a.safetensors"]), json!([]))], "links": []});
    let mut document = drawn(json!([with_mode(node(9, "sub", json!([]), json!([])), 2)]), json!([]));
    document["definitions"] = json!({"subgraphs": [inner]});
    let found = of(&document);
    assert_eq!((models(&found).len(), idle(&found)), (0, vec![("vae/a.safetensors", Idle::Muted)]));
}

/// A subgraph whose loader's value comes from outside, by one input.
fn with_subgraph(instances: Value, links: Value) -> Value {
    let loader = json!({
        "id": 7, "type": "UNETLoader", "mode": 0, "widgets_values": ["stale.safetensors", "default"],
        "inputs": [{"name": "unet_name", "type": "COMBO", "widget": {"name": "unet_name"}, "link": 70}],
    });
    let sub = json!({
        "id": "sub", "nodes": [loader],
        "inputs": [{"name": "image", "type": "IMAGE"}, {"name": "unet_name", "type": "COMBO", "linkIds": [70]}],
        "links": [{"id": 70, "origin_id": -10, "origin_slot": 1, "target_id": 7, "target_slot": 0, "type": "COMBO"}],
    });
    let mut document = drawn(instances, links);
    document["definitions"] = json!({"subgraphs": [sub]});
    document
}

#[test]
fn each_instance_has_its_own_values_and_without_any_those_inside_count() {
    let found = of(&with_subgraph(
        json!([
            node(1, "sub", json!(["one.safetensors"]), json!([])),
            node(2, "sub", json!(["two.safetensors"]), json!([])),
            node(3, "sub", json!([null]), json!([])),
            node(4, "sub", json!({"unet_name": "four.safetensors"}), json!([])),
        ]),
        json!([]),
    ));
    let expected = ["one", "two", "stale", "four"].map(|name| format!("diffusion_models/{name}.safetensors"));
    assert_eq!(models(&found), expected);
}

#[test]
fn a_custom_loader_inside_takes_what_its_instance_gives() {
    let loader = json!({
        "id": 7, "type": "DualCLIPLoaderGGUF", "mode": 0, "widgets_values": ["one.gguf", "stale.gguf", "flux"],
        "inputs": [{"name": "clip_name2", "type": "COMBO", "widget": {"name": "clip_name2"}, "link": 70}],
    });
    let sub = json!({
        "id": "sub", "nodes": [loader], "inputs": [{"name": "clip", "type": "COMBO"}],
        "links": [{"id": 70, "origin_id": -10, "origin_slot": 0, "target_id": 7, "target_slot": 0, "type": "COMBO"}],
    });
    let mut document = drawn(json!([node(1, "sub", json!(["two.gguf"]), json!([]))]), json!([]));
    document["definitions"] = json!({"subgraphs": [sub]});
    let catalog = known(&["text_encoders/one.gguf", "text_encoders/two.gguf"]);
    let found = resolve(&document, &catalog).expect("a workflow");
    assert_eq!(models(&found), ["text_encoders/one.gguf", "text_encoders/two.gguf"]);
    let [stale] = found.unresolved.as_slice() else { panic!("{:?}", found.unresolved) };
    assert!(!stale.required, "which of its values is stale is not known, so it is told and hinders nothing");
}

#[test]
fn proxies_with_values_give_them_by_name() {
    let mut instance = node(1, "sub", json!(["own.safetensors", 7]), json!([]));
    instance["properties"] = json!({"proxyWidgets": [["-1", "unet_name"], ["7", "weight_dtype"]]});
    assert_eq!(models(&of(&with_subgraph(json!([instance]), json!([])))), ["diffusion_models/own.safetensors"]);
    let mut instance = node(1, "sub", json!(["direct.safetensors"]), json!([]));
    instance["properties"] = json!({"proxyWidgets": [["7", "unet_name"]]});
    assert_eq!(models(&of(&with_subgraph(json!([instance]), json!([])))), ["diffusion_models/direct.safetensors"]);
}

#[test]
fn values_that_cannot_be_attributed_are_told_and_those_inside_taken() {
    let found =
        of(&with_subgraph(json!([node(1, "sub", json!(["x.safetensors", "y.safetensors"]), json!([]))]), json!([])));
    assert_eq!(models(&found), ["diffusion_models/stale.safetensors"]);
    assert_eq!(found.unresolved[0].reason, Reason::InstanceValues { values: 2, inputs: 1 });
}

#[test]
fn a_link_from_outside_goes_before_all_written_values() {
    let plug = json!([{"name": "unet_name", "type": "COMBO", "widget": {"name": "unet_name"}, "link": 5}]);
    let found = of(&with_subgraph(
        json!([
            node(1, "sub", json!(["written.safetensors"]), plug),
            node(2, "Reroute", json!(null), json!([{"name": "", "type": "*", "link": 6}])),
            node(3, "PrimitiveNode", json!(["linked.safetensors", "fixed"]), json!([])),
        ]),
        json!([[5, 2, 0, 1, 0, "COMBO"], [6, 3, 0, 2, 0, "COMBO"]]),
    ));
    assert_eq!(models(&found), ["diffusion_models/linked.safetensors"]);
    assert!(found.unresolved.is_empty(), "{:?}", found.unresolved);
}

#[test]
fn nested_subgraphs_hand_values_down() {
    let mut document = with_subgraph(json!([node(1, "outer", json!(["deep.safetensors"]), json!([]))]), json!([]));
    let middle = json!({
        "id": 3, "type": "sub", "mode": 0, "widgets_values": ["middle.safetensors"],
        "inputs": [{"name": "unet_name", "type": "COMBO", "widget": {"name": "unet_name"}, "link": 1}],
    });
    let outer = json!({
        "id": "outer", "nodes": [middle], "inputs": [{"name": "model", "type": "COMBO"}],
        "links": [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 3, "target_slot": 0, "type": "COMBO"}],
    });
    document["definitions"]["subgraphs"].as_array_mut().expect("a list").push(outer);
    let found = of(&document);
    assert_eq!(models(&found), ["diffusion_models/deep.safetensors"]);
    assert_eq!(found.needs[0].places[0].node, "1:3:7");
}

#[test]
fn a_name_that_another_node_gives_is_followed_if_it_is_written_there() {
    let found = of(&json!({
        "1": {"class_type": "PrimitiveString", "inputs": {"value": "a.safetensors"}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": ["1", 0]}},
        "3": {"class_type": "PickAtRandom", "inputs": {"one": "b.safetensors", "two": "c.safetensors"}},
        "4": {"class_type": "UNETLoader", "inputs": {"unet_name": ["3", 0]}},
    }));
    assert_eq!(models(&found), ["vae/a.safetensors"]);
    let reasons: Vec<&Reason> = found.unresolved.iter().map(|row| &row.reason).collect();
    let computed = Reason::Computed { node: "3".into(), class: "PickAtRandom".into() };
    assert_eq!(reasons, [&Reason::UnknownClass, &Reason::UnknownClass, &computed]);
    assert!(found.unresolved[2].required);
}

#[test]
fn entries_of_a_list_can_be_switched_off() {
    let row = |on: bool, name: &str| json!({"on": on, "lora": name, "strength": 1.0});
    let catalog = known(&["loras/x/a.safetensors", "loras/b.safetensors"]);
    let graph = json!({"5": {"class_type": "Power Lora Loader (rgthree)", "inputs": {
        "lora_1": row(true, "x\\a.safetensors"), "lora_2": row(false, "b.safetensors"), "model": ["9", 0],
    }}});
    let found = resolve(&graph, &catalog).expect("a workflow");
    assert_eq!(models(&found), ["loras/x/a.safetensors"]);
    assert_eq!(found.needs[0].places[0].input, "lora_1.lora");
    assert_eq!(idle(&found), [("loras/b.safetensors", Idle::Off)]);
}

#[test]
fn values_by_position_are_found_without_names_and_behind_seeds() {
    let catalog = known(&["sams/sam_vit_b.pth", "upscale_models/x4.pth"]);
    let nodes = json!([
        node(1, "SAMLoader", json!(["sam_vit_b.pth", "AUTO"]), json!([])),
        node(
            2,
            "SeededUpscaler",
            json!([7, "randomize", "x4.pth"]),
            json!([
                {"name": "seed", "widget": {"name": "seed"}, "link": null}, {"name": "file", "widget": {"name": "file"}, "link": null}
            ])
        ),
        node(3, "DualCLIPLoader", json!(["a.safetensors", "b.gguf", "flux"]), json!([])),
    ]);
    let found = resolve(&drawn(nodes, json!([])), &catalog).expect("a workflow");
    let inputs: Vec<(&str, &str)> =
        found.needs.iter().map(|need| (need.model.as_str(), need.places[0].input.as_str())).collect();
    assert_eq!(
        inputs,
        [
            ("text_encoders/a.safetensors", "clip_name1"),
            ("text_encoders/b.gguf", "clip_name2"),
            ("sams/sam_vit_b.pth", "widgets_values[0]"),
            ("upscale_models/x4.pth", "file"),
        ]
    );
}

#[test]
fn a_value_that_a_link_replaced_does_not_count() {
    let plug = json!([{"name": "vae_name", "type": "COMBO", "widget": {"name": "vae_name"}, "link": 1}]);
    let found = of(&drawn(
        json!([node(1, "VAELoader", json!(["old.safetensors"]), plug), node(2, "Chooser", json!([1]), json!([]))]),
        json!([[1, 2, 0, 1, 0, "COMBO"]]),
    ));
    assert!(found.needs.is_empty(), "{:?}", found.needs);
    assert!(matches!(found.unresolved[0].reason, Reason::Computed { .. }));
}

#[test]
fn an_image_that_is_encoded_first_wants_its_vae_first() {
    let found = of(&json!({
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "u.safetensors"}},
        "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "c.safetensors"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "v.safetensors"}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": "x, embedding:neg.pt"}},
        "5": {"class_type": "VAEEncode", "inputs": {"vae": ["3", 0], "pixels": ["6", 0]}},
        "6": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "7": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": "l.safetensors"}},
        "10": {"class_type": "KSampler", "inputs": {"model": ["7", 0], "positive": ["4", 0], "latent_image": ["5", 0]}},
        "11": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "up.pth"}},
        "12": {"class_type": "VAEDecode", "inputs": {"vae": ["3", 0], "samples": ["10", 0]}},
        "13": {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["11", 0], "image": ["12", 0]}},
    }));
    let expected = [
        "text_encoders/c.safetensors",
        "vae/v.safetensors",
        "embeddings/neg.pt",
        "diffusion_models/u.safetensors",
        "loras/l.safetensors",
        "upscale_models/up.pth",
    ];
    assert_eq!(models(&found), expected);
}

#[test]
fn a_model_that_is_set_and_got_by_name_keeps_its_turn() {
    let link = |name: &str, kind: &str, link: u64| json!([{"name": name, "type": kind, "link": link}]);
    let found = of(&drawn(
        json!([
            node(1, "VAELoader", json!(["v.pt"]), json!([])),
            node(2, "UNETLoader", json!(["u.pt"]), json!([])),
            node(3, "SetNode", json!(["the.model.pt"]), link("MODEL", "MODEL", 1)),
            node(4, "GetNode", json!(["the.model.pt"]), json!([])),
            node(
                5,
                "VAEDecode",
                json!([]),
                json!([{"name": "vae", "type": "VAE", "link": 3}, {"name": "samples", "type": "LATENT", "link": 4}])
            ),
            node(6, "KSampler", json!([]), link("model", "MODEL", 2)),
        ]),
        json!([[1, 2, 0, 3, 0, "MODEL"], [2, 4, 0, 6, 0, "MODEL"], [3, 1, 0, 5, 0, "VAE"], [4, 6, 0, 5, 1, "LATENT"]]),
    ));
    assert_eq!(models(&found), ["diffusion_models/u.pt", "vae/v.pt"]);
    assert!(found.unresolved.is_empty(), "{:?}", found.unresolved);
}

#[test]
fn a_choice_that_an_extension_wraps_is_a_choice() {
    let found = of(
        &json!({"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": {"content": "a.ckpt", "image": null}}}}),
    );
    assert_eq!(models(&found), ["checkpoints/a.ckpt"]);
}

#[test]
fn a_bypassed_lora_lets_the_model_through() {
    let mut document: Value = serde_json::from_str(EXPERTS).expect("JSON");
    // The high-noise expert's patch: bypassed, its model is still used first.
    let patch =
        document["nodes"].as_array_mut().expect("nodes").iter_mut().find(|node| node["id"] == 7).expect("there");
    patch["mode"] = json!(4);
    let found = of(&document);
    assert!(found.needs[1].model.as_str().contains("high_noise"), "{:?}", models(&found));
}
