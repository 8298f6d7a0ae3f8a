//! Open connections by the time since the latest payload in either direction.

use std::collections::BTreeMap;

use ws_guard_common::{
    flow::{ENDED, Flow, state},
    maps::FlowKey,
};

/// Number of [`SECONDS`].
pub const STEPS: usize = SECONDS.len();
/// Minimum times of silence: common time-outs of NAT and proxies. 0 is any.
pub const SECONDS: [u64; 6] = [0, 30, 60, 100, 300, 900];
/// Maximum number of ports with their own counts.
const PORTS: usize = 64;

/// Open connections by port and minimum silence; shorter ones include longer ones.
#[derive(Debug, Default)]
pub struct Silence(BTreeMap<u16, [u32; STEPS]>);

impl Silence {
    /// Count a flow at this time of CLOCK_MONOTONIC, if it is open.
    pub fn add(&mut self, key: &FlowKey, flow: &Flow, now_ns: u64) {
        if flow.state == state::CLOSED || flow.ended == ENDED {
            return;
        }
        let counts = self.0.entry(u16::from_be(key.server_port)).or_default();
        let silent = flow.silent_ns(now_ns) / 1_000_000_000;
        for (count, seconds) in counts.iter_mut().zip(SECONDS) {
            *count += u32::from(silent >= seconds);
        }
    }

    /// Return the numbers by port, in order; last those of all other ports together.
    pub fn counts(&self) -> Vec<(Option<u16>, [u32; STEPS])> {
        let mut all = self.0.iter().map(|(port, counts)| (Some(*port), *counts));
        let mut ports: Vec<_> = all.by_ref().take(PORTS).collect();
        let others = all.fold([0; STEPS], |mut sum, (_, counts)| {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            sum
        });
        ports.push((None, others));
        ports
    }
}

#[cfg(test)]
mod tests {
    use ws_guard_common::source::millis;

    use super::*;

    fn count(flows: &[(FlowKey, Flow)], now_ns: u64) -> Vec<(Option<u16>, [u32; STEPS])> {
        let mut silence = Silence::default();
        flows.iter().for_each(|(key, flow)| silence.add(key, flow, now_ns));
        silence.counts()
    }

    const SECOND: u64 = 1_000_000_000;

    fn flow(port: u16, client_ns: u64, server_ns: u64) -> (FlowKey, Flow) {
        let key = FlowKey { server_port: port.to_be(), ..FlowKey::default() };
        let flow = Flow {
            state: state::OPEN,
            last_ns: client_ns,
            server_ms: millis(server_ns),
            ..Flow::default()
        };
        (key, flow)
    }

    #[test]
    fn silence_is_that_of_both_sides_and_of_live_connections() {
        let now = 10_000 * SECOND;
        let before = |seconds| now - seconds * SECOND;
        let mut flows = vec![
            flow(80, before(29), before(5000)),
            flow(80, before(5000), before(30)),
            flow(80, before(99), before(101)),
            flow(81, before(900), before(900)),
        ];
        let mut ended = flow(80, before(5000), before(5000));
        ended.1.ended = ENDED;
        flows.push(ended);
        let mut closed = flow(80, before(5000), before(5000));
        closed.1.state = state::CLOSED;
        flows.push(closed);
        let expected = vec![
            (Some(80), [3, 2, 1, 0, 0, 0]),
            (Some(81), [1, 1, 1, 1, 1, 1]),
            (None, [0, 0, 0, 0, 0, 0]),
        ];
        assert_eq!(count(&flows, now), expected);
    }

    #[test]
    fn ports_beyond_the_maximum_are_counted_together() {
        let flows: Vec<_> = (1..=70).map(|port| flow(port, SECOND, SECOND)).collect();
        let ports = count(&flows, SECOND);
        assert_eq!(ports.len(), PORTS + 1);
        assert_eq!(ports[PORTS], (None, [6, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn a_segment_later_than_the_clocks_reading_is_not_silence() {
        let (key, flow) = flow(80, 0, 100 * SECOND + 5_000_000);
        assert_eq!(count(&[(key, flow)], 100 * SECOND)[0].1, [1, 0, 0, 0, 0, 0]);
    }
}
