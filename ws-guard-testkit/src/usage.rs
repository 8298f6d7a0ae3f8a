//! Resource usage of a process, as reported under /proc.
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
    /// Resident anonymous memory in bytes: the program's allocations only.
    /// Its code and files are not included.
    pub anonymous: u64,
    /// User and system time.
    pub cpu: Duration,
}

impl Usage {
    pub fn of(pid: u32) -> Result<Usage> {
        let reading = || format!("reading /proc/{pid}: has it ended?");
        let process = Process::new(pid as i32).with_context(reading)?;
        let status = process.status().with_context(reading)?;
        // Its clock has nanoseconds, and includes ended threads; /proc has ticks of 10 ms.
        let clock = clock_getcpuclockid(Pid::from_raw(pid as i32)).with_context(reading)?;
        let cpu = clock_gettime(clock).with_context(reading)?.into();
        Ok(Usage { anonymous: status.rssanon.unwrap_or(0) * 1024, cpu })
    }
}
