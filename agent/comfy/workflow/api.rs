//! The form that `POST /prompt` takes: an object of nodes by id, each with a `class_type` and its inputs by name, where
//! `[id, slot]` is a link. There are no subgraphs and no muted nodes in it: the browser has resolved them.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Map, Value};

use super::graph::{Feed, Field, Graph, Name, Node, Said};
use super::{EDGES_MAX, Form, NODES_MAX, Reached, ui};

/// The graph of a prompt. `drawn` is the browser's form of the same, if it came along: its lists of models are used.
pub(super) fn graph<'a>(prompt: &'a Map<String, Value>, drawn: Option<&'a Value>) -> Graph<'a> {
    let mut limits = Vec::new();
    let mut entries: Vec<(&str, &Map<String, Value>, &str)> = prompt
        .iter()
        .filter_map(|(id, entry)| {
            let entry = entry.as_object()?;
            Some((id.as_str(), entry, entry.get("class_type")?.as_str()?))
        })
        .collect();
    entries.sort_by(|(a, ..), (b, ..)| by_number(a, b));
    if entries.len() > NODES_MAX {
        entries.truncate(NODES_MAX);
        limits.push(Reached::Nodes);
    }
    let places: HashMap<&str, usize> = entries.iter().enumerate().map(|(index, (id, ..))| (*id, index)).collect();
    let mut edges_left = EDGES_MAX;
    let mut nodes = Vec::with_capacity(entries.len());
    for (id, entry, class) in entries {
        let mut node =
            Node { id: id.to_owned(), class, idle: None, fields: Vec::new(), feeds: Vec::new(), listed: None };
        node.listed = entry.get("properties").and_then(|properties| properties.get("models"));
        for (name, value) in entry.get("inputs").and_then(Value::as_object).into_iter().flatten() {
            let Some(left) = edges_left.checked_sub(1) else { break };
            edges_left = left;
            let said = match link(value, &places) {
                Some(from) => {
                    node.feeds.push(Feed { from, kind: kind(name) });
                    Said::Node(from)
                }
                None if value.is_string() || value.is_object() || value.is_array() => Said::Value(value),
                None => continue,
            };
            node.fields.push(Field { name: Name::Named(name), said });
        }
        nodes.push(node);
    }
    if edges_left == 0 {
        limits.push(Reached::Edges);
    }
    let mut listed: Vec<&Value> = nodes.iter().filter_map(|node: &Node<'_>| node.listed).collect();
    listed.extend(drawn.map(ui::listed).into_iter().flatten());
    Graph { form: Form::Api, nodes, unresolved: Vec::new(), limits, listed }
}

/// The node that a link leads to, if the value is one.
fn link(value: &Value, places: &HashMap<&str, usize>) -> Option<usize> {
    let [from, slot] = value.as_array()?.as_slice() else { return None };
    slot.as_u64()?;
    match from {
        Value::String(id) => places.get(id.as_str()).copied(),
        Value::Number(id) => places.get(id.to_string().as_str()).copied(),
        _ => None,
    }
}

/// What flows into an input, as far as its name tells: `model1` and `model` take the same.
fn kind(input: &str) -> &str {
    input.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '_')
}

/// Ids are numbers in texts, with colons inside subgraphs: 3, 20, 20:1.
fn by_number(a: &str, b: &str) -> Ordering {
    let parts = |id: &str| id.split(':').map(|part| part.parse::<u64>().unwrap_or(u64::MAX)).collect::<Vec<_>>();
    parts(a).cmp(&parts(b)).then_with(|| a.cmp(b))
}
