//! What commands print: lines and tables for people, JSON for machines. Results go to stdout, the rest to stderr.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use tierd_cache::units::ByteSize;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// JSON: one document, or one object a line for streams.
    pub json: bool,
    /// Nothing but failures.
    pub quiet: bool,
}

impl Out {
    /// Prints a line for people; nothing with `--json` or `--quiet`.
    ///
    /// # Errors
    ///
    /// If stdout is closed.
    pub(crate) fn line(self, text: impl std::fmt::Display) -> io::Result<()> {
        if self.json || self.quiet {
            return Ok(());
        }
        writeln!(io::stdout().lock(), "{text}")
    }

    /// Says something beside the result, on stderr; nothing with `--json` or `--quiet`.
    pub(crate) fn note(self, text: impl std::fmt::Display) {
        if !self.json && !self.quiet {
            // A closed stderr must not end the command.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Prints one JSON value on one line; nothing without `--json`.
    ///
    /// # Errors
    ///
    /// If stdout is closed.
    pub(crate) fn json_line(self, value: &impl Serialize) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, value)?;
        writeln!(stdout)
    }

    /// Prints one JSON document, indented; nothing without `--json`.
    ///
    /// # Errors
    ///
    /// If stdout is closed.
    pub(crate) fn document(self, value: &impl Serialize) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        serde_json::to_writer_pretty(&mut stdout, value)?;
        writeln!(stdout)
    }

    /// Prints a table; columns whose names end in `>` are aligned to the right.
    ///
    /// # Errors
    ///
    /// If stdout is closed.
    pub(crate) fn table(self, names: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        for line in aligned(names, rows) {
            self.line(line)?;
        }
        Ok(())
    }

    /// Whether progress bars can be drawn.
    #[must_use]
    pub(crate) fn draws(self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }
}

/// The lines of a table, its head first; columns whose names end in `>` are aligned to the right.
#[must_use]
pub(crate) fn aligned(names: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let right: Vec<bool> = names.iter().map(|name| name.ends_with('>')).collect();
    let head: Vec<String> = names.iter().map(|name| name.trim_end_matches('>').to_owned()).collect();
    let mut widths = vec![0; head.len()];
    for row in std::iter::once(&head).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &Vec<String>| {
        let cell = |(index, cell): (usize, &String)| {
            let (width, right) = (widths[index], right[index]);
            if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    std::iter::once(&head).chain(rows).map(line).collect()
}

/// A share as a bar of `width` cells.
#[must_use]
pub(crate) fn bar(part: u64, whole: u64, width: usize) -> String {
    let share = if whole == 0 { 0.0 } else { (part as f64 / whole as f64).clamp(0.0, 1.0) };
    let full = (share * width as f64).round() as usize;
    format!("[{}{}]", "#".repeat(full), "-".repeat(width - full))
}

/// Bytes for people.
#[must_use]
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// A number of things: `1 model`, `2 models`.
#[must_use]
pub(crate) fn count(number: impl Into<u64>, thing: &str) -> String {
    match number.into() {
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

/// Bytes a second for people.
#[must_use]
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", ByteSize(bytes_per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_by_characters_not_bytes() {
        let rows = vec![vec!["vae/ü".to_owned(), "9 B".to_owned()], vec!["x".to_owned(), "10 KiB".to_owned()]];
        assert_eq!(aligned(&["MODEL", "SIZE>"], &rows), ["MODEL    SIZE", "vae/ü     9 B", "x      10 KiB"]);
    }

    #[test]
    fn bars_never_overflow() {
        assert_eq!(bar(1, 2, 4), "[##--]");
        assert_eq!(bar(9, 2, 4), "[####]");
        assert_eq!(bar(1, 0, 4), "[----]");
    }
}
