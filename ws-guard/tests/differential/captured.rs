//! The inspector as a host:
//! the bytes that a server takes, written as a capture, are read as by the oracle, the tracker and
//! the programs.
use anyhow::{Result, ensure};
use ws_guard_common::{flow::Flow, frame::Violation};
use ws_guard_inspect::{FlowReport, Side, What, finding::Broken, report::SideReport};
use ws_guard_oracle::{frames, receiver::Receiver};
use ws_guard_testkit::packets::{self, Packet, flag};

use crate::common::{ETHERNET, START, Told, inspected, pcap, pcapng};

/// Interval between two packets, in nanoseconds.
const APART: u64 = 1_000_000;

/// The capture of one connection.
pub struct Captured {
    packets: Vec<crate::common::Packet>,
    /// Sequence numbers of the first frames, the client's and the server's.
    first: [u32; 2],
    /// Its next sequence number, as long as all came in order and once.
    in_order: Option<u32>,
    is_pcapng: bool,
}

impl Captured {
    /// Begin with the three segments of TCP's handshake.
    pub fn new(ends: &packets::Connection, first: [u32; 2], is_pcapng: bool) -> Result<Captured> {
        let mut captured =
            Captured { packets: Vec::new(), first, in_order: Some(first[0]), is_pcapng };
        let syn = ends.client_seq.wrapping_sub(1);
        let syn = Packet::new(ends.client, ends.server, syn, 0, Vec::new()).flags(flag::SYN);
        captured.put(&syn)?;
        captured.put(&ends.accepted())?;
        let (seq, ack) = (ends.client_seq, ends.server_seq);
        captured.put(&Packet::new(ends.client, ends.server, seq, ack, Vec::new()))?;
        Ok(captured)
    }

    pub fn put(&mut self, packet: &Packet) -> Result<()> {
        self.put_bytes(packet.build()?);
        Ok(())
    }

    pub fn put_bytes(&mut self, data: Vec<u8>) {
        let time_ns = START + APART * self.packets.len() as u64;
        self.packets.push(crate::common::Packet { time_ns, data, cut: 0 });
    }

    /// Add a segment of the client as it came out of the guard, which the server takes.
    pub fn taken(&mut self, seq: u32, len: usize, data: Vec<u8>) {
        let end = seq.wrapping_add(len as u32);
        self.in_order = self.in_order.filter(|next| *next == seq).map(|_| end);
        self.put_bytes(data);
    }

    /// Note a segment lost in the guard or at the server: the boundaries differ.
    pub fn lost(&mut self) {
        self.in_order = None;
    }

    fn inspected(&self) -> Told {
        let file = match self.is_pcapng {
            true => pcapng(ETHERNET as u16, &self.packets, self.packets.len().is_multiple_of(2)),
            false => pcap(ETHERNET, &self.packets),
        };
        inspected(&file).0
    }

    /// Check that the inspector finds what the server read, and what it sent.
    ///
    /// # Errors At the first frame or figure that differs.
    pub fn agrees(&self, read: &Receiver, sent: &[u8], deflate: bool) -> Result<FlowReport> {
        let told = self.inspected();
        for (side, stream) in [(Side::Client, &read.stream[..]), (Side::Server, sent)] {
            let oracle = frames::Side { from_client: side == Side::Client, deflate };
            frames_agree(&told, side, self.first[side as usize], stream, oracle)?;
            // Bytes behind a gap are read at the end of a capture, and never by the server.
            if side == Side::Server || read.ranges().is_empty() {
                let wanted = frames::count(stream, oracle, &[]);
                let wanted = ([wanted.frames, wanted.pings, wanted.pongs], wanted.by_kind);
                let found = figures(&told, side);
                ensure!(
                    found == wanted,
                    "the inspector of the {side:?}: {found:?}, not {wanted:?}"
                );
            }
        }
        Ok(told.flow().clone())
    }

    /// Check the inspector's counts against the guard's for a whole stream.
    /// `true` if the boundaries agree as well, because all came in order and once.
    ///
    /// # Errors Where a figure differs.
    pub fn counts_agree(&self, found: &FlowReport, flow: &Flow) -> Result<bool> {
        let controls = found.pings_client + found.pongs_client;
        // The server sees pongs where the guard saw pings.
        let (seen, wanted) =
            ([found.frames_client, controls], [flow.frames_in, flow.pings_in + flow.pongs_in]);
        ensure!(seen == wanted, "the inspector counts {seen:?}, the guard {wanted:?}");
        if self.in_order.is_some() {
            let seen = boundaries(&found.of_client);
            let wanted = [flow.coalesced_segments, flow.split_headers, flow.split_frames];
            ensure!(seen == wanted, "boundaries: the inspector {seen:?}, the guard {wanted:?}");
        }
        Ok(self.in_order.is_some())
    }
}

fn boundaries(side: &SideReport) -> [u64; 3] {
    [side.coalesced_segments, side.split_headers, side.split_frames]
}

/// Compare frame by frame, as far as the stream goes: place, opcode and length.
fn frames_agree(
    told: &Told,
    side: Side,
    first: u32,
    stream: &[u8],
    oracle: frames::Side,
) -> Result<()> {
    let is_whole = |end: u128| end <= stream.len() as u128;
    let all = frames::frames(stream, oracle);
    let whole = all.iter().filter(|frame| frame.end.is_some_and(is_whole));
    let wanted = whole.map(|frame| {
        let length = frame.end.unwrap_or_default() - frame.header_end.unwrap_or_default();
        (frame.at as u32, frame.opcode, length as u64)
    });
    let found = told.frames(side).into_iter().filter_map(|(seq, _, frame)| {
        let at = seq.wrapping_sub(first);
        let end = u128::from(at) + u128::from(frame.header) + u128::from(frame.length);
        is_whole(end).then_some((at, frame.opcode, frame.length))
    });
    let (found, wanted): (Vec<_>, Vec<_>) = (found.collect(), wanted.collect());
    ensure!(found == wanted, "the inspector's frames of the {side:?}: {found:?}, not {wanted:?}");
    Ok(())
}

type Figures = ([u64; 3], [u64; Violation::COUNT]);

fn figures(told: &Told, side: Side) -> Figures {
    let flow = told.flow();
    let counts = match side {
        Side::Client => [flow.frames_client, flow.pings_client, flow.pongs_client],
        Side::Server => [flow.frames_server, flow.pings_server, flow.pongs_server],
    };
    let mut by_kind = [0; Violation::COUNT];
    for finding in told.of(side) {
        if let What::Violation { violation: Broken::Header(kind), .. } = finding.what {
            by_kind[kind as usize] += 1;
        }
    }
    (counts, by_kind)
}
