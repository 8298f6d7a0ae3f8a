//! On which kind of interface these programs are, and which flows are theirs.
//!
//! A packet may pass two guarded interfaces of one node: its uplink and a pod's. A request is read, and
//! a flow is followed, where the client's packets come by first. The other programs let them pass
//! untouched, or a frame would be looked at twice, the second time after it was changed. (Not where
//! the answer opened the flow: a CNI plugin may hand clients' packets to a pod past the host's side of
//! its interface.)

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

/// The client side: whether these programs follow what has this mark; what is nobody's is theirs from
/// now on.
#[inline(always)]
pub fn claims(mark: &mut u8) -> bool {
    if *mark == owner::NOBODY {
        *mark = own();
    }
    *mark == own()
}

/// The server side: whether these programs follow what has this mark. What is nobody's yet is followed
/// by all; what a tracker has seen it takes no notice of.
#[inline(always)]
pub fn follows(mark: u8) -> bool {
    mark == owner::NOBODY || mark == own()
}
