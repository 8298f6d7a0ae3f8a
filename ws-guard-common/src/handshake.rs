//! HTTP/1.1 upgrade, RFC 6455, 4: the end of a message head, and what was agreed in it.
//!
//! [`HeadScanner`] takes a head byte by byte, independent of segments.

/// The first bytes of a response that may open a flow.
pub const SWITCHING: &[u8; 12] = b"HTTP/1.1 101";
/// First bytes of interim responses, before the final one (RFC 9110, 15.2), and of [`SWITCHING`].
pub const INTERIM: &[u8; 10] = b"HTTP/1.1 1";
/// The first bytes of a request that may ask for an upgrade (RFC 6455, 4.1, 2).
pub const GET: &[u8; 4] = b"GET ";
/// The first bytes of other requests (RFC 9110, 9.3 and RFC 5789).
pub const METHODS: [&[u8; 4]; 6] = [b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC"];
/// The first bytes of version 1 of the PROXY protocol ([`crate::forwarded::preface`]).
pub const PROXY: &[u8; 4] = b"PROX";
/// Longest head that is followed, in bytes; a longer one opens no flow.
pub const MAX_HEAD: u32 = 64 * 1024;

/// `Upgrade: websocket` is among the headers.
pub const UPGRADE_WEBSOCKET: u8 = 1 << 0;
/// `Sec-WebSocket-Extensions` names permessage-deflate.
pub const PERMESSAGE_DEFLATE: u8 = 1 << 1;
/// The empty line that ends the head was read.
pub const END: u8 = 1 << 2;

/// A line that is not empty was read.
const BEGUN: u8 = 1 << 3;

const IN_UPGRADE: u8 = 1;
const IN_EXTENSIONS: u8 = 2;

/// Bit that makes an ASCII letter lower case, in eight bytes at once.
/// It changes some other bytes as well: equality with it does not prove equality without.
pub const FOLD: u64 = 0x2020_2020_2020_2020;

/// Check whether one of eight bytes ends a line.
#[inline(always)]
pub const fn has_line_end(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zero_where_it_ends = word ^ (ONES * b'\n' as u64);
    zero_where_it_ends.wrapping_sub(ONES) & !zero_where_it_ends & ONES << 7 != 0
}

const fn eight(text: &[u8; 8]) -> u64 {
    u64::from_be_bytes(*text)
}

/// Scanner for the head of a request or a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HeadScanner {
    /// The latest eight bytes, lower case, the latest in the low byte.
    tail: u64,
    /// Bytes of the current line so far, saturating.
    line: u16,
    /// Offset in the line at which the current word began to match.
    word: u16,
    /// [`UPGRADE_WEBSOCKET`], [`PERMESSAGE_DEFLATE`], [`END`].
    pub found: u8,
    /// Header whose value is being read.
    header: u8,
    /// Eighths of `sec-websocket-extensions` that matched in this line.
    name: u8,
    /// Parts of the word being matched so far.
    part: u8,
}

