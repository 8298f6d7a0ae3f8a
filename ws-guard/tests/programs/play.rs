//! Player of a row at one hook, in one address family.
use std::{net::IpAddr, thread};

use anyhow::{Context, Result, ensure};
use ws_guard_common::{
    frame::Violation,
    maps::{Beginning, FlowKey, program},
};
use ws_guard_testkit::{
    packets::{Packet, REQUEST, flag},
    programs::{Programs, Run},
    tunnel::{self, Tunnel, outer_checksum_is_right},
};

use crate::case::{Case, Family, Fate, PROTECTED, Sent, Step, connection};

/// Hook at which the client's packets are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Hook::Xdp => program::XDP_INGRESS,
            Hook::Tc => program::TC_INGRESS,
        }
    }
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_SHOT: u32 = 2;
/// TC_ACT_UNSPEC: the next program decides.
const TC_UNSPEC: u32 = u32::MAX;

/// Play a row, and compare each packet's outcome, the counters and the flow.
pub fn play(programs: &mut Programs, case: &Case, hook: Hook, family: Family) -> Result<()> {
    programs.forget()?;
    programs.set_ports(&[PROTECTED])?;
    programs.set_policy(case.policy)?;
    let first = connection(family, 0);
    programs.forget_syns(&FlowKey::new(first.client, first.server))?;
    if let Some((address, rule)) = case.rule {
        let address = address.map_or(Ok(first.client.ip()), str::parse)?;
        programs.set_rule(address, rule)?;
    }
    if case.policy.proxies > 0 {
        programs.trust(first.client.ip())?;
    }
    let before = programs.counters()?;
    for (index, step) in case.steps.iter().enumerate() {
        let result = match step {
            Step::Packet(sent) => {
                let began = began(&case.steps[..index], sent.connection, family);
                send(programs, sent, began, case.tunnel, hook, family)
            }
            Step::Throttle => programs.throttle(source(family)),
            Step::Ban => programs.ban(source(family)),
            Step::Release => programs.release(source(family)),
            Step::Report(pings) => programs.report(source(family), *pings),
            Step::Requests(count) => requests(programs, *count, hook, family),
            Step::Flow(edit) => {
                programs.change_flow(FlowKey::new(first.client, first.server), edit)
            }
            Step::TrailBusy(busy) => {
                programs.set_trail_busy(FlowKey::new(first.client, first.server), *busy)
            }
            Step::Wait(time) => {
                thread::sleep(*time);
                Ok(())
            }
        };
        result.map_err(|error| error.context(format!("step {}", index + 1)))?;
    }
    let counted = programs.counters()?.since(&before);
    for (counter, wanted) in &case.counts {
        let found = counted.get(*counter);
        ensure!(found == *wanted, "{counter:?} grew by {found}, not {wanted}");
    }
    let server = programs.server(FlowKey::new(first.client, first.server))?.unwrap_or_default();
    for (name, figure, wanted) in &case.figures {
        let found = figure(&server);
        ensure!(found == *wanted, "{name} is {found}, not {wanted}");
    }
    for kind in Violation::ALL {
        let wanted = case.violations.iter().filter(|violation| **violation == kind).count() as u64;
        let found = counted.violations_in[kind as usize];
        ensure!(found == wanted, "{kind:?} was counted {found} times, not {wanted}");
    }
    if let Some((address, identity)) = &case.client {
        let flow = programs.flow(FlowKey::new(first.client, first.server))?.context("a flow")?;
        let client = flow.account.client;
        let found = (IpAddr::from(client.address).to_string(), client.identity);
        ensure!(found == (address.clone(), *identity), "the client is {found:?}");
    }
    if let Some(wanted) = case.state {
        let flow = programs.flow(FlowKey::new(first.client, first.server))?;
        let found = flow.map(|flow| flow.state);
        ensure!(found == wanted, "the flow's state is {found:?}, not {wanted:?}");
    }
    Ok(())
}

/// Return the first connection's source, as the policy groups addresses.
fn source(family: Family) -> IpAddr {
    match (family, connection(family, 0).client.ip()) {
        (Family::V6, IpAddr::V6(ip)) => std::net::Ipv6Addr::from(u128::from(ip) >> 64 << 64).into(),
        (_, ip) => ip,
    }
}

/// Return the server's first sequence number by the connection's latest SYN-ACK.
fn began(steps: &[Step], connection: usize, family: Family) -> Option<u32> {
    steps.iter().rev().find_map(|step| match step {
        Step::Packet(sent) if sent.connection == connection && !sent.from_client => {
            let packet = packet(sent, None, family);
            let syn_ack = flag::SYN | flag::ACK;
            (packet.flags & syn_ack == syn_ack).then(|| packet.seq.wrapping_add(1))
        }
        _ => None,
    })
}

