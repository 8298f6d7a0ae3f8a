//! The server's codec: any stream, whole and cut, gives the same events, and no more than its bytes.
//! First byte: how it is cut, and whether permessage-deflate was agreed.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use ws_guard::server::protocol::{Decoder, Event, Limits, ProtocolError, Role, deflate::Inflater};

const LIMITS: Limits = Limits { message: 4096, fragments: 100 };

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
});
