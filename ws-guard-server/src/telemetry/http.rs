//! Requests to the collector, by hyper, which is used by the server already.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, Uri,
    client::conn::http1,
    header::{self, HeaderValue},
    http::uri::Scheme,
};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError, ResponseExt};
use prometheus::{IntCounterVec, Registry};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Handle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use crate::register::Register;

/// Results of a request.
const RESULTS: [&str; 2] = ["ok", "error"];
/// Maximum length of a collector's response in bytes.
const LONGEST: usize = 1 << 20;

/// Client whose requests run on a runtime, whichever thread waits for them.
#[derive(Clone)]
pub struct Http {
    runtime: Handle,
    /// Connector for collectors with TLS.
    tls: Option<TlsConnector>,
    requests: IntCounterVec,
    /// Signal that the requests carry.
    signal: &'static str,
    /// Time-out of a request.
    timeout: Duration,
    /// `true` after a failed request: logged once, not each time.
    failing: Arc<AtomicBool>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// Create the counters of requests, by result and signal.
pub(crate) fn requests(registry: &Registry) -> prometheus::Result<IntCounterVec> {
    Register::new(registry).counters(
        "wsguard_otlp_requests_total",
        "Requests to the OTLP collector, by how they went and what they carried.",
        &["result", "signal"],
    )
}

/// Create the series of a signal before its first request.
pub(crate) fn prepare(requests: &IntCounterVec, signal: &str) {
    for result in RESULTS {
        requests.with_label_values(&[result, signal]);
    }
}

impl Http {
    /// Create a client; `registry` counts requests, those to `https` need `tls`.
    pub fn new(
        runtime: Handle,
        tls: Option<TlsConnector>,
        registry: &Registry,
    ) -> prometheus::Result<Http> {
        let requests = requests(registry)?;
        let timeout = Duration::from_secs(10);
        Ok(Http { runtime, tls, requests, signal: "", timeout, failing: Arc::default() })
    }

    /// Derive a client for one signal, with this time-out.
    pub fn carrying(&self, signal: &'static str, timeout: Duration) -> Http {
        prepare(&self.requests, signal);
        Http { signal, timeout, ..self.clone() }
    }

    fn note(&self, to: &Uri, result: &Result<Response<Bytes>, HttpError>) {
        let [ok, error] = RESULTS;
        let name = if result.is_ok() { ok } else { error };
        self.requests.with_label_values(&[name, self.signal]).inc();
        let failed_before = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !failed_before => {
                tracing::warn!("cannot export telemetry to {to}, and goes on trying: {error}");
            }
            Ok(_) if failed_before => tracing::info!("telemetry reaches {to} again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let to = request.uri().clone();
        let tls = self.tls.clone();
        let time = self.timeout;
        let sent = self.runtime.spawn(async move { timeout(time, exchange(request, tls)).await });
        let result = match sent.await {
            Ok(Ok(result)) => result.and_then(ResponseExt::error_for_status),
            Ok(Err(_)) => Err("no answer in time".into()),
            Err(error) => Err(error.into()),
        };
        self.note(&to, &result);
        result
    }
}

/// Connect, with TLS if the address says so, and send the request.
async fn exchange(
    request: Request<Bytes>,
    tls: Option<TlsConnector>,
) -> Result<Response<Bytes>, HttpError> {
    let authority = request.uri().authority().ok_or("no host")?.clone();
    let secure = request.uri().scheme() == Some(&Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect(format!("{}:{port}", authority.host())).await?;
    if !secure {
        return ask(stream, request).await;
    }
    // An IPv6 address is in brackets in a URL, and nowhere else.
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(name.to_owned())?;
    let stream = tls.ok_or("TLS is not set up")?.connect(name, stream).await?;
    ask(stream, request).await
}

async fn ask<S>(stream: S, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let authority = request.uri().authority().ok_or("no host")?.clone();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let host = HeaderValue::from_str(authority.as_str())?;
    request.headers_mut().insert(header::HOST, host);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>()?;
    *request.uri_mut() = path;
    let response = sender.send_request(request.map(Full::new)).await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, LONGEST).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}
