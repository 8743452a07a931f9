//! Where a link comes from: out of and into instances, through reroutes and bypassed nodes, up to a node that runs or a
//! value.

use serde_json::Value;

use super::scope::Tree;
use super::sheet::{Drawn, Sheet};
use super::{GET, PRIMITIVE, REROUTE};
use crate::comfy::workflow::Idle;

/// Most steps from one end of a link to its beginning. Links that go round end here.
const HOPS_MAX: usize = 64;
/// Most inputs of a bypassed node that are looked at for one that it hands on.
const PLUGS_MAX: usize = 256;

/// Where a link comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin<'a> {
    /// This node computes it.
    Node(usize),
    /// This is its value.
    Value(&'a Value),
    /// An instance could give a value, but gives none: what is written inside counts.
    Inside,
    /// It leads nowhere: to a muted node, or to nothing at all.
    Nowhere,
}

/// The origin of a link in a scope, and what flows there.
pub(super) fn origin<'a>(
    sheets: &[Sheet<'a>],
    tree: &Tree<'a>,
    mut scope: usize,
    mut id: i64,
) -> (Origin<'a>, &'a str) {
    let mut kind = "";
    for _ in 0..HOPS_MAX {
        let here = &tree.scopes[scope];
        let sheet = &sheets[here.sheet];
        let Some(link) = sheet.links.get(&id) else { return (Origin::Nowhere, kind) };
        if kind.is_empty() || kind == "*" {
            kind = link.kind;
        }
        if link.from == sheet.in_id && here.parent.is_some() {
            match outside(tree, scope, link.from_slot) {
                Ok((parent, outer)) => (scope, id) = (parent, outer),
                Err(origin) => return (origin, kind),
            }
            continue;
        }
        let Some(place) = sheet.places.get(&link.from).copied() else { return (Origin::Nowhere, kind) };
        let node = &sheet.nodes[place];
        let next = match node.idle {
            Some(Idle::Muted) => None,
            Some(Idle::Bypassed | Idle::Off) => past(node, link.from_slot, link.kind),
            None if node.class == REROUTE => node.plugs.first().and_then(|plug| plug.link),
            None if node.class == GET => match node.label().and_then(|label| taken(sheets, tree, scope, label)) {
                Some((at, link)) => {
                    scope = at;
                    Some(link)
                }
                None => None,
            },
            None if node.class == PRIMITIVE => {
                let value = node.values.and_then(|values| values.get(0));
                return (value.map_or(Origin::Nowhere, Origin::Value), kind);
            }
            None => match tree.children.get(&(scope, place)) {
                Some(&child) => {
                    scope = child;
                    sheets[tree.scopes[child].sheet].outs.get(&link.from_slot).copied()
                }
                None => {
                    let flat = tree.flat.get(&(scope, place));
                    return (flat.map_or(Origin::Nowhere, |flat| Origin::Node(*flat)), kind);
                }
            },
        };
        match next {
            Some(next) => id = next,
            None => return (Origin::Nowhere, kind),
        }
    }
    (Origin::Nowhere, kind)
}

/// The link that is taken under a name: in the same scope, else in those around it.
fn taken(sheets: &[Sheet<'_>], tree: &Tree<'_>, mut scope: usize, label: &str) -> Option<(usize, i64)> {
    loop {
        if let Some(link) = sheets[tree.scopes[scope].sheet].sets.get(label) {
            return Some((scope, *link));
        }
        (scope, _) = tree.scopes[scope].parent?;
    }
}

/// What comes into a scope at one place: the link outside, or what there is instead.
fn outside<'a>(tree: &Tree<'a>, scope: usize, slot: u64) -> Result<(usize, i64), Origin<'a>> {
    let here = &tree.scopes[scope];
    let slot = usize::try_from(slot).map_err(|_| Origin::Nowhere)?;
    let (parent, _) = here.parent.ok_or(Origin::Nowhere)?;
    let given = here.given.get(slot).ok_or(Origin::Nowhere)?;
    match (given.link, given.value) {
        (Some(outer), _) => Ok((parent, outer)),
        (None, Some(value)) => Err(Origin::Value(value)),
        (None, None) => Err(Origin::Inside),
    }
}

/// What a bypassed node hands on: its input of the same type, the one in the same place first.
fn past(node: &Drawn<'_>, slot: u64, kind: &str) -> Option<i64> {
    let fits = |plug: &&super::sheet::Plug<'_>| plug.kind == kind && plug.link.is_some();
    let same = usize::try_from(slot).ok().and_then(|slot| node.plugs.get(slot)).filter(fits);
    same.or_else(|| node.plugs.iter().take(PLUGS_MAX).find(fits)).and_then(|plug| plug.link)
}
