//! A server that is stopped for a while, as a pause of the machine or the runtime stops it.

use std::{thread::sleep, time::Duration};

use nix::sys::signal::Signal;
use ws_guard_testkit::frame::{Frame, opcode};

use super::{
    served::Served,
    stage::{Client, REQUEST, connect, refused, wait_for},
};

fn stall(served: &Served, time: Duration) {
    served.process.signal(Signal::SIGSTOP).unwrap();
    sleep(time);
    served.process.signal(Signal::SIGCONT).unwrap();
}

/// Wait until the log says that the level is this one.
fn reaches(served: &Served, level: &str) -> String {
    let said = served.process.wait_for(Duration::from_secs(10), |line| {
        line.contains(&format!("level=\"{level}\"")).then(|| line.to_owned())
    });
    said.unwrap()
}

fn answer(served: &Served) -> String {
    refused(connect(served.address), format!("{REQUEST}\r\n").as_bytes())
}

#[test]
fn after_a_stall_nobody_is_let_in_for_a_while_and_nobody_is_sent_away() {
    let served = Served::watchful(&["--stall-refuse", "200ms", "--stall-shed", "1h"]);
    let mut client = Client::connect(served.address);
    stall(&served, Duration::from_millis(600));
    let line = reaches(&served, "refuse");
    assert!(line.contains("new_connections_per_second="), "{line}");
    let refusal = answer(&served);
    assert!(refusal.starts_with("HTTP/1.1 503 ") && refusal.contains("retry-after: "), "{refusal}");
    client.send(&[Frame::text("still here")]);
    assert_eq!(client.message(), b"still here");
    reaches(&served, "calm");
    Client::connect(served.address);
}

#[test]
fn after_a_long_stall_idle_connections_go_a_few_at_a_time() {
    let served = Served::watchful(&[
        "--stall-refuse",
        "200ms",
        "--stall-shed",
        "400ms",
        "--shed-idle",
        "500ms",
    ]);
    let mut idle: Vec<Client> = (0..40).map(|_| Client::connect(served.address)).collect();
    let mut busy = Client::connect(served.address);
    sleep(Duration::from_millis(600));
    busy.send(&[Frame::text("busy")]);
    busy.message();
    stall(&served, Duration::from_millis(1000));
    // It was stopped for longer than a connection may be idle, so the busy one has to speak again.
    busy.send(&[Frame::text("busy")]);
    reaches(&served, "shed");
    assert_eq!(busy.message(), b"busy");
    reaches(&served, "calm");
    for client in &mut idle {
        client.stream.set_nonblocking(true).unwrap();
    }
    let closed = idle
        .iter_mut()
        .filter_map(|client| {
            let mut head = [0; 4];
            let n = std::io::Read::read(&mut client.stream, &mut head).ok()?;
            (n == 4).then_some(head)
        })
        .collect::<Vec<_>>();
    // One in twenty at a time, while the level lasts.
    assert!((1..=20).contains(&closed.len()), "{} of 40 were closed", closed.len());
    for head in closed {
        assert_eq!((head[0] & 0xF, u16::from_be_bytes([head[2], head[3]])), (opcode::CLOSE, 1013));
    }
    let alive = wait_for(Duration::from_secs(5), || {
        busy.send(&[Frame::text("alive")]);
        (busy.message() == b"alive").then_some(())
    });
    assert!(alive.is_some());
}
