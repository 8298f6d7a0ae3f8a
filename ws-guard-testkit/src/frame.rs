//! WebSocket frames as the test client writes and reads them (RFC 6455, 5.2).
//!
//! Written independently of `ws-guard-common`, so that one can be wrong without the other.

/// Opcodes (RFC 6455, 11.8).
pub mod opcode {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// Frame to send; fields are public, so that a test can also build invalid ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    /// Three reserved bits, 0 to 7.
    pub rsv: u8,
    pub opcode: u8,
    /// Masking key, or `None` for an unmasked frame.
    pub mask: Option<[u8; 4]>,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Build a valid client frame: FIN set, masked with a random key.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Frame {
        let mask = Some(fastrand::u32(..).to_ne_bytes());
        Frame { fin: true, rsv: 0, opcode, mask, payload: payload.into() }
    }

    pub fn text(text: &str) -> Frame {
        Frame::new(opcode::TEXT, text)
    }

    pub fn ping(payload: impl Into<Vec<u8>>) -> Frame {
        Frame::new(opcode::PING, payload)
    }

    /// Split a message into frames of at most `size` bytes of payload, `size` from 1.
    pub fn fragments(opcode: u8, payload: &[u8], size: usize) -> Vec<Frame> {
        let mut frames: Vec<Frame> = payload
            .chunks(size.max(1))
            .map(|part| Frame::new(opcode::CONTINUATION, part))
            .collect();
        let count = frames.len();
        for (n, frame) in frames.iter_mut().enumerate() {
            frame.opcode = if n == 0 { opcode } else { opcode::CONTINUATION };
            frame.fin = n + 1 == count;
        }
        frames
    }

    /// Append the bytes on the wire to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let length = self.payload.len();
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        out.push(u8::from(self.fin) << 7 | (self.rsv & 7) << 4 | self.opcode & 15);
        match length {
            0..126 => out.push(masked | length as u8),
            126..0x1_0000 => {
                out.push(masked | 126);
                out.extend((length as u16).to_be_bytes());
            }
            _ => {
                out.push(masked | 127);
                out.extend((length as u64).to_be_bytes());
            }
        }
        match self.mask {
            Some(key) => {
                out.extend(key);
                out.extend(self.payload.iter().zip(key.iter().cycle()).map(|(byte, k)| byte ^ k));
            }
            None => out.extend(&self.payload),
        }
    }
}

/// Encode several consecutive frames.
pub fn encode(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

/// Decoder of frames in a stream of bytes, with any segmentation.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Return the next complete frame, unmasked, or `None` until more bytes come.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let bytes = &self.buffer[self.taken..];
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        let mut at = 2;
        let mut take = |n: usize| {
            let part = bytes.get(at..at + n)?;
            at += n;
            Some(part)
        };
        let length = match second & 127 {
            126 => usize::from(u16::from_be_bytes(take(2)?.try_into().ok()?)),
            127 => usize::try_from(u64::from_be_bytes(take(8)?.try_into().ok()?)).ok()?,
            short => usize::from(short),
        };
        let mask: Option<[u8; 4]> =
            if second & 0x80 != 0 { Some(take(4)?.try_into().ok()?) } else { None };
        let mut payload = take(length)?.to_vec();
        if let Some(key) = mask {
            payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, k)| *byte ^= k);
        }
        self.taken += at;
        Some(Frame {
            fin: first & 0x80 != 0,
            rsv: first >> 4 & 7,
            opcode: first & 15,
            mask,
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_there_and_back_cut_anywhere() {
        let sizes = [0, 1, 125, 126, 127, 0xFFFF, 0x1_0000];
        let mut frames: Vec<Frame> =
            sizes.iter().map(|&n| Frame::new(opcode::BINARY, vec![7; n])).collect();
        frames.extend(Frame::fragments(opcode::TEXT, b"in three parts", 5));
        frames.push(Frame { mask: None, rsv: 5, ..Frame::text("server's") });
        let bytes = encode(&frames);
        for cut in [1, 3, 1000, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut decoded = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.push(part);
                decoded.extend(std::iter::from_fn(|| decoder.next_frame()));
            }
            assert!(decoded == frames, "cut every {cut} bytes");
        }
    }

    #[test]
    fn a_frame_looks_as_in_the_rfc() {
        // RFC 6455, 5.7: a single-frame masked text message that contains "Hello".
        let frame = Frame { mask: Some([0x37, 0xfa, 0x21, 0x3d]), ..Frame::text("Hello") };
        let wire = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(encode(&[frame]), wire);
    }
}
