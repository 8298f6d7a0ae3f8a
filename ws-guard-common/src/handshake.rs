//! HTTP/1.1 upgrade, RFC 6455, 4: the end of a message head, and what was agreed in it.
//!
//! [`HeadScanner`] takes a head byte by byte, independent of segments.

mod methods;

pub use self::methods::{GET, METHODS, is_method};

/// The first bytes of a response that may open a flow. Some servers have another digit at [`MINOR`].
pub const SWITCHING: &[u8; 12] = b"HTTP/1.1 101";
/// Place of the minor version in it, which says nothing (RFC 9110, 2.5): Python's `http.server` has a 0.
pub const MINOR: usize = 7;
/// First bytes of interim responses, before the final one (RFC 9110, 15.2), and of [`SWITCHING`].
pub const INTERIM: &[u8; 10] = b"HTTP/1.1 1";
/// The first bytes of version 1 of the PROXY protocol ([`crate::forwarded::preface`]).
pub const PROXY: &[u8; 4] = b"PROX";
/// Longest head that is followed, in bytes; a longer one opens no flow.
pub const MAX_HEAD: u32 = 64 * 1024;

/// `Upgrade: websocket` is among the headers, or `Sec-WebSocket-Key`, without which no server upgrades and
/// which suffices for some.
pub const UPGRADE_WEBSOCKET: u8 = 1 << 0;
/// `Sec-WebSocket-Extensions` names permessage-deflate.
pub const PERMESSAGE_DEFLATE: u8 = 1 << 1;
/// The empty line that ends the head was read.
pub const END: u8 = 1 << 2;

/// A line that is not empty was read.
const BEGUN: u8 = 1 << 3;
/// A body of [`HeadScanner::length`] bytes follows.
const BODY: u8 = 1 << 4;
/// The end of the request, or its fields, are not certain.
const VAGUE: u8 = 1 << 5;
/// Servers may ignore a body behind the method.
const BODILESS: u8 = 1 << 6;
/// The method was read, by [`HeadScanner::begins`].
const METHOD: u8 = 1 << 7;

/// The control character of Latin-1 at which some decoders end a line.
const NEL: u8 = 0x85;

/// Longest method, in bytes.
const LONGEST_METHOD: u16 = 7;
/// Longest body that is followed, in bytes: a part of the sequence space.
const LONGEST_BODY: u32 = 1 << 30;

/// [`HeadScanner::header`]; 0 in a name.
const IN_UPGRADE: u8 = 1;
const IN_EXTENSIONS: u8 = 2;
const IN_LENGTH: u8 = 3;
/// In another one's value, or in the request line.
const IN_OTHER: u8 = 4;
const IN_CODING: u8 = 5;

/// [`HeadScanner::name`]: the name begins with `content-`. Above the eighths that it counts otherwise.
const IN_CONTENT: u8 = 8;
/// The same: with `transfer`, and with `transfer-encodin`.
const IN_TRANSFER: u8 = 9;
const IN_TRANSFER_CODING: u8 = 10;
/// The same: with `sec-websocket-ke`.
const IN_KEY: u8 = 11;

/// [`HeadScanner::part`], in a length: in front of its digits, among them, and behind them.
const DIGITS: u8 = 1;
const BEHIND: u8 = 2;

/// Bit that makes an ASCII letter lower case, in eight bytes at once.
/// It changes some other bytes as well: equality with it does not prove equality without.
pub const FOLD: u64 = 0x2020_2020_2020_2020;

