//! Third-party clients: each sends messages, awaits their echoes, closes with 4001.
use std::{io::ErrorKind, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{netns::Namespace, process::Process, tools};

/// Program of Debian's package.
const CHROMIUM: &str = "chromium";
/// Options: no window, only the page, and nothing else that uses the network.
const ALONE: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// Library of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignClient {
    /// Python `websockets`.
    Python,
    /// npm `ws`.
    Ws,
    /// Browser, which always offers permessage-deflate.
    Chromium,
}

impl ForeignClient {
    pub fn name(self) -> &'static str {
        match self {
            ForeignClient::Python => "Python client",
            ForeignClient::Ws => "ws client",
            ForeignClient::Chromium => CHROMIUM,
        }
    }

    /// Start it in a namespace; `folder` is for its files.
    /// The browser continues when its connection has ended.
    ///
    /// # Errors
    /// If it cannot be started; `None` where there is no browser.
    pub fn start(
        self,
        namespace: &Namespace,
        server: SocketAddr,
        deflate: bool,
        folder: &Path,
    ) -> Result<Option<Process>> {
        let url = format!("ws://{server}/");
        let (program, script) = match self {
            ForeignClient::Python => (tools::python(), tools::foreign().join("client.py")),
            ForeignClient::Ws => ("node".into(), tools::foreign().join("client.cjs")),
            ForeignClient::Chromium => return browser(namespace, server, folder),
        };
        let mut command = namespace.command(program);
        command.env("NODE_PATH", tools::node_modules()).arg(script).arg(url);
        command.args(deflate.then_some("deflate"));
        Process::spawn(self.name(), command).map(Some)
    }
}

fn browser(namespace: &Namespace, server: SocketAddr, folder: &Path) -> Result<Option<Process>> {
    match Command::new(CHROMIUM).arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        version => drop(version.context("asking for chromium's version")?),
    }
    let page = tools::foreign().join("client.html");
    let mut command = namespace.command(CHROMIUM);
    command.args(ALONE).arg(format!("--user-data-dir={}", folder.join("profile").display()));
    command.arg(format!("file://{}#{server}", page.display()));
    Process::spawn(CHROMIUM, command).map(Some)
}
