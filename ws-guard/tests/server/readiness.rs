//! `/readyz` over HTTP; a server that is not ready goes on.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread::sleep,
    time::Duration,
};

use nix::sys::signal::Signal;
use ws_guard_testkit::frame::{Frame, opcode};

use super::{
    output::fill,
    served::Served,
    stage::{Client, PATIENCE, connect, connect_from, free_port, refused, wait_for},
};

/// A server with a port for health checks.
struct Asked {
    served: Served,
    health: SocketAddr,
}

impl Asked {
    fn start(more: &[&str]) -> Asked {
        let health = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listen = health.to_string();
        let served = Served::watchful(&[&["--metrics-listen", &listen], more].concat());
        Asked { served, health }
    }

    /// Return status and body at a path.
    fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = refused(connect(self.health), request.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Wait until it is not ready for this reason, while the process is alive.
    fn is_not_ready(&self, why: &str) {
        let mut last = (0, String::new());
        let told = wait_for(PATIENCE, || {
            last = self.get("/readyz");
            (last.0 == 503 && last.1.contains(why)).then_some(())
        });
        assert!(told.is_some(), "{last:?}, and not {why:?}");
        assert_eq!(self.get("/healthz"), (200, "ok\n".into()));
        assert_eq!(self.get("/health"), (200, "ok\n".into()));
    }

    fn is_ready(&self) {
        let ready = || (self.get("/readyz") == (200, "ready\n".into())).then_some(());
        assert!(wait_for(PATIENCE, ready).is_some(), "{:?}", self.get("/readyz"));
    }
}

const CALM: [&str; 4] = ["--stall-refuse", "1h", "--stall-shed", "1h"];

#[test]
fn not_while_it_closes_its_connections() {
    let mut asked = Asked::start(&[&CALM[..], &["--drain-timeout", "20s"]].concat());
    asked.is_ready();
    let mut client = Client::connect(asked.served.address);
    asked.served.process.signal(Signal::SIGTERM).unwrap();
    // This client is slow to answer the close.
    assert_eq!(client.close_code(), Some(1012));
    asked.is_not_ready("is ending");
    client.send(&[Frame::new(opcode::CLOSE, [0x03, 0xE9])]);
    drop(client);
    wait_for(PATIENCE, || asked.served.process.ended().unwrap()).expect("it ends");
}

#[test]
fn not_while_it_is_late() {
    let asked = Asked::start(&["--stall-refuse", "300ms", "--stall-shed", "1h"]);
    asked.is_ready();
    // The server catches up at once, and the test may be later on a busy machine.
    let told = (0..5).any(|_| {
        asked.served.process.signal(Signal::SIGSTOP).unwrap();
        sleep(Duration::from_millis(900));
        asked.served.process.signal(Signal::SIGCONT).unwrap();
        let (status, body) = asked.get("/readyz");
        status == 503 && body.contains("1 of 1 threads are late")
    });
    assert!(told, "it was never late");
    asked.is_ready();
}

#[test]
fn not_while_it_is_full() {
    let more = ["--max-connections", "2"];
    let asked = Asked::start(&[&CALM[..], &more].concat());
    let clients = [Client::connect(asked.served.address), Client::connect(asked.served.address)];
    asked.is_not_ready("connection limit reached (2)");
    drop(clients);
    asked.is_ready();
}

/// Fill the budget with output that a client does not read;
/// a client over the budget with an unfinished message is closed.
#[test]
fn not_while_buffers_are_over_the_budget() {
    let more = ["--memory-budget", "500000", "--max-output", "1048576"];
    let asked = Asked::start(&[&CALM[..], &more].concat());
    let stream = connect_from(Ipv4Addr::LOCALHOST, asked.served.address, Some(4096));
    let mut client = Client::request(stream, "", &[]);
    fill(&mut client);
    asked.is_not_ready("over the memory budget of 500000");
    drop(client);
    asked.is_ready();
}
