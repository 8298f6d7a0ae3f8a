//! `Sec-WebSocket-Extensions` (RFC 6455, 9.1), with its use in RFC 7692, 7.1.

/// Smallest and largest window exponent of zlib; RFC 7692 also has 8.
pub const MIN_WINDOW_BITS: u8 = 9;
pub const MAX_WINDOW_BITS: u8 = 15;

const NAME: &str = "permessage-deflate";
const SERVER_TAKEOVER: &str = "server_no_context_takeover";
const CLIENT_TAKEOVER: &str = "client_no_context_takeover";
const SERVER_WINDOW: &str = "server_max_window_bits";
const CLIENT_WINDOW: &str = "client_max_window_bits";

/// Local options of permessage-deflate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateOptions {
    /// Let a message refer to earlier ones.
    /// Each connection then has its own compressor and decompressor for its lifetime.
    pub context_takeover: bool,
    /// Maximum window for sending, as an exponent of 2, from 9 to 15.
    pub server_max_window_bits: u8,
    /// Maximum window of the client, if it accepts a limit.
    pub client_max_window_bits: u8,
}

impl Default for DeflateOptions {
    fn default() -> DeflateOptions {
        DeflateOptions {
            context_takeover: false,
            server_max_window_bits: MAX_WINDOW_BITS,
            client_max_window_bits: MAX_WINDOW_BITS,
        }
    }
}

/// Agreement of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub server_no_context_takeover: bool,
    pub client_no_context_takeover: bool,
    pub server_max_window_bits: u8,
    pub client_max_window_bits: u8,
}

impl Agreed {
    /// Return the response header's value.
    pub fn response(&self) -> String {
        let mut value = String::from(NAME);
        for (given, name) in [
            (self.server_no_context_takeover, SERVER_TAKEOVER),
            (self.client_no_context_takeover, CLIENT_TAKEOVER),
        ] {
            if given {
                value.push_str(&format!("; {name}"));
            }
        }
        for (bits, name) in [
            (self.server_max_window_bits, SERVER_WINDOW),
            (self.client_max_window_bits, CLIENT_WINDOW),
        ] {
            if bits < MAX_WINDOW_BITS {
                value.push_str(&format!("; {name}={bits}"));
            }
        }
        value
    }
}

/// Accept the first acceptable offer of permessage-deflate; none is not an error.
/// `headers` are the values of all `Sec-WebSocket-Extensions` fields in their order.
pub fn negotiate<'a>(
    headers: impl IntoIterator<Item = &'a str>,
    options: &DeflateOptions,
) -> Option<Agreed> {
    let mut offers = headers.into_iter().flat_map(|value| split(value, b','));
    offers.find_map(|offer| Offer::parse(offer)?.agree(options))
}

/// Offer with all parameters checked.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// Support of the parameter by the client, which may also have named a value.
    client_max_window_bits: Option<u8>,
}

impl Offer {
    /// Parse an offer; `None` for another extension, or an offer to be declined.
    /// Those have unknown, repeated or out-of-range parameters (RFC 7692, 7.1).
    fn parse(offer: &str) -> Option<Offer> {
        let mut parts = split(offer, b';');
        if !parts.next()?.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let mut parsed = Offer::default();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(unquoted(value.trim())?)),
                None => (part, None),
            };
            let fresh = match (name, value) {
                (SERVER_TAKEOVER, None) => {
                    !std::mem::replace(&mut parsed.server_no_context_takeover, true)
                }
                (CLIENT_TAKEOVER, None) => {
                    !std::mem::replace(&mut parsed.client_no_context_takeover, true)
                }
                (SERVER_WINDOW, Some(bits)) => {
                    parsed.server_max_window_bits.replace(window_bits(bits)?).is_none()
                }
                (CLIENT_WINDOW, bits) => {
                    let bits = bits.map_or(Some(MAX_WINDOW_BITS), window_bits)?;
                    parsed.client_max_window_bits.replace(bits).is_none()
                }
                _ => false,
            };
            if !fresh {
                return None;
            }
        }
        Some(parsed)
    }

    fn agree(&self, options: &DeflateOptions) -> Option<Agreed> {
        let offered = self.server_max_window_bits.unwrap_or(MAX_WINDOW_BITS);
        let server_max_window_bits = offered.min(options.server_max_window_bits);
        // zlib has no window of 256 bytes for compression.
        if server_max_window_bits < MIN_WINDOW_BITS {
            return None;
        }
        // Only a client that offers the parameter may be given a value (7.1.2.2).
        let client_max_window_bits = self
            .client_max_window_bits
            .map_or(MAX_WINDOW_BITS, |offered| offered.min(options.client_max_window_bits));
        Some(Agreed {
            server_no_context_takeover: self.server_no_context_takeover
                || !options.context_takeover,
            client_no_context_takeover: self.client_no_context_takeover
                || !options.context_takeover,
            server_max_window_bits,
            client_max_window_bits,
        })
    }
}

/// Parse an exponent from 8 to 15, decimal, without leading zeros (7.1.2.1).
fn window_bits(text: &str) -> Option<u8> {
    let bits = text.parse().ok().filter(|bits: &u8| (8..=15).contains(bits))?;
    (text == bits.to_string()).then_some(bits)
}

/// Return a token, or the token inside a quoted string (RFC 6455, 9.1).
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|inner| !inner.contains(['"', '\\'])),
        None => Some(value),
    }
}

/// Return the items between unquoted separators, trimmed.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut quoted = false;
        let end = text.bytes().position(|byte| {
            quoted ^= byte == b'"';
            byte == separator && !quoted
        });
        let (item, behind) = match end {
            Some(end) => (text.get(..end)?, text.get(end + 1..)),
            None => (text, None),
        };
        rest = behind;
        Some(item.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(offer: &str, options: DeflateOptions) -> Option<String> {
        negotiate([offer], &options).map(|agreed| agreed.response())
    }

    #[test]
    fn offers_and_what_becomes_of_them() {
        let both = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let with = |more: &str| Some(format!("{both}{more}"));
        for (offer, expected) in [
            ("permessage-deflate", with("")),
            ("Permessage-Deflate; client_max_window_bits", with("")),
            ("permessage-deflate; client_max_window_bits=10", with("; client_max_window_bits=10")),
            (
                "permessage-deflate; server_max_window_bits=\"9\"",
                with("; server_max_window_bits=9"),
            ),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", with("")),
            (
                "x-webkit-deflate-frame, foo; a=\",permessage-deflate\", permessage-deflate",
                with(""),
            ),
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=09", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
            ("permessage-deflate; unknown", None),
            ("permessage-deflate;", None),
            ("", None),
        ] {
            assert_eq!(response(offer, DeflateOptions::default()), expected, "{offer}");
        }
    }

    #[test]
    fn what_is_configured_narrows_it() {
        let options = DeflateOptions {
            context_takeover: true,
            server_max_window_bits: 11,
            client_max_window_bits: 12,
        };
        let value = |offer| response(offer, options);
        assert_eq!(
            value("permessage-deflate").as_deref(),
            Some("permessage-deflate; server_max_window_bits=11")
        );
        assert_eq!(
            value("permessage-deflate; client_max_window_bits").as_deref(),
            Some("permessage-deflate; server_max_window_bits=11; client_max_window_bits=12")
        );
        assert_eq!(
            value("permessage-deflate; client_no_context_takeover").as_deref(),
            Some("permessage-deflate; client_no_context_takeover; server_max_window_bits=11")
        );
    }
}
