//! Where `cargo xtask setup` puts what is not Rust, below the workspace's own target directory.
use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
    testkit.parent().unwrap_or(testkit).to_owned()
}

/// The root of everything installed for this workspace alone.
pub fn root() -> PathBuf {
    workspace().join("target/tools")
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

/// The echo server on gorilla/websocket.
pub fn gorilla_echo() -> PathBuf {
    root().join("gorilla-echo")
}
