//! Floods of each kind of frame on one or many connections, with its own messages.
//!
//! One thread serves all connections. Like the attacker of [`crate::flood`] it does not read,
//! except where the server would otherwise stop taking bytes: 1-byte messages are each echoed. At
//! the end it reads everything, to check whether its own messages came back intact.
use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    client::Client,
    flood::PAYLOAD,
    frame::{Decoder, Frame, encode, opcode},
    wire::no_room,
};

/// Interval of a connection's own messages.
pub(crate) const OWN_EVERY: Duration = Duration::from_millis(500);
/// Number of bytes handed to the socket at once.
const WRITE: usize = 64 * 1024;
/// Send buffer in bytes, small so that the rest of a flood is soon delivered.
const SEND_BUFFER: usize = 64 * 1024;
/// Maximum time without an event before the bounds are checked.
const LOOK: Duration = Duration::from_millis(20);
/// Number of bytes read at once.
const READ: usize = 64 * 1024;
/// Overhead of a TLS 1.3 record: header, content type, tag (RFC 8446, 5.2).
const RECORD: usize = 5 + 1 + 16;
/// Payload of a flood's messages.
const DOT: &[u8] = b".";

/// Kind of frames in a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pings with the longest payload.
    Pings,
    Pongs,
    /// Empty fragments of one message, which the flooder's own text ends.
    Fragments,
    /// Messages of one byte.
    Messages,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Pings, Kind::Pongs, Kind::Fragments, Kind::Messages];

    /// Build one frame of the flood.
    pub fn frame(self) -> Vec<u8> {
        let frame = match self {
            Kind::Pings => Frame::ping(vec![0x55; PAYLOAD]),
            Kind::Pongs => Frame::new(opcode::PONG, vec![0x55; PAYLOAD]),
            Kind::Fragments => Frame { fin: false, ..Frame::new(opcode::CONTINUATION, []) },
            Kind::Messages => Frame::new(opcode::TEXT, DOT),
        };
        encode(&[frame])
    }

    /// Build the frames before the flood.
    pub fn beginning(self) -> Vec<u8> {
        match self {
            Kind::Fragments => encode(&[Frame { fin: false, ..Frame::new(opcode::TEXT, []) }]),
            _ => Vec::new(),
        }
    }

    /// Build a message of the flooder's own, in the middle of the flood.
    pub fn own(self, text: &str) -> Vec<u8> {
        match self {
            Kind::Fragments => {
                let end = encode(&[Frame::new(opcode::CONTINUATION, text)]);
                [end, self.beginning()].concat()
            }
            _ => encode(&[Frame::text(text)]),
        }
    }

    /// Check whether the flooder has to read, or the server would stop reading.
    fn is_read(self) -> bool {
        self == Kind::Messages
    }
}

/// Result of a flood, over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Flooded {
    /// Bytes that the server's TCP acknowledged by the end of the flood.
    pub bytes: u64,
    /// Frames of the flood in them.
    pub frames: u64,
    /// Number of the flooder's own messages.
    pub own: u64,
    /// Number of those that came back intact and in order, at the end.
    pub echoed: u64,
    /// Number of connections that the server ended.
    pub broken: u64,
    /// Number of bytes that the server accepted past the end of an announced window.
    /// Linux accepts a segment whole that begins inside; a guard that holds the window accepts
    /// none.
    pub beyond: u64,
}

/// State of one connection.
struct Connection {
    client: Client,
    local: SocketAddr,
    /// Length of a frame of the flood, and with the record around it.
    frame: usize,
    on_wire: usize,
    /// Bytes to be written before the flood continues.
    first: Vec<u8>,
    /// Number of flood bytes written, without the flooder's own messages.
    flood: u64,
    last_own: Instant,
    /// Numbers of its own messages, and of those that came back.
    own: u64,
    echoed: u64,
    decoder: Decoder,
    /// `true` if there is more to write although the flood has ended.
    has_more: bool,
    broken: bool,
}

/// Flood over all its connections.
pub struct Flooders {
    kind: Kind,
    /// Consecutive frames of the flood.
    data: Vec<u8>,
    connections: Vec<Connection>,
}

pub(crate) fn own_text(connection: SocketAddr, number: u64) -> String {
    format!("message {number} of {connection} itself")
}

impl Flooders {
    /// Turn clients into flooders; none of them reads by itself.
    pub fn new(kind: Kind, clients: Vec<Client>) -> Result<Flooders> {
        let frame = kind.frame();
        let data = frame.repeat(WRITE / frame.len());
        let connections = clients.into_iter().map(|client| Connection::new(kind, client));
        Ok(Flooders { kind, data, connections: connections.collect::<Result<_>>()? })
    }

    /// Send for `time`, while `go_on` returns true.
    pub fn run(&mut self, time: Duration, go_on: impl Fn() -> bool) -> Result<Flooded> {
        let end = Instant::now() + time;
        while Instant::now() < end && go_on() && self.connections.iter().any(|c| !c.broken) {
            self.turn(false)?;
        }
        Ok(self.flooded())
    }

    /// Complete cut frames, send a last message, and wait until all own ones are back.
    pub fn finish(&mut self, patience: Duration) -> Result<Flooded> {
        let end = Instant::now() + patience;
        let before = self.flooded();
        self.connections.iter_mut().for_each(|connection| connection.say(self.kind));
        let waits =
            |connection: &Connection| !connection.broken && connection.echoed < connection.own;
        while Instant::now() < end && self.connections.iter().any(waits) {
            self.turn(true)?;
        }
        let after = self.flooded();
        Ok(Flooded { bytes: before.bytes, frames: before.frames, ..after })
    }

