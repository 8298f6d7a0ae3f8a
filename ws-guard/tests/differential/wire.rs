//! The generator's streams on a real path:
//! a TCP in user space, the guard at XDP in front of a real server, and the server's own log.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde::Deserialize;
use ws_guard_common::replay::{Reason, Verdict};
use ws_guard_oracle::{
    cases::one_in,
    frames::{self, Side},
    guard::Guard,
    link::{Link, Path, Resend},
    streams::{boundaries, spoken},
};
use ws_guard_testkit::{
    capture::{Capture, Captured},
    netns::{Family, Pair, PairOptions},
    packets::{Checksum, Packet},
    raw_tcp::{Opening, RawTcp, SEGMENT, address},
    servers::{Library, Server},
};

use crate::process;

const PORT: u16 = 9001;
/// Pings that a source may send; none are forgotten while the test runs.
const LIMIT: u64 = 4;
/// Number of simultaneous connections.
const AT_ONCE: usize = 8;
const STEPS: usize = 80;
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of retransmissions of the bytes that the server lacks.
const AGAIN: u32 = 3;
/// Window values that mark a segment of ours, to detect its passage.
const MARKS: std::ops::Range<u16> = 50_000..60_000;

/// A row of `flows -o json`.
#[derive(Debug, Deserialize)]
struct Flow {
    client: String,
    state: String,
    frames_in: u64,
    pings_in: u64,
    pongs_in: u64,
    defused: u64,
    unsynced_total: u64,
}

/// Results of the streams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub streams: u64,
    pub arrived: u64,
    pub segments: u64,
    /// Segments that the guard dropped.
    pub dropped: u64,
    pub pings: u64,
    pub defused: u64,
    /// Streams over the limit of which fewer pings passed than the limit.
    pub late: u64,
    /// Streams with pings that had passed and were defused when retransmitted.
    pub again: u64,
}

/// Namespaces, a server, and the guard in front of it.
pub struct Wire {
    // Dropped in this order: the guard is unloaded in a namespace that still exists.
    guard: process::Guard,
    server: Server,
    /// Capture behind the guard.
    behind: Capture,
    pair: Pair,
    /// The next unused address.
    next: u8,
    mark: u16,
}

/// A connection of a batch.
struct Talk {
    tcp: RawTcp,
    link: Link,
    steps: usize,
}

/// The path to the server for one connection.
struct Way<'a> {
    tcp: &'a mut RawTcp,
    behind: &'a mut Capture,
    mark: &'a mut u16,
    tally: &'a mut Tally,
    failed: Option<anyhow::Error>,
}

impl Way<'_> {
    /// Send a segment; return it as it comes out behind the guard, if it does.
    fn send(&mut self, packet: &Packet) -> Result<Option<Captured>> {
        self.tally.segments += 1;
        self.tcp.send(packet)?;
        let end = packet.seq.wrapping_add(packet.payload.len() as u32);
        if end.wrapping_sub(self.tcp.next) as i32 > 0 {
            self.tcp.next = end;
        }
        // A later segment on the same path shows that it is through, or gone.
        *self.mark = if *self.mark + 1 < MARKS.end { *self.mark + 1 } else { MARKS.start };
        let mark = Packet { window: *self.mark, ..self.tcp.segment(0, []) };
        self.tcp.send(&mark)?;
        let mut through = None;
        loop {
            let ours = |s: &Captured| s.source == packet.from;
            let next = self.behind.next(PATIENCE, ours)?.context("the mark is lost")?;
            if next.payload.is_empty() && next.window == *self.mark {
                return Ok(through);
            }
            if next.seq == packet.seq && next.payload.len() == packet.payload.len() {
                through = Some(next);
            }
        }
    }
}

