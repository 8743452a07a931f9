//! One drawn graph: its nodes, links, and, for a subgraph, what goes in and comes out.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::super::Idle;
use super::SET;

/// The id of the node that stands for what goes into a subgraph, unless it says otherwise; and of what comes out.
const IN: &str = "-10";
const OUT: &str = "-20";

/// A drawn graph.
#[derive(Debug)]
pub(super) struct Sheet<'a> {
    /// A subgraph's id; empty for the document's own.
    pub(super) id: &'a str,
    pub(super) nodes: Vec<Drawn<'a>>,
    /// Its nodes by their ids.
    pub(super) places: HashMap<String, usize>,
    pub(super) links: HashMap<i64, Link<'a>>,
    /// What goes in, in order.
    pub(super) slots: Vec<Slot<'a>>,
    /// Their places by their names; the first of two of one name.
    pub(super) slot_places: HashMap<&'a str, usize>,
    /// The link that comes out at each place.
    pub(super) outs: HashMap<u64, i64>,
    /// The id that stands for what goes in.
    pub(super) in_id: String,
    /// The links that are taken under a name.
    pub(super) sets: HashMap<&'a str, i64>,
}

/// A node as drawn.
#[derive(Debug)]
pub(super) struct Drawn<'a> {
    pub(super) id: String,
    pub(super) class: &'a str,
    pub(super) idle: Option<Idle>,
    pub(super) plugs: Vec<Plug<'a>>,
    /// `widgets_values`: a list by position, or an object by name.
    pub(super) values: Option<&'a Value>,
    /// `properties.proxyWidgets`.
    pub(super) proxies: Option<&'a Value>,
    /// `properties.models`.
    pub(super) listed: Option<&'a Value>,
}

impl<'a> Drawn<'a> {
    /// Its first value, as a text.
    pub(super) fn label(&self) -> Option<&'a str> {
        self.values.and_then(|values| values.get(0)).and_then(Value::as_str)
    }

    /// How many values it has.
    pub(super) fn values_len(&self) -> usize {
        match self.values {
            Some(Value::Array(values)) => values.len(),
            Some(Value::Object(values)) => values.len(),
            _ => 0,
        }
    }
}

/// An input of a node, where a link can end.
#[derive(Debug)]
pub(super) struct Plug<'a> {
    pub(super) name: &'a str,
    /// The widget that it stands for, if it does.
    pub(super) widget: Option<&'a str>,
    pub(super) kind: &'a str,
    pub(super) link: Option<i64>,
}

/// A link.
#[derive(Debug)]
pub(super) struct Link<'a> {
    pub(super) from: String,
    pub(super) from_slot: u64,
    pub(super) to: String,
    pub(super) to_slot: u64,
    pub(super) kind: &'a str,
}

/// Something that goes into a subgraph.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    pub(super) name: &'a str,
    /// Whether it ends at a widget inside, so that an instance can have a value for it.
    pub(super) is_widget: bool,
}

/// The document's own sheet, then those of its subgraphs.
pub(super) fn sheets(document: &Map<String, Value>) -> Vec<Sheet<'_>> {
    let definitions = document.get("definitions").and_then(|definitions| definitions.get("subgraphs"));
    let subgraphs = definitions.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object);
    std::iter::once(document).chain(subgraphs).map(sheet).collect()
}

