//! Path that loses, delays and reorders packets, the same ones each time.
//!
//! It is a program in its own namespace, between those of client and server.
//!
//! ```text
//! client namespace              middle                     server namespace
//! veth0  10.77.0.1 ..   ───   veth0 ─▶ losses ─▶ far  ───   veth0  10.77.255.1
//! ```
//! Only the client's segments with payload are lost or late, cut or merged, or those of
//! both with [`Impairment::both`]; everything is delayed. Each packet is one of a wire: offloads
//! are off. With [`Path::merged`], the client's segments arrive at the middle as super-packets, and
//! are cut there, as behind a node that merges what it receives.
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    libc,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    netns::{INTERFACE, Namespace, Pair, PairOptions},
    raw::bind,
    recut::{self, Layout},
};

/// Interfaces of the middle: towards the client, and towards the server.
pub const NEAR: &str = INTERFACE;
pub const FAR: &str = "far";
/// Maximum time for a thread to notice its end.
const LOOK: Duration = Duration::from_millis(100);
const BUFFER: usize = 8 << 20;
/// Maximum length of a packet, and of a cut segment's payload, in bytes.
const MTU: usize = 1500;
const MSS: usize = 1428;

/// Treatment of the client's segments with payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Lost segments in a thousand.
    pub lost: u32,
    /// Delayed segments in a thousand, and their delay.
    pub late: u32,
    pub lateness: Duration,
    /// Delay of every packet in either direction, and its maximum random deviation.
    /// As with netem, the deviation lets packets overtake each other.
    pub delay: Duration,
    pub jitter: Duration,
    /// `true` if the server's segments are treated like the client's.
    pub both: bool,
    /// Numbers in a thousand that are cut in two, and merged with the previous one.
    pub cut: u32,
    pub merged: u32,
    /// Maximum packet length; longer ones are dropped and reported back; 0: none.
    pub mtu: u16,
    /// Seed of the choice.
    pub seed: u64,
}

/// Treatment of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    Late,
    Lost,
}

impl Impairment {
    /// Return the treatment of segment number `n`, always the same.
    fn fate(&self, n: u64) -> Fate {
        let lot = fastrand::Rng::with_seed(self.seed << 32 | n).u32(..1000);
        match lot {
            lot if lot < self.lost => Fate::Lost,
            lot if lot < self.lost + self.late => Fate::Late,
            _ => Fate::Arrives,
        }
    }
}

#[derive(Default)]
struct State {
    impairment: Impairment,
    /// Number of segments with payload received from the client.
    segments: u64,
}

impl Impairment {
    /// Return a received segment as forwarded: cut, or whole.
    fn pieces(&self, n: u64, frame: &[u8], layout: Layout) -> Vec<Vec<u8>> {
        let mut random = fastrand::Rng::with_seed(self.seed << 32 | n | 1 << 31);
        let longest = match random.u32(..1000) < self.cut && layout.len() > 1 {
            true => random.usize(layout.len().div_ceil(2)..layout.len()),
            false if layout.packet() > MTU => MSS,
            false => layout.len(),
        };
        recut::cut(frame, layout, longest)
    }

    /// Check whether the segment after number `n` is merged with it.
    fn merges(&self, n: u64) -> bool {
        fastrand::Rng::with_seed(self.seed << 32 | n | 1 << 30).u32(..1000) < self.merged
    }
}

/// Two namespaces, and the path between them.
pub struct Path {
    // The threads end before the namespaces are removed.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
    state: Arc<Mutex<State>>,
    pub pair: Pair,
    pub middle: Namespace,
}

impl Path {
    pub fn new(clients: u8) -> Result<Path> {
        Path::with(clients, false)
    }

    /// Create a path whose middle sees super-packets of the client.
    pub fn merged(clients: u8) -> Result<Path> {
        Path::with(clients, true)
    }

