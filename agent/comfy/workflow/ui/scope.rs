//! Subgraphs opened: each instance of one is a scope of its own, with the values that it gives. Nested ones multiply, and
//! may contain themselves: nodes and depth are bounded, and a circle is told.

use std::collections::HashMap;

use serde_json::Value;

use super::sheet::{Drawn, Sheet};
use super::{GET, NOTES, PRIMITIVE, REROUTE, SET};
use crate::comfy::workflow::{
    EDGES_MAX, Idle, NODES_MAX, Place, Reached, Reason, SUBGRAPH_DEPTH_MAX, Unresolved, shown,
};

/// Most rows about instances that are told.
const UNRESOLVED_MAX: usize = 256;
/// The node id by which a proxy names the instance itself.
const OWN: &str = "-1";

/// All scopes and the nodes in them.
#[derive(Debug, Default)]
pub(super) struct Tree<'a> {
    /// The document's own first.
    pub(super) scopes: Vec<Scope<'a>>,
    pub(super) nodes: Vec<Flat>,
    /// The scope that an instance opened: by the scope and the place in its sheet.
    pub(super) children: HashMap<(usize, usize), usize>,
    /// Each node: by its scope and its place in the sheet.
    pub(super) flat: HashMap<(usize, usize), usize>,
    pub(super) unresolved: Vec<Unresolved>,
    pub(super) limits: Vec<Reached>,
}

/// What an instance gives to one thing that goes in.
#[derive(Debug, Default, Clone)]
pub(super) struct Given<'a> {
    /// The link that ends there, in the scope around.
    pub(super) link: Option<i64>,
    /// Its value, without a link.
    pub(super) value: Option<&'a Value>,
}

/// One use of a sheet.
#[derive(Debug, Default)]
pub(super) struct Scope<'a> {
    pub(super) sheet: usize,
    /// The scope around it, and its instance's place there.
    pub(super) parent: Option<(usize, usize)>,
    /// Ids of the instances around it, each with a colon.
    prefix: String,
    idle: Option<Idle>,
    depth: usize,
    /// What the instance gives each thing that goes in.
    pub(super) given: Vec<Given<'a>>,
    /// What it gives to inner nodes directly: by their ids, then by input.
    proxied: HashMap<&'a str, HashMap<&'a str, &'a Value>>,
}

impl<'a> Scope<'a> {
    /// What the instance around gives an inner node's input directly.
    pub(super) fn given_to(&self, node: &str, input: &str) -> Option<&'a Value> {
        self.proxied.get(node)?.get(input).copied()
    }

    /// The inputs of an inner node to which the instance around gives something directly.
    pub(super) fn names_given_to(&self, node: &str) -> impl Iterator<Item = &'a str> {
        self.proxied.get(node).into_iter().flat_map(|given| given.keys().copied())
    }
}

/// A node where it is used.
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) id: String,
    pub(super) scope: usize,
    pub(super) drawn: usize,
    pub(super) idle: Option<Idle>,
}

/// Opens the document's sheet, the first, and all instances in it.
pub(super) fn open<'a>(sheets: &[Sheet<'a>]) -> Tree<'a> {
    // The first of two with one id counts, as in the browser.
    let mut subgraphs: HashMap<&str, usize> = HashMap::new();
    for (index, sheet) in sheets.iter().enumerate().skip(1).filter(|(_, sheet)| !sheet.id.is_empty()) {
        subgraphs.entry(sheet.id).or_insert(index);
    }
    let mut opener = Opener { sheets, subgraphs, tree: Tree::default(), left: EDGES_MAX };
    opener.tree.scopes.push(Scope::default());
    opener.scope(0);
    opener.tree
}

struct Opener<'o, 'a> {
    sheets: &'o [Sheet<'a>],
    subgraphs: HashMap<&'a str, usize>,
    tree: Tree<'a>,
    /// Nodes, inputs and values that may still be looked at.
    left: usize,
}

