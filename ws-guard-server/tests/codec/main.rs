//! The codec against any cut of the stream, and against tungstenite.

mod comparison;

use bytes::BytesMut;
use proptest::prelude::*;
use ws_guard_server::protocol::{
    Decoder, Event, Limits, Message, ProtocolError, Role, close, deflate::Inflater,
};
use ws_guard_testkit::frame::{Frame, encode, opcode};

use self::comparison::{Said, as_tungstenite_has_it, comparable, tungstenite_reads};

const LIMITS: Limits = Limits { message: 1000, fragments: 20 };

/// Result of a stream: its events, and the error it ended with.
type Outcome = (Vec<Event>, Option<ProtocolError>);

fn decoder(role: Role, deflate: bool) -> Decoder {
    Decoder::new(role, LIMITS, deflate.then(Inflater::default))
}

/// Decode `pieces`, one after the other.
fn decode<'a>(mut decoder: Decoder, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let (mut buffer, mut events) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
    }
    (events, None)
}

fn cut<'a>(bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        let (piece, behind) = rest.split_at((*size).min(rest.len()));
        pieces.push(piece);
        rest = behind;
        if rest.is_empty() {
            return pieces;
        }
    }
    pieces
}

/// Frames of which most are as they should be.
fn frames(masked: bool) -> impl Strategy<Value = Vec<Frame>> {
    let opcode = prop_oneof![
        6 => Just(opcode::TEXT), 6 => Just(opcode::BINARY), 6 => Just(opcode::CONTINUATION),
        3 => Just(opcode::PING), 3 => Just(opcode::PONG), 1 => Just(opcode::CLOSE),
        1 => 0u8..16,
    ];
    let payload = prop_oneof![
        8 => "\\PC{0,20}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..200),
        1 => Just(Vec::from(*b"\x03\xE8bye")),
        1 => Just(vec![b'x'; 1001]),
    ];
    let rsv = prop_oneof![20 => Just(0u8), 1 => 0u8..8];
    let mask = prop_oneof![20 => Just(masked), 1 => Just(!masked)];
    let frame = (any::<bool>(), rsv, opcode, mask, any::<[u8; 4]>(), payload).prop_map(
        |(fin, rsv, opcode, masked, key, payload)| Frame {
            fin: fin || opcode >= 8,
            rsv,
            opcode,
            mask: masked.then_some(key),
            payload,
        },
    );
    prop::collection::vec(frame, 1..12)
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_events(
        frames in frames(true),
        deflate in any::<bool>(),
        sizes in prop::collection::vec(1usize..40, 1..10),
    ) {
        let bytes = encode(&frames);
        let whole = decode(decoder(Role::Server, deflate), [bytes.as_slice()]);
        let pieces = decode(decoder(Role::Server, deflate), cut(&bytes, &sizes));
        // Where the text is wrong inside a frame, it may be known before an error of its size is.
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn what_is_streamed_is_the_message(
        frames in frames(true),
        sizes in prop::collection::vec(1usize..40, 1..10),
    ) {
        let bytes = encode(&frames);
        let limits = Limits { message: 1 << 20, ..LIMITS };
        let whole = decode(Decoder::new(Role::Server, limits, None), [bytes.as_slice()]);
        let mut streaming = Decoder::new(Role::Server, limits, None);
        streaming.stream();
        let (chunks, error) = decode(streaming, cut(&bytes, &sizes));
        prop_assert_eq!(whole, (joined(chunks), error));
    }

    #[test]
    fn rubbish_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for deflate in [false, true] {
            let (events, _) = decode(decoder(Role::Server, deflate), [bytes.as_slice()]);
            let payload: usize = events.iter().map(size).sum();
            prop_assert!(payload <= LIMITS.message * events.len());
        }
    }

    #[test]
    fn tungstenite_reads_the_same(
        frames in frames(true),
        sizes in prop::collection::vec(1usize..40, 1..10),
    ) {
        let bytes = encode(&frames);
        let (events, error) = decode(decoder(Role::Server, false), cut(&bytes, &sizes));
        let theirs = tungstenite_reads(&bytes, Role::Server, LIMITS.message);
        let ours = as_tungstenite_has_it(&events, error.is_some());
        prop_assert_eq!(ours, theirs, "{:?}", error);
    }

    #[test]
    fn tungstenite_reads_the_same_of_a_server(frames in frames(false)) {
        let bytes = encode(&frames);
        let (events, error) = decode(decoder(Role::Client, false), [bytes.as_slice()]);
        let theirs = tungstenite_reads(&bytes, Role::Client, LIMITS.message);
        let ours = as_tungstenite_has_it(&events, error.is_some());
        prop_assert_eq!(ours, theirs, "{:?}", error);
    }
}

