//! What the daemon tells about itself to machines: logs, metrics, health. Changes nothing in the engine.

pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod otlp;
pub mod page;
pub mod vram;

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    /// Holds a document equal to its text; with `UPDATE_DOCS=1` in the environment, prints it again.
    pub(crate) fn assert_document(path: &str, text: &str) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&file, text).expect("the document can be written");
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(found == text, "{path} is out of date: run UPDATE_DOCS=1 cargo test, and commit it");
    }
}
