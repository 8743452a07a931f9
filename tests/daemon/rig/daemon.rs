//! A real `tierd serve` in a folder of its own: started, asked, killed, started again. Ended by its process id, never by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use super::{Client, FaultOrigin, PATIENCE, until};

/// What the configuration file says, beside what every test needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    origins: Vec<String>,
    callers: Vec<String>,
    env: BTreeMap<String, String>,
    folder: Option<PathBuf>,
}

impl Settings {
    /// With this origin alone.
    pub(crate) fn with_origin(origin: &FaultOrigin) -> Self {
        Self::default().http_origin("lab", &origin.url())
    }

    /// With this origin alone, which is given up on soon: for what it does wrong. On a machine without time, one that does nothing
    /// wrong is then asked twice.
    pub(crate) fn with_hasty_origin(origin: &FaultOrigin) -> Self {
        let hasty = "connect_timeout = \"2s\"\nrequest_timeout = \"2s\"\nstall_timeout = \"1s\"";
        Self::default().origin(&format!("name = \"lab\"\nkind = \"http\"\nurl = \"{}\"\n{hasty}", origin.url()))
    }

    /// Adds an HTTP origin.
    pub(crate) fn http_origin(self, name: &str, url: &str) -> Self {
        self.origin(&format!("name = \"{name}\"\nkind = \"http\"\nurl = \"{url}\""))
    }

    /// Adds a folder as origin.
    pub(crate) fn folder_origin(self, name: &str, path: &Path) -> Self {
        self.origin(&format!("name = \"{name}\"\nkind = \"folder\"\npath = \"{}\"", path.display()))
    }

    /// Adds an origin as the file spells it.
    pub(crate) fn origin(mut self, text: &str) -> Self {
        self.origins.push(text.to_owned());
        self
    }

    /// Adds a caller as the file spells it.
    pub(crate) fn caller(mut self, text: &str) -> Self {
        self.callers.push(text.to_owned());
        self
    }

    /// Sets one option; `value` as TOML spells it.
    pub(crate) fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets an environment variable of the daemon.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Keeps the store in this folder instead of the daemon's own.
    pub(crate) fn store_at(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    fn text(&self, dir: &Path) -> String {
        let mut sections = self.sections.clone();
        let mut default = |section: &str, key: &str, value: String| {
            sections.entry(section.to_owned()).or_default().entry(key.to_owned()).or_insert(value);
        };
        let store = self.folder.clone().unwrap_or_else(|| dir.join("store"));
        default("store", "path", format!("\"{}\"", store.display()));
        default("store", "budget", "\"8 GiB\"".to_owned());
        default("store", "keep_free", "\"0%\"".to_owned());
        default("listen", "unix", format!("\"{}\"", dir.join("tierd.sock").display()));
        default("listen", "http", "\"off\"".to_owned());
        default("fetch", "backoff_min", "\"20ms\"".to_owned());
        default("fetch", "backoff_max", "\"500ms\"".to_owned());
        default("log", "filter", "\"info,tierd=debug,tierd_cache=debug\"".to_owned());
        let mut text = String::new();
        for (section, keys) in &sections {
            text.push_str(&format!("[{section}]\n"));
            keys.iter().for_each(|(key, value)| text.push_str(&format!("{key} = {value}\n")));
        }
        self.origins.iter().for_each(|origin| text.push_str(&format!("[[origin]]\n{origin}\n")));
        self.callers.iter().for_each(|caller| text.push_str(&format!("[[caller]]\n{caller}\n")));
        text
    }
}

/// A daemon, running or not, and its folder.
#[derive(Debug)]
pub(crate) struct Daemon {
    dir: Arc<TempDir>,
    settings: Settings,
    child: Option<Child>,
    /// What the daemon runs under, if not by itself.
    pub(crate) wrapper: Vec<String>,
}

impl Daemon {
    /// Prepares a daemon without starting it.
    pub(crate) fn prepare(settings: Settings) -> Self {
        let dir = TempDir::with_prefix("tierd-test-").expect("the system's temporary folder can be written");
        Self { dir: Arc::new(dir), settings, child: None, wrapper: Vec::new() }
    }

    /// Starts a daemon and waits until it answers.
    pub(crate) async fn start(settings: Settings) -> Self {
        let mut daemon = Self::prepare(settings);
        daemon.restart().await;
        daemon
    }

    /// Changes the settings for the next start.
    pub(crate) fn settings(&mut self, change: impl FnOnce(Settings) -> Settings) {
        self.settings = change(std::mem::take(&mut self.settings));
    }

