//! Policy as people set it, and its form in the kernel.
//!
//! Imports go from `kernel` to `table` to `settings`.

mod choice;
mod headers;
mod kernel;
mod settings;
mod table;

pub use self::{
    choice::{Action, EscalateTo, Fragments, OnFullFlows, OnFullSources},
    headers::ClientFrom,
    settings::{MOST_PORT_POLICIES, PolicySettings},
    table::{POLICY, parse_network, parse_port},
};
