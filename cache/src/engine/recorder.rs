//! Writes down what people asked for, as traces that `tierd replay` reads: a pair of CSV files for each day (UTC). A thread of its own,
//! so that the loop never waits for the disk; what finds no place in its queue is dropped and counted. Decides nothing.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Wall;
use crate::config::TraceConfig;
use crate::engine::view::EnsurePlan;
use crate::ids::{EnsureId, ModelKey};
use crate::origin::date;
use crate::replay::trace::{HEADER, REQUESTS_HEADER, kind_of};

/// Requests that may wait for the disk.
const QUEUE_MAX: usize = 4096;
/// How long lines wait before they are handed to the kernel.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;
/// The secret by which names are hashed: the same name gives the same hash in every file of the folder, and nobody without it can tell
/// which name that is.
const KEY_FILE: &str = "trace.key";

/// One request, as it was asked.
#[derive(Debug)]
struct Asked {
    at: Wall,
    client: String,
    models: Vec<(ModelKey, u64)>,
}

/// Speaks to the thread that writes.
#[derive(Debug)]
pub(crate) struct Recorder {
    requests: SyncSender<Asked>,
    thread: JoinHandle<()>,
    /// Callers whose models are not all known yet. Bounded by the callers that there may be.
    open: HashMap<EnsureId, (Wall, String)>,
}

impl Recorder {
    /// Opens the folder and starts the thread; `None` if nothing is to be recorded.
    ///
    /// # Errors
    ///
    /// The folder cannot be made or written.
    pub(crate) fn start(config: &TraceConfig) -> io::Result<Option<Self>> {
        let Some(folder) = config.record.clone() else { return Ok(None) };
        fs::create_dir_all(&folder)?;
        let key = if config.hash_names { Some(key(&folder)?) } else { None };
        let mut files = Files { folder, key, bytes_max: config.bytes_max, open: None, last_id: 0 };
        let (requests, inbox) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || files.run(&inbox))?;
        Ok(Some(Self { requests, thread, open: HashMap::new() }))
    }

    /// Somebody waits for models.
    pub(crate) fn begun(&mut self, id: EnsureId, client: &str, at: Wall) {
        self.open.insert(id, (at, client.to_owned()));
    }

    /// Which models these are, and how large.
    pub(crate) fn planned(&mut self, id: EnsureId, plan: &EnsurePlan) {
        let Some((at, client)) = self.open.remove(&id) else { return };
        let models = plan.models.iter().map(|model| (model.model.clone(), model.bytes)).collect();
        if self.requests.try_send(Asked { at, client, models }).is_err() {
            crate::metrics::trace_dropped();
        }
    }

    /// It came to nothing before its models were known.
    pub(crate) fn failed(&mut self, id: EnsureId) {
        self.open.remove(&id);
    }

    /// Writes everything that waits, and ends.
    pub(crate) fn finish(self) {
        drop(self.requests);
        if self.thread.join().is_err() {
            tracing::error!("the recorder panicked");
        }
    }
}

/// The secret of a folder, made once.
fn key(folder: &Path) -> io::Result<[u8; 32]> {
    let path = folder.join(KEY_FILE);
    let mut key = [0; 32];
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            File::open("/dev/urandom")?.read_exact(&mut key)?;
            file.write_all(&key)?;
            file.sync_all()?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => File::open(&path)?.read_exact(&mut key)?,
        Err(error) => return Err(error),
    }
    Ok(key)
}

/// What the thread has.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    key: Option<[u8; 32]>,
    bytes_max: u64,
    open: Option<Day>,
    /// Numbers of requests only grow, whatever the clock does.
    last_id: u64,
}

/// The pair of files of one day.
#[derive(Debug)]
struct Day {
    day: u64,
    files: BufWriter<File>,
    requests: BufWriter<File>,
    /// Time in a trace only grows, whatever the clock does.
    last_ms: u64,
}

