//! Limits: what a source or a connection may send in a window, and what happens beyond it.
//!
//! [`charge`] charges pings to the connection and to its entry in [`sources`], and throttles both,
//! as the policy and the [`rules`] of the client say; [`frame_limits`] charges all other classes of
//! frames to their connection. [`pace`] holds the receive window of connections over a limit, which
//! take bytes of their source's [`budgets`]. [`unread`] slows down bytes that may hide frames.

use ws_guard_common::{flow::Flow, maps::Policy};

use crate::{
    maps::{self, FLOWS},
    packet,
};

pub mod budgets;
pub mod charge;
pub mod frame_limits;
pub mod pace;
pub mod rules;
pub mod sources;
pub mod unread;

/// Flow and policy of the current segment.
#[inline(always)]
pub fn at_hand() -> Option<(&'static mut Flow, &'static Policy)> {
    let key = &packet::segment()?.key;
    let policy = maps::policy_of(key.server_port)?;
    // SAFETY: map values stay mapped while a program runs; changes are made under the lock, or to
    // single words.
    FLOWS.get_ptr_mut(key).map(|flow| (unsafe { &mut *flow }, policy))
}
