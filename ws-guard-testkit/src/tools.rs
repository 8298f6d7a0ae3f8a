//! Where `cargo xtask setup` puts what is not Rust, below the workspace's own target directory.
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
    testkit.parent().unwrap_or(testkit).to_owned()
}

/// Where cargo puts what it builds of this workspace.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The root of everything installed for this workspace alone.
pub fn root() -> PathBuf {
    target().join("tools")
}

/// Name of the program in this crate that serves with tokio-tungstenite.
const TUNGSTENITE_ECHO: &str = "ws-guard-tungstenite-echo";

/// The echo server on tokio-tungstenite.
pub fn tungstenite_echo() -> PathBuf {
    target().join("release").join(TUNGSTENITE_ECHO)
}

/// The command that builds it, optimised.
pub fn build_tungstenite_echo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--release", "--package", "ws-guard-testkit", "--bin", TUNGSTENITE_ECHO]);
    cargo.current_dir(workspace());
    cargo
}

/// Sources of the foreign servers.
pub fn foreign() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign")
}

/// Python with the pinned `websockets`.
pub fn python() -> PathBuf {
    root().join("venv/bin/python")
}

/// The folder in which `node` finds the pinned `ws`.
pub fn node_modules() -> PathBuf {
    root().join("npm/node_modules")
}

/// Autobahn|Testsuite's program.
pub fn wstest() -> PathBuf {
    root().join("autobahn/bin/wstest")
}

/// Debian's Prometheus.
pub fn prometheus() -> PathBuf {
    root().join("prometheus/usr/bin/prometheus")
}

/// The companion tool that checks rules, runs their tests, and queries a server.
pub fn promtool() -> PathBuf {
    root().join("prometheus/usr/bin/promtool")
}

/// Debian's nginx.
pub fn nginx() -> PathBuf {
    root().join("nginx/usr/sbin/nginx")
}

/// Debian's HAProxy.
pub fn haproxy() -> PathBuf {
    root().join("haproxy/usr/sbin/haproxy")
}

/// The echo server on gorilla/websocket.
pub fn gorilla_echo() -> PathBuf {
    root().join("gorilla-echo")
}