    fn flooded(&self) -> Flooded {
        let mut sum = Flooded::default();
        for connection in &self.connections {
            let (bytes, frames) = connection.through();
            sum.bytes += bytes;
            sum.frames += frames;
            sum.own += connection.own;
            sum.echoed += connection.echoed;
            sum.broken += u64::from(connection.broken);
        }
        sum
    }

    /// Wait for connections that can be served, and serve them.
    fn turn(&mut self, ending: bool) -> Result<()> {
        let reads = ending || self.kind.is_read();
        let mut polled = Vec::new();
        for connection in self.connections.iter().filter(|connection| !connection.broken) {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, reads);
            flags.set(PollFlags::POLLOUT, !ending || connection.has_more);
            polled.push(PollFd::new(connection.client.tcp().as_fd(), flags));
        }
        poll(&mut polled, PollTimeout::try_from(LOOK)?).context("waiting for connections")?;
        let ready: Vec<PollFlags> = polled.iter().filter_map(PollFd::revents).collect();
        let open = self.connections.iter_mut().filter(|connection| !connection.broken);
        for (connection, ready) in open.zip(ready) {
            // An error shows in the system call that it ends.
            let failed = ready.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
            let read = reads && (failed || ready.contains(PollFlags::POLLIN));
            let write = failed || ready.contains(PollFlags::POLLOUT);
            let done = if read { connection.read() } else { Ok(()) };
            let done = match write {
                true => done.and_then(|()| connection.write(self.kind, &self.data, ending)),
                false => done,
            };
            connection.broken = done.is_err();
        }
        Ok(())
    }
}

impl Connection {
    fn new(kind: Kind, mut client: Client) -> Result<Connection> {
        socket2::SockRef::from(client.tcp()).set_send_buffer_size(SEND_BUFFER)?;
        client.tcp().set_nonblocking(true)?;
        let frame = kind.frame().len();
        client.wire().set_record(frame);
        Ok(Connection {
            local: client.local(),
            on_wire: frame + if client.wire().is_tls() { RECORD } else { 0 },
            frame,
            client,
            first: kind.beginning(),
            flood: 0,
            last_own: Instant::now(),
            own: 0,
            echoed: 0,
            decoder: Decoder::default(),
            has_more: true,
            broken: false,
        })
    }

    /// Write what the socket takes at once: its own message when due, else the flood.
    fn write(&mut self, kind: Kind, data: &[u8], ending: bool) -> io::Result<()> {
        let cut = (self.flood % self.frame as u64) as usize;
        if self.first.is_empty() && cut == 0 && !ending && self.last_own.elapsed() >= OWN_EVERY {
            self.say(kind);
        }
        // A cut frame is completed first, then comes its own message, then the flood.
        let due = ending || !self.first.is_empty() || self.last_own.elapsed() >= OWN_EVERY;
        let (bytes, flood) = match (cut, due) {
            (1.., true) => (&data[cut..self.frame], true),
            (0, _) if !self.first.is_empty() => (&self.first[..], false),
            (_, true) => (&[][..], false),
            _ => (&data[cut..], true),
        };
        let wire = self.client.wire();
        let taken = if bytes.is_empty() { wire.flush().map(|()| 0) } else { wire.write(bytes) };
        let taken = match taken {
            Err(error) if no_room(&error) => 0,
            taken => taken?,
        };
        if flood {
            self.flood += taken as u64;
        } else {
            self.first.drain(..taken);
        }
        let cut = !self.flood.is_multiple_of(self.frame as u64);
        self.has_more = cut || !self.first.is_empty() || self.client.wire().pending();
        Ok(())
    }

    /// Append a message of its own to what has to be written.
    fn say(&mut self, kind: Kind) {
        self.first.extend(kind.own(&own_text(self.local, self.own)));
        self.own += 1;
        self.last_own = Instant::now();
        self.has_more = true;
    }

    /// Read available bytes, and look for its own messages in them.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ];
        let n = match self.client.wire().read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if no_room(&error) => return Ok(()),
            read => read?,
        };
        self.decoder.push(&buffer[..n]);
        while let Some(frame) = self.decoder.next_frame() {
            let message = matches!(frame.opcode, opcode::TEXT | opcode::CONTINUATION);
            if message && frame.payload == own_text(self.local, self.echoed).as_bytes() {
                self.echoed += 1;
            }
        }
        Ok(())
    }

    /// Return the number of acknowledged bytes, and that of flood frames in them.
    fn through(&self) -> (u64, u64) {
        let behind = self.client.unacknowledged().unwrap_or(0);
        let frames = self.flood / self.frame as u64;
        let bytes = (frames * self.on_wire as u64).saturating_sub(behind);
        (bytes, bytes / self.on_wire as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_flood_is_one_stream_of_frames() {
        for kind in Kind::ALL {
            let flood = kind.frame().repeat(3);
            let bytes = [kind.beginning(), flood.clone(), kind.own("one"), flood].concat();
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let frames: Vec<Frame> = std::iter::from_fn(|| decoder.next_frame()).collect();
            // A message is open between its first frame and the one with FIN (RFC 6455, 5.4).
            let mut open = false;
            for frame in &frames {
                match frame.opcode {
                    opcode::CONTINUATION => assert!(open, "{kind:?}: {frame:?}"),
                    opcode::TEXT => assert!(!open, "{kind:?}: {frame:?}"),
                    _ => continue,
                }
                open = !frame.fin;
            }
            assert!(frames.iter().any(|frame| frame.fin && frame.payload == b"one"), "{kind:?}");
        }
    }
}
