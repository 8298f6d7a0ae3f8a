//! `cargo xtask docs`: pages that are made from the code.
use std::process::Command;

use anyhow::Result;
use ws_guard_testkit::tools;

use crate::step;

/// The test that makes each page, and compares it otherwise.
const CATALOGUE: [&str; 6] = ["test", "--package", "ws-guard", "--lib", "--", "metrics::page::"];

pub fn main() -> Result<()> {
    let mut make = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    make.args(CATALOGUE).env("UPDATE_EXPECT", "1").current_dir(tools::workspace());
    step::run("making docs/metrics.md", make)
}
