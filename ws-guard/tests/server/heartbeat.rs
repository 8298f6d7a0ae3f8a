//! Times of the server's pings: to many clients, and before unread output.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use serde_json::json;
use ws_guard_server::{
    HandlerKind,
    topics::{
        TopicLimits,
        mailbox::{Bounds, WhenFull},
    },
};
use ws_guard_testkit::frame::{Frame, opcode};

use super::stage::{Client, PATIENCE, Stage, connect_from};

/// Simultaneous clients are pinged in turn, in the second half of the interval.
#[test]
fn first_pings_are_spread() {
    const CLIENTS: usize = 60;
    let interval = Duration::from_millis(2000);
    let stage = Stage::start(|config| {
        config.heartbeat.ping_interval = interval;
        config.heartbeat.pong_timeout = PATIENCE;
    });
    let start = Instant::now();
    let clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(stage.address)).collect();
    let connected = start.elapsed();
    let mut waiting = clients;
    waiting.iter().for_each(|client| client.stream.set_nonblocking(true).unwrap());
    let mut times = Vec::new();
    while times.len() < CLIENTS && start.elapsed() < PATIENCE {
        waiting.retain(|client| match client.stream.peek(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            peeked => {
                assert_eq!(peeked.unwrap(), 1);
                times.push(start.elapsed());
                false
            }
        });
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(times.len(), CLIENTS, "{times:?}");
    // The machine's pauses can shift all of them, but not towards one another.
    assert!(times[0] >= interval / 2, "{times:?}");
    let (first, last) = (times[CLIENTS / 10], times[CLIENTS * 9 / 10]);
    assert!(last - first > interval / 4 + connected, "{first:?} to {last:?}, {connected:?}");
    let most = times.chunk_by(|a, b| *b - *a < Duration::from_millis(2)).map(<[_]>::len).max();
    assert!(most < Some(CLIENTS / 2), "{most:?} at once: {times:?}");
}

/// A client that resumes reading finds the ping long before the last output.
#[test]
fn pings_go_ahead_of_what_waits() {
    const SENT: usize = 1500;
    let stage = Stage::start(|config| {
        let mailbox = Bounds { messages: SENT, bytes: 64 << 20, when_full: WhenFull::Close };
        config.handler = HandlerKind::Topic(Box::new(TopicLimits {
            mailbox,
            topics: 1,
            ..TopicLimits::default()
        }));
        config.heartbeat.ping_interval = Duration::from_millis(500);
        config.heartbeat.pong_timeout = PATIENCE;
        config.write_timeout = PATIENCE;
    });
    let stream = connect_from([127, 0, 0, 1].into(), stage.address, Some(4096));
    let mut sleeper = Client::request(stream, "", &[]);
    sleeper.send(&[Frame::text(r#"{"type":"subscribe","topic":"news"}"#)]);
    sleeper.message();
    let mut writer = Client::connect(stage.address);
    let data = "x".repeat(16 * 1024);
    let publication = json!({"type": "publish", "topic": "news", "data": data}).to_string();
    for _ in 0..SENT {
        writer.send(&[Frame::text(&publication)]);
        writer.message();
    }
    // The client was silent for a whole interval.
    std::thread::sleep(Duration::from_millis(700));
    let (mut messages, mut pinged) = (0, None);
    while messages < SENT {
        let frame = sleeper.next().expect("the connection lives");
        match frame.opcode {
            opcode::PING => pinged = pinged.or(Some(messages)),
            _ => messages += 1,
        }
    }
    // The bytes that the kernel had taken already precede it.
    assert!(pinged.is_some_and(|before| before < SENT * 2 / 3), "{pinged:?} of {SENT} before it");
}
