//! Pure views: what the kernel's maps hold, as people and scripts read it. No system call but the
//! clock's, no allocation that grows with anything but its input.
pub mod address;
pub mod clock;
pub mod event;
pub mod event_filter;
pub mod flow;
pub mod open;
pub mod origin;
pub mod overrides;
pub mod pace;
pub mod policy;
pub mod proxies;
pub mod records;
pub mod setting;
pub mod silence;
pub mod source;
pub mod status;
pub mod suspects;
pub mod tunnel;
pub mod why;
