//! Causes of connection ends, in the log and in the metrics, and their close codes.

use std::{net::Shutdown, time::Duration};

use ws_guard_server::heartbeat::Times;
use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::stage::{Client, PATIENCE, Stage, connect_from, reset, unlimited, wait_for};

fn count(stage: &Stage, cause: &str) -> f64 {
    stage.metric(&format!("wsguard_server_closed_total{{cause=\"{cause}\"}}"))
}

#[test]
fn a_clients_close_is_answered_and_the_server_ends_tcp() {
    let stage = Stage::start(|_| {});
    for (payload, code) in [(&b""[..], 1005), (b"\x03\xE8", 1000), (b"\x0F\xA0bye", 4000)] {
        let mut client = Client::connect(stage.address);
        client.send(&[Frame::new(opcode::CLOSE, payload)]);
        assert_eq!(client.close_code(), Some(code));
        assert_eq!(client.next(), None);
        let local = client.local;
        // The server waits for the other end only as long as that exists.
        drop(client);
        let line = stage.logged("close", local);
        assert_eq!(
            (line["cause"].as_str(), line["code"].as_u64()),
            (Some("peer_closed"), Some(code.into()))
        );
        if code == 4000 {
            assert_eq!(line["reason"], "bye");
        }
    }
    assert_eq!(count(&stage, "peer_closed"), 3.0);
}

#[test]
fn a_client_that_goes_without_a_word() {
    let stage = Stage::start(|_| {});
    let quiet = Client::connect(stage.address);
    quiet.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stage.closed(&quiet), ("peer_vanished".into(), 1006));
    let broken = Client::connect(stage.address);
    let local = broken.local;
    reset(broken);
    let line = stage.logged("close", local);
    assert_eq!(
        (line["cause"].as_str(), line["code"].as_u64()),
        (Some("peer_vanished"), Some(1006))
    );
}

#[test]
fn who_breaks_the_protocol_is_told_how() {
    let stage = Stage::start(|config| config.limits.message = 1000);
    let unmasked = Frame { mask: None, ..Frame::text("x") };
    let reserved = Frame { rsv: 2, ..Frame::text("x") };
    for (frame, code, kind) in [
        (unmasked, 1002, "unmasked"),
        (reserved, 1002, "reserved_bits"),
        (Frame::new(opcode::TEXT, [0xFF]), 1007, "utf8"),
        (Frame::new(opcode::BINARY, [0; 1001]), 1009, "too_big"),
        (Frame::new(opcode::CLOSE, [3]), 1002, "close_truncated"),
        (Frame::new(opcode::CLOSE, 1006u16.to_be_bytes()), 1002, "close_code"),
        (Frame::new(opcode::PING, [0; 126]), 1002, "control_too_long"),
        (Frame::new(0xB, [0; 100]), 1002, "reserved_opcode"),
    ] {
        let mut client = Client::connect(stage.address);
        client.send(&[frame]);
        assert_eq!(client.close_code(), Some(code), "{kind}");
        assert_eq!(client.next(), None);
        client.stream.shutdown(Shutdown::Both).unwrap();
        assert_eq!(stage.closed(&client), ("protocol_error".into(), u64::from(code)), "{kind}");
        let sample = format!("wsguard_server_protocol_errors_total{{kind=\"{kind}\"}}");
        assert_eq!(stage.metric(&sample), 1.0);
    }
}

fn fast(stage_times: &mut Times) {
    stage_times.ping_interval = Duration::from_millis(200);
    stage_times.pong_timeout = Duration::from_millis(100);
    stage_times.grace = Duration::from_millis(100);
}

#[test]
fn a_silent_client_is_pinged_three_times_and_closed() {
    let stage = Stage::start(|config| fast(&mut config.heartbeat));
    let mut client = Client::connect(stage.address);
    let pings: Vec<Frame> = std::iter::from_fn(|| client.next())
        .take_while(|frame| frame.opcode == opcode::PING)
        .collect();
    assert_eq!(pings.len(), 3);
    client.stream.shutdown(Shutdown::Both).unwrap();
    // The seed's case: abnormal, and it was a timeout.
    assert_eq!(stage.closed(&client), ("silence".into(), 1006));
    assert!(stage.logged("close", client.local)["reason"].as_str().unwrap().contains("timeout"));
}

#[test]
fn a_client_that_talks_but_answers_no_ping_only_looks_alive() {
    let stage = Stage::start(|config| fast(&mut config.heartbeat));
    let mut client = Client::connect(stage.address);
    // It has to be pinged first, which happens after a quiet interval.
    assert_eq!(client.next().unwrap().opcode, opcode::PING);
    let mut other = client.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        use std::io::Write;
        let mut bytes = Vec::new();
        Frame::text("still here").encode(&mut bytes);
        while other.write_all(&bytes).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(client.close_code(), Some(1011));
    client.stream.shutdown(Shutdown::Both).unwrap();
    assert_eq!(stage.closed(&client), ("ping_timeout".into(), 1006));
}

