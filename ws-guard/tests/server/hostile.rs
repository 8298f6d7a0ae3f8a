//! Bugs of other implementations, each with a test here or where it belongs:
//!
//! | bug | test |
//! |---|---|
//! | negative or invalid length (Tomcat CVE-2020-13935, nginx Unit CVE-2025-1695) | [`impossible_lengths`] |
//! | unknown opcode with a large payload (Jetty CVE-2026-19204) | [`an_unknown_opcode_is_refused_at_its_header`] |
//! | a buffer leaked per PONG (Undertow CVE-2021-3690) | `leaks::unsolicited_pongs` |
//! | tiny fragments (ws CVE-2026-48779) | [`a_million_empty_fragments`], `leaks::a_million_fragments` |
//! | a flood of header fields (tungstenite CVE-2023-43669) | `handshake::a_flood_of_headers_is_cut_off` |
//! | memory disclosed in a ping (ws GHSA-2mhh-w6q8-5hxw) | `pings::a_pong_is_the_ping_to_the_byte` |
//! | reads that are not cancel-safe (fastwebsockets #64) | [`a_frame_survives_what_happens_meanwhile`], `codec::any_cut_gives_the_same_events` |
//!
//! Attacks by clients without an error:
//!
//! | client | test |
//! |---|---|
//! | sends a byte at a time | `closing::a_slow_sender_is_dropped`, `handshake::a_handshake_takes_no_longer_than_it_may`, `leaks::frames_that_do_not_go_on` |
//! | never finishes a handshake | `handshake::a_handshake_takes_no_longer_than_it_may`, `leaks::handshakes_that_do_not_go_on`, `rollout::who_never_agrees_on_keys_is_closed` |
//! | never reads | `closing::a_slow_reader_is_dropped`, `memory::a_flood_of_pings_takes_no_memory` |
//! | sends a million empty fragments | [`a_million_empty_fragments`], `leaks::a_million_fragments` |
//! | closes half-way | [`half_closed_in_the_middle_of_a_frame`], `closing::a_client_that_goes_without_a_word`, `leaks::messages_that_end_half_way` |

use std::{
    io::Write,
    net::Shutdown,
    time::{Duration, Instant},
};

use ws_guard_server::PingRates;
use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::stage::{Client, Stage, limited, wait_for};

/// Tomcat CVE-2020-13935, nginx Unit CVE-2025-1695: negative or wrapping lengths.
#[test]
fn impossible_lengths() {
    let stage = Stage::start(|_| {});
    for (length, code) in [
        (u64::MAX, 1002),
        (1 << 63, 1002),
        (i64::MAX as u64, 1009),
        (u64::from(u32::MAX), 1009),
        (125, 1002),
    ] {
        let mut client = Client::connect(stage.address);
        client.write(&[0x82, 0xFF]);
        client.write(&length.to_be_bytes());
        client.write(&[0; 4]);
        assert_eq!(client.close_code(), Some(code), "{length}");
    }
}

