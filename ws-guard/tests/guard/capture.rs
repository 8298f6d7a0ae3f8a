//! TCP segments as they arrive behind the XDP program and before TCP: a packet socket gets its copy in
//! between (packet(7)).
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use ws_guard_testkit::netns::Namespace;

/// Bytes of the Ethernet header.
const ETHERNET: usize = 14;
/// Bytes that the socket holds for us.
const BUFFER: usize = 8 << 20;

/// A captured TCP segment.
#[derive(Clone, Debug)]
pub struct Captured {
    pub source: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    /// The checksum field; between local namespaces it may hold the pseudo-header's sum only.
    pub checksum: u16,
    pub payload: Vec<u8>,
}

/// Everything that comes into or leaves a namespace.
pub struct Capture(OwnedFd);

impl Capture {
    pub fn new(namespace: &Namespace) -> Result<Capture> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_NONBLOCK);
        let opened = namespace
            .run(|| socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll))?
            .context("opening a packet socket")?;
        setsockopt(&opened, sockopt::RcvBufForce, &BUFFER)?;
        Ok(Capture(opened))
    }

    /// The TCP segments that came since the last call.
    pub fn take(&self) -> Vec<Captured> {
        let mut buffer = vec![0; 1 << 16];
        let mut segments = Vec::new();
        // The only error is that there is no more.
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            segments.extend(parse(&buffer[..length]));
        }
        segments
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Ethernet, IP without extension headers, TCP; `None` for anything else.
fn parse(frame: &[u8]) -> Option<Captured> {
    let ip = frame.get(ETHERNET..)?;
    let (source, tcp): (IpAddr, &[u8]) = match word(frame, 12)? {
        0x0800 if *ip.get(9)? == 6 => {
            let address = |at| Some(Ipv4Addr::from(long(ip, at)?).into());
            let header = usize::from(ip[0] & 15) * 4;
            let end = usize::from(word(ip, 2)?);
            (address(12)?, ip.get(header..end)?)
        }
        0x86dd if *ip.get(6)? == 6 => {
            let address =
                |at: usize| Some(Ipv6Addr::from(*ip.get(at..)?.first_chunk::<16>()?).into());
            (address(8)?, ip.get(40..40 + usize::from(word(ip, 4)?))?)
        }
        _ => return None,
    };
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    Some(Captured {
        source: SocketAddr::new(source, word(tcp, 0)?),
        seq: long(tcp, 4)?,
        ack: long(tcp, 8)?,
        checksum: word(tcp, 16)?,
        payload: tcp.get(header..)?.to_vec(),
    })
}
