//! TCP level of one direction of a connection.
use crate::{
    finding::{At, What},
    reassembly::Taken,
    window::Window,
};

/// TCP statistics of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wire {
    pub packets: u64,
    /// Number of segments with payload, and their bytes.
    pub segments: u64,
    pub bytes: u64,
    pub retransmissions: u64,
    pub out_of_order: u64,
    pub gaps: u64,
    pub missing_bytes: u64,
    pub snapped_bytes: u64,
    /// Number of closures of the receive window, and their total duration.
    pub zero_windows: u64,
    pub zero_window_ns: u64,
    pub(super) closed_since: Option<At>,
    /// Detection of a held window.
    pub held: Window,
    pub latest_ns: Option<u64>,
    /// Time of the latest data, and the longest time without any.
    pub latest_data_ns: Option<u64>,
    pub longest_silence_ns: u64,
    pub has_fin: bool,
    pub has_rst: bool,
}

impl Wire {
    /// Process the window that a segment advertises.
    pub(super) fn window(&mut self, at: At, window: u16, said: &mut Vec<(At, What)>) {
        match (window, self.closed_since) {
            (0, None) => {
                self.zero_windows += 1;
                self.closed_since = Some(at);
            }
            (1.., Some(since)) => {
                let closed_ns = at.time_ns.saturating_sub(since.time_ns);
                self.zero_window_ns += closed_ns;
                self.closed_since = None;
                let closed_us = Some(closed_ns / 1000);
                said.push((since, What::ZeroWindow { closed_us }));
            }
            _ => {}
        }
    }

    /// Count a segment with payload.
    pub(super) fn count(
        &mut self,
        at: At,
        len: u32,
        taken: &Taken<'_>,
        said: &mut Vec<(At, What)>,
    ) {
        match taken {
            Taken::Ignored => return,
            Taken::Again => {
                self.retransmissions += 1;
                said.push((at, What::Retransmission { len }));
            }
            Taken::Next { again: 0, .. } => {}
            Taken::Next { again, .. } => {
                self.retransmissions += 1;
                said.push((at, What::Retransmission { len: *again }));
            }
            Taken::Waits => {
                self.out_of_order += 1;
                said.push((at, What::OutOfOrder { len }));
            }
        }
        self.segments += 1;
        self.bytes += u64::from(len);
        if let Some(latest) = self.latest_data_ns {
            let silence = at.time_ns.saturating_sub(latest);
            self.longest_silence_ns = self.longest_silence_ns.max(silence);
        }
        self.latest_data_ns = Some(at.time_ns);
    }
}