impl<'a> Opener<'_, 'a> {
    /// Takes a scope's nodes, those of its instances in their places. Recurses as deep as [`SUBGRAPH_DEPTH_MAX`].
    fn scope(&mut self, scope: usize) {
        let sheets = self.sheets;
        let (sheet, idle, depth) = {
            let scope = &self.tree.scopes[scope];
            (scope.sheet, scope.idle, scope.depth)
        };
        for (place, drawn) in sheets[sheet].nodes.iter().enumerate() {
            let is_instance = self.subgraphs.get(drawn.class);
            let inputs =
                is_instance.map_or(0, |inner| sheets[*inner].slots.len() + drawn.plugs.len() + drawn.values_len());
            match self.left.checked_sub(1 + inputs) {
                Some(left) => self.left = left,
                None => {
                    self.left = 0;
                    return self.reached(Reached::Edges);
                }
            }
            let idle = idle.or(drawn.idle);
            let id = format!("{}{}", self.tree.scopes[scope].prefix, drawn.id);
            if let Some(&inner) = self.subgraphs.get(drawn.class) {
                if depth == SUBGRAPH_DEPTH_MAX {
                    self.reached(Reached::Depth);
                } else if self.is_inside(scope, inner) {
                    self.tell(&id, drawn, Reason::Cycle);
                } else if self.tree.scopes.len() >= NODES_MAX {
                    self.reached(Reached::Nodes);
                } else {
                    self.instance((scope, place), drawn, inner, idle, id);
                }
                continue;
            }
            if NOTES.contains(&drawn.class) || [REROUTE, PRIMITIVE, SET, GET].contains(&drawn.class) {
                continue;
            }
            if self.tree.nodes.len() >= NODES_MAX {
                self.reached(Reached::Nodes);
                return;
            }
            self.tree.flat.insert((scope, place), self.tree.nodes.len());
            self.tree.nodes.push(Flat { id, scope, drawn: place, idle });
        }
    }

    fn instance(&mut self, at: (usize, usize), drawn: &Drawn<'a>, inner: usize, idle: Option<Idle>, id: String) {
        let mut scope = Scope {
            sheet: inner,
            parent: Some(at),
            prefix: format!("{id}:"),
            idle,
            depth: self.tree.scopes[at.0].depth + 1,
            given: vec![Given::default(); self.sheets[inner].slots.len()],
            proxied: HashMap::new(),
        };
        if let Err(reason) = give(drawn, &self.sheets[inner], &mut scope) {
            self.tell(&id, drawn, reason);
        }
        // What is given to this instance by the one around it, through a proxy.
        for (slot, given) in self.sheets[inner].slots.iter().zip(&mut scope.given) {
            given.value = self.tree.scopes[at.0].given_to(&drawn.id, slot.name).or(given.value);
        }
        for plug in drawn.plugs.iter().filter(|plug| plug.link.is_some()) {
            if let Some(slot) = self.sheets[inner].slot_places.get(plug.name) {
                scope.given[*slot].link = plug.link;
            }
        }
        let child = self.tree.scopes.len();
        self.tree.scopes.push(scope);
        self.tree.children.insert(at, child);
        self.scope(child);
    }

    /// Whether a scope lies in a use of that sheet.
    fn is_inside(&self, mut scope: usize, sheet: usize) -> bool {
        loop {
            if self.tree.scopes[scope].sheet == sheet {
                return true;
            }
            match self.tree.scopes[scope].parent {
                Some((parent, _)) => scope = parent,
                None => return false,
            }
        }
    }

    fn reached(&mut self, limit: Reached) {
        if !self.tree.limits.contains(&limit) {
            self.tree.limits.push(limit);
        }
    }

    fn tell(&mut self, id: &str, drawn: &Drawn<'_>, reason: Reason) {
        if self.tree.unresolved.len() < UNRESOLVED_MAX {
            let (node, class) = (id.to_owned(), shown(drawn.class));
            let place = Place { node, class, input: "widgets_values".to_owned(), text: String::new() };
            self.tree.unresolved.push(Unresolved { place, reason, required: false, candidates: Vec::new() });
        }
    }
}

/// Attributes an instance's values. They belong to its proxies, where it has as many; else to what goes in and can hold a
/// value, in order.
fn give<'a>(drawn: &Drawn<'a>, sheet: &Sheet<'a>, scope: &mut Scope<'a>) -> Result<(), Reason> {
    let by_name = |scope: &mut Scope<'a>, name: &str, value: &'a Value| {
        if let Some(slot) = sheet.slot_places.get(name) {
            scope.given[*slot].value = Some(value).filter(|value| !value.is_null());
        }
    };
    let values = match drawn.values {
        Some(Value::Array(values)) if !values.is_empty() => values,
        Some(Value::Object(values)) => {
            for (name, value) in values {
                by_name(scope, name, value);
            }
            return Ok(());
        }
        _ => return Ok(()),
    };
    let proxies = drawn.proxies.and_then(Value::as_array).filter(|proxies| !proxies.is_empty());
    if let Some(proxies) = proxies
        && proxies.len() == values.len()
    {
        for (proxy, value) in proxies.iter().zip(values).filter(|(_, value)| !value.is_null()) {
            let (Some(Value::String(node)), Some(Value::String(input))) = (proxy.get(0), proxy.get(1)) else {
                continue;
            };
            if node == OWN {
                by_name(scope, input, value);
            } else {
                scope.proxied.entry(node).or_default().insert(input, value);
            }
        }
        return Ok(());
    }
    let holders: Vec<usize> = (0..sheet.slots.len()).filter(|slot| sheet.slots[*slot].is_widget).collect();
    if holders.len() == values.len() {
        for (slot, value) in holders.into_iter().zip(values) {
            scope.given[slot].value = Some(value).filter(|value| !value.is_null());
        }
        return Ok(());
    }
    // Values without a model among them do not matter here.
    let names_model = |value: &Value| value.as_str().is_some_and(crate::comfy::workflow::loaders::is_model_file);
    if values.iter().any(names_model) {
        return Err(Reason::InstanceValues { values: values.len(), inputs: holders.len() });
    }
    Ok(())
}
