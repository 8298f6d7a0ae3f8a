//! Head oracle: collect the whole head, split it into lines, look the fields up.

/// Content of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Offset after the empty line that ends it, once received.
    pub end: Option<usize>,
    /// `true` if an `Upgrade` field names `websocket`.
    pub websocket: bool,
    /// `true` if a `Sec-WebSocket-Extensions` field names `permessage-deflate`.
    pub deflate: bool,
}

/// Read the head at the start of `bytes`. Lines end in CRLF, or in LF alone (RFC 9112, 2.2).
pub fn parse(bytes: &[u8]) -> Head {
    let mut head = Head::default();
    let mut at = 0;
    while let Some(length) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        let line = &bytes[at..at + length];
        let first = at == 0;
        at += length + 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            head.end = Some(at);
            break;
        }
        if first {
            continue;
        }
        let line = String::from_utf8_lossy(line).to_ascii_lowercase();
        if let Some((name, value)) = line.split_once(':') {
            head.websocket |= name == "upgrade" && names(value, ',', "websocket");
            head.deflate |=
                name == "sec-websocket-extensions" && names(value, ',', "permessage-deflate");
        }
    }
    head
}

/// Check whether a comma-separated list has the element `wanted`.
/// Parameters (`;`) and version (`/`) are ignored.
fn names(value: &str, separator: char, wanted: &str) -> bool {
    value.split(separator).any(|element| {
        element
            .split([';', '/'])
            .next()
            .is_some_and(|name| name.trim_matches([' ', '\t']) == wanted)
    })
}
