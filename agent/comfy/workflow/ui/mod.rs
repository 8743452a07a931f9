//! The form that the browser saves: drawn nodes with positional values, links, and subgraphs that are defined once and used
//! by instances. Read leniently: what has an unexpected shape is passed over, never an error.
//!
//! | file | holds |
//! | --- | --- |
//! | `sheet` | one drawn graph: the document's own, or that of a subgraph |
//! | `scope` | instances opened: each use of a subgraph with the values that it gives |
//! | `follow` | where a link comes from, through instances, reroutes and bypassed nodes |
//! | `widgets` | which value belongs to which input |

mod follow;
mod scope;
mod sheet;
mod widgets;

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

use self::follow::Origin;
use self::scope::{Scope, Tree};
use self::sheet::{Drawn, Sheet};
use super::graph::{Feed, Field, Graph, Name, Node, Said};
use super::{EDGES_MAX, Form, Reached, loaders};

/// Classes that only the browser knows: they hold texts for people, or stand for what they are linked to.
const NOTES: [&str; 2] = ["Note", "MarkdownNote"];
const REROUTE: &str = "Reroute";
const PRIMITIVE: &str = "PrimitiveNode";
/// A widely used pair that stands for a link without a line: one takes it under a name, the other gives it by that name.
const SET: &str = "SetNode";
const GET: &str = "GetNode";

/// The graph of a drawn workflow.
pub(super) fn graph(document: &Map<String, Value>) -> Graph<'_> {
    let sheets = sheet::sheets(document);
    let tree = scope::open(&sheets);
    let mut graph = Graph {
        form: Form::Ui,
        nodes: Vec::with_capacity(tree.nodes.len()),
        unresolved: tree.unresolved.clone(),
        limits: tree.limits.clone(),
        listed: sheets.iter().flat_map(|sheet| &sheet.nodes).filter_map(|node| node.listed).collect(),
    };
    graph.listed.extend(document.get("models"));
    let mut edges_left = EDGES_MAX;
    for flat in &tree.nodes {
        let scope = &tree.scopes[flat.scope];
        let drawn = &sheets[scope.sheet].nodes[flat.drawn];
        let reader = Reader { sheets: &sheets, tree: &tree, scope: flat.scope, drawn };
        let mut node = Node {
            id: flat.id.clone(),
            class: drawn.class,
            idle: flat.idle,
            fields: vec![],
            feeds: vec![],
            listed: drawn.listed,
        };
        let cost = drawn.plugs.len() + drawn.values_len() + 1;
        match edges_left.checked_sub(cost) {
            Some(left) => {
                edges_left = left;
                node.feeds = reader.feeds();
                node.fields = reader.fields();
            }
            None => edges_left = 0,
        }
        graph.nodes.push(node);
    }
    if edges_left == 0 && !graph.limits.contains(&Reached::Edges) {
        graph.limits.push(Reached::Edges);
    }
    graph
}

/// All lists of models in a drawn workflow.
pub(super) fn listed(document: &Value) -> Vec<&Value> {
    let Some(document) = document.as_object() else { return Vec::new() };
    let sheets = sheet::sheets(document);
    let mut all: Vec<&Value> = sheets.iter().flat_map(|sheet| &sheet.nodes).filter_map(|node| node.listed).collect();
    all.extend(document.get("models"));
    all
}

/// Reads one node where it is used.
struct Reader<'r, 'a> {
    sheets: &'r [Sheet<'a>],
    tree: &'r Tree<'a>,
    scope: usize,
    drawn: &'r Drawn<'a>,
}

impl<'a> Reader<'_, 'a> {
    fn scope(&self) -> &Scope<'a> {
        &self.tree.scopes[self.scope]
    }

    fn feeds(&self) -> Vec<Feed<'a>> {
        let mut feeds = Vec::new();
        for plug in &self.drawn.plugs {
            let Some(link) = plug.link else { continue };
            if let (Origin::Node(from), kind) = follow::origin(self.sheets, self.tree, self.scope, link) {
                feeds.push(Feed { from, kind: if kind.is_empty() { plug.kind } else { kind } });
            }
        }
        feeds
    }

    fn fields(&self) -> Vec<Field<'a>> {
        let own = widgets::named(self.drawn);
        let links: HashMap<&str, i64> =
            self.drawn.plugs.iter().filter_map(|plug| Some((plug.widget.unwrap_or(plug.name), plug.link?))).collect();
        let mut fields: Vec<Field<'a>> = own
            .iter()
            .filter_map(|(name, value)| {
                let link = name.named().and_then(|name| links.get(name).copied());
                let said = self.said(*name, Some(value), link)?;
                Some(Field { name: *name, said })
            })
            .collect();
        // What is not written here under its name, but comes from elsewhere: by a link, or given by the instance around.
        let inputs = loaders::inputs(self.drawn.class).iter().map(|(_, input, _)| *input);
        let given = self.scope().names_given_to(&self.drawn.id);
        let names: BTreeSet<&'a str> = inputs.chain(links.keys().copied()).chain(given).collect();
        let here: HashSet<&str> = own.iter().filter_map(|(name, _)| name.named()).collect();
        for name in names {
            if !here.contains(name)
                && let Some(said) = self.said(Name::Named(name), None, links.get(name).copied())
            {
                fields.push(Field { name: Name::Named(name), said });
            }
        }
        fields
    }

    /// What an input says: what its link brings, else what the subgraph's instance gives it, else its own value.
    fn said(&self, name: Name<'a>, own: Option<&'a Value>, link: Option<i64>) -> Option<Said<'a>> {
        if let Some(link) = link {
            match follow::origin(self.sheets, self.tree, self.scope, link).0 {
                Origin::Value(value) => return holds_text(value).then_some(Said::Value(value)),
                Origin::Node(from) => return Some(Said::Node(from)),
                Origin::Inside | Origin::Nowhere => {}
            }
        }
        let given = name.named().and_then(|name| self.scope().given_to(&self.drawn.id, name));
        given.or(own).filter(|value| holds_text(value)).map(Said::Value)
    }
}

fn holds_text(value: &Value) -> bool {
    value.is_string() || value.is_object() || value.is_array()
}