fn sheet(map: &Map<String, Value>) -> Sheet<'_> {
    let list = |name: &str| map.get(name).and_then(Value::as_array).into_iter().flatten();
    let nodes: Vec<Drawn<'_>> = list("nodes").filter_map(drawn).collect();
    let links: HashMap<i64, Link<'_>> = list("links").filter_map(link).collect();
    let edge = |name: &str, usual: &str| map.get(name).and_then(|edge| id(edge.get("id")?)).unwrap_or(usual.to_owned());
    let (in_id, out_id) = (edge("inputNode", IN), edge("outputNode", OUT));
    let places: HashMap<String, usize> =
        nodes.iter().enumerate().map(|(place, node)| (node.id.clone(), place)).collect();
    let widget_slots = widget_slots(&nodes, &places, &links, &in_id);
    let slots = list("inputs").enumerate().map(|(index, slot)| {
        let typed = matches!(text(slot, "type"), "STRING" | "INT" | "FLOAT" | "BOOLEAN" | "COMBO");
        // With no link inside, only the type tells.
        Slot { name: text(slot, "name"), is_widget: widget_slots.get(&(index as u64)).copied().unwrap_or(typed) }
    });
    let slots: Vec<Slot<'_>> = slots.collect();
    let slot_places = slots.iter().enumerate().rev().map(|(place, slot)| (slot.name, place)).collect();
    let outs = links.iter().filter(|(_, link)| link.to == out_id).map(|(id, link)| (link.to_slot, *id));
    let sets = nodes.iter().filter(|node| node.class == SET && node.idle.is_none()).filter_map(set).collect();
    Sheet {
        sets,
        id: map.get("id").and_then(Value::as_str).unwrap_or_default(),
        slots,
        slot_places,
        outs: outs.collect(),
        nodes,
        places,
        links,
        in_id,
    }
}

/// The link that a node takes under a name.
fn set<'a>(node: &Drawn<'a>) -> Option<(&'a str, i64)> {
    Some((node.label()?, node.plugs.first()?.link?))
}

/// For each thing that goes in and is used: whether it ends at a widget.
fn widget_slots(
    nodes: &[Drawn<'_>],
    places: &HashMap<String, usize>,
    links: &HashMap<i64, Link<'_>>,
    in_id: &str,
) -> HashMap<u64, bool> {
    let mut slots = HashMap::new();
    for link in links.values().filter(|link| link.from == in_id) {
        let Some(node) = places.get(&link.to).map(|place| &nodes[*place]) else { continue };
        let Some(plug) = usize::try_from(link.to_slot).ok().and_then(|slot| node.plugs.get(slot)) else { continue };
        *slots.entry(link.from_slot).or_insert(false) |= plug.widget.is_some();
    }
    slots
}

fn drawn(node: &Value) -> Option<Drawn<'_>> {
    let properties = node.get("properties");
    let idle = match node.get("mode").and_then(Value::as_i64) {
        Some(2) => Some(Idle::Muted),
        Some(4) => Some(Idle::Bypassed),
        _ => None,
    };
    Some(Drawn {
        id: id(node.get("id")?)?,
        class: node.get("type")?.as_str()?,
        idle,
        plugs: node.get("inputs").and_then(Value::as_array).into_iter().flatten().map(plug).collect(),
        values: node.get("widgets_values"),
        proxies: properties.and_then(|properties| properties.get("proxyWidgets")),
        listed: properties.and_then(|properties| properties.get("models")),
    })
}

fn plug(plug: &Value) -> Plug<'_> {
    Plug {
        name: text(plug, "name"),
        widget: plug.get("widget").and_then(|widget| widget.get("name")).and_then(Value::as_str),
        kind: text(plug, "type"),
        link: plug.get("link").and_then(Value::as_i64),
    }
}

/// A link is a list in documents of the older form, an object in newer ones and in subgraphs.
fn link(link: &Value) -> Option<(i64, Link<'_>)> {
    let part = |index: usize, name: &str| link.get(index).or_else(|| link.get(name));
    let slot = |value: &Value| value.as_u64();
    Some((
        part(0, "id")?.as_i64()?,
        Link {
            from: id(part(1, "origin_id")?)?,
            from_slot: part(2, "origin_slot").and_then(slot)?,
            to: id(part(3, "target_id")?)?,
            to_slot: part(4, "target_slot").and_then(slot)?,
            kind: part(5, "type").and_then(Value::as_str).unwrap_or_default(),
        },
    ))
}

/// Ids are numbers, or texts in some extensions' nodes.
pub(super) fn id(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.chars().take(64).collect()),
        _ => None,
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}