impl Guard for Way<'_> {
    fn client(&mut self, seq: u32, payload: &mut [u8], taken: bool) -> Verdict {
        let offset = i64::from(seq.wrapping_sub(self.tcp.next) as i32);
        let checksum = if taken { Checksum::Full } else { Checksum::Wrong };
        let packet = Packet { checksum, ..self.tcp.segment(offset, &*payload) };
        match self.send(&packet) {
            Ok(Some(through)) => {
                payload.copy_from_slice(&through.payload);
                Verdict::Pass
            }
            Ok(None) => {
                self.tally.dropped += 1;
                Verdict::Drop(Reason::Changed)
            }
            Err(error) => {
                self.failed.get_or_insert(error);
                Verdict::Drop(Reason::Unreadable)
            }
        }
    }

    /// Do nothing: the server acknowledges by itself.
    fn acknowledge(&mut self, _ack: u32) {
        let settled = self.tcp.settle(Duration::ZERO);
        if let Err(error) = settled {
            self.failed.get_or_insert(error);
        }
    }

    /// Do nothing: a rest is for the kernel programs without a network.
    fn rest(&mut self) {}

    fn fall_silent(&mut self) {}
}

impl Wire {
    pub fn new() -> Result<Wire> {
        // Checksums are real: offloads are off.
        let pair = Pair::new(PairOptions { offloads: false, ..PairOptions::default() })?;
        let server = Server::start(&pair.server, Library::Python, PORT, None)?;
        let words = format!(
            "--attach xdp-native --port {PORT} --max-ping-rate {LIMIT} --connection-share 0 --window-seconds 3600"
        );
        let guard = process::Guard::start(&pair.server, &words)?;
        let behind = Capture::new(&pair.server)?;
        Ok(Wire { guard, server, behind, pair, next: 0, mark: MARKS.start })
    }

    /// Play several simultaneous connections to their ends.
    pub fn play(&mut self, rng: &mut Rng, tally: &mut Tally) -> Result<u64> {
        let mut talks = Vec::new();
        for _ in 0..AT_ONCE {
            talks.push(self.talk(rng)?);
        }
        let mut active: Vec<usize> = (0..talks.len()).collect();
        while !active.is_empty() {
            let at = rng.usize(..active.len());
            let talk = &mut talks[active[at]];
            self.step(rng, talk, tally)?;
            if talk.steps == 0 {
                active.swap_remove(at);
            }
        }
        let flows: Vec<Flow> = self.guard.ask("flows")?;
        for talk in talks {
            tally.streams += 1;
            let client = talk.tcp.client;
            self.conclude(talk, &flows, tally).with_context(|| client.to_string())?;
        }
        Ok(AT_ONCE as u64)
    }

    /// Open a connection from a separate address: each has the limit for itself.
    fn talk(&mut self, rng: &mut Rng) -> Result<Talk> {
        let family = if self.next.is_multiple_of(2) { Family::V4 } else { Family::V6 };
        let source = address(family, self.next);
        self.next = self.next.checked_add(1).context("no address is left")?;
        let client = SocketAddr::new(source, rng.u16(20_000..60_000));
        let server = self.server.at(family.server());
        let mut tcp = RawTcp::connect(&self.pair, client, server, &Opening::default())?;
        tcp.upgrade()?;
        tcp.settle(Duration::from_millis(20))?;
        let length = rng.usize(1..24);
        let stream = spoken(rng, length);
        let path = Path { longest: SEGMENT, ..Path::any(rng) };
        let mut cuts = boundaries(rng, stream.len(), SEGMENT);
        while cuts.len() > STEPS {
            cuts = boundaries(rng, stream.len(), SEGMENT);
        }
        let link = Link::new(tcp.next, stream, cuts, path);
        let steps = link.steps().min(STEPS);
        Ok(Talk { tcp, link, steps })
    }

    fn step(&mut self, rng: &mut Rng, talk: &mut Talk, tally: &mut Tally) -> Result<()> {
        let (tcp, behind, mark) = (&mut talk.tcp, &mut self.behind, &mut self.mark);
        let mut way = Way { tcp, behind, mark, tally, failed: None };
        talk.steps -= 1;
        if talk.steps > 0 {
            talk.link.step(rng, &mut way);
        } else {
            talk.link.finish(rng, &mut way);
        }
        if one_in(rng, 8) {
            way.acknowledge(0);
        }
        way.failed.map_or(Ok(()), Err)
    }

