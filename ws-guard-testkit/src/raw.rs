//! Segments built by hand and sent from a packet socket: spoofed floods and pings.
//!
//! The socket belongs to a client namespace of [`crate::netns`], so nothing sent here leaves it.
use std::{
    io::IoSlice,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{MsgFlags, MultiHeaders, sendmmsg},
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::netns::{INTERFACE, Pair};

/// Send buffer of the packet socket in bytes.
const SEND_BUFFER: usize = 4 << 20;
/// Maximum time for which an interface's queue may be full.
const QUEUE: Duration = Duration::from_secs(5);
/// Number of frames in one system call.
const BATCH: usize = 64;

/// TCP flags of a [`Segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    Syn,
    /// ACK, with PSH where there is payload.
    Ack,
    Rst,
    FinAck,
}

/// TCP segment to build.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
    pub payload: &'a [u8],
}

/// Sender of whole Ethernet frames from the client's interface.
pub struct Sender {
    socket: Socket,
    from: [u8; 6],
    to: [u8; 6],
}

impl Sender {
    /// Create a sender in the client namespace, with frames for the server's interface.
    pub fn new(pair: &Pair) -> Result<Sender> {
        let socket = pair.client.run(open)?.context("opening a packet socket: it needs root")?;
        Ok(Sender { socket, from: pair.client.mac(INTERFACE)?, to: pair.server.mac(INTERFACE)? })
    }

    /// Create a sender in the server's namespace, for the client's interface.
    pub fn of_server(pair: &Pair) -> Result<Sender> {
        let socket = pair.server.run(open)?.context("opening a packet socket: it needs root")?;
        Ok(Sender { socket, from: pair.server.mac(INTERFACE)?, to: pair.client.mac(INTERFACE)? })
    }

    /// Return the Ethernet source address.
    pub fn from(&self) -> [u8; 6] {
        self.from
    }

    /// Return the Ethernet destination address.
    pub fn to(&self) -> [u8; 6] {
        self.to
    }

    /// Build the Ethernet frame around a segment, with valid checksums.
    pub fn frame(&self, segment: &Segment) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        let ip = match (segment.source.ip(), segment.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            (from, to) => bail!("{from} and {to} are not of one address family"),
        };
        let (from, to) = (segment.source.port(), segment.destination.port());
        let tcp = ip.tcp(from, to, segment.seq, 0xFFFF);
        let tcp = match segment.flags {
            Flags::Syn => tcp.syn(),
            Flags::Ack if segment.payload.is_empty() => tcp.ack(segment.ack),
            Flags::Ack => tcp.psh().ack(segment.ack),
            Flags::Rst => tcp.rst(),
            Flags::FinAck => tcp.fin().ack(segment.ack),
        };
        let mut frame = Vec::with_capacity(tcp.size(segment.payload.len()));
        tcp.write(&mut frame, segment.payload).context("building a segment")?;
        Ok(frame)
    }

    pub fn send(&self, segment: &Segment) -> Result<()> {
        self.send_frame(&self.frame(segment)?)
    }

    /// Send any Ethernet frame, even malformed; wait while the interface is full.
    pub fn send_frame(&self, frame: &[u8]) -> Result<()> {
        let deadline = Instant::now() + QUEUE;
        loop {
            match self.socket.send(frame) {
                Ok(_) => return Ok(()),
                Err(error) if full(&error) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_micros(100));
                }
                Err(error) => return Err(error).context("sending a frame"),
            }
        }
    }

    /// Send several frames with as few system calls as possible.
    pub fn send_frames(&self, frames: &[Vec<u8>]) -> Result<()> {
        for batch in frames.chunks(BATCH) {
            let parts: Vec<[IoSlice; 1]> = batch.iter().map(|f| [IoSlice::new(f)]).collect();
            // The socket is bound: no frame needs an address.
            let addresses = vec![None::<()>; parts.len()];
            let mut headers = MultiHeaders::preallocate(parts.len(), None);
            let fd = self.socket.as_raw_fd();
            let flags = MsgFlags::empty();
            let sent = match sendmmsg(fd, &mut headers, &parts, &addresses, [], flags) {
                Ok(sent) => sent.count(),
                Err(nix::Error::ENOBUFS) => 0,
                Err(error) => return Err(error).context("sending frames"),
            };
            // The kernel stops at the first frame that it rejects; the reason is known after
            // sending that one alone.
            batch[sent..].iter().try_for_each(|frame| self.send_frame(frame))?;
        }
        Ok(())
    }

    /// Send `count` segments to `destination`, each from its own source ([`SPOOFED`]).
    /// Ports and sequence numbers are random: every other one is a SYN, the rest data with each of
    /// `payloads` in turn.
    pub fn spoofed_flood(
        &self,
        destination: SocketAddr,
        count: u32,
        payloads: &[Vec<u8>],
    ) -> Result<()> {
        let mut payloads = payloads.iter().cycle();
        let mut source = fastrand::u32(..);
        let mut frames = Vec::with_capacity(BATCH);
        for n in 0..count {
            let data = if n % 2 == 0 { None } else { payloads.next() };
            frames.push(self.frame(&Segment {
                source: next_source(&mut source, destination),
                destination,
                seq: fastrand::u32(..),
                ack: fastrand::u32(..),
                flags: if data.is_some() { Flags::Ack } else { Flags::Syn },
                payload: data.map_or(&[], |data| data),
            })?);
            if frames.len() == BATCH || n + 1 == count {
                self.send_frames(&frames)?;
                frames.clear();
            }
        }
        Ok(())
    }
}

/// Check for the error that the interface is full at the moment (packet(7)).
fn full(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Network of an IPv4 flood's sources, with room for four million.
/// It is shared address space (RFC 6598), not routed between networks.
pub const SPOOFED: &str = "100.64.0.0/10";
const SPOOFED_BITS: u32 = 0x003F_FFFF;

/// Return the source after `last`, with a random port.
/// It is of [`SPOOFED`], or a random one of IPv6's benchmarking range (RFC 5180).
fn next_source(last: &mut u32, like: SocketAddr) -> SocketAddr {
    *last = last.wrapping_add(1);
    let ip: IpAddr = match like.ip() {
        IpAddr::V4(_) => Ipv4Addr::from(0x6440_0000 | *last & SPOOFED_BITS).into(),
        IpAddr::V6(_) => {
            Ipv6Addr::from(0x2001_0002_0000 << 80 | fastrand::u128(..) & (u128::MAX >> 48)).into()
        }
    };
    SocketAddr::new(ip, fastrand::u16(1024..))
}

/// Open a packet socket bound to [`INTERFACE`] of this thread's namespace.
fn open() -> Result<Socket> {
    // Protocol 0: it only sends.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    bind(&socket, INTERFACE, 0)?;
    Ok(socket)
}

/// Bind a packet socket to an interface of this thread's namespace.
/// It receives packets of `protocol`, which is in network byte order (packet(7)).
pub(crate) fn bind(socket: &Socket, interface: &str, protocol: u16) -> Result<()> {
    let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    // SAFETY: the storage is large enough for every kind of address, zero is a valid value of each
    // field, and the length written is that of the structure written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = protocol;
            (*link).sll_ifindex = index as i32;
            *length = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
    }?;
    Ok(socket.bind(&address)?)
}
