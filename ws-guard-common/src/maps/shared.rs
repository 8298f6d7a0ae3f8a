//! What all CPUs have to know, and the lock it is changed under.

/// What the kernel verifier knows as a spin lock, by the name of its type.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct bpf_spin_lock {
    pub val: u32,
}

/// A lock in a map value. User space reads it as zero and writes it as whatever it likes.
pub type SpinLock = bpf_spin_lock;

/// What all CPUs have to know.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Shared {
    pub lock: SpinLock,
    pub _pad: u32,
    /// The latest [`crate::source::Source::throttled_until`] of all: past it no source is throttled.
    pub throttled_until: u64,
    /// The same of the sources that are banned: past it none has to be looked up for that.
    pub banned_until: u64,
    /// When a full table was last searched for entries to reclaim.
    pub swept: u64,
}
