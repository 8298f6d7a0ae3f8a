//! WebSocket frames in packet captures: their segmentation, and problems found.
//!
//! The frame tracker is the one of the kernel programs, `ws_guard_common::tracker`. This crate
//! supplies the bytes, in order and of both directions, and reports the findings. Read the modules
//! in this order:
//!
//! 1. [`input`] opens captures, decompresses them, and yields their packets.
//! 2. [`packet`] finds the TCP segment in a packet.
//! 3. [`reassembly`] puts one direction's segments in order.
//! 4. [`opening`] finds the upgrade, [`pickup`] the frames where the upgrade was not captured.
//! 5. [`lane`] follows one direction's frames, [`units`] those of a length-delimited
//!    [`protocol`], also [`nested`] in messages; [`message`] decodes the content of messages.
//! 6. [`connection`] joins both directions; [`heartbeat`] matches pongs with pings, [`window`]
//!    detects held receive windows.
//! 7. [`inspector`] has the table of connections; [`report`] describes each, [`summary`] in one
//!    sentence. [`selection`] filters connections and findings.
//! 8. [`explain`] explains the bytes of a header, [`export`] writes a connection with comments,
//!    [`page`] draws connections.
#![forbid(unsafe_code)]

pub mod connection;
pub mod explain;
pub mod export;
pub mod finding;
pub mod heartbeat;
pub mod input;
pub mod inspector;
pub mod lane;
pub mod message;
pub mod nested;
pub mod opening;
pub mod packet;
pub mod page;
pub mod pickup;
pub mod protocol;
pub mod reassembly;
pub mod report;
pub mod selection;
pub mod summary;
pub mod units;
pub mod utf8;
pub mod window;

pub use finding::{Ends, Finding, Kind, Side, What};
pub use input::{Captures, ReadError};
pub use inspector::{Inspector, Totals, Visitor};
pub use report::FlowReport;
pub use selection::{End, FrameName, Moment, Selection};

/// Packets between two calls of a `tick`.
const TICK: u64 = 4096;

/// Read captures to their end, or each as far as it can be read.
/// A defect in one capture costs only the rest of that one. `tick` is called periodically.
pub fn inspect<V: Visitor>(
    captures: &mut Captures,
    mut inspector: Inspector<V>,
    mut tick: impl FnMut(),
) -> (V, Totals, Vec<ReadError>) {
    let mut errors = Vec::new();
    loop {
        match captures.next_file() {
            Ok(true) => errors.extend(read_file(captures, &mut inspector, &mut tick).err()),
            Ok(false) => break,
            Err(error) => errors.push(error),
        }
    }
    let (visitor, totals) = inspector.end();
    (visitor, totals, errors)
}

fn read_file<V: Visitor>(
    captures: &mut Captures,
    inspector: &mut Inspector<V>,
    tick: &mut impl FnMut(),
) -> Result<(), ReadError> {
    while let Some(packet) = captures.packet()? {
        inspector.packet(&packet);
        if inspector.totals.packets.is_multiple_of(TICK) {
            tick();
        }
    }
    Ok(())
}
