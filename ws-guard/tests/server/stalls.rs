//! A stopped server, as by a pause of the machine or the runtime.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use ws_guard_server::{
    HandlerKind,
    topics::bus::{Bus, Promise, Publication, Stored},
};
use ws_guard_testkit::frame::{Frame, opcode};

use super::{
    served::Served,
    stage::{
        Client, PATIENCE, REQUEST, Stage, connect, connect_from, free_port, refused, unlimited,
        wait_for,
    },
};

fn stall(served: &Served, time: Duration) {
    served.process.signal(Signal::SIGSTOP).unwrap();
    sleep(time);
    served.process.signal(Signal::SIGCONT).unwrap();
}

/// Wait until the log reports this level.
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
fn after_a_stall_new_connections_are_refused_for_a_while_and_open_ones_stay() {
    let served = Served::watchful(&["--stall-refuse", "200ms", "--stall-shed", "1h"]);
    let mut client = Client::connect(served.address);
    stall(&served, Duration::from_millis(600));
    let line = reaches(&served, "refuse");
    for field in ["new_connections_per_second=", "reconnects_per_second=0", "queued_bytes=0"] {
        assert!(line.contains(field), "{line}");
    }
    assert!(line.contains("during=\"quiet\""), "{line}");
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
    // It was stopped for longer than a connection may be idle, so the busy client has to send
    // again.
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
            let n = client.stream.read(&mut head).ok()?;
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

/// The same pause, with clients that connect and leave all the time:
/// reported and counted separately.
#[test]
fn a_stall_in_a_surge_of_connections_is_told_from_one_without() {
    let port = free_port();
    let metrics = format!("127.0.0.1:{port}");
    let served = Served::watchful(&[
        "--stall-refuse",
        "250ms",
        "--stall-shed",
        "1h",
        "--metrics-listen",
        &metrics,
    ]);
    let over = Arc::new(AtomicBool::new(false));
    let (address, until) = (served.address, over.clone());
    let surge = std::thread::spawn(move || {
        let mut count = 0;
        while !until.load(Ordering::Relaxed) {
            // Whether it is let in or not.
            let mut stream = connect(address);
            stream.write_all(format!("{REQUEST}\r\n").as_bytes()).unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            count += 1;
        }
        count
    });
    sleep(Duration::from_millis(1500));
    stall(&served, Duration::from_millis(600));
    let line = reaches(&served, "refuse");
    over.store(true, Ordering::Relaxed);
    let count = surge.join().unwrap();
    assert!(line.contains("during=\"reconnects\""), "{line} ({count} connections)");
    let changes = "wsguard_server_stall_changes_total{during=\"reconnects\",level=\"refuse\"}";
    assert!(Served::metric(port, changes) >= 1.0);
    assert!(Served::metric(port, "wsguard_server_reconnects_total") >= 20.0);
}

/// A ping that arrived while the server was stopped:
/// its wait is measured from its arrival in the kernel.
#[test]
fn the_time_from_a_ping_to_its_pong_counts_the_pause() {
    let port = free_port();
    let metrics = format!("127.0.0.1:{port}");
    let calm = ["--stall-refuse", "1h", "--stall-shed", "1h", "--metrics-listen", &metrics];
    let served = Served::watchful(&calm);
    let mut client = Client::connect(served.address);
    let sum = || Served::metric(port, "wsguard_server_pong_seconds_sum");
    client.send(&[Frame::ping("quick")]);
    assert_eq!(client.next().unwrap().payload, b"quick");
    let before = sum();
    served.process.signal(Signal::SIGSTOP).unwrap();
    // It has stopped only after all its threads have.
    sleep(Duration::from_millis(100));
    client.send(&[Frame::ping("slow")]);
    sleep(Duration::from_millis(500));
    served.process.signal(Signal::SIGCONT).unwrap();
    assert_eq!(client.next().unwrap().payload, b"slow");
    let grown = wait_for(Duration::from_secs(5), || Some(sum() - before).filter(|t| *t > 0.4));
    assert!(grown.is_some_and(|time| time < 5.0), "{} then {}", before, sum());
}

/// Pings that wait for a client that does not read cause no refusals of others.
#[test]
fn a_client_that_does_not_read_is_no_stall() {
    let stage = Stage::start(|config| {
        // Less than the time without reads, more than a busy machine delays a thread.
        config.stalls.refuse = Duration::from_millis(1500);
        config.pings = unlimited();
    });
    let stream = connect_from([127, 0, 0, 1].into(), stage.address, Some(4096));
    let mut client = Client::request(stream, "", &[]);
    client.stream.set_nonblocking(true).unwrap();
    // More than fits in all buffers on the path, with pings in between.
    let frames = [Frame::text(&"x".repeat(30_000)), Frame::ping("?")];
    let bytes = ws_guard_testkit::frame::encode(&frames).repeat(400);
    let mut sent = 0;
    wait_for(Duration::from_secs(2), || {
        sent += client.stream.write(&bytes[sent..]).unwrap_or(0);
        None::<()>
    });
    assert!(sent < bytes.len(), "everything went out");
    client.stream.set_nonblocking(false).unwrap();
    let mut writer = client.stream.try_clone().unwrap();
    let rest = bytes[sent..].to_vec();
    let writing = std::thread::spawn(move || writer.write_all(&rest));
    for _ in 0..400 {
        assert_eq!(client.message().len(), 30_000);
    }
    writing.join().unwrap().unwrap();
    // The canary checks every 10 ms.
    sleep(Duration::from_millis(100));
    let sum = stage.metric("wsguard_server_pong_seconds_sum");
    assert!(sum < 1.5, "{sum} s from pings to pongs");
    assert_eq!(refusals(&stage), 0.0);
}

/// A slow bus, on the publisher's thread.
struct Slow(fn(Duration));

/// Threshold of a stall, more than a busy machine delays a thread;
/// and the time that the bus takes: a little more, so that it need not have the CPU for all of that
/// time.
const STALL: Duration = Duration::from_secs(2);
const TAKES: Duration = Duration::from_millis(2200);

impl Bus for Slow {
    fn publish(&self, _: Publication, promise: Promise<Stored>) {
        self.0(TAKES);
        promise(Ok(Stored::default()));
    }
}

fn work(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn with_slow_bus(take: fn(Duration)) -> Stage {
    Stage::start_on(
        |_| Arc::new(Slow(take)),
        |config| {
            config.handler = HandlerKind::Topic(Box::default());
            config.stalls.refuse = STALL;
        },
    )
}

fn publish(publisher: &mut Client) {
    publisher.send(&[Frame::text(r#"{"type":"publish","topic":"a","data":1}"#)]);
}

fn refusals(stage: &Stage) -> f64 {
    let changes = "wsguard_server_stall_changes_total";
    let count =
        |during| stage.metric(&format!("{changes}{{during=\"{during}\",level=\"refuse\"}}"));
    ["quiet", "surge", "reconnects", "queues"].into_iter().map(count).sum()
}

#[test]
fn what_one_connection_takes_is_charged_to_it() {
    let stage = with_slow_bus(work);
    let [mut publisher, mut other] = [(); 2].map(|()| Client::connect(stage.address));
    publish(&mut publisher);
    sleep(TAKES / 20);
    // A client that waits for it, and one that connects meanwhile.
    other.send(&[Frame::ping("?")]);
    Client::connect(stage.address);
    assert_eq!(other.next().unwrap().payload, b"?");
    publisher.message();
    let charged = || stage.metric("wsguard_server_charged_seconds_total");
    let enough = (TAKES - STALL).as_secs_f64();
    let charged = wait_for(PATIENCE, || Some(charged()).filter(|charged| *charged >= enough));
    assert!(charged.is_some(), "{charged:?}");
    // The canary has checked the pong as well.
    sleep(Duration::from_millis(100));
    assert_eq!(refusals(&stage), 0.0);
}

/// The thread did nothing, so the connection whose turn it was did not keep it.
#[test]
fn a_pause_in_the_turn_of_a_connection_is_a_stall() {
    let stage = with_slow_bus(sleep);
    let mut publisher = Client::connect(stage.address);
    publish(&mut publisher);
    publisher.message();
    let refused = wait_for(PATIENCE, || (refusals(&stage) > 0.0).then_some(()));
    assert!(refused.is_some(), "{}", refusals(&stage));
}
