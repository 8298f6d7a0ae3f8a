//! Simultaneous connections, honest and lying ones, in any order of their segments.
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use ws_guard_common::{
    flow::Flow,
    frame::Violation,
    maps::{Address, Counter, Policy, action},
    replay::{Reason, Verdict},
    window::Rate,
};
use ws_guard_oracle::{
    cases::one_in,
    frames::{self, Side},
    guard::{Guard, Watched},
    liar::Liar,
    link::{Link, Path, Resend},
    receiver::Overlap,
    streams::{boundaries, frame, initial, stream},
};
use ws_guard_testkit::packets::{self, Checksum, REQUEST};

use crate::{
    budget::{self, Limits},
    connection::{Abandoned, Connection, Forged},
    kernel::{Hook, Kernel, PORT},
};

/// Maximum number of connections in a batch.
const MOST: usize = 12;
/// Maximum number of segments of an honest client's stream.
const SEGMENTS: usize = 100;
/// Maximum number of steps of an honest connection until its path becomes calm.
const STEPS: usize = 100;
/// Window in milliseconds, longer than any batch takes.
const WINDOW_MS: u32 = 1_200_000;

/// Behaviour of a connection's client.
enum Client {
    Honest(Link),
    Lying(Liar),
}

struct Party {
    client: Client,
    connection: Connection,
    /// Index among the batch's sources.
    source: usize,
    steps: usize,
    /// The server may send pongs.
    pongs: bool,
}

/// Results of batches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub streams: u64,
    pub segments: u64,
    pub frames: u64,
    /// Streams of honest clients that arrived whole.
    pub arrived: u64,
    pub honest: u64,
    /// Honest streams with a ping within the limit that was defused.
    /// It was retransmitted in place of bytes that the server held.
    pub defused_again: u64,
    pub unsynced: u64,
    /// Streams of connections whose window was held, and their segments beyond it.
    pub paced: u64,
    pub beyond: u64,
    /// Captures that the inspector read like the others; those with equal boundaries too.
    pub inspected: u64,
    pub boundaries: u64,
    /// Streams that were not compared to their end: the host was too slow, or...
    pub stalled: u64,
    /// ...XDP could not tell which kind of checksum it was.
    pub ambiguous: u64,
    pub gone: u64,
}

/// The guard in the kernel, and the tracker on the host, for one connection.
struct Both<'a> {
    kernel: &'a mut Kernel,
    connection: &'a mut Connection,
    limits: &'a Limits,
    source: &'a mut budget::Source,
    rng: &'a mut Rng,
    failed: Option<anyhow::Error>,
    segments: u64,
}

impl Both<'_> {
    fn note(&mut self, result: Result<()>) {
        if let (Err(error), None) = (result, &self.failed) {
            self.failed = Some(error);
        }
    }
}

impl Guard for Both<'_> {
    fn client(&mut self, seq: u32, payload: &mut [u8], taken: bool) -> Verdict {
        let checksum = match self.rng.u8(..4) {
            0 | 1 if !taken => Checksum::Wrong,
            // At TC the kernel knows which kind of sum it is, and here all packets come from
            // outside.
            0 if self.connection.hook == Hook::Xdp => Checksum::Partial,
            _ => Checksum::Full,
        };
        self.segments += 1;
        let paid = (self.limits, &mut *self.source);
        let how = (checksum, taken);
        let result = self.connection.client(self.kernel, paid, seq, payload, how);
        result.unwrap_or_else(|error| {
            self.note(Err(error));
            Verdict::Drop(Reason::Unreadable)
        })
    }

    fn acknowledge(&mut self, ack: u32) {
        self.segments += 1;
        let result = self.connection.server(self.rng, self.kernel, ack);
        self.note(result);
    }

    fn rest(&mut self) {
        let result = self.connection.rest(self.kernel);
        self.note(result);
    }

    /// Do nothing: the limits of a flow out of sync are not the tracker's.
    fn fall_silent(&mut self) {}
}

impl Watched for Both<'_> {
    fn flow(&self) -> &Flow {
        &self.connection.host.flow
    }
}

/// Choose the limits of a batch.
fn limits(rng: &mut Rng) -> Limits {
    let action = match rng.u8(..8) {
        0 => action::OBSERVE,
        1 => action::DROP,
        _ => action::DEFUSE,
    };
    let most = if one_in(rng, 4) { 64 } else { 12 };
    Limits {
        source: rng.u32(1..=most),
        connection: if one_in(rng, 4) { rng.u32(1..12) } else { 0 },
        share: if action == action::DEFUSE && one_in(rng, 2) { rng.u32(..=8) } else { 0 },
        action,
        pace: match rng.u8(..4) {
            _ if action != action::DEFUSE => 0,
            0 => 1024,
            1 => 1 << 20,
            _ => 0,
        },
    }
}

