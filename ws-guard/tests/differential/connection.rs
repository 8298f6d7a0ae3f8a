//! One connection, followed four times:
//! by the kernel programs, by the tracker on the host, by the oracle on the server's reads, and by
//! the inspector on a capture.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use ws_guard_common::{
    flow::{self, Flow, Reset, hidden, state},
    handshake::SWITCHING,
    maps::{Beginning, FlowKey, Old, action},
    out_of_order,
    replay::{Mode, Reason, Replay, Verdict},
    seq::{after, before, later},
    trail::{self, Traces},
};
use ws_guard_oracle::cases::one_in;
use ws_guard_testkit::packets::{self, Checksum, Packet, REQUEST, checksum_is_right, flag};

use crate::{
    budget::{self, Limits, Purse},
    captured::Captured,
    kernel::{Hook, Kernel},
};

/// Maximum rest of a connection, after which the guard may judge differently.
const PROMPT: Duration = Duration::from_millis(800);

/// A segment that the server's TCP discards, whatever the guard thinks of it.
#[derive(Clone, Copy, Debug)]
pub enum Forged {
    /// Data without an ACK.
    NoAck,
    /// Data that acknowledges bytes not yet sent by the server.
    BadAck,
    /// Data in a SYN.
    Syn,
    /// A RST with a wrong checksum, this number of bytes past the acknowledged byte.
    Rst(i32),
    /// A FIN with a wrong checksum, likewise.
    Fin(i32),
}

/// Reason why a connection is not compared any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// The host was too slow to know how long the connection was at rest.
    Stalled,
    /// A full checksum that equals the pseudo header's sum.
    /// XDP cannot tell the two apart, and leaves it as it is: the server discards the defused
    /// segment.
    Ambiguous,
    /// The pace refuses what follows a RST that the server may have taken, which is a matter of time.
    Gone,
}

/// Both ends of a connection and the path between them.
pub struct Connection {
    pub ends: packets::Connection,
    pub hook: Hook,
    /// The tracker on the host.
    pub host: Replay,
    pub budget: budget::Connection,
    /// The server's stream, and how much of it has been sent.
    pub answers: Vec<u8>,
    pub answered: usize,
    /// Sequence number of the server's first byte after its answer.
    answers_seq: u32,
    /// Pacing: whether it is paced over its limit, since when, and the window's end.
    /// That is at most what the server has told.
    paces: bool,
    over_since: Option<Instant>,
    pub edge: Option<u32>,
    /// Segments beyond it.
    pub beyond: u64,
    /// Set once it was closed: the server's stream was not followed then.
    pub was_closed: bool,
    /// Reason for which nothing more can be said of it.
    pub abandoned: Option<Abandoned>,
    /// Capture of what the server takes and sends.
    pub captured: Captured,
    /// Log of events, for diagnosis.
    pub history: Vec<String>,
    latest: Instant,
    rested: bool,
}

/// Return the head of a 101.
pub fn switching(deflate: bool) -> Vec<u8> {
    let mut head = packets::SWITCHING[..packets::SWITCHING.len() - 2].to_vec();
    if deflate {
        head.extend(b"Sec-WebSocket-Extensions: permessage-deflate\r\n");
    }
    head.extend(b"\r\n");
    head
}

