//! Assignment of work to CPUs, where the machine has more than one.
use anyhow::{Context, Result};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Priority above ordinary work, below the kernel's own; and the next one.
pub const FIRST: i32 = -15;
pub const SECOND: i32 = -10;

/// Return the first and last usable CPU: one for a server, one for its load.
pub fn ends() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(this()).context("asking for the CPUs to run on")?;
    let mut usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let first = usable.next().context("no CPU to run on")?;
    Ok([first, usable.next_back().unwrap_or(first)])
}

/// Pin this thread, and everything it starts from now on, to this CPU.
pub fn stay_on(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(this(), &one).with_context(|| format!("moving to CPU {cpu}"))
}

/// Start something on one CPU: children run where their thread does.
pub fn start_on<T>(cpu: usize, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(this())?;
    stay_on(cpu)?;
    let started = start();
    sched_setaffinity(this(), &before).context("going back to the CPUs before")?;
    started
}

/// Set the priority (nice) of this thread, and of everything it starts.
/// Relative to the other work of its session; where the kernel does not group by sessions, to all
/// other work. `false` where that is not permitted.
pub fn set_priority(nice: i32) -> bool {
    // SAFETY: it takes numbers and changes nothing but the scheduler's.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

/// Return the calling thread, for the scheduler's system calls.
fn this() -> Pid {
    Pid::from_raw(0)
}
