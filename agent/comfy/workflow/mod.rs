//! Which models a workflow needs, in the order of their use: ComfyUI's JSON in, needs out. Pure: no I/O, no clock; what
//! comes in is not trusted, so that every answer takes bounded time and memory.
//!
//! | file | holds |
//! | --- | --- |
//! | `document` | bytes to JSON within limits; JSON embedded in a PNG |
//! | `graph` | nodes, their inputs and edges, whatever form they came in |
//! | `api` | the form that `POST /prompt` takes, as a graph |
//! | `ui` | the form that the browser saves, as a graph: subgraphs opened, widgets named, links followed |
//! | `loaders` | which input of which class names a model, in which folder |
//! | `name` | a text to a model: by its full name, its file's name, or what the node says itself |
//! | `needs` | all nodes together: needs, what is idle, what is unresolved |
//! | `order` | who uses what first |

mod api;
mod document;
mod graph;
mod loaders;
mod name;
mod needs;
mod order;
mod ui;

use serde_json::Value;
use tierd_cache::engine::known::Known;
use tierd_cache::fault::Fault;
use tierd_cache::ids::ModelKey;

pub use document::{extract, parse, parse_within};

/// Most bytes of a workflow that are read, unless the caller has a limit of its own. The largest workflows known have two.
pub const BYTES_MAX: usize = 16 << 20;
/// Deepest nesting of JSON that is read. Workflows have about ten levels; a parser's stack has an end.
pub const DEPTH_MAX: usize = 100;
/// Most JSON values that are held at once: about 200 MB of memory in the worst case.
pub const VALUES_MAX: usize = 3_000_000;
/// Most nodes after subgraphs are opened: nested ones multiply.
pub const NODES_MAX: usize = 50_000;
/// Most links and inputs that are followed, for the same reason.
pub const EDGES_MAX: usize = 400_000;
/// Most bytes of text that are looked at, over all nodes: a subgraph's text counts for each of its instances.
pub const TEXT_BYTES_MAX: usize = 128 << 20;
/// Deepest nesting of subgraphs.
pub const SUBGRAPH_DEPTH_MAX: usize = 16;
/// Most needs; also most rows of what is idle and of what is unresolved.
pub const NEEDS_MAX: usize = 2048;
/// Most places told for one need.
pub const PLACES_MAX: usize = 16;
/// Most candidates told for one need.
pub const CANDIDATES_MAX: usize = 4;
/// Most characters of a text that are told.
pub const SHOWN_CHARS_MAX: usize = 300;

/// Why something is no workflow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkflowError {
    /// More bytes than are read.
    #[error("the workflow has {bytes} bytes, more than {max}: raise listen.workflow_bytes_max, or send less")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Nested deeper than is read.
    #[error("the workflow's JSON is nested deeper than {max} levels")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// More values than are held.
    #[error("the workflow's JSON holds more than {max} values")]
    TooManyValues {
        /// The limit.
        max: usize,
    },
    /// Not JSON.
    #[error("not JSON: {detail}")]
    NotJson {
        /// What the parser says, with line and column.
        detail: String,
    },
    /// JSON, but neither form of a workflow.
    #[error("no workflow: {why}; what is wanted is what ComfyUI saves (`nodes` and `links`) or exports for its API")]
    NotAWorkflow {
        /// What it is instead.
        why: &'static str,
    },
    /// A picture without a workflow in it.
    #[error("the PNG holds no workflow: {why}")]
    NotInPng {
        /// What is missing.
        why: &'static str,
    },
}

impl From<WorkflowError> for Fault {
    fn from(error: WorkflowError) -> Self {
        Self::Invalid { field: "workflow", reason: error.to_string() }
    }
}

/// The form that a workflow came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// What `POST /prompt` takes.
    Api,
    /// What the browser saves.
    Ui,
}

