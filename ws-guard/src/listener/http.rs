//! HTTP for control, metrics and health; slow or silent clients exclude no others.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::{
    Request,
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;
use ws_guard_server::seldom::Seldom;

/// Pause after an accept that failed for lack of something, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. A further one replaces the longest idle one.
    pub connections: usize,
    /// Time for a request's head, and between two requests.
    pub head: Duration,
    /// Time from a request's head to that of its answer, the request's body included.
    pub answer: Duration,
    /// Time for the peer to take some of the answer.
    pub write: Duration,
    /// Time after which an exchange counts as idle; none where answers may be streams.
    pub exchange: Option<Duration>,
}

impl Limits {
    /// Limits for scrapers and probes.
    pub const METRICS: Limits = Limits {
        connections: 128,
        head: Duration::from_secs(20),
        answer: Duration::from_secs(30),
        write: Duration::from_secs(10),
        exchange: Some(Duration::from_secs(30)),
    };
    /// Limits for the command line, which may follow events for hours.
    pub const CONTROL: Limits = Limits { connections: 64, exchange: None, ..Limits::METRICS };
}

/// Source of connections.
pub trait Accept {
    type Io: AsyncRead + AsyncWrite + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for TcpListener {
    type Io = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Io> {
        TcpListener::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Io = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Io> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Answer requests until dropped, which closes all connections.
pub async fn serve<L: Accept>(listener: L, router: Router, limits: Limits) {
    let (mut places, mut failures) = (Places::default(), Seldom::default());
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                if let Some(before) = failures.say(Instant::now()) {
                    tracing::warn!(
                        "cannot accept connections for metrics or control, {before} more times before: {error}"
                    );
                }
                places.make_room(1, &limits);
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if places.make_room(limits.connections, &limits) {
            let busy = Busy::default();
            let talk = talk(stream, router.clone(), busy.clone(), limits);
            let task = tokio::spawn(talk).abort_handle();
            places.0.push_back(Place { task, busy });
        }
    }
}

/// Open connections, the oldest first.
#[derive(Default)]
struct Places(VecDeque<Place>);

struct Place {
    task: AbortHandle,
    busy: Busy,
}

impl Places {
    /// End the oldest idle connection if `most` are open; return whether there is room.
    fn make_room(&mut self, most: usize, limits: &Limits) -> bool {
        self.0.retain(|place| !place.task.is_finished());
        if self.0.len() < most {
            return true;
        }
        let idle = self.0.iter().position(|place| place.busy.is_idle(limits.exchange));
        let idle = idle.and_then(|index| self.0.remove(index));
        if let Some(place) = &idle {
            place.task.abort();
        }
        idle.is_some()
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.0.iter().for_each(|place| place.task.abort());
    }
}

/// Time since which a connection has had a request to answer.
#[derive(Clone, Debug, Default)]
struct Busy(Arc<Mutex<Option<Instant>>>);

impl Busy {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn is_idle(&self, most: Option<Duration>) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_none_or(|since| most.is_some_and(|most| since.elapsed() > most))
    }
}

/// Serve one connection. Errors are the peer's business.
async fn talk<I>(stream: I, router: Router, busy: Busy, limits: Limits)
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.write));
    let service = service_fn(|request: Request<Incoming>| {
        busy.set(Some(Instant::now()));
        let answered = timeout(limits.answer, router.clone().oneshot(request.map(Body::new)));
        let busy = busy.clone();
        async move {
            let response: Response = match answered.await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => (StatusCode::REQUEST_TIMEOUT, "request timed out\n").into_response(),
            };
            Ok::<_, Infallible>(response.map(|body| Answer { body, busy }))
        }
    });
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .await;
}

/// Body whose end makes its connection idle.
struct Answer {
    body: Body,
    busy: Busy,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.busy.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpStream},
    };

    use axum::routing::{get, post};

    use super::*;

    const LIMITS: Limits = Limits {
        connections: 4,
        head: Duration::from_millis(400),
        answer: Duration::from_millis(400),
        write: Duration::from_millis(400),
        exchange: Some(Duration::from_secs(1)),
    };
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Start a listener with these limits, and its runtime.
    fn start(limits: Limits) -> (tokio::runtime::Runtime, SocketAddr) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let entered = runtime.enter();
        let listener = super::super::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let large = || async { "x".repeat(64 << 20) };
        let router = Router::new()
            .route("/", get(async || "here\n"))
            .route("/large", get(large))
            .route("/body", post(async |body: String| body));
        runtime.spawn(serve(listener, router, limits));
        drop(entered);
        (runtime, address)
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(stream: &mut TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[test]
    fn silent_clients_do_not_exclude_others() {
        let forever = Limits { head: Duration::from_secs(3600), ..LIMITS };
        let (_runtime, address) = start(forever);
        let mut idle: Vec<TcpStream> = (0..40).map(|_| connect(address)).collect();
        let answer =
            ask(&mut connect(address), &GET.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"));
        assert!(answer.ends_with("here\n"), "{answer}");
        // The first was closed to make room.
        assert_eq!(idle[0].read(&mut [0]).unwrap_or(0), 0);
    }

    #[test]
    fn nothing_takes_longer_than_it_may() {
        let (_runtime, address) = start(LIMITS);
        for (request, expected) in [
            ("", ""),
            ("GET / HT", ""),
            // Kept alive, then idle.
            (GET, "HTTP/1.1 200 "),
            ("POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc", "HTTP/1.1 408 "),
        ] {
            let start = Instant::now();
            let answer = ask(&mut connect(address), request);
            assert!(answer.starts_with(expected), "{request}: {answer}");
            assert!(start.elapsed() < PATIENCE / 2, "{request} is still there");
        }
    }

    #[test]
    fn who_does_not_read_has_to_go() {
        let (_runtime, address) = start(LIMITS);
        let stream = connect(address);
        (&stream).write_all(GET.replace("GET /", "GET /large").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        let mut taken = Vec::new();
        let end = (&stream).read_to_end(&mut taken);
        assert!(taken.len() < 64 << 20, "{end:?}: all of {} bytes", taken.len());
    }
}