impl HeadScanner {
    /// Check whether nothing was read yet.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.tail == 0 && self.line == 0
    }

    /// Take one byte. `true` when it was the last one of the head.
    #[inline(always)]
    pub fn push(&mut self, byte: u8) -> bool {
        let lower = byte | if byte.wrapping_sub(b'A') < 26 { 0x20 } else { 0 };
        let empty = self.line == 0 || (self.line == 1 && self.tail as u8 == b'\r');
        // Those before the first line are ignored (RFC 9112, 2.2).
        let blank = empty && self.found & BEGUN != 0;
        self.tail = self.tail << 8 | u64::from(lower);
        if byte == b'\n' {
            self.line = 0;
            self.header = 0;
            self.name = 0;
            self.part = 0;
            self.found |= if blank { END } else { 0 };
            return blank;
        }
        self.found |= if byte == b'\r' { 0 } else { BEGUN };
        self.line = self.line.saturating_add(1);
        if self.header == 0 {
            self.name_byte(lower);
        } else {
            self.value_byte(lower);
        }
        false
    }

    /// Header names start a line and end in a colon (RFC 9112, 5.1).
    #[inline(always)]
    fn name_byte(&mut self, lower: u8) {
        if self.line == 8 {
            if self.tail == eight(b"upgrade:") {
                self.header = IN_UPGRADE;
            }
            self.name = (self.tail == eight(b"sec-webs")) as u8;
        } else if self.line == 16 {
            self.name += (self.name == 1 && self.tail == eight(b"ocket-ex")) as u8;
        } else if self.line == 24 {
            self.name += (self.name == 2 && self.tail == eight(b"tensions")) as u8;
        } else if self.line == 25 && self.name == 3 && lower == b':' {
            self.header = IN_EXTENSIONS;
        }
    }

    /// Look for `websocket` or `permessage-deflate`, which are longer than the tail.
    #[inline(always)]
    fn value_byte(&mut self, lower: u8) {
        let since = self.line.wrapping_sub(self.word);
        if self.header == IN_UPGRADE {
            if self.tail == eight(b"websocke") {
                self.word = self.line;
                self.part = 1;
            } else if self.part == 1 && since == 1 && lower == b't' {
                self.found |= UPGRADE_WEBSOCKET;
            }
        } else if self.tail == eight(b"permessa") {
            self.word = self.line;
            self.part = 1;
        } else if self.part == 1 && since == 8 && self.tail == eight(b"ge-defla") {
            self.part = 2;
        } else if self.part == 2 && since == 10 && self.tail as u16 == u16::from_be_bytes(*b"te") {
            self.found |= PERMESSAGE_DEFLATE;
        }
    }

    /// Check whether eight bytes without a line end change nothing but the length of the line, see
    /// [`HeadScanner::skip`]. `folded`: the eight bytes, each with [`FOLD`], so that letters are
    /// lower case. In doubt `false`.
    #[inline(always)]
    pub const fn skips(&self, folded: u64) -> bool {
        let upgrade = folded == eight(b"upgrade:");
        let extensions = folded == eight(b"sec-webs");
        let begins = self.line == 0 && !upgrade && !extensions;
        // A name that missed a match by now is another header's, or this is its value.
        let eighths = if self.line < 24 { self.line as u8 >> 3 } else { 3 };
        let other = self.line > 25 || self.name < eighths;
        self.found & BEGUN != 0 && (begins || self.header == 0 && other)
    }

    /// Take eight bytes for which [`HeadScanner::skips`] is true.
    #[inline(always)]
    pub const fn skip(&mut self) {
        self.line = self.line.saturating_add(8);
    }

    /// Take bytes up to the end of the head, and return how many were taken.
    pub fn push_all(&mut self, bytes: &[u8]) -> usize {
        match bytes.iter().position(|byte| self.push(*byte)) {
            Some(last) => last + 1,
            None => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(head: &str) -> (u8, usize) {
        let mut scanner = HeadScanner::default();
        let taken = scanner.push_all(head.as_bytes());
        (scanner.found & !BEGUN, taken)
    }

    #[test]
    fn finds_the_upgrade_in_any_case_and_stops_at_the_blank_line() {
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUPGRADE:  WebSocket\r\n\r\n";
        assert_eq!(scan(&format!("{head}\u{1}rest")), (UPGRADE_WEBSOCKET | END, head.len()));
    }

    #[test]
    fn finds_permessage_deflate_among_extensions() {
        let head = "HTTP/1.1 101 x\r\nupgrade: websocket\r\n\
            Sec-WebSocket-Extensions: x-other; a=1, permessage-deflate; server_max_window_bits=10\r\n\r\n";
        assert_eq!(scan(head).0, UPGRADE_WEBSOCKET | PERMESSAGE_DEFLATE | END);
    }

    #[test]
    fn other_upgrades_and_mentions_elsewhere_do_not_count() {
        for head in [
            "HTTP/1.1 101 x\r\nUpgrade: h2c\r\n\r\n",
            "HTTP/1.1 101 x\r\nX-Upgrade: websocket\r\n\r\n",
            "HTTP/1.1 101 upgrade: websocket\r\nServer: websocket\r\n\r\n",
            "HTTP/1.1 101 x\r\nSec-WebSocket-Protocol: permessage-deflate\r\n\r\n",
        ] {
            assert_eq!(scan(head).0, END, "{head:?}");
        }
    }

    #[test]
    fn bare_line_feeds_end_a_head_too() {
        assert_eq!(
            scan("GET / HTTP/1.1\nUpgrade: websocket\n\nxyz"),
            (UPGRADE_WEBSOCKET | END, 35)
        );
    }

    #[test]
    fn an_unfinished_head_has_no_end() {
        assert_eq!(scan("GET / HTTP/1.1\r\nUpgrade: websocket\r\n"), (UPGRADE_WEBSOCKET, 36));
    }
}
