//! TCP segments that pass an interface, as copied to a packet socket (packet(7)).
//! That is after the interface's XDP program and before TCP.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
        sockopt,
    },
};

use crate::netns::Namespace;

/// Length of the Ethernet header in bytes.
const ETHERNET: usize = 14;
/// Length of a VLAN tag in bytes.
const TAG: usize = 4;
/// Length of a TCP header without options in bytes.
const TCP: usize = 20;
/// Receive buffer of the socket in bytes.
const BUFFER: usize = 8 << 20;

/// Captured TCP segment.
#[derive(Clone, Debug)]
pub struct Captured {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    /// Bits of [`crate::packets::flag`].
    pub flags: u8,
    /// Window as in the header: not scaled.
    pub window: u16,
    /// Checksum field; between local namespaces perhaps the pseudo-header's sum only.
    pub checksum: u16,
    /// TCP options, as in the header.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

/// Capture of all packets into and out of a namespace.
pub struct Capture {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Capture {
    pub fn new(namespace: &Namespace) -> Result<Capture> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_NONBLOCK);
        let socket = namespace
            .run(|| socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll))?
            .context("opening a packet socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        Ok(Capture { socket, buffer: vec![0; 1 << 16] })
    }

    /// Capture incoming packets only, without spoofed ones that the namespace sends.
    pub fn incoming(namespace: &Namespace) -> Result<Capture> {
        let capture = Capture::new(namespace)?;
        let (fd, on) = (capture.socket.as_raw_fd(), 1i32);
        // SAFETY: the descriptor is open, and the option's value is an int of the given length.
        let result = unsafe {
            let (value, length) = ((&raw const on).cast(), size_of::<i32>() as u32);
            libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, value, length)
        };
        nix::Error::result(result).context("leaving out what goes out")?;
        Ok(capture)
    }

    /// Return the TCP segments that came since the last call.
    pub fn take(&mut self) -> Vec<Captured> {
        std::iter::from_fn(|| self.next_waiting()).flatten().collect()
    }

    /// Return the next TCP segment that satisfies `wanted`, or `None` when time is up.
    pub fn next(
        &mut self,
        timeout: Duration,
        mut wanted: impl FnMut(&Captured) -> bool,
    ) -> Result<Option<Captured>> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Some(packet) = self.next_waiting() {
                if let Some(segment) = packet.filter(|segment| wanted(segment)) {
                    return Ok(Some(segment));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left)?;
        }
    }

    /// Wait until there is a packet, or the time is up.
    pub fn wait(&self, timeout: Duration) -> Result<()> {
        // Rounded up: a poll of 0 ms would spin.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1))?;
        let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut waiting, timeout).context("waiting for a packet")?;
        Ok(())
    }

    /// Return the next packet that is already there, as an Ethernet frame.
    pub fn frame(&mut self) -> Option<&[u8]> {
        // The only error is that there is none.
        let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()).ok()?;
        self.buffer.get(..length)
    }

    /// Return the next packet that is there already, with its TCP segment if any.
    fn next_waiting(&mut self) -> Option<Option<Captured>> {
        self.frame().map(parse)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Parse Ethernet, VLAN tags, IP without extension headers, TCP; `None` for others.
fn parse(frame: &[u8]) -> Option<Captured> {
    let mut at = ETHERNET;
    while let 0x8100 | 0x88a8 = word(frame, at - 2)? {
        at += TAG;
    }
    let ip = frame.get(at..)?;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match word(frame, at - 2)? {
        0x0800 if *ip.get(9)? == 6 => {
            let address = |at| Some(Ipv4Addr::from(long(ip, at)?).into());
            let header = usize::from(ip[0] & 15) * 4;
            let end = usize::from(word(ip, 2)?);
            (address(12)?, address(16)?, ip.get(header..end)?)
        }
        0x86dd if *ip.get(6)? == 6 => {
            let address =
                |at: usize| Some(Ipv6Addr::from(*ip.get(at..)?.first_chunk::<16>()?).into());
            (address(8)?, address(24)?, ip.get(40..40 + usize::from(word(ip, 4)?))?)
        }
        _ => return None,
    };
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    Some(Captured {
        source: SocketAddr::new(source, word(tcp, 0)?),
        destination: SocketAddr::new(destination, word(tcp, 2)?),
        seq: long(tcp, 4)?,
        ack: long(tcp, 8)?,
        flags: *tcp.get(13)?,
        window: word(tcp, 14)?,
        checksum: word(tcp, 16)?,
        options: tcp.get(TCP..header)?.to_vec(),
        payload: tcp.get(header..)?.to_vec(),
    })
}
