//! Which value of `widgets_values` belongs to which input. The document has the values in the order of the node's widgets,
//! and names only some of them; the rest is known for loaders, and otherwise stays a position.

use serde_json::Value;

use super::sheet::Drawn;
use crate::comfy::workflow::graph::Name;
use crate::comfy::workflow::loaders;

/// What the browser adds behind a seed.
const SEED_MODES: [&str; 5] = ["fixed", "increment", "decrement", "randomize", "increment-wrap"];

/// A node's values with their names, as far as they can be known.
pub(super) fn named<'a>(node: &Drawn<'a>) -> Vec<(Name<'a>, &'a Value)> {
    let values = match node.values {
        Some(Value::Object(values)) => return values.iter().map(|(name, value)| (Name::Named(name), value)).collect(),
        Some(Value::Array(values)) => values,
        _ => return Vec::new(),
    };
    if let Some(all) = complete(node, values) {
        return all;
    }
    let mut names: Vec<Name<'a>> = (0..values.len()).map(Name::Position).collect();
    for (place, (_, input, _)) in places(node, values).into_iter().zip(loaders::inputs(node.class)) {
        if let Some(place) = place {
            names[place] = Name::Named(input);
        }
    }
    names.into_iter().zip(values).collect()
}

/// Names for all values, if the node's inputs name all of its widgets.
fn complete<'a>(node: &Drawn<'a>, values: &'a [Value]) -> Option<Vec<(Name<'a>, &'a Value)>> {
    let mut all = Vec::with_capacity(values.len());
    let mut place = 0;
    for name in node.plugs.iter().filter_map(|plug| plug.widget) {
        let value = values.get(place)?;
        all.push((Name::Named(name), value));
        place += 1;
        let is_mode = |value: &Value| value.as_str().is_some_and(|text| SEED_MODES.contains(&text));
        if value.is_number() && values.get(place).is_some_and(is_mode) {
            all.push((Name::Position(place), &values[place]));
            place += 1;
        }
    }
    (place == values.len()).then_some(all)
}

/// Where a loader's inputs stand: in front, as in all of ComfyUI's own but a few; where no text stands in front, the texts
/// that look like models.
fn places(node: &Drawn<'_>, values: &[Value]) -> Vec<Option<usize>> {
    let inputs = loaders::inputs(node.class);
    if !inputs.is_empty() && values.len() >= inputs.len() && values[..inputs.len()].iter().all(Value::is_string) {
        return (0..inputs.len()).map(Some).collect();
    }
    let is_model = |(_, value): &(usize, &Value)| value.as_str().is_some_and(loaders::is_model_file);
    let mut models = values.iter().enumerate().filter(is_model).map(|(place, _)| place);
    inputs.iter().map(|_| models.next()).collect()
}
