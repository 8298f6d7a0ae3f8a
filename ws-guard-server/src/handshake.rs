//! Opening handshake (RFC 6455, 4.2): HTTP/1.1 by hyper, and the rules of upgrades.

use std::{
    cell::RefCell, convert::Infallible, future::poll_fn, pin::Pin, rc::Rc, task::Poll,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};

use super::{
    config::Config,
    demo,
    identity::RESUME,
    negotiation::{self, Choice, Client, Table, VERSION_FIELD, offers},
    protocol::extension::{self, Agreed, DeflateOptions},
    refusal::Refusal,
};

/// Suffix for computing the accept key (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Maximum number of header fields in a request.
const MAX_FIELDS: usize = 100;
/// Minimum buffer size that hyper needs.
const MIN_REQUEST: usize = 8192;
/// Time for a refused client's socket to accept the rest of the response.
const GOODBYE: Duration = Duration::from_secs(1);
/// Maximum number of bytes read of a refused client after its request.
const MAX_UNREAD: usize = 64 * 1024;

/// Valid request for an upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    accept: String,
    pub deflate: Option<Agreed>,
    pub protocol: Option<Choice>,
    /// `true` if there are protocols to choose from: the response names the choice.
    versioned: bool,
    /// `true` if the resume protocol is offered: browsers need one of those they offer.
    /// It is the answer where no other is chosen.
    resuming: bool,
}

impl Upgrade {
    /// Check a request.
    pub fn check<B>(
        request: &Request<B>,
        deflate: Option<&DeflateOptions>,
    ) -> Result<Upgrade, Refusal> {
        let headers = request.headers();
        if request.method() != Method::GET {
            return Err(Refusal::NotGet);
        }
        let upgrade = request.version() == Version::HTTP_11
            && has_token(headers, &header::CONNECTION, "upgrade")
            && has_token(headers, &header::UPGRADE, "websocket");
        if !upgrade {
            return Err(Refusal::NoUpgrade);
        }
        if single(headers, &header::HOST).is_none() {
            return Err(Refusal::Host);
        }
        if single(headers, &header::SEC_WEBSOCKET_VERSION) != Some("13") {
            return Err(Refusal::Version);
        }
        let key = single(headers, &header::SEC_WEBSOCKET_KEY)
            .filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16))
            .ok_or(Refusal::Key)?;
        if has_body(headers) {
            return Err(Refusal::Body);
        }
        let offers = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS);
        let offers = offers.iter().filter_map(|value| value.to_str().ok());
        let deflate = deflate.and_then(|options| extension::negotiate(offers, options));
        Ok(Upgrade {
            accept: accept_key(key),
            deflate,
            protocol: None,
            versioned: false,
            resuming: false,
        })
    }

    /// Choose one of the subprotocols that the client offers.
    pub fn negotiate(&mut self, headers: &HeaderMap, table: &Table, client: &Client<'_>) {
        self.versioned = !table.rows.is_empty();
        self.protocol = table.choose(&offers::offers(headers), client);
        let features = self.protocol.as_ref().map(|choice| choice.features);
        // Encrypted data does not compress, and a stream is not held until it is whole.
        if features.is_some_and(|features| features.encryption || features.streaming) {
            self.deflate = None;
        }
    }

    /// Accept the reconnecting clients' subprotocol, if offered and no other is chosen.
    pub fn resume(&mut self, headers: &HeaderMap) {
        self.resuming = offers::offers(headers).contains(&RESUME);
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let extensions = self.deflate.map(|agreed| agreed.response());
        let protocol = self.protocol.as_ref().map(|choice| &*choice.protocol);
        let version = self.versioned.then(|| protocol.unwrap_or(negotiation::NONE));
        let resuming = self.resuming.then_some(RESUME);
        for (name, value) in [
            (header::SEC_WEBSOCKET_ACCEPT, Some(&*self.accept)),
            (header::SEC_WEBSOCKET_EXTENSIONS, extensions.as_deref()),
            (header::SEC_WEBSOCKET_PROTOCOL, protocol.or(resuming)),
            (HeaderName::from_static(VERSION_FIELD), version),
        ] {
            // All consist of characters that a header may have.
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        }
        response
    }
}

/// Compute `Sec-WebSocket-Accept` for a key (RFC 6455, 4.2.2).
fn accept_key(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    STANDARD.encode(digest)
}

/// Return the value of a field that is present exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value.trim())
}

/// Check whether a comma-separated list has this token, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// Check whether a body follows the request (RFC 9112, 6).
fn has_body(headers: &HeaderMap) -> bool {
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    headers.contains_key(header::TRANSFER_ENCODING)
        || lengths.into_iter().any(|length| length.as_bytes() != b"0")
}

/// Stream after its handshake.
pub struct Done<I, T> {
    pub io: I,
    /// Bytes that the client sent right after its request.
    pub leftover: Bytes,
    pub upgrade: Upgrade,
    /// Result of `admit`.
    pub admitted: T,
}

impl<I, T> Done<I, T> {
    /// Separate the stream from the result of `admit`.
    pub fn split(self) -> (Done<I, ()>, T) {
        let Done { io, leftover, upgrade, admitted } = self;
        (Done { io, leftover, upgrade, admitted: () }, admitted)
    }
}