    /// Check that the server has read, and the guard counted, what was sent.
    /// Pings over the limit are the exception.
    fn conclude(&mut self, mut talk: Talk, flows: &[Flow], tally: &mut Tally) -> Result<()> {
        let (stream, path) = (&talk.link.stream, talk.link.path);
        if talk.link.receiver.stream.len() < stream.len() {
            // Pings over the limit behind a gap, which is not filled in this window.
            let over = frames::count(stream, Side::CLIENT, &[]).pings > LIMIT;
            let may_be = path.lost_behind > 0 || path.resend == Resend::Any || over;
            ensure!(may_be, "stuck: {path:?}");
            return talk.tcp.finish();
        }
        // A segment whose checksum XDP could not judge is sent again, with another timestamp.
        for _ in 0..AGAIN {
            if talk.tcp.drain()? {
                break;
            }
            let missing = talk.tcp.unacknowledged().max(0) as usize;
            let part = stream[stream.len().saturating_sub(missing)..].chunks(SEGMENT).next();
            let segment = talk.tcp.segment(-(missing as i64), part.unwrap_or_default());
            talk.tcp.send(&segment)?;
        }
        let missing = talk.tcp.unacknowledged();
        ensure!(missing == 0, "the server lacks {missing} bytes");
        tally.arrived += 1;
        let sent = frames::count(stream, Side::CLIENT, &[]);
        let name = talk.tcp.client.to_string();
        let flow = flows.iter().find(|flow| flow.client == name).context("no flow")?;
        let found = (flow.frames_in, flow.pings_in, flow.pongs_in);
        ensure!(found == (sent.frames, sent.pings, sent.pongs), "{sent:?} was sent: {flow:?}");
        let (over, defused) = (sent.pings.saturating_sub(LIMIT), flow.defused);
        // A filler that goes over the limit together with the bytes kept behind it is refused
        // whole, and its source throttled: segments cut anew to end before that come too late for
        // the rest of the limit.
        let gaps = path.lost_before + path.reordered > 0;
        let late = over > 0 && gaps && path.resend != Resend::Same;
        let exact = defused == over || late && (over..=sent.pings).contains(&defused);
        ensure!(exact && flow.unsynced_total == 0, "{sent:?}: {flow:?}, {path:?}");
        tally.late += u64::from(defused > over);
        ensure!(flow.state == "open", "{flow:?}");
        talk.tcp.finish()?;
        let closed = self.server.closed(talk.tcp.client, 1, PATIENCE)?;
        let read = closed.last().context("nothing in its log")?;
        let all = frames::frames(stream, Side::CLIENT);
        let data = all.iter().filter(|frame| frame.opcode < 3 && stream[frame.at] >= 0x80);
        ensure!(read.messages == data.count() as u64, "{sent:?} was sent, the server: {read:?}");
        let (pings, pongs) = (sent.pings - defused, sent.pongs + defused);
        // A retransmission from a boundary is defused whole: the known limit, for bytes lost behind
        // the guard or cut anew.
        let again = pings.saturating_sub(read.pings);
        let may_be = again == 0 || path.lost_behind > 0 || path.resend != Resend::Same;
        let exact = (read.pings + again, read.pongs) == (pings, pongs + again);
        ensure!(exact && may_be, "{sent:?}, the server: {read:?}, {path:?}");
        tally.again += u64::from(again > 0);
        (tally.pings, tally.defused) = (tally.pings + pings, tally.defused + defused);
        Ok(())
    }

    /// Stop the server, unload the guard, and check that nothing is left.
    pub fn finish(self) -> Result<()> {
        let Wire { guard, server, pair, .. } = self;
        server.stop()?;
        guard.finish()?;
        drop(pair);
        Ok(())
    }
}
