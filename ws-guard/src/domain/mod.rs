//! Pure views of the kernel's maps, for people and scripts.
//! No system call but the clock's, and no allocation that grows with anything but the input.
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