/// What a workflow needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// The form that it came in.
    pub form: Form,
    /// Nodes that were looked at, those of subgraphs included.
    pub nodes: usize,
    /// The models, each once, in the order of their first use.
    pub needs: Vec<Need>,
    /// Models that would be needed but for a switch: their nodes are muted or bypassed, or their entry is off. What is needed
    /// elsewhere in the workflow is not here.
    pub idle: Vec<IdleNeed>,
    /// What could not be resolved, and why.
    pub unresolved: Vec<Unresolved>,
    /// Limits that were reached: the answer is right as far as it goes.
    pub limits: Vec<Reached>,
}

impl Resolution {
    /// Whether nothing that the workflow is sure to need is missing from [`Self::needs`], and all of them are known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.limits.is_empty()
            && self.needs.iter().all(|need| need.known)
            && !self.unresolved.iter().any(|row| row.required)
    }
}

/// One model that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The model.
    pub model: ModelKey,
    /// Whether some origin or tier knows it. If not, an origin that cannot be listed may still have it.
    pub known: bool,
    /// How the model was found from what the workflow says.
    pub how: How,
    /// Who names it, at most [`PLACES_MAX`].
    pub places: Vec<Place>,
    /// Where it could be had, for models that nobody knows: what the workflow says itself.
    pub candidates: Vec<Candidate>,
}

/// A model that is named, but not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleNeed {
    /// What is named.
    pub need: Need,
    /// Why it is not used.
    pub why: Idle,
}

/// Why a model that is named is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Idle {
    /// Its node is muted (mode 2).
    Muted,
    /// Its node is bypassed (mode 4).
    Bypassed,
    /// Its entry in a list is switched off.
    Off,
}

/// How a model was found from what a workflow says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// The folder is the loader's, the name is the whole name below it. For unknown models: it would be called so.
    Loader,
    /// The folder is the loader's; the one file in it with that name, in another subfolder than the workflow says.
    LoaderFileName,
    /// The class is not known; the text is the whole name of a known model, with or without its folder.
    FullName,
    /// The class is not known; the text is the name of one known model's file.
    FileName,
    /// The class is not known, nor is the model; the node's own list of models names its folder.
    Listed,
    /// `embedding:NAME` in a text.
    Embedding,
    /// A short name that stands for several files, or for a folder of them.
    Set,
}

/// Where a workflow names something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The node's id; inside subgraphs with the ids of the instances before it: `12:3`.
    pub node: String,
    /// Its class.
    pub class: String,
    /// The input's name, or `widgets_values[2]` where the workflow tells no name.
    pub input: String,
    /// The text, cut to [`SHOWN_CHARS_MAX`] characters.
    pub text: String,
}

/// Where a model could be had, by what the workflow itself says (`properties.models`). Nothing of it was checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The file's name.
    pub name: String,
    /// The folder.
    pub directory: String,
    /// Where it could be downloaded; may be empty.
    pub url: String,
    /// Its digest; may be empty.
    pub hash: String,
    /// What kind of digest that is: `SHA256`; may be empty.
    pub hash_type: String,
}

/// Something that could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unresolved {
    /// Where.
    pub place: Place,
    /// Why.
    pub reason: Reason,
    /// Whether the workflow is sure to need it. If not, it only looks like a model.
    pub required: bool,
    /// Where it could be had, as the workflow says.
    pub candidates: Vec<Candidate>,
}

