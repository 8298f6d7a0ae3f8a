//! Refused handshakes: name, status and response of each reason.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderValue},
};

/// Range of `Retry-After` in seconds.
/// The values differ so that clients refused together do not come back together.
const RETRY_AFTER: std::ops::RangeInclusive<u64> = 1..=10;

/// Reason why a request is not an upgrade, or why the upgrade is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No request, or one that hyper cannot read: malformed, too long, or truncated.
    NotHttp,
    /// Handshake over [`Config::handshake_timeout`](crate::Config::handshake_timeout).
    Timeout,
    NotGet,
    /// Plain HTTP, or HTTP/1.0.
    NoUpgrade,
    Version,
    Key,
    /// Missing or repeated `Host`.
    Host,
    /// Request for an upgrade with a body, which would be taken for frames.
    Body,
    /// Missing PROXY protocol header of a proxy that has to send one.
    ProxyHeader,
    /// Missing TLS where it is required, or a failed TLS handshake.
    Tls,
    /// Page of an origin that is not allowed.
    Origin,
    NoToken,
    /// Token that is expired, signed by another key, or missing.
    BadToken,
    /// Missing identification where it is required.
    NoUser,
    /// Invalid user name: too long, not UTF-8, with control characters, or repeated.
    BadUser,
    /// Too many connections.
    ServerFull,
    /// Too many connections of this source.
    SourceFull,
    /// Too many connections of this user.
    UserFull,
    /// Memory budget used up by connections.
    MemoryFull,
    /// Delay of the server.
    Stalled,
    /// Shutdown of the server.
    Shutdown,
    /// Too many new connections at a time.
    TooFast,
    /// User of another cluster.
    WrongCluster,
}

impl Refusal {
    pub const ALL: [Refusal; 23] = [
        Refusal::NotHttp,
        Refusal::Timeout,
        Refusal::NotGet,
        Refusal::NoUpgrade,
        Refusal::Version,
        Refusal::Key,
        Refusal::Host,
        Refusal::Body,
        Refusal::ProxyHeader,
        Refusal::Tls,
        Refusal::Origin,
        Refusal::NoToken,
        Refusal::BadToken,
        Refusal::NoUser,
        Refusal::BadUser,
        Refusal::ServerFull,
        Refusal::SourceFull,
        Refusal::UserFull,
        Refusal::MemoryFull,
        Refusal::Stalled,
        Refusal::Shutdown,
        Refusal::TooFast,
        Refusal::WrongCluster,
    ];

