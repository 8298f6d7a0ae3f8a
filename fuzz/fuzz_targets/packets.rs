//! The binary protocols: any stream, whole and cut, gives the same bodies.
//! First byte: how it is cut.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::Decoder;
use ws_guard_server::packets::{FixedHeader, Layout, LengthMagic, LengthPrefix, Packets};

const MOST: usize = 1024;

/// Return the bodies, and whether an error ended them.
fn decode<L: Layout>(bytes: &[u8], piece: usize) -> (Vec<Bytes>, bool) {
    let (mut packets, mut stream) = (Packets::<L>::new(MOST), BytesMut::new());
    let mut bodies = Vec::new();
    for piece in bytes.chunks(piece) {
        stream.extend_from_slice(piece);
        loop {
            match packets.decode(&mut stream) {
                Ok(Some(body)) => bodies.push(body),
                Ok(None) => break,
                Err(_) => return (bodies, true),
            }
        }
    }
    (bodies, packets.decode_eof(&mut stream).is_err())
}

fn check<L: Layout>(bytes: &[u8], piece: usize) {
    let whole = decode::<L>(bytes, bytes.len().max(1));
    assert!(whole.0.iter().all(|body| body.len() <= MOST));
    assert_eq!(whole, decode::<L>(bytes, piece));
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, bytes)) = data.split_first() else { return };
    let piece = usize::from(*piece) + 1;
    check::<FixedHeader>(bytes, piece);
    check::<LengthPrefix>(bytes, piece);
    check::<LengthMagic>(bytes, piece);
});