fn policy(limits: &Limits) -> Policy {
    let rate = |limit| Rate::new(limit, WINDOW_MS, 0).expect("in range");
    Policy {
        rate: rate(limits.source),
        connection_rate: rate(limits.connection),
        share: limits.share,
        action: limits.action,
        pace: limits.pace,
        mask_v4: Address::mask(128),
        mask_v6: Address::mask(64),
        generation: 1,
        ..Policy::default()
    }
}

/// Return the end points of connection `index`, a client of number `source`.
fn ends(rng: &mut Rng, source: usize, index: usize) -> packets::Connection {
    let v6 = source % 2 == 1;
    let (client, server): (IpAddr, IpAddr) = if v6 {
        let host = rng.u16(..);
        let client = std::net::Ipv6Addr::new(0xfd77, 0, 0, source as u16, 0, 0, 0, host);
        (client.into(), std::net::Ipv6Addr::new(0xfd77, 9, 0, 0, 0, 0, 0, 9).into())
    } else {
        ([10, 77, 0, source as u8].into(), [10, 77, 9, 9].into())
    };
    packets::Connection {
        client: SocketAddr::new(client, 4711 + index as u16),
        server: SocketAddr::new(server, PORT),
        client_seq: initial(rng).wrapping_sub(REQUEST.len() as u32),
        server_seq: initial(rng),
    }
}

/// Return the server's stream: whole, valid frames.
/// Pongs, if at all, only where every ping is followed: elsewhere they reveal unseen pings.
fn answers(rng: &mut Rng, pongs: bool) -> Vec<u8> {
    let mut message_open = false;
    let mut bytes = Vec::new();
    for _ in 0..rng.usize(..8) {
        let frame = frame(rng, false, false, &mut message_open);
        if frame.len() < 3000 && (pongs || frame[0] & 0xF != 0xA) {
            bytes.extend(frame);
        }
    }
    bytes
}

fn party(rng: &mut Rng, kernel: &mut Kernel, limits: &Limits, index: usize) -> Result<Party> {
    let source = rng.usize(..4);
    let hook = if rng.bool() { Hook::Xdp } else { Hook::Tc };
    let ends = ends(rng, source, index);
    let pongs = rng.bool() && limits.action != action::OBSERVE;
    let answers = answers(rng, pongs);
    let connection = Connection::open(rng, kernel, ends, hook, limits, answers)?;
    let base = ends.frames_seq();
    let (client, steps) = if one_in(rng, 3) {
        let mut liar = Liar::new(rng, base, Overlap::Linux);
        liar.longest = hook.longest();
        (Client::Lying(liar), rng.usize(2..40))
    } else {
        let length = rng.usize(1..16);
        let sent = stream(rng, true, length);
        let mut path = Path::any(rng);
        path.longest = hook.longest();
        let mut cuts = boundaries(rng, sent.len(), path.longest);
        while cuts.len() > SEGMENTS {
            cuts = boundaries(rng, sent.len(), path.longest);
        }
        let link = Link::new(base, sent, cuts, path);
        let steps = link.steps().min(STEPS);
        (Client::Honest(link), steps)
    };
    Ok(Party { client, connection, source, steps, pongs })
}

/// Play a batch to its end.
///
/// # Errors At the first disagreement, with the history of its connection.
pub fn play(rng: &mut Rng, kernel: &mut Kernel, tally: &mut Tally) -> Result<u64> {
    kernel.programs.forget()?;
    let limits = limits(rng);
    kernel.programs.set_policy(policy(&limits))?;
    let before = kernel.programs.counters()?;
    let mut sources = [budget::Source::new(&limits); 4];
    let mut parties = Vec::new();
    let (mut copies, mut trails) = (HashSet::new(), HashSet::new());
    for index in 0..rng.usize(1..=MOST) {
        let party = party(rng, kernel, &limits, index)?;
        // A connection that shares a slot with another may find it taken, which the tracker on the
        // host does not know.
        let (copy, trail) = party.connection.slots();
        if copies.insert(copy) & trails.insert(trail) {
            parties.push(party);
        }
    }
    let mut active: Vec<usize> = (0..parties.len()).collect();
    while !active.is_empty() {
        let at = rng.usize(..active.len());
        let party = &mut parties[active[at]];
        let source = &mut sources[party.source];
        let failed = step(rng, kernel, &limits, party, source, tally);
        told(party, failed)?;
        if party.steps == 0 {
            active.swap_remove(at);
        }
    }
    for party in &mut parties {
        let result = conclude(kernel, &limits, party, tally);
        told(party, result)?;
    }
    if parties.iter().all(|party| party.connection.abandoned.is_none()) {
        let added = add_up(kernel, &limits, &before, &parties, &sources);
        let histories = parties.iter().map(|party| party.connection.history.join("\n"));
        added.with_context(|| histories.collect::<Vec<_>>().join("\n\n"))?;
    }
    Ok(parties.len() as u64)
}

