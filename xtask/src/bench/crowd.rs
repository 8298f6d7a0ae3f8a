//! Rows of many flows in random order: nothing of a flow is in a cache when its packet comes.
//!
//! Each is a row of one flow once more. A pass runs its packet on every flow once; then the server
//! acknowledges on every flow, so that all of them are in the same state again.
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use ws_guard_common::{
    flow::state,
    maps::{Counter, FlowKey, Policy, action, name, program},
    window::Rate,
};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    packets::{Connection, Packet, SWITCHING},
    programs::Programs,
};

use super::{
    patch::Patch,
    rows::{Hook, LOOK_UP, Limit, Row, pings},
    run::{self, OVER, PATCH, PROTECTED, WINDOW_MS},
};

/// Number of flows of a measurement, a power of two. Each has a client, and a source, of its own.
pub const FLOWS: u32 = 1 << 17;
/// The same of a proof without figures.
pub const FEW: u32 = 2 * BLOCK;
/// Number of flows that are opened at a time: tables of requests have room for them.
const BLOCK: u32 = 1 << 10;
/// How often that is tried.
const ATTEMPTS: u32 = 10;
/// Address of the first client.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 0);
/// Maximum cost of a row: multiple of its ratio on one flow.
const TIMES: f64 = 1.5;
/// Maximum of pings in a window that is exact, as the product's default is: the log has a slot for each.
const LIMIT: u32 = 64;
/// Window of sources under their limit. In that time a row runs less often than [`LIMIT`].
const SHORT_MS: u32 = 10_000;
/// Name of the reference.
const LOOK_UP_MANY: &str = "baseline: many flows, one look-up";

const PROGRAMS: [&str; 5] =
    ["bench_xdp_look_up", "bench_xdp", "bench_tc_look_up", "bench_out", program::CONTROL];

/// Rows of one flow, and their names on many.
const ROWS: [(Hook, &str, &str); 10] = [
    (Hook::Xdp, LOOK_UP, LOOK_UP_MANY),
    (Hook::Xdp, "data, inside a frame", "many flows: data, inside a frame"),
    (Hook::Xdp, "data, 1 frame", "many flows: data, 1 frame"),
    (Hook::Xdp, "1 ping", "many flows: 1 ping"),
    (Hook::Xdp, "1 ping over the limit, defused", "many flows: 1 ping over the limit, defused"),
    (Hook::Xdp, DROPPED, "many flows: any packet over the limit, dropped"),
    (Hook::TcEgress, LOOK_UP, LOOK_UP_MANY),
    (Hook::TcEgress, "pure ACK", "many flows: pure ACK"),
    (Hook::TcEgress, "data, 1 frame", "many flows: data, 1 frame"),
    (Hook::TcEgress, "1 pong", "many flows: 1 pong"),
];
const DROPPED: &str = "any packet of a connection over the limit, dropped";

/// Return the rows of many flows, from those of one.
pub fn rows(rows: &[Row]) -> Vec<Row> {
    let many = ROWS.iter().filter_map(|(hook, one, many)| {
        let row = rows.iter().find(|row| row.is(one, *hook))?.clone();
        let limit = match *one {
            LOOK_UP => Limit::Shown,
            _ => Limit::AsOnOne { row: one, times: TIMES },
        };
        Some(Row { name: many, many: true, reference: LOOK_UP_MANY, limit, ..row })
    });
    many.collect()
}

/// Crowds of one number of flows, opened when they are needed.
pub struct Crowds {
    object: PathBuf,
    pub flows: u32,
    /// With the action on the connections, where they are over the limit.
    open: Vec<(Option<u8>, Crowd)>,
}

impl Crowds {
    pub fn new(object: &Path, flows: u32) -> Crowds {
        Crowds { object: object.to_owned(), flows, open: Vec::new() }
    }

    /// Measure a row: mean nanoseconds of its packet, on each flow once.
    pub fn measure(&mut self, row: &Row) -> Result<u64> {
        let found = self.open.iter().position(|(throttled, _)| *throttled == row.throttled);
        let index = found.unwrap_or(self.open.len());
        if found.is_none() {
            let crowd = Crowd::open(&self.object, self.flows, row.throttled);
            let crowd = crowd.with_context(|| format!("opening {} flows", self.flows))?;
            self.open.push((row.throttled, crowd));
        }
        let measured = self.open[index].1.measure(row);
        measured.with_context(|| format!("{}, {}", row.hook.name(), row.name))
    }
}

/// Order of flows: `factor` and `step` of a [`Patch`].
#[derive(Clone, Copy)]
struct Order(u32, u32);

