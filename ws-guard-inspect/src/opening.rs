//! HTTP upgrade at the start of a connection, by the kernel programs' scanner.

use ws_guard_common::handshake::{
    GET, HeadScanner, INTERIM, MAX_HEAD, METHODS, PERMESSAGE_DEFLATE, SWITCHING, UPGRADE_WEBSOCKET,
};

use crate::reassembly::Chunk;

/// First bytes of any HTTP response.
const ANSWER: &[u8; 5] = b"HTTP/";
/// The first bytes of version 2 of the PROXY protocol; version 1 is a line of text.
const PROXY_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const PROXY_V1: &[u8; 6] = b"PROXY ";

/// Message head being read.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    scanner: HeadScanner,
    length: u32,
    /// `true` for an interim response, a 100 or 103, which another one follows.
    is_interim: bool,
}

/// Classification of a client's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Nothing,
    /// Upgrade whose request ends before this sequence number.
    Upgrade(u32),
    /// Bytes that are not HTTP.
    NoHttp,
}

/// Classification of a server's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Nothing,
    /// 101 whose head ends before this sequence number.
    Upgrade {
        end: u32,
        deflate: bool,
    },
    /// Other response.
    Refused,
}

/// Requests of a client.
#[derive(Debug, Default)]
pub struct Requests {
    head: Option<Head>,
    is_begun: bool,
    /// Number of other requests, whose responses precede the upgrade's.
    pub ahead: u32,
}

/// Responses of a server.
#[derive(Debug, Default)]
pub struct Answers {
    head: Option<Head>,
}

impl Head {
    /// Add bytes, and return their number up to the end of the head, if it is there.
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

/// Return the number of bytes that a proxy has put before the first request.
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

/// Return the position of a 101 after other bytes.
fn behind(bytes: &[u8]) -> Option<usize> {
    bytes.windows(SWITCHING.len()).position(|text| text == SWITCHING)
}

impl Requests {
    /// Check whether a request is being read, so that the next bytes belong to it.
    pub const fn is_open(&self) -> bool {
        self.head.is_some()
    }

    /// Handle missing bytes.
    pub fn interrupt(&mut self) {
        (self.head, self.ahead) = (None, 0);
    }

    /// Process a client's next bytes.
    /// Requests are looked for at the starts of segments, and after one another.
    pub fn take(&mut self, chunk: &Chunk<'_>) -> Asked {
        let mut at = 0;
        while at == 0 || at < chunk.bytes.len() {
            if self.head.is_none() {
                if at == 0 {
                    at = if self.is_begun { 0 } else { preface(&chunk.bytes) };
                }
                if let Err(asked) = self.begin(&chunk.bytes[at..], at > 0) {
                    return asked;
                }
            }
            let head = self.head.get_or_insert_default();
            let Some(taken) = head.push(&chunk.bytes[at..]) else {
                if chunk.snapped() > 0 || head.length > MAX_HEAD {
                    self.head = None;
                }
                return Asked::Nothing;
            };
            let upgrades = head.found(UPGRADE_WEBSOCKET);
            self.head = None;
            at += taken;
            if upgrades {
                return Asked::Upgrade(chunk.seq.wrapping_add(at as u32));
            }
            self.ahead = self.ahead.saturating_add(1);
        }
        Asked::Nothing
    }

    /// Check whether a request with a head begins; if not, return what the bytes are.
    /// `is_behind`: other bytes precede them in the segment.
    fn begin(&mut self, bytes: &[u8], is_behind: bool) -> Result<(), Asked> {
        let is_get = bytes.starts_with(GET);
        let is_http = is_get || METHODS.iter().any(|method| bytes.starts_with(method));
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        // The first request may arrive byte by byte, and so may one after another; any other could
        // not be told from other data then.
        let may_be = (is_first || is_behind) && !bytes.is_empty() && GET.starts_with(bytes);
        if is_get || may_be {
            return Ok(());
        }
        self.ahead = self.ahead.saturating_add(u32::from(is_http));
        let is_odd = is_first && !is_http && !bytes.is_empty();
        Err(if is_odd { Asked::NoHttp } else { Asked::Nothing })
    }
}

impl Answers {
    /// Handle missing bytes.
    pub fn interrupt(&mut self) {
        self.head = None;
    }

    /// Process a server's next bytes.
    /// Responses are looked for at the starts of segments; a 101 also after other bytes, where an
    /// upgrade was requested, with `ahead` requests before it.
    pub fn take(&mut self, chunk: &Chunk<'_>, asked: bool, ahead: u32) -> Answered {
        let mut at = 0;
        loop {
            let bytes = chunk.bytes.get(at..).unwrap_or_default();
            if self.head.is_none() {
                if !bytes.starts_with(INTERIM) {
                    let is_answer = at == 0 && bytes.starts_with(ANSWER);
                    let may_follow = asked && at == 0 && (ahead > 0 || !is_answer);
                    match may_follow.then(|| behind(bytes)).flatten() {
                        Some(place) => at = place,
                        None if is_answer => return Answered::Refused,
                        None => return Answered::Nothing,
                    }
                    continue;
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
