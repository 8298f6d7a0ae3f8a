//! A server that leaves a service while clients keep coming: none is refused.
//!
//! As in a cluster, the load balancer learns late that the server ends: `/readyz` says so, and
//! hundreds more clients come before it reacts.
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    served::Served,
    stage::{Client, PATIENCE, REQUEST, connect, free_port, refused, wait_for},
};

/// Number of new connections, half of them for the ending server.
/// They go there while it is an end point.
const CLIENTS: usize = 1000;
/// Number of connections before the signal.
const BEFORE: usize = 200;
/// Number of connections between the first `503` and the removal of the end point.
const DELAY: usize = 500;

fn is_ready(health: SocketAddr) -> bool {
    let request = b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    refused(connect(health), request).starts_with("HTTP/1.1 200")
}

/// Check whether a client is upgraded.
pub fn is_let_in(server: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&server, PATIENCE) else { return false };
    let patience = stream.set_read_timeout(Some(PATIENCE));
    let asked = stream.write_all(format!("{REQUEST}\r\n").as_bytes());
    let mut status = [0; 12];
    let read = stream.read_exact(&mut status);
    patience.and(asked).and(read).is_ok() && status.ends_with(b" 101")
}

#[test]
fn no_connection_is_refused_while_the_end_point_is_removed() {
    let health = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listen = health.to_string();
    let mut ends = Served::start(&["--metrics-listen", &listen, "--shutdown-delay", "10m"]);
    let stays = Served::start(&[]);
    let mut old = Client::connect(ends.address);
    let (mut removed_at, mut refused, mut late) = (CLIENTS, 0, 0);
    for n in 0..CLIENTS {
        if n == BEFORE {
            ends.process.signal(Signal::SIGTERM).unwrap();
            wait_for(PATIENCE, || (!is_ready(health)).then_some(())).expect("it is not ready");
            removed_at = n + DELAY;
        }
        let is_there = n < removed_at && n % 2 == 0;
        late += usize::from(is_there && n >= BEFORE);
        let server = if is_there { ends.address } else { stays.address };
        refused += usize::from(!is_let_in(server));
    }
    println!("{refused} of {CLIENTS} refused, {late} came after the signal");
    assert_eq!((refused, late), (0, DELAY / 2));
    // It has not even begun to close open connections; a second signal ends the wait.
    assert!(ends.process.ended().unwrap().is_none(), "it ended before its time");
    old.send(&[ws_guard_testkit::frame::Frame::text("still here")]);
    assert_eq!(old.message(), b"still here");
    ends.process.signal(Signal::SIGTERM).unwrap();
    assert_eq!(old.close_code(), Some(1012));
    drop(old);
    wait_for(Duration::from_secs(30), || ends.process.ended().unwrap()).expect("it ends");
}
