//! Memory that was freed goes back to the kernel.
//!
//! A listing of all flows takes tens of megabytes for a moment, and so does loading the programs. glibc
//! keeps what was freed, once for each thread that ever needed it, and the more the larger the pieces
//! were: the daemon would seem to grow for as long as its tables do. Other C libraries give it back by
//! themselves.

/// Free memory that a thread may keep, bytes; and pieces of this size have pages of their own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 1 << 20;

/// Keep little. To be called before there are threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_little() {
    // SAFETY: sets numbers of the allocator's own (mallopt(3)). Both, or it raises them by itself.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Give back what is free. Takes milliseconds: for now and then.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: takes the allocator's own locks; touches free memory only (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_little() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
