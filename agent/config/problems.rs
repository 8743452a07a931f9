//! What is wrong with a configuration: every mistake with its key, its place and what would be right. Never holds the
//! value of a secret.

use std::fmt;
use std::path::PathBuf;

/// Most problems that are reported at once. A file with more has one mistake that causes the rest.
pub const PROBLEMS_MAX: usize = 100;
/// Most characters of a wrong value that are shown.
const SHOWN_CHARS_MAX: usize = 80;

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The configuration as a whole: something is missing, or the file cannot be read.
    Whole,
    /// In the file. Both count from 1; the column counts characters.
    File {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In an environment variable of this name.
    Variable(String),
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// The key, as in `store.budget` or `origin[r2].bucket`. Empty for a mistake in the file's syntax.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What would be right, if that is known.
    pub right: Option<String>,
}

/// All mistakes of one configuration, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblems {
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// The mistakes: at least one, at most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// Mistakes that were found on top of those.
    pub more: usize,
}

impl std::error::Error for ConfigProblems {}

impl fmt::Display for ConfigProblems {
    /// Prints one line for each mistake: `tierd.toml:4:1: store.budgt: unknown key; did you mean "budget"?`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_ref().map_or("configuration".to_owned(), |file| file.display().to_string());
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            match &problem.place {
                Place::Whole => write!(f, "{file}: ")?,
                Place::File { line, column } => write!(f, "{file}:{line}:{column}: ")?,
                Place::Variable(name) => write!(f, "${name}: ")?,
            }
            write!(f, "{problem}")?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        match &self.right {
            Some(right) => write!(f, "; {right}"),
            None => Ok(()),
        }
    }
}

/// Gathers mistakes while the configuration is read.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    problems: Vec<Problem>,
}

impl Gathered {
    /// Notes a mistake without a remedy.
    pub(super) fn add(&mut self, place: &Place, key: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem { place: place.clone(), key: key.into(), what: what.into(), right: None });
    }

    /// Notes a mistake and what would be right.
    pub(super) fn add_with(
        &mut self,
        place: &Place,
        key: impl Into<String>,
        what: impl Into<String>,
        right: impl Into<String>,
    ) {
        let right = Some(right.into());
        self.problems.push(Problem { place: place.clone(), key: key.into(), what: what.into(), right });
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Everything that is wrong, in the order of its places.
    pub(super) fn finish(mut self, file: Option<PathBuf>) -> ConfigProblems {
        self.problems.sort_by(|a, b| a.place.cmp(&b.place).then_with(|| a.key.cmp(&b.key)));
        self.problems.dedup();
        let more = self.problems.len().saturating_sub(PROBLEMS_MAX);
        self.problems.truncate(PROBLEMS_MAX);
        ConfigProblems { file, problems: self.problems, more }
    }
}

/// A wrong text as it is shown: quoted, escaped, cut.
pub(super) fn shown(text: &str) -> String {
    if text.chars().count() > SHOWN_CHARS_MAX {
        let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
        return format!("{cut:?}…");
    }
    format!("{text:?}")
}

/// The candidate that is nearest to `text`, if it is near enough to be a slip of the finger.
pub(super) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text: Vec<char> = text.chars().take(64).flat_map(char::to_lowercase).collect();
    let allowed = (text.len() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| {
            (distance(&text, &candidate.chars().flat_map(char::to_lowercase).collect::<Vec<_>>()), candidate)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance with swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_another_word_is_not() {
        let keys = ["budget", "keep_free", "path", "models"];
        assert_eq!(nearest("budgt", keys), Some("budget"));
        assert_eq!(nearest("bugdet", keys), Some("budget"));
        assert_eq!(nearest("Keep-Free", keys), Some("keep_free"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("", keys), None);
    }
}
