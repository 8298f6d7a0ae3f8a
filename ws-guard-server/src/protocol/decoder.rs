//! From bytes to messages, RFC 6455, 5 and 6.2.

use bytes::{Buf, Bytes, BytesMut};
use ws_guard_common::frame::{Expect, FIN, Header, OPCODE, RSV1, opcode};

use super::{
    Close, ProtocolError, close,
    deflate::{Inflater, Inflating},
    mask, utf8,
};
use crate::turn::Turn;

/// What a message's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Binary,
}

impl Kind {
    /// The opcode on the wire.
    pub const fn opcode(self) -> u8 {
        match self {
            Kind::Text => opcode::TEXT,
            Kind::Binary => opcode::BINARY,
        }
    }
}

/// A whole message. The payload of one that came in a single frame is the memory it was read into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    /// Of text, valid UTF-8.
    pub payload: Bytes,
}

/// A fragment of a message, where they are handed on as they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Of the whole message.
    pub kind: Kind,
    /// Of text, valid UTF-8 together with what came before; it may end inside a character.
    pub payload: Bytes,
    /// It begins a message.
    pub first: bool,
    /// It ends it.
    pub last: bool,
}

/// What a peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Message(Message),
    /// Instead of messages, after [`Decoder::stream`].
    Chunk(Chunk),
    /// At most 125 bytes, as in pong.
    Ping(Bytes),
    Pong(Bytes),
    /// The last event of a stream: what follows is not read (5.5.1).
    Close(Option<Close>),
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Frames have to be masked.
    Server,
    /// Frames must not be masked.
    Client,
}

/// What a peer may make the decoder hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message in bytes, on the wire and decompressed.
    pub message: usize,
    /// Most frames in a message. Empty ones cost no memory, but time.
    pub fragments: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        // Autobahn's 4 MiB in fragments of 64 bytes are 65,536 of them.
        Limits { message: 16 << 20, fragments: 131_072 }
    }
}

/// The frame whose payload is being read.
#[derive(Clone, Copy, Debug)]
struct Frame {
    first: u8,
    /// The masking key, turned by the bytes that are unmasked already.
    key: Option<[u8; 4]>,
    /// Payload in bytes.
    len: usize,
    /// Bytes at the front of the buffer that are unmasked and checked.
    done: usize,
}

impl Frame {
    fn fin(&self) -> bool {
        self.first & FIN != 0
    }

    fn opcode(&self) -> u8 {
        self.first & OPCODE
    }
}

/// The message that the frames belong to.
#[derive(Debug)]
struct Fragments {
    kind: Kind,
    compressed: bool,
    count: u32,
    data: BytesMut,
}

/// Takes events out of a buffer, wherever its bytes were cut.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    limits: Limits,
    /// permessage-deflate was agreed.
    inflater: Option<Inflater>,
    frame: Option<Frame>,
    fragments: Option<Box<Fragments>>,
    /// A whole message that takes more than a turn to decompress.
    inflating: Option<Box<(Kind, Inflating)>>,
    /// Of the text message that is being read.
    text: utf8::Incremental,
    /// Whole frames so far.
    frames: u64,
    /// Fragments are handed on as they come.
    streaming: bool,
    ended: bool,
}

impl Decoder {
    pub fn new(role: Role, limits: Limits, inflater: Option<Inflater>) -> Decoder {
        let text = utf8::Incremental::default();
        Decoder {
            role,
            limits,
            inflater,
            frame: None,
            fragments: None,
            inflating: None,
            text,
            frames: 0,
            streaming: false,
            ended: false,
        }
    }

    /// From now on hand on each fragment as a [`Chunk`] when it is there, and hold none. A message
    /// may then be of any size; [`Limits::message`] is that of a fragment. Not for compressed
    /// messages, which come whole.
    pub fn stream(&mut self) {
        self.streaming = self.inflater.is_none();
    }