/// Add the history to a failure; drop failures of abandoned connections.
fn told(party: &Party, result: Result<()>) -> Result<()> {
    if party.connection.abandoned.is_some() {
        return Ok(());
    }
    result.with_context(|| party.connection.history.join("\n"))
}

fn step(
    rng: &mut Rng,
    kernel: &mut Kernel,
    limits: &Limits,
    party: &mut Party,
    source: &mut budget::Source,
    tally: &mut Tally,
) -> Result<()> {
    party.steps = if party.connection.abandoned.is_some() { 0 } else { party.steps - 1 };
    if party.steps > 0 && one_in(rng, 40) {
        let forged = forged(rng, party.pongs);
        let seq = party.connection.host.flow.client.resume().wrapping_sub(rng.u32(..3));
        return party.connection.forge(kernel, limits, seq, forged);
    }
    let mut lots = rng.fork();
    let connection = &mut party.connection;
    let mut both =
        Both { kernel, connection, limits, source, rng: &mut lots, failed: None, segments: 0 };
    match &mut party.client {
        Client::Lying(liar) if party.steps > 0 => liar.step(rng, &mut both),
        Client::Honest(link) if party.steps > 0 => link.step(rng, &mut both),
        Client::Lying(liar) => both.acknowledge(liar.receiver.ack()),
        Client::Honest(link) => {
            link.finish(rng, &mut both);
            both.acknowledge(link.receiver.ack());
        }
    }
    tally.segments += both.segments;
    both.failed.map_or(Ok(()), Err)
}

/// Choose a segment. A RST only where the server sends no `pongs`: behind it their pings may be another connection's.
fn forged(rng: &mut Rng, pongs: bool) -> Forged {
    let place = |rng: &mut Rng| if rng.bool() { 0 } else { rng.i32(-10..100) };
    match rng.u8(..5) {
        0 => Forged::NoAck,
        1 => Forged::BadAck,
        2 => Forged::Syn,
        3 if !pongs => Forged::Rst(place(rng)),
        _ => Forged::Fin(place(rng)),
    }
}

/// Check a connection at its end:
/// programs, tracker and oracle agree, or the flow says that it does not know.
fn conclude(kernel: &mut Kernel, limits: &Limits, party: &Party, tally: &mut Tally) -> Result<()> {
    tally.streams += 1;
    match party.connection.abandoned {
        None => {}
        Some(Abandoned::Stalled) => tally.stalled += 1,
        Some(Abandoned::Ambiguous) => tally.ambiguous += 1,
        Some(Abandoned::Gone) => tally.gone += 1,
    }
    if party.connection.abandoned.is_some() {
        return Ok(());
    }
    party.connection.agree(kernel)?;
    inspect(party, tally)?;
    let flow = &party.connection.host.flow;
    tally.frames += flow.frames_in;
    tally.paced += u64::from(party.connection.edge.is_some());
    tally.beyond += party.connection.beyond;
    tally.unsynced += u64::from(flow.unsynced_total > 0);
    let enforces = limits.action != action::OBSERVE;
    match &party.client {
        Client::Lying(liar) => {
            let (read, passed) = (liar.pings_read(), flow.pings_in - flow.defused);
            let exact = flow.unsynced_total == 0;
            ensure!(!enforces || exact, "out of sync though nothing was let by");
            ensure!(!enforces || read <= passed, "the server reads {read} pings of {passed}");
        }
        Client::Honest(link) => {
            tally.honest += 1;
            let whole = link.receiver.stream.len() == link.stream.len();
            tally.arrived += u64::from(whole);
            tally.defused_again += u64::from(honest(limits, party, link, whole)?);
        }
    }
    Ok(())
}

/// Check that the inspector finds what the server read and sent.
/// For a stream that arrived whole, it has to find the guard's counts.
fn inspect(party: &Party, tally: &mut Tally) -> Result<()> {
    let connection = &party.connection;
    let (flow, captured) = (&connection.host.flow, &connection.captured);
    let read = match &party.client {
        Client::Lying(liar) => &liar.receiver,
        Client::Honest(link) => &link.receiver,
    };
    let deflate = flow.flags & ws_guard_common::flow::DEFLATE != 0;
    let found = captured.agrees(read, &connection.answers[..connection.answered], deflate)?;
    tally.inspected += 1;
    let Client::Honest(link) = &party.client else { return Ok(()) };
    if link.receiver.stream.len() == link.stream.len() && flow.unsynced_total == 0 {
        tally.boundaries += u64::from(captured.counts_agree(&found, flow)?);
    }
    Ok(())
}

