//! One run of one row: set the scene, warm up, measure, and prove the work.
use anyhow::{Context, Result, ensure};
use ws_guard_common::{
    flood::CLASSES,
    heartbeat::{WORDS, digest},
    maps::{Address, Counter, FlowKey, LIMITS_CLASSES, Policy, Rule, Tunnels, action, program},
    window::Rate,
};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    packets::{Connection, Packet, SWITCHING},
    programs::{Pod, Programs, Totals},
    tunnel::Tunnel,
};

use super::{
    crowd::{self, Crowds},
    patch::Patch,
    rows::{Hook, Opening, Row, pings},
};

/// Window longer than a run: a source over the limit stays so.
pub const WINDOW_MS: u32 = 3_600_000;
/// Pings that take a connection of a throttled source over the limit.
pub const OVER: usize = 8;

// SAFETY: `repr(C)`, integers only, and its padding has a name.
unsafe impl Pod for Patch {}

/// Runs between acknowledgements, few enough for a flow's own traces of one header each.
const BATCH: u32 = 7;
/// Traces of the segment with the most headers that are not of the common kind.
const MOST_TRACES: u32 = 240;
/// Length of a segment that is kept behind a gap.
const PIECE: usize = 1024;
/// The map that holds the [`Patch`].
pub const PATCH: &str = "PATCH";
/// Frames of a kind that a source may send: the maximum setting.
const LIMIT: u32 = Rate::MAX_LIMIT;
/// Maximum number of frames of a run, below that limit.
const MOST: u32 = 900_000;
pub const PROTECTED: u16 = 80;
const UNPROTECTED: u16 = 443;
/// Bytes a second of a paced connection: its burst is used up in the warm-up.
const PACE: u32 = 1 << 10;

/// A server's ping.
const PING: [u8; 2] = [0x89, 0];

/// UDP port of the inspected tunnel.
const VXLAN: u16 = 4789;
/// Number of rules, none of which applies to the client.
const RULES: u32 = 4_000;
/// Offset of an IPv4 header's flags behind Ethernet's, and the more-fragments flag.
const IP_FLAGS: usize = 14 + 6;
const MORE_FRAGMENTS: u8 = 0x20;

/// Every program that a row names, and those that set the scene.
pub const PROGRAMS: [&str; 11] = [
    "bench_xdp_return",
    "bench_xdp_parse",
    "bench_xdp_look_up",
    "bench_xdp_lock",
    "bench_xdp",
    "bench_tc_return",
    "bench_tc_parse",
    "bench_tc_look_up",
    "bench_in",
    "bench_out",
    program::CONTROL,
];

/// The programs, once ordinary, once with tunnels inspected, and with many flows where a row has them.
pub struct Loaded {
    plain: Programs,
    tunnels: Programs,
    crowds: Crowds,
}

impl Loaded {
    pub fn new(object: &std::path::Path) -> Result<Loaded> {
        let tunnels = Tunnels { vxlan: VXLAN, ..Tunnels::default() };
        let mut loaded = Loaded {
            plain: Programs::load(object, &PROGRAMS, &[])?,
            tunnels: Programs::load_with(object, &PROGRAMS, &[], tunnels)?,
            crowds: Crowds::new(object, crowd::FLOWS),
        };
        for programs in [&mut loaded.plain, &mut loaded.tunnels] {
            programs.set_ports(&[PROTECTED])?;
            for n in 0..RULES {
                let address = std::net::Ipv4Addr::from(0xC612_0000 + n * 7);
                programs
                    .set_rule(address.into(), Rule { flags: Rule::ALLOW, ..Rule::default() })?;
            }
        }
        Ok(loaded)
    }

    /// Let rows of many flows have this number of them, a power of two.
    pub fn with_flows(mut self, flows: u32) -> Loaded {
        self.crowds.flows = flows;
        self
    }

    /// Measure a row: mean nanoseconds of `repeat` runs, fewer if limits require, or of one on each
    /// of many flows.
    /// Where the server `acknowledges`, each row pays for that, even one without anything to
    /// acknowledge.
    pub fn measure(&mut self, row: &Row, repeat: u32, acknowledges: bool) -> Result<u64> {
        if row.many {
            return self.crowds.measure(row);
        }
        let programs = if row.tunnel { &mut self.tunnels } else { &mut self.plain };
        measure(programs, row, repeat, acknowledges)
    }

