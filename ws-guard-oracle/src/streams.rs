//! Streams of frames, valid and wild, and their segmentation.

use fastrand::Rng;

use crate::cases::one_in;

/// Generate a frame as on the wire, mostly valid; `wild` ones may violate anything.
pub fn frame(rng: &mut Rng, from_client: bool, wild: bool, message_open: &mut bool) -> Vec<u8> {
    let opcode = match rng.u8(..16) {
        _ if wild && one_in(rng, 4) => rng.u8(..16),
        0..=5 => 0x9,
        6 | 7 => 0xA,
        8 if !wild => 0x8,
        _ if *message_open => 0x0,
        _ => rng.u8(1..=2),
    };
    let control = opcode >= 8;
    let fin = if control { !(wild && one_in(rng, 6)) } else { rng.u8(..3) > 0 };
    if opcode < 3 {
        *message_open = !fin;
    }
    let rsv = if wild && one_in(rng, 5) { rng.u8(..8) << 4 } else { 0 };
    let masked = from_client != (wild && one_in(rng, 6));
    let length = length(rng, control && !wild);
    let mut bytes = vec![u8::from(fin) << 7 | rsv | opcode];
    let mask = u8::from(masked) << 7;
    match length {
        _ if wild && one_in(rng, 6) => {
            let top = u64::from(one_in(rng, 4)) << 63;
            bytes.push(mask | 127);
            bytes.extend((length as u64 | top).to_be_bytes());
        }
        126..=0xFFFF => {
            bytes.push(mask | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        0x1_0000.. => {
            bytes.push(mask | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
        _ if wild && one_in(rng, 6) => {
            bytes.push(mask | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => bytes.push(mask | length as u8),
    }
    payload(rng, if masked { length + 4 } else { length }, &mut bytes);
    bytes
}

/// Choose a payload length: the limits of each form more often than values between.
fn length(rng: &mut Rng, short: bool) -> usize {
    match rng.u8(..32) {
        0..=7 => 0,
        8..=15 => rng.usize(..8),
        _ if short => rng.usize(..=125),
        16..=22 => rng.usize(..=125),
        23 => 125,
        24 => 126,
        25..=29 => rng.usize(126..2000),
        30 if one_in(rng, 8) => rng.usize(65_530..65_545),
        _ => rng.usize(..300),
    }
}

/// Generate masking key and payload: noise, zeros, or bytes like ping headers.
fn payload(rng: &mut Rng, length: usize, bytes: &mut Vec<u8>) {
    let style = rng.u8(..3);
    bytes.extend((0..length).map(|index| match style {
        0 => 0,
        1 => [0x89, 0x80][index % 2],
        _ => rng.u8(..),
    }));
}

/// Generate a whole stream of one side. A wild one may end in an endless frame.
pub fn stream(rng: &mut Rng, from_client: bool, frames: usize) -> Vec<u8> {
    let wild = one_in(rng, 2);
    let mut message_open = false;
    let mut bytes = Vec::new();
    for _ in 0..frames {
        let wild = wild && one_in(rng, 2);
        bytes.extend(frame(rng, from_client, wild, &mut message_open));
    }
    if wild && one_in(rng, 4) {
        let mask = if from_client { 0x80 } else { 0 };
        bytes.extend([0x82, mask | 127]);
        let length = match rng.u8(..3) {
            0 => rng.u64(1 << 62..),
            1 => u64::MAX,
            _ => rng.u64(1 << 17..1 << 40),
        };
        bytes.extend(length.to_be_bytes());
        let more = rng.usize(..200);
        payload(rng, more, &mut bytes);
    }
    if one_in(rng, 4) {
        bytes.truncate(rng.usize(1..=bytes.len().max(1)));
    }
    bytes
}

/// Generate messages of a busy client, with pings among them.
/// They are all of one length, or of lengths up to it. Some clients compress them, and some send
/// long ones in fragments.
pub fn messages(rng: &mut Rng) -> Vec<u8> {
    let length = [2, 20, 100, 100, 400, 400, 1400, 5_000, 70_000][rng.usize(..9)];
    let most = if one_in(rng, 4) { 250_000 } else { 60_000 };
    let (total, varied) = (rng.usize(1_000..most), one_in(rng, 2));
    let whole = if one_in(rng, 4) { 0xC2 } else { 0x82 };
    let fragments = length >= 100 && one_in(rng, 8);
    let mut open = false;
    let mut bytes = Vec::new();
    while bytes.len() < total {
        let length = if varied { rng.usize(..=length) } else { length };
        if one_in(rng, 50) {
            bytes.extend([0x89, 0x80, 1, 2, 3, 4]);
        }
        let last = !fragments || one_in(rng, 3);
        bytes.push(if open { 0 } else { whole & 0x7F } | u8::from(last) << 7);
        open = !last;
        match length {
            0..126 => bytes.push(0x80 | length as u8),
            126..0x1_0000 => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        payload(rng, length + 4, &mut bytes);
    }
    bytes
}

/// Generate a client's stream that any server reads to its end.
/// It has valid frames of moderate length, whole messages, no text (which has to be UTF-8), and no
/// CLOSE.
pub fn spoken(rng: &mut Rng, frames: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut message_open = false;
    let mut count = 0;
    while count < frames || message_open {
        let mut open = message_open;
        let mut frame = frame(rng, true, false, &mut open);
        let (opcode, last) = (frame[0] & 0xF, count + 1 >= frames);
        if opcode == 8 || frame.len() > 3000 || last && opcode < 3 && open {
            continue;
        }
        if opcode == 1 {
            frame[0] += 1;
        }
        bytes.extend(frame);
        message_open = open;
        count += 1;
    }
    bytes
}

/// Choose the segment ends of a stream, ascending, its own end included.
/// No segment has more than `most` bytes.
pub fn boundaries(rng: &mut Rng, length: usize, most: usize) -> Vec<usize> {
    let longest = match rng.u8(..6) {
        0 if length < 4000 => 1,
        1 if length < 20_000 => 12,
        2 => 0xFFFF,
        3 => 1448,
        _ => rng.usize(2..3000),
    };
    let longest = longest.min(most);
    let mut boundaries = Vec::new();
    let mut at = 0;
    while at < length {
        at = length.min(at + if one_in(rng, 2) { longest } else { rng.usize(1..=longest) });
        boundaries.push(at);
    }
    boundaries
}

/// Choose an initial sequence number: often one that wraps around soon.
pub fn initial(rng: &mut Rng) -> u32 {
    if one_in(rng, 2) { 0u32.wrapping_sub(rng.u32(..3000)) } else { rng.u32(..) }
}
