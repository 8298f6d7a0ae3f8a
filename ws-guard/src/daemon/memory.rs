//! Memory that was freed goes back to the kernel.
//!
//! A listing of all flows takes tens of megabytes for a moment, and so does loading the programs.
//! glibc keeps such memory, once for each thread that ever needed it, until somebody asks; the daemon
//! would seem to grow for as long as its tables do.

/// Give back what is free. Takes milliseconds: for now and then.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: takes the allocator's own locks; touches free memory only (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries do it by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