impl Connection {
    /// Open it: request and answer, each in up to three segments.
    pub fn open(
        rng: &mut Rng,
        kernel: &mut Kernel,
        ends: packets::Connection,
        hook: Hook,
        limits: &Limits,
        answers: Vec<u8>,
    ) -> Result<Connection> {
        // No window scale.
        let tcp_options = vec![2, 4, 5, 0xB4];
        kernel.server(&Packet { tcp_options, ..ends.accepted() })?;
        let deflate = one_in(rng, 4);
        let head = switching(deflate);
        let answers_seq = ends.server_seq.wrapping_add(head.len() as u32);
        let mut captured = Captured::new(&ends, [ends.frames_seq(), answers_seq], rng.bool())?;
        for (from, to) in pieces(rng, 1, REQUEST.len()) {
            let seq = ends.client_seq.wrapping_add(from as u32);
            let part = REQUEST[from..to].to_vec();
            let packet =
                Packet::new(ends.client, ends.server, seq, ends.server_seq, part).build()?;
            ensure!(kernel.client(hook, &packet)?.is_some(), "the request is dropped");
            captured.put_bytes(packet);
        }
        for (from, to) in pieces(rng, SWITCHING.len(), head.len()) {
            let seq = ends.server_seq.wrapping_add(from as u32);
            let (part, ack) = (head[from..to].to_vec(), ends.frames_seq());
            let packet = Packet::new(ends.server, ends.client, seq, ack, part);
            kernel.server(&packet)?;
            captured.put(&packet)?;
        }
        let flow = kernel.flow(key(&ends))?.context("no flow after the answer")?;
        let mode = if limits.action == action::OBSERVE { Mode::Observe } else { Mode::Guard };
        let flags = if deflate { flow::DEFLATE } else { 0 };
        let mut host = Replay::open(ends.frames_seq(), answers_seq, flags, mode);
        host.flow.began = flow.began;
        // The secret that marks start from, or no two of them could be compared.
        (host.flow.generation, host.flow.client.mark) = (flow.generation, flow.generation);
        Ok(Connection {
            ends,
            hook,
            host,
            budget: budget::Connection::new(limits),
            answers,
            answered: 0,
            answers_seq,
            paces: limits.pace > 0,
            over_since: None,
            edge: None,
            beyond: 0,
            was_closed: false,
            abandoned: None,
            captured,
            history: vec![format!("{hook:?}, {limits:?}, deflate {deflate}")],
            latest: Instant::now(),
            rested: false,
        })
    }

    pub fn key(&self) -> FlowKey {
        key(&self.ends)
    }

    /// Return its slot for a copy of bytes behind a gap, and that of its trail.
    pub fn slots(&self) -> (u32, u32) {
        let owner = out_of_order::owner(&self.key(), self.host.flow.generation);
        (out_of_order::slot(owner) & (out_of_order::SLOTS - 1), trail::slot(owner, 0))
    }

    fn offset(&self, seq: u32) -> i32 {
        seq.wrapping_sub(self.ends.frames_seq()) as i32
    }

    fn packet(&self, seq: u32, payload: &[u8]) -> Packet {
        let sent = self.answers_seq.wrapping_add(self.answered as u32);
        Packet::new(self.ends.client, self.ends.server, seq, sent, payload.to_vec())
    }

    /// Send a segment of the client through the programs and the tracker.
    /// Both have to agree. It is captured where the server takes it.
    pub fn client(
        &mut self,
        kernel: &mut Kernel,
        paid: (&Limits, &mut budget::Source),
        seq: u32,
        payload: &mut [u8],
        (checksum, taken): (Checksum, bool),
    ) -> Result<Verdict> {
        let (verdict, out) = self.judged(kernel, paid, seq, payload, checksum)?;
        match out.filter(|_| taken && verdict == Verdict::Pass) {
            Some(out) => self.captured.taken(seq, payload.len(), out),
            None => self.captured.lost(),
        }
        Ok(verdict)
    }

