//! Scale of a client's windows, as the handshake tells it: see [`ws_guard_common::maps::syns`] and
//! [`ws_guard_common::maps::stamp`].
//!
//! All of it is about the connection of the current segment.

#[cfg(doc)]
use ws_guard_common::maps::Unopened;

use crate::{opening::pending_upgrades::unopened, packet::RST};

/// Take over the timestamp that the client's segment echoes, see
/// [`Beginning::echoes`](ws_guard_common::maps::Beginning::echoes).
#[inline(always)]
pub fn echoes(stamp: u16) {
    if let Some((_, unopened)) = unopened() {
        unopened.began.echoes(stamp);
    }
}

/// Take over the client's SYN with this scale, see [`Unopened::is_asked_again`].
#[inline(always)]
pub fn asks_again(scale: u32) {
    if let Some((segment, unopened)) = unopened() {
        unopened.is_asked_again(segment.seq, segment.len, scale as u8);
    }
}

/// Take over the number of the server's segment, see [`Unopened::confirm`].
#[inline(always)]
pub fn confirm() {
    ws_guard_confirm();
}

/// [`confirm`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_confirm() -> u32 {
    if let Some((segment, unopened)) = unopened()
        && segment.flags & RST == 0
    {
        unopened.confirm(segment.seq, segment.ack, segment.len);
    }
    0
}
