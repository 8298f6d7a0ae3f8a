//! Tools to build and test the browser client: the packages of its lock file.
use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use crate::step;

/// npm's packages, next to the client's `package.json`, for its programs.
pub struct Component;

/// Return the copy of the lock file, next to the packages installed from it.
fn copy() -> PathBuf {
    tools::client().join("node_modules/.installed-lock.json")
}

fn lock() -> PathBuf {
    tools::client().join("package-lock.json")
}

impl super::Component for Component {
    fn name(&self) -> &'static str {
        "packages of the browser client"
    }

    fn present(&self) -> Option<String> {
        let installed = fs::read(copy()).ok()?;
        (installed == fs::read(lock()).ok()?).then(|| "as locked".to_owned())
    }

    fn install(&self) -> Result<()> {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]);
        npm.current_dir(tools::client());
        step::run("fetching packages of the browser client", npm)?;
        fs::copy(lock(), copy()).context("noting what was installed")?;
        Ok(())
    }
}
