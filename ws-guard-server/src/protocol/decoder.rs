//! Decoding of bytes into messages (RFC 6455, 5 and 6.2).

use bytes::{Buf, Bytes, BytesMut};
use ws_guard_common::frame::{Expect, FIN, Header, OPCODE, RSV1, opcode};

use super::{
    Close, ProtocolError, close,
    deflate::{Inflater, Inflating},
    mask, utf8,
};
use crate::turn::Turn;

/// Type of a message's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Binary,
}

impl Kind {
    /// Return the opcode on the wire.
    pub const fn opcode(self) -> u8 {
        match self {
            Kind::Text => opcode::TEXT,
            Kind::Binary => opcode::BINARY,
        }
    }
}

/// Whole message; one of a single frame uses the memory into which it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    /// Payload; valid UTF-8 for text.
    pub payload: Bytes,
}

/// Fragment of a message, where they are delivered as they arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Type of the whole message.
    pub kind: Kind,
    /// Payload; of text, valid UTF-8 with what came before; may end inside a character.
    pub payload: Bytes,
    /// `true` for the first fragment of a message.
    pub first: bool,
    /// `true` for the last fragment of a message.
    pub last: bool,
}

/// Event from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Message(Message),
    /// Fragment instead of messages, after [`Decoder::stream`].
    Chunk(Chunk),
    /// Payload of at most 125 bytes, as in pong.
    Ping(Bytes),
    Pong(Bytes),
    /// Last event of a stream: what follows is not read (5.5.1).
    Close(Option<Close>),
}

/// Role of the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Server: frames have to be masked.
    Server,
    /// Client: frames must not be masked.
    Client,
}

/// Limits of what a peer can make the decoder hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum length of a message in bytes, on the wire and decompressed.
    pub message: usize,
    /// Maximum number of frames in a message: empty ones cost no memory, but time.
    pub fragments: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        // Autobahn's 4 MiB in fragments of 64 bytes are 65,536 of them.
        Limits { message: 16 << 20, fragments: 131_072 }
    }
}

/// Frame whose payload is being read.
#[derive(Clone, Copy, Debug)]
struct Frame {
    first: u8,
    /// Masking key, rotated by the bytes that are already unmasked.
    key: Option<[u8; 4]>,
    /// Length of the payload in bytes.
    len: usize,
    /// Number of bytes at the front of the buffer that are unmasked and checked.
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

/// Message to which the frames belong.
#[derive(Debug)]
struct Fragments {
    kind: Kind,
    compressed: bool,
    count: u32,
    data: BytesMut,
}

/// Decoder of events in a buffer, whatever the boundaries of its bytes.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    limits: Limits,
    /// Inflater, where permessage-deflate was agreed.
    inflater: Option<Inflater>,
    frame: Option<Frame>,
    fragments: Option<Box<Fragments>>,
    /// Complete message that takes more than a turn to decompress.
    inflating: Option<Box<(Kind, Inflating)>>,
    /// UTF-8 check of the current text message.
    text: utf8::Incremental,
    /// Number of complete frames so far.
    frames: u64,
    /// `true` if fragments are delivered as they arrive.
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

    /// Deliver each fragment as a [`Chunk`] on arrival from now on, and hold none.
    /// A message may then be of any size; [`Limits::message`] is that of a fragment. Compressed
    /// messages are still delivered whole.
    pub fn stream(&mut self) {
        self.streaming = self.inflater.is_none();
    }

    /// Return the next event, or `None` until more bytes come.
    ///
    /// Unmasks in place, and leaves the bytes of an incomplete frame in `buffer`; the same
    /// buffer has to be passed again with more bytes appended. After an error or a close frame
    /// there are no more events.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, ProtocolError> {
        self.decode_within(buffer, &mut Turn::endless())
    }

    /// Return the next event, as far as that can be done in a turn.
    /// Where there is no event because the turn is over, [`Decoder::is_working`] is true.
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

    /// Check whether a message is complete, but not decompressed yet.
    pub fn is_working(&self) -> bool {
        self.inflating.is_some()
    }

    /// Check whether a frame's header was read, and its payload is incomplete.
    pub fn in_frame(&self) -> bool {
        self.frame.is_some()
    }

    /// Return the number of complete frames so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Return the number of bytes held in memory for an incomplete message.
    /// That includes one in decompression.
    pub fn held(&self) -> usize {
        let inflating = self.inflating.as_ref().map_or(0, |inflating| inflating.1.held());
        self.fragments.as_ref().map_or(0, |fragments| fragments.data.capacity()) + inflating
    }

    /// Drop an incomplete message; nothing can be decoded after it.
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
        // Checked first, because iterating takes longer than all other work for a small frame.
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

    /// Return the payload's length, if the message may have it.
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

    /// Unmask and check the payload received, and return whether that is all of it.
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
                // The common case needs no state of earlier bytes.
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

    /// Check whether the payload is uncompressed text.
    fn is_plain_text(&self, frame: &Frame) -> bool {
        match (frame.opcode(), &self.fragments) {
            (opcode::TEXT, _) => frame.first & RSV1 == 0,
            (opcode::CONTINUATION, Some(open)) => open.kind == Kind::Text && !open.compressed,
            _ => false,
        }
    }

    /// Process a message's frame: return the message after the last, or the fragment.
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
        // A copy: small fragments would each keep the whole buffer into which they were read.
        open.data.extend_from_slice(&payload);
        if !fin {
            return Ok(Step::Frame);
        }
        let Some(open) = self.fragments.take() else { return Ok(Step::Frame) };
        self.message(open.kind, open.compressed, open.data.freeze(), turn)
    }

    /// Deliver a fragment as it is; only the fact that its message continues is kept.
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

    /// Continue with a compressed message.
    fn inflate(
        &mut self,
        kind: Kind,
        mut progress: Inflating,
        turn: &mut Turn,
    ) -> Result<Step, ProtocolError> {
        // Its header was refused where compression was not agreed.
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

/// Result of reading a frame, or part of one.
enum Step {
    Event(Event),
    /// Fragment that ends no message.
    Frame,
    /// Need for more bytes, or for another turn.
    Starved,
}

/// Return the event of a control frame; the header check refused reserved opcodes.
fn control(opcode: u8, payload: BytesMut) -> Result<Event, ProtocolError> {
    Ok(match opcode {
        opcode::CLOSE => Event::Close(close::parse(&payload)?),
        opcode::PING => Event::Ping(payload.freeze()),
        _ => Event::Pong(payload.freeze()),
    })
}
