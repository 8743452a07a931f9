//! All nodes together: each input's text becomes a need, an idle need or something unresolved; each model once, in the order
//! of its first use.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tierd_cache::engine::known::Known;
use tierd_cache::ids::{ModelKey, canonical_folder};

use super::graph::{Field, Graph, Name, Node, Said};
use super::name::{self, Meaning};
use super::{
    CANDIDATES_MAX, Candidate, How, Idle, IdleNeed, NEEDS_MAX, Need, PLACES_MAX, Place, Reached, Reason, Resolution,
    TEXT_BYTES_MAX, Unresolved, loaders, order, shown,
};

/// Deepest nesting of objects inside one input that is looked into: lists of switchable entries have two.
const INSIDE_DEPTH_MAX: usize = 6;
/// Most nodes that a value is followed through.
const HOPS_MAX: usize = 16;
/// Most inputs of a node that are looked at to see whether it only hands a text on.
const LITERAL_FIELDS_MAX: usize = 64;

/// Where a need stands: first use, rank of its folder, place in the workflow.
type Turn = (u32, u8, usize);

struct Row {
    turn: Turn,
    need: Need,
}

struct Collector<'a> {
    graph: &'a Graph<'a>,
    known: &'a Known,
    uses: Vec<u32>,
    candidates: Vec<Candidate>,
    needs: BTreeMap<ModelKey, Row>,
    idle: BTreeMap<(ModelKey, Idle), Row>,
    unresolved: Vec<Unresolved>,
    limits: BTreeSet<Reached>,
    seen: usize,
    /// Bytes of text that may still be looked at.
    text_left: usize,
}

/// What a graph needs.
pub(super) fn collect(graph: &Graph<'_>, known: &Known) -> Resolution {
    let mut all = Collector {
        graph,
        known,
        uses: order::first_uses(graph),
        candidates: candidates(graph),
        needs: BTreeMap::new(),
        idle: BTreeMap::new(),
        unresolved: graph.unresolved.clone(),
        limits: graph.limits.iter().copied().collect(),
        seen: 0,
        text_left: TEXT_BYTES_MAX,
    };
    let given = given(graph);
    for (index, node) in graph.nodes.iter().enumerate() {
        for field in &node.fields {
            all.field(index, node, field, given[index]);
        }
    }
    all.finish()
}

/// Nodes whose value a loader takes: it is told with the loader, not once more with them.
fn given(graph: &Graph<'_>) -> Vec<bool> {
    let mut given = vec![false; graph.nodes.len()];
    for node in &graph.nodes {
        for field in &node.fields {
            if let Said::Node(from) = field.said
                && is_loader_input(node, field.name)
                && let Some((index, _)) = literal(graph, from)
            {
                given[index] = true;
            }
        }
    }
    given
}

fn is_loader_input(node: &Node<'_>, name: Name<'_>) -> bool {
    name.named().is_some_and(|name| loaders::folder(node.class, name).is_some())
}

/// The one text that a node hands on, and the node that has it: such nodes hold a text and nothing else.
fn literal<'a>(graph: &'a Graph<'_>, mut node: usize) -> Option<(usize, &'a Value)> {
    for _ in 0..HOPS_MAX {
        let from = &graph.nodes[node];
        if !loaders::inputs(from.class).is_empty() {
            return None;
        }
        let mut texts = from
            .fields
            .iter()
            .take(LITERAL_FIELDS_MAX)
            .filter(|field| !matches!(field.said, Said::Value(value) if !value.is_string()));
        let (Some(only), None) = (texts.next(), texts.next()) else { return None };
        match only.said {
            Said::Value(value) => return Some((node, value)),
            Said::Node(further) => node = further,
        }
    }
    None
}

