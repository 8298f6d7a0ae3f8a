//! What tungstenite makes of a stream, to be compared with ours: for the tests and for the fuzz target.

use std::io::{self, Read, Write};

use tungstenite::{Message as Theirs, WebSocket, protocol::WebSocketConfig};
use ws_guard_server::protocol::{Event, Kind, Role};

/// An event as both libraries can say it.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

pub fn comparable(events: &[Event]) -> Vec<Said> {
    let said = |event: &Event| match event {
        Event::Message(message) if message.kind == Kind::Text => {
            Said::Text(message.payload.to_vec())
        }
        Event::Message(message) => Said::Binary(message.payload.to_vec()),
        Event::Chunk(chunk) => panic!("unexpected {chunk:?}"),
        Event::Ping(payload) => Said::Ping(payload.to_vec()),
        Event::Pong(payload) => Said::Pong(payload.to_vec()),
        Event::Close(close) => {
            Said::Close(close.as_ref().map(|close| (close.code, close.reason.clone())))
        }
    };
    events.iter().map(said).collect()
}

/// The same with whether an error ended it, as tungstenite sees it: for that the status code 1014,
/// which was registered later than the RFC's, is one.
pub fn as_tungstenite_has_it(events: &[Event], failed: bool) -> (Vec<Said>, bool) {
    let mut said = comparable(events);
    let unknown = matches!(said.last(), Some(Said::Close(Some((1014, _)))));
    if unknown {
        said.pop();
    }
    (said, failed || unknown)
}

/// A stream that ends, and takes whatever is written to it.
struct Recording<'a>(&'a [u8]);

impl Read for Recording<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Recording<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What tungstenite makes of it: the events, and whether it found an error.
pub fn tungstenite_reads(bytes: &[u8], role: Role, longest: usize) -> (Vec<Said>, bool) {
    let config =
        WebSocketConfig::default().max_message_size(Some(longest)).max_frame_size(Some(longest));
    let role = match role {
        Role::Server => tungstenite::protocol::Role::Server,
        Role::Client => tungstenite::protocol::Role::Client,
    };
    let mut socket = WebSocket::from_raw_socket(Recording(bytes), role, Some(config));
    let mut said = Vec::new();
    loop {
        use tungstenite::{Error, error::ProtocolError::ResetWithoutClosingHandshake};
        let message = match socket.read() {
            Ok(message) => message,
            Err(Error::Protocol(ResetWithoutClosingHandshake) | Error::ConnectionClosed) => {
                return (said, false);
            }
            Err(Error::Io(_)) => return (said, false),
            Err(_) => return (said, true),
        };
        said.push(match message {
            Theirs::Text(text) => Said::Text(text.as_bytes().to_vec()),
            Theirs::Binary(payload) => Said::Binary(payload.to_vec()),
            Theirs::Ping(payload) => Said::Ping(payload.to_vec()),
            Theirs::Pong(payload) => Said::Pong(payload.to_vec()),
            // It says so of a status code that must not be sent.
            Theirs::Close(Some(close)) if close.reason.as_str() == "Protocol violation" => {
                return (said, true);
            }
            Theirs::Close(close) => {
                let close =
                    close.map(|close| (close.code.into(), close.reason.as_str().to_owned()));
                said.push(Said::Close(close));
                return (said, false);
            }
            Theirs::Frame(_) => continue,
        });
    }
}
