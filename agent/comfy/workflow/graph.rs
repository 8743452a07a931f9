//! A workflow as a graph, whatever form it came in: nodes with what their inputs say, and who feeds whom. Borrows all text
//! from the document.

use serde_json::Value;

use super::{Form, Idle, Reached, Unresolved};

/// All nodes, subgraphs opened.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    pub(super) form: Form,
    pub(super) nodes: Vec<Node<'a>>,
    /// What was found wrong on the way.
    pub(super) unresolved: Vec<Unresolved>,
    pub(super) limits: Vec<Reached>,
    /// Lists of models (`properties.models`) of all nodes, stale ones included, and of the document itself.
    pub(super) listed: Vec<&'a Value>,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// Its id, with those of the subgraphs around it.
    pub(super) id: String,
    pub(super) class: &'a str,
    /// Why it does not run, if it does not.
    pub(super) idle: Option<Idle>,
    /// What its inputs say, those only that may hold a text.
    pub(super) fields: Vec<Field<'a>>,
    /// Who feeds it.
    pub(super) feeds: Vec<Feed<'a>>,
    /// Its own list of models.
    pub(super) listed: Option<&'a Value>,
}

/// What an input says.
#[derive(Debug)]
pub(super) struct Field<'a> {
    pub(super) name: Name<'a>,
    pub(super) said: Said<'a>,
}

/// An input's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name<'a> {
    Named(&'a str),
    /// The workflow tells only where it stands in `widgets_values`.
    Position(usize),
}

impl<'a> Name<'a> {
    /// The name, if there is one.
    pub(super) fn named(self) -> Option<&'a str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Position(_) => None,
        }
    }
}

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Position(index) => write!(f, "widgets_values[{index}]"),
        }
    }
}

/// Where an input's value comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Said<'a> {
    /// It is written here.
    Value(&'a Value),
    /// Another node gives it.
    Node(usize),
}

/// Who feeds a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Feed<'a> {
    /// The feeding node.
    pub(super) from: usize,
    /// What flows: the type of the link, or the name of the input where no type is told.
    pub(super) kind: &'a str,
}