/// Jetty CVE-2026-19204: an unknown opcode with a large payload.
#[test]
fn an_unknown_opcode_is_refused_at_its_header() {
    let stage = Stage::start(|_| {});
    let mut client = Client::connect(stage.address);
    client.write(&[0x83, 0xFF, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
    assert_eq!(client.close_code(), Some(1002));
}

/// ws CVE-2026-48779: tiny fragments, here empty ones and without end.
#[test]
fn a_million_empty_fragments() {
    let stage = Stage::start(|_| {});
    let mut client = Client::connect(stage.address);
    let mut first = Frame::new(opcode::TEXT, []);
    first.fin = false;
    client.send(&[first.clone()]);
    first.opcode = opcode::CONTINUATION;
    let batch = encode(&vec![first; 1000]);
    // Bytes behind the error are discarded until the end.
    let _ = (0..1000).try_for_each(|_| client.stream.write_all(&batch));
    client.stream.shutdown(Shutdown::Both).unwrap();
    let line = stage.logged("close", client.local);
    assert_eq!(line["cause"], "protocol_error");
    let kind = "wsguard_server_protocol_errors_total{kind=\"too_many_fragments\"}";
    assert_eq!(stage.metric(kind), 1.0);
}

/// fastwebsockets #64:
/// the part of a frame already read is lost when something else is done before its rest arrives.
/// Here timers fire, pings are sent and other messages are written between any two bytes.
#[test]
fn a_frame_survives_what_happens_meanwhile() {
    let stage = Stage::start(|config| {
        // Shorter than the silence between two bytes, or there would be no need to ping.
        config.heartbeat.ping_interval = Duration::from_millis(5);
        config.heartbeat.pong_timeout = Duration::from_secs(5);
    });
    let mut client = Client::connect(stage.address);
    let text = "byte by byte";
    for byte in encode(&[Frame::text(text), Frame::ping("and a ping")]) {
        client.write(&[byte]);
        std::thread::sleep(Duration::from_millis(30));
    }
    let frames: Vec<Frame> = std::iter::from_fn(|| client.next())
        .filter(|frame| frame.opcode != opcode::PING)
        .take(2)
        .collect();
    assert_eq!((frames[0].opcode, &frames[0].payload[..]), (opcode::TEXT, text.as_bytes()));
    assert_eq!((frames[1].opcode, &frames[1].payload[..]), (opcode::PONG, &b"and a ping"[..]));
    let sent = "wsguard_server_pings_total{what=\"sent\"}";
    assert!(stage.metric(sent) >= 1.0, "nothing happened meanwhile");
}

/// A bomb of 1000 to 1 is refused for its decompressed size.
#[test]
fn a_compression_bomb() {
    let stage = Stage::start(|config| config.limits.message = 1 << 20);
    let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
    let mut bomb = Vec::with_capacity(1 << 20);
    deflate.compress_vec(&vec![0; 100 << 20], &mut bomb, flate2::FlushCompress::Sync).unwrap();
    assert!(bomb.len() < 200_000, "{}", bomb.len());
    bomb.truncate(bomb.len() - 4);
    let mut frame = Frame::new(opcode::BINARY, bomb);
    frame.rsv = 4;
    let fields = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let stream = super::stage::connect(stage.address);
    let mut client = Client::request(stream, fields, &[]);
    client.send(&[frame]);
    assert_eq!(client.close_code(), Some(1009));
}

/// A half-closed connection is over: no peer is left to answer a ping.
#[test]
fn half_closed_in_the_middle_of_a_frame() {
    let stage = Stage::start(|_| {});
    let mut client = Client::connect(stage.address);
    let bytes = encode(&[Frame::text("never whole")]);
    client.write(&bytes[..bytes.len() - 3]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stage.closed(&client), ("peer_vanished".into(), 1006));
}

/// After an error nothing more is read as frames.
/// A client that goes on does not keep the connection.
#[test]
fn who_goes_on_after_an_error_is_cut_off() {
    let stage = Stage::start(|config| config.close_timeout = Duration::from_millis(300));
    let mut client = Client::connect(stage.address);
    client.send(&[Frame { rsv: 1, ..Frame::text("wrong") }]);
    let start = Instant::now();
    let text = encode(&[Frame::text("right")]);
    let ended = wait_for(Duration::from_secs(5), || {
        std::thread::sleep(Duration::from_millis(5));
        client.stream.write_all(&text).err()
    });
    // Not after the default of five seconds.
    assert!(ended.is_some() && start.elapsed() < Duration::from_millis(4500));
    assert_eq!(stage.closed(&client).0, "protocol_error");
    assert_eq!(stage.metric("wsguard_server_messages_total{direction=\"in\"}"), 0.0);
}

/// A client that sends the smallest frames at full speed does not starve others.
#[test]
fn a_flood_of_small_frames_leaves_others_their_turn() {
    let stage = Stage::start(|config| {
        config.pings = limited(PingRates::new(1, 0, 10).unwrap());
    });
    let mut flooder = Client::connect(stage.address).stream;
    let pings = encode(&vec![Frame::ping(""); 20_000]);
    let flooding = std::thread::spawn(move || while flooder.write_all(&pings).is_ok() {});
    let mut honest = Client::connect(stage.address);
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            let start = Instant::now();
            honest.send(&[Frame::text("hello")]);
            honest.message();
            start.elapsed()
        })
        .collect();
    drop(stage);
    flooding.join().unwrap();
    times.sort();
    assert!(times[7] < Duration::from_secs(1), "{times:?}");
}