impl Collector<'_> {
    fn field(&mut self, index: usize, node: &Node<'_>, field: &Field<'_>, given: bool) {
        let value = match field.said {
            Said::Value(value) => value,
            Said::Node(from) => {
                if !is_loader_input(node, field.name) {
                    return;
                }
                match literal(self.graph, from) {
                    Some((_, value)) => value,
                    None => return self.computed(index, node, field.name, from),
                }
            }
        };
        let mut inside = Inside { found: Vec::new(), left: self.text_left };
        let is_whole = inside.look(value, &mut String::new(), None, INSIDE_DEPTH_MAX).is_some();
        self.text_left = inside.left;
        if !is_whole {
            self.limits.insert(Reached::Text);
        }
        for (path, text, off) in inside.found {
            let place = Place {
                node: node.id.clone(),
                class: shown(node.class),
                input: shown(&format!("{}{path}", field.name)),
                text: shown(text),
            };
            let idle = node.idle.or(off);
            // Named by its own input: `lora_1.lora` is a `lora`.
            let last = path.rsplit('.').next().filter(|last| !last.is_empty());
            let input = last.or(field.name.named());
            // Some extensions wrap the choice of a drop-down.
            let folder = field.name.named().filter(|_| path.is_empty() || path == ".content");
            let folder = folder.and_then(|name| loaders::folder(node.class, name).map(|folder| (name, folder)));
            let meaning = match folder {
                Some((name, folder)) => name::of_loader(node.class, name, folder, text, self.known),
                None if given => Meaning::Nothing,
                None => name::of_unknown(input, text, node.listed, self.known),
            };
            self.meant(index, &place, idle, meaning);
            for embedding in name::embeddings(text) {
                let place = Place { text: shown(&format!("embedding:{embedding}")), ..place.clone() };
                self.meant(index, &place, idle, name::of_embedding(embedding, self.known));
            }
        }
    }

    fn computed(&mut self, index: usize, node: &Node<'_>, name: Name<'_>, from: usize) {
        let by = &self.graph.nodes[from];
        let place = Place {
            node: node.id.clone(),
            class: shown(node.class),
            input: shown(&name.to_string()),
            text: String::new(),
        };
        let reason = Reason::Computed { node: by.id.clone(), class: shown(by.class) };
        self.meant(index, &place, node.idle, Meaning::Open { reason, required: true });
    }

    /// Takes down what a text means.
    fn meant(&mut self, index: usize, place: &Place, idle: Option<Idle>, meaning: Meaning) {
        match meaning {
            Meaning::Nothing => {}
            Meaning::Open { reason, required } => {
                // What does not run needs nothing.
                if idle.is_some() || !self.counts() {
                    return;
                }
                let candidates = self.candidates_for(None, &place.text);
                self.unresolved.push(Unresolved { place: place.clone(), reason, required, candidates });
            }
            Meaning::Models(models, how) => {
                for model in models {
                    self.need(index, place, idle, model, how);
                }
            }
        }
    }

    fn need(&mut self, index: usize, place: &Place, idle: Option<Idle>, model: ModelKey, how: How) {
        let turn = (self.uses[index], order::rank(model.folder()), index);
        let row = match idle {
            None => self.needs.get_mut(&model),
            Some(why) => self.idle.get_mut(&(model.clone(), why)),
        };
        if let Some(row) = row {
            row.turn = row.turn.min(turn);
            if row.need.places.len() < PLACES_MAX && !row.need.places.contains(place) {
                row.need.places.push(place.clone());
            }
            return;
        }
        if !self.counts() {
            return;
        }
        let known = self.known.contains(&model);
        let candidates = if known { Vec::new() } else { self.candidates_for(Some(model.folder()), model.base()) };
        let need = Need { model: model.clone(), known, how, places: vec![place.clone()], candidates };
        let row = Row { turn, need };
        match idle {
            None => self.needs.insert(model, row),
            Some(why) => self.idle.insert((model, why), row),
        };
    }

    /// Whether one more row may be told.
    fn counts(&mut self) -> bool {
        self.seen += 1;
        if self.seen > NEEDS_MAX {
            self.limits.insert(Reached::Needs);
        }
        self.seen <= NEEDS_MAX
    }

    /// What the workflow says about a file of this name, in this folder if one is given.
    fn candidates_for(&self, folder: Option<&str>, text: &str) -> Vec<Candidate> {
        let base = text.rsplit(['/', '\\']).next().unwrap_or(text);
        let start = self.candidates.partition_point(|candidate| candidate.name.as_str() < base);
        let named = self.candidates[start..].iter().take_while(|candidate| candidate.name == base);
        let fits = |candidate: &&Candidate| {
            let listed = candidate.directory.split('/').next().unwrap_or_default();
            folder.is_none_or(|folder| listed.is_empty() || canonical_folder(listed) == folder)
        };
        named.filter(fits).take(CANDIDATES_MAX).cloned().collect()
    }

    fn finish(self) -> Resolution {
        let by_turn = |rows: Vec<Row>| {
            let mut rows = rows;
            rows.sort_by(|a, b| (a.turn, &a.need.model).cmp(&(b.turn, &b.need.model)));
            rows
        };
        let needs = &self.needs;
        let idle = self.idle.into_iter().filter(|((model, _), _)| !needs.contains_key(model));
        let mut idle: Vec<(Turn, IdleNeed)> =
            idle.map(|((_, why), row)| (row.turn, IdleNeed { need: row.need, why })).collect();
        idle.sort_by(|(a, left), (b, right)| (a, &left.need.model, left.why).cmp(&(b, &right.need.model, right.why)));
        Resolution {
            form: self.graph.form,
            nodes: self.graph.nodes.len(),
            needs: by_turn(self.needs.into_values().collect()).into_iter().map(|row| row.need).collect(),
            idle: idle.into_iter().map(|(_, need)| need).collect(),
            unresolved: self.unresolved,
            limits: self.limits.into_iter().collect(),
        }
    }
}