impl Order {
    /// By their numbers: those opened one after the other may be neighbours in memory.
    const NUMBERS: Order = Order(1, 1);
    /// Without any locality (a generator of Numerical Recipes).
    const RANDOM: Order = Order(1_664_525, 1_013_904_223);
}

/// Flows that have all had the same packets.
struct Crowd {
    programs: Programs,
    flows: u32,
    /// That of flow 0; the others differ in the client's address.
    connection: Connection,
    /// Bytes of each client after its request.
    sent: u32,
    /// Bytes of the server to each after its answer.
    answered: u32,
}

impl Crowd {
    /// Open flows, of connections over the limit if they are `throttled`.
    fn open(object: &Path, flows: u32, throttled: Option<u8>) -> Result<Crowd> {
        // As the daemon has it for that number of flows.
        let heartbeats = (flows / 16 * 3).max(4096);
        let sizes = [(name::FLOWS, flows), (name::SOURCES, flows), (name::HEARTBEATS, heartbeats)];
        let mut programs = Programs::load(object, &PROGRAMS, &sizes)?;
        programs.set_ports(&[PROTECTED])?;
        programs.set_policy(policy(throttled)?)?;
        let client = SocketAddr::new(CLIENTS.into(), 4711);
        let connection = Connection { client, ..run::connection()? };
        let mut crowd = Crowd { programs, flows, connection, sent: 0, answered: 0 };
        for first in (0..flows).step_by(BLOCK as usize) {
            crowd.connect(first, BLOCK.min(flows - first))?;
        }
        match throttled {
            // It opens the sources.
            None => crowd.send(&pings(1), Order::NUMBERS)?,
            Some(_) => crowd.throttle()?,
        }
        crowd.acknowledge(&PONG)?;
        crowd.check()?;
        Ok(crowd)
    }

    /// Open `count` flows, from number `first` on.
    ///
    /// The kernel may have no memory at hand for one, and get some meanwhile: then all of them once
    /// more, as new connections with the same end points.
    fn connect(&mut self, first: u32, count: u32) -> Result<()> {
        let connection = self.connection;
        let mut opened = 0;
        for _ in 0..ATTEMPTS {
            let before = self.programs.counters()?;
            for (program, packet) in [
                ("bench_out", connection.accepted()),
                ("bench_xdp", connection.request()),
                ("bench_out", connection.answer(SWITCHING)),
            ] {
                self.run(program, &packet, Order::NUMBERS, (first, count))?;
            }
            let counted = self.programs.counters()?.since(&before);
            opened = counted.get(Counter::FlowsOpened);
            if opened == u64::from(count) {
                return Ok(());
            }
        }
        bail!("of {count} flows from number {first} on only {opened} were opened")
    }

    /// Throttle all sources, and take their connections over the limit.
    fn throttle(&mut self) -> Result<()> {
        for number in 0..self.flows {
            self.programs.throttle(client(number).into())?;
        }
        self.send(&pings(OVER), Order::NUMBERS)
    }

    /// Run a packet on `count` flows in turn, at first on number `first`; return the last verdict and
    /// mean nanoseconds.
    fn run(
        &mut self,
        program: &str,
        packet: &Packet,
        Order(factor, step): Order,
        (first, count): (u32, u32),
    ) -> Result<(u32, u64)> {
        let (bytes, patch) = run::fixed(packet)?;
        let to_client = u32::from(packet.to.ip() == self.connection.client.ip());
        let (last, client) = (self.flows - 1, CLIENTS.to_bits());
        let patch = Patch { last, flow: first, factor, step, client, to_client, ..patch };
        self.programs.set(PATCH, 0, patch)?;
        let (verdict, time) = self.programs.repeat(program, &bytes, count)?;
        let Patch { flow: found, .. } = self.programs.get(PATCH, 0)?;
        let turn = (0..count).fold(first, |flow, _| Patch { flow, ..patch }.following());
        ensure!(found == turn, "flow {found} is next, not {turn}");
        Ok((verdict, u64::try_from(time.as_nanos()).context("a time of centuries")?))
    }

    /// Run a packet on each flow once.
    fn pass(&mut self, program: &str, packet: &Packet, order: Order) -> Result<(u32, u64)> {
        self.run(program, packet, order, (0, self.flows))
    }

    /// Let each client send these bytes.
    fn send(&mut self, payload: &[u8], order: Order) -> Result<()> {
        let packet = self.connection.from_client(self.sent, payload);
        self.sent += payload.len() as u32;
        self.pass("bench_xdp", &packet, order).map(drop)
    }