/// Build a packet. A request acknowledges the SYN-ACK, where there was one.
fn packet(sent: &Sent, began: Option<u32>, family: Family) -> Packet {
    let connection = connection(family, sent.connection);
    let (at, acked) = (sent.at as u32, sent.acked as u32);
    let mut packet = match sent.from_client {
        true => connection.from_client(at, &*sent.payload),
        false => connection.from_server(at, acked, &*sent.payload),
    };
    if let (true, true, Some(began)) = (sent.from_client, sent.at < 0, began) {
        packet.ack = began;
    }
    sent.edits.iter().for_each(|edit| edit(&mut packet));
    packet
}

fn send(
    programs: &Programs,
    sent: &Sent,
    began: Option<u32>,
    tunnel: Option<(Tunnel, bool)>,
    hook: Hook,
    family: Family,
) -> Result<()> {
    let packet = packet(sent, began, family);
    let mut bytes = packet.build()?;
    if let Some((tunnel, v6)) = tunnel {
        bytes = tunnel.around(&bytes, tunnel::ends(v6))?;
    }
    if let Some(edit) = &sent.edit_bytes {
        edit(&mut bytes);
    }
    let name = if sent.from_client { hook.program() } else { program::TC_EGRESS };
    let run = programs.run(name, &bytes)?;
    let (pass, drop) = match name {
        program::XDP_INGRESS => (XDP_PASS, XDP_DROP),
        _ => (TC_UNSPEC, TC_SHOT),
    };
    let wanted = if sent.fate == Fate::Dropped { drop } else { pass };
    ensure!(run.verdict == wanted, "the verdict is {}, not {wanted}", run.verdict as i32);
    match &sent.fate {
        Fate::Dropped => Ok(()),
        Fate::Passes => compare(&run, &bytes),
        Fate::Options(options) => {
            let changed = Packet { tcp_options: options.clone(), ..packet };
            compare(&run, &rebuilt(&bytes, &changed)?)
        }
        Fate::Window(window) => {
            let changed = Packet { window: *window, ..packet };
            let header = packet_window(&run, &changed)?;
            ensure!(header == *window, "the window is {header}, not {window}");
            compare(&run, &rebuilt(&bytes, &changed)?)
        }
        Fate::Disarmed => {
            let changed = Packet { ack: packet.ack.wrapping_sub(Beginning::LESS), ..packet };
            compare(&run, &rebuilt(&bytes, &changed)?)
        }
        Fate::Defused(at) => {
            compare(&run, &defused(&bytes, &packet, at)?)?;
            ensure!(
                tunnel.is_none() || outer_checksum_is_right(&run.packet)?,
                "the tunnel's checksum is wrong"
            );
            Ok(())
        }
    }
}

/// Send requests of this number of other connections, in two pieces each.
/// The kernel is slower to forget an entry that was looked up once.
fn requests(programs: &Programs, count: u16, hook: Hook, family: Family) -> Result<()> {
    let mut other = connection(family, 0);
    // None of them belongs to the row.
    for port in (10_000..).take(count.into()) {
        other.client.set_port(port);
        let (begin, rest) = REQUEST.split_at(REQUEST.len() / 2);
        for (left, piece) in [(REQUEST.len(), begin), (rest.len(), rest)] {
            let packet = other.from_client((left as u32).wrapping_neg(), piece);
            programs.run(hook.program(), &packet.build()?)?;
        }
    }
    Ok(())
}

fn compare(run: &Run, bytes: &[u8]) -> Result<()> {
    ensure!(run.packet.len() == bytes.len(), "{} bytes came out", run.packet.len());
    let changed: Vec<usize> = (0..bytes.len()).filter(|at| run.packet[*at] != bytes[*at]).collect();
    ensure!(changed.is_empty(), "the bytes at {changed:?} have changed");
    Ok(())
}

/// Return `bytes` with PONGs in place of the PINGs at these payload offsets.
/// The segment at the end of `bytes` gets the checksum that it would have been built with: of its
/// kind, full or partial.
fn defused(bytes: &[u8], packet: &Packet, at: &[usize]) -> Result<Vec<u8>> {
    let mut packet = packet.clone();
    for at in at {
        let byte = &mut packet.payload[*at];
        ensure!(*byte & 15 == 9, "the row is wrong: no PING at {at}");
        *byte = *byte & 0xF0 | 10;
    }
    rebuilt(bytes, &packet)
}

/// Return `bytes` with the segment of another packet of the same size at their end.
fn rebuilt(bytes: &[u8], packet: &Packet) -> Result<Vec<u8>> {
    let (built, len) = (packet.build()?, packet.tcp_len());
    let unchanged = &bytes[..bytes.len() - len];
    Ok([unchanged, &built[built.len() - len..]].concat())
}

/// Return the receive window of the output.
fn packet_window(run: &Run, packet: &Packet) -> Result<u16> {
    let tcp = run.packet.len().checked_sub(packet.tcp_len()).context("a shorter packet")?;
    let field = run.packet.get(tcp + 14..tcp + 16).context("a shorter packet")?;
    Ok(u16::from_be_bytes([field[0], field[1]]))
}