impl Files {
    fn run(&mut self, inbox: &Receiver<Asked>) {
        let mut dirty = false;
        loop {
            let wait = if dirty { FLUSH_INTERVAL } else { Duration::from_secs(3600) };
            let written = match inbox.recv_timeout(wait) {
                Ok(asked) => {
                    dirty = true;
                    self.write(&asked)
                }
                Err(RecvTimeoutError::Timeout) => {
                    dirty = false;
                    self.flush()
                }
                Err(RecvTimeoutError::Disconnected) => {
                    if let Err(error) = self.flush() {
                        tracing::error!(%error, "the last requests could not be recorded");
                    }
                    return;
                }
            };
            if let Err(error) = written {
                crate::metrics::trace_dropped();
                tracing::error!(%error, folder = %self.folder.display(), "a request could not be recorded");
                self.open = None;
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(day) = &mut self.open else { return Ok(()) };
        day.files.flush()?;
        day.requests.flush()
    }

    fn write(&mut self, asked: &Asked) -> io::Result<()> {
        let day = asked.at.0 / DAY_MS;
        // A clock that is set back a little does not open yesterday again.
        if self.open.as_ref().is_none_or(|open| open.day < day) {
            self.flush()?;
            self.make_room(day)?;
            self.open = Some(self.open_day(day)?);
        }
        self.last_id = (asked.at.0 * 1000).max(self.last_id + 1);
        let id = self.last_id;
        let client = if asked.client.is_empty() { String::new() } else { self.name(&asked.client) };
        let lines: Vec<(String, u64, &str)> =
            asked.models.iter().map(|(model, bytes)| (self.name(model.as_str()), *bytes, kind_of(model))).collect();
        let Some(open) = &mut self.open else { return Ok(()) };
        open.last_ms = open.last_ms.max(asked.at.0);
        for (name, bytes, kind) in lines {
            writeln!(open.files, "{},{id},{name},{bytes},{kind}", open.last_ms)?;
        }
        // How long a GPU works on it is not known here.
        writeln!(open.requests, "{id},{client},0,ensure")
    }

    /// A name as it is written: hashed if that is asked, else with what CSV cannot hold as %XX.
    fn name(&self, name: &str) -> String {
        match &self.key {
            Some(key) => blake3::keyed_hash(key, name.as_bytes()).to_hex()[..16].to_owned(),
            None => escaped(name),
        }
    }

    fn open_day(&self, day: u64) -> io::Result<Day> {
        let stem = date::day_name(day);
        let (files, last) = append(&self.folder.join(format!("{stem}.csv")), HEADER)?;
        let (requests, _) = append(&self.folder.join(format!("{stem}.requests.csv")), REQUESTS_HEADER)?;
        let last_ms = last.split(',').next().and_then(|field| field.parse().ok()).unwrap_or(0);
        Ok(Day { day, files: BufWriter::new(files), requests: BufWriter::new(requests), last_ms })
    }

    /// Deletes the oldest days until what is left is less than the limit. Never today.
    fn make_room(&self, today: u64) -> io::Result<()> {
        let mut found: Vec<(String, u64)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".csv") && name.as_bytes().first().is_some_and(u8::is_ascii_digit) {
                found.push((name, entry.metadata()?.len()));
            }
        }
        found.sort();
        let mut bytes: u64 = found.iter().map(|(_, bytes)| bytes).sum();
        let now = date::day_name(today);
        for (name, size) in found {
            if bytes < self.bytes_max || name.starts_with(&now) {
                break;
            }
            fs::remove_file(self.folder.join(&name))?;
            tracing::info!(name, size, "an old trace is deleted: trace.bytes_max");
            bytes -= size;
        }
        Ok(())
    }
}

/// Opens a file to go on at its last whole line: a kill may have cut one. Returns that line too.
fn append(path: &Path, header: &str) -> io::Result<(File, String)> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    let from = end.saturating_sub(64 << 10);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let kept = if whole == 0 { 0 } else { from + whole as u64 };
    file.set_len(kept)?;
    file.seek(SeekFrom::Start(kept))?;
    if kept == 0 {
        writeln!(file, "{header}")?;
    }
    let text = String::from_utf8_lossy(&tail[..whole]).into_owned();
    Ok((file, text.lines().last().unwrap_or_default().to_owned()))
}

fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            ',' | '"' | '%' => out.push_str(&format!("%{:02X}", u32::from(letter))),
            letter if letter.is_control() => out.push_str(&format!("%{:02X}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::trace::Trace;

    fn files(folder: &Path, hash: bool, bytes_max: u64) -> Files {
        let key = hash.then(|| key(folder).expect("a key"));
        Files { folder: folder.to_owned(), key, bytes_max, open: None, last_id: 0 }
    }

    fn asked(at: u64, client: &str, models: &[&str]) -> Asked {
        let models = models.iter().map(|model| (ModelKey::parse(model).expect("a key"), 7_000)).collect();
        Asked { at: Wall(at), client: client.to_owned(), models }
    }

    fn read(folder: &Path, day: &str) -> Trace {
        let text = |name: String| fs::read_to_string(folder.join(name)).expect("it was written");
        let mut trace = Trace::default();
        trace.read(&text(format!("{day}.csv"))).expect("a good trace");
        trace.read_requests(&text(format!("{day}.requests.csv")), 0).expect("good too");
        trace
    }

    #[test]
    fn what_was_recorded_reads_back_also_after_a_torn_line_and_a_clock_that_went_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = files(folder.path(), false, u64::MAX);
        first.write(&asked(DAY_MS + 5_000, "me, myself", &["loras/a,b.safetensors", "vae/x"])).expect("written");
        first.flush().expect("flushed");
        let path = folder.path().join("1970-01-02.csv");
        let mut torn = OpenOptions::new().append(true).open(&path).expect("it is there");
        torn.write_all(b"99999,12,vae/torn").expect("written");
        let mut second = files(folder.path(), false, u64::MAX);
        second.write(&asked(DAY_MS + 4_000, "", &["vae/x"])).expect("written");
        second.write(&asked(DAY_MS + 9_000, "", &["loras/a,b.safetensors"])).expect("written");
        second.flush().expect("flushed");
        let trace = read(folder.path(), "1970-01-02");
        let at: Vec<u64> = trace.requests.iter().map(|request| request.at_ms - DAY_MS).collect();
        assert_eq!(at, [5_000, 5_000, 9_000]);
        assert_eq!(trace.files.len(), 2, "{:?}", trace.files);
        assert_eq!(trace.requests[0].files, [0, 1]);
        assert_eq!((trace.requests[2].files[0], trace.requests[0].client.as_str()), (0, "me%2C myself"));
    }

    #[test]
    fn hashed_names_are_the_same_each_time_and_nothing_of_them_is_readable() {
        let folder = tempfile::tempdir().expect("a folder");
        for at in [1_000, 2_000] {
            let mut files = files(folder.path(), true, u64::MAX);
            files.write(&asked(at, "somebody", &["loras/secret.safetensors"])).expect("written");
            files.flush().expect("flushed");
        }
        let trace = read(folder.path(), "1970-01-01");
        assert_eq!((trace.files.len(), trace.requests.len()), (1, 2));
        for name in ["1970-01-01.csv", "1970-01-01.requests.csv"] {
            let text = fs::read_to_string(folder.path().join(name)).expect("it is there");
            assert!(!text.contains("secret") && !text.contains("somebody"), "{text}");
        }
    }

    #[test]
    fn old_days_go_when_there_is_too_much_and_today_never() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files = files(folder.path(), false, 1);
        for day in 0..3 {
            files.write(&asked(day * DAY_MS, "", &["vae/x"])).expect("written");
        }
        files.flush().expect("flushed");
        let mut left: Vec<String> = fs::read_dir(folder.path())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["1970-01-03.csv", "1970-01-03.requests.csv"]);
    }
}