    /// Gives it two GPUs: a made-up driver, built into its folder and found before any that is installed.
    pub(crate) fn give_gpus(&mut self) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nvml.c");
        let library = self.dir().join("libnvidia-ml.so.1");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).status();
        assert!(built.expect("what links Rust compiles C").success(), "the driver is not built");
        let folder = self.dir().display().to_string();
        self.settings(|settings| settings.env("LD_LIBRARY_PATH", &folder));
    }

    /// Writes the configuration file that it would be started with.
    pub(crate) fn write_config(&self) {
        std::fs::write(self.config(), self.settings.text(self.dir.path())).expect("its folder can be written");
    }

    /// Starts the process and does not wait.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.write_config();
        let log = File::options().create(true).append(true).open(self.log_path()).expect("its folder can be written");
        let mut words = self.wrapper.clone();
        words.push(binary());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("serve").arg("--config").arg(self.config());
        command.envs(&self.settings.env).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file can be duplicated")).stderr(log);
        self.child = Some(command.spawn().expect("the daemon can be started"));
    }

    /// Starts the daemon on what an earlier one left, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        self.spawn();
        self.until_ready().await;
    }

    /// Waits until the daemon answers.
    pub(crate) async fn until_ready(&mut self) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30) * PATIENCE;
        loop {
            if let Ok(client) = Client::connect(&self.socket()).await
                && client.node.clone().get_node(tierd::rpc::pb::GetNodeRequest {}).await.is_ok()
            {
                return;
            }
            if let Some(status) = self.child.as_mut().expect("it was started").try_wait().expect("it is our child") {
                panic!("the daemon ended at its start with {status}:\n{}", self.log());
            }
            assert!(tokio::time::Instant::now() < deadline, "the daemon does not answer:\n{}", self.log());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// A client.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.socket()).await.expect("the daemon listens")
    }

    /// The command line, told where this daemon listens.
    pub(crate) fn cli(&self) -> Cli {
        Cli { socket: self.socket().display().to_string(), config: self.config(), env: BTreeMap::new() }
    }

    /// Kills it with SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
    }

    /// Asks it to end, and waits for that.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.ended(30).await
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("it runs"));
        rustix::process::kill_process(pid, signal).expect("it is our child");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self, seconds: u64) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(seconds) * PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                return status;
            }
            if tokio::time::Instant::now() > deadline {
                self.child = Some(child);
                panic!("the daemon does not end within {PATIENCE} times {seconds} s");
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The folder of this test, beside the store.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of its store.
    pub(crate) fn store(&self) -> PathBuf {
        self.settings.folder.clone().unwrap_or_else(|| self.dir().join("store"))
    }

    /// Where a model appears.
    pub(crate) fn model(&self, model: &str) -> PathBuf {
        self.store().join("models").join(model)
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir().join("tierd.sock")
    }

    /// Puts a file beside its configuration, and gives its name back as the file spells it.
    pub(crate) fn put(&self, name: &str, text: &str) -> String {
        std::fs::write(self.dir().join(name), text).expect("its folder can be written");
        format!("\"{name}\"")
    }

    /// Its configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir().join("tierd.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("daemon.log")
    }

    /// All that it ever said.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// All files below a folder of the store, with their sizes.
    pub(crate) fn files(&self, below: &str) -> BTreeMap<PathBuf, u64> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.store().join(below)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                    Ok(meta) => drop(files.insert(entry.path(), meta.len())),
                    Err(_) => {}
                }
            }
        }
        files
    }

    /// Waits until an event fits.
    pub(crate) async fn until_event<T>(
        &self,
        what: &str,
        pick: impl Fn(&tierd::rpc::pb::Occurrence) -> Option<T>,
    ) -> T {
        let client = self.client().await;
        until(what, 20, || async { client.events().await.iter().find_map(&pick) }).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(80)..].join("\n");
            println!("--- end of the daemon's log ({} lines in all)\n{tail}\n---", lines.len());
        }
    }
}

/// The command line.
#[derive(Debug, Clone)]
pub(crate) struct Cli {
    socket: String,
    config: PathBuf,
    env: BTreeMap<String, String>,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its exit code.
    pub(crate) code: i32,
    /// What it said to programs.
    pub(crate) out: String,
    /// What it said to people.
    pub(crate) err: String,
}

impl Done {
    /// Fails unless the exit code is this one.
    #[track_caller]
    pub(crate) fn assert_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "out: {}\nerr: {}", self.out, self.err);
        self
    }

    /// Its output as JSON, one value a line, or one document.
    #[track_caller]
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let all = serde_json::Deserializer::from_str(&self.out).into_iter();
        all.map(|value| value.unwrap_or_else(|error| panic!("{error} in {}", self.out))).collect()
    }
}

impl Cli {
    /// A command line for an address of its own.
    pub(crate) fn at(socket: &str, config: &Path) -> Self {
        Self { socket: socket.to_owned(), config: config.to_owned(), env: BTreeMap::new() }
    }

    /// With an environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("--config").arg(&self.config).args(args).env("TIERD_SOCKET", &self.socket);
        command.env_remove("TIERD_TOKEN").envs(&self.env).stdin(Stdio::null());
        command
    }

    /// Starts a command that goes on by itself; whoever starts it ends it, and reads what it says.
    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary runs")
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Done {
        let mut command = self.command(args);
        let run = tokio::task::spawn_blocking(move || command.output());
        let output = run.await.expect("it does not panic").expect("the binary runs");
        Done {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The binary under test: the one that was built with the tests, or `TIERD_TEST_DAEMON`, such as a release build for measurements.
fn binary() -> String {
    std::env::var("TIERD_TEST_DAEMON").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tierd").to_owned())
}
