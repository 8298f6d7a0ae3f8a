//! Client on smoltcp, an independent TCP with window, retransmission and probes.
//!
//! Its address does not belong to the client namespace's kernel, so that only smoltcp answers the
//! server and its neighbour discovery.
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, Device, DeviceCapabilities, Medium},
    socket::tcp::{Socket, SocketBuffer, State},
    time,
    wire::{EthernetAddress, IpCidr},
};

use crate::{
    capture::Capture,
    frame::{Decoder, Frame, opcode},
    netns::Pair,
    packets::REQUEST,
    raw::Sender,
    raw_tcp::end_of_answer,
};

/// Length of an Ethernet frame with a packet of 1500 bytes.
const FRAME: usize = 1514;
/// Size of each of the socket's buffers: the window is offered without a shift.
const BUFFER: usize = 0xFFFF;
/// Time-out of the server's actions.
const PATIENCE: Duration = Duration::from_secs(20);

/// Client's interface for smoltcp; packets over the MTU are ignored: no offload.
struct Link {
    sender: Sender,
    capture: Capture,
}

struct Received(Vec<u8>);
struct Transmit<'a>(&'a Sender);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        // A frame that cannot be sent is lost, as on any network.
        if let Err(error) = self.0.send_frame(&frame) {
            eprintln!("a frame of smoltcp is lost: {error:#}");
        }
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(Received, Transmit<'_>)> {
        let frame = self.capture.frame()?.to_vec();
        Some((Received(frame), Transmit(&self.sender)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Transmit<'_>> {
        Some(Transmit(&self.sender))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

/// WebSocket connection, which progresses only inside [`ForeignTcp::wait`].
pub struct ForeignTcp {
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub client: SocketAddr,
    /// Number of bytes handed to smoltcp.
    written: u64,
    /// Bytes of the server before the answer is complete.
    answer: Vec<u8>,
    upgraded: bool,
    decoder: Decoder,
    /// Pongs received, and content of the messages.
    pub pongs: u64,
    pub messages: Vec<Vec<u8>>,
}

impl ForeignTcp {
    /// Connect and upgrade, from an address of no kernel, in a pair without offloads.
    pub fn connect(pair: &Pair, client: SocketAddr, server: SocketAddr) -> Result<ForeignTcp> {
        let sender = Sender::new(pair)?;
        let mut config = Config::new(EthernetAddress(sender.from()).into());
        config.random_seed = fastrand::u64(..);
        let mut link = Link { sender, capture: Capture::incoming(&pair.client)? };
        let mut interface = Interface::new(config, &mut link, time::Instant::now());
        let network = if client.is_ipv4() { 16 } else { 48 };
        let mut added = Ok(());
        interface.update_ip_addrs(|all| added = all.push(IpCidr::new(client.ip().into(), network)));
        added.map_err(|_| anyhow!("smoltcp has no room for an address"))?;
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut sockets = SocketSet::new(Vec::new());
        let mut socket = Socket::new(buffer(), buffer());
        let to = (server.ip(), server.port());
        socket
            .connect(interface.context(), to, (client.ip(), client.port()))
            .map_err(|error| anyhow!("smoltcp does not connect {client} to {server}: {error}"))?;
        let mut tcp = ForeignTcp {
            link,
            interface,
            handle: sockets.add(socket),
            sockets,
            client,
            written: 0,
            answer: Vec::new(),
            upgraded: false,
            decoder: Decoder::default(),
            pongs: 0,
            messages: Vec::new(),
        };
        let established = tcp.wait(PATIENCE, |tcp| tcp.socket().may_send())?;
        ensure!(established, "{server} does not answer the SYN of {client}");
        tcp.upgrade()?;
        Ok(tcp)
    }

    fn upgrade(&mut self) -> Result<()> {
        let written = self.write_some(REQUEST)?;
        ensure!(written == REQUEST.len(), "smoltcp takes {written} bytes of the request");
        if !self.wait(PATIENCE, |tcp| tcp.upgraded)? {
            bail!("no answer to the upgrade: {:?}", String::from_utf8_lossy(&self.answer));
        }
        Ok(())
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// Check that neither side has ended the connection.
    pub fn is_open(&self) -> bool {
        self.socket().state() == State::Established
    }

    /// Write as many of `bytes` as smoltcp's buffer has room for; return their number.
    pub fn write_some(&mut self, bytes: &[u8]) -> Result<usize> {
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        let written = socket.send_slice(bytes);
        let written = written.map_err(|error| anyhow!("the connection takes nothing: {error}"))?;
        self.written += written as u64;
        Ok(written)
    }

    /// Return the number of bytes that the server has acknowledged.
    pub fn acked(&self) -> u64 {
        self.written - self.socket().send_queue() as u64
    }

    /// Progress until `done`; `false` when the time is up.
    pub fn wait(
        &mut self,
        timeout: Duration,
        mut done: impl FnMut(&ForeignTcp) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let now = time::Instant::now();
            self.interface.poll(now, &mut self.link, &mut self.sockets);
            self.read()?;
            if done(self) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let due = self.interface.poll_delay(now, &self.sockets);
            let due = due.map_or(left, |due| Duration::from_micros(due.total_micros()));
            if !due.is_zero() {
                self.link.capture.wait(due.min(left))?;
            }
        }
    }

    /// Process bytes in order, as an answer and then as frames.
    fn read(&mut self) -> Result<()> {
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        while socket.can_recv() {
            let bytes = socket.recv(|bytes| (bytes.len(), bytes.to_vec()));
            let bytes = bytes.map_err(|error| anyhow!("reading from smoltcp: {error}"))?;
            if self.upgraded {
                self.decoder.push(&bytes);
                continue;
            }
            self.answer.extend(bytes);
            if let Some(end) = end_of_answer(&self.answer) {
                self.upgraded = true;
                self.decoder.push(&self.answer.split_off(end));
            }
        }
        while let Some(frame) = self.decoder.next_frame() {
            self.note(frame);
        }
        Ok(())
    }

    fn note(&mut self, frame: Frame) {
        match frame.opcode {
            opcode::PONG => self.pongs += 1,
            opcode::TEXT | opcode::BINARY => self.messages.push(frame.payload),
            _ => {}
        }
    }

    /// Leave with a reset, so that the server's socket does not wait.
    pub fn reset(mut self) -> Result<()> {
        self.sockets.get_mut::<Socket>(self.handle).abort();
        let gone = self.wait(PATIENCE, |tcp| tcp.socket().local_endpoint().is_none())?;
        gone.then_some(()).context("smoltcp does not send the reset")
    }
}