    /// Judge the segment; return the verdict, and the segment as it comes out.
    fn judged(
        &mut self,
        kernel: &mut Kernel,
        (limits, source): (&Limits, &mut budget::Source),
        seq: u32,
        payload: &mut [u8],
        checksum: Checksum,
    ) -> Result<(Verdict, Option<Vec<u8>>)> {
        let at = self.offset(seq);
        self.history.push(format!("client {at}..{} {checksum:?}", at + payload.len() as i32));
        let mut packet = Packet { checksum, ..self.packet(seq, payload) };
        let built = packet.build()?;
        if self.is_disarmed(limits, &packet) {
            packet.ack = packet.ack.wrapping_sub(Beginning::LESS);
        }
        let (probes, policed, unsynced) = (kernel.probes()?, kernel.policed()?, kernel.unsynced()?);
        let out = kernel.client(self.hook, &built)?;
        // Nor is one that the pace refuses because its connection may be gone.
        let gone = self.host.flow.hidden & hidden::GONE != 0;
        if gone && out.is_none() && kernel.unsynced()? > unsynced {
            self.abandoned = Some(Abandoned::Gone);
            return Ok((Verdict::Drop(Reason::Changed), None));
        }
        if self.is_beyond(seq, payload.len()) && kernel.probes()? == probes {
            ensure!(out.is_none(), "beyond the edge, and not dropped");
            self.beyond += 1;
            return Ok((Verdict::Drop(Reason::Changed), None));
        }
        // A segment that the pace refuses on a connection already over its limit is not walked: the
        // amount is a matter of time. The segment that takes it over the limit is walked and
        // charged before.
        let refused = self.paces && out.is_none() && kernel.policed()? > policed;
        if refused && self.budget.is_over() {
            return Ok((Verdict::Drop(Reason::Changed), None));
        }
        let dropped = limits.action == action::DROP && self.budget.is_over();
        let verdict = if dropped {
            Verdict::Drop(Reason::Changed)
        } else {
            self.on_host((limits, source), seq, payload)
        };
        if let Some(last) = self.history.last_mut() {
            *last += &format!(": {verdict:?}");
        }
        let Some(out) = out else {
            if refused {
                return Ok((Verdict::Drop(Reason::Changed), None));
            }
            ensure!(verdict != Verdict::Pass, "dropped by the programs, not by the tracker");
            return Ok((verdict, None));
        };
        ensure!(verdict == Verdict::Pass, "passed by the programs, {verdict:?} by the tracker");
        self.compare(&Packet { payload: payload.to_vec(), ..packet }, &built, &out)?;
        Ok((verdict, Some(out)))
    }

    /// Check whether the client's segment is not to begin another connection.
    fn is_disarmed(&self, limits: &Limits, packet: &Packet) -> bool {
        let (flow, len) = (&self.host.flow, packet.payload.len() as u32);
        let old = before(packet.seq, flow.acked)
            && flow.began.judge_old(flow.acked, packet.seq, packet.ack, len) == Old::Disarm;
        old && limits.action != action::OBSERVE
    }

    /// Check whether the client's bytes end beyond the edge of the held window.
    fn is_beyond(&mut self, seq: u32, len: usize) -> bool {
        if self.paces && self.budget.is_over() && self.edge.is_none() {
            // A server that is silent for a second lets it be policed.
            let since = *self.over_since.get_or_insert_with(Instant::now);
            if since.elapsed() > PROMPT {
                self.abandoned = Some(Abandoned::Stalled);
            }
        }
        let end = seq.wrapping_add(len as u32);
        len > 0 && self.edge.is_some_and(|edge| after(end, edge))
    }

    /// Check the window of the server's segment, before the guard and behind it.
    fn advertised(&mut self, packet: &Packet, window: u16) -> Result<()> {
        if !self.paces || !self.budget.is_over() {
            ensure!(window == packet.window, "a window is held of a connection under no limit");
            return Ok(());
        }
        ensure!(window <= packet.window, "the window {} became {window}", packet.window);
        let told = packet.ack.wrapping_add(window.into());
        let before = self.edge.unwrap_or(told);
        ensure!(window == packet.window || !after(before, told), "the edge moves left");
        self.edge = Some(later(later(before, packet.ack), told));
        Ok(())
    }

    /// Check that the output is the tracker's.
    fn compare(&mut self, wanted: &Packet, sent: &[u8], out: &[u8]) -> Result<()> {
        let len = wanted.payload.len();
        ensure!(out.len() == sent.len(), "{} bytes became {}", sent.len(), out.len());
        let payload = &out[out.len() - len..];
        let differ = (0..len).find(|at| payload[*at] != wanted.payload[*at]);
        ensure!(differ.is_none(), "byte {differ:?} of the payload is not the tracker's");
        if wanted.checksum == Checksum::Wrong {
            ensure!(!checksum_is_right(out)?, "a wrong checksum was put right");
            return Ok(());
        }
        let partial = Packet { checksum: Checksum::Partial, ..wanted.clone() }.build()?;
        if self.hook == Hook::Xdp && wanted.checksum == Checksum::Full && out == partial {
            self.abandoned = Some(Abandoned::Ambiguous);
            return Ok(());
        }
        let wanted = wanted.build()?;
        ensure!(out == wanted, "another packet: {out:x?}, the tracker's: {wanted:x?}");
        Ok(())
    }