/// Check what the server read of an honest client;
/// `true` where the known limit showed: a retransmission from a boundary, in longer segments than at
/// first, is defused whole.
fn honest(limits: &Limits, party: &Party, link: &Link, whole: bool) -> Result<bool> {
    let host = &party.connection.host;
    let flow = &host.flow;
    if flow.unsynced_total > 0 {
        ensure!(limits.action == action::OBSERVE, "out of sync though nothing was let by");
        return Ok(false);
    }
    let received = &link.receiver.stream;
    let side =
        Side { from_client: true, deflate: flow.flags & ws_guard_common::flow::DEFLATE != 0 };
    let sent = frames::frames(&link.stream[..received.len()], side);
    let mut wanted = link.stream[..received.len()].to_vec();
    let mut pings = 0;
    for ping in sent.iter().filter(|frame| frame.is_ping()) {
        let as_sent = received[ping.at] == wanted[ping.at];
        wanted[ping.at] = if as_sent { wanted[ping.at] } else { wanted[ping.at] ^ 0x9 ^ 0xA };
        pings += u64::from(as_sent);
    }
    ensure!(*received == wanted, "the stream was changed elsewhere than in pings");
    let enforces = limits.action != action::OBSERVE;
    let passed = flow.pings_in - flow.defused;
    ensure!(!enforces || pings <= passed, "{pings} pings arrive, {passed} were to pass");
    if !whole {
        let path = link.path;
        let may_be = path.lost_behind > 0
            || path.resend == Resend::Any
            || limits.action != action::DEFUSE
            || party.connection.was_closed
            // It ignores the window.
            || party.connection.edge.is_some()
            // Pings over a limit came behind a gap, which is not filled in this window.
            || flow.held != 0;
        ensure!(may_be, "stuck: {path:?}, dropped {:?}", link.dropped);
        return Ok(false);
    }
    let all = frames::count(&link.stream, side, &[]);
    let found = (flow.frames_in, flow.pings_in, flow.pongs_in);
    ensure!(found == (all.frames, all.pings, all.pongs), "{found:?} counted, {all:?} sent");
    ensure!(host.by_kind == all.by_kind, "{:?} counted, {all:?} sent", host.by_kind);
    // Bytes that the server discards and that come again at a boundary are defused whole: then fewer
    // arrive.
    let at_boundary = link.path.lost_behind > 0 || link.path.resend == Resend::Any;
    if !enforces || pings == passed || at_boundary {
        return Ok(false);
    }
    // Nothing was lost, so only bytes that replace others waiting at the server can matter.
    let replaced = link.path.resend == Resend::Longer && link.receiver.replaced > 0;
    ensure!(replaced, "{pings} pings arrive, {passed} were to pass");
    Ok(true)
}

/// Check that sources and counters add up to the connections' results.
fn add_up(
    kernel: &mut Kernel,
    limits: &Limits,
    before: &ws_guard_testkit::programs::Totals,
    parties: &[Party],
    sources: &[budget::Source],
) -> Result<()> {
    let counted = kernel.programs.counters()?.since(before);
    let flows = || parties.iter().map(|party| &party.connection.host);
    for (counter, wanted) in [
        (Counter::Frames, flows().map(|host| host.flow.frames_in).sum::<u64>()),
        (Counter::Pings, flows().map(|host| host.flow.pings_in).sum()),
        (Counter::Pongs, flows().map(|host| host.flow.pongs_in).sum()),
    ] {
        let found = counted.get(counter);
        ensure!(found == wanted, "{counter:?}: {found}, the tracker says {wanted}");
    }
    for kind in Violation::ALL {
        let wanted: u64 = flows().map(|host| host.by_kind[kind as usize]).sum();
        let found = counted.violations_in[kind as usize];
        ensure!(found == wanted, "{kind:?}: {found}, the tracker says {wanted}");
    }
    for (number, wanted) in sources.iter().enumerate() {
        let address = parties.iter().find(|party| party.source == number);
        let Some(address) = address.map(|party| party.connection.ends.client.ip()) else {
            continue;
        };
        let found = kernel.programs.source(masked(address))?.map_or(0, |source| source.pings_total);
        // Behind a RST the server's bytes are read from anywhere on, also where they seem to be pongs.
        let unseen = found.checked_sub(wanted.pings);
        let charged = unseen.is_some_and(|unseen| unseen <= counted.get(Counter::Witnessed));
        ensure!(charged, "{address}: {found} pings, {} charged", wanted.pings);
        let others = parties.iter().filter(|party| party.source == number).count() as u32 - 1;
        let most = u64::from(limits.source.max(limits.share) + limits.share * others);
        let enforces = limits.action != action::OBSERVE;
        ensure!(!enforces || wanted.passed <= most, "{address}: {wanted:?} with {limits:?}");
    }
    Ok(())
}

/// Cut an address to the prefix of its source.
fn masked(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => std::net::Ipv6Addr::from(u128::from(ip) >> 64 << 64).into(),
    }
}
