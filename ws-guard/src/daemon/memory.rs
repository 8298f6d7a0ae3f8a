//! Return of freed memory to the kernel.
//!
//! A listing of all flows takes tens of megabytes for a moment, and so does loading the programs.
//! glibc keeps what was freed, once per thread that ever needed it, and more of it the larger the
//! allocations were: the daemon would seem to grow for as long as its tables do. Other C libraries
//! give memory back by themselves.

/// Free bytes that a thread may keep; allocations this large have their own pages.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 1 << 20;

/// Limit the memory kept. Call it before there are threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_little() {
    // SAFETY: sets parameters of the allocator (mallopt(3)). Both, or it raises them by itself.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Give back free memory. Takes milliseconds: for occasional use.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: takes the allocator's own locks; touches free memory only (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_little() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
