//! What an ensure went through, as one tree of spans: for whoever keeps traces. Knows no format that such a keeper speaks.

/// One ensure, from its request to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanTree {
    /// Random, never zero.
    pub id: u128,
    /// The root first, each parent before its children.
    pub spans: Vec<Span>,
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Random, never zero.
    pub id: u64,
    /// The span that it is a part of; `None` for the root.
    pub parent: Option<u64>,
    /// What was done: `ensure`, `flight`, `open`, `fetch`, `commit`, `lock`.
    pub name: &'static str,
    /// Its begin, in nanoseconds since 1970 UTC.
    pub begun: u64,
    /// Its end, the same; not before its begin.
    pub ended: u64,
    /// Why it failed; empty if it did not.
    pub failed: String,
    /// What else is known of it.
    pub attributes: Vec<(&'static str, Value)>,
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}
