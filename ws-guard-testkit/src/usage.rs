//! What a process has used, as the kernel tells it under /proc.
use std::time::Duration;

use anyhow::{Context, Result};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use procfs::process::Process;

/// Memory and CPU time of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident anonymous memory in bytes: what the program allocated, without its code and files.
    pub anonymous: u64,
    /// User and system time.
    pub cpu: Duration,
}

impl Usage {
    pub fn of(pid: u32) -> Result<Usage> {
        let reading = || format!("reading /proc/{pid}: has it ended?");
        let process = Process::new(pid as i32).with_context(reading)?;
        let status = process.status().with_context(reading)?;
        // Its clock counts nanoseconds, and threads that have ended; /proc tells ticks of 10 ms.
        let clock = clock_getcpuclockid(Pid::from_raw(pid as i32)).with_context(reading)?;
        let cpu = clock_gettime(clock).with_context(reading)?.into();
        Ok(Usage { anonymous: status.rssanon.unwrap_or(0) * 1024, cpu })
    }
}
