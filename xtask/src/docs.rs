//! `cargo xtask docs`: pages generated from the code.
use std::process::Command;

use anyhow::Result;
use ws_guard_testkit::tools;

use crate::step;

/// Test that writes each page on request, and otherwise compares it.
const CATALOGUE: [&str; 6] = ["test", "--package", "ws-guard", "--lib", "--", "metrics::page::"];

pub fn main() -> Result<()> {
    let mut make = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    make.args(CATALOGUE).env("UPDATE_EXPECT", "1").current_dir(tools::workspace());
    step::run("making docs/metrics.md", make)
}
