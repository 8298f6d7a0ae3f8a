//! The opening handshake behind a proxy:
//! any bytes in any pieces are refused, dropped or upgraded. The answer fits the outcome, bytes
//! behind the request are kept, and the cut makes no difference. First byte: how it is cut, and
//! whether a PROXY header precedes it.
#![no_main]

use std::{
    cell::RefCell,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::LazyLock,
    task::{Context, Poll, Waker},
};

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ws_guard_server::{handshake, refusal::Refusal, negotiation::{Client, Table}, proxies::Proxies, Config};
use ws_guard::config::server::ServerSection;

/// Rows with and without a share, and one that is not compressed.
const TABLE: &str = r#"
[[server.protocol]]
offer = ["v2", "v3"]
answer = "v3"
percent = 50
[[server.protocol]]
offer = "v2"
features = ["streaming"]
"#;

static SETTING: LazyLock<(Config, Table)> = LazyLock::new(|| {
    let mut config = Config::new(([127, 0, 0, 1], 0).into());
    config.access.origins = vec!["https://example.test".parse().unwrap()];
    config.access.user = "query:user".parse().ok();
    config.access.region = "header:x-region".parse().ok();
    let mut problems = Vec::new();
    let section = ServerSection::parse("rollout.toml".as_ref(), TABLE, &mut problems);
    assert!(problems.is_empty());
    (config, section.protocols)
});

/// A stream that gives its bytes in pieces, and keeps what is written to it.
struct Wire {
    bytes: Vec<u8>,
    read: Rc<RefCell<usize>>,
    piece: usize,
    written: Rc<RefCell<Vec<u8>>>,
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut read = self.read.borrow_mut();
        let rest = &self.bytes[*read..];
        let now = &rest[..rest.len().min(self.piece).min(buffer.remaining())];
        buffer.put_slice(now);
        *read += now.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Outcome of a stream.
#[derive(Debug, PartialEq)]
struct Outcome {
    refusal: Option<Refusal>,
    protocol: Option<String>,
    /// First line of the answer.
    /// Empty for anything but HTTP: the cut decides whether that is found out before the stream
    /// ends, and so whether there is an answer.
    head: Vec<u8>,
}

async fn accept(wire: Wire, proxy_protocol: bool) -> Result<(Option<String>, Vec<u8>), Refusal> {
    let (config, table) = &*SETTING;
    let networks = "127.0.0.0/8".parse().into_iter().collect();
    let proxies = Proxies { networks, proxy_protocol };
    let peer = SocketAddr::from(([127, 0, 0, 1], 4711));
    let mut wire = wire;
    let beginning = proxies.accept(&mut wire, peer).await.ok_or(Refusal::ProxyHeader)?;
    let admit = |request: &_, upgrade: &mut handshake::Upgrade| {
        let identity = config.access.check(request, true, None)?;
        proxies.client(request.headers(), beginning, peer);
        let client = Client { user: identity.user_id.as_deref(), ..Client::default() };
        upgrade.negotiate(request.headers(), table, &client);
        Ok(())
    };
    let done = handshake::accept(wire, config, admit).await?;
    let protocol = done.upgrade.protocol.map(|choice| choice.protocol.to_string());
    Ok((protocol, done.leftover.to_vec()))
}

fn run(bytes: &[u8], proxy_protocol: bool, piece: usize) -> Outcome {
    let (read, written) = (Rc::default(), Rc::default());
    let (read_by, written_by) = (Rc::clone(&read), Rc::clone(&written));
    let wire = Wire { bytes: bytes.to_vec(), read: read_by, piece, written: written_by };
    let mut accepting = pin!(accept(wire, proxy_protocol));
    let mut cx = Context::from_waker(Waker::noop());
    // Everything is there at once, so it has to end.
    let polls = (0..2 * bytes.len() + 100).find_map(|_| match accepting.as_mut().poll(&mut cx) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    });
    let outcome = polls.expect("it ends when its stream does");
    let written = written.take();
    // An answer has the version of its request, and HTTP/1.0 has no upgrade (RFC 6455, 4.1).
    let answers = |version: &str, status: u16| {
        written.starts_with(format!("HTTP/{version} {status} ").as_bytes())
    };
    match &outcome {
        Ok((protocol, leftover)) => {
            assert!(answers("1.1", 101));
            assert!(bytes[..*read.borrow()].ends_with(leftover));
            let text = String::from_utf8(written.clone()).expect("an answer is text");
            let field = |line: &&str| line.starts_with("sec-websocket-protocol: ");
            assert_eq!(text.lines().find(field).is_some(), protocol.is_some());
            assert!(text.contains("x-ws-protocol-version: "));
        }
        Err(refusal) => match refusal.status() {
            Some(status) => {
                assert!(["1.1", "1.0"].iter().any(|version| answers(version, status.as_u16())));
            }
            None => assert!(!answers("1.1", 101)),
        },
    }
    let refusal = outcome.as_ref().err().copied();
    let known = refusal != Some(Refusal::NotHttp);
    let head = written.iter().take_while(|byte| known && **byte != b'\n').copied().collect();
    Outcome { refusal, protocol: outcome.ok().and_then(|(protocol, _)| protocol), head }
}

fuzz_target!(|data: &[u8]| {
    let Some((flags, bytes)) = data.split_first() else { return };
    let (proxy_protocol, piece) = (flags & 1 != 0, usize::from(flags >> 1) + 1);
    let whole = run(bytes, proxy_protocol, bytes.len().max(1));
    assert_eq!(whole, run(bytes, proxy_protocol, piece));
});
