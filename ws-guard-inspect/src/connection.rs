//! One TCP connection: both directions, from its upgrade or wherever the capture begins.

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

/// Segments that are searched for frames before a connection is taken for something else.
const MOST_SEARCHED: u32 = 2_000;
/// Bytes of a client that wait for the server's 101 at most, and segments that they lie in.
const BACKLOG: usize = 64 << 10;
const BACKLOG_SEGMENTS: usize = 1024;

/// What is spoken on ports, by the user's word.
#[derive(Debug, Default)]
pub struct Known {
    /// In place of WebSocket.
    pub alone: HashMap<u16, Arc<Protocol>>,
    /// Inside of WebSocket messages.
    pub nested: HashMap<u16, Arc<Protocol>>,
    /// First bytes of each frame that are kept for whoever shows them.
    pub keep: usize,
    /// Bytes of each message that are shown, if they are.
    pub show: Option<usize>,
}

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not known yet.
    Seeking,
    /// A WebSocket connection.
    Frames,
    /// Something else.
    Other,
}

/// One direction, named by the address that sends.
#[derive(Debug)]
pub struct Direction {
    pub address: SocketAddr,
    stream: Stream,
    pub wire: Wire,
    /// Pings of this side.
    pub heartbeat: Heartbeat,
    requests: Requests,
    answers: Answers,
    /// While roles are not known, both are tried.
    as_client: Pickup,
    as_server: Pickup,
    /// Code and reason of its close frame.
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

    /// The other side acknowledged the byte at `seq`.
    pub fn acknowledged(&self, seq: u32) -> bool {
        self.stream.acked().is_some_and(|acked| after(acked, seq))
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    pub state: State,
    pub directions: [Direction; 2],
    /// Which direction is the client's, once that is known.
    client: Option<usize>,
    pub lanes: [Lane; 2],
    /// What its port is known to speak, if that is not WebSocket...
    protocol: Option<Arc<Protocol>>,
    /// ...and what is inside of its messages, if it is.
    nested: Option<Arc<Protocol>>,
    /// Its first SYN was not captured, or bytes before its frames are missing.
    is_midstream: bool,
    /// Its frames were taken up in the middle.
    pub picked_up: bool,
    /// The 101 was captured, the request was not.
    pub request_unseen: bool,
    /// permessage-deflate was agreed; `None` where the 101 was not captured.
    pub deflate: Option<bool>,
    /// Where the request ends that asked for an upgrade.
    asked: Option<u32>,
    /// What the client sent behind it.
    backlog: Vec<Chunk<'static>>,
    pub first_ns: u64,
    pub latest_ns: u64,
    /// Its latest packet.
    latest: Place,
    /// Who sent the first close frame, FIN or RST.
    pub closed_by: Option<Side>,
    events: Vec<Event>,
}

/// Index of a side in [`Connection::lanes`].
const fn lane(side: Side) -> usize {
    side as usize
}

impl Connection {
    /// The connection that a segment is the first one of.
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

    /// Who sends in a direction. Only once the client is known.
    fn side(&self, direction: usize) -> Side {
        if self.client == Some(direction) { Side::Client } else { Side::Server }
    }

    /// The direction of a side.
    pub fn direction(&self, side: Side) -> &Direction {
        let client = self.client.unwrap_or(0);
        &self.directions[if side == Side::Client { client } else { 1 - client }]
    }

    /// What it speaks.
    pub fn protocol(&self) -> &str {
        self.protocol.as_ref().map_or("websocket", |protocol| &protocol.name)
    }

    pub fn ends(&self) -> Ends {
        let address = |side| self.direction(side).address;
        Ends { client: address(Side::Client), server: address(Side::Server) }
    }

    /// Both sides have said that they send no more, or one has broken it off.
    pub fn is_over(&self) -> bool {
        let wires = || self.directions.iter().map(|direction| &direction.wire);
        wires().any(|wire| wire.has_rst) || wires().all(|wire| wire.has_fin)
    }

    /// It is over, or an older one: `syn` opens another between the same ends.
    pub fn is_before(&self, syn: &Segment<'_>) -> bool {
        let direction = self.directions.iter().find(|side| side.address == syn.source);
        let begun = direction.and_then(|direction| direction.stream.begun());
        self.is_over() || begun != Some(syn.seq.wrapping_add(1))
    }

    /// Take one of its segments. What is found goes to `found`, once it is a WebSocket connection.
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

    /// Flags, window and acknowledgement.
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

    /// Payload: put it in order.
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

    /// What follows from what had come before.
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

    /// Bytes are missing, and no chain of headers goes on.
    fn interrupt(&mut self, direction: usize) {
        let side = &mut self.directions[direction];
        side.as_client.interrupt();
        side.as_server.interrupt();
        self.interrupt_opening(direction);
    }

    /// The upgrade may be what is missing: frames are searched for from now on.
    fn interrupt_opening(&mut self, direction: usize) {
        let side = &mut self.directions[direction];
        side.requests.interrupt();
        side.answers.interrupt();
        self.is_midstream = true;
    }

    /// Bytes in order.
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

    /// A connection of a length-delimited protocol begins. In its middle only a magic proves one.
    fn follow(&mut self, protocol: &Arc<Protocol>, chunk: &Chunk<'_>) {
        if self.is_midstream && !protocol.is_proven_by(&chunk.bytes) {
            return;
        }
        self.state = State::Frames;
        self.picked_up = self.is_midstream;
        let is_begin = !self.is_midstream;
        self.lanes.iter_mut().for_each(|lane| lane.follow(protocol, is_begin));
    }

    /// Is it the upgrade, or are there frames?
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

    /// A client's bytes before the 101: `true` if they are part of the opening.
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

    /// The 101 is not in the capture, as where one direction only was captured: what the client sent
    /// has to prove itself.
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

    /// A server's bytes: `true` if they are part of the opening.
    fn answer(&mut self, direction: usize, chunk: &Chunk<'_>) -> bool {
        let (asked, ahead) = (self.asked.is_some(), self.directions[1 - direction].requests.ahead);
        match self.directions[direction].answers.take(chunk, asked, ahead) {
            Answered::Upgrade { end, deflate } => {
                let asked = self.asked.take();
                // Without its request, a 101 is believed only where the request can be missing.
                let is_silent = self.directions[1 - direction].stream.next().is_none();
                if asked.is_some() || self.is_midstream || is_silent {
                    self.open(direction, chunk, end, asked, deflate);
                    return true;
                }
                false
            }
            // An earlier request's.
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

    /// The 101 ended in `chunk`, before `end`.
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
        // The 101 acknowledges the request, and the client sends nothing behind it before.
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

    /// Look for frames in the middle of a connection.
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
            // Whether it was agreed is not known, and what is legal is no violation.
            self.lanes.iter_mut().for_each(Lane::allow_compression);
            self.lanes[lane(side)].join_found(found, &mut self.events);
            // What was seen of the other side's is no less known than before.
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

    /// Pass on what the lanes told.
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
        // A FIN may come before the close frame that waits behind a gap.
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

    /// A ping or a pong ended.
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

    /// The capture is over, or the connection is.
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

    /// Bytes that were acknowledged, and never captured.
    fn unseen(&mut self, direction: usize, said: &mut Vec<(At, What)>) {
        let side = &self.directions[direction];
        let (len, next) = (side.stream.unseen(), side.stream.next());
        if let (1.., Some(seq)) = (len, next) {
            self.missing(direction, self.latest, seq, len, said);
        }
    }
}
