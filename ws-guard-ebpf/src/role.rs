//! On which kind of interface these programs are, and which flows are theirs.
//!
//! A packet may pass two guarded interfaces of one node: its uplink and a pod's. A request is read at
//! the first of the two, and a flow is followed where the answer, coming the other way, opened it. The
//! others let its packets pass untouched, or a frame would be looked at twice, the second time after
//! it was changed.

use aya_ebpf::Global;
use ws_guard_common::flow::owner;

/// One of [`owner`]; the daemon sets it at load, so that the verifier knows it.
#[unsafe(no_mangle)]
static ROLE: Global<u8> = Global::new(owner::UPLINK);

/// What these programs mark with what they follow.
#[inline(always)]
pub fn own() -> u8 {
    ROLE.load()
}

/// Whether these programs follow what has this mark; what is nobody's is theirs from now on.
#[inline(always)]
pub fn owns(mark: &mut u8) -> bool {
    if *mark == owner::NOBODY {
        *mark = own();
    }
    *mark == own()
}
