//! What is kept of a connection; also compiled into the benchmark.
use ws_guard_common::{
    handshake::HeadScanner,
    tracker::{Tracker, Walk},
};

/// What the programs are told.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Settings {
    /// The protected ports, host byte order.
    pub ports: [u32; 2],
    /// Pings of a connection that pass; the others are defused.
    pub limit: u32,
    /// Connections are followed, not only put into the map: 1, otherwise 0.
    pub follows: u32,
}

/// A connection at its server's socket.
///
/// The walk through a message is here and not in memory of a CPU: where a process reads what came while
/// it held its socket, the program runs with interrupts on, and another socket's may run in between.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Connection {
    pub walk: Walk,
    pub tracker: Tracker,
    /// The request, as far as it has come.
    pub head: HeadScanner,
    /// Bytes of the stream before the message at hand.
    pub position: u32,
    /// Of the message at hand, the next byte of the request.
    pub at: u32,
    /// What the message at hand begins with: 0 for a request that is not over.
    pub state: u32,
    /// How the latest step of the walk ended: [`ws_guard_common::tracker::Step`].
    pub step: u32,
    /// Messages that came through the program, and pings among the frames in them.
    pub messages: u64,
    pub pings: u64,
}

impl Default for Connection {
    fn default() -> Connection {
        let tracker = Tracker::new(0, 0);
        Connection {
            walk: Walk::new(tracker, &tracker, 0, 0),
            tracker,
            head: HeadScanner::default(),
            position: 0,
            at: 0,
            state: 0,
            step: 0,
            messages: 0,
            pings: 0,
        }
    }
}
