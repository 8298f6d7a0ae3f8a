//! Origins of web pages, compared as in RFC 6454.

use std::{fmt, str::FromStr};

use url::Url;

/// Origin as a browser writes it (RFC 6454, 6.2).
/// Scheme and host are in lower case, the host in ASCII, the port only where it is not the scheme's
/// default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// Check whether a request's field names this origin.
    pub fn is(&self, field: &[u8]) -> bool {
        let given = field.to_ascii_lowercase();
        let default = match given.as_slice() {
            [b'h', b't', b't', b'p', b's', b':', ..] => given.strip_suffix(b":443"),
            [b'h', b't', b't', b'p', b':', ..] => given.strip_suffix(b":80"),
            _ => None,
        };
        default.unwrap_or(&given) == self.0.as_bytes()
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Origin, String> {
        const FORM: &str = "write it as https://example.com or http://localhost:3000";
        let text = text.trim();
        match text {
            "*" => {
                return Err("leave --allow-origin out where pages of any origin may connect".into());
            }
            // Pages from files: of no host, or of an opaque origin.
            "null" | "file://" => return Ok(Origin(text.into())),
            _ if text.contains('*') => {
                return Err(format!("{text:?}: patterns are not known here: name each origin"));
            }
            _ => {}
        }
        let (scheme, rest) =
            text.split_once("://").ok_or(format!("{text:?} has no scheme: {FORM}"))?;
        if rest.contains('\\') || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("{text:?} is no origin: {FORM}"));
        }
        let url = Url::parse(text).map_err(|error| format!("{text:?}: {error}: {FORM}"))?;
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or(format!("{text:?} has no host: {FORM}"))?;
        if ["ws", "wss"].iter().any(|websocket| scheme.eq_ignore_ascii_case(websocket)) {
            return Err(format!("{text:?}: a page's own address begins with http:// or https://"));
        }
        let bare = url.username().is_empty() && url.password().is_none();
        if !bare
            || !matches!(url.path(), "" | "/")
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(format!("{text:?} has more than scheme, host and port: {FORM}"));
        }
        let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
        Ok(Origin(format!("{}://{}{port}", url.scheme(), host.to_ascii_lowercase())))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_normalised() {
        for (text, browser) in [
            ("https://a.example", "https://a.example"),
            ("https://a.example/", "https://a.example"),
            ("HTTPS://A.example:443", "https://a.example"),
            ("http://a.example:80/", "http://a.example"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://b\u{fc}cher.example", "https://xn--bcher-kva.example"),
            ("https://[2001:DB8:0::1]:8443/", "https://[2001:db8::1]:8443"),
            ("chrome-extension://ABCdef/", "chrome-extension://abcdef"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("null", "null"),
            ("file://", "file://"),
        ] {
            let origin: Origin = text.parse().unwrap();
            assert_eq!(origin.to_string(), browser);
            assert!(origin.is(browser.as_bytes()), "{text}");
        }
        let origin: Origin = "https://a.example".parse().unwrap();
        assert!(origin.is(b"https://A.example:443"));
        for other in ["https://a.example:80", "http://a.example", "https://a.example.evil", ""] {
            assert!(!origin.is(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn what_no_browser_sends_is_refused() {
        for text in [
            "*",
            "",
            "a.example",
            "https://",
            "https://*.a.example",
            "https://a.example/chat",
            "https://a.example?x",
            "https://a.example#x",
            "https://user@a.example",
            "https:a.example",
            "wss://a.example",
            "https://a b",
            "https:\\\\a.example",
            "https://a.example:99999",
        ] {
            let parsed = text.parse::<Origin>();
            assert!(parsed.is_err(), "{text}: {parsed:?}");
        }
    }
}