    /// Return mean nanoseconds of `repeat` runs of a row's packet, whatever it causes.
    pub fn time(&mut self, row: &Row, repeat: u32) -> Result<u64> {
        let (bytes, patch) = scene(&mut self.plain, row)?;
        self.plain.set(PATCH, 0, patch)?;
        let (_, time) = self.plain.repeat(row.program, &bytes, repeat)?;
        u64::try_from(time.as_nanos()).context("a time of centuries")
    }
}

/// A packet of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Accepted,
    Request,
    /// It opens the flow.
    Answer,
    /// It opens the source.
    Ping,
    Data,
}

impl Loaded {
    /// Open a connection of each client, and send a ping and a message on it.
    /// Each packet goes through for all connections before the next; return mean nanoseconds.
    pub fn openings(&mut self, clients: &[std::net::Ipv4Addr]) -> Result<Vec<(Phase, f64)>> {
        let programs = &mut self.plain;
        let row = Row::new(Hook::Xdp, "openings", "bench_xdp");
        programs.forget()?;
        programs.set_policy(policy(&row, action::DEFUSE)?)?;
        let before = programs.counters()?;
        let mut times = Vec::new();
        for phase in [Phase::Accepted, Phase::Request, Phase::Answer, Phase::Ping, Phase::Data] {
            let mut sum = 0;
            for &client in clients {
                let client = std::net::SocketAddr::new(client.into(), 4711);
                let (program, packet) = phase.packet(&Connection { client, ..connection()? });
                let (bytes, patch) = fixed(&packet)?;
                programs.set(PATCH, 0, patch)?;
                sum += programs.repeat(program, &bytes, 1)?.1.as_nanos();
            }
            times.push((phase, sum as f64 / clients.len() as f64));
        }
        let counted = programs.counters()?.since(&before);
        for (counter, each) in [(Counter::Pings, 1), (Counter::Frames, 2), (Counter::Defused, 0)] {
            let (found, wanted) = (counted.get(counter), each * clients.len() as u64);
            ensure!(found == wanted, "{counter:?} grew by {found}, not {wanted}");
        }
        programs.forget()?;
        Ok(times)
    }
}

impl Phase {
    fn packet(self, connection: &Connection) -> (&'static str, Packet) {
        let ping = pings(1);
        match self {
            Phase::Accepted => ("bench_out", connection.accepted()),
            Phase::Request => ("bench_xdp", connection.request()),
            Phase::Answer => ("bench_out", connection.answer(SWITCHING)),
            Phase::Ping => ("bench_xdp", connection.from_client(0, ping)),
            Phase::Data => {
                let text = encode(&[Frame::new(opcode::TEXT, [b'x'; 100])]);
                ("bench_xdp", connection.from_client(ping.len() as u32, text))
            }
        }
    }
}

pub fn policy(row: &Row, action: u8) -> Result<Policy> {
    let rate = |limit| {
        Rate::new(limit, WINDOW_MS, 0).map_err(|error| anyhow::anyhow!("limit {limit}: {error:?}"))
    };
    Ok(Policy {
        rate: rate(LIMIT)?,
        connection_rate: rate(0)?,
        share: 2,
        action,
        mask_v4: Address::mask(128),
        mask_v6: Address::mask(64),
        generation: 1,
        rules: if row.rules { RULES } else { 0 },
        proxies: row.proxied.into(),
        flags: if row.classes { LIMITS_CLASSES } else { 0 },
        class_limits: [rate(if row.classes { LIMIT } else { 0 })?; CLASSES],
        tiny_bytes: 8,
        pace: if row.paced { PACE } else { 0 },
        ..Policy::default()
    })
}

pub fn connection() -> Result<Connection> {
    Ok(Connection {
        client: "10.77.0.1:4711".parse()?,
        server: std::net::SocketAddr::new("10.77.0.2".parse()?, PROTECTED),
        // A run crosses the end of the sequence space.
        client_seq: u32::MAX - 0x10_0000,
        server_seq: u32::MAX - 0x10_0000,
    })
}

