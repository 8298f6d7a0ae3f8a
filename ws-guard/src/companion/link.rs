//! Daemon's end of the channel: requests to the server's process, and files for it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use super::channel::{self, Handed};

/// Time limit of an answer. It comes from a thread that does nothing else.
const PATIENCE: Duration = Duration::from_secs(5);
/// Size limit of an answer: metrics with a time series per protocol and region.
const LARGEST: usize = 8 << 20;
/// Size limit of a refusal's reason.
const LONGEST_REASON: usize = 1024;

/// Failure of a request.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("the companion server does not answer: {0}")]
    Io(#[from] io::Error),
    #[error("the companion server refuses: {0}")]
    Refused(String),
}

/// Connection of the daemon to a running server's process.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

impl Link {
    pub fn new(socket: OwnedFd) -> Link {
        Link { socket }
    }

    pub fn hand(&self, handed: &Handed) -> io::Result<()> {
        channel::hand(&self.socket, handed)
    }

    /// Hand over the reopened access log.
    pub fn hand_log(&self, file: File) -> io::Result<()> {
        self.hand(&Handed::Log(file))
    }

    /// Hand over a stream on which the process answers HTTP, and return our end.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.hand(&Handed::Ask(theirs))?;
        Ok(ours)
    }

    /// Send a request and wait for the answer. Blocks.
    pub fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        self.ask_within(PATIENCE, method, path, body)
    }

    /// Do the same within `patience`. HTTP/1.0: unchunked, up to the stream's end.
    pub fn ask_within<T: DeserializeOwned>(
        &self,
        patience: Duration,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        let mut stream = self.connect()?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(&request(method, path, body).map_err(io::Error::from)?)?;
        read(&all(&mut stream, Instant::now() + patience)?)
    }
}

/// Read up to the end of the stream, within limits of time and size.
/// A compromised server could otherwise send a byte now and then, forever.
fn all(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let (mut all, mut part) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(all),
            Ok(read) => all.extend_from_slice(part.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if all.len() > LARGEST {
            return Err(io::Error::other("it is too long"));
        }
    }
}

/// Format a request; a unit body is left out.
/// A body that is not read would remain in the socket, and closing a unix socket with unread data
/// discards the answer too.
fn request(method: &str, path: &str, body: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let body = match serde_json::to_value(body)? {
        serde_json::Value::Null => Vec::new(),
        body => serde_json::to_vec(&body)?,
    };
    let length = body.len();
    let mut request = format!(
        "{method} {path} HTTP/1.0\r\nhost: companion\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend(body);
    Ok(request)
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, AskError> {
    let broken = || AskError::Io(io::ErrorKind::InvalidData.into());
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(broken)?;
    let (head, body) = answer.split_at(end + 4);
    let status = head.split(|byte| *byte == b' ').nth(1).ok_or_else(broken)?;
    if status != b"200" {
        let why = String::from_utf8_lossy(body.get(..LONGEST_REASON).unwrap_or(body));
        return Err(AskError::Refused(why.trim().to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| AskError::Io(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_say_is_no_body() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let none = text(request("GET", "/a", &()).unwrap());
        assert!(none.starts_with("GET /a HTTP/1.0\r\n"), "{none}");
        assert!(none.ends_with("content-length: 0\r\n\r\n"), "{none}");
        assert!(
            text(request("PUT", "/a", &[1]).unwrap()).ends_with("content-length: 3\r\n\r\n[1]")
        );
    }

    #[test]
    fn an_answer_that_never_ends_is_given_up() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let dripping = std::thread::spawn(move || {
            while gone.try_recv().is_err() && theirs.write_all(b"1").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let late = all(&mut ours, Instant::now() + Duration::from_millis(100)).unwrap_err();
        assert!(matches!(late.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock));
        go.send(()).unwrap();
        dripping.join().unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let flooding = std::thread::spawn(move || theirs.write_all(&vec![b'1'; LARGEST * 2]));
        assert!(all(&mut ours, Instant::now() + PATIENCE * 12).is_err());
        drop(ours);
        assert!(flooding.join().unwrap().is_err());
    }

    #[test]
    fn answers_are_read_or_refused() {
        let answer = |text: &str| read::<u32>(text.as_bytes());
        assert!(matches!(answer("HTTP/1.0 200 OK\r\na: b\r\n\r\n7"), Ok(7)));
        let refused = answer("HTTP/1.0 503 No\r\n\r\nit is ending").unwrap_err();
        assert!(matches!(&refused, AskError::Refused(why) if why == "it is ending"), "{refused}");
        for broken in ["", "HTTP/1.0 200 OK\r\n", "\r\n\r\n7", "HTTP/1.0 200 OK\r\n\r\n\"x"] {
            assert!(matches!(answer(broken), Err(AskError::Io(_))), "{broken:?}");
        }
    }
}
