//! A server's queue: the body of `GET /queue` in, prompts in the order of their turn out, each with the models it needs. Pure. What
//! comes in is not trusted: graphs stay unread bytes until they are needed, one at a time, and what is malformed is passed over.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use tierd_cache::engine::known::Known;
use tierd_cache::ids::ModelKey;
use tierd_cache::plan::expected::{Rank, Want};

use crate::comfy::workflow;

/// Largest queue that is read. A prompt takes up to 100 KiB with the drawing that it came from; this is some thousand of them.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Prompts of a queue that are looked at. At a minute each that is a working day.
pub const PROMPTS_MAX: usize = 512;
/// Prompts that a GPU's memory is prepared for.
const NEXT_PROMPTS_MAX: usize = 4;
/// Longest prompt id that is kept.
const ID_CHARS_MAX: usize = 200;

/// Why a queue could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a queue: {detail}")]
pub struct NotAQueue {
    /// What is wrong with it.
    pub detail: String,
}

/// What a prompt needs, found once for each prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// The models that some origin or tier knows, in the order of use.
    pub models: Vec<ModelKey>,
    /// Models that it needs and nobody knows: an origin may list them later.
    pub unknown: Vec<String>,
    /// Why its graph says nothing at all, if so.
    pub unreadable: Option<String>,
}

/// One prompt of a queue.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The server's name for it.
    pub id: String,
    /// Prompts before it; 0 for those that run.
    pub position: u32,
    /// What it needs.
    pub needs: Arc<Needs>,
}

/// A queue as it was read.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    /// Its prompts in the order of their turn, at most [`PROMPTS_MAX`].
    pub prompts: Vec<Prompt>,
    /// Prompts that run.
    pub running: usize,
    /// Prompts that wait, also those beyond [`PROMPTS_MAX`].
    pub pending: usize,
    /// Rows that were no prompts.
    pub malformed: usize,
}

/// Needs that are known from earlier readings, by prompt.
pub type Memory = HashMap<String, Arc<Needs>>;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    queue_running: Vec<&'a RawValue>,
    #[serde(borrow)]
    queue_pending: Vec<&'a RawValue>,
}

/// One row: number, prompt id, graph. What follows (the drawing, outputs) is not looked at.
struct Row<'a> {
    number: f64,
    id: String,
    graph: &'a RawValue,
}

/// Reads a queue. What `memory` knows of a prompt is not found out again.
///
/// # Errors
///
/// [`NotAQueue`]. Single rows that are malformed are only counted.
pub fn read(body: &[u8], memory: &Memory, known: &Known) -> Result<Queue, NotAQueue> {
    let not = |error: serde_json::Error| NotAQueue { detail: error.to_string().chars().take(200).collect() };
    let body: Body<'_> = serde_json::from_slice(body).map_err(not)?;
    let mut queue = Queue { running: body.queue_running.len(), pending: body.queue_pending.len(), ..Queue::default() };
    let running = rows(&body.queue_running, &mut queue.malformed).into_iter().map(|row| (0, row));
    let pending = rows(&body.queue_pending, &mut queue.malformed);
    let rows = running.chain((1..).zip(pending)).take(PROMPTS_MAX);
    for (position, row) in rows {
        let needs = memory.get(&row.id).cloned().unwrap_or_else(|| Arc::new(needs(row.graph.get(), known)));
        queue.prompts.push(Prompt { id: row.id, position, needs });
    }
    Ok(queue)
}

/// The rows of one list in the order of their turn: by number, those put in front below zero.
fn rows<'a>(list: &[&'a RawValue], malformed: &mut usize) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = Vec::new();
    for raw in list {
        match row(raw) {
            Some(row) => rows.push(row),
            None => *malformed += 1,
        }
    }
    // The server keeps a heap: its order says nothing.
    rows.sort_by(|a, b| a.number.total_cmp(&b.number));
    rows
}

fn row<'a>(raw: &'a RawValue) -> Option<Row<'a>> {
    let parts: Vec<&'a RawValue> = serde_json::from_str(raw.get()).ok()?;
    let number = serde_json::from_str(parts.first()?.get()).ok()?;
    let id: String = serde_json::from_str(parts.get(1)?.get()).ok()?;
    let fits = !id.is_empty() && id.chars().count() <= ID_CHARS_MAX;
    fits.then_some(Row { number, id, graph: parts.get(2)? })
}

/// What a graph needs.
fn needs(graph: &str, known: &Known) -> Needs {
    let resolved = workflow::parse(graph.as_bytes()).and_then(|graph| workflow::resolve(&graph, known));
    match resolved {
        Ok(resolution) => {
            let mut needs = Needs::default();
            for need in resolution.needs {
                if need.known { needs.models.push(need.model) } else { needs.unknown.push(need.model.to_string()) }
            }
            needs
        }
        Err(error) => Needs { unreadable: Some(error.to_string()), ..Needs::default() },
    }
}

/// What a queue makes the engine expect: each model at its nearest turn. The models of the next `ram_ahead` prompts are wanted in RAM.
#[must_use]
pub fn wants(queue: &Queue, ram_ahead: u32) -> Vec<Want> {
    let mut wants = Vec::new();
    for prompt in &queue.prompts {
        for (order, model) in (0..).zip(&prompt.needs.models) {
            let rank = Rank { position: prompt.position, order };
            wants.push(Want { model: model.clone(), rank, ram: prompt.position < ram_ahead });
        }
    }
    wants
}

