//! The HTTP upgrade at a connection's beginning, read with the kernel programs' scanner.

use ws_guard_common::handshake::{
    GET, HeadScanner, INTERIM, MAX_HEAD, METHODS, PERMESSAGE_DEFLATE, SWITCHING, UPGRADE_WEBSOCKET,
};

use crate::reassembly::Chunk;

/// The first bytes of any answer.
const ANSWER: &[u8; 5] = b"HTTP/";
/// The first bytes of version 2 of the PROXY protocol; version 1 is a line of text.
const PROXY_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const PROXY_V1: &[u8; 6] = b"PROXY ";

/// A message head that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    scanner: HeadScanner,
    length: u32,
    /// Of an answer that another one follows: a 100 or 103.
    is_interim: bool,
}

/// What a client's bytes were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Nothing,
    /// An upgrade, whose request ends before this sequence number.
    Upgrade(u32),
    /// They are no HTTP.
    NoHttp,
}

/// What a server's bytes were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Nothing,
    /// A 101, whose head ends before this sequence number.
    Upgrade {
        end: u32,
        deflate: bool,
    },
    /// Another answer.
    Refused,
}

/// A client's requests.
#[derive(Debug, Default)]
pub struct Requests {
    head: Option<Head>,
    is_begun: bool,
}

/// A server's answers.
#[derive(Debug, Default)]
pub struct Answers {
    head: Option<Head>,
}

impl Head {
    /// Take bytes; how many, if the head ends there.
    fn push(&mut self, bytes: &[u8]) -> Option<usize> {
        let taken = bytes.iter().position(|byte| self.scanner.push(*byte));
        let taken = taken.map(|last| last + 1);
        let count = taken.unwrap_or(bytes.len());
        self.length = self.length.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        taken
    }

    const fn found(&self, what: u8) -> bool {
        self.scanner.found & what != 0
    }
}

/// Bytes before the first request that a proxy puts there.
fn preface(bytes: &[u8]) -> usize {
    if bytes.starts_with(PROXY_V1) {
        return bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
    }
    match (bytes.starts_with(PROXY_V2), bytes.get(14..16)) {
        (true, Some(&[high, low])) => {
            (16 + usize::from(u16::from_be_bytes([high, low]))).min(bytes.len())
        }
        _ => 0,
    }
}

impl Requests {
    /// A request is being read, so that the next bytes belong to it.
    pub const fn is_open(&self) -> bool {
        self.head.is_some()
    }

    /// Bytes are missing.
    pub fn interrupt(&mut self) {
        self.head = None;
    }

    /// Take a client's next bytes. Requests are looked for at the beginnings of segments.
    pub fn take(&mut self, chunk: &Chunk<'_>) -> Asked {
        let mut bytes = &*chunk.bytes;
        let mut at = 0;
        if self.head.is_none() {
            at = if self.is_begun { 0 } else { preface(bytes) };
            bytes = &bytes[at..];
            let is_get = bytes.starts_with(GET);
            let is_http = is_get || METHODS.iter().any(|method| bytes.starts_with(*method));
            let is_first = !std::mem::replace(&mut self.is_begun, true);
            // A request in pieces of less than four bytes is not told from something else.
            if !is_get {
                let is_odd = is_first && !is_http && !bytes.is_empty();
                return if is_odd { Asked::NoHttp } else { Asked::Nothing };
            }
        }
        let head = self.head.get_or_insert_default();
        match head.push(bytes) {
            Some(taken) => {
                let upgrades = head.found(UPGRADE_WEBSOCKET);
                self.head = None;
                let end = chunk.seq.wrapping_add((at + taken) as u32);
                if upgrades { Asked::Upgrade(end) } else { Asked::Nothing }
            }
            None => {
                if chunk.snapped() > 0 || head.length > MAX_HEAD {
                    self.head = None;
                }
                Asked::Nothing
            }
        }
    }
}

impl Answers {
    /// Bytes are missing.
    pub fn interrupt(&mut self) {
        self.head = None;
    }

    /// Take a server's next bytes. Answers are looked for at the beginnings of segments.
    pub fn take(&mut self, chunk: &Chunk<'_>) -> Answered {
        let mut at = 0;
        loop {
            let bytes = chunk.bytes.get(at..).unwrap_or_default();
            if self.head.is_none() {
                if !bytes.starts_with(INTERIM) {
                    let refused = at == 0 && bytes.starts_with(ANSWER);
                    return if refused { Answered::Refused } else { Answered::Nothing };
                }
                let is_interim = !bytes.starts_with(SWITCHING);
                self.head = Some(Head { is_interim, ..Head::default() });
            }
            let Some(head) = &mut self.head else { return Answered::Nothing };
            let Some(taken) = head.push(bytes) else {
                if chunk.snapped() > 0 || head.length > MAX_HEAD {
                    self.head = None;
                }
                return Answered::Nothing;
            };
            let upgrades = head.found(UPGRADE_WEBSOCKET) && !head.is_interim;
            let deflate = head.found(PERMESSAGE_DEFLATE);
            self.head = None;
            at += taken;
            if upgrades {
                return Answered::Upgrade { end: chunk.seq.wrapping_add(at as u32), deflate };
            }
        }
    }
}
