//! Flooder whose TCP ignores the window, and retransmits until acknowledged.
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    flooders::{Flooded, Kind, OWN_EVERY, own_text},
    netns::Pair,
    probing::deliver,
    raw_tcp::{Opening, RawTcp, SEGMENT},
};

/// Number of bytes sent before waiting for an acknowledgement.
/// It is twice the largest window without a scale.
const AHEAD: usize = 128 * 1024;
/// Interval of retransmitting all unacknowledged bytes.
const AGAIN: Duration = Duration::from_millis(50);
/// Silence of the server, at the end, before it is reminded of the window.
const LISTEN: Duration = Duration::from_millis(100);
/// Interval of checking for acknowledgements, while there is nothing to send.
const LOOK: Duration = Duration::from_micros(200);

/// Flooding connection.
pub struct BeyondWindow {
    tcp: RawTcp,
    kind: Kind,
    frame: Vec<u8>,
    /// Unacknowledged bytes, and the number of them sent since the last restart.
    stream: Vec<u8>,
    sent: usize,
    begun: Instant,
    through: u64,
    last_own: Instant,
    own: u64,
    echoed: u64,
}

impl BeyondWindow {
    /// Connect and upgrade, from an address that no kernel has.
    pub fn connect(
        pair: &Pair,
        client: SocketAddr,
        server: SocketAddr,
        kind: Kind,
    ) -> Result<BeyondWindow> {
        let mut tcp = RawTcp::connect(pair, client, server, &Opening::default())?;
        tcp.upgrade()?;
        tcp.drain()?;
        tcp.kept = Some(Default::default());
        Ok(BeyondWindow {
            tcp,
            kind,
            frame: kind.frame(),
            stream: kind.beginning(),
            sent: 0,
            begun: Instant::now(),
            through: 0,
            last_own: Instant::now(),
            own: 0,
            echoed: 0,
        })
    }

    /// Flood for `time`, while `go_on` returns true, without reading from the server.
    pub fn run(&mut self, time: Duration, go_on: impl Fn() -> bool) -> Result<Flooded> {
        let end = Instant::now() + time;
        self.tcp.window = 0;
        while Instant::now() < end && go_on() && !self.tcp.ended {
            self.fill();
            self.turn()?;
        }
        Ok(self.flooded())
    }

    /// End the flood: send a last message, heed the window, and read from the server.
    /// It waits until all its own messages have come back.
    pub fn finish(&mut self, patience: Duration) -> Result<Flooded> {
        let end = Instant::now() + patience;
        self.say();
        self.tcp.window = 0xFFFF;
        self.tcp.next = self.tcp.acked();
        let stream = std::mem::take(&mut self.stream);
        deliver(&mut self.tcp, &stream, patience)?;
        self.note_echoes();
        while Instant::now() < end && self.echoed < self.own && !self.tcp.ended {
            // Repeated, or the server may continue to assume that there is no room.
            self.tcp.acknowledge()?;
            self.tcp.settle(LISTEN)?;
            self.note_echoes();
        }
        Ok(self.flooded())
    }

    fn flooded(&self) -> Flooded {
        Flooded {
            bytes: self.through,
            frames: self.through / self.frame.len() as u64,
            own: self.own,
            echoed: self.echoed,
            broken: u64::from(self.tcp.ended),
            beyond: self.tcp.taken_beyond(),
        }
    }

    fn say(&mut self) {
        self.stream.extend(self.kind.own(&own_text(self.tcp.client, self.own)));
        self.own += 1;
        self.last_own = Instant::now();
    }

    /// Generate enough to send, in whole frames.
    fn fill(&mut self) {
        if self.last_own.elapsed() >= OWN_EVERY {
            self.say();
        }
        while self.stream.len() < AHEAD {
            self.stream.extend(&self.frame);
        }
    }

    /// Process received segments, and send a segment or restart.
    fn turn(&mut self) -> Result<()> {
        let acked = self.tcp.acked();
        self.tcp.settle(Duration::ZERO)?;
        let new = self.tcp.acked().wrapping_sub(acked) as usize;
        self.stream.drain(..new.min(self.stream.len()));
        self.sent = self.sent.saturating_sub(new);
        self.through += new as u64;
        self.note_echoes();
        let part = &self.stream[self.sent..self.stream.len().min(self.sent + SEGMENT)];
        if !part.is_empty() {
            self.tcp.next = self.tcp.acked().wrapping_add(self.sent as u32);
            self.tcp.send(&self.tcp.segment(0, part))?;
            self.sent += part.len();
            self.tcp.advance(part.len());
        } else if self.begun.elapsed() >= AGAIN {
            (self.sent, self.begun) = (0, Instant::now());
        } else {
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn note_echoes(&mut self) {
        for message in self.tcp.kept.iter_mut().flatten() {
            let own = own_text(self.tcp.client, self.echoed);
            self.echoed += u64::from(message[..] == *own.as_bytes());
        }
        self.tcp.kept.iter_mut().for_each(|kept| kept.clear());
    }
}
