//! TCP connection: both directions, from the upgrade or the start of the capture.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use ws_guard_common::{frame::opcode, seq::after};

use crate::{
    finding::{At, Ends, Finding, Place, Side, What},
    heartbeat::Heartbeat,
    lane::{Event, Lane},
    opening::{Answered, Answers, Asked, Requests},
    packet::{Segment, flag},
    pickup::Pickup,
    protocol::Protocol,
    reassembly::{Chunk, Ready, Stream, Taken},
};

mod wire;

pub use wire::Wire;

/// Maximum number of segments searched for frames in a connection.
const MOST_SEARCHED: u32 = 2_000;
/// Maximum bytes of a client queued until the server's 101, and their segments.
const BACKLOG: usize = 64 << 10;
const BACKLOG_SEGMENTS: usize = 1024;

/// Protocols by port, as the user declared them.
#[derive(Debug, Default)]
pub struct Known {
    /// Protocols spoken instead of WebSocket.
    pub alone: HashMap<u16, Arc<Protocol>>,
    /// Protocols inside WebSocket messages.
    pub nested: HashMap<u16, Arc<Protocol>>,
    /// Number of leading bytes kept of each frame, for display.
    pub keep: usize,
    /// Number of leading bytes shown of each message, if messages are shown.
    pub show: Option<usize>,
}

/// Classification of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not known yet.
    Seeking,
    /// A WebSocket connection.
    Frames,
    /// Something else.
    Other,
}

/// One direction, identified by the sender's address.
#[derive(Debug)]
pub struct Direction {
    pub address: SocketAddr,
    stream: Stream,
    pub wire: Wire,
    /// Heartbeat by this side's pings.
    pub heartbeat: Heartbeat,
    requests: Requests,
    answers: Answers,
    /// Frame search as a client's stream; both are tried until the roles are known.
    as_client: Pickup,
    as_server: Pickup,
    /// Code and reason of the close frame.
    pub close: Option<(Option<u16>, String)>,
}

impl Direction {
    fn new(address: SocketAddr) -> Direction {
        Direction {
            address,
            stream: Stream::default(),
            wire: Wire::default(),
            heartbeat: Heartbeat::default(),
            requests: Requests::default(),
            answers: Answers::default(),
            as_client: Pickup::default(),
            as_server: Pickup::default(),
            close: None,
        }
    }

    /// Check whether the other side acknowledged the byte at `seq`.
    pub fn acknowledged(&self, seq: u32) -> bool {
        self.stream.acked().is_some_and(|acked| after(acked, seq))
    }
}

/// State of one connection.
#[derive(Debug)]
pub struct Connection {
    pub state: State,
    pub directions: [Direction; 2],
    /// Index of the client's direction, once known.
    client: Option<usize>,
    pub lanes: [Lane; 2],
    /// Protocol declared for the port, if that is not WebSocket...
    protocol: Option<Arc<Protocol>>,
    /// ...and the protocol nested in its messages, if it is.
    nested: Option<Arc<Protocol>>,
    /// `true` if the first SYN or bytes before the frames were not captured.
    is_midstream: bool,
    /// `true` after midstream pickup of the frames.
    pub picked_up: bool,
    /// `true` if the 101 was captured, but not the request.
    pub request_unseen: bool,
    /// Negotiation of permessage-deflate; `None` where the 101 was not captured.
    pub deflate: Option<bool>,
    /// Sequence number at which the upgrade request ends.
    asked: Option<u32>,
    /// Chunks that the client sent after it.
    backlog: Vec<Chunk<'static>>,
    pub first_ns: u64,
    pub latest_ns: u64,
    /// Latest packet.
    latest: Place,
    /// Sender of the first close frame, FIN or RST.
    pub closed_by: Option<Side>,
    events: Vec<Event>,
}

/// Index of a side in [`Connection::lanes`].
const fn lane(side: Side) -> usize {
    side as usize
}

impl Connection {
    /// Create a connection from its first segment.
    pub fn new(first: &Segment<'_>, known: &Known) -> Connection {
        let ports = [first.source.port(), first.destination.port()];
        let protocol = ports.iter().position(|port| known.alone.contains_key(port));
        Connection {
            state: State::Seeking,
            directions: [Direction::new(first.source), Direction::new(first.destination)],
            client: protocol.map(|server| 1 - server),
            protocol: protocol.and_then(|server| known.alone.get(&ports[server]).cloned()),
            nested: ports.iter().find_map(|port| known.nested.get(port)).cloned(),
            lanes: [Side::Client, Side::Server].map(|side| Lane::new(side, known.keep, known.show)),
            is_midstream: first.flags & flag::SYN == 0,
            picked_up: false,
            request_unseen: false,
            deflate: None,
            asked: None,
            backlog: Vec::new(),
            first_ns: first.place.time_ns,
            latest_ns: first.place.time_ns,
            latest: first.place,
            closed_by: None,
            events: Vec::new(),
        }
    }

