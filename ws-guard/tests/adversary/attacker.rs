//! Attackers that play the rows.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    netns::Family,
    packets::Packet,
    raw_tcp::{self, Opening, RawTcp},
    servers::Library,
};

use crate::stage::Stage;

/// Retransmission interval, as of TCP, for segments that the guard does not pass.
const AGAIN: Duration = Duration::from_millis(250);
const TIMES: u32 = 14;

/// Return this number of pings without payload, 6 bytes each.
pub fn pings(count: usize) -> Vec<u8> {
    [0x89, 0x80, 1, 2, 3, 4].repeat(count)
}

/// A text frame without payload.
pub const TEXT: [u8; 6] = [0x81, 0x80, 1, 2, 3, 4];

/// Return the header of a binary frame with a payload of this length, without it.
pub fn header(length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    vec![0x82, 0xFE, high, low, 0, 0, 0, 0]
}

/// One row's attacker: an address, and a server to attack.
pub struct Attacker<'a> {
    pub stage: &'a Stage,
    pub library: Library,
    pub family: Family,
    /// Number of its address.
    pub n: u8,
    /// Lowest of its ports.
    pub port: u16,
}

impl Attacker<'_> {
    /// Number of a client address that the kernel has, and no honest client.
    /// Those take the lowest.
    pub fn highest(&self) -> u8 {
        249 - self.n % 16
    }

    /// Return the attacker's end of connection number `n`.
    pub fn local(&self, n: u16) -> SocketAddr {
        SocketAddr::new(raw_tcp::address(self.family, self.n), self.port + n)
    }

    pub fn server(&self) -> Result<SocketAddr> {
        Ok(self.stage.server(self.library)?.at(self.family.server()))
    }

    /// Open a TCP connection, and send nothing on it.
    pub fn tcp(&self, n: u16, opening: &Opening) -> Result<RawTcp> {
        RawTcp::connect(&self.stage.pair, self.local(n), self.server()?, opening)
    }

    /// Open a WebSocket connection, past its handshake.
    pub fn connect(&self) -> Result<RawTcp> {
        self.connect_number(0)
    }

    pub fn connect_number(&self, n: u16) -> Result<RawTcp> {
        self.connect_as(n, &Opening::default())
    }

    pub fn connect_as(&self, n: u16, opening: &Opening) -> Result<RawTcp> {
        let mut tcp = self.tcp(n, opening)?;
        tcp.upgrade()?;
        // From here on everything the guard knows of the connection is acknowledged.
        tcp.settle(Duration::from_millis(20))?;
        Ok(tcp)
    }
}

/// Send a segment until the server has acknowledged it, as TCP would;
/// `false` when it never does. The next byte to send then follows it.
pub fn persist(tcp: &mut RawTcp, packet: &Packet) -> Result<bool> {
    let end = packet.seq.wrapping_add(packet.payload.len() as u32);
    tcp.next = end;
    for _ in 0..TIMES {
        tcp.send(&tcp.again(packet))?;
        if tcp.wait(AGAIN, |tcp| tcp.ended || tcp.unacknowledged() <= 0)? {
            return Ok(!tcp.ended);
        }
    }
    Ok(false)
}

/// Talk until the server's TCP delays acknowledgements (RFC 1122, 4.2.3.2).
/// It then expects answers to carry them, so that unanswered data is acknowledged late.
pub fn delay_acknowledgements(tcp: &mut RawTcp) -> Result<()> {
    for _ in 0..8 {
        tcp.push(&TEXT)?;
        tcp.settle(Duration::from_millis(20))?;
    }
    Ok(())
}

/// Send bytes in order, each segment until acknowledged; `false` if one never is.
pub fn try_all(tcp: &mut RawTcp, bytes: &[u8]) -> Result<bool> {
    for part in bytes.chunks(raw_tcp::SEGMENT) {
        let packet = tcp.segment(0, part);
        if !persist(tcp, &packet)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Send bytes in order, each segment until it is acknowledged.
pub fn persist_all(tcp: &mut RawTcp, bytes: &[u8]) -> Result<()> {
    for part in bytes.chunks(raw_tcp::SEGMENT) {
        let packet = tcp.segment(0, part);
        ensure!(persist(tcp, &packet)?, "the server never took {} bytes", part.len());
    }
    Ok(())
}
