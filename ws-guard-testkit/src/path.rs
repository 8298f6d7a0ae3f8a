//! A path that loses, delays and reorders packets, the same ones each time: a program in a namespace of
//! its own, between those of client and server.
//!
//! ```text
//!   client namespace              middle                     server namespace
//!   veth0  10.77.0.1 ..   ───   near ─▶ losses ─▶ far   ───   veth0  10.77.255.1
//! ```
//! Only the client's segments with payload are lost or come late; everything is delayed. Each packet
//! is one of a wire: offloads are off.
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
};

/// The middle's interfaces: towards the client, and towards the server.
pub const NEAR: &str = "near";
pub const FAR: &str = "far";
/// How long a thread may take to notice that it is over.
const LOOK: Duration = Duration::from_millis(100);
const BUFFER: usize = 8 << 20;
/// Bytes of Ethernet and IPv4 header, the latter without options.
const HEADERS: usize = 14 + 20;

/// What becomes of the client's segments with payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Of a thousand, so many are lost.
    pub lost: u32,
    /// Of a thousand, so many come so much later.
    pub late: u32,
    pub lateness: Duration,
    /// For everything, either way.
    pub delay: Duration,
    /// Which of them.
    pub seed: u64,
}

/// What becomes of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    Late,
    Lost,
}

impl Impairment {
    /// Of segment number `n`: always the same one.
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
    /// Segments with payload of the client that came.
    segments: u64,
}

/// Two namespaces, and the path between them.
pub struct Path {
    // The threads end before the namespaces go.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
    state: Arc<Mutex<State>>,
    pub pair: Pair,
    pub middle: Namespace,
}

impl Path {
    pub fn new(clients: u8) -> Result<Path> {
        let [client, middle, server] = ["client", "middle", "server"].map(Namespace::new);
        let (pair, middle) = (Pair { client: client?, server: server? }, middle?);
        for (namespace, end) in [(&pair.client, NEAR), (&pair.server, FAR)] {
            let peer = format!("type veth peer name {INTERFACE} netns {}", namespace.name());
            middle.ip(&format!("link add {end} {peer}"))?;
            middle.offloads(end, false)?;
            middle.ip(&format!("link set {end} up"))?;
        }
        pair.configure(PairOptions { clients, mtu: 1500, offloads: false })?;
        // What one connection learns of the path is not to help the next one.
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

    /// From now on, the count of segments begins anew.
    pub fn set(&self, impairment: Impairment) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) =
            State { impairment, segments: 0 };
    }

    /// A packet socket for what comes in at an interface of the middle.
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

/// Take nothing of what we send ourselves.
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

/// One direction.
struct Forwarder {
    from: Socket,
    to: Socket,
    upstream: bool,
    state: Arc<Mutex<State>>,
    /// Frames on their way, by when they arrive; the number keeps the order.
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    taken: u64,
}

impl Forwarder {
    fn new(from: Socket, to: Socket, upstream: bool, state: Arc<Mutex<State>>) -> Forwarder {
        Forwarder { from, to, upstream, state, waiting: BinaryHeap::new(), taken: 0 }
    }

    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        while !stop.load(Relaxed) {
            self.wait()?;
            while let Some(length) = self.receive(&mut buffer)? {
                self.take(&buffer[..length]);
            }
            self.send_due()?;
        }
        Ok(())
    }

    /// Until a frame comes, or the next one is due.
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

    fn take(&mut self, frame: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let impairment = state.impairment;
        let mut fate = Fate::Arrives;
        if self.upstream && has_payload(frame) {
            fate = impairment.fate(state.segments);
            state.segments += 1;
        }
        drop(state);
        let extra = match fate {
            Fate::Lost => return,
            Fate::Late => impairment.lateness,
            Fate::Arrives => Duration::ZERO,
        };
        let due = Instant::now() + impairment.delay + extra;
        self.waiting.push(Reverse((due, self.taken, frame.to_vec())));
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

/// IPv4 and TCP with payload.
fn has_payload(frame: &[u8]) -> bool {
    let Some(data) = frame.get(HEADERS + 12) else { return false };
    let ip = frame[12..14] == [8, 0] && frame[14] == 0x45 && frame[23] == 6;
    let length = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    ip && length > 20 + usize::from(data >> 4) * 4
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
