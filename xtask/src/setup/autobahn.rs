//! Autobahn|Testsuite, below `target/tools`.
//! It needs Python 2.7, from pyenv where the system has none.
use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use crate::step;

const RELEASE: &str = "25.10.1";
/// Last release that makes environments of Python 2.7.
const VIRTUALENV: &str = "virtualenv==20.15.1";

pub struct Component;

impl super::Component for Component {
    fn name(&self) -> &'static str {
        "Autobahn|Testsuite"
    }

    fn present(&self) -> Option<String> {
        let installed = fs::read_to_string(stamp()).ok()?;
        (tools::wstest().exists() && installed == RELEASE).then_some(installed)
    }

    fn install(&self) -> Result<()> {
        let python = python()?;
        let bootstrap = tools::root().join("virtualenv");
        let environment = tools::root().join("autobahn");
        let mut fetch = Command::new(&python);
        fetch.args(["-m", "pip", "install", "--quiet", "--upgrade", VIRTUALENV, "--target"]);
        fetch.arg(&bootstrap);
        step::run("fetching virtualenv for Python 2.7", fetch)?;
        let mut make = Command::new(&python);
        make.env("PYTHONPATH", &bootstrap).args(["-m", "virtualenv", "--quiet"]).arg(&environment);
        step::run("making an environment of Python 2.7", make)?;
        let mut pip = Command::new(environment.join("bin/pip"));
        pip.args(["install", "--quiet", &format!("autobahntestsuite=={RELEASE}")]);
        step::run("installing Autobahn|Testsuite", pip)?;
        fs::write(stamp(), RELEASE).context("noting what was installed")
    }
}

/// Return the file that names the installed release.
fn stamp() -> PathBuf {
    tools::root().join("autobahn/release")
}

/// Return a working Python 2.7: the system's, or one of pyenv's.
fn python() -> Result<PathBuf> {
    let pyenv = step::output("pyenv", &["root"]).map(PathBuf::from);
    let versions = pyenv.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let of_pyenv = versions.into_iter().flatten().flatten().map(|entry| entry.path());
    let of_pyenv = of_pyenv.map(|version| version.join("bin/python2.7"));
    let mut candidates = std::iter::once(PathBuf::from("python2.7")).chain(of_pyenv);
    let runs = |python: &PathBuf| step::output(&python.to_string_lossy(), &["--version"]).is_some();
    candidates.find(runs).context("Python 2.7 was not found: `pyenv install 2.7.18` installs it")
}
