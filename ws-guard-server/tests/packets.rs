//! The binary protocols: any cut of the stream, limits, and the mistakes that are easy to make.

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use tokio_util::codec::{Decoder, Encoder, FramedRead, FramedWrite};
use ws_guard_server::packets::{
    FixedHeader, Layout, LengthMagic, LengthPrefix, PacketError, Packets, Protobuf, single,
};

const MOST: usize = 300;

fn encode<L: Layout>(bodies: &[Vec<u8>]) -> BytesMut {
    let mut stream = BytesMut::new();
    for body in bodies {
        Packets::<L>::new(MOST).encode(body, &mut stream).unwrap();
    }
    stream
}

/// Decode a stream that comes in pieces of `size` bytes and then ends.
fn decode<L: Layout>(stream: &[u8], size: usize) -> (Vec<Bytes>, Option<PacketError>) {
    let (mut packets, mut buffer) = (Packets::<L>::new(MOST), BytesMut::new());
    let mut bodies = Vec::new();
    for piece in stream.chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            match packets.decode(&mut buffer) {
                Ok(Some(body)) => bodies.push(body),
                Ok(None) => break,
                Err(error) => return (bodies, Some(error)),
            }
        }
    }
    (bodies, packets.decode_eof(&mut buffer).err())
}

fn there_and_back<L: Layout>(bodies: &[Vec<u8>], size: usize) {
    let (decoded, error) = decode::<L>(&encode::<L>(bodies), size);
    assert!(error.is_none(), "{error:?}");
    assert!(decoded.iter().eq(bodies.iter()));
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_packets(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..MOST), 0..10),
        size in 1usize..50,
    ) {
        there_and_back::<FixedHeader>(&bodies, size);
        there_and_back::<LengthPrefix>(&bodies, size);
        there_and_back::<LengthMagic>(&bodies, size);
    }

    #[test]
    fn rubbish_gives_an_error_and_no_more_than_it_holds(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        size in 1usize..50,
    ) {
        for bodies in [
            decode::<FixedHeader>(&bytes, size).0,
            decode::<LengthPrefix>(&bytes, size).0,
            decode::<LengthMagic>(&bytes, size).0,
        ] {
            prop_assert!(bodies.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
        }
    }
}

#[test]
fn bytes_on_the_wire() {
    let hello = [b"hello".to_vec()];
    assert_eq!(encode::<FixedHeader>(&hello), &b"\x12\x34\x01\0\0\0\x05hello"[..]);
    assert_eq!(encode::<LengthPrefix>(&hello), &b"\0\0\0\x05hello"[..]);
    assert_eq!(encode::<LengthMagic>(&hello), &b"\0\0\0\x05\xCA\xFE\xBA\xBEhello"[..]);
}

/// A parser that reads a body with one `Read` call, and does not look at how much it got, gives a
/// body of zeros for what has not come.
#[test]
fn a_short_read_is_no_packet() {
    let whole = encode::<FixedHeader>(&[b"hello".to_vec()]);
    for end in 1..whole.len() {
        let mut stream = BytesMut::from(&whole[..end]);
        let mut packets = Packets::<FixedHeader>::new(MOST);
        assert!(packets.decode(&mut stream).unwrap().is_none(), "{end} bytes");
        assert_eq!(stream, whole[..end], "nothing is lost");
        let error = packets.decode_eof(&mut stream).unwrap_err();
        let wanted = if end < 7 { 7 } else { 12 };
        let expected = format!("a packet ends after {end} of {wanted} bytes");
        assert_eq!(error.to_string(), expected);
        assert!(single(&mut packets, Bytes::copy_from_slice(&whole[..end])).is_err());
    }
    let body = single(&mut Packets::<FixedHeader>::new(MOST), whole.freeze()).unwrap();
    assert_eq!(body, "hello");
}

#[test]
fn a_length_is_refused_before_anything_is_set_aside_for_it() {
    for (head, length) in
        [(&b"\x12\x34\x01\xFF\xFF\xFF\xFF"[..], u32::MAX), (b"\x12\x34\x01\0\0\x01\x2D", 301)]
    {
        let mut stream = BytesMut::from(head);
        let capacity = stream.capacity();
        let error = Packets::<FixedHeader>::new(MOST).decode(&mut stream).unwrap_err();
        assert!(
            matches!(error, PacketError::TooLong { length: l, most: MOST } if l == length as usize),
            "{error}"
        );
        assert_eq!(stream.capacity(), capacity);
    }
    let mut out = BytesMut::new();
    assert!(Packets::<LengthPrefix>::new(MOST).encode(vec![0; 301], &mut out).is_err());
    assert!(out.is_empty());
}

#[test]
fn a_stream_out_of_step_is_noticed_at_its_first_wrong_byte() {
    for (bytes, message) in [
        (&b"\x12\x35"[..], "byte 1 of a packet is 0x35 instead of 0x34"),
        (b"\x00", "byte 0 of a packet is 0x00 instead of 0x12"),
        (b"\x12\x34\x02", "packet of version 2"),
    ] {
        let error = Packets::<FixedHeader>::new(MOST).decode(&mut bytes.into()).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
    }
    let error = Packets::<LengthMagic>::new(MOST).decode(&mut b"\0\0\0\x05\xCA\xFF"[..].into());
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("byte 5 of a packet is 0xff instead of 0xfe"), "{error}");
}

#[test]
fn a_message_holds_one_packet_and_no_more() {
    let packets = &mut Packets::<LengthPrefix>::new(MOST);
    let two = encode::<LengthPrefix>(&[b"one".to_vec(), b"two".to_vec()]).freeze();
    assert!(matches!(single(packets, two), Err(PacketError::Trailing(7))));
    assert!(matches!(
        single(packets, Bytes::new()),
        Err(PacketError::Truncated { there: 0, wanted: 4 })
    ));
}

#[derive(Clone, PartialEq, prost::Message)]
struct Notice {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(uint64, tag = "2")]
    number: u64,
}

#[tokio::test]
async fn protobuf_over_a_stream_that_reads_a_few_bytes_at_a_time() {
    let (client, server) = tokio::io::duplex(7);
    let notices: Vec<Notice> =
        (0..50).map(|number| Notice { topic: "chat".repeat(number as usize), number }).collect();
    let sent = notices.clone();
    let writing = tokio::spawn(async move {
        let mut writer = FramedWrite::new(client, Protobuf::<Notice>::new(MOST));
        for notice in sent {
            writer.send(notice).await.unwrap();
        }
    });
    let reader = FramedRead::new(server, Protobuf::<Notice>::new(MOST));
    let read: Vec<Notice> = reader.map(Result::unwrap).collect().await;
    writing.await.unwrap();
    assert_eq!(read, notices);
}

#[test]
fn a_body_that_is_no_message_is_named() {
    let mut stream = encode::<LengthPrefix>(&[vec![0xFF; 3]]);
    let error = Protobuf::<Notice>::new(MOST).decode(&mut stream).unwrap_err();
    assert!(matches!(error, PacketError::Protobuf(_)), "{error}");
}
