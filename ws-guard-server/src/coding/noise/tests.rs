use std::{
    task::Poll,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    coding::{Coding, Opened, Opening, Sealing, snappy},
    negotiation::Features,
};

fn key() -> NoiseKey {
    NoiseKey::from_private([7; 32]).unwrap()
}

fn choice(compression: bool) -> Choice {
    let features = Features { compression, encryption: true, ..Features::default() };
    Choice { protocol: "v3+encryption".into(), features }
}

fn server(compression: bool) -> Noise {
    Noise::new(Some(&key()), &choice(compression), Instant::now() + Duration::from_secs(60))
}

fn binary(payload: impl Into<Bytes>) -> Message {
    Message { kind: Kind::Binary, payload: payload.into() }
}

fn text(payload: &str) -> Message {
    Message { kind: Kind::Text, payload: payload.to_owned().into() }
}

impl Noise {
    fn open(&mut self, message: &Message, max: usize) -> Result<Opened, ProtocolError> {
        self.coding(|coding| coding.open(message.clone(), max))
    }

    fn seal(&mut self, message: &Message) -> Option<Message> {
        self.coding(|coding| coding.seal(message.clone()))
    }

    fn coding<T>(&mut self, work: impl FnOnce(&mut Coding) -> T) -> T {
        let broken = Noise { state: State::Broken, ..*self };
        let mut coding = Coding::Noise(std::mem::replace(self, broken));
        let done = work(&mut coding);
        let Coding::Noise(noise) = coding else { unreachable!() };
        *self = noise;
        done
    }
}

/// Create the client's half, by the library alone.
fn initiator(prologue: &str) -> HandshakeState {
    let builder = Builder::new(PATTERN.parse().unwrap());
    builder.prologue(prologue.as_bytes()).unwrap().build_initiator().unwrap()
}

/// Return a client with its handshake done.
fn agree(server: &mut Noise) -> TransportState {
    let mut client = initiator("v3+encryption");
    let mut buffer = [0; 1024];
    let len = client.write_message(&[], &mut buffer).unwrap();
    assert_eq!(len, 32);
    assert!(server.deadline().is_some());
    let opened = server.open(&binary(buffer[..len].to_vec()), 1000).unwrap();
    let Opened::Answer(answer) = opened else { panic!("{opened:?}") };
    assert_eq!(client.read_message(&answer.payload, &mut buffer), Ok(0));
    assert_eq!(client.get_remote_static(), Some(&key().public()[..]));
    assert_eq!(server.deadline(), None);
    client.into_transport_mode().unwrap()
}

#[test]
fn messages_there_and_back_in_all_sizes() {
    for compression in [false, true] {
        let mut server = server(compression);
        let mut client = agree(&mut server);
        for size in [0, 1, 1000, MAX_PART - 1, MAX_PART, MAX_PART + 1, 3 * MAX_PART, 1_000_000] {
            let payload: Vec<u8> = (0..size).map(|i| (i * 31 / 7) as u8).collect();
            let sealed = write(&mut client, &payload, 0).unwrap();
            let opened = server.open(&binary(sealed), size).unwrap();
            assert_eq!(opened, Opened::Message(binary(payload.clone())), "{size}");
            let sealed = server.seal(&binary(payload.clone())).unwrap();
            let (kind, mut back) = read(&mut client, &sealed.payload).unwrap();
            assert_eq!(kind, if compression { SNAPPY } else { 0 });
            if compression {
                back = snappy::decompress(&back, size).unwrap().into();
            }
            assert!(back == payload, "{size}");
        }
        let sealed = write(&mut client, "κόσμε".as_bytes(), TEXT).unwrap();
        let opened = server.open(&binary(sealed), 100).unwrap();
        assert_eq!(opened, Opened::Message(text("κόσμε")));
        assert_eq!(server.seal(&text("a")).unwrap().kind, Kind::Binary);
    }
}

#[test]
fn long_messages_take_turns_and_come_to_the_same() {
    // A turn that is not over takes another whole part. On a slow machine the clock ends it earlier.
    const MOST: usize = 2 * MAX_NOISE;
    let payload = "a text that is longer than a turn; ".repeat(30_000);
    for compression in [false, true] {
        let mut server = server(compression);
        let mut client = agree(&mut server);
        let sealed = if compression {
            write(&mut client, &snappy::compress(payload.as_bytes()), TEXT | SNAPPY)
        } else {
            write(&mut client, payload.as_bytes(), TEXT)
        };
        let (opened, turns) = server.coding(|coding| {
            let mut opening = Opening::new(binary(sealed.unwrap()));
            in_turns(|turn| opening.go_on(coding, payload.len(), turn).unwrap())
        });
        assert_eq!(opened, Opened::Message(text(&payload)));
        assert!(turns >= payload.len() / MOST, "{turns} turns");
        let (sealed, turns) = server.coding(|coding| {
            let (mut sealing, message) = (Sealing::default(), text(&payload));
            in_turns(|turn| match sealing.go_on(coding, &message, turn) {
                Poll::Pending => None,
                Poll::Ready(sealed) => Some(sealed.unwrap()),
            })
        });
        assert!(turns >= payload.len() / MOST, "{turns} turns");
        let (kind, mut back) = read(&mut client, &sealed.payload).unwrap();
        if compression {
            back = snappy::decompress(&back, payload.len()).unwrap().into();
        }
        assert!(back == payload.as_bytes() && kind & !SNAPPY == TEXT);
    }
}