/// Read the one request of a stream and answer it; bounded in size, not in time.
/// `admit` is called once the request is valid; it can still refuse it, and add to the response.
/// A refused stream is left open: see [`say_goodbye`].
pub async fn accept<I, T>(
    io: I,
    config: &Config,
    admit: impl Fn(&Request<Incoming>, &mut Upgrade) -> Result<T, Refusal>,
) -> Result<Done<I, T>, Refusal>
where
    I: AsyncRead + AsyncWrite + Unpin,
    T: 'static,
{
    let outcome = Rc::new(RefCell::new(Err(Refusal::NotHttp)));
    let service = service_fn(|request: Request<Incoming>| {
        let checked = Upgrade::check(&request, config.deflate.as_ref());
        let admitted = checked.and_then(|mut upgrade| {
            let admitted = admit(&request, &mut upgrade)?;
            Ok((upgrade, admitted))
        });
        let response = match &admitted {
            Ok((upgrade, _)) => upgrade.response(),
            Err(refusal) => {
                let asked = config.demo_page && *refusal == Refusal::NoUpgrade;
                let page = asked.then(|| demo::answer(&request)).flatten();
                page.unwrap_or_else(|| refusal.response())
            }
        };
        *outcome.borrow_mut() = admitted;
        async { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .max_buf_size(config.max_request.max(MIN_REQUEST))
        .max_headers(MAX_FIELDS)
        // A client that has ended its side is answered all the same.
        .half_close(true)
        .serve_connection(TokioIo::new(io), service)
        .without_shutdown()
        .await;
    let (upgrade, admitted) = outcome.replace(Err(Refusal::NotHttp))?;
    let parts = served.map_err(|_| Refusal::NotHttp)?;
    Ok(Done { io: parts.io.into_inner(), leftover: parts.read_buf, upgrade, admitted })
}

/// End a stream in order, TLS with its close_notify (RFC 8446, 6.1).
/// The response must not look truncated. Bytes that the peer has sent are read, or the kernel would
/// reset the connection, and the response with it.
pub async fn say_goodbye<I: AsyncRead + AsyncWrite + Unpin>(mut io: I) {
    if !matches!(timeout(GOODBYE, io.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    let mut unread = [0; 4096];
    for _ in 0..MAX_UNREAD / unread.len() {
        let mut buffer = ReadBuf::new(&mut unread);
        let read = poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll_read(cx, &mut buffer))).await;
        if !matches!(read, Poll::Ready(Ok(()))) || buffer.filled().is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 5] = [
        ("host", "example.test"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    /// Build a valid request, with the field in `change` removed or replaced.
    fn request(change: Option<(&str, Option<&str>)>) -> Request<()> {
        let mut request = Request::builder();
        for (name, value) in GOOD {
            match change {
                Some((changed, None)) if changed == name => {}
                Some((changed, Some(new))) if changed == name => {
                    request = request.header(name, new)
                }
                _ => request = request.header(name, value),
            }
        }
        request.body(()).unwrap()
    }

    fn check(change: Option<(&str, Option<&str>)>) -> Result<Upgrade, Refusal> {
        Upgrade::check(&request(change), Some(&DeflateOptions::default()))
    }

    #[test]
    fn the_rfcs_own_example() {
        let upgrade = check(None).unwrap();
        assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let response = upgrade.response();
        assert_eq!(response.status(), 101);
        assert!(response.headers().get("sec-websocket-extensions").is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value, refusal) in [
            ("host", None, Refusal::Host),
            ("connection", Some("keep-alive"), Refusal::NoUpgrade),
            ("connection", None, Refusal::NoUpgrade),
            ("upgrade", Some("h2c"), Refusal::NoUpgrade),
            ("sec-websocket-version", Some("8"), Refusal::Version),
            ("sec-websocket-version", None, Refusal::Version),
            ("sec-websocket-key", None, Refusal::Key),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZQ=="), Refusal::Key),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZQ"), Refusal::Key),
        ] {
            assert_eq!(check(Some((name, value))), Err(refusal), "{name}: {value:?}");
        }
        let mut post = request(None);
        *post.method_mut() = Method::POST;
        assert_eq!(Upgrade::check(&post, None), Err(Refusal::NotGet));
        let mut old = request(None);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(Upgrade::check(&old, None), Err(Refusal::NoUpgrade));
        for (name, value) in [
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "identity"),
            ("content-length", "5"),
            ("content-length", "05"),
        ] {
            let mut bodied = request(None);
            bodied.headers_mut().append(name, HeaderValue::from_static(value));
            assert_eq!(Upgrade::check(&bodied, None), Err(Refusal::Body), "{name}: {value}");
        }
        let mut empty = request(None);
        empty.headers_mut().append("content-length", HeaderValue::from_static("0"));
        assert!(Upgrade::check(&empty, None).is_ok());
        let mut twice = request(None);
        twice.headers_mut().append("sec-websocket-key", HeaderValue::from_static(GOOD[4].1));
        assert_eq!(Upgrade::check(&twice, None), Err(Refusal::Key));
    }
}