    /// Return the name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Refusal::NotHttp => "not_http",
            Refusal::Timeout => "handshake_timeout",
            Refusal::NotGet => "not_get",
            Refusal::NoUpgrade => "no_upgrade",
            Refusal::Version => "version",
            Refusal::Key => "key",
            Refusal::Host => "host",
            Refusal::Body => "body",
            Refusal::ProxyHeader => "proxy_header",
            Refusal::Tls => "tls",
            Refusal::Origin => "origin",
            Refusal::NoToken => "no_token",
            Refusal::BadToken => "bad_token",
            Refusal::NoUser => "no_user",
            Refusal::BadUser => "bad_user",
            Refusal::ServerFull => "server_full",
            Refusal::SourceFull => "source_full",
            Refusal::UserFull => "user_full",
            Refusal::MemoryFull => "memory_full",
            Refusal::Stalled => "stalled",
            Refusal::Shutdown => "shutdown",
            Refusal::TooFast => "too_fast",
            Refusal::WrongCluster => "wrong_cluster",
        }
    }

    /// Return the response's status, where a response is possible.
    pub const fn status(self) -> Option<StatusCode> {
        Some(match self {
            Refusal::NotHttp | Refusal::Timeout | Refusal::ProxyHeader | Refusal::Tls => {
                return None;
            }
            Refusal::NotGet => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::NoUpgrade | Refusal::Version => StatusCode::UPGRADE_REQUIRED,
            Refusal::Key | Refusal::Host | Refusal::Body | Refusal::BadUser => {
                StatusCode::BAD_REQUEST
            }
            Refusal::ServerFull
            | Refusal::MemoryFull
            | Refusal::Stalled
            | Refusal::Shutdown
            | Refusal::TooFast => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::WrongCluster => StatusCode::MISDIRECTED_REQUEST,
            Refusal::SourceFull | Refusal::UserFull => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Origin => StatusCode::FORBIDDEN,
            Refusal::NoToken | Refusal::BadToken | Refusal::NoUser => StatusCode::UNAUTHORIZED,
        })
    }

    /// Return the response's body.
    const fn explanation(self) -> &'static str {
        match self {
            Refusal::NotHttp => "this is not an HTTP/1.1 request",
            Refusal::Timeout => "the handshake took too long",
            Refusal::NotGet => "a WebSocket handshake is a GET request",
            Refusal::NoUpgrade => {
                "this is a WebSocket server: send Connection: Upgrade and Upgrade: websocket over HTTP/1.1"
            }
            Refusal::Version => "Sec-WebSocket-Version has to be 13",
            Refusal::Key => "Sec-WebSocket-Key has to be 16 bytes in base64, once",
            Refusal::Host => "a request has exactly one Host field",
            Refusal::Body => {
                "a WebSocket handshake has no body: send no Content-Length and no Transfer-Encoding"
            }
            Refusal::ProxyHeader => "a trusted proxy did not send the PROXY protocol's header",
            Refusal::Tls => "the TLS handshake failed",
            Refusal::Origin => "pages of this origin may not connect",
            Refusal::NoToken => "send a token: Authorization: Bearer, or access_token in the query",
            Refusal::BadToken => "the token is not valid, or no longer",
            Refusal::NoUser => "the request has to name its user",
            Refusal::BadUser => {
                "the user's name has to be given once, in up to 255 bytes of UTF-8 without control characters"
            }
            Refusal::UserFull => "this user has as many connections as it may have",
            Refusal::ServerFull => {
                "the server has as many connections as it takes: try again later"
            }
            Refusal::SourceFull => "your address has as many connections as it may have",
            Refusal::MemoryFull | Refusal::Stalled => "the server is busy: try again later",
            Refusal::Shutdown => "the server is shutting down: try again later",
            Refusal::TooFast => "too many clients connect at a time: try again later",
            Refusal::WrongCluster => {
                "this user belongs to another cluster: see `ws-guard route USER`"
            }
        }
    }

    /// Build the response.
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let body = format!("{}\n", self.explanation());
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = self.status().unwrap_or(StatusCode::BAD_REQUEST);
        let mut field = |name, value| {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        };
        field(header::CONTENT_TYPE, "text/plain; charset=utf-8");
        field(header::CONNECTION, "close");
        match self {
            Refusal::NotGet => field(header::ALLOW, "GET"),
            Refusal::NoUpgrade | Refusal::Version => {
                field(header::UPGRADE, "websocket");
                field(header::SEC_WEBSOCKET_VERSION, "13");
            }
            Refusal::NoToken => field(header::WWW_AUTHENTICATE, "Bearer"),
            Refusal::BadToken => {
                field(header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"");
            }
            Refusal::ServerFull
            | Refusal::SourceFull
            | Refusal::UserFull
            | Refusal::MemoryFull
            | Refusal::Stalled
            | Refusal::Shutdown
            | Refusal::TooFast => {
                let seconds = fastrand::u64(RETRY_AFTER);
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_what_to_do() {
        let field = |refusal: Refusal, name: &str| {
            let response = refusal.response();
            response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(field(Refusal::Version, "sec-websocket-version").as_deref(), Some("13"));
        let seconds = || field(Refusal::ServerFull, "retry-after").unwrap().parse::<u64>().unwrap();
        let drawn: std::collections::BTreeSet<u64> = (0..200).map(|_| seconds()).collect();
        assert!(drawn.len() > 1 && drawn.iter().all(|s| RETRY_AFTER.contains(s)), "{drawn:?}");
        assert_eq!(Refusal::WrongCluster.response().status(), 421);
        assert_eq!(Refusal::SourceFull.response().status(), 429);
    }

    #[test]
    fn all_are_there_in_their_order() {
        let places: Vec<usize> = Refusal::ALL.iter().map(|refusal| *refusal as usize).collect();
        assert_eq!(places, (0..Refusal::ALL.len()).collect::<Vec<_>>());
    }
}
