//! Service for an honest client.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use ws_guard_testkit::frame::{Frame, opcode};

use super::stage::{Client, Stage, connect};

#[test]
fn messages_come_back_in_any_size_and_any_pieces() {
    let stage = Stage::start(|_| {});
    let mut client = Client::connect(stage.address);
    for size in [0, 1, 125, 126, 8191, 8192, 65_535, 65_536, 200_000, 3_000_000] {
        let payload: Vec<u8> = (0..size).map(|i| (i * 31 / 7) as u8).collect();
        client.send(&[Frame::new(opcode::BINARY, payload.clone())]);
        let echo = client.next().unwrap();
        assert_eq!((echo.opcode, echo.mask, echo.fin), (opcode::BINARY, None, true));
        assert!(echo.payload == payload, "{size} bytes");
        if size > 0 {
            client.send(&Frame::fragments(opcode::BINARY, &payload, size / 7 + 1));
            assert!(client.message() == payload, "{size} bytes in fragments");
        }
    }
    client.send(&[Frame::text("κόσμε")]);
    assert_eq!(client.next().unwrap().opcode, opcode::TEXT);
}

#[test]
fn many_messages_at_once_come_back_in_order() {
    let stage = Stage::start(|_| {});
    let mut client = Client::connect(stage.address);
    let mut sender = client.stream.try_clone().unwrap();
    let count = 3000;
    let writing = std::thread::spawn(move || {
        use std::io::Write;
        for number in 0..count {
            // Every size class of the output: copied, and written in place.
            let mut payload = vec![0; number * 7 % 20_000 + 4];
            payload[..4].copy_from_slice(&(number as u32).to_be_bytes());
            let mut bytes = Vec::new();
            Frame::new(opcode::BINARY, payload).encode(&mut bytes);
            sender.write_all(&bytes).unwrap();
        }
    });
    for number in 0..count {
        let payload = client.message();
        assert_eq!(payload.len(), number * 7 % 20_000 + 4);
        assert_eq!(payload[..4], (number as u32).to_be_bytes());
    }
    writing.join().unwrap();
}

#[test]
fn frames_right_behind_the_request_are_not_lost() {
    let stage = Stage::start(|_| {});
    let early = [Frame::text("early"), Frame::ping("bird")];
    let mut client = Client::request(connect(stage.address), "", &early);
    assert_eq!(client.next().unwrap().payload, b"early");
    let pong = client.next().unwrap();
    assert_eq!((pong.opcode, pong.payload.as_slice()), (opcode::PONG, &b"bird"[..]));
}

#[test]
fn compression_is_agreed_and_used() {
    let stage = Stage::start(|_| {});
    let fields = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    let mut client = Client::request(connect(stage.address), fields, &[]);
    let answer = client.answer.to_lowercase();
    assert!(answer.contains("permessage-deflate; server_no_context_takeover"), "{answer}");
    let text = "a text that repeats itself, ".repeat(50);
    client.send(&[Frame::text(&text)]);
    let echo = client.next().unwrap();
    assert_eq!(echo.rsv, 4);
    assert!(echo.payload.len() < text.len() / 10, "{} bytes", echo.payload.len());
    // Compressed messages are echoed compressed, with the same content.
    let mut frame = Frame::new(opcode::TEXT, echo.payload.clone());
    frame.rsv = 4;
    client.send(&[frame]);
    assert_eq!(client.next().unwrap().payload, echo.payload);
    // Too short to be worth it.
    client.send(&[Frame::text("short")]);
    assert_eq!(client.next().unwrap().rsv, 0);
}

#[test]
fn without_compression_nothing_is_agreed() {
    let stage = Stage::start(|config| config.deflate = None);
    let fields = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let client = Client::request(connect(stage.address), fields, &[]);
    assert!(!client.answer.to_lowercase().contains("extensions"), "{}", client.answer);
}

/// A third-party client, against shards of more than one thread.
#[tokio::test(flavor = "multi_thread")]
async fn tungstenite_talks_to_it() {
    let stage = Stage::start(|config| config.shards = 2);
    let url = format!("ws://{}/path?query", stage.address);
    let talks = (0..20).map(|number| {
        let url = url.clone();
        tokio::spawn(async move {
            let stream = tokio::net::TcpStream::connect(&url[5..url.len() - 11]).await.unwrap();
            let (mut socket, _) = tokio_tungstenite::client_async(&url, stream).await.unwrap();
            for size in [3, 300, 70_000] {
                let message = Message::text(format!("{number} ").repeat(size));
                socket.send(message.clone()).await.unwrap();
                assert_eq!(socket.next().await.unwrap().unwrap(), message);
            }
            socket.close(None).await.unwrap();
            while socket.next().await.is_some() {}
        })
    });
    for talk in talks.collect::<Vec<_>>() {
        talk.await.unwrap();
    }
    assert_eq!(stage.metric("wsguard_server_messages_total{direction=\"out\"}"), 60.0);
}
