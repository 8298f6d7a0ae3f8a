//! Pings of the client that floods: those over the limit are not to be answered.

use super::Found;
use crate::{log::Event, verdict};

/// The guard's limit: so many pings in any window of this length.
const LIMIT: u64 = 30;
const WINDOW_MS: u64 = 10_000;

#[derive(Default)]
pub struct Floods(Vec<(u64, u64, u64, u64)>);

impl Floods {
    pub fn take(&mut self, at: u64, event: &Event) {
        if let Event::Flooded { ms, sent, answered } = event {
            self.0.push((at, *ms, *sent, *answered));
        }
    }

    pub fn judge(self, found: &mut Vec<Found>) -> verdict::Floods {
        let mut sums = verdict::Floods { connections: self.0.len() as u64, ..Default::default() };
        for (at, ms, sent, answered) in self.0 {
            // However the windows lie, no more than this begin and end within the time.
            let most = LIMIT * (ms / WINDOW_MS + 1);
            let over = answered.saturating_sub(most);
            sums.sent += sent;
            sums.answered += answered;
            sums.over += over;
            if over > 0 {
                let text = format!("{answered} of {sent} pings answered in {ms} ms, {most} may be");
                found.push(Found { kind: "flood answered", who: "flooder".into(), text, at });
            }
        }
        sums
    }
}
