//! Third-party WebSocket servers, pinned, below `target/tools`.
//!
//! Next to each is a copy of the file that it was installed from: while that is the same, nothing
//! has to be done.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use crate::step;

/// Something installed from one file of `ws-guard-testkit/foreign`.
struct Pinned {
    file: &'static str,
    /// Path that must exist afterwards.
    made: PathBuf,
}

impl Pinned {
    fn source(&self) -> PathBuf {
        tools::foreign().join(self.file)
    }

    fn copy(&self) -> PathBuf {
        tools::root().join(format!("{}.installed", self.file))
    }

    fn is_installed(&self) -> bool {
        let copy = fs::read(self.copy()).ok();
        self.made.exists() && copy.is_some() && copy == fs::read(self.source()).ok()
    }

    fn installed(&self) -> Result<()> {
        fs::copy(self.source(), self.copy()).context("noting what was installed")?;
        Ok(())
    }
}

/// Python's `websockets`, and tools in Python, in a separate environment.
/// They check dependencies and manifests and make dashboards.
pub struct Python;

impl Python {
    fn pinned() -> Pinned {
        Pinned { file: "requirements.txt", made: tools::python() }
    }
}

impl super::Component for Python {
    fn name(&self) -> &'static str {
        "Python packages"
    }

    fn present(&self) -> Option<String> {
        let pinned = Python::pinned();
        let version = fs::read_to_string(pinned.source()).ok()?;
        pinned.is_installed().then(|| version.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn install(&self) -> Result<()> {
        let pinned = Python::pinned();
        let venv = tools::root().join("venv");
        let mut make = Command::new(python()?);
        make.args(["-m", "venv", "--clear"]).arg(&venv);
        step::run("making a Python environment", make)?;
        let mut pip = Command::new(tools::python());
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]);
        pip.arg(pinned.source());
        step::run("fetching Python packages", pip)?;
        pinned.installed()
    }
}

/// Return a Python that makes environments and suits the pinned release.
fn python() -> Result<&'static str> {
    const TEST: &str = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))";
    let found = ["python3", "/usr/bin/python3"]
        .into_iter()
        .find(|python| step::output(python, &["-c", TEST]).is_some());
    found.context("no Python of at least 3.11 with venv was found: install python3-venv")
}

/// npm's `ws`.
pub struct Ws;

impl Ws {
    fn pinned() -> Pinned {
        Pinned { file: "package.json", made: tools::node_modules().join("ws/package.json") }
    }
}

impl super::Component for Ws {
    fn name(&self) -> &'static str {
        "npm ws"
    }

    fn present(&self) -> Option<String> {
        let pinned = Ws::pinned();
        let package: serde_json::Value =
            serde_json::from_slice(&fs::read(&pinned.made).ok()?).ok()?;
        pinned.is_installed().then(|| format!("ws {}", package["version"].as_str().unwrap_or("?")))
    }

    fn install(&self) -> Result<()> {
        let pinned = Ws::pinned();
        let folder = tools::root().join("npm");
        fs::create_dir_all(&folder)?;
        fs::copy(pinned.source(), folder.join("package.json"))?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]);
        step::run("fetching ws", in_folder(npm, &folder))?;
        pinned.installed()
    }
}

/// The server on Debian's gorilla/websocket, compiled.
pub struct Gorilla;

impl Gorilla {
    fn pinned() -> Pinned {
        Pinned { file: "echo.go", made: tools::gorilla_echo() }
    }
}

impl super::Component for Gorilla {
    fn name(&self) -> &'static str {
        "gorilla/websocket"
    }

    fn present(&self) -> Option<String> {
        Gorilla::pinned().is_installed().then(|| "compiled".to_owned())
    }

    fn install(&self) -> Result<()> {
        let pinned = Gorilla::pinned();
        fs::create_dir_all(tools::root())?;
        let mut go = Command::new("go");
        // Debian's Go packages are sources in a GOPATH.
        go.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode").env("GOFLAGS", "");
        go.env("GOCACHE", tools::root().join("go-cache"));
        go.arg("build").arg("-o").arg(&pinned.made).arg(pinned.source());
        step::run("compiling the Go server", go)?;
        pinned.installed()
    }
}

fn in_folder(mut command: Command, folder: &Path) -> Command {
    command.current_dir(folder);
    command
}
