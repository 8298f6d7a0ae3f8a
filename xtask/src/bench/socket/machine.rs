//! The proof and the behaviour on another kernel, in a virtual machine.
use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{servers::Library, tools};

use crate::{
    setup, step,
    vm::{self, Initramfs, Job, Release},
};

/// Servers that are compiled.
const LIBRARIES: [Library; 2] = [Library::TokioTungstenite, Library::Gorilla];
const MODULES: [&str; 1] = ["veth"];
const TOOLS: [&str; 3] = ["ip", "ethtool", "nsenter"];
/// Under emulation, on a busy machine.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Print what comes to pass there.
pub fn run(release: Release, object: &Path, proofs: u64) -> Result<()> {
    let kernel = setup::machine(release)?;
    step::run("building the server in Rust", tools::build_tungstenite_echo())?;
    setup::demo(Library::Gorilla)?;
    let this = std::env::current_exe().context("asking for this program")?;
    let strip = setup::ebpf()?.llvm_folder()?.join("llvm-objcopy");
    let mut files = Initramfs::default();
    files.add_tool("busybox", "/bin/busybox", &strip)?;
    files.add_tool("modprobe", "/sbin/modprobe", &strip)?;
    files.add_file(object)?;
    for program in [&this, &tools::tungstenite_echo(), &tools::gorilla_echo()] {
        files.add_program(program, program, &strip)?;
    }
    files.add_modules(&kernel, &MODULES)?;
    for tool in TOOLS {
        files.add_tool(tool, &format!("/usr/bin/{tool}"), &strip)?;
    }
    let mut arguments: Vec<String> =
        ["bench", "socket", "proof", "behaviour", "--object"].map(String::from).into();
    arguments.push(object.display().to_string());
    arguments.extend(["--proofs".to_owned(), proofs.to_string()]);
    for library in LIBRARIES {
        arguments.extend(["--library".to_owned(), library.name().to_owned()]);
    }
    let job = Job {
        name: "socket".to_owned(),
        limit: LIMIT,
        environment: Vec::new(),
        program: this,
        arguments,
    };
    println!("Linux {}:", kernel.version);
    for outcome in vm::run(&kernel, files, &[job], |line| println!("{line}"))? {
        let last = outcome.lines.last().map(String::as_str).unwrap_or_default();
        ensure!(outcome.status == Some(0), "it ended with {:?}: {last}", outcome.status);
    }
    Ok(())
}