/// Return a packet as bytes, and the patch that leaves it unchanged.
pub fn fixed(packet: &Packet) -> Result<(Vec<u8>, Patch)> {
    let mut bytes = packet.build()?;
    // The length that Ethernet's shortest frame is padded to.
    bytes.resize(bytes.len().max(60), 0);
    let patch = Patch {
        seq: packet.seq,
        ack: packet.ack,
        check: u16::from_be_bytes([bytes[50], bytes[51]]),
        first: bytes[54],
        window: packet.window,
        ..Patch::default()
    };
    Ok((bytes, patch))
}

/// Run a packet through once, unchanged.
fn once(programs: &mut Programs, program: &str, packet: &Packet) -> Result<()> {
    let (bytes, patch) = fixed(packet)?;
    programs.set(PATCH, 0, patch)?;
    programs.run(program, &bytes)?;
    Ok(())
}

fn measure(programs: &mut Programs, row: &Row, repeat: u32, acknowledges: bool) -> Result<u64> {
    let repeat = MOST.checked_div(row.limited).map_or(repeat, |most| repeat.min(most));
    let warm_up = repeat / 20 + 16;
    let (bytes, mut patch) = scene(programs, row)?;
    patch.batch = if acknowledges { BATCH } else { 0 };
    patch.left = patch.batch;
    programs.set(PATCH, 0, patch)?;
    programs.repeat(row.program, &bytes, warm_up)?;
    let before = programs.counters()?;
    let (verdict, time) = programs.repeat(row.program, &bytes, repeat)?;
    let counted = programs.counters()?.since(&before);
    let proof = prove(programs, row, &counted, verdict, repeat, (patch, warm_up));
    proof.with_context(|| format!("{}, {}", row.hook.name(), row.name))?;
    u64::try_from(time.as_nanos()).context("a time of centuries")
}

/// Open a flow, and return the row's first packet with its patch.
fn scene(programs: &mut Programs, row: &Row) -> Result<(Vec<u8>, Patch)> {
    let connection = connection()?;
    programs.forget()?;
    programs.set_policy(policy(row, action::DEFUSE)?)?;
    open(programs, row.opening, &connection)?;
    let mut sent = 0;
    if let Some(action) = row.throttled {
        programs.throttle(connection.client.ip())?;
        programs.set_policy(policy(row, action)?)?;
        // More than its share: the connection goes over the limit.
        let flood = pings(OVER);
        once(programs, "bench_xdp", &connection.from_client(sent, &*flood))?;
        sent += flood.len() as u32;
    }
    if !row.before.is_empty() {
        once(programs, "bench_xdp", &connection.from_client(sent, &*row.before))?;
        sent += row.before.len() as u32;
    }
    for (number, piece) in row.behind.chunks(PIECE).enumerate() {
        let at = sent + (row.payload.len() + number * PIECE) as u32;
        once(programs, "bench_xdp", &connection.from_client(at, piece))?;
    }
    if row.proxied {
        programs.trust(connection.client.ip())?;
    }
    let at = if row.again { row.skips } else { sent };
    let mut packet = match row.hook {
        Hook::TcEgress => connection.from_server(0, at, &*row.payload),
        _ if row.opening == Opening::Handshake => {
            Packet { payload: row.payload.clone(), ..connection.request() }
        }
        _ => connection.from_client(at, &*row.payload),
    };
    if row.unprotected {
        let port = if row.hook == Hook::TcEgress { &mut packet.from } else { &mut packet.to };
        port.set_port(UNPROTECTED);
    }
    packet.ack = packet.ack.wrapping_add(row.ack_ahead);
    let (mut bytes, mut patch) = fixed(&packet)?;
    patch.seq_step = if row.again { 0 } else { row.payload.len() as u32 };
    patch.ack_step = row.acknowledges;
    patch.forget = row.forgotten.into();
    if row.answers {
        let server_asks = row.hook != Hook::TcEgress;
        patch.asks = server_asks.into();
        patch.digest = digest(&[0; WORDS], 0, 0);
        // The benchmark pings in the entry that a ping makes.
        match server_asks {
            true => once(programs, "bench_out", &connection.from_server(0, 0, PING))?,
            false => once(programs, "bench_xdp", &connection.from_client(sent, pings(1)))?,
        }
    }
    if row.fragment {
        bytes[IP_FLAGS] |= MORE_FRAGMENTS;
    }
    if row.tunnel {
        let inside = bytes.len();
        let hosts = (connection.server.ip(), connection.client.ip());
        bytes = Tunnel::Vxlan(VXLAN).around(&bytes, hosts)?;
        patch.around = u8::try_from(bytes.len() - inside)?;
    }
    Ok((bytes, patch))
}

