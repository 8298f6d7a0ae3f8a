//! Codings of subprotocols:
//! Snappy and encryption of arbitrary messages, with and without agreed keys. First byte: which
//! coding, and how the bytes are cut into messages.
#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use snow::{Builder, TransportState};
use ws_guard_server::{
    coding::{
        Coding, Opened,
        noise::{self, PATTERN},
    },
    negotiation::{Choice, Features},
    noise_key::NoiseKey,
    protocol::{Kind, Message},
};

const MOST: usize = 4096;

static KEY: LazyLock<NoiseKey> =
    LazyLock::new(|| NoiseKey::from_private([7; 32]).expect("a key of the right length"));

fn coding(encryption: bool) -> Coding {
    let features = Features { compression: true, encryption, ..Features::default() };
    let choice = Choice { protocol: "v3".into(), features };
    let deadline = Instant::now() + Duration::from_secs(60);
    Coding::of(&choice, false, Some(&KEY), deadline).expect("something is done")
}

fn binary(payload: impl Into<Bytes>) -> Message {
    Message { kind: Kind::Binary, payload: payload.into() }
}

/// Open messages until one is refused; check the opened ones against the limit.
fn open(coding: &mut Coding, messages: impl IntoIterator<Item = Message>) {
    for message in messages {
        match coding.open(message, MOST) {
            Ok(Opened::Message(message)) => assert!(message.payload.len() <= MOST),
            Ok(Opened::Answer(answer)) => assert_eq!(answer.payload.len(), 96),
            Err(_) => return,
        }
    }
}

/// Agree on keys as a client.
fn agree(coding: &mut Coding) -> TransportState {
    let builder = Builder::new(PATTERN.parse().expect("it is known"));
    let builder = builder.prologue(b"v3").expect("it is short");
    let mut client = builder.build_initiator().expect("nothing is missing");
    let mut buffer = [0; 256];
    let len = client.write_message(&[], &mut buffer).expect("there is room");
    let opened = coding.open(binary(buffer[..len].to_vec()), MOST);
    let Ok(Opened::Answer(answer)) = opened else { panic!("{opened:?}") };
    client.read_message(&answer.payload, &mut buffer).expect("a good answer");
    client.into_transport_mode().expect("it is done")
}

fuzz_target!(|data: &[u8]| {
    let Some((flags, bytes)) = data.split_first() else { return };
    let piece = usize::from(flags >> 2) * 8 + 1;
    let pieces = || bytes.chunks(piece).map(|piece| binary(piece.to_vec()));
    match flags & 3 {
        0 => open(&mut coding(false), pieces()),
        1 => open(&mut coding(true), pieces()),
        2 => {
            // A peer with the keys can put anything inside.
            let mut coding = coding(true);
            let mut client = agree(&mut coding);
            let sealed: Vec<_> = bytes
                .chunks(piece)
                .filter_map(|piece| piece.split_first())
                .filter_map(|(kind, piece)| noise::write(&mut client, piece, kind & !noise::LAST))
                .map(binary)
                .collect();
            open(&mut coding, sealed);
        }
        _ => {
            // Sealing and opening gives the original.
            let mut coding = coding(false);
            let sealed = coding.seal(binary(bytes.to_vec())).expect("nothing to wait for");
            let opened = coding.open(sealed, bytes.len());
            assert_eq!(opened, Ok(Opened::Message(binary(bytes.to_vec()))));
        }
    }
});
