//! Byte-by-byte explanation of a frame's header.

use ws_guard_common::frame::{FIN, Header, LEN7, MASK, OPCODE, RSV1, opcode};

use crate::finding::{Frame, Side};

/// RSV2 and RSV3, to which no extension in use gives a meaning.
const RSV2: u8 = RSV1 >> 1;
const RSV3: u8 = RSV1 >> 2;
/// Payload bytes in a row.
const ROW: usize = 16;

/// Bytes of a frame and their meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset in the frame.
    pub offset: usize,
    pub bytes: Vec<u8>,
    pub meaning: String,
}

/// Explain a frame's kept bytes: header, then unmasked payload in rows.
pub fn explain(side: Side, frame: &Frame) -> Vec<Part> {
    let bytes = &frame.bytes;
    let mut parts = Vec::new();
    let mut put = |from: usize, to: usize, meaning: String| {
        if let Some(bytes) = bytes.get(from..to.min(bytes.len())).filter(|bytes| !bytes.is_empty())
        {
            parts.push(Part { offset: from, bytes: bytes.to_vec(), meaning });
        }
    };
    let (Some(&first), Some(&second)) = (bytes.first(), bytes.get(1)) else {
        return parts;
    };
    put(0, 1, first_byte(first));
    put(1, 2, second_byte(side, second));
    let header = frame.header as usize;
    let key = header - if second & MASK != 0 { 4 } else { 0 };
    put(2, key, length(key.saturating_sub(2) * 8, Header::decode(bytes).ok()));
    put(
        key,
        header,
        "masking key: each byte of the payload is combined with one of these by XOR".into(),
    );
    let mask = bytes.get(key..header).unwrap_or_default();
    for from in (header..bytes.len()).step_by(ROW) {
        let row = &bytes[from..bytes.len().min(from + ROW)];
        let plain = row.iter().zip(from - header..).map(|(byte, at)| byte ^ mask_at(mask, at));
        put(from, from + ROW, payload(&plain.collect::<Vec<u8>>()));
    }
    parts
}

fn mask_at(mask: &[u8], at: usize) -> u8 {
    mask.get(at % 4).copied().unwrap_or(0)
}

/// Explain FIN, RSV and opcode.
fn first_byte(first: u8) -> String {
    let fin = if first & FIN != 0 {
        "FIN: the message ends here"
    } else {
        "no FIN: more fragments follow"
    };
    let rsv = [(RSV1, "RSV1: compressed"), (RSV2, "RSV2"), (RSV3, "RSV3")];
    let rsv: String = rsv
        .iter()
        .filter(|(bit, _)| first & bit != 0)
        .map(|(_, name)| format!("; {name}"))
        .collect();
    let code = first & OPCODE;
    format!("{first:08b}  {fin}{rsv}; opcode {code:#x}, {}", opcode_name(code))
}

/// Explain the mask bit and the short length.
fn second_byte(side: Side, second: u8) -> String {
    let mask = match (second & MASK != 0, side) {
        (true, Side::Client) => "masked, as all that clients send",
        (false, Side::Server) => "not masked, as all that servers send",
        (true, Side::Server) => "masked, which a server must not (RFC 6455, 5.1)",
        (false, Side::Client) => "not masked, which a client must (RFC 6455, 5.1)",
    };
    let length = match second & LEN7 {
        126 => "length 126: the next 2 bytes have it".into(),
        127 => "length 127: the next 8 bytes have it".into(),
        length => format!("length of the payload: {length}"),
    };
    format!("{second:08b}  {mask}; {length}")
}

/// Explain the extended length.
fn length(bits: usize, header: Option<Header>) -> String {
    match header {
        Some(header) => format!("length of the payload in {bits} bits: {}", header.payload_len),
        None => format!("length of the payload in {bits} bits, not whole"),
    }
}

/// Return the name of an opcode.
pub const fn opcode_name(code: u8) -> &'static str {
    match code {
        opcode::CONTINUATION => "continuation",
        opcode::TEXT => "text",
        opcode::BINARY => "binary",
        opcode::CLOSE => "close",
        opcode::PING => "ping",
        opcode::PONG => "pong",
        _ => "reserved",
    }
}

/// Format payload as hex viewers show it.
fn payload(plain: &[u8]) -> String {
    let text = plain.iter().map(|byte| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '.',
    });
    format!("payload: {}", text.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(side: Side, header: u32, bytes: &[u8]) -> Vec<String> {
        let frame = Frame {
            frame: 1,
            opcode: bytes[0] & OPCODE,
            fin: true,
            rsv: 0,
            length: 0,
            header,
            ends_in_packet: 1,
            segments: 1,
            bytes: bytes.to_vec(),
        };
        let parts = explain(side, &frame);
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
        assert_eq!(whole, bytes, "each byte is explained once");
        parts.into_iter().map(|part| format!("{} {}", part.offset, part.meaning)).collect()
    }

    /// Examples of RFC 6455, 5.7.
    #[test]
    fn the_examples_of_the_rfc_are_explained() {
        let masked = of(
            Side::Client,
            6,
            &[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58],
        );
        assert_eq!(masked[0], "0 10000001  FIN: the message ends here; opcode 0x1, text");
        assert!(masked[1].contains("masked, as all that clients send; length of the payload: 5"));
        assert!(masked[2].starts_with("2 masking key"));
        assert_eq!(masked[3], "6 payload: Hello");
        let long = of(Side::Server, 4, &[0x02, 126, 1, 0, 0]);
        assert!(long[0].contains("no FIN") && long[1].contains("the next 2 bytes have it"));
        assert_eq!(long[2], "2 length of the payload in 16 bits: 256");
        assert!(of(Side::Client, 2, &[0xC1, 0])[1].contains("which a client must"));
        assert!(of(Side::Client, 2, &[0xC1, 0])[0].contains("RSV1: compressed"));
    }

    #[test]
    fn what_was_not_captured_is_not_explained() {
        assert_eq!(of(Side::Client, 14, &[0x82, 0xFF, 0, 0]).len(), 3);
    }
}
