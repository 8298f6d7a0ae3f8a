//! Connections of clients: from an address of their own, over TLS or plain, to the upgrade's answer.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, lookup_host},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        client::Resumption,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error, client::IntoClientRequest, protocol::WebSocketConfig},
};

/// Bytes read at a time: the library clears as many before each read, by default 128 KiB.
const READ: usize = 4096;

/// A byte stream, TLS or not.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

pub type Socket = WebSocketStream<Box<dyn Stream>>;

/// Where clients connect to, and where from.
#[derive(clap::Args, Clone)]
pub struct Target {
    /// Where to connect to, as HOST:PORT; clients take turns
    #[arg(long, value_name = "ADDR", required = true, value_delimiter = ',')]
    pub server: Vec<String>,
    /// Certificate in PEM to trust; with it, clients use TLS
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Name in the server's certificate
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    pub name: String,
    /// Addresses to connect from; clients take turns
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub from: Vec<IpAddr>,
}

/// What connects one client.
pub struct Connector {
    servers: Vec<String>,
    from: Option<IpAddr>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    attempts: usize,
}

/// What became of an attempt that failed.
pub struct Failure {
    pub why: String,
    /// The time to wait that the server named.
    pub wait: Option<Duration>,
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { why: format!("{error:#}"), wait: None }
    }
}

impl Target {
    /// For the client of this number. Each keeps its own TLS sessions, as browsers do.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn connector(&self, number: usize) -> Result<Connector> {
        let tls = self.ca.as_ref().map(|ca| {
            let mut roots = RootCertStore::empty();
            let certificate = CertificateDer::from_pem_file(ca)
                .with_context(|| format!("reading {}", ca.display()))?;
            roots.add(certificate).with_context(|| format!("taking {}", ca.display()))?;
            let mut config =
                ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            config.resumption = Resumption::in_memory_sessions(4);
            let name = ServerName::try_from(self.name.clone())
                .with_context(|| format!("{} is no server's name", self.name))?;
            anyhow::Ok((TlsConnector::from(Arc::new(config)), name))
        });
        let from = (!self.from.is_empty()).then(|| self.from[number % self.from.len()]);
        let servers = self.server.clone();
        Ok(Connector { servers, from, tls: tls.transpose()?, attempts: number })
    }
}

impl Connector {
    /// Connect and upgrade; `query` is what follows the path.
    pub async fn open(&mut self, query: &str) -> Result<Socket, Failure> {
        let name = &self.servers[self.attempts % self.servers.len()];
        self.attempts += 1;
        let server = lookup_host(name).await?.next();
        let server = server.ok_or_else(|| Failure::from(format!("{name} has no address")))?;
        let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = self.from {
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = socket.connect(server).await?;
        stream.set_nodelay(true)?;
        let (stream, scheme): (Box<dyn Stream>, _) = match &self.tls {
            Some((tls, name)) => (Box::new(tls.connect(name.clone(), stream).await?), "wss"),
            None => (Box::new(stream), "ws"),
        };
        let request = format!("{scheme}://{name}/{query}").into_client_request()?;
        let config = WebSocketConfig::default().read_buffer_size(READ);
        match client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(answer)) => {
                let wait = answer.headers().get("retry-after");
                let seconds = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
                let why = format!("HTTP {}", answer.status());
                Err(Failure { why, wait: seconds.map(Duration::from_secs) })
            }
            Err(error) => Err(error.into()),
        }
    }
}
