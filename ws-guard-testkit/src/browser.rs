//! Headless Chromium inside a namespace, driven through its debugging pipe.
//!
//! <https://chromedevtools.github.io/devtools-protocol/>. The pipe takes messages of JSON that end
//! with a zero byte: no port, and no WebSocket of our own.
use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use tempfile::TempDir;

use crate::{netns::Namespace, process::Process};

/// Time for an answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const PROGRAM: &str = "chromium";

/// Browser with one tab; it ends when dropped.
pub struct Browser {
    _process: Process,
    _folder: TempDir,
    to: File,
    from: RefCell<BufReader<File>>,
    next: Cell<u64>,
    session: String,
}

impl Browser {
    /// Return the reason why there is no browser here.
    pub fn missing() -> Option<String> {
        let found = Command::new(PROGRAM).arg("--version").output();
        found.is_err().then(|| format!("there is no {PROGRAM} (Debian: apt-get install chromium)"))
    }

    /// Start one, with an empty tab.
    pub fn start(namespace: &Namespace) -> Result<Browser> {
        let folder = TempDir::with_prefix("wsg-browser-")?;
        let [to, from] = ["to", "from"].map(|name| folder.path().join(name));
        for path in [&to, &from] {
            mkfifo(path, Mode::S_IRWXU).context("making a pipe")?;
        }
        // Opened for both, so that neither side waits for the other.
        let both = |path: &Path| fs::OpenOptions::new().read(true).write(true).open(path);
        let (writer, reader) = (both(&to)?, both(&from)?);
        let mut command = namespace.command("sh");
        command.args(["-c", "to=$1 from=$2; shift 2; exec \"$@\" 3<\"$to\" 4>\"$from\"", "sh"]);
        command.arg(&to).arg(&from).arg(PROGRAM).args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
        let process = Process::spawn(PROGRAM, command)?;
        let mut browser = Browser {
            _process: process,
            _folder: folder,
            to: writer,
            from: RefCell::new(BufReader::new(reader)),
            next: Cell::new(0),
            session: String::new(),
        };
        let tab = browser.ask("Target.createTarget", json!({"url": "about:blank"}))?;
        let wanted = json!({"targetId": tab["targetId"], "flatten": true});
        let session = browser.ask("Target.attachToTarget", wanted)?;
        browser.session = session["sessionId"].as_str().context("no session")?.to_owned();
        Ok(browser)
    }

    /// Run a command, and return its result.
    pub fn ask(&self, method: &str, parameters: Value) -> Result<Value> {
        let id = self.next.get() + 1;
        self.next.set(id);
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let mut text = message.to_string().into_bytes();
        text.push(0);
        (&self.to).write_all(&text)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.message(deadline).with_context(|| method.to_owned())?;
            if answer["id"] == id {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].clone());
            }
        }
    }

    /// Return the next message, an event or an answer.
    fn message(&self, deadline: Instant) -> Result<Value> {
        let mut reader = self.from.borrow_mut();
        let mut text = Vec::new();
        while text.last() != Some(&0) {
            if reader.buffer().is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                let mut waits = [PollFd::new(reader.get_ref().as_fd(), PollFlags::POLLIN)];
                ensure!(poll(&mut waits, left)? > 0, "{PROGRAM} did not answer in {PATIENCE:?}");
            }
            reader.read_until(0, &mut text)?;
        }
        text.pop();
        serde_json::from_slice(&text).context("no JSON")
    }

    /// Open a page.
    pub fn open(&self, url: &str) -> Result<()> {
        let went = self.ask("Page.navigate", json!({"url": url}))?;
        ensure!(went["errorText"].is_null(), "{url}: {}", went["errorText"]);
        Ok(())
    }

    /// Evaluate an expression in the page.
    pub fn value(&self, expression: &str) -> Result<Value> {
        let wanted = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.ask("Runtime.evaluate", wanted)?;
        let failed = &answer["exceptionDetails"];
        ensure!(failed.is_null(), "{expression}: {failed}");
        Ok(answer["result"]["value"].clone())
    }

    /// Evaluate an expression as text.
    pub fn text(&self, expression: &str) -> Result<String> {
        Ok(self.value(expression)?.as_str().context("no text")?.to_owned())
    }

    /// Wait until an expression is true.
    pub fn wait(&self, expression: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // While a page loads, there is nothing to evaluate.
        while !matches!(self.value(expression), Ok(Value::Bool(true))) {
            if Instant::now() > deadline {
                let shown = self.text("document.body.innerText").unwrap_or_default();
                bail!("not within {PATIENCE:?}: {expression}\n{shown}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Set the size of the view, and the preference for dark colours.
    pub fn look(&self, width: u32, height: u32, dark: bool) -> Result<()> {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.ask("Emulation.setDeviceMetricsOverride", size)?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", features).map(drop)
    }

    /// Press a key of this name and code.
    pub fn press(&self, key: &str, code: u32) -> Result<()> {
        let text = if key == " " { " " } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event =
                json!({"type": kind, "key": key, "windowsVirtualKeyCode": code, "text": text});
            self.ask("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Return roles and names, as for a screen reader.
    pub fn spoken(&self) -> Result<Vec<(String, String)>> {
        self.ask("Accessibility.enable", json!({}))?;
        let tree = self.ask("Accessibility.getFullAXTree", json!({}))?;
        let text =
            |node: &Value, field: &str| node[field]["value"].as_str().unwrap_or("").to_owned();
        let nodes = tree["nodes"].as_array().context("no tree")?.iter();
        let shown = nodes.filter(|node| node["ignored"] != true);
        Ok(shown.map(|node| (text(node, "role"), text(node, "name"))).collect())
    }

    /// Return a picture of the view: PNG in base64.
    pub fn picture(&self) -> Result<String> {
        let shot = self.ask("Page.captureScreenshot", json!({"format": "png"}))?;
        Ok(shot["data"].as_str().context("no picture")?.to_owned())
    }
}