    fn on_host(
        &mut self,
        (limits, source): (&Limits, &mut budget::Source),
        seq: u32,
        payload: &mut [u8],
    ) -> Verdict {
        let sent = self.answers_seq.wrapping_add(self.answered as u32);
        let host = &mut self.host;
        host.flow.client_ack = sent;
        let end = seq.wrapping_add(payload.len() as u32);
        if host.flow.state == state::CLOSED && !host.flow.reopen(end) {
            return Verdict::Pass;
        }
        let now = Instant::now();
        if now - self.latest > PROMPT {
            self.abandoned = Some(Abandoned::Stalled);
        }
        host.settled = self.rested;
        let was_over = self.budget.is_over() && limits.action != action::OBSERVE;
        let mut purse = Purse { limits, source, connection: &mut self.budget };
        let mut verdict = host.client(seq, payload, &mut purse);
        let over = limits.action == action::DROP && purse.connection.is_over();
        if host.flow.state == state::UNSYNCED && was_over {
            verdict = Verdict::Drop(Reason::Changed);
        }
        if verdict == Verdict::Pass {
            (self.latest, self.rested) = (now, false);
        }
        // The segment that goes over the limit is the first to be dropped.
        if over { Verdict::Drop(Reason::Changed) } else { verdict }
    }

    /// Let the server acknowledge, with its next bytes, old ones again, or none.
    pub fn server(&mut self, rng: &mut Rng, kernel: &Kernel, ack: u32) -> Result<()> {
        let next = self.answered.min(self.answers.len());
        let (from, to) = match rng.u8(..4) {
            0 => (next, self.answers.len().min(next + rng.usize(1..200))),
            1 if next > 0 => {
                let from = rng.usize(..next);
                (from, rng.usize(from..=next.min(from + Hook::Tc.longest())))
            }
            _ => (next, next),
        };
        self.history.push(format!("server {from}..{to}, ack {}", self.offset(ack)));
        self.answered = self.answered.max(to);
        let seq = self.answers_seq.wrapping_add(from as u32);
        let payload = self.answers[from..to].to_vec();
        let mut packet = Packet::new(self.ends.server, self.ends.client, seq, ack, payload);
        if self.paces {
            packet.window = rng.u16(..4000);
        }
        let window = kernel.server(&packet)?;
        self.captured.put(&Packet { window, ..packet.clone() })?;
        self.history.push(format!("window {} became {window}", packet.window));
        self.advertised(&packet, window)?;
        self.host.flow.server_high = self.answers_seq.wrapping_add(self.answered as u32);
        self.host.acknowledge(ack);
        self.was_closed |= self.host.flow.state == state::CLOSED;
        Ok(())
    }

