//! A headless Chromium, spoken to over its DevTools protocol: opens the page as a person with a screen of this size and these colours
//! would, judges it with axe-core, and takes a picture.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Most pixels of a picture's height: what is farther down is cut.
const HEIGHT_MAX: f64 = 4000.0;

/// The browser. Ends when it is dropped.
pub(super) struct Browser {
    child: Child,
    _profile: TempDir,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
    number: u64,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How somebody looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    /// Its width in pixels.
    pub(super) width: u32,
    /// Whether it is dark.
    pub(super) dark: bool,
}

impl Browser {
    /// Starts it with an empty page.
    pub(super) async fn start(program: &Path) -> Self {
        let profile = TempDir::with_prefix("tierd-browser-").expect("the system's temporary folder can be written");
        let mut command = Command::new(program);
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the browser starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = said.find_map(|line| line.ok()?.strip_prefix("DevTools listening on ").map(str::to_owned));
        // It goes on talking, and must not wait for somebody who listens.
        std::thread::spawn(move || said.for_each(drop));
        let address = address.expect("it says where it listens");
        let (socket, _) = tokio_tungstenite::connect_async(address).await.expect("it listens");
        let mut browser = Self { child, _profile: profile, socket, session: String::new(), number: 0 };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.socket.send(Message::text(message.to_string())).await.expect("the browser lives");
        loop {
            let Message::Text(text) = self.socket.next().await.expect("the browser lives").expect("it speaks") else {
                continue;
            };
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
        }
    }

    /// What an expression is, in a world of its own beside the page's if one is given.
    async fn evaluate(&mut self, expression: &str, world: Option<&Value>) -> Value {
        let mut params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        if let Some(world) = world {
            params["contextId"] = world.clone();
        }
        let answer = self.ask("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Opens an address and waits until the page is live and says that it shows all of these words.
    pub(super) async fn open(&mut self, address: &str, screen: Screen, words: &[&str]) {
        let size =
            json!({ "width": screen.width, "height": 900, "deviceScaleFactor": 1, "mobile": screen.width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = if screen.dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("Emulation.setEmulatedMedia", media).await;
        self.ask("Page.navigate", json!({ "url": address })).await;
        let mut shown = String::new();
        for _ in 0..400 {
            let live = self.evaluate("document.getElementById('state')?.dataset.state || ''", None).await;
            shown = self.evaluate("document.body.innerText", None).await.as_str().unwrap_or_default().to_owned();
            if live == "live" && words.iter().all(|word| shown.contains(word)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let missing: Vec<_> = words.iter().filter(|word| !shown.contains(**word)).collect();
        panic!("the page is not live or does not show {missing:?}: {shown}");
    }

    /// What axe-core finds wrong with the page as it is now.
    pub(super) async fn violations(&mut self, axe: &str) -> Value {
        let frame = self.ask("Page.getFrameTree", json!({})).await["frameTree"]["frame"]["id"].clone();
        let world = self.ask("Page.createIsolatedWorld", json!({ "frameId": frame, "worldName": "axe" })).await;
        let world = world["executionContextId"].clone();
        // The page's policy refuses other scripts: beside it they may run.
        self.evaluate(&format!("{axe};null"), Some(&world)).await;
        let run = "axe.run(document).then(found => found.violations.map(v => \
                   ({ id: v.id, help: v.help, where: v.nodes.map(node => node.target.join(' ') + ': ' + node.failureSummary) })))";
        self.evaluate(run, Some(&world)).await
    }

    /// Pixels by which the page is wider than the screen.
    pub(super) async fn overflow(&mut self) -> i64 {
        let wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        self.evaluate(wide, None).await.as_i64().expect("a number")
    }

    /// Takes a picture of the whole page.
    pub(super) async fn picture(&mut self, path: &Path) {
        let size = self.ask("Page.getLayoutMetrics", json!({})).await["cssContentSize"].clone();
        let height = size["height"].as_f64().expect("a number").min(HEIGHT_MAX);
        let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1 });
        let params = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let shot = self.ask("Page.captureScreenshot", params).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().expect("a picture"));
        std::fs::write(path, bytes.expect("base64")).expect("its folder can be written");
    }
}

/// Where a browser is: `TIERD_TEST_BROWSER`, or one of the usual names on the path.
pub(super) async fn program() -> std::path::PathBuf {
    if let Some(given) = std::env::var_os("TIERD_TEST_BROWSER") {
        return given.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut all = std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name)));
    all.find(|file| file.is_file()).expect("install Chromium, or set TIERD_TEST_BROWSER to a browser of its kind")
}