    /// Return the sender of a direction; valid only once the client is known.
    fn side(&self, direction: usize) -> Side {
        if self.client == Some(direction) { Side::Client } else { Side::Server }
    }

    /// Return the direction of a side.
    pub fn direction(&self, side: Side) -> &Direction {
        let client = self.client.unwrap_or(0);
        &self.directions[if side == Side::Client { client } else { 1 - client }]
    }

    /// Return the name of the connection's protocol.
    pub fn protocol(&self) -> &str {
        self.protocol.as_ref().map_or("websocket", |protocol| &protocol.name)
    }

    pub fn ends(&self) -> Ends {
        let address = |side| self.direction(side).address;
        Ends { client: address(Side::Client), server: address(Side::Server) }
    }

    /// Check whether both sides have sent a FIN, or either a RST.
    pub fn is_over(&self) -> bool {
        let wires = || self.directions.iter().map(|direction| &direction.wire);
        wires().any(|wire| wire.has_rst) || wires().all(|wire| wire.has_fin)
    }

    /// Check whether this connection is over, or older than the one that `syn` opens.
    pub fn is_before(&self, syn: &Segment<'_>) -> bool {
        let direction = self.directions.iter().find(|side| side.address == syn.source);
        let begun = direction.and_then(|direction| direction.stream.begun());
        self.is_over() || begun != Some(syn.seq.wrapping_add(1))
    }

    /// Process a segment; findings go to `found` once this is a WebSocket connection.
    pub fn take(&mut self, segment: &Segment<'_>, found: &mut impl FnMut(&Ends, Finding)) {
        self.latest_ns = self.latest_ns.max(segment.place.time_ns);
        self.latest = segment.place;
        let direction = usize::from(self.directions[0].address != segment.source);
        let mut said = Vec::new();
        self.notice(direction, segment, &mut said);
        if self.state != State::Other && segment.flags & flag::SYN == 0 {
            self.data(direction, segment, &mut said);
        }
        if self.state == State::Frames {
            let side = self.side(direction);
            for (at, what) in said {
                found(&self.ends(), Finding::new(side, at, what));
            }
            self.tell(found);
        }
    }

    /// Process flags, window and acknowledgement.
    fn notice(&mut self, direction: usize, segment: &Segment<'_>, said: &mut Vec<(At, What)>) {
        let (flags, place) = (segment.flags, segment.place);
        if flags & flag::SYN != 0 {
            self.client = Some(if flags & flag::ACK == 0 { direction } else { 1 - direction });
            let stream = &mut self.directions[direction].stream;
            if stream.next().is_none() {
                stream.begin(segment.seq.wrapping_add(1));
            }
        }
        if flags & flag::ACK != 0 {
            self.directions[1 - direction].stream.acknowledge(segment.ack);
        }
        let ends = flags & (flag::FIN | flag::RST) != 0;
        if ends && self.client.is_some() && self.closed_by.is_none() {
            self.closed_by = Some(self.side(direction));
        }
        if flags & flag::SYN != 0 {
            self.directions[direction].wire.held.open(segment.scale);
        }
        let shift = {
            let [own, other] = [direction, 1 - direction].map(|one| self.directions[one].wire.held);
            own.shift(&other)
        };
        let wire = &mut self.directions[direction].wire;
        wire.packets += 1;
        wire.latest_ns = Some(place.time_ns);
        wire.has_fin |= flags & flag::FIN != 0;
        wire.has_rst |= flags & flag::RST != 0;
        if flags & (flag::SYN | flag::RST) == 0 {
            let at = At::new(place, segment.seq, 0);
            wire.window(at, segment.window, said);
            if let (Some(shift), true) = (shift, flags & flag::ACK != 0) {
                let window = u32::from(segment.window) << shift;
                said.extend(wire.held.advertise(at, segment.ack, window, segment.len > 0));
            }
        }
        self.directions[1 - direction].wire.held.ask();
    }

    /// Process payload: put it in order.
    fn data(&mut self, direction: usize, segment: &Segment<'_>, said: &mut Vec<(At, What)>) {
        let Segment { place, seq, len, payload, .. } = *segment;
        if len > 0 {
            let chunk = Chunk { place, base: seq, seq, bytes: payload.into(), len };
            let at = At::new(place, seq, 0);
            let side = &mut self.directions[direction];
            let taken = side.stream.take(chunk);
            side.wire.count(at, len, &taken, said);
            if let Taken::Next { chunk, .. } = taken {
                self.chunk(direction, chunk, said);
            }
        }
        self.ready(direction, said);
    }

