//! Typed client of the control API.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::message::Info;
use crate::operator::error::ErrorBody;

/// Time limit of an answer; event streams have none.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Size limit of an answer: the widest listing of the largest tables.
const LARGEST: usize = 4 << 30;

/// Failure of a request: no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no daemon listens on {0}: start one with `ws-guard run`, or name its socket with --control-socket"
    )]
    Unreachable(PathBuf),
    #[error(
        "the control socket {0} may not be opened by this user: run as root, or as a member of the group that owns it"
    )]
    Forbidden(PathBuf),
    /// The daemon refused the request; error and remedy are the daemon's own.
    #[error("{}: {}", .0.error, .0.remedy)]
    Refused(ErrorBody),
    #[error("the daemon on {0} {1}: see its log")]
    Broken(PathBuf, String),
}

/// Client of the daemon on one socket; each request has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub async fn info(&self) -> Result<Info, ClientError> {
        self.get("/v1/info").await
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.timed(self.exchange(Method::GET, path, Bytes::new())).await
    }

    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body =
            serde_json::to_vec(body).map_err(|error| self.broken("was asked nonsense", error))?;
        self.timed(self.exchange(method, path, body.into())).await
    }

    /// Pass the answer on piece by piece, as it arrives.
    pub async fn copy(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let response = self.timed(self.request(Method::GET, path, Bytes::new())).await?;
        let mut body = response.into_body();
        let next = async |body: &mut Incoming| Ok(body.frame().await);
        while let Some(frame) = self.timed(next(&mut body)).await? {
            let frame = frame.map_err(|error| self.broken("broke off", error))?;
            take(frame.data_ref().map_or(&[], |data| data))?;
        }
        Ok(())
    }

    /// Read a streamed answer line by line.
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let response = self.timed(self.request(Method::GET, path, Bytes::new())).await?;
        Ok(Lines { client: self.clone(), body: response.into_body(), buffer: Vec::new() })
    }

    async fn timed<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let late = || ClientError::Broken(self.socket.clone(), "did not answer within 10 s".into());
        tokio::time::timeout(TIMEOUT, work).await.map_err(|_| late())?
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let response = self.request(method, path, body).await?;
        let bytes = self.collect(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken("gave an invalid answer", error))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| self.connect_error(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken("does not speak HTTP", error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "ws-guard")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken("does not support this request", error))?;
        let response =
            sender.send_request(request).await.map_err(|error| self.broken("broke off", error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.collect(response).await?;
        match serde_json::from_slice(&bytes) {
            Ok(body) => Err(ClientError::Refused(body)),
            Err(_) => Err(self.broken("refused", status)),
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        Ok(body.map_err(|error| self.broken("broke off", error))?.to_bytes())
    }

    fn connect_error(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::Unreachable(self.socket.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.socket.clone()),
            _ => self.broken("cannot be reached", error),
        }
    }

    fn broken(&self, what: &str, why: impl std::fmt::Display) -> ClientError {
        ClientError::Broken(self.socket.clone(), format!("{what} ({why})"))
    }
}

/// Lines of a streamed answer.
pub struct Lines {
    client: Client,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// Read the next line, without its end; `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.client.broken("broke off", error)),
                Some(Ok(frame)) => {
                    self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                }
            }
        }
    }
}
