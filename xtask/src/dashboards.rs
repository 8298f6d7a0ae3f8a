//! `cargo xtask dashboards`: Grafana's dashboards, from `deploy/grafana/source`.
use std::process::Command;

use anyhow::Result;
use ws_guard_testkit::tools;

use crate::{manifests, setup, step};

pub fn main() -> Result<()> {
    setup::python()?;
    let folder = tools::workspace().join("deploy/grafana");
    let mut make = Command::new(tools::python());
    make.arg("-B").arg(folder.join("source")).arg(&folder);
    step::run("making the dashboards", make)?;
    manifests::copy()
}