    /// Process queued bytes that have become ready.
    fn ready(&mut self, direction: usize, said: &mut Vec<(At, What)>) {
        while let Some(ready) = self.directions[direction].stream.ready() {
            match ready {
                Ready::Chunk(chunk) => self.chunk(direction, chunk, said),
                Ready::Missing { place, seq, len } => {
                    self.missing(direction, place, seq, len, said)
                }
            }
        }
    }

    fn missing(
        &mut self,
        direction: usize,
        place: Place,
        seq: u32,
        len: u32,
        said: &mut Vec<(At, What)>,
    ) {
        let wire = &mut self.directions[direction].wire;
        wire.gaps += 1;
        wire.missing_bytes += u64::from(len);
        said.push((At::new(place, seq, 0), What::Gap { len }));
        match self.state {
            State::Frames => {
                let side = self.side(direction);
                self.lanes[lane(side)].miss(place, seq, len, &mut self.events);
            }
            State::Seeking => self.interrupt(direction),
            State::Other => {}
        }
    }

    /// Handle missing bytes: no chain of headers continues across them.
    fn interrupt(&mut self, direction: usize) {
        let side = &mut self.directions[direction];
        side.as_client.interrupt();
        side.as_server.interrupt();
        self.interrupt_opening(direction);
    }

    /// Handle missing bytes that may include the upgrade: search for frames from now.
    fn interrupt_opening(&mut self, direction: usize) {
        let side = &mut self.directions[direction];
        side.requests.interrupt();
        side.answers.interrupt();
        self.is_midstream = true;
    }

    /// Process bytes that are in order.
    fn chunk(&mut self, direction: usize, chunk: Chunk<'_>, said: &mut Vec<(At, What)>) {
        let (snapped, place) = (chunk.snapped(), chunk.place);
        if snapped > 0 {
            let known = chunk.bytes.len() as u32;
            self.directions[direction].wire.snapped_bytes += u64::from(snapped);
            let seq = chunk.seq.wrapping_add(known);
            let at = At::new(place, seq, seq.wrapping_sub(chunk.base));
            said.push((at, What::Snapped { len: snapped }));
        }
        self.chunk_in_order(direction, chunk);
        if snapped > 0 && self.state == State::Seeking {
            self.interrupt_opening(direction);
        }
    }

    fn chunk_in_order(&mut self, direction: usize, chunk: Chunk<'_>) {
        match self.state {
            State::Other => {}
            State::Frames => {
                let side = self.side(direction);
                self.lanes[lane(side)].take(chunk, &mut self.events);
            }
            State::Seeking => self.seek(direction, chunk),
        }
    }

    /// Begin a length-delimited connection; in midstream only a magic proves one.
    fn follow(&mut self, protocol: &Arc<Protocol>, chunk: &Chunk<'_>) {
        if self.is_midstream && !protocol.is_proven_by(&chunk.bytes) {
            return;
        }
        self.state = State::Frames;
        self.picked_up = self.is_midstream;
        let is_begin = !self.is_midstream;
        self.lanes.iter_mut().for_each(|lane| lane.follow(protocol, is_begin));
    }

    /// Look for the upgrade, or for frames.
    fn seek(&mut self, direction: usize, chunk: Chunk<'_>) {
        if let Some(protocol) = self.protocol.clone() {
            self.follow(&protocol, &chunk);
            if self.state == State::Frames {
                self.chunk_in_order(direction, chunk);
            }
            return;
        }
        let may_be_client = self.client.is_none_or(|client| client == direction);
        let may_be_server = self.client.is_none_or(|client| client != direction);
        if may_be_server && self.answer(direction, &chunk) {
            return;
        }
        if may_be_client && self.request(direction, &chunk) {
            return;
        }
        if self.is_midstream && self.asked.is_none() {
            self.search(direction, &chunk, may_be_client, may_be_server);
        }
    }

