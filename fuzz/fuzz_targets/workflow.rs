//! Any bytes as a workflow: an answer or a refusal, and what is answered keeps its promises.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tierd::comfy::workflow::{self, NEEDS_MAX, NODES_MAX, PLACES_MAX};
use tierd_cache::engine::known::Known;
use tierd_cache::ids::ModelKey;

/// Names that the seeds use, so that look-ups hit as well as miss.
fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let names = ["vae/ae.safetensors", "loras/a.pt", "vae/a.pt", "diffusers/sd/model_index.json", "embeddings/x.pt"];
        Known::of(names.iter().filter_map(|name| Some((ModelKey::parse(name).ok()?, 1))))
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(document) = workflow::parse(bytes) else { return };
    let Ok(found) = workflow::resolve(&document, known()) else { return };
    assert!(found.needs.len() <= NEEDS_MAX && found.nodes <= NODES_MAX);
    for need in &found.needs {
        assert!(!need.places.is_empty() && need.places.len() <= PLACES_MAX);
        assert_eq!(need.known, known().contains(&need.model));
        assert_eq!(ModelKey::parse(need.model.as_str()).as_ref(), Ok(&need.model));
    }
    for row in &found.idle {
        assert!(!found.needs.iter().any(|need| need.model == row.need.model));
    }
});
