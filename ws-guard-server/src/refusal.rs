//! Refused handshakes: name, status and answer of each reason.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderValue},
};

/// `Retry-After` of a refusal, seconds: any of these, so that those who were refused together do not
/// come back together.
const RETRY_AFTER: std::ops::RangeInclusive<u64> = 1..=10;

/// Why a request is no upgrade, or why the upgrade is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No request came, or none that hyper could read: broken, too long, or cut off.
    NotHttp,
    /// It took longer than [`Config::handshake_timeout`](crate::Config::handshake_timeout).
    Timeout,
    NotGet,
    /// Plain HTTP, or HTTP/1.0.
    NoUpgrade,
    Version,
    Key,
    /// No `Host`, or more than one.
    Host,
    /// A request for an upgrade with a body, which would be taken for frames.
    Body,
    /// A proxy that has to say whom it connects for did not.
    ProxyHeader,
    /// No TLS, where it has to be, or one that could not be agreed.
    Tls,
    /// A page of an origin that may not connect.
    Origin,
    NoToken,
    /// Expired, signed by another key, or no token at all.
    BadToken,
    /// The client has to identify itself, and did not.
    NoUser,
    /// What it says is no name of a user: too long, not UTF-8, with control characters, or twice.
    BadUser,
    /// Too many connections.
    ServerFull,
    /// Too many connections of this source.
    SourceFull,
    /// Too many connections of this user.
    UserFull,
    /// Connections hold as much memory as they may.
    MemoryFull,
    /// The server is late with what it has.
    Stalled,
    /// The server is shutting down.
    Shutdown,
    /// Too many new connections at a time.
    TooFast,
    /// The user belongs to another cluster.
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

    /// The name in metrics and logs.
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

    /// The answer's status, where there is one to answer.
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

    /// What the answer's body says.
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

    /// The answer that says so.
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