/// The models of the prompts that wait, each once, in the order of their turn.
#[must_use]
pub fn next(queue: &Queue) -> Vec<ModelKey> {
    let mut next: Vec<ModelKey> = Vec::new();
    for prompt in queue.prompts.iter().filter(|prompt| prompt.position > 0).take(NEXT_PROMPTS_MAX) {
        for model in &prompt.needs.models {
            if !next.contains(model) {
                next.push(model.clone());
            }
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> ModelKey {
        ModelKey::parse(text).expect("a key")
    }

    fn known() -> Known {
        Known::of([(key("vae/a.safetensors"), 1), (key("vae/b.safetensors"), 1)])
    }

    fn row(number: i64, id: &str, vae: &str) -> serde_json::Value {
        let graph = serde_json::json!({ "1": { "class_type": "VAELoader", "inputs": { "vae_name": vae } } });
        serde_json::json!([number, id, graph, { "extra_pnginfo": { "workflow": {} } }, ["9"], {}])
    }

    fn body(running: &[serde_json::Value], pending: &[serde_json::Value]) -> Vec<u8> {
        serde_json::json!({ "queue_running": running, "queue_pending": pending }).to_string().into_bytes()
    }

    #[test]
    fn prompts_come_in_the_order_of_their_turn_and_those_in_front_first() {
        let pending =
            [row(7, "late", "a.safetensors"), row(-3, "front", "b.safetensors"), row(2, "early", "a.safetensors")];
        let queue =
            read(&body(&[row(1, "now", "b.safetensors")], &pending), &Memory::new(), &known()).expect("a queue");
        let order: Vec<(&str, u32)> =
            queue.prompts.iter().map(|prompt| (prompt.id.as_str(), prompt.position)).collect();
        assert_eq!(order, [("now", 0), ("front", 1), ("early", 2), ("late", 3)]);
        let wants = wants(&queue, 2);
        assert_eq!(wants.iter().map(|want| want.ram).collect::<Vec<_>>(), [true, true, false, false]);
        assert_eq!(wants[2].rank, Rank { position: 2, order: 0 });
    }

    #[test]
    fn a_recorded_queue_of_a_real_server_reads_with_the_prompt_put_in_front_first() {
        let recorded = include_bytes!("../../../comfyui/tests/recorded/queue_running_and_pending.json");
        let models = ["diffusion_models/tiny_sd3", "text_encoders/tiny_clip_l", "vae/tiny_tae", "loras/tiny_lora"];
        let known = Known::of(models.map(|model| (key(&format!("{model}.safetensors")), 1)));
        let queue = read(recorded, &Memory::new(), &known).expect("a queue");
        assert_eq!((queue.running, queue.malformed), (1, 0));
        assert!(queue.pending >= 2, "{queue:?}");
        for prompt in &queue.prompts {
            assert_eq!((prompt.needs.models.len(), &prompt.needs.unreadable), (4, &None), "{prompt:?}");
            assert_eq!(prompt.needs.models[0].folder(), "text_encoders", "in the order of use");
        }
        let body: serde_json::Value = serde_json::from_slice(recorded).expect("JSON");
        let pending = body["queue_pending"].as_array().expect("a list");
        let first = pending.iter().min_by(|a, b| a[0].as_f64().partial_cmp(&b[0].as_f64()).expect("numbers"));
        assert_eq!(queue.prompts[1].id, first.expect("one")[1].as_str().expect("an id"));
    }

    #[test]
    fn what_is_known_of_a_prompt_is_not_found_out_again() {
        let remembered = Arc::new(Needs { models: vec![key("vae/b.safetensors")], ..Needs::default() });
        let memory = Memory::from([("x".to_owned(), remembered.clone())]);
        let queue = read(&body(&[], &[row(1, "x", "a.safetensors")]), &memory, &known()).expect("a queue");
        assert!(Arc::ptr_eq(&queue.prompts[0].needs, &remembered));
    }

    #[test]
    fn malformed_rows_and_graphs_are_passed_over_and_the_others_count() {
        let rows = [
            serde_json::json!(null),
            serde_json::json!([1]),
            serde_json::json!(["1", "x", {}]),
            serde_json::json!([2, "", {}]),
            serde_json::json!([3, "odd", "no graph"]),
            row(4, "unknown", "nobody.safetensors"),
            row(5, "good", "a.safetensors"),
        ];
        let queue = read(&body(&[], &rows), &Memory::new(), &known()).expect("a queue");
        assert_eq!((queue.malformed, queue.pending, queue.prompts.len()), (4, 7, 3));
        assert!(queue.prompts[0].needs.unreadable.is_some());
        assert_eq!(queue.prompts[1].needs.unknown, ["vae/nobody.safetensors"]);
        assert_eq!(queue.prompts[2].needs.models, [key("vae/a.safetensors")]);
        for text in ["", "[]", "{}", "{\"queue_running\":{},\"queue_pending\":[]}", "{\"queue_running\":[", "\u{0}"] {
            assert!(read(text.as_bytes(), &Memory::new(), &known()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_queue_of_ten_megabytes_is_read_with_its_first_prompts() {
        let mut rows = Vec::new();
        for number in 0..2000 {
            let mut row = row(number, &format!("p{number}"), "a.safetensors");
            row[3] = "x".repeat(6 << 10).into();
            rows.push(row);
        }
        let body = body(&[], &rows);
        assert!(body.len() > 10 << 20);
        let queue = read(&body, &Memory::new(), &known()).expect("a queue");
        assert_eq!((queue.prompts.len(), queue.pending), (PROMPTS_MAX, 2000));
    }
}
