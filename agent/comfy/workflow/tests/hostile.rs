//! Claims about what should never come in: circles, depth, size, bombs, noise. Whatever it is: an answer or a refusal, soon.

use proptest::prelude::*;

use super::*;

fn error(text: &str) -> WorkflowError {
    parse(text.as_bytes()).expect_err("refused")
}

#[test]
fn depth_size_and_number_are_bounded_with_errors_of_their_own() {
    assert_eq!(error(&"[".repeat(1 << 20)), WorkflowError::TooDeep { max: DEPTH_MAX });
    let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    assert_eq!(error(&deep), WorkflowError::TooDeep { max: DEPTH_MAX });
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    assert!(parse(nested(DEPTH_MAX).as_bytes()).is_ok());
    assert_eq!(error(&nested(DEPTH_MAX + 1)), WorkflowError::TooDeep { max: DEPTH_MAX });
    assert_eq!(error(&format!("[{}0]", "0,".repeat(VALUES_MAX))), WorkflowError::TooManyValues { max: VALUES_MAX });
    assert_eq!(
        error(&format!("[{}0]", "{},".repeat(VALUES_MAX / 5))),
        WorkflowError::TooManyValues { max: VALUES_MAX }
    );
    let size = BYTES_MAX + 1;
    assert_eq!(error(&" ".repeat(size)), WorkflowError::TooLarge { bytes: size, max: BYTES_MAX });
}

#[test]
fn a_workflow_of_ten_megabytes_is_read() {
    let loader = |id: usize| json!({"class_type": "LoraLoader", "inputs": {"lora_name": format!("{}.safetensors", id % 100), "note": "x".repeat(900)}});
    let graph: serde_json::Map<String, Value> = (0..11_000).map(|id| (id.to_string(), loader(id))).collect();
    let text = serde_json::to_string(&graph).expect("JSON");
    assert!(text.len() > 10 << 20, "{}", text.len());
    let found = read(&text, &Known::default());
    assert_eq!((found.needs.len(), found.limits.len(), found.nodes), (100, 0, 11_000));
    assert_eq!(found.needs[0].places.len(), PLACES_MAX);
}

#[test]
fn subgraphs_that_contain_themselves_or_go_too_deep_are_told() {
    let sub = |id: &str, inner: &str| {
        let nodes =
            json!([{"id": 1, "type": inner}, {"id": 2, "type": "VAELoader", "widgets_values": [format!("{id}.pt")]}]);
        json!({"id": id, "nodes": nodes, "links": []})
    };
    let mut circle =
        json!({"nodes": [{"id": 9, "type": "a"}], "definitions": {"subgraphs": [sub("a", "b"), sub("b", "a")]}});
    let found = of(&circle);
    assert_eq!(models(&found), ["vae/b.pt", "vae/a.pt"]);
    assert_eq!(found.unresolved[0].reason, Reason::Cycle);
    let chain: Vec<Value> = (0..40).map(|level| sub(&format!("s{level}"), &format!("s{}", level + 1))).collect();
    circle["definitions"]["subgraphs"] = json!(chain);
    circle["nodes"][0]["type"] = json!("s0");
    let found = of(&circle);
    assert_eq!((found.needs.len(), found.limits.as_slice()), (SUBGRAPH_DEPTH_MAX, [Reached::Depth].as_slice()));
}

#[test]
fn a_bomb_of_nested_instances_ends_at_the_limit_of_nodes() {
    let level = |level: usize| {
        let mut nodes: Vec<Value> = (0..10).map(|id| json!({"id": id, "type": format!("s{}", level + 1)})).collect();
        nodes.push(json!({"id": 99, "type": "CLIPTextEncode", "widgets_values": ["word ".repeat(20_000)]}));
        json!({"id": format!("s{level}"), "nodes": nodes, "links": []})
    };
    let subgraphs: Vec<Value> = (0..12).map(level).collect();
    let found = of(&json!({"nodes": [{"id": 1, "type": "s0"}], "definitions": {"subgraphs": subgraphs}}));
    assert!(found.nodes <= NODES_MAX);
    assert!(found.limits.contains(&Reached::Nodes) && found.limits.contains(&Reached::Text), "{:?}", found.limits);
}