/// The texts inside a value: where, what, and whether its entry is switched off.
struct Inside<'a> {
    found: Vec<(String, &'a str, Option<Idle>)>,
    /// Bytes that may still be looked at.
    left: usize,
}

impl<'a> Inside<'a> {
    /// Looks into a value. `None` if there was more than may be looked at: one value of a subgraph counts for each of its
    /// instances.
    fn look(&mut self, value: &'a Value, path: &mut String, off: Option<Idle>, depth: usize) -> Option<()> {
        let length = path.len();
        self.left = self.left.checked_sub(1 + length + value.as_str().map_or(0, str::len))?;
        match value {
            Value::String(text) => self.found.push((path.clone(), text, off)),
            Value::Array(items) if depth > 0 => {
                for (index, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{index}]"));
                    self.look(item, path, off, depth - 1)?;
                    path.truncate(length);
                }
            }
            Value::Object(entries) if depth > 0 => {
                let switch = ["on", "enabled", "active"].iter().find_map(|name| entries.get(*name)?.as_bool());
                let off = if switch == Some(false) { Some(Idle::Off) } else { off };
                for (name, item) in entries {
                    path.push('.');
                    path.extend(name.chars().take(64));
                    self.look(item, path, off, depth - 1)?;
                    path.truncate(length);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {}
        }
        Some(())
    }
}

/// Everything that the workflow says about where models could be had, sorted, each once.
fn candidates(graph: &Graph<'_>) -> Vec<Candidate> {
    let text = |row: &Value, name: &str| row.get(name).and_then(Value::as_str).map(shown).unwrap_or_default();
    let rows = graph.listed.iter().filter_map(|list| list.as_array()).flatten().filter(|row| row.is_object());
    let candidate = |row: &Value| Candidate {
        name: text(row, "name").rsplit(['/', '\\']).next().unwrap_or_default().to_owned(),
        directory: text(row, "directory"),
        url: text(row, "url"),
        hash: text(row, "hash"),
        hash_type: text(row, "hash_type"),
    };
    let named = rows.map(candidate).filter(|candidate| !candidate.name.is_empty());
    named.take(NEEDS_MAX).collect::<BTreeSet<_>>().into_iter().collect()
}