    fn with(clients: u8, merged: bool) -> Result<Path> {
        let [client, middle, server] = ["client", "middle", "server"].map(Namespace::new);
        let (pair, middle) = (Pair { client: client?, server: server? }, middle?);
        for (namespace, end) in [(&pair.client, NEAR), (&pair.server, FAR)] {
            let peer = format!("type veth peer name {INTERFACE} netns {}", namespace.name());
            middle.ip(&format!("link add {end} {peer}"))?;
            middle.offloads(end, false)?;
            middle.ip(&format!("link set {end} up"))?;
        }
        pair.configure(PairOptions { clients, mtu: 1500, offloads: false })?;
        if merged {
            pair.client.offloads(INTERFACE, true)?;
            middle.offloads(NEAR, true)?;
        }
        // One connection's knowledge of the path shall not help the next one.
        pair.client.sysctl("net/ipv4/tcp_no_metrics_save", "1")?;
        let mut path =
            Path { stop: Arc::default(), threads: Vec::new(), state: Arc::default(), pair, middle };
        for (from, to, upstream) in [(NEAR, FAR, true), (FAR, NEAR, false)] {
            let (from, to) = (path.socket(from)?, path.socket(to)?);
            let (stop, state) = (path.stop.clone(), path.state.clone());
            let forward = move || Forwarder::new(from, to, upstream, state).run(&stop);
            path.threads.push(thread::spawn(forward));
        }
        Ok(path)
    }

    /// Change the impairment from now on, and restart the count of segments.
    pub fn set(&self, impairment: Impairment) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) =
            State { impairment, segments: 0 };
    }

    /// Open a packet socket for arrivals at an interface of the middle.
    fn socket(&self, interface: &str) -> Result<Socket> {
        let open = || -> Result<Socket> {
            let all = (libc::ETH_P_ALL as u16).to_be();
            let socket =
                Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(all))))?;
            socket.set_recv_buffer_size(BUFFER)?;
            socket.set_send_buffer_size(BUFFER)?;
            socket.set_nonblocking(true)?;
            ignore_outgoing(&socket)?;
            bind(&socket, interface, all)?;
            Ok(socket)
        };
        self.middle.run(open)?.with_context(|| format!("a packet socket at {interface}"))
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("forwarding ended: {error:#}"),
                Err(_) => eprintln!("forwarding panicked"),
            }
        }
    }
}

/// Receive none of our own packets.
fn ignore_outgoing(socket: &Socket) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(set).context("PACKET_IGNORE_OUTGOING")?;
    Ok(())
}

/// Forwarder of one direction.
struct Forwarder {
    from: Socket,
    to: Socket,
    upstream: bool,
    state: Arc<Mutex<State>>,
    /// Segment of the client that may be merged with the next one, and its number.
    held: Option<(u64, Vec<u8>)>,
    /// Frames in transit, by arrival time; the number keeps their order.
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    taken: u64,
}

