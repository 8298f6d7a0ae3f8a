//! Memory of connections, including the most that a client can claim.
//! The server is a separate process, whose anonymous memory the kernel counts.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::{
    served::Served,
    stage::{Client, PATIENCE, REQUEST, Stage, connect, connect_from, wait_for},
};

/// Send pings at full speed and read nothing, for `time`;
/// return their number, and the most anonymous memory of the server meanwhile.
fn flood(served: &Served, time: Duration) -> (u64, u64) {
    let stream = connect_from([127, 0, 0, 1].into(), served.address, None);
    let mut client = Client::request(stream, "", &[]);
    let pings = encode(&vec![Frame::ping(vec![0x55; 125]); 500]);
    client.stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let (start, mut sent, mut at) = (Instant::now(), 0, 0);
    let (mut most, mut looked) = (0, start);
    while start.elapsed() < time {
        if looked.elapsed() > Duration::from_millis(100) {
            looked = Instant::now();
            most = most.max(served.anonymous());
        }
        match client.stream.write(&pings[at..]) {
            Ok(n) => {
                sent += n as u64;
                at = (at + n) % pings.len();
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // The client may be cut off, and comes again.
            Err(_) => {
                let stream = connect_from([127, 0, 0, 1].into(), served.address, None);
                client = Client::request(stream, "", &[]);
                client.stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
                at = 0;
            }
        }
    }
    (sent / 131, most.max(served.anonymous()))
}

fn grows_by(more: &[&str], time: Duration) -> (u64, u64) {
    let served = Served::start(more);
    // The first connection makes buffers that stay.
    let mut first = Client::connect(served.address);
    first.send(&[Frame::text("hello"), Frame::ping("?")]);
    first.message();
    let before = served.anonymous();
    let (pings, most) = flood(&served, time);
    (most.saturating_sub(before), pings)
}

/// 15 s of pings from a client that reads nothing.
#[test]
fn a_flood_of_pings_takes_no_memory() {
    for limit in ["30", "0"] {
        let (growth, pings) = grows_by(&["--max-ping-rate", limit], Duration::from_secs(15));
        println!("limit {limit}: {pings} pings, grown by {growth} bytes");
        assert!(pings > 10_000, "{pings} pings are no flood");
        assert!(growth < 512 * 1024, "limit {limit}: {pings} pings, grown by {growth} bytes");
    }
}

/// Open idle connections with a source address each, so that ports do not run out.
fn idle(address: SocketAddr, count: usize, fields: &str, talk: bool) -> Vec<TcpStream> {
    (0..count)
        .map(|number| {
            let source = [127, 0, 1 + (number / 5000) as u8, 1].into();
            let stream = connect_from(source, address, None);
            let mut client = Client::request(stream, fields, &[]);
            if talk {
                client.send(&[Frame::text(&"hello ".repeat(200))]);
                client.message();
            }
            client.stream
        })
        .collect()
}

fn per_connection(count: usize, fields: &str, talk: bool) -> u64 {
    let served = Served::start(&[]);
    drop(idle(served.address, 50, fields, true));
    std::thread::sleep(Duration::from_millis(200));
    let before = served.anonymous();
    let mut streams = idle(served.address, count, fields, talk);
    std::thread::sleep(Duration::from_millis(300));
    let each = served.anonymous().saturating_sub(before) / count as u64;
    let last = streams.last_mut().unwrap();
    last.set_nonblocking(true).unwrap();
    assert!(last.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    each
}

/// Check the KiB of an idle connection: plain, after use, with compression.
#[test]
fn an_idle_connection_is_small() {
    const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    for (what, fields, talk, most) in
        [("plain", "", false, 2), ("used", "", true, 3), ("deflate", DEFLATE, true, 4)]
    {
        let each = per_connection(3000, fields, talk);
        println!("{what}: {each} bytes a connection");
        assert!(each <= most * 1024, "{what}: {each} bytes a connection");
    }
}

/// Memory of connections is counted, and is given back;
/// past the budget new connections are refused.
#[test]
fn the_budget_of_all_connections_together() {
    let stage = Stage::start(|config| config.memory_budget = 1 << 20);
    let buffered = || stage.metric("wsguard_server_buffered_bytes");
    let mut holding: Vec<Client> = Vec::new();
    let frame = encode(&[Frame::new(opcode::BINARY, vec![7; 200_000])]);
    let full = wait_for(PATIENCE, || {
        let mut stream = connect(stage.address);
        stream.write_all(format!("{REQUEST}\r\n").as_bytes()).unwrap();
        let mut head = [0; 12];
        let mut answered = || stream.peek(&mut head).unwrap() == 12;
        assert!(wait_for(PATIENCE, || answered().then_some(())).is_some());
        if head.ends_with(b"503") {
            return Some(());
        }
        holding.push(Client::upgraded(stream));
        // Everything except its end.
        let last = holding.last_mut().unwrap();
        last.write(&frame[..frame.len() - 1]);
        None
    });
    assert!(full.is_some() && (1..=12).contains(&holding.len()), "{} connections", holding.len());
    assert!(buffered() > f64::from(1 << 20), "{}", buffered());
    // Existing connections go on, with less at a time.
    let first = &mut holding[0];
    first.write(&frame[frame.len() - 1..]);
    assert!(first.message() == vec![7; 200_000]);
    drop(holding);
    assert!(wait_for(PATIENCE, || (buffered() == 0.0).then_some(())).is_some(), "{}", buffered());
    Client::connect(stage.address);
}

/// Connections that hoard past the budget are closed.
/// One that continues a message without memory for it is at once, and one that only keeps an
/// unfinished message when its timer fires.
#[test]
fn past_the_budget_no_connection_hoards() {
    let stage = Stage::start(|config| {
        config.memory_budget = 1 << 20;
        config.heartbeat.ping_interval = Duration::from_secs(2);
        config.heartbeat.pong_timeout = Duration::from_secs(60);
    });
    let mut greedy = Client::connect(stage.address);
    let mut modest = Client::connect(stage.address);
    let frame = encode(&[Frame::new(opcode::BINARY, vec![7; 8_000_000])]);
    greedy.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let _cut_off = greedy.stream.write_all(&frame[..7_000_000]);
    assert_eq!(stage.closed(&greedy).0, "shed");
    modest.send(&[Frame::text("here")]);
    assert_eq!(modest.message(), b"here");
    let part = encode(&[Frame::new(opcode::BINARY, vec![7; 300_000])]);
    let mut holding: Vec<Client> = (0..4).map(|_| Client::connect(stage.address)).collect();
    for client in &mut holding {
        client.write(&part[..part.len() - 1]);
    }
    // The one whose timer fires first, and those whose timers fire before its memory is free; then
    // there is room again.
    let shed = || stage.metric("wsguard_server_closed_total{cause=\"shed\"}");
    let some = || (2.0..5.0).contains(&shed()).then_some(());
    assert!(wait_for(PATIENCE, some).is_some(), "{}", shed());
    modest.send(&[Frame::text("still here")]);
    assert_eq!(modest.message(), b"still here");
    Client::connect(stage.address);
}

/// After its refusal, a slow sender costs nothing while it stays.
#[test]
fn a_slow_sender_that_stays_takes_no_cpu_time() {
    let served = Served::start(&[]);
    let mut client = Client::connect(served.address);
    client.stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
    client.write(&[0x82]);
    assert_eq!(client.close_code(), Some(1008));
    let before = served.cpu();
    std::thread::sleep(Duration::from_secs(2));
    let took = served.cpu() - before;
    assert!(took < Duration::from_millis(500), "{took:?} in two seconds");
}
