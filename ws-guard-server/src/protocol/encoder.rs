//! Encoding of frames (RFC 6455, 5.2).

use ws_guard_common::frame::{FIN, MASK, MAX_HEADER, RSV1, opcode};

use super::{Kind, close::MAX_REASON};

/// Header as bytes, without a masking key.
#[derive(Clone, Copy, Debug)]
pub struct HeaderBytes {
    bytes: [u8; MAX_HEADER],
    len: u8,
}

impl HeaderBytes {
    /// Create a frame's header with the shortest form of its length.
    ///
    /// `first` is the first byte on the wire, `payload` the length in bytes.
    pub fn new(first: u8, payload: usize) -> HeaderBytes {
        let mut bytes = [0; MAX_HEADER];
        bytes[0] = first;
        let len = match payload {
            0..126 => {
                bytes[1] = payload as u8;
                2
            }
            126..0x1_0000 => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(payload as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..10].copy_from_slice(&(payload as u64).to_be_bytes());
                10
            }
        };
        HeaderBytes { bytes, len }
    }

    /// Create the header of a whole message in one frame.
    pub fn message(kind: Kind, compressed: bool, payload: usize) -> HeaderBytes {
        let rsv = if compressed { RSV1 } else { 0 };
        HeaderBytes::new(FIN | rsv | kind.opcode(), payload)
    }

    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Make it the header of a masked frame; its key follows it on the wire.
    #[must_use]
    pub fn masked(mut self) -> HeaderBytes {
        self.bytes[1] |= MASK;
        self
    }
}

/// Append a control frame; a payload over 125 bytes is truncated.
pub fn control(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    let payload = payload.get(..125).unwrap_or(payload);
    out.extend_from_slice(HeaderBytes::new(FIN | opcode, payload.len()).as_slice());
    out.extend_from_slice(payload);
}

/// Append a close frame, without status code if `code` is one that is never sent.
/// A reason that is too long is cut between two characters.
pub fn close(code: u16, reason: &str, out: &mut Vec<u8>) {
    if !super::close::may_be_sent(code) {
        return control(opcode::CLOSE, &[], out);
    }
    let end = reason.floor_char_boundary(MAX_REASON);
    let mut payload = Vec::with_capacity(2 + end);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.get(..end).unwrap_or_default().as_bytes());
    control(opcode::CLOSE, &payload, out);
}

#[cfg(test)]
mod tests {
    use ws_guard_common::frame::Header;

    use super::*;

    #[test]
    fn lengths_take_their_shortest_form() {
        for (payload, header) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            let bytes = HeaderBytes::message(Kind::Binary, false, payload);
            assert_eq!(bytes.as_slice().len(), header);
            let decoded = Header::decode(bytes.as_slice()).unwrap();
            assert_eq!((decoded.payload_len, decoded.first), (payload as u64, 0x82));
            let masked = bytes.masked();
            assert!(Header::decode(masked.as_slice()).unwrap().masked());
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut out = Vec::new();
        close(1001, &"é".repeat(100), &mut out);
        assert_eq!(out.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
        out.clear();
        close(1006, "never sent", &mut out);
        assert_eq!(out, [0x88, 0]);
    }
}
