//! State shared by all CPUs, and its lock.

/// Spin lock, recognised by the kernel's verifier by the name of its type.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct bpf_spin_lock {
    pub val: u32,
}

/// Lock in a map value. User space reads it as zero, and its writes to it are ignored.
pub type SpinLock = bpf_spin_lock;

/// State shared by all CPUs.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Shared {
    pub lock: SpinLock,
    pub _pad: u32,
    /// Latest [`crate::source::Source::throttled_until`]: after it no source is throttled.
    pub throttled_until: u64,
    /// The same of banned sources: after it none is looked up for a ban.
    pub banned_until: u64,
    /// Time of the last search of a full table for entries to reclaim.
    pub swept: u64,
}