impl Forwarder {
    fn new(from: Socket, to: Socket, upstream: bool, state: Arc<Mutex<State>>) -> Forwarder {
        let waiting = BinaryHeap::new();
        Forwarder { from, to, upstream, state, held: None, waiting, taken: 0 }
    }

    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let mut buffer = vec![0; 1 << 17];
        while !stop.load(Relaxed) {
            self.wait()?;
            while let Some(length) = self.receive(&mut buffer)? {
                self.take(&buffer[..length])?;
            }
            self.let_go();
            self.send_due()?;
        }
        Ok(())
    }

    /// Wait until a frame comes, or the next one is due.
    fn wait(&self) -> Result<()> {
        let due = self.waiting.peek().map_or(LOOK, |Reverse((due, ..))| {
            due.saturating_duration_since(Instant::now()).min(LOOK)
        });
        let mut waiting = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut waiting, Some(TimeSpec::from(due)), None) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error).context("waiting for a frame"),
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        let fd = self.from.as_raw_fd();
        match nix::sys::socket::recv(fd, buffer, nix::sys::socket::MsgFlags::empty()) {
            Ok(length) => Ok(Some(length)),
            // The interface goes down when its namespace is removed.
            Err(nix::Error::EAGAIN | nix::Error::ENETDOWN) => Ok(None),
            Err(error) => Err(error).context("receiving a frame"),
        }
    }

    fn take(&mut self, frame: &[u8]) -> Result<()> {
        let impairment = self.impairment();
        let Some(layout) = Layout::of(frame).filter(|_| self.upstream || impairment.both) else {
            self.push(self.delay(impairment), frame.to_vec());
            return Ok(());
        };
        if layout.is_empty() {
            // With offloads its checksum was left to the interface.
            self.push(self.delay(impairment), recut::sealed(frame, layout));
            return Ok(());
        }
        if impairment.mtu > 0 && layout.packet() > impairment.mtu.into() {
            // Back to its sender.
            let answer = recut::too_long(frame, layout, impairment.mtu);
            self.from.send(&answer).context("telling that a packet is too long")?;
            return Ok(());
        }
        for piece in impairment.pieces(self.taken, frame, layout) {
            self.segment(impairment, piece);
        }
        Ok(())
    }

    fn impairment(&self) -> Impairment {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).impairment
    }

    /// Return the next segment's number.
    fn next_number(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.segments += 1;
        state.segments - 1
    }

    /// Process a client's segment, which may be lost, late, or merged with another.
    fn segment(&mut self, impairment: Impairment, piece: Vec<u8>) {
        let number = self.next_number();
        let extra = match impairment.fate(number) {
            Fate::Lost => return,
            Fate::Late => impairment.lateness,
            Fate::Arrives => Duration::ZERO,
        };
        if impairment.merged == 0 {
            self.push(self.delay(impairment) + extra, piece);
            return;
        }
        let merged = match &self.held {
            Some((held, first)) if impairment.merges(*held) => recut::merge(first, &piece, MTU),
            _ => None,
        };
        if merged.is_none() {
            self.let_go();
        }
        self.held = Some((number, merged.unwrap_or(piece)));
    }

    /// Forward the segment that may be merged, without the next one.
    fn let_go(&mut self) {
        if let Some((_, frame)) = self.held.take() {
            let delay = self.delay(self.impairment());
            self.push(delay, frame);
        }
    }

    /// Return the delay of the next packet.
    fn delay(&self, impairment: Impairment) -> Duration {
        if impairment.jitter.is_zero() {
            return impairment.delay;
        }
        let seed = impairment.seed << 32 | self.taken << 1 | u64::from(self.upstream);
        let part = fastrand::Rng::with_seed(seed).f64() * 2.0;
        (impairment.delay + impairment.jitter.mul_f64(part)).saturating_sub(impairment.jitter)
    }

    fn push(&mut self, after: Duration, frame: Vec<u8>) {
        self.waiting.push(Reverse((Instant::now() + after, self.taken, frame)));
        self.taken += 1;
    }

    fn send_due(&mut self) -> Result<()> {
        while let Some(Reverse((due, ..))) = self.waiting.peek()
            && *due <= Instant::now()
            && let Some(Reverse((_, _, frame))) = self.waiting.pop()
        {
            match self.to.send(&frame) {
                Ok(_) => {}
                // A full queue loses packets, as anywhere.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error).context("sending a frame"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_lost_and_late_as_shall_be_and_always_the_same() {
        let impairment = Impairment { lost: 50, late: 10, seed: 7, ..Impairment::default() };
        let count = |fate| (0..100_000).filter(|n| impairment.fate(*n) == fate).count();
        assert!((4_700..5_300).contains(&count(Fate::Lost)), "{}", count(Fate::Lost));
        assert!((850..1_150).contains(&count(Fate::Late)), "{}", count(Fate::Late));
        let other = Impairment { seed: 8, ..impairment };
        assert!((0..1000).any(|n| impairment.fate(n) != other.fate(n)));
        assert!((0..1000).all(|n| impairment.fate(n) == impairment.fate(n)));
    }
}
