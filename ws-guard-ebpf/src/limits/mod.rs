//! Limits: what a source or a connection may send in a window, and what happens beyond it.
//!
//! [`sources`] charges pings to sources and throttles them, [`frame_limits`] charges all other classes
//! of frames to their connection, and [`pace`] holds the receive window of connections over a limit,
//! which take bytes of their source's [`budgets`]. [`unread`] slows down bytes that may hide frames.

pub mod budgets;
pub mod frame_limits;
pub mod pace;
pub mod sources;
pub mod unread;