    /// The next event, or `None` until more bytes come.
    ///
    /// Unmasks in place, and leaves in `buffer` what belongs to a frame that is not whole; the same
    /// buffer has to come again with more behind it. After an error or a close frame there is
    /// nothing more to be had.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, ProtocolError> {
        self.decode_within(buffer, &mut Turn::endless())
    }

    /// The same, as far as it can be done in a turn: where there is no event because that is over,
    /// [`Decoder::is_working`] says so.
    pub fn decode_within(
        &mut self,
        buffer: &mut BytesMut,
        turn: &mut Turn,
    ) -> Result<Option<Event>, ProtocolError> {
        while !self.ended {
            let decoded = self.step(buffer, turn);
            self.ended = matches!(decoded, Err(_) | Ok(Step::Event(Event::Close(_))));
            match decoded? {
                Step::Event(event) => return Ok(Some(event)),
                Step::Frame => {}
                Step::Starved => return Ok(None),
            }
        }
        Ok(None)
    }

    /// A message is whole, and not decompressed yet.
    pub fn is_working(&self) -> bool {
        self.inflating.is_some()
    }

    /// A frame's header was read, and its payload is not whole yet.
    pub fn in_frame(&self) -> bool {
        self.frame.is_some()
    }

    /// Whole frames so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Bytes of memory that are held for a message whose end has not come, or that is being
    /// decompressed.
    pub fn held(&self) -> usize {
        let inflating = self.inflating.as_ref().map_or(0, |inflating| inflating.1.held());
        self.fragments.as_ref().map_or(0, |fragments| fragments.data.capacity()) + inflating
    }

    /// Let go of an unfinished message. Nothing can be decoded after it.
    pub fn abandon(&mut self) {
        self.ended = true;
        self.fragments = None;
        self.inflating = None;
        if let Some(inflater) = &mut self.inflater {
            inflater.abandon();
        }
    }

    fn step(&mut self, buffer: &mut BytesMut, turn: &mut Turn) -> Result<Step, ProtocolError> {
        if let Some(inflating) = self.inflating.take() {
            let (kind, progress) = *inflating;
            return self.inflate(kind, progress, turn);
        }
        let mut frame = match self.frame {
            Some(frame) => frame,
            None => match self.header(buffer)? {
                Some(frame) => frame,
                None => return Ok(Step::Starved),
            },
        };
        let whole = self.unmask(&mut frame, buffer)?;
        if !whole {
            self.frame = Some(frame);
            return Ok(Step::Starved);
        }
        self.frame = None;
        self.frames += 1;
        let payload = buffer.split_to(frame.len);
        if opcode::is_control(frame.opcode()) {
            control(frame.opcode(), payload).map(Step::Event)
        } else {
            self.data(frame, payload, turn)
        }
    }

    /// Take a frame's header off the buffer.
    fn header(&self, buffer: &mut BytesMut) -> Result<Option<Frame>, ProtocolError> {
        let Ok(header) = Header::decode(buffer) else { return Ok(None) };
        let expect = Expect {
            from_client: self.role == Role::Server,
            rsv1_agreed: self.inflater.is_some(),
            in_message: self.fragments.is_some(),
        };
        let violations = header.violations(expect);
        // Asked first, because to iterate takes longer than all that is left to do for a small frame.
        if !violations.is_empty()
            && let Some(violation) = violations.iter().next()
        {
            return Err(ProtocolError::Header(violation));
        }
        let len = self.admit(&header)?;
        let Some(bytes) = buffer.get(..header.len()) else { return Ok(None) };
        let key = bytes.last_chunk().filter(|_| header.masked()).copied();
        buffer.advance(header.len());
        Ok(Some(Frame { first: header.first, key, len, done: 0 }))
    }

    /// The payload's length, if the message may have it.
    fn admit(&self, header: &Header) -> Result<usize, ProtocolError> {
        let len = usize::try_from(header.payload_len).map_err(|_| ProtocolError::TooBig)?;
        if opcode::is_control(header.opcode()) {
            return Ok(len);
        }
        let (before, count) = match &self.fragments {
            Some(fragments) => (fragments.data.len(), fragments.count),
            None => (0, 0),
        };
        if len > self.limits.message.saturating_sub(before) {
            return Err(ProtocolError::TooBig);
        }
        if count >= self.limits.fragments {
            return Err(ProtocolError::TooManyFragments);
        }
        Ok(len)
    }

    /// Unmask and check what has come of the payload; whether that is all of it.
    fn unmask(&mut self, frame: &mut Frame, buffer: &mut BytesMut) -> Result<bool, ProtocolError> {
        let there = buffer.len().min(frame.len);
        let fresh = buffer.get_mut(frame.done..there).unwrap_or_default();
        frame.key = frame.key.map(|key| mask::apply(key, fresh));
        let first = frame.done == 0;
        frame.done = there;
        let whole = there == frame.len;
        if self.is_plain_text(frame) {
            let only = first && whole && self.fragments.is_none() && frame.fin();
            if only {
                // The common case needs no memory of what came before.
                utf8::check(fresh)?;
            } else {
                self.text.push(fresh)?;
            }
            if whole && !only && frame.fin() {
                self.text.finish()?;
            }
        }
        Ok(whole)
    }

    /// The payload is text, uncompressed.
    fn is_plain_text(&self, frame: &Frame) -> bool {
        match (frame.opcode(), &self.fragments) {
            (opcode::TEXT, _) => frame.first & RSV1 == 0,
            (opcode::CONTINUATION, Some(open)) => open.kind == Kind::Text && !open.compressed,
            _ => false,
        }
    }

    /// A frame of a message: the message if it was the last one, or the fragment by itself.
    fn data(
        &mut self,
        frame: Frame,
        payload: BytesMut,
        turn: &mut Turn,
    ) -> Result<Step, ProtocolError> {
        if self.streaming {
            return Ok(Step::Event(Event::Chunk(self.chunk(&frame, payload.freeze()))));
        }
        let fin = frame.fin();
        let compressed = frame.first & RSV1 != 0;
        let kind = if frame.opcode() == opcode::TEXT { Kind::Text } else { Kind::Binary };
        if fin && self.fragments.is_none() {
            return self.message(kind, compressed, payload.freeze(), turn);
        }
        let open = self.fragments.get_or_insert_with(|| {
            Box::new(Fragments { kind, compressed, count: 0, data: BytesMut::new() })
        });
        open.count += 1;
        // A copy: small fragments would each keep the whole buffer that they were read into.
        open.data.extend_from_slice(&payload);
        if !fin {
            return Ok(Step::Frame);
        }
        let Some(open) = self.fragments.take() else { return Ok(Step::Frame) };
        self.message(open.kind, open.compressed, open.data.freeze(), turn)
    }

    /// A fragment as it is; what is kept of the message is that it goes on.
    fn chunk(&mut self, frame: &Frame, payload: Bytes) -> Chunk {
        let (first, last) = (self.fragments.is_none(), frame.fin());
        let kind = if frame.opcode() == opcode::TEXT { Kind::Text } else { Kind::Binary };
        let open = self.fragments.get_or_insert_with(|| {
            Box::new(Fragments { kind, compressed: false, count: 0, data: BytesMut::new() })
        });
        open.count += 1;
        let kind = open.kind;
        if last {
            self.fragments = None;
        }
        Chunk { kind, payload, first, last }
    }

    fn message(
        &mut self,
        kind: Kind,
        compressed: bool,
        payload: Bytes,
        turn: &mut Turn,
    ) -> Result<Step, ProtocolError> {
        if compressed {
            self.inflate(kind, Inflating::new(payload), turn)
        } else {
            Ok(Step::Event(Event::Message(Message { kind, payload })))
        }
    }

    /// Go on with a message that is compressed.
    fn inflate(
        &mut self,
        kind: Kind,
        mut progress: Inflating,
        turn: &mut Turn,
    ) -> Result<Step, ProtocolError> {
        // Its header was refused where this was not agreed.
        let Some(inflater) = &mut self.inflater else { return Err(ProtocolError::Deflate) };
        let before = progress.out().len();
        let done = inflater.go_on(&mut progress, self.limits.message, turn)?;
        if kind == Kind::Text {
            self.text.push(progress.out().get(before..).unwrap_or_default())?;
        }
        if !done {
            self.inflating = Some(Box::new((kind, progress)));
            return Ok(Step::Starved);
        }
        if kind == Kind::Text {
            self.text.finish()?;
        }
        Ok(Step::Event(Event::Message(Message { kind, payload: progress.into_out() })))
    }
}

/// What one frame, or the want of one, came to.
enum Step {
    Event(Event),
    /// A fragment that ends no message.
    Frame,
    /// More bytes are wanted, or another turn.
    Starved,
}

/// The event of a control frame; reserved opcodes have been refused by its header.
fn control(opcode: u8, payload: BytesMut) -> Result<Event, ProtocolError> {
    Ok(match opcode {
        opcode::CLOSE => Event::Close(close::parse(&payload)?),
        opcode::PING => Event::Ping(payload.freeze()),
        _ => Event::Pong(payload.freeze()),
    })
}
