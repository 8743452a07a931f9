//! Doors for the fuzzer and the property tests: any bytes in place of what comes from outside. Each claims what holds for every
//! input, and panics where it does not. Nothing is started, written or sent.

use std::collections::BTreeMap;

use crate::comfy::bridge::queue;
use crate::comfy::pack_api;
use crate::config::{Config, PROBLEMS_MAX};
use crate::fleet::message::Question;
use crate::rpc;
use tierd_cache::engine::known::Known;

/// Most models of a question, here.
const MODELS_MAX: usize = 16;

/// A text as the configuration file: good, or refused with a bounded list of mistakes.
pub fn config(text: &str) {
    match Config::parse(text, &BTreeMap::new()) {
        Ok(config) => drop(config.to_string()),
        Err(problems) => {
            assert!(!problems.problems.is_empty() && problems.problems.len() <= PROBLEMS_MAX);
            assert!(!problems.to_string().is_empty());
        }
    }
}

/// Bytes as a message of ComfyUI's node pack: `hello`, `report` and `ensure`.
pub fn pack(bytes: &[u8]) {
    pack_api::hostile(bytes);
}

/// Bytes as the message of `HintService.Report`.
pub fn hint(bytes: &[u8]) {
    rpc::hostile_hint(bytes);
}

/// Bytes as a scheduler's question over NATS.
pub fn question(bytes: &[u8]) {
    let Ok(question) = serde_json::from_slice::<Question>(bytes) else { return };
    if let Ok((models, _)) = question.checked(MODELS_MAX) {
        assert!((1..=MODELS_MAX).contains(&models.len()));
    }
}

/// Bytes as what a ComfyUI server answers to `GET /queue`.
pub fn queue(bytes: &[u8]) {
    let Ok(queue) = queue::read(bytes, &queue::Memory::new(), &Known::default()) else { return };
    assert!(queue.prompts.len() <= queue::PROMPTS_MAX);
    drop((queue::wants(&queue, 2), queue::next(&queue)));
}

/// Bytes as the certificate of a client: read without a panic, and its names are bounded.
pub fn certificate(bytes: &[u8]) {
    rpc::hostile_certificate(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fragment() -> impl Strategy<Value = String> {
        let known = [
            r#""worker":"w""#,
            r#""seq":18446744073709551615"#,
            r#""seconds":1e999"#,
            r#""events":[{"kind":"file_read","file":"/x","seconds":-1e308}]"#,
            r#""devices":[{"index":4294967295,"models":[{"file":"","bytes":18446744073709551615}]}]"#,
            r#""next":["vae/../x"]"#,
            r#""models":["vae/x"]"#,
            r#""argv":[]"#,
            r#""folders":{"vae":["/a"]}"#,
            r#""queue_running":[[0,"p",{},{},[]]]"#,
            r#""queue_pending":[[1e400,"p",{}],null]"#,
            r#""within_ms":-1"#,
        ];
        prop_oneof![6 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => "\\PC{0,16}"]
    }

    #[test]
    fn no_depth_overflows_a_stack() {
        const DEPTH: usize = 60_000;
        let nested = |open: &str, close: &str| format!("{}1{}", open.repeat(DEPTH), close.repeat(DEPTH));
        let (lists, objects) = (nested("[", "]"), nested("{\"a\":", "}"));
        for value in [&lists, &objects] {
            for field in ["worker", "events", "later", "models", "labels", "queue_running", "devices"] {
                let message = format!("{{\"worker\":\"w\",\"{field}\":{value}}}").into_bytes();
                pack(&message);
                question(&message);
                queue(&message);
            }
        }
        for text in [
            format!("[store]\nbudget = {lists}\n"),
            format!("[store]\nbudget = {}\n", nested("{ a = ", " }")),
            format!("store{} = 1\n", ".a".repeat(DEPTH)),
            format!("[store{}]\n", ".a".repeat(DEPTH)),
            format!("[[origin{}]]\n", ".a".repeat(DEPTH)),
        ] {
            config(&text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_message_makes_its_reader_panic(
            fields in proptest::collection::vec(fragment(), 0..8),
            noise in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let message = format!("{{{}}}", fields.join(",")).into_bytes();
            for bytes in [&message, &noise] {
                pack(bytes);
                hint(bytes);
                question(bytes);
                queue(bytes);
                certificate(bytes);
                config(&String::from_utf8_lossy(bytes));
            }
        }
    }
}
