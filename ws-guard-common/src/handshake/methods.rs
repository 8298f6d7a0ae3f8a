//! Methods of requests, as their first bytes.

/// The first bytes of a request that may ask for an upgrade (RFC 6455, 4.1, 2).
pub const GET: &[u8; 4] = b"GET ";
/// Other methods, and the space behind them (RFC 9110, 9.3, RFC 5789 and RFC 4918, 9): no header field begins
/// like this (RFC 9112, 5.1).
pub const METHODS: [&[u8]; 16] = [
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
    b"SEARCH ",
    b"PURGE ",
    b"QUERY ",
    b"PROPFIND",
];

/// Check whether these eight bytes, the first one in the high byte, begin with one of [`METHODS`].
#[inline(always)]
pub const fn is_method(word: u64) -> bool {
    let mut i = 0;
    let mut is = false;
    while i < METHODS.len() {
        let method = METHODS[i];
        let (mut text, mut at) = (0, 0);
        while at < method.len() {
            text = text << 8 | method[at] as u64;
            at += 1;
        }
        is |= word >> (64 - 8 * method.len()) == text;
        i += 1;
    }
    is
}
