//! Virtual machines that run tests on other kernels than this machine's.
//!
//! A [`Kernel`] is one of Debian's, fetched by [`kernel`]; [`initramfs`] packs the tests and what they
//! need into a file system in memory; [`machine`] boots the two in QEMU and reads what the tests print.
//! Nothing of the host is visible in a machine, and it has no network to the outside.
pub mod arm64;
mod initramfs;
pub mod kernel;
mod machine;

pub use initramfs::{Initramfs, libraries};
pub use kernel::{Kernel, Release};
pub use machine::{Job, Outcome, run};

/// The oldest supported kernel, and a later one with long-term support.
/// Every test run includes the oldest. The later one's verifier refused nothing that the oldest and
/// the running one took.
pub const TESTED: [Release; 2] = [Release { major: 6, minor: 1 }, Release { major: 6, minor: 12 }];
