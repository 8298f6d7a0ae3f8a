//! Content of messages, and the limits of what can be known of it.

mod common;

use common::{Talk, Told, frame, inspect_with};
use flate2::{Compress, Compression, FlushCompress, Status};
use ws_guard_inspect::{
    Inspector,
    Side::{self, Client, Server},
    What,
    message::{Message, Note},
};

/// Compressor of consecutive messages, for a sender that keeps its window.
struct Deflate(Compress);

impl Deflate {
    fn new() -> Deflate {
        Deflate(Compress::new(Compression::best(), false))
    }

    fn message(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 4096);
        let status = self.0.compress_vec(bytes, &mut out, FlushCompress::Sync);
        assert!(matches!(status, Ok(Status::Ok)) && out.ends_with(&[0, 0, 0xFF, 0xFF]));
        out.truncate(out.len() - 4);
        out
    }
}

fn said(talk: &Talk, side: Side, bytes: usize) -> Vec<Message> {
    let mut inspector = Inspector::new(Told::default());
    inspector.show(bytes);
    let (told, _, damage) = inspect_with(&talk.pcap(), inspector);
    assert_eq!(damage, None);
    let found = told.of(side).into_iter();
    found
        .filter_map(|f| match &f.what {
            What::Message(message) => Some(message.clone()),
            _ => None,
        })
        .collect()
}

const GREETING: &[u8] = b"a greeting that comes again, a greeting that comes again";

#[test]
fn messages_are_unmasked_joined_and_inflated() {
    let mut deflate = Deflate::new();
    let mut talk = Talk::open(false, [1, 2], true);
    let first = frame(Client, 0xC1, &deflate.message(GREETING));
    talk.send(Client, &first[..9]);
    talk.send(Client, &first[9..]);
    // The second one is little but a reference to the first, in two frames with a ping between.
    let second = deflate.message(GREETING);
    assert!(second.len() < 12, "{}", second.len());
    talk.send(Client, &frame(Client, 0x42, &second[..3]));
    talk.send(Client, &frame(Client, 0x89, b"ping"));
    talk.send(Client, &frame(Client, 0x80, &second[3..]));
    talk.send(Client, &frame(Client, 0x81, "grüße".as_bytes()));
    let said = said(&talk, Client, 100);
    let shown: Vec<_> = said.iter().map(|m| (m.shown.0.as_slice(), m.compressed, m.note)).collect();
    let plain = "grüße".as_bytes();
    assert_eq!(shown, [(GREETING, true, None), (GREETING, true, None), (plain, false, None)]);
    let frames: Vec<_> = said.iter().map(|m| (m.frame, m.bytes)).collect();
    assert_eq!(frames, [(1, 56), (2, 56), (5, 7)]);
}

#[test]
fn a_zip_bomb_ends_with_a_note_and_the_connection_goes_on() {
    let bomb = Deflate::new().message(&vec![0; 18 << 20]);
    let mut talk = Talk::open(false, [1, 2], true);
    for part in frame(Server, 0xC2, &bomb).chunks(1400) {
        talk.send(Server, part);
    }
    talk.send(Server, &frame(Server, 0x81, b"next"));
    let said = said(&talk, Server, 16);
    assert_eq!(said.len(), 2);
    assert_eq!((said[0].note, said[0].shown.0.len()), (Some(Note::TooMuch), 16));
    assert!(said[0].bytes < (16 << 20) + 10_000, "{}", said[0].bytes);
    assert!(said[0].to_string().ends_with("not followed further"), "{}", said[0]);
    assert_eq!((said[1].shown.0.as_slice(), said[1].note), (&b"next"[..], None));
}

#[test]
fn what_cannot_be_inflated_is_said_and_not_guessed() {
    let mut deflate = Deflate::new();
    let mut talk = Talk::open(false, [1, 2], true);
    talk.send(Client, &frame(Client, 0xC1, &[0xFF; 9]));
    assert_eq!(said(&talk, Client, 99)[0].note, Some(Note::NotDeflate));
    // The first message has a hole, and the second refers to it.
    let mut talk = Talk::open(false, [1, 2], true);
    let first = frame(Client, 0xC1, &deflate.message(GREETING));
    talk.send(Client, &first[..16]);
    let lost = talk.send(Client, &first[16..20]) as usize - 1;
    talk.send(Client, &first[20..]);
    talk.ack(Server);
    talk.send(Client, &frame(Client, 0xC1, &deflate.message(GREETING)));
    talk.packets.remove(lost);
    let notes: Vec<_> = said(&talk, Client, 99).iter().map(|m| m.note).collect();
    assert_eq!(notes, [Some(Note::NotCaptured), Some(Note::EarlierUnknown)]);
}

#[test]
fn what_messages_violate_is_found_where_they_are_shown() {
    let mut talk = Talk::open(false, [1, 2], true);
    // A character across the boundary of two frames is intact.
    let whole = "grüße".as_bytes();
    talk.send(Client, &frame(Client, 0x01, &whole[..3]));
    talk.send(Client, &frame(Client, 0x80, &whole[3..]));
    talk.send(Client, &frame(Client, 0x82, b"\xFF"));
    let text = talk.send(Client, &frame(Client, 0x81, &whole[..3]));
    let deflate = talk.send(Client, &frame(Client, 0xC2, &[0xFF; 9]));
    let mut inspector = Inspector::new(Told::default());
    inspector.show(4);
    let (told, ..) = inspect_with(&talk.pcap(), inspector);
    let flow = told.flow();
    let found: Vec<_> =
        flow.violations.iter().map(|v| (v.kind.name(), v.at.packet, v.frame)).collect();
    assert_eq!(found, [("text_not_utf8", text, 4), ("not_deflate", deflate, 5)]);
    // Without its payload nothing is known of it.
    let (told, ..) = inspect_with(&talk.pcap(), Inspector::new(Told::default()));
    assert_eq!(told.flow().violations_total, 0);
}