    /// Let the server acknowledge all that each client sent, in a segment with these bytes.
    fn acknowledge(&mut self, payload: &[u8]) -> Result<()> {
        let packet = self.connection.from_server(self.answered, self.sent, payload);
        self.answered += payload.len() as u32;
        self.pass("bench_out", &packet, Order::RANDOM).map(drop)
    }

    fn measure(&mut self, row: &Row) -> Result<u64> {
        if !row.before.is_empty() {
            self.enter(row)?;
        }
        let payload = &*row.payload;
        let packet = match row.hook {
            Hook::TcEgress => self.connection.from_server(self.answered, self.sent, payload),
            _ => self.connection.from_client(self.sent, payload),
        };
        let before = self.programs.counters()?;
        let (verdict, ns) = self.pass(row.program, &packet, Order::RANDOM)?;
        let counted = self.programs.counters()?.since(&before);
        run::prove_work(row, &counted, verdict, self.flows)?;
        if row.counts(Counter::EgressTracked) {
            self.answered += payload.len() as u32;
        } else if row.counts(Counter::Tracked) || row.counts(Counter::Pings) {
            self.sent += payload.len() as u32;
            // Of pings that passed none waits for its pong in a later row.
            self.acknowledge(if row.counts(Counter::Pings) { &PONG } else { &[] })?;
        }
        self.check()?;
        Ok(ns)
    }

    /// Begin a frame of each client that ends with the row's bytes; before the row of an
    /// acknowledgement those are sent, too.
    fn enter(&mut self, row: &Row) -> Result<()> {
        let payload = vec![b'x'; row.payload.len().max(row.acknowledges as usize)];
        let frame = encode(&[Frame::new(opcode::BINARY, &*payload)]);
        let (header, inside) = frame.split_at(frame.len() - payload.len());
        self.send(header, Order::RANDOM)?;
        self.acknowledge(&[])?;
        if row.acknowledges > 0 {
            self.send(inside, Order::RANDOM)?;
        }
        Ok(())
    }

    /// Fail unless the flows are where all the packets have brought them, in order and acknowledged.
    fn check(&mut self) -> Result<()> {
        let client = self.connection.frames_seq().wrapping_add(self.sent);
        let server = self.connection.answers_seq().wrapping_add(self.answered);
        for number in [0, self.flows / 3, self.flows - 1] {
            let peer = SocketAddr::new(self::client(number).into(), self.connection.client.port());
            let flow = self.programs.flow(FlowKey::new(peer, self.connection.server))?;
            let flow = flow.with_context(|| format!("flow {number} is gone"))?;
            let found = (flow.state, flow.client.next, flow.high, flow.acked, flow.server.next);
            let wanted = (state::OPEN, client, client, client, server);
            ensure!(found == wanted, "flow {number} is at {found:?}, not {wanted:?}");
        }
        Ok(())
    }
}

/// A server's pong, to an empty ping.
const PONG: [u8; 2] = [0x8A, 0];

/// Address of the client of a flow.
fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(CLIENTS.to_bits() + number)
}

/// Return the policy: a limit as the product's, within which all keep unless they are throttled.
fn policy(throttled: Option<u8>) -> Result<Policy> {
    let row = Row::new(Hook::Xdp, "many flows", "bench_xdp");
    let window = if throttled.is_some() { WINDOW_MS } else { SHORT_MS };
    let rate = Rate::new(LIMIT, window, 0);
    let rate = rate.map_err(|error| anyhow::anyhow!("limit {LIMIT}: {error:?}"))?;
    Ok(Policy { rate, ..run::policy(&row, throttled.unwrap_or(action::DEFUSE))? })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::bench::rows;

    #[test]
    fn every_row_of_many_flows_has_one_of_one() {
        let many = rows::rows().into_iter().filter(|row| row.many).count();
        assert_eq!(many, ROWS.len());
    }

    #[test]
    fn each_flow_has_its_turn_once_and_no_neighbour_follows() {
        for Order(factor, step) in [Order::NUMBERS, Order::RANDOM] {
            let mut patch = Patch { last: FLOWS - 1, factor, step, ..Patch::default() };
            let mut seen = HashSet::new();
            let mut near = 0;
            while seen.insert(patch.flow) {
                let next = patch.following();
                near += u32::from(next.abs_diff(patch.flow) <= 4);
                patch.flow = next;
            }
            assert_eq!((seen.len() as u32, patch.flow), (FLOWS, 0));
            // By chance 8 in FLOWS.
            assert!(near < 32 || factor == 1, "{near} of the flows follow a neighbour");
        }
    }
}