/// Run work to its end, and return its result and number of turns.
fn in_turns<T>(mut work: impl FnMut(&mut Turn) -> Option<T>) -> (T, usize) {
    let mut turns = 1;
    loop {
        match work(&mut Turn::new(Instant::now())) {
            Some(done) => return (done, turns),
            None => turns += 1,
        }
    }
}

#[test]
fn what_is_sealed_says_nothing_and_is_never_the_same() {
    let mut server = server(false);
    agree(&mut server);
    let secret = binary("a secret that is long enough");
    let (one, two) = (server.seal(&secret).unwrap(), server.seal(&secret).unwrap());
    assert_ne!(one, two);
    let found = |sealed: &[u8]| sealed.windows(6).any(|window| window == b"secret");
    assert!(!found(&one.payload) && found(&secret.payload));
}

#[test]
fn a_man_in_the_middle_cannot_change_repeat_cut_or_join() {
    let sealed = |count: usize| {
        let mut server = server(false);
        let mut client = agree(&mut server);
        let payload = vec![7; 2 * MAX_PART];
        let messages: Vec<_> =
            (0..count).map(|_| write(&mut client, &payload, 0).unwrap()).collect();
        (server, messages)
    };
    let refused = |mut server: Noise, message: Vec<u8>| {
        assert_eq!(server.open(&binary(message), 1 << 20), Err(ProtocolError::Encryption));
    };
    for at in [0, 100, MAX_NOISE, 2 * MAX_NOISE - 1] {
        let (server, mut messages) = sealed(1);
        messages[0][at] ^= 1;
        refused(server, messages.remove(0));
    }
    let (mut server, messages) = sealed(1);
    assert!(server.open(&binary(messages[0].clone()), 1 << 20).is_ok());
    refused(server, messages[0].clone());
    let (server, mut messages) = sealed(1);
    messages[0].truncate(MAX_NOISE);
    refused(server, messages.remove(0));
    let (server, messages) = sealed(2);
    refused(server, messages.concat());
    let (server, mut messages) = sealed(2);
    refused(server, messages.remove(1));
    refused(sealed(0).0, Vec::new());
}

#[test]
fn a_handshake_that_is_none() {
    let mut buffer = [0; 1024];
    let mut other = initiator("v2+compression");
    let len = other.write_message(&[], &mut buffer).unwrap();
    // With another prologue, it is the client that notices.
    let mut downgraded = server(false);
    let opened = downgraded.open(&binary(buffer[..len].to_vec()), 100).unwrap();
    let Opened::Answer(answer) = opened else { panic!("{opened:?}") };
    assert!(other.read_message(&answer.payload, &mut [0; 1024]).is_err());
    let mut chatty = initiator("v3+encryption");
    let len = chatty.write_message(b"early", &mut buffer).unwrap();
    for message in [
        text("hello"),
        binary(""),
        binary(vec![9; 31]),
        binary(vec![9; 5000]),
        binary(buffer[..len].to_vec()),
    ] {
        let mut server = server(false);
        assert_eq!(server.seal(&text("too early")), None);
        assert_eq!(server.open(&message, 10_000), Err(ProtocolError::Encryption), "{message:?}");
        assert_eq!(server.open(&message, 10_000), Err(ProtocolError::Encryption));
    }
    let mut keyless = Noise::new(None, &choice(false), Instant::now());
    assert_eq!(keyless.open(&binary(vec![9; 32]), 100), Err(ProtocolError::Encryption));
}

#[test]
fn what_is_inside_is_checked_like_any_message() {
    let mut server = server(false);
    let mut client = agree(&mut server);
    let mut open = |bytes: &[u8], kind, max| {
        let sealed = write(&mut client, bytes, kind).unwrap();
        server.open(&binary(sealed), max)
    };
    assert_eq!(open(&[0xFF], TEXT, 100), Err(ProtocolError::Utf8));
    assert_eq!(open(b"rubbish", SNAPPY, 1000), Err(ProtocolError::Snappy));
    assert_eq!(open(&snappy::compress(&[0; 101]), SNAPPY, 100), Err(ProtocolError::TooBig));
    assert_eq!(open(b"?", 8, 100), Err(ProtocolError::Encryption));
    let message = Opened::Message(text("text"));
    assert_eq!(open(&snappy::compress(b"text"), SNAPPY | TEXT, 100), Ok(message));
}

#[test]
fn keys_change_and_both_sides_follow() {
    let mut server = server(false);
    let mut client = agree(&mut server);
    for number in 0..REKEY + 10 {
        let sealed = write(&mut client, b"x", 0).unwrap();
        assert!(server.open(&binary(sealed), 1).is_ok(), "{number}");
    }
    // A client that does not rekey cannot read what comes next.
    let mut stubborn = self::server(false);
    let mut client = agree(&mut stubborn);
    let State::Transport(state) = &mut stubborn.state else { panic!("no keys") };
    client.rekey_outgoing();
    let sealed = write(&mut client, b"x", 0).unwrap();
    assert!(read(state, &sealed).is_none());
}