    /// Take a client's bytes before the 101; `true` if they are part of the opening.
    fn request(&mut self, direction: usize, chunk: &Chunk<'_>) -> bool {
        if self.asked.is_some() && !chunk.bytes.starts_with(b"GET ") {
            self.backlog.push(chunk.clone().into_owned());
            let kept: usize = self.backlog.iter().map(|chunk| chunk.bytes.len()).sum();
            if kept > BACKLOG || self.backlog.len() > BACKLOG_SEGMENTS {
                self.miss_answer();
            }
            return true;
        }
        let requests = &mut self.directions[direction].requests;
        match requests.take(chunk) {
            Asked::Upgrade(end) => {
                self.client = Some(direction);
                self.asked = Some(end);
                let behind = end.wrapping_sub(chunk.seq);
                self.backlog.clear();
                if behind < chunk.len {
                    self.backlog.push(chunk.clone().skip(behind).into_owned());
                }
                true
            }
            Asked::Nothing => requests.is_open(),
            Asked::NoHttp => {
                if !self.is_midstream {
                    self.state = State::Other;
                }
                false
            }
        }
    }

    /// Handle a 101 that is not in the capture, as in one of a single direction.
    /// The client's bytes have to prove themselves then.
    fn miss_answer(&mut self) {
        let Some(client) = self.client.filter(|_| self.asked.take().is_some()) else { return };
        self.is_midstream = true;
        for chunk in std::mem::take(&mut self.backlog) {
            match self.state {
                State::Seeking => self.search(client, &chunk, true, false),
                State::Frames => self.lanes[lane(Side::Client)].take(chunk, &mut self.events),
                State::Other => {}
            }
        }
    }

    /// Take a server's bytes; `true` if they are part of the opening.
    fn answer(&mut self, direction: usize, chunk: &Chunk<'_>) -> bool {
        let (asked, ahead) = (self.asked.is_some(), self.directions[1 - direction].requests.ahead);
        match self.directions[direction].answers.take(chunk, asked, ahead) {
            Answered::Upgrade { end, deflate } => {
                let asked = self.asked.take();
                // Without its request, a 101 is accepted only where the request can be missing.
                let is_silent = self.directions[1 - direction].stream.next().is_none();
                if asked.is_some() || self.is_midstream || is_silent {
                    self.open(direction, chunk, end, asked, deflate);
                    return true;
                }
                false
            }
            // Answer to an earlier request.
            Answered::Refused if ahead > 0 => {
                self.directions[1 - direction].requests.ahead -= 1;
                true
            }
            Answered::Refused => {
                self.asked = None;
                self.backlog.clear();
                true
            }
            Answered::Nothing => false,
        }
    }

    /// Open the connection: the 101 ended in `chunk`, before `end`.
    fn open(
        &mut self,
        server: usize,
        chunk: &Chunk<'_>,
        end: u32,
        asked: Option<u32>,
        deflate: bool,
    ) {
        self.client = Some(1 - server);
        self.state = State::Frames;
        self.nest(true);
        self.deflate = Some(deflate);
        self.request_unseen = asked.is_none();
        if deflate {
            self.lanes.iter_mut().for_each(Lane::allow_compression);
        }
        let client = &self.directions[1 - server].stream;
        // The 101 acknowledges the request, and the client sends nothing after that before the 101.
        if let Some(begin) = asked.or(client.next()).or(client.acked()) {
            self.lanes[lane(Side::Client)].begin(begin);
        }
        for waiting in std::mem::take(&mut self.backlog) {
            self.lanes[lane(Side::Client)].take(waiting, &mut self.events);
        }
        let lane = &mut self.lanes[lane(Side::Server)];
        lane.begin(end);
        let head = end.wrapping_sub(chunk.seq);
        if head < chunk.len {
            lane.take(chunk.clone().skip(head), &mut self.events);
        }
    }

    fn nest(&mut self, is_begin: bool) {
        if let Some(nested) = &self.nested {
            self.lanes.iter_mut().for_each(|lane| lane.nest(nested, is_begin));
        }
    }

    /// Search for frames of a connection in midstream.
    fn search(&mut self, direction: usize, chunk: &Chunk<'_>, client: bool, server: bool) {
        let pickups = &mut self.directions[direction];
        let found = if client { pickups.as_client.as_client(chunk) } else { None };
        let (found, side) = match found {
            Some(found) => (Some(found), Side::Client),
            None if server => (pickups.as_server.as_server(chunk), Side::Server),
            None => (None, Side::Server),
        };
        if let Some(found) = found {
            self.state = State::Frames;
            self.picked_up = true;
            self.nest(false);
            self.client = Some(if side == Side::Client { direction } else { 1 - direction });
            // Negotiation is unknown, and what may be legal is not reported as a violation.
            self.lanes.iter_mut().for_each(Lane::allow_compression);
            self.lanes[lane(side)].join_found(found, &mut self.events);
            // The knowledge of the other side's stream is as good as before.
            let other = &mut self.directions[1 - direction];
            let (as_client, as_server) = (&mut other.as_client, &mut other.as_server);
            let seen = if side == Side::Client { as_server } else { as_client };
            self.lanes[lane(side.other())].adopt(std::mem::take(seen));
            return;
        }
        let searched =
            |direction: &Direction| direction.as_client.searched.max(direction.as_server.searched);
        if self.directions.iter().map(searched).sum::<u32>() > MOST_SEARCHED {
            self.state = State::Other;
        }
    }