/// Why something could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// It looks like a model; its class is not in the loader table and no known model is called so.
    #[error("the class is not known, and no known model is called so")]
    UnknownClass,
    /// Several known models are called so.
    #[error("several models are called so: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// A loader's input says something that is no model's name.
    #[error("a model of {folder} is expected here, and this is the name of none")]
    NotAName {
        /// The loader's folder.
        folder: &'static str,
    },
    /// The value is computed by another node when the workflow runs.
    #[error("node {node} ({class}) computes the name when the workflow runs")]
    Computed {
        /// That node.
        node: String,
        /// Its class.
        class: String,
    },
    /// No known embedding is called so. ComfyUI goes on without it.
    #[error("no known embedding is called so; ComfyUI goes on without it")]
    UnknownEmbedding,
    /// A short name stands for files of which none is known.
    #[error("it stands for {0}, and no such file is known")]
    EmptySet(String),
    /// A subgraph's values could not be attributed to its inputs.
    #[error("the subgraph's {values} values do not match its {inputs} inputs: the values inside were taken")]
    InstanceValues {
        /// Values that the instance has.
        values: usize,
        /// Inputs that can hold one.
        inputs: usize,
    },
    /// A subgraph contains itself.
    #[error("the subgraph contains itself")]
    Cycle,
}

/// A limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reached {
    /// [`NODES_MAX`].
    #[error("more than {NODES_MAX} nodes: those behind were not looked at")]
    Nodes,
    /// [`EDGES_MAX`].
    #[error("more than {EDGES_MAX} links and inputs: those behind were not followed")]
    Edges,
    /// [`TEXT_BYTES_MAX`].
    #[error("more than {TEXT_BYTES_MAX} bytes of text: those behind were not looked at")]
    Text,
    /// [`SUBGRAPH_DEPTH_MAX`].
    #[error("subgraphs are nested deeper than {SUBGRAPH_DEPTH_MAX}: those below were not opened")]
    Depth,
    /// [`NEEDS_MAX`].
    #[error("more than {NEEDS_MAX} needs or unresolved names: those behind are left out")]
    Needs,
}

/// Resolves a workflow in either form, or in a wrapper: `{"prompt": …}` as `POST /prompt` takes it, `{"workflow": …}`.
///
/// `known` is what can be had. Without any ([`Known::default`]) the loader table alone decides, and every need is unknown.
///
/// # Errors
///
/// [`WorkflowError::NotAWorkflow`]. Whatever else is wrong with a workflow is part of the answer.
pub fn resolve(document: &Value, known: &Known) -> Result<Resolution, WorkflowError> {
    let graph = match open(document)? {
        Opened::Api(prompt, workflow) => api::graph(prompt, workflow),
        Opened::Ui(workflow) => ui::graph(workflow),
    };
    Ok(needs::collect(&graph, known))
}

enum Opened<'a> {
    Api(&'a serde_json::Map<String, Value>, Option<&'a Value>),
    Ui(&'a serde_json::Map<String, Value>),
}

/// Finds the workflow inside a document.
fn open(document: &Value) -> Result<Opened<'_>, WorkflowError> {
    let no = |why| Err(WorkflowError::NotAWorkflow { why });
    let Some(map) = document.as_object() else {
        return no("it is not a JSON object");
    };
    if map.get("nodes").is_some_and(Value::is_array) {
        return Ok(Opened::Ui(map));
    }
    if is_api(map) {
        return Ok(Opened::Api(map, None));
    }
    for name in ["prompt", "output"] {
        if let Some(prompt) = map.get(name).and_then(Value::as_object)
            && is_api(prompt)
        {
            let drawn = document.pointer("/extra_data/extra_pnginfo/workflow").or_else(|| map.get("workflow"));
            return Ok(Opened::Api(prompt, drawn));
        }
    }
    if let Some(drawn) = map.get("workflow").and_then(Value::as_object) {
        if drawn.get("nodes").is_some_and(Value::is_array) {
            return Ok(Opened::Ui(drawn));
        }
        if is_api(drawn) {
            return Ok(Opened::Api(drawn, None));
        }
    }
    if map.is_empty() {
        no("it is an empty object")
    } else {
        no("it has neither `nodes` nor entries with a `class_type`")
    }
}

fn is_api(map: &serde_json::Map<String, Value>) -> bool {
    map.values().any(|entry| entry.get("class_type").is_some_and(Value::is_string))
}

/// A text for people, cut to a bounded length.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
