//! Role of these programs' interface, and the flows that they own.
//!
//! A packet may pass two guarded interfaces of one node: its uplink and a pod's. The programs that
//! the client's packets pass first read the request and follow the flow. The others let them pass
//! untouched; otherwise a frame would be read twice, the second time after it was changed. (Not
//! where the answer opened the flow: a CNI plugin may hand clients' packets to a pod past the
//! host's side of its interface.)

use aya_ebpf::Global;
use ws_guard_common::flow::owner;

/// One of [`owner`]; the daemon sets it at load, so that the verifier knows it.
#[unsafe(no_mangle)]
static ROLE: Global<u8> = Global::new(owner::UPLINK);

/// Mark of what these programs follow.
#[inline(always)]
pub fn own() -> u8 {
    ROLE.load()
}

/// Claim what has this mark, on the client's side, unless other programs own it.
#[inline(always)]
pub fn claims(mark: &mut u8) -> bool {
    if *mark == owner::NOBODY {
        *mark = own();
    }
    *mark == own()
}

/// Check whether these programs follow what has this mark, on the server's side.
/// Without an owner all do; the tracker ignores what it has seen.
#[inline(always)]
pub fn follows(mark: u8) -> bool {
    mark == owner::NOBODY || mark == own()
}