    /// Report the lanes' events.
    fn tell(&mut self, found: &mut impl FnMut(&Ends, Finding)) {
        let ends = self.ends();
        let mut events = std::mem::take(&mut self.events);
        for (side, event) in events.drain(..).map(|event| (event.side(), event)) {
            match event {
                Event::Found(_, at, what) => {
                    if let What::Close { code, reason, .. } = &what {
                        self.closed(side, *code, reason);
                    }
                    found(&ends, Finding::new(side, at, what));
                }
                Event::Nested(_, at, what) => {
                    found(&ends, Finding { nested: true, ..Finding::new(side, at, what) });
                }
                Event::Frame { at, frame, body, ended, .. } => {
                    let (number, code, length) = (frame.frame, frame.opcode, frame.length);
                    found(&ends, Finding::new(side, at, What::Frame(frame)));
                    self.beat(side, at, (number, code, length), body, ended, found);
                }
            }
        }
        self.events = events;
    }

    fn closed(&mut self, side: Side, code: Option<u16>, reason: &str) {
        // A FIN may arrive before the close frame that waits behind a gap.
        let is_first = self.directions.iter().all(|direction| direction.close.is_none());
        if is_first {
            self.closed_by = Some(side);
        }
        let direction = self.direction_mut(side);
        if direction.close.is_none() {
            direction.close = Some((code, reason.to_owned()));
        }
    }

    fn direction_mut(&mut self, side: Side) -> &mut Direction {
        let client = self.client.unwrap_or(0);
        &mut self.directions[if side == Side::Client { client } else { 1 - client }]
    }

    /// Process the end of a ping or pong.
    fn beat(
        &mut self,
        side: Side,
        at: At,
        (frame, code, length): (u64, u8, u64),
        body: Option<Vec<u8>>,
        ended: Place,
        found: &mut impl FnMut(&Ends, Finding),
    ) {
        let ends = self.ends();
        match code {
            opcode::PING => {
                let forgotten = self.direction_mut(side).heartbeat.ping(at, frame, ended, body);
                if let Some((at, what)) = forgotten {
                    found(&ends, Finding::new(side, at, what));
                }
            }
            opcode::PONG => {
                let pinged = side.other();
                let said = self.direction_mut(pinged).heartbeat.pong(ended, body.as_deref());
                if said.is_empty() {
                    let what = What::UnaskedPong { frame, length };
                    found(&ends, Finding::new(side, at, what));
                }
                for (at, what) in said {
                    found(&ends, Finding::new(pinged, at, what));
                }
            }
            _ => {}
        }
    }

    /// Finish at the end of the capture or of the connection.
    pub fn end(&mut self, found: &mut impl FnMut(&Ends, Finding)) {
        self.miss_answer();
        for direction in 0..2 {
            let mut said = Vec::new();
            self.directions[direction].stream.end();
            self.ready(direction, &mut said);
            self.unseen(direction, &mut said);
            let wire = &mut self.directions[direction].wire;
            if let Some(at) = wire.closed_since.take() {
                wire.zero_window_ns += self.latest_ns.saturating_sub(at.time_ns);
                said.push((at, What::ZeroWindow { closed_us: None }));
            }
            said.extend(wire.held.end(self.latest_ns, false));
            if self.state != State::Frames {
                continue;
            }
            let side = self.side(direction);
            for (at, what) in said {
                found(&self.ends(), Finding::new(side, at, what));
            }
            self.tell(found);
        }
        if self.state == State::Frames {
            for direction in 0..2 {
                let (side, ends) = (self.side(direction), self.ends());
                let unfinished = self.lanes[lane(side)].unfinished();
                let unanswered = self.directions[direction].heartbeat.end();
                for (at, what) in unfinished.into_iter().chain(unanswered) {
                    found(&ends, Finding::new(side, at, what));
                }
            }
        }
    }

    /// Report bytes that were acknowledged, but never captured.
    fn unseen(&mut self, direction: usize, said: &mut Vec<(At, What)>) {
        let side = &self.directions[direction];
        let (len, next) = (side.stream.unseen(), side.stream.next());
        if let (1.., Some(seq)) = (len, next) {
            self.missing(direction, self.latest, seq, len, said);
        }
    }
}
