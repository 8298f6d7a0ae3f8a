//! The server's codec:
//! any stream, whole and cut, gives the same events, and no more than its bytes. Without
//! permessage-deflate, which tungstenite lacks, the events equal tungstenite's. First byte: how it
//! is cut, and whether permessage-deflate was agreed.
#![no_main]

use bytes::BytesMut;
use comparison::{as_tungstenite_has_it, tungstenite_reads};
use libfuzzer_sys::fuzz_target;
use ws_guard_server::protocol::{Decoder, Event, Limits, ProtocolError, Role, deflate::Inflater};
use ws_guard_common::frame::Violation;

#[path = "../../ws-guard-server/tests/codec/comparison.rs"]
mod comparison;

const LIMITS: Limits = Limits { message: 4096, fragments: 100 };
/// Length of a header with a 64-bit length and a mask, in bytes.
const LONGEST_HEADER: usize = 14;

fn decode(bytes: &[u8], deflate: bool, piece: usize) -> (Vec<Event>, Option<ProtocolError>) {
    let mut decoder = Decoder::new(Role::Server, LIMITS, deflate.then(Inflater::default));
    let (mut buffer, mut events) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
        assert!(decoder.held() <= 4 * LIMITS.message);
    }
    (events, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((flags, bytes)) = data.split_first() else { return };
    let (deflate, piece) = (flags & 1 != 0, usize::from(flags >> 1) + 1);
    let whole = decode(bytes, deflate, bytes.len().max(1));
    for event in &whole.0 {
        if let Event::Message(message) = event {
            assert!(message.payload.len() <= LIMITS.message);
        }
    }
    assert_eq!(whole, decode(bytes, deflate, piece));
    if !deflate {
        compare(bytes, &whole.0, whole.1);
    }
});

/// Compare the events with tungstenite's for the same bytes.
fn compare(bytes: &[u8], events: &[Event], error: Option<ProtocolError>) {
    // tungstenite does not look at a frame before all of it is there.
    let rest = if error.is_some() { LONGEST_HEADER + LIMITS.message } else { 0 };
    let stream = [bytes, &vec![0; rest]].concat();
    let (theirs, failed) = tungstenite_reads(&stream, Role::Server, LIMITS.message);
    let ours = as_tungstenite_has_it(events, error.is_some());
    match error {
        // tungstenite has no limit on fragments, and accepts lengths that are not minimal.
        Some(
            ProtocolError::TooManyFragments
            | ProtocolError::Header(Violation::NonMinimalLength | Violation::ControlTooLong),
        ) => {
            assert!(theirs.starts_with(&ours.0), "{ours:?} {theirs:?}");
        }
        _ => assert_eq!(ours, (theirs, failed), "{error:?}"),
    }
}
