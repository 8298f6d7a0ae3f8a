//! Offers of a client in `Sec-WebSocket-Protocol` (RFC 6455, 4.1 and 11.3.4).

use hyper::{HeaderMap, header};

/// Maximum number of offers read.
const MOST: usize = 32;

/// Return the valid tokens of all fields, in the client's order.
pub fn offers(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(str::trim);
    names.filter(|name| is_token(name)).take(MOST).collect()
}

/// Check for a token (RFC 9110, 5.6.2).
pub fn is_token(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_of_several_fields_in_their_order() {
        let mut headers = HeaderMap::new();
        for value in ["v2+compression, v3+encryption", " ,bad name, v4+streaming,", "\"quoted\""] {
            headers.append("sec-websocket-protocol", value.parse().unwrap());
        }
        assert_eq!(offers(&headers), ["v2+compression", "v3+encryption", "v4+streaming"]);
        assert_eq!(offers(&HeaderMap::new()), [""; 0]);
    }

    #[test]
    fn offers_are_bounded() {
        let mut headers = HeaderMap::new();
        let many: Vec<String> = (0..100).map(|n| format!("v{n}")).collect();
        headers.append("sec-websocket-protocol", many.join(",").parse().unwrap());
        assert_eq!(offers(&headers).len(), MOST);
    }
}