/// Check whether one of eight bytes ends a line.
#[inline(always)]
pub const fn has_line_end(word: u64) -> bool {
    let zero_where_it_ends = word ^ (ONES * b'\n' as u64);
    zero_where_it_ends.wrapping_sub(ONES) & !zero_where_it_ends & ONES << 7 != 0
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// Check whether one of eight bytes is a control character or not ASCII: some servers end lines or names
/// at some of these.
#[inline(always)]
pub const fn has_control(word: u64) -> bool {
    (word.wrapping_sub(ONES * b' ' as u64) | word.wrapping_add(ONES) | word) & ONES << 7 != 0
}

/// Highest bits of those of eight ASCII characters that are `byte`.
#[inline(always)]
const fn places(word: u64, byte: u8) -> u64 {
    let zero_where_it_is = word ^ (ONES * byte as u64);
    !zero_where_it_is.wrapping_add(ONES * 0x7F) & ONES << 7
}

const fn eight(text: &[u8; 8]) -> u64 {
    u64::from_be_bytes(*text)
}

/// Methods, as numbers of their letters in lower case.
const POST: u64 = eight(b"\0\0\0\0post");
const PUT: u64 = eight(b"\0\0\0\0\0put");
const CONNECT: u64 = eight(b"\0connect");
const PATCH: u64 = eight(b"\0\0\0patch");

/// First bytes of the fields that matter.
const EXTENSIONS: u64 = eight(b"sec-webs");
const TRANSFER: u64 = eight(b"transfer");
/// Field names that end in the eighth byte, for some servers in another one than for others.
const UPGRADE: u64 = eight(b"\0upgrade");
const CONTENT: u64 = eight(b"\0content");

/// [`HeadScanner::framing`].
mod framing {
    /// The one `Transfer-Encoding` is `chunked`.
    pub const CHUNKED: u8 = 1;
    /// There are others, or lengths that are not followed.
    pub const OTHER: u8 = 2;
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
    /// Value of `Content-Length`.
    length: u32,
    /// One of [`framing`].
    framing: u8,
    _pad: [u8; 3],
}

impl HeadScanner {
    /// Check whether nothing but empty lines was read.
    #[inline(always)]
    pub const fn is_blank(&self) -> bool {
        self.found & BEGUN == 0
    }

    /// Length of the body behind a whole request's head; `None` where that is not certain (RFC 9112, 6.3):
    /// with another framing, on a method for which servers may ignore it, or with fields that servers read
    /// differently.
    #[inline(always)]
    pub const fn body(&self) -> Option<u32> {
        let ignored = self.found & BODILESS != 0 && self.length > 0;
        let other = self.found & VAGUE != 0 || self.framing != 0;
        if ignored || other { None } else { Some(self.length) }
    }

    /// Check whether a chunked body follows (RFC 9112, 7.1). Not where [`HeadScanner::body`] is in doubt for
    /// another reason, nor with a length as well.
    #[inline(always)]
    pub const fn is_chunked(&self) -> bool {
        self.framing == framing::CHUNKED && self.found & (VAGUE | BODILESS | BODY) == 0
    }

    /// Check whether fields announce a body, which servers may read or not behind a request for an upgrade.
    #[inline(always)]
    pub const fn has_body(&self) -> bool {
        self.length > 0 || self.framing != 0
    }

    /// Check whether a request may go on with this byte, which [`HeadScanner::push`] is to take: it
    /// begins with a method, with empty lines in front (RFC 9112, 2.2 and 3.1).
    #[inline(always)]
    pub const fn begins(&mut self, byte: u8) -> bool {
        if self.found & METHOD != 0 {
            return true;
        }
        if self.is_blank() && (byte == b'\r' || byte == b'\n') {
            return true;
        }
        if byte == b' ' && self.found & BEGUN != 0 {
            self.found |= METHOD | self.method();
            self.header = IN_OTHER;
            return true;
        }
        byte.is_ascii_uppercase() && self.line <= LONGEST_METHOD
    }

    /// Flags of the method that was read: servers may read no body behind one that is not known here, but
    /// none is there without a length (RFC 9112, 6.3). CONNECT makes a tunnel (RFC 9110, 9.3.6).
    #[inline(always)]
    const fn method(&self) -> u8 {
        let text =
            if self.line < 8 { self.tail & !(u64::MAX << (8 * self.line as u32)) } else { 0 };
        match text {
            POST | PUT | PATCH => 0,
            CONNECT => VAGUE,
            _ => BODILESS,
        }
    }

    /// Take one byte. `true` when it was the last one of the head.
    #[inline(always)]
    pub fn push(&mut self, byte: u8) -> bool {
        let lower = byte | if byte.wrapping_sub(b'A') < 26 { 0x20 } else { 0 };
        let empty = self.line == 0 || (self.line == 1 && self.tail as u8 == b'\r');
        // Those before the first line are ignored (RFC 9112, 2.2).
        let blank = empty && self.found & BEGUN != 0;
        // Some servers end a line at a CR, others only at both (RFC 9112, 2.2); some at control characters,
        // also at that of Latin-1.
        let bare = (self.tail as u8 == b'\r') != (byte == b'\n');
        let latin = byte >= 0x80 && (self.header == 0 || byte == NEL);
        let control = !matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r' | 0x80..);
        // Some end the head at a line that is no field.
        let ends = byte == b'\n' && !empty;
        let no_field = ends && self.header == 0;
        // Servers fold the case of the value in several ways.
        let upgrades = ends && self.header == IN_UPGRADE;
        let vague = bare || latin || control || no_field || upgrades && !self.is_h2c();
        self.found |= if vague { VAGUE } else { 0 };
        // Some that do not know HTTP/2 read no body then.
        self.found |= if upgrades { BODILESS } else { 0 };
        self.tail = self.tail << 8 | u64::from(lower);
        if byte == b'\n' {
            self.line = 0;
            self.header = 0;
            self.name = 0;
            self.part = 0;
            self.found |= if blank { END } else { 0 };
            return blank;
        }
        // A folded line goes on with the field before it, for some servers (RFC 9112, 5.2); some strip
        // other bytes than letters.
        let folds = self.line == 0 && byte != b'\r' && !byte.is_ascii_alphanumeric();
        self.found |= if folds { VAGUE } else { 0 };
        self.found |= if byte == b'\r' { 0 } else { BEGUN };
        self.line = self.line.saturating_add(1);
        if self.header == 0 {
            self.name_byte(lower);
        } else {
            self.value_byte(lower);
        }
        false
    }

    /// Check whether the line is `Upgrade: h2c` and nothing more, in front of its line feed.
    #[inline(always)]
    const fn is_h2c(&self) -> bool {
        self.line == 13 && self.tail << 24 == eight(b" h2c\r\0\0\0")
    }

    /// Header names start a line and end in a colon, without white space (RFC 9112, 5.1).
    #[inline(always)]
    fn name_byte(&mut self, lower: u8) {
        self.found |= if matches!(lower, b' ' | b'\t') { VAGUE } else { 0 };
        self.field(lower);
        // Servers differ in what they take for the field.
        let like = matches!(self.name, IN_TRANSFER | IN_TRANSFER_CODING);
        let other = like && lower == b':' && self.header == 0;
        self.found |= if other { VAGUE } else { 0 };
        self.header |= if lower == b':' && self.header == 0 { IN_OTHER } else { 0 };
    }

    /// Look for the names that matter.
    #[inline(always)]
    fn field(&mut self, lower: u8) {
        if self.line == 8 {
            let vague =
                matches!(self.tail >> 8, UPGRADE | CONTENT) && lower != b':' && lower != b'-';
            self.found |= if vague { VAGUE } else { 0 };
            if self.tail == UPGRADE << 8 | b':' as u64 {
                self.header = IN_UPGRADE;
            }
            self.name = match (self.tail, self.tail >> 8) {
                (EXTENSIONS, _) => 1,
                (TRANSFER, _) => IN_TRANSFER,
                (_, CONTENT) => IN_CONTENT,
                _ => 0,
            };
        } else if self.line == 15 && self.name == IN_CONTENT {
            if self.tail == eight(b"-length:") {
                self.header = IN_LENGTH;
                // Two lengths may be read differently.
                let again = self.found & BODY != 0;
                self.framing = if again { framing::OTHER } else { self.framing };
                self.found |= if again { VAGUE } else { BODY };
            } else if self.tail >> 8 == eight(b"\0-length") {
                self.found |= VAGUE;
            }
        } else if self.line == 16 && self.name == IN_TRANSFER && self.tail == eight(b"-encodin") {
            self.name = IN_TRANSFER_CODING;
        } else if self.line == 18
            && self.name == IN_TRANSFER_CODING
            && self.tail as u16 == u16::from_be_bytes(*b"g:")
        {
            self.header = IN_CODING;
            // Two may be read differently.
            self.found |= if self.framing != 0 { VAGUE } else { 0 };
        } else if self.line == 16 && self.name == 1 && self.tail == eight(b"ocket-ke") {
            self.name = IN_KEY;
        } else if self.line == 18 && self.name == IN_KEY {
            let key = self.tail as u16 == u16::from_be_bytes(*b"y:");
            self.found |= if key { UPGRADE_WEBSOCKET } else { 0 };
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
        if self.header == IN_OTHER {
            return;
        }
        if self.header == IN_LENGTH {
            return self.length_byte(lower);
        }
        if self.header == IN_CODING {
            return self.coding_byte(lower);
        }
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

    /// Read `chunked`, with white space in front of it.
    #[inline(always)]
    fn coding_byte(&mut self, byte: u8) {
        if byte == b'\r' {
            let chunked = self.part == 7 && self.tail == eight(b"chunked\r");
            self.framing = if chunked { framing::CHUNKED } else { framing::OTHER };
            self.found |= if chunked { 0 } else { VAGUE };
        } else if self.part > 0 || !matches!(byte, b' ' | b'\t') {
            self.part = self.part.saturating_add(1);
        }
    }

    /// Read a decimal number, with white space around it.
    #[inline(always)]
    fn length_byte(&mut self, byte: u8) {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 && self.part <= DIGITS {
            self.part = DIGITS;
            let length = self.length as u64 * 10 + digit as u64;
            let long = length > LONGEST_BODY as u64;
            self.length = if long { LONGEST_BODY } else { length as u32 };
            self.found |= if long { VAGUE } else { 0 };
        } else if matches!(byte, b' ' | b'\t' | b'\r') {
            self.part = if self.part == DIGITS { BEHIND } else { self.part };
        } else {
            self.found |= VAGUE;
        }
    }

    /// Check whether eight bytes without a control character matter to nothing, see
    /// [`HeadScanner::skip`]. `folded`: the eight bytes, each with [`FOLD`], so that letters are
    /// lower case. In doubt `false`.
    #[inline(always)]
    pub const fn skips(&self, word: u64, folded: u64) -> bool {
        let matters =
            matches!(folded, EXTENSIONS | TRANSFER) || matches!(folded >> 8, UPGRADE | CONTENT);
        let letter = ((folded >> 56) as u8).wrapping_sub(b'a') < 26;
        let begins = self.line == 0 && !matters && letter;
        // A name that missed a match by now is another header's.
        let eighths = if self.line < 24 { self.line as u8 >> 3 } else { 3 };
        let other = self.line > 25 || self.name < eighths;
        // No space in it.
        let name = self.header == 0 && places(word, b':') >= places(word, b' ');
        let bare = self.tail as u8 == b'\r';
        let value = self.header == IN_OTHER;
        self.found & METHOD != 0 && !bare && (value || name && (begins || other))
    }

    /// Check whether nothing in the rest of the line matters, but control characters.
    #[inline(always)]
    pub const fn skips_line(&self) -> bool {
        self.header == IN_OTHER
    }

    /// Take eight bytes for which [`HeadScanner::skips`] is true.
    #[inline(always)]
    pub const fn skip(&mut self, word: u64) {
        self.line = self.line.saturating_add(8);
        self.header = if places(word, b':') != 0 { IN_OTHER } else { self.header };
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
        (scanner.found & (UPGRADE_WEBSOCKET | PERMESSAGE_DEFLATE | END), taken)
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
    fn other_methods_end_in_a_space() {
        for method in ["POST / x", "PUT /abc", "OPTIONS ", "DELETE /"] {
            assert!(
                is_method(u64::from_be_bytes(method.as_bytes().try_into().unwrap())),
                "{method}"
            );
        }
        for field in ["POST: ab", "PUT-x: y", "DELETEx:", "GET / HT"] {
            assert!(
                !is_method(u64::from_be_bytes(field.as_bytes().try_into().unwrap())),
                "{field}"
            );
        }
    }

    #[test]
    fn a_request_begins_with_its_method() {
        let begins = |text: &str| {
            let mut scanner = HeadScanner::default();
            text.bytes().all(|byte| {
                let begins = scanner.begins(byte);
                scanner.push(byte);
                begins
            })
        };
        for request in
            ["GET / HTTP/1.1\r\n", "\r\n\r\nPOST /", "\nGET x", "\rGET /", "GE", "\r\n", "DELETE /"]
        {
            assert!(begins(request), "{request:?}");
        }
        for text in
            ["\nline", "\nG\nET ", "get /", " GET /", "PROPFINDS /", "G3T /", "HTTP/1.1 200"]
        {
            assert!(!begins(text), "{text:?}");
        }
    }

    /// [`HeadScanner::body`] of a request, read byte by byte, and with words skipped where they may be.
    fn framing(request: &str) -> (Option<u32>, bool) {
        let bytes = request.as_bytes();
        let mut skipping = HeadScanner::default();
        let mut at = 0;
        while at < bytes.len() {
            let word =
                bytes.get(at..at + 8).map(|word| u64::from_be_bytes(word.try_into().unwrap()));
            match word {
                Some(word) if !has_control(word) && skipping.skips(word, word | FOLD) => {
                    skipping.skip(word);
                    at += 8;
                }
                _ => {
                    assert!(skipping.begins(bytes[at]));
                    skipping.push(bytes[at]);
                    at += 1;
                }
            }
        }
        let mut scanner = HeadScanner::default();
        for byte in bytes {
            assert!(scanner.begins(*byte));
            scanner.push(*byte);
        }
        assert_eq!(scanner.found & END, END, "{request}");
        let framing = |scanner: &HeadScanner| (scanner.body(), scanner.is_chunked());
        assert_eq!(framing(&scanner), framing(&skipping), "{request}");
        framing(&scanner)
    }

    /// Length of its body.
    fn body(request: &str) -> Option<u32> {
        framing(request).0
    }

    #[test]
    fn an_upgrade_may_announce_a_body() {
        let has_body = |fields: &str| {
            let mut scanner = HeadScanner::default();
            let text = format!("GET / HTTP/1.1\r\nUpgrade: websocket\r\n{fields}\r\n");
            scanner.push_all(text.as_bytes());
            assert_ne!(scanner.found & UPGRADE_WEBSOCKET, 0);
            scanner.has_body()
        };
        for none in ["", "Content-Length: 0\r\n", "Content-Type: text/plain\r\n"] {
            assert!(!has_body(none), "{none}");
        }
        for body in [
            "Content-Length: 14\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 0\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 0\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert!(has_body(body), "{body}");
        }
    }

    #[test]
    fn a_body_is_chunked_where_all_servers_agree() {
        let post = |fields: &str| {
            framing(&format!("POST /a HTTP/1.1\r\nHost: some.where\r\n{fields}X-Y: z\r\n\r\n"))
        };
        for chunked in [
            "Transfer-Encoding: chunked\r\n",
            "transfer-encoding:chunked\r\n",
            "TRANSFER-ENCODING: \t Chunked\r\nAccept: */*\r\n",
        ] {
            assert_eq!(post(chunked), (None, true), "{chunked}");
        }
        for vague in [
            "Transfer-Encoding: chunked \r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: chunke\r\n",
            "Transfer-Encoding:\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer_Encoding: chunked\r\n",
            "Transfer-Encodinh: chunked\r\n",
            "Transfer-Encoding\x0b: chunked\r\n",
            "Transfer: chunked\r\n",
            "Transfer-Encoding: chunked\r\nno colon\r\n",
            "Transfer-Encoding:\r\n chunked\r\n",
        ] {
            assert_eq!(post(vague), (None, false), "{vague}");
        }
        for method in ["GET", "HEAD", "DELETE", "CONNECT", "XPOST"] {
            let request = format!("{method} / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
            assert_eq!(framing(&request), (None, false), "{method}");
        }
    }

    #[test]
    fn a_body_has_the_length_that_it_names() {
        let post =
            |fields: &str| body(&format!("POST /a HTTP/1.1\r\nHost: some.where\r\n{fields}\r\n"));
        assert_eq!(post(""), Some(0));
        assert_eq!(post("Content-Length: 17\r\nAccept: */*\r\n"), Some(17));
        assert_eq!(post("Content-Type: text/plain\r\ncontent-length:  9 \r\n"), Some(9));
        assert_eq!(post("Content-Length: 1073741824\r\n"), Some(1 << 30));
        assert_eq!(post("Cookie: a=\u{e9}t\u{e9}\r\nUpgrade: h2c\r\n"), Some(0));
        assert_eq!(post("Content-Length: 4\r\nUpgrade: h2c\r\n"), None);
        assert_eq!(post("Upgrade: h2c\r\nContent-Length: 4\r\n"), None);
        assert_eq!(post("X-Content-Length: 9\r\nUpgrade-Insecure-Requests: 1\r\n"), Some(0));
        for vague in [
            "Content-Length: 1073741825\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 4\r\nContent-Length: 4\r\n",
            "Content-Length: 4, 4\r\n",
            "Content-Length: 4 4\r\n",
            "Content-Length: +4\r\n",
            "Content-Length: 0x4\r\n",
            "X: a\x0bUpgrade: websocket\r\n",
            "X: \u{c5}Upgrade: websocket\r\n",
            "Upgrade: websoc\u{212a}et, h2c\r\n",
            "Upgrade:  h2c\r\n",
            "abcdef\u{7f}: x\r\n",
            "X: abcdefghijklmnopqrstuvwxyz\u{7f}Upgrade: websocket\r\n",
            "X: a\nContent-Length: 4\r\n",
            "no colon\r\n",
            "no-colon-in-a-long-line-of-a-head\r\n",
            "a name: x\r\n",
            "a-long-name-with-a space: x\r\n",
            "n\u{e9}: x\r\n",
            "Upgrade: websoc\u{212a}et\r\n",
            "Content-Length : 4\r\n",
            "Content_Length: 4\r\n",
            "Content-Length\x0b: 4\r\n",
            "\x0cContent-Length: 4\r\n",
            "Upgrade : websocket\r\n",
            "Upgrade\t: websocket\r\n",
            "\x1fUpgrade: websocket\r\n",
            "Transfer-Encoding: chunked\r\n",
            "TRANSFER-ENCODING:chunked\r\nContent-Length: 4\r\n",
            "X: y\r\n Content-Length: 4\r\n",
            "Upgrade:\r\n\twebsocket-to-be-read-or-not\r\n",
            "Content-Length:\r\n 4\r\n",
            "X: abcdefghijklmnopqrst\rContent-Length: 4\r\n",
            "Content-Length: 4\r\r\n",
            "X: a\rUpgrade: websocket\r\n",
        ] {
            assert_eq!(post(vague), None, "{vague}");
        }
        for length in 0..32 {
            let bare = format!("X: {}\rUpgrade: websocket\r\n", "a".repeat(length));
            assert_eq!(post(&bare), None, "{bare}");
        }
        assert_eq!(body("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(0));
        for (method, known) in [
            ("PUT", true),
            ("DELETE", false),
            ("HEAD", false),
            ("CONNECT", false),
            ("XPOST", false),
        ] {
            let length = body(&format!("{method} / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"));
            assert_eq!(length, known.then_some(3), "{method}");
        }
        assert_eq!(body("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"), None);
        assert_eq!(body("GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), Some(0));
    }

    #[test]
    fn an_unfinished_head_has_no_end() {
        assert_eq!(scan("GET / HTTP/1.1\r\nUpgrade: websocket\r\n"), (UPGRADE_WEBSOCKET, 36));
    }
}