/// Run the packets before a row's first packet.
fn open(programs: &mut Programs, opening: Opening, connection: &Connection) -> Result<()> {
    match opening {
        Opening::Flow => {
            once(programs, "bench_out", &connection.accepted())?;
            once(programs, "bench_xdp", &connection.request())?;
            once(programs, "bench_out", &connection.answer(SWITCHING))
        }
        Opening::Request => once(programs, "bench_xdp", &connection.request()),
        Opening::Midstream => {
            let frame = Frame { mask: None, ..Frame::new(opcode::TEXT, *b"from before") };
            once(programs, "bench_out", &connection.from_server(0, 0, encode(&[frame])))
        }
        Opening::Handshake => once(programs, "bench_out", &connection.accepted()),
        Opening::Nothing => Ok(()),
    }
}

/// Fail unless each repeat did the row's work, by the counters.
pub fn prove_work(row: &Row, counted: &Totals, verdict: u32, repeat: u32) -> Result<()> {
    ensure!(verdict == row.verdict, "the verdict was {verdict}, not {}: {counted:?}", row.verdict);
    for (counter, each) in &row.work {
        let (found, wanted) = (counted.get(*counter), each * u64::from(repeat));
        ensure!(found == wanted, "{counter:?} grew by {found}, not {wanted}");
    }
    Ok(())
}

/// Fail unless each repeat did the row's work, and the stream went on.
fn prove(
    programs: &mut Programs,
    row: &Row,
    counted: &Totals,
    verdict: u32,
    repeat: u32,
    (start, warm_up): (Patch, u32),
) -> Result<()> {
    prove_work(row, counted, verdict, repeat)?;
    let runs = warm_up + repeat;
    if row.answers {
        let connection = connection()?;
        let server = programs.server(FlowKey::new(connection.client, connection.server))?;
        let side = usize::from(row.hook != Hook::TcEgress);
        let timed = server.map_or(0, |server| server.heartbeats[side].count());
        ensure!(timed >= runs.into(), "{timed} of {runs} pongs were timed");
    }
    let end: Patch = programs.get(PATCH, 0)?;
    let advanced = (end.seq.wrapping_sub(start.seq), end.ack.wrapping_sub(start.ack));
    let wanted = (runs.wrapping_mul(start.seq_step), runs.wrapping_mul(start.ack_step));
    ensure!(advanced == wanted, "the stream advanced by {advanced:?} bytes, not {wanted:?}");
    if row.opening != Opening::Flow {
        return Ok(());
    }
    let connection = connection()?;
    let key = FlowKey::new(connection.client, connection.server);
    let flow = programs.flow(key)?.context("the flow is gone")?;
    // The flow's state when each of the runs was new to it.
    if row.counts(Counter::Frames) || row.counts(Counter::Pings) {
        ensure!(flow.client.next == end.seq, "the flow's cursor did not follow");
        let traces = u32::from(flow.traces);
        let as_meant =
            if row.acknowledged { traces <= BATCH * MOST_TRACES } else { traces > BATCH };
        ensure!(as_meant, "{traces} traces are left");
    } else if row.counts(Counter::FramesOut) {
        ensure!(flow.server.next == end.seq, "the flow's cursor did not follow");
    } else if row.acknowledges > 0 {
        let acked = end.ack.wrapping_sub(end.ack_step);
        ensure!(flow.acked == acked, "the flow took no acknowledgement");
    }
    Ok(())
}
