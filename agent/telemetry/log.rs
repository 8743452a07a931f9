//! The log: text for people and the journal, JSON for machines, always on standard error.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, SubscriberBuilder};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogConfig, LogFormat};

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is none. `Config::load` has checked it, so this comes from another caller.
    #[error("log.filter {filter:?} is no filter: {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another subscriber is installed already.
    #[error("the log is started already")]
    Started,
}

/// Starts the log for the whole process. `env` says whether standard error is the journal.
///
/// Text is coloured on a terminal, unless `NO_COLOR` is set. In the journal it carries no time, which the journal has, and a priority, which it
/// would otherwise not know.
///
/// # Errors
///
/// The filter is none, or the log is started already.
pub fn init(config: &LogConfig, env: &BTreeMap<String, String>) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|error| LogError::Filter { filter: config.filter.clone(), reason: error.to_string() })?;
    let builder = SubscriberBuilder::default().with_env_filter(filter).with_writer(std::io::stderr);
    let in_journal = env.get("JOURNAL_STREAM").is_some_and(|stream| is_stderr(stream));
    let is_colourful = std::io::stderr().is_terminal() && env.get("NO_COLOR").is_none_or(String::is_empty);
    let started = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).finish().into_default(),
        LogFormat::Text if in_journal => {
            builder.with_ansi(false).event_format(Journal::default()).finish().into_default()
        }
        LogFormat::Text => builder.with_ansi(is_colourful).finish().into_default(),
    };
    started.map_err(|_| LogError::Started)
}

/// Installs a subscriber for the whole process.
trait IntoDefault: Sized {
    fn into_default(self) -> Result<(), tracing::subscriber::SetGlobalDefaultError>;
}

impl<S: Subscriber + Send + Sync> IntoDefault for S {
    fn into_default(self) -> Result<(), tracing::subscriber::SetGlobalDefaultError> {
        tracing::subscriber::set_global_default(self)
    }
}

/// Whether a text is a filter.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(|_| ()).map_err(|error| error.to_string())
}

/// Whether `stream`, systemd's `device:inode`, is our standard error.
fn is_stderr(stream: &str) -> bool {
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Lines for the journal: the priority that it understands, then the text without a time.
#[derive(Debug)]
struct Journal {
    text: Format<Full, ()>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { text: Format::default().without_time().with_level(false).with_ansi(false) }
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.text.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is logged.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_in_the_journal_has_its_priority_and_no_time() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = SubscriberBuilder::default()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Journal::default())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(attempt = 3, "fetch failed");
            tracing::error!("gone");
        });
        let text = String::from_utf8(kept.0.lock().expect("not poisoned").clone()).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            ["<4>tierd::telemetry::log::tests: fetch failed attempt=3", "<3>tierd::telemetry::log::tests: gone"]
        );
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        let stat = rustix::fs::fstat(std::io::stderr()).expect("there is a standard error");
        assert!(is_stderr(&format!("{}:{}", stat.st_dev, stat.st_ino)));
        assert!(!is_stderr("8:1"));
        assert!(!is_stderr(""));
    }

    #[test]
    fn a_filter_that_is_none_is_told_apart() {
        assert!(check_filter("info,tierd_cache::origin=debug").is_ok());
        assert!(check_filter("tierd=loud").is_err());
    }
}