#[test]
fn wide_subgraphs_with_many_instances_end_at_the_limit_of_inputs() {
    let slots: Vec<Value> = (0..50_000).map(|slot| json!({"name": format!("s{slot}"), "type": "STRING"})).collect();
    let notes: Vec<Value> = (0..50_000).map(|id| json!({"id": id, "type": "Note"})).collect();
    let instance = |id: usize| json!({"id": id, "type": "sub"});
    let wide = json!({"id": "sub", "nodes": [], "inputs": slots});
    let long = json!({"id": "sub", "nodes": notes});
    for sub in [wide, long] {
        let instances: Vec<Value> = (0..50_000).map(instance).collect();
        let found = of(&json!({"nodes": instances, "definitions": {"subgraphs": [sub]}}));
        assert_eq!(found.limits, [Reached::Edges]);
    }
}

#[test]
fn a_node_with_as_many_values_as_inputs_and_rows_is_read_in_one_go() {
    let count = 60_000;
    let plug = |id: usize| json!({"name": format!("n{id}"), "widget": {"name": format!("n{id}")}, "link": id});
    let row = |id: usize| json!({"name": format!("{id}.bin"), "directory": "loras"});
    let values: serde_json::Map<String, Value> =
        (0..count).map(|id| (format!("v{id}"), json!(format!("{id}.pt")))).collect();
    let rows: Vec<Value> = (0..count).map(row).collect();
    let plugs: Vec<Value> = (0..count).map(plug).collect();
    let node = json!({"id": 1, "type": "X", "widgets_values": values, "inputs": plugs, "properties": {"models": rows}});
    let found = of(&json!({"nodes": [node]}));
    assert_eq!((found.unresolved.len(), found.limits.as_slice()), (NEEDS_MAX, [Reached::Needs].as_slice()));
}

#[test]
fn links_in_circles_end() {
    let found = of(&json!({
        "nodes": [
            {"id": 1, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 2}]},
            {"id": 2, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 1}]},
            {"id": 3, "type": "VAELoader", "widgets_values": ["a.pt"],
             "inputs": [{"name": "vae_name", "widget": {"name": "vae_name"}, "link": 3}]},
        ],
        "links": [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 1, 0, "*"], [3, 1, 0, 3, 0, "*"]],
    }));
    assert_eq!(models(&found), ["vae/a.pt"], "a link from nowhere replaces nothing");
    let circle = json!({
        "1": {"class_type": "A", "inputs": {"x": ["2", 0], "name": "a.bin"}},
        "2": {"class_type": "B", "inputs": {"x": ["1", 0]}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": ["2", 0]}},
    });
    assert_eq!(of(&circle).unresolved.len(), 2);
}

/// JSON that is made of the words that workflows are made of.
fn workflowish() -> impl Strategy<Value = Value> {
    const WORDS: [&str; 12] = [
        "a.safetensors",
        "sub/b.ckpt",
        "embedding:x",
        "VAELoader",
        "UNETLoader",
        "sub",
        "-1",
        "taesd",
        "DiffusersLoader",
        "1",
        "PrimitiveNode",
        "..\\..\\x.bin",
    ];
    const NAMES: [&str; 18] = [
        "nodes",
        "links",
        "definitions",
        "subgraphs",
        "inputs",
        "widgets_values",
        "class_type",
        "type",
        "id",
        "mode",
        "properties",
        "models",
        "proxyWidgets",
        "widget",
        "name",
        "link",
        "unet_name",
        "prompt",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-30_i64..30).prop_map(Value::from),
        proptest::sample::select(&WORDS[..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 200, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            proptest::collection::vec((proptest::sample::select(&NAMES[..]), inner), 0..6)
                .prop_map(|entries| entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn noise_is_refused_or_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(value) = parse(&bytes) {
            let _ = resolve(&value, &Known::default());
        }
    }

    #[test]
    fn whatever_looks_like_a_workflow_is_answered_with_clean_names(nodes in workflowish(), rest in workflowish()) {
        let catalog = known(&["vae/a.safetensors", "loras/sub/b.ckpt", "diffusers/1/m.bin"]);
        let drawn = json!({"nodes": [nodes, {"id": 1, "type": "sub", "widgets_values": rest}], "links": rest,
            "definitions": {"subgraphs": [{"id": "sub", "nodes": [rest], "inputs": [nodes]}]}});
        for document in [nodes.clone(), drawn, json!({"1": {"class_type": "VAELoader", "inputs": nodes}, "2": rest})] {
            let Ok(found) = resolve(&document, &catalog) else { continue };
            for need in &found.needs {
                prop_assert!(!need.places.is_empty() && need.places.len() <= PLACES_MAX);
                prop_assert_eq!(need.known, catalog.contains(&need.model));
            }
            prop_assert!(found.nodes <= NODES_MAX);
        }
    }
}
