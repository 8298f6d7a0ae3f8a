//! On which kind of interface these programs are, and which flows are theirs.
//!
//! A packet may pass two guarded interfaces of one node: its uplink and a pod's. Each flow is followed
//! at one of the two: where it was opened, or by who finds that it is nobody's. The others let its
//! packets pass untouched, or a frame would be looked at twice, the second time after it was changed.

use aya_ebpf::Global;
use ws_guard_common::flow::{Flow, owner};

/// One of [`owner`]; the daemon sets it at load, so that the verifier knows it.
#[unsafe(no_mangle)]
static ROLE: Global<u8> = Global::new(owner::UPLINK);

/// What the flows are marked with that these programs follow.
#[inline(always)]
pub fn own() -> u8 {
    ROLE.load()
}

/// Whether these programs follow the flow; one that is nobody's is theirs from now on.
#[inline(always)]
pub fn owns(flow: &mut Flow) -> bool {
    if flow.owner == owner::NOBODY {
        flow.owner = own();
    }
    flow.owner == own()
}