/// Messages put together from chunks, with what came between them.
fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut open = Vec::new();
    let join = |event| match event {
        Event::Chunk(chunk) => {
            assert_eq!(chunk.first, open.is_empty());
            let (kind, last) = (chunk.kind, chunk.last);
            open.push(chunk);
            last.then(|| {
                let chunks = std::mem::take(&mut open);
                assert!(chunks.iter().all(|chunk| chunk.kind == kind));
                let payload = chunks.iter().map(|chunk| &chunk.payload[..]).collect::<Vec<_>>();
                Event::Message(Message { kind, payload: payload.concat().into() })
            })
        }
        event => Some(event),
    };
    events.into_iter().filter_map(join).collect()
}

fn size(event: &Event) -> usize {
    match event {
        Event::Message(message) => message.payload.len(),
        Event::Chunk(chunk) => chunk.payload.len(),
        Event::Ping(payload) | Event::Pong(payload) => payload.len(),
        Event::Close(close) => close.as_ref().map_or(0, |close| close.reason.len()),
    }
}

/// A message in one frame is the memory it was read into.
#[test]
fn a_single_frame_is_not_copied() {
    let bytes = encode(&[Frame::new(opcode::BINARY, vec![7; 500])]);
    let mut buffer = BytesMut::from(bytes.as_slice());
    let range = buffer.as_ptr_range();
    let event = decoder(Role::Server, false).decode(&mut buffer).unwrap();
    let Some(Event::Message(message)) = event else { panic!("{event:?}") };
    assert_eq!(message.payload, vec![7; 500]);
    assert!(range.contains(&message.payload.as_ptr()));
}

#[test]
fn text_is_refused_at_its_first_wrong_byte() {
    let frame = Frame::new(opcode::TEXT, *b"fine so far \xF4\x90 and never the rest");
    let bytes = encode(&[frame]);
    let wrong = 6 + 13;
    assert_eq!(decode(decoder(Role::Server, false), [&bytes[..wrong]]), (vec![], None));
    let refused = (vec![], Some(ProtocolError::Utf8));
    assert_eq!(decode(decoder(Role::Server, false), [&bytes[..=wrong]]), refused);
}

#[test]
fn a_length_is_refused_before_its_payload_comes() {
    let huge = [0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4];
    let refused = (vec![], Some(ProtocolError::TooBig));
    assert_eq!(decode(decoder(Role::Server, false), [&huge[..]]), refused);
    // Also where only all fragments together are too long.
    let frames = Frame::fragments(opcode::BINARY, &[0; 1001], 900);
    assert_eq!(decode(decoder(Role::Server, false), [&encode(&frames)[..]]), refused);
}

#[test]
fn empty_fragments_are_limited() {
    let mut frames = vec![Frame::new(opcode::CONTINUATION, []); 25];
    frames[0].opcode = opcode::TEXT;
    frames.iter_mut().for_each(|frame| frame.fin = false);
    let refused = (vec![], Some(ProtocolError::TooManyFragments));
    assert_eq!(decode(decoder(Role::Server, false), [&encode(&frames)[..]]), refused);
}

#[test]
fn small_fragments_take_the_memory_of_their_payload() {
    let limits = Limits { message: 1 << 20, fragments: 1 << 20 };
    let mut decoder = Decoder::new(Role::Server, limits, None);
    let mut frames = Frame::fragments(opcode::BINARY, &[1; 50_000], 1);
    frames.pop();
    let mut buffer = BytesMut::from(encode(&frames).as_slice());
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
    assert!((49_999..4 * 50_000).contains(&decoder.held()), "{}", decoder.held());
}

#[test]
fn nothing_is_read_behind_a_close_frame() {
    let close = Frame::new(opcode::CLOSE, *b"\x03\xE8bye");
    let bytes = encode(&[close, Frame::text("too late")]);
    let close = close::Close { code: 1000, reason: "bye".into() };
    let expected = (vec![Event::Close(Some(close))], None);
    assert_eq!(decode(decoder(Role::Server, false), [&bytes[..]]), expected);
}

#[test]
fn a_compressed_message_in_fragments_with_a_ping_between() {
    let mut frames = Frame::fragments(opcode::TEXT, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], 3);
    frames[0].rsv = 4;
    frames.insert(1, Frame::ping("?"));
    let (events, error) = decode(decoder(Role::Server, true), [&encode(&frames)[..]]);
    assert_eq!(error, None);
    assert_eq!(comparable(&events), [Said::Ping(b"?".into()), Said::Text(b"Hello".into())]);
}
