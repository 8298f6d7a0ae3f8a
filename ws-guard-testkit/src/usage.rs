//! What a process or a namespace has used, as the kernel tells it under /proc.
use std::time::Duration;

use anyhow::{Context, Result};
use procfs::{FromRead, net::Snmp, process::Process};

use crate::netns::Namespace;

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
        let stat = process.stat().with_context(reading)?;
        let ticks = stat.utime + stat.stime;
        Ok(Usage {
            anonymous: status.rssanon.unwrap_or(0) * 1024,
            cpu: Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64),
        })
    }
}

/// TCP segments that the namespace has sent again since it was made (RFC 4022, tcpRetransSegs).
pub fn retransmissions(namespace: &Namespace) -> Result<u64> {
    // "self" would be the main thread, which is in another namespace.
    let snmp = namespace
        .run(|| Snmp::from_file("/proc/thread-self/net/snmp"))?
        .context("reading /proc/thread-self/net/snmp")?;
    Ok(snmp.tcp_retrans_segs)
}