#[test]
fn a_client_that_answers_lives_on_and_suspicion_shows() {
    let stage = Stage::start(|config| {
        fast(&mut config.heartbeat);
        config.heartbeat.pong_timeout = Duration::from_millis(300);
    });
    let of = |family: &str, state: &str| {
        stage.metric(&format!("{family}{{region=\"unknown\",state=\"{state}\"}}"))
    };
    let state = |state| of("wsguard_server_connections", state);
    let mut client = Client::connect(stage.address);
    let first = client.next().unwrap();
    assert_eq!(state("open"), 1.0);
    assert_eq!(client.next().unwrap().opcode, opcode::PING);
    assert!(wait_for(PATIENCE, || (state("suspect") == 1.0).then_some(())).is_some());
    client.send(&[Frame::new(opcode::PONG, first.payload)]);
    assert!(wait_for(PATIENCE, || (state("open") == 1.0).then_some(())).is_some());
    for _ in 0..3 {
        let ping = client.next().unwrap();
        assert_eq!(ping.opcode, opcode::PING);
        client.send(&[Frame::new(opcode::PONG, ping.payload)]);
    }
    client.send(&[Frame::new(opcode::CLOSE, [])]);
    assert_eq!(client.close_code(), Some(1005));
    client.stream.shutdown(Shutdown::Both).unwrap();
    let rtt = stage.logged("close", client.local)["heartbeat_rtt_ms"].as_f64().unwrap();
    let reached = ["open", "suspect"].map(|state| of("websocket_connections_total", state));
    assert_eq!(reached, [1.0, 1.0], "once a state, however often it changed");
    assert!((0.0..300.0).contains(&rtt), "{rtt}");
}

#[test]
fn a_client_that_is_busy_is_not_pinged() {
    let stage = Stage::start(|config| fast(&mut config.heartbeat));
    let mut client = Client::connect(stage.address);
    for _ in 0..20 {
        client.send(&[Frame::text("busy")]);
        assert_eq!(client.next().unwrap().opcode, opcode::TEXT);
        std::thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(stage.metric("wsguard_server_pings_total{what=\"sent\"}"), 0.0);
}

#[test]
fn a_slow_reader_is_dropped() {
    let stage = Stage::start(|config| config.write_timeout = Duration::from_millis(300));
    let stream = connect_from([127, 0, 0, 1].into(), stage.address, Some(4096));
    let mut client = Client::request(stream, "", &[]);
    let mut bytes = Vec::new();
    Frame::new(opcode::BINARY, vec![0; 60_000]).encode(&mut bytes);
    use std::io::Write;
    // Until the server no longer reads, because its output is not read.
    client.stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let ended = wait_for(PATIENCE, || client.stream.write_all(&bytes).err());
    assert!(ended.is_some());
    assert_eq!(stage.closed(&client), ("slow_reader".into(), 1006));
    assert!(stage.logged("close", client.local)["message_queue_size"].as_u64().unwrap() > 0);
}

#[test]
fn a_close_frame_that_never_left_is_none() {
    let stage = Stage::start(|config| {
        config.pings = unlimited();
        config.close_timeout = Duration::from_millis(300);
    });
    let mut client = Client::connect(stage.address);
    // Few enough at a time that their pongs never fill the queue: then nothing more would be read.
    let pings = encode(&vec![Frame::ping(vec![7; 125]); 100]);
    let of = |what| stage.metric(&format!("wsguard_server_pings_total{{what=\"{what}\"}}"));
    let mut sent = 0.0;
    // Until pongs stall, and wait for no more than one.
    while of("passed_over") == 0.0 {
        client.write(&pings);
        sent += 100.0;
        let read = || of("answered") + of("passed_over") == sent;
        assert!(wait_for(PATIENCE, || read().then_some(())).is_some(), "{sent} pings");
    }
    client.write(&[0x83, 0x80, 0, 0, 0, 0]);
    assert_eq!(stage.closed(&client), ("protocol_error".into(), 1006));
}

#[test]
fn a_slow_sender_is_dropped() {
    let stage = Stage::start(|config| config.frame_timeout = Duration::from_millis(300));
    let mut client = Client::connect(stage.address);
    let mut bytes = Vec::new();
    Frame::new(opcode::BINARY, vec![0; 1000]).encode(&mut bytes);
    let start = std::time::Instant::now();
    let mut other = client.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        use std::io::Write;
        for byte in bytes {
            if other.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(client.close_code(), Some(1008));
    // Its bytes would take twenty.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    client.stream.shutdown(Shutdown::Both).unwrap();
    assert_eq!(stage.closed(&client), ("slow_sender".into(), 1008));
}

#[test]
fn shutdown_says_goodbye_and_waits_only_so_long() {
    let mut stage = Stage::start(|config| {
        config.drain_timeout = Duration::from_millis(400);
        config.close_timeout = Duration::from_secs(60);
    });
    let mut polite = Client::connect(stage.address);
    let deaf = Client::connect(stage.address);
    let (local, address) = (polite.local, stage.address);
    let answering = std::thread::spawn(move || {
        assert_eq!(polite.close_code(), Some(1012));
        // New connections are refused now.
        assert!(std::net::TcpStream::connect(address).is_err());
        polite.send(&[Frame::new(opcode::CLOSE, 1012u16.to_be_bytes())]);
        assert_eq!(polite.next(), None);
    });
    let took = stage.stop();
    answering.join().unwrap();
    assert!((Duration::from_millis(350)..Duration::from_secs(30)).contains(&took), "{took:?}");
    assert_eq!(stage.logged("close", local)["code"], 1012);
    assert_eq!(stage.closed(&deaf), ("shutdown".into(), 1006));
}