    /// Send a segment that the server discards whatever the guard does.
    pub fn forge(
        &mut self,
        kernel: &Kernel,
        limits: &Limits,
        seq: u32,
        forged: Forged,
    ) -> Result<()> {
        let flow = &self.host.flow;
        let behind = |bytes: i32| flow.acked.wrapping_add(bytes as u32);
        let data: &[u8] = &[0x89, 0x80, 0, 0, 0, 0];
        let (seq, payload) = match forged {
            Forged::Rst(bytes) | Forged::Fin(bytes) => (behind(bytes), &data[..0]),
            _ => (seq, data),
        };
        self.history.push(format!("{forged:?} at {}", self.offset(seq)));
        let mut packet = self.packet(seq, payload);
        let drops = match forged {
            Forged::Rst(_) => { *flow }.hear_reset(seq, 0, packet.ack) == Reset::Forged,
            // Of the bytes that the server has.
            Forged::Fin(bytes) => bytes < -1,
            _ => true,
        };
        match forged {
            Forged::NoAck => packet.flags = flag::PSH,
            Forged::BadAck => packet.ack = packet.ack.wrapping_add(1),
            // Where its beginning is known, it is not one of the connection's.
            Forged::Syn => packet.flags = flag::SYN | flag::ACK,
            Forged::Rst(_) => packet.flags = flag::RST,
            Forged::Fin(_) => packet.flags = flag::FIN | flag::ACK,
        }
        if matches!(forged, Forged::Rst(_) | Forged::Fin(_)) {
            packet.checksum = Checksum::Wrong;
        }
        // A RST may end it.
        let over = limits.action == action::DROP && self.budget.is_over();
        let throttled = over && !matches!(forged, Forged::Syn | Forged::Rst(_));
        let drops = throttled || drops && limits.action != action::OBSERVE;
        let passes = kernel.client(self.hook, &packet.build()?)?.is_some();
        ensure!(passes != drops, "a forged segment: passes {passes}");
        if throttled {
            return Ok(());
        }
        let flow = &mut self.host.flow;
        match forged {
            Forged::Rst(_) if flow.hear_reset(seq, 0, packet.ack) == Reset::Closed => {
                // The time since it ended counts from here.
                (self.latest, self.rested) = (Instant::now(), false);
            }
            Forged::Fin(_) => {
                flow.hear_fin(seq);
                flow.client_ack = if passes { packet.ack } else { flow.client_ack };
            }
            _ => {}
        }
        self.was_closed |= self.host.flow.state == state::CLOSED;
        Ok(())
    }

    /// Let time pass without events.
    pub fn rest(&mut self, kernel: &mut Kernel) -> Result<()> {
        // Segments that pass unjudged do not advance the guard's clock. And after another rest the flow would be
        // taken for one that stalls.
        if self.host.mode == Mode::Observe || self.rested {
            return Ok(());
        }
        self.history.push("rest".to_owned());
        self.rested = true;
        kernel.rest(self.key())
    }

    /// Check that the programs' flow equals the tracker's.
    pub fn agree(&self, kernel: &mut Kernel) -> Result<()> {
        let flow = kernel.flow(self.key())?.context("the flow is gone")?;
        let (found, wanted) = (figures(&flow), figures(&self.host.flow));
        ensure!(found == wanted, "the programs' flow: {found:?}, the tracker's: {wanted:?}");
        if flow.state != state::OPEN {
            return Ok(());
        }
        let (found, wanted) = (standing(&flow), standing(&self.host.flow));
        if found != wanted {
            bail!("the programs' flow is at {found:x?}, the tracker's at {wanted:x?}");
        }
        Ok(())
    }
}

fn key(ends: &packets::Connection) -> FlowKey {
    FlowKey::new(ends.client, ends.server)
}

/// Cut `length` bytes into one to three pieces, the first of `least` bytes or more.
fn pieces(rng: &mut Rng, least: usize, length: usize) -> Vec<(usize, usize)> {
    let mut boundaries = vec![0, length];
    if one_in(rng, 3) {
        boundaries.extend([rng.usize(least..length), rng.usize(least..length)]);
    }
    boundaries.sort_unstable();
    boundaries.dedup();
    boundaries.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Return the counts of a flow.
fn figures(flow: &Flow) -> impl PartialEq + std::fmt::Debug {
    let counts = [
        flow.frames_in,
        flow.pings_in,
        flow.pongs_in,
        flow.defused,
        flow.coalesced_segments,
        flow.split_headers,
        flow.split_frames,
        flow.gaps.into(),
        flow.unsynced_total.into(),
    ];
    (state::name(flow.state), counts)
}

/// Return the state of a flow: everything that decides about the next segment.
fn standing(flow: &Flow) -> impl PartialEq + std::fmt::Debug {
    let traces: Vec<_> = match flow.trail {
        0 => (0..flow.traces.into())
            .map(|i| *flow.trace(flow.first_trace().wrapping_add(i)))
            .collect(),
        _ => Vec::new(),
    };
    let places = [flow.acked, flow.high, flow.server_high, flow.client_ack];
    let hole = flow.flags & flow::HOLE != 0;
    (flow.client, flow.flags, places, hole.then_some(flow.hole), traces)
}
