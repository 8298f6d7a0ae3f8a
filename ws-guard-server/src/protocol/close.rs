//! Close frames (RFC 6455, 5.5.1 and 7.4).

use super::ProtocolError;

/// Status codes (RFC 6455, 7.4.1, and its registry).
pub mod code {
    pub const NORMAL: u16 = 1000;
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// Never on the wire: the peer's close frame had no status code.
    pub const NO_STATUS: u16 = 1005;
    /// Never on the wire: the connection ended without a close frame.
    pub const ABNORMAL: u16 = 1006;
    pub const INVALID_PAYLOAD: u16 = 1007;
    pub const POLICY_VIOLATION: u16 = 1008;
    pub const TOO_BIG: u16 = 1009;
    pub const INTERNAL_ERROR: u16 = 1011;
    pub const SERVICE_RESTART: u16 = 1012;
    pub const TRY_AGAIN_LATER: u16 = 1013;
}

/// Maximum length of a reason in bytes: a control frame has 125, the code takes 2.
pub const MAX_REASON: usize = 123;

/// Content of a close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    pub code: u16,
    pub reason: String,
}

/// Check whether an endpoint may send this status code (RFC 6455, 7.4.2).
/// 1012 to 1014 were registered later; 1016 to 2999 are for extensions that do not exist.
pub const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Read a close frame's unmasked payload; an empty one has no status code.
pub fn parse(payload: &[u8]) -> Result<Option<Close>, ProtocolError> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(ProtocolError::CloseTruncated),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !may_be_sent(code) {
        return Err(ProtocolError::CloseCode(code));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::Utf8)?;
    Ok(Some(Close { code, reason: reason.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_rfc_and_no_others() {
        for code in [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
            assert!(parse(&u16::to_be_bytes(code)).is_ok(), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            let refused = Err(ProtocolError::CloseCode(code));
            assert_eq!(parse(&u16::to_be_bytes(code)), refused);
        }
    }

    #[test]
    fn payloads() {
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&[3]), Err(ProtocolError::CloseTruncated));
        let bye = Close { code: 1000, reason: "bye".into() };
        assert_eq!(parse(b"\x03\xE8bye"), Ok(Some(bye)));
        assert_eq!(parse(b"\x03\xE8\xFF"), Err(ProtocolError::Utf8));
    }
}
