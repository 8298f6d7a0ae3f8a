//! Bodies that are protobuf messages.

use std::marker::PhantomData;

use bytes::BytesMut;
use prost::Message;
use tokio_util::codec::{Decoder, Encoder};

use super::{Layout, LengthPrefix, PacketError, Packets};

/// Codec of protobuf messages of type `M` after a header, by default its length.
#[derive(Clone, Copy, Debug)]
pub struct Protobuf<M, L = LengthPrefix> {
    packets: Packets<L>,
    message: PhantomData<fn() -> M>,
}

impl<M, L> Protobuf<M, L> {
    /// Create a codec for messages of at most `most` encoded bytes.
    pub const fn new(most: usize) -> Protobuf<M, L> {
        Protobuf { packets: Packets::new(most), message: PhantomData }
    }
}

impl<M: Message + Default, L: Layout> Decoder for Protobuf<M, L> {
    type Item = M;
    type Error = PacketError;

    fn decode(&mut self, stream: &mut BytesMut) -> Result<Option<M>, PacketError> {
        let body = self.packets.decode(stream)?;
        body.map(|body| M::decode(body).map_err(PacketError::from)).transpose()
    }

    fn decode_eof(&mut self, stream: &mut BytesMut) -> Result<Option<M>, PacketError> {
        let body = self.packets.decode_eof(stream)?;
        body.map(|body| M::decode(body).map_err(PacketError::from)).transpose()
    }
}

impl<M: Message, L: Layout> Encoder<M> for Protobuf<M, L> {
    type Error = PacketError;

    fn encode(&mut self, message: M, out: &mut BytesMut) -> Result<(), PacketError> {
        self.packets.encode(message.encode_to_vec(), out)
    }
}
